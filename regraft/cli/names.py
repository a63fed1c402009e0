"""Names for completion, each list loaded only when it is asked for. None of it needs torch."""

from __future__ import annotations

from collections.abc import Iterable


def backends() -> list[str]:
    from regraft.backends import BUILTIN

    return sorted(BUILTIN)


def stages() -> list[str]:
    from regraft.ir import STAGES

    return ["captured", *STAGES]


def passes() -> list[str]:
    from regraft.rewrites import default_passes

    return [each.name for each in default_passes()]


def rewrites() -> list[str]:
    from regraft.rewrites import catalogue

    return [name for _, name, _, _ in catalogue()]


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def complete_stage(incomplete: str) -> list[str]:
    return _starting(stages(), incomplete)


def complete_pass(incomplete: str) -> list[str]:
    return _starting(passes(), incomplete)


def complete_rewrite(incomplete: str) -> list[str]:
    return _starting(rewrites(), incomplete)


def complete_backends(incomplete: str) -> list[str]:
    """The back ends that may follow in a comma-separated list."""
    before, comma, last = incomplete.rpartition(",")
    taken = before.split(",")
    return [f"{before}{comma}{name}" for name in _starting(backends(), last) if name not in taken]


def complete_exactness(incomplete: str) -> list[str]:
    return _starting(("exact", "reassociates", "approx:"), incomplete)

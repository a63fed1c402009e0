"""What a compile did, as data and as JSON; ``ReadableReport`` shows it to people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from regraft.compiler.choose import Choice
from regraft.compiler.measure import Measurement, measure
from regraft.ir import RewriteStats
from regraft.runtime import CompiledModel, ReadableReport


@dataclass(frozen=True)
class Estimate:
    """The time of a call as a model of the machine gives it.

    Fields:
        seconds: the sum over the final graph's ops of the slower of arithmetic and traffic, and of an
            overhead for each. An op whose flops are not known counts with its traffic.
        profile: ``measured`` on this machine, or ``default`` figures of current CPUs.
    """

    seconds: float
    profile: Literal["measured", "default"]


@dataclass(frozen=True)
class CacheOutcome:
    """What the cache had to do with a compile.

    Fields:
        status: ``hit``; ``miss``, and the result is stored; ``not cached``, since it cannot be; ``off``.
        reason: for a miss what has changed, else why it is not cached.
        path: the file of the entry, where there is one.
    """

    status: Literal["hit", "miss", "not cached", "off"]
    reason: str = ""
    path: str | None = None

    def __str__(self) -> str:
        return f"{self.status}: {self.reason}" if self.reason else self.status


@dataclass
class Report(ReadableReport):
    """The report of one compile. What is not known is None or absent, and shown as unknown.

    Fields:
        captured: ops of the captured graph by name.
        passes: seconds by pass, in order.
        rewrites: hits, declines and seconds by rewrite.
        executors: ops by back end.
        fallbacks: (op, back end, reason) -> uses, for ops that a preferred back end refused.
        choices: for each computation with several forms, which one runs when, and why.
        kernels: of each kernel that its back end had several of, as JSON: which one was taken, and its times.
        notes: what the user should know, such as a back end that is not installed.
        flops, bytes: of one call of the captured and of the final graph (``before`` and ``after``),
            symbols at the example's sizes, the body of a loop counted once. Bytes are those of each op's
            operands and results.
        uncounted: uses of ops in the final graph whose flops are not known, by name.
        time: seconds of the whole compile without verification, as ``total``, and of its phases; what went
            into timing forms, back ends and kernels is ``measuring`` and in no phase.
        estimated: what a call takes by the roofline of this machine; None before there is a final graph.
        measured: what a call took; None until ``measure`` was called.
        error: max |y - reference| / max |reference| against eager in fp64; None when not verified.
        approximation: the same of what approximations changed, both graphs run by eager torch at the model's
            own dtypes; None when none were allowed, and when ``error`` tells.
        memory: bytes of the model's ``constants``, of those among them that ops ``read`` as they are, and of
            what was ``made`` of them and is read, such as merged or factored weights; of the weights that
            kernels have ``packed`` beside those; the estimated peak of ``intermediates`` in one call; and by
            how much the compile made the process grow: ``growth`` at its end, ``peak_growth`` at most. None
            where the system does not tell.
        cache: whether the graph came from the cache. On a hit, what is said of capture and passes is what
            the compile that made the entry had found.
    """

    captured: dict[str, int] = field(default_factory=dict[str, int])
    passes: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    rewrites: dict[str, RewriteStats] = field(default_factory=dict[str, RewriteStats])
    executors: dict[str, int] = field(default_factory=dict[str, int])
    fallbacks: dict[tuple[str, str, str], int] = field(default_factory=dict[tuple[str, str, str], int])
    choices: list[Choice] = field(default_factory=list[Choice])
    kernels: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    notes: list[str] = field(default_factory=list[str])
    flops: dict[str, int] = field(default_factory=dict[str, int])
    bytes: dict[str, int] = field(default_factory=dict[str, int])
    uncounted: dict[str, int] = field(default_factory=dict[str, int])
    time: dict[str, float] = field(default_factory=dict[str, float])
    estimated: Estimate | None = None
    measured: Measurement | None = None
    error: float | None = None
    approximation: float | None = None
    memory: dict[str, int | None] = field(default_factory=dict[str, "int | None"])
    cache: CacheOutcome = CacheOutcome("off")

    def measure(
        self,
        compiled: CompiledModel,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        calls: int = 5,
    ) -> Measurement:
        """Time ``compiled`` on the arguments and keep the result as ``measured``.

        Each number is the median of ``calls`` warm calls: of whole calls for the model, and of calls with
        a clock around each step for the executors.

        Raises:
            The errors of a call.
        """
        self.measured = measure(compiled, args, kwargs or {}, calls)
        return self.measured

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "captured": dict(self.captured),
            "passes": [{"name": name, "seconds": seconds} for name, seconds in self.passes],
            "rewrites": {
                name: {"hits": s.hits, "declined": dict(s.declined), "seconds": s.seconds}
                for name, s in self.rewrites.items()
            },
            "executors": dict(self.executors),
            "fallbacks": [
                {"op": op, "backend": backend, "reason": reason, "uses": uses}
                for (op, backend, reason), uses in self.fallbacks.items()
            ],
            "choices": [{**choice.to_dict(), "text": str(choice)} for choice in self.choices],
            "kernels": [dict(kernel) for kernel in self.kernels],
            "notes": list(self.notes),
            "flops": dict(self.flops),
            "bytes": dict(self.bytes),
            "uncounted": dict(self.uncounted),
            "time": dict(self.time),
            "estimated": None if self.estimated is None else asdict(self.estimated),
            "measured": None if self.measured is None else self.measured.to_dict(),
            "error": self.error,
            "approximation": self.approximation,
            "memory": dict(self.memory),
            "cache": asdict(self.cache),
        }


def lines_in_rich(lines: Iterable[str]) -> Any:
    """Lines as rich shows them: as they are, without markup."""
    from rich.text import Text

    return Text("\n".join(lines))

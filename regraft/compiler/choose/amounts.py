"""Times and sizes as users write them: ``"30s"``, ``"512 MiB"``."""

from __future__ import annotations

import re
from typing import Any

from regraft.errors import OptionError, shown

_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|min)?")
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, None: 1.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?")
_BYTES = {
    "": 1,
    **{letter: 10 ** (3 * power) for power, letter in enumerate("KMGT", start=1)},
    **{f"{letter}I": 2 ** (10 * power) for power, letter in enumerate("KMGT", start=1)},
}


def parse_budget(budget: str | float) -> float:
    """Seconds from ``"30s"``, ``"2m"``, ``"500ms"`` or a number of seconds.

    Raises:
        OptionError: it is none of these, or not positive.
    """
    seconds = 0.0
    if isinstance(budget, str):
        found = _TIME.fullmatch(budget.strip())
        seconds = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    elif isinstance(budget, (int, float)) and not isinstance(budget, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        seconds = float(budget)
    if not seconds > 0:  # nan is not
        raise OptionError(
            "'budget' cannot be this",
            option="budget",
            value=shown(budget),
            expected="a positive time, such as '30s' or '2m'",
        )
    return seconds


def parse_size(size: Any, option: str) -> int:
    """Bytes from ``"1500"``, ``"200MB"``, ``"1.5 GiB"`` or a number of bytes; ``option`` is who gave it.

    Raises:
        OptionError: it is none of these, or below 0.
    """
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    found = _SIZE.fullmatch(size.strip().upper()) if isinstance(size, str) else None
    if found is None:
        raise OptionError(
            f"'{option}' cannot be this",
            option=option,
            value=shown(size),
            expected="a number of bytes, or a size such as '200MB' or '1GiB'",
        )
    return int(float(found[1]) * _BYTES[found[2] or ""])

"""What a report says of choices between forms, from their JSON form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Content = Mapping[str, Any]

#: So many paths of layers are shown; the JSON form has all of them.
_SHOWN_LAYERS = 6


def alike(choices: Iterable[Content]) -> list[list[Content]]:
    """Choices that were decided alike together, in the order of the first of each."""
    groups: dict[Any, list[Content]] = {}
    for choice in choices:
        parts = (choice.get(name) for name in ("signature", "rows", "chosen", "break_even", "reason"))
        key = repr(tuple(parts)) if "signature" in choice else choice["text"]
        groups.setdefault(key, []).append(choice)
    return list(groups.values())


def choice_lines(same: Sequence[Content]) -> list[str]:
    """What to say of choices that were decided alike: what runs, in which layers, by which times, and why."""
    if "signature" not in same[0]:  # the artefact of an earlier version
        return [str(same[0]["text"])]
    return [*headline(same), *(f"    {line}" for line in _times(same[0]))]


def headline(same: Sequence[Content]) -> list[str]:
    """What runs, and in which layers."""
    first, extra = same[0], sum(choice["extra_bytes"] for choice in same)
    more = f" (and {len(same) - 1} more like it)" if len(same) > 1 else ""
    changes = zip(first["break_even"], first["chosen"][1:], strict=True)
    runs = ", ".join([first["chosen"][0], *(f"from {cut} rows {form}" for cut, form in changes)])
    memory = f"; {abs(extra) / 1e6:.1f} MB {'more' if extra > 0 else 'less'}" if extra else ""
    reason = f" ({first['reason']})" if first["reason"] else ""
    layers = list(dict.fromkeys(layer for choice in same for layer in choice["layers"]))
    return [f"{first['where']}{more}: {runs}{memory}{reason}", *_layers(layers)]


def _layers(layers: Sequence[str]) -> Iterator[str]:
    if layers:
        rest = len(layers) - _SHOWN_LAYERS
        shown = ", ".join(layers[:_SHOWN_LAYERS])
        yield f"    layers: {shown}" + (f" and {rest} more" if rest > 0 else "")


def _times(choice: Content) -> Iterator[str]:
    """A line for the fewest rows, and one for each number of rows at which the form changes."""
    times = choice["microseconds"]
    if not times:
        known = next(iter(choice["estimated_microseconds"].values()), [])
        yield f"not measured, {_estimated(known)}" if known else "not measured"
        return
    for rows in (next(iter(times)), *map(str, choice["break_even"])):
        place = f"at {rows} row{'s' if rows != '1' else ''}: " if choice["rows"] else ""
        listed = ", ".join(f"{f} {us:.1f} us" for f, us in zip(choice["forms"], times[rows], strict=True))
        why = f"; {choice['why'][rows]}" if rows in choice["why"] else ""
        yield f"{place}{listed}, {source(choice, rows)}{_beside(choice, rows)}{why}"


def source(choice: Content, rows: str) -> str:
    """Where the times at ``rows`` rows come from."""
    at = choice["based_on"].get(rows)
    if not at:
        return "estimated"
    if len(at) == 2:
        return f"from those measured at {at[0]} and {at[1]} rows"
    return "measured" if str(at[0]) == rows else f"estimated, scaled by what was measured at {at[0]} rows"


def _beside(choice: Content, rows: str) -> str:
    """What else is known of times that were measured."""
    if not choice["based_on"].get(rows):
        return ""
    estimates = choice["estimated_microseconds"].get(rows, [])
    parts = [*([_estimated(estimates)] if estimates else [])]
    parts += [f"noise {100 * choice['noise'][rows]:.1f} %"] if rows in choice["noise"] else []
    return f" ({', '.join(parts)})" if parts else ""


def _estimated(us: Sequence[float]) -> str:
    shown = dict.fromkeys(f"{each:.1f}" for each in us)
    return f"estimated {' and '.join(shown)} us"


def hanging(line: str) -> Any:
    """``line`` for rich, broken where it is too long, its parts below each other."""
    from rich.padding import Padding
    from rich.text import Text

    text = line.lstrip(" ")
    return Padding(Text(text), (0, 0, 0, len(line) - len(text)), expand=False)

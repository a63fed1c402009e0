"""Parameter spaces of kernel templates: finite domains, constraints with a sentence each, one solver."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """A value for each parameter of a template, in the template's order.

    ``str`` gives the text that the tuning database keeps; ``parse`` reads it.
    """

    values: tuple[tuple[str, int], ...]

    @staticmethod
    def of(**values: int) -> Config:
        return Config(tuple(values.items()))

    @staticmethod
    def parse(text: str) -> Config:
        """The config whose ``str`` is ``text``.

        Raises:
            ValueError: it is not such a text.
        """
        pairs = [pair.partition("=") for pair in text.split(",")]
        if not all(value.isdecimal() for _, _, value in pairs):
            raise ValueError(f"not a config: {text!r}")
        return Config(tuple((name, int(value)) for name, _, value in pairs))

    def __getitem__(self, name: str) -> int:
        return dict(self.values)[name]

    def __str__(self) -> str:
        return ",".join(f"{name}={value}" for name, value in self.values)

    def part(self, prefix: str) -> Config:
        """The values of the parameters called ``prefix``.name, without the prefix."""
        start = f"{prefix}."
        return Config(tuple((n.removeprefix(start), v) for n, v in self.values if n.startswith(start)))

    def prefixed(self, prefix: str) -> Config:
        """The same values with each name as ``prefix``.name."""
        return Config(tuple((f"{prefix}.{name}", value) for name, value in self.values))


@dataclass(frozen=True)
class Parameter:
    """A name and the values that it may have, the preferred ones first."""

    name: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class Constraint:
    """What must hold of some parameters.

    Fields:
        says: the condition in words, for those who ask why a config is not allowed.
        uses: the names of the parameters that it is about.
        holds: takes their values in that order.
    """

    says: str
    uses: tuple[str, ...]
    holds: Callable[..., bool]


@dataclass(frozen=True)
class Space:
    """All configs of a template for one problem on one CPU."""

    parameters: tuple[Parameter, ...]
    constraints: tuple[Constraint, ...] = ()

    def __post_init__(self) -> None:
        names = [p.name for p in self.parameters]
        assert len(set(names)) == len(names), f"a parameter is named twice: {names}"
        for constraint in self.constraints:
            known = constraint.uses and set(constraint.uses) <= set(names)
            assert known, f"unknown parameter, or none, in {constraint.says!r}"

    def __iter__(self) -> Iterator[Config]:
        """Every config that meets all constraints, preferred values first.

        Depth first; a constraint is asked as soon as its last parameter has a value, so that what it rules
        out is not enumerated.
        """
        position = {p.name: i for i, p in enumerate(self.parameters)}
        decided: list[list[Constraint]] = [[] for _ in self.parameters]
        for constraint in self.constraints:
            decided[max(position[name] for name in constraint.uses)].append(constraint)
        return self._extend((), decided)

    def _extend(
        self, values: tuple[tuple[str, int], ...], decided: Sequence[Sequence[Constraint]]
    ) -> Iterator[Config]:
        """The configs that begin with ``values``."""
        if len(values) == len(self.parameters):
            yield Config(values)
            return
        parameter = self.parameters[len(values)]
        for value in parameter.values:
            longer = (*values, (parameter.name, value))
            if not _broken(decided[len(values)], dict(longer)):
                yield from self._extend(longer, decided)

    def refusal(self, config: Config) -> str | None:
        """Why ``config`` is not in the space; None when it is."""
        names = tuple(p.name for p in self.parameters)
        if tuple(name for name, _ in config.values) != names:
            return f"its parameters are not {', '.join(names)}"
        for parameter in self.parameters:
            if config[parameter.name] not in parameter.values:
                return f"{parameter.name} cannot be {config[parameter.name]}"
        broken = _broken(self.constraints, dict(config.values))
        return broken[0].says if broken else None

    def prefixed(self, prefix: str) -> Space:
        """The same space with each parameter as ``prefix``.name."""
        parameters = tuple(Parameter(f"{prefix}.{p.name}", p.values) for p in self.parameters)
        constraints = tuple(
            Constraint(f"{prefix}: {c.says}", tuple(f"{prefix}.{n}" for n in c.uses), c.holds)
            for c in self.constraints
        )
        return Space(parameters, constraints)

    def joined(self, other: Space) -> Space:
        """Every pair of a config of this space and one of the other."""
        return Space(self.parameters + other.parameters, self.constraints + other.constraints)


def _broken(constraints: Sequence[Constraint], values: Mapping[str, int]) -> list[Constraint]:
    return [c for c in constraints if not c.holds(*(values[name] for name in c.uses))]

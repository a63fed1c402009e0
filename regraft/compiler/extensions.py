"""What users add to a compile: rewrites, passes, ops and back ends, their own or those of plug-ins.

Everything is checked here, before a model is captured: a wrong object, a name that is taken, a pattern
that cannot be traced. An error about a part of a plug-in names the plug-in and its package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from regraft.backends import BUILTIN, Backend
from regraft.errors import OptionError, RegraftError, no_such, shown
from regraft.ir import OPS, STAGES, Module, OnnxOp, OpDef, OpTable, Pass, PassContext, Rewrite, verify
from regraft.plugins import NamedPlugin, Plugin, find_plugins
from regraft.rewrites import FAMILIES, default_passes
from regraft.runtime import HOST

#: Dialects whose ops mean something to the compiler itself.
_OWN_DIALECTS = ("rg", "cf")


@dataclass(frozen=True)
class Extensions:
    """What was added, checked.

    Fields:
        rewrites: besides the shipped ones.
        passes: each in its stage.
        table: the ops of the compile, the built-in ones included.
        backends: name -> back end, of the plug-ins.
    """

    rewrites: tuple[Rewrite, ...]
    passes: tuple[Pass, ...]
    table: OpTable
    backends: Mapping[str, Backend]

    @staticmethod
    def of(
        plugins: Sequence[str | Plugin], rewrites: Sequence[Any], passes: Sequence[Any], ops: Sequence[Any]
    ) -> Extensions:
        """The user's own parts and those of ``plugins``, in that order.

        Raises:
            PluginError: a plug-in cannot be found or used.
            OptionError: a part of the user's own cannot be used.
        """
        own = _Parts.checked(rewrites, passes, ops, (), "given as ops=")
        parts = [(own, None), *((_of_plugin(named), named) for named in find_plugins(plugins))]
        names = _Names()
        for each, named in parts:
            _blaming(named, lambda each=each: names.add(each))
        for each, named in parts:
            _blaming(named, lambda each=each: names.check_order(each))
        table = OPS.extended(names.ops) if names.ops else OPS
        for each, named in parts:
            _blaming(named, lambda each=each: _check_patterns(each.rewrites, table))
        return Extensions(
            tuple(r for each, _ in parts for r in each.rewrites),
            tuple(p for each, _ in parts for p in each.passes),
            table,
            {b.name: b for each, _ in parts for b in each.backends},
        )


def _of_plugin(named: NamedPlugin) -> _Parts:
    plugin = named.plugin
    package = f" of {named.package}" if named.package else ""
    origin = f"of the plug-in '{plugin.name}'{package}"
    return _blaming(
        named,
        lambda: _Parts.checked(plugin.rewrites, plugin.passes, plugin.ops, plugin.backends, origin),
    )


def _blaming(named: NamedPlugin | None, check: Callable[[], Any]) -> Any:
    """What ``check`` returns; its error, where the parts are a plug-in's, names that."""
    try:
        return check()
    except RegraftError as error:
        if named is None:
            raise
        raise named.refuse(str(error)) from error


# -- single objects ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Parts:
    """The parts of one origin, each checked by itself."""

    rewrites: tuple[Rewrite, ...]
    passes: tuple[Pass, ...]
    ops: tuple[OpDef, ...]
    backends: tuple[Backend, ...]

    @staticmethod
    def checked(
        rewrites: Sequence[Any],
        passes: Sequence[Any],
        ops: Sequence[Any],
        backends: Sequence[Any],
        origin: str,
    ) -> _Parts:
        return _Parts(
            tuple(_rewrite(each) for each in _listed("rewrites", rewrites)),
            tuple(_staged(each) for each in _listed("passes", passes)),
            tuple(replace(_op(each), origin=origin) for each in _listed("ops", ops)),
            tuple(checked_backend(each) for each in _listed("backends", backends)),
        )


def refuse(name: str, value: Any, expected: str) -> NoReturn:
    """Say that the option ``name`` cannot be ``value``.

    Raises:
        OptionError: always.
    """
    raise OptionError(f"'{name}' cannot be this", option=name, value=shown(value), expected=expected)


def _listed(option: str, value: Any) -> Iterable[Any]:
    if isinstance(value, (str, type)) or not isinstance(value, Iterable):
        refuse(option, value, "a list")
    return value  # pyright: ignore[reportUnknownVariableType]


def _rewrite(entry: Any) -> Rewrite:
    if isinstance(entry, type) and issubclass(entry, Rewrite):
        return _rewrite(_made("rewrites", entry))
    if not isinstance(entry, Rewrite):
        refuse("rewrites", entry, "Rewrite classes or instances")
    if entry.stage not in STAGES[:-1]:
        refuse(f"rewrites: {entry.name}.stage", entry.stage, f"one of: {', '.join(STAGES[:-1])}")
    for method in ("pattern", "rewrite"):
        if getattr(type(entry), method, None) in (None, getattr(Rewrite, method, None)):
            refuse(f"rewrites: {entry.name}", entry, f"a class with a method '{method}'")
    _check_order_type(f"rewrites: {entry.name}", entry)
    return entry


def _made(option: str, entry: type) -> Any:
    """An instance of a class that takes no arguments."""
    try:
        return entry()
    except Exception as error:
        raise OptionError(
            f"'{option}' has the class {entry.__name__}, which cannot be made without arguments: {error}; "
            "give an instance"
        ) from error


class _Staged:
    """A user's pass, in the stage the user gave. What it leaves is verified at once, so that it is blamed."""

    def __init__(self, stage: str, inner: Any) -> None:
        self.name: str = inner.name
        self.stage = stage
        self.after: tuple[str, ...] = tuple(getattr(inner, "after", ()))
        self.before: tuple[str, ...] = tuple(getattr(inner, "before", ()))
        self.fingerprint: Any = getattr(inner, "fingerprint", None)
        self.approximates: Any = getattr(inner, "approximates", None)
        self._inner = inner

    def run(self, module: Module, context: PassContext) -> bool:
        changed = self._inner.run(module, context)
        verify(module, "captured", after_pass=self.name)
        return bool(changed)


def _staged(entry: Any) -> Pass:
    try:
        stage, inner = entry
    except (TypeError, ValueError):
        refuse("passes", entry, "pairs (stage, Pass)")
    if stage not in STAGES:
        refuse("passes", stage, f"a stage: {', '.join(STAGES)}")
    if isinstance(inner, type):
        inner = _made("passes", inner)
    if not isinstance(getattr(inner, "name", None), str) or not callable(getattr(inner, "run", None)):
        refuse("passes", inner, "a Pass with a name and run()")
    _check_order_type(f"passes: {inner.name}", inner)
    return _Staged(stage, inner)


def _check_order_type(option: str, entry: Any) -> None:
    for side in ("after", "before"):
        names: Any = getattr(entry, side, ())
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            refuse(f"{option}.{side}", names, "a tuple of names")


def _op(entry: Any) -> OpDef:
    if not isinstance(entry, OpDef):
        refuse("ops", entry, "OpDefs; regraft.op_from_torch makes one of a torch op")
    if entry.dialect in _OWN_DIALECTS or "." not in entry.name:
        refuse("ops", entry.name, "an op with a name like 'mylib.fancy', outside rg.* and cf.*")
    for name in ("infer", "flops", "decompose", "eager"):
        value = getattr(entry, name)
        if value is not None and not callable(value):
            refuse(f"ops: {entry.name}.{name}", value, "a function")
    onnx: Any = entry.onnx
    if onnx is not None and not isinstance(onnx, OnnxOp):
        refuse(f"ops: {entry.name}.onnx", onnx, "an OnnxOp")
    lowerings: Any = entry.lowerings
    if not isinstance(lowerings, dict) or not all(map(callable, list[Any](lowerings.values()))):  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
        refuse(f"ops: {entry.name}.lowerings", lowerings, "a dict of functions by the names of back ends")
    if not entry.canonical and entry.decompose is None:
        refuse(f"ops: {entry.name}.canonical", False, "True, or an op with 'decompose'")
    return entry


def checked_backend(entry: Any) -> Backend:
    """A user's back end from its class or an instance.

    Raises:
        OptionError: it is not a back end, or has the name of a built-in one.
    """
    made = _made("backends", entry) if isinstance(entry, type) else entry
    name = getattr(made, "name", None)
    if not isinstance(name, str) or not name:
        refuse("backends", entry, "a Backend with a name")
    for method in ("supports", "lower"):
        if not callable(getattr(made, method, None)):
            refuse("backends", entry, f"a Backend with a method '{method}'")
    if name == HOST:
        refuse(
            f"backends: {type(made).__name__}.name", name, "another name: plans' control flow has this one"
        )
    if name in BUILTIN and BUILTIN[name][1] not in {base.__name__ for base in type(made).__mro__}:
        refuse(f"backends: {type(made).__name__}.name", name, "a name that no back end of regraft's has")
    return made


# -- all together ------------------------------------------------------------------------------


class _Names:
    """Who has which name; a name is taken once."""

    def __init__(self) -> None:
        self.rewrites = {r.name for family in FAMILIES.values() for r in family}
        self.passes = {p.name for p in default_passes()}
        self.ops: list[OpDef] = []
        self.backends = set(BUILTIN)

    def add(self, parts: _Parts) -> None:
        for op in parts.ops:
            taken = {each.name for each in self.ops}
            self._take("op", op.name, {op.name} & (taken | OPS.keys()))
            self.ops.append(op)
        for kind, items, names in (
            ("rewrite", parts.rewrites, self.rewrites),
            ("pass", parts.passes, self.passes),
            ("back end", parts.backends, self.backends),
        ):
            for item in items:
                self._take(kind, item.name, {item.name} & names)
                names.add(item.name)

    def _take(self, kind: str, name: str, taken: set[str]) -> None:
        if taken:
            kinds = f"{kind}es" if kind == "pass" else f"{kind}s"
            raise OptionError(f"two {kinds} are called '{name}', or regraft has one; rename yours")

    def check_order(self, parts: _Parts) -> None:
        """Every name in ``after`` and ``before`` is somebody's: a misspelt one would order nothing."""
        groups: tuple[tuple[Sequence[Any], set[str]], ...] = (
            (parts.rewrites, self.rewrites),
            (parts.passes, self.passes),
        )
        for items, names in groups:
            for item in items:
                for name in (*item.after, *item.before):
                    if name not in names:
                        message = no_such("rewrite or pass", name, names)
                        raise OptionError(f"'{item.name}'.after or .before: {message}")


def _check_patterns(rewrites: Sequence[Rewrite], table: OpTable) -> None:
    for rewrite in rewrites:
        rewrite.patterns(table)

"""Several compiled functions that belong together, such as the methods of one model."""

from __future__ import annotations

import keyword
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from types import MethodType
from typing import Any

from torch import Tensor

from regraft.errors import ArtefactError, NoFunctionError, OptionError, no_such, shown
from regraft.plugins import Plugin
from regraft.runtime import artefact
from regraft.runtime.added import Added
from regraft.runtime.effects import overlap
from regraft.runtime.model import CompiledModel, contents_of, model_of, refreshed, take_over
from regraft.runtime.sharing import place


class Bundle(Mapping[str, CompiledModel]):
    """Compiled functions by name, saved as one artefact.

    A function is an item and an attribute: ``bundle["encode"](x)`` is ``bundle.encode(x)``. Functions of one
    model share its weights: in memory, where they are the model's own, and in the artefact, which has each
    tensor once.
    """

    __slots__ = ("_functions",)

    def __init__(self, functions: Mapping[str, CompiledModel]) -> None:
        """
        Args:
            functions: what ``regraft.compile`` or ``regraft.load`` returned, by name. They need not be of one
                model.

        Raises:
            OptionError: there are none, a name cannot be an attribute, one is not a compiled model, or one
                writes to what another was compiled with as a constant.
        """
        _check(functions)
        _check_state(functions)
        self._functions = dict(functions)

    def __getitem__(self, name: str) -> CompiledModel:
        """The function of that name.

        Raises:
            NoFunctionError: there is none.
        """
        if name not in self._functions:
            raise NoFunctionError(no_such("function", str(name), self._functions))
        return self._functions[name]

    def __getattr__(self, name: str) -> CompiledModel:
        if name.startswith("_"):  # protocols, such as copying
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)

    def __len__(self) -> int:
        return len(self._functions)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._functions})

    def __repr__(self) -> str:
        return f"<Bundle({', '.join(self._functions)})>"

    def refresh(self, model: Any) -> None:
        """Take over the weights that ``model`` has now, in all functions or in none.

        Args:
            model: what the functions are of: a method is looked up on ``model``. Where that is not enough, as
                for functions of several models, a dict with what each function's own ``refresh`` takes.

        Raises:
            OptionError: the dict has other names than this, or the functions no longer fit together.
            RegraftError: the bundle was loaded from disk, or ``model`` has other parameters.
        """
        sources = model if isinstance(model, Mapping) else dict.fromkeys(self, model)
        if set(sources) != set(self):
            raise OptionError(
                "a bundle is refreshed by a model, or by one for each function",
                "model",
                f"a dict of {_listed(sources)}",
                f"a dict of {_listed(self)}",
            )
        fresh = {name: refreshed(each, _source(each, sources[name])) for name, each in self.items()}
        _check_state(fresh)
        for name, each in self.items():
            take_over(each, fresh[name])

    def save(self, path: str | Path) -> None:
        """Write an artefact folder that ``regraft.load`` reads as a bundle, whole or not at all.

        Raises:
            ArtefactError: ``path`` exists or cannot be written.
            BackendError: a part of a function cannot be saved.
        """
        artefact.save({name: contents_of(each) for name, each in self.items()}, Path(path))


def _check(functions: Mapping[str, CompiledModel]) -> None:
    if not isinstance(functions, Mapping) or not functions:
        raise _refused("it is made of at least one", "functions", functions)
    folded: dict[str, str] = {}
    for name, each in functions.items():
        reason = _not_a_name(name)
        if reason is not None:
            raise OptionError(
                f"the function's name {name!r} {reason}, and it is to be an attribute of the bundle"
            )
        other = folded.setdefault(name.casefold(), name)
        if other != name:
            raise OptionError(
                f"the names '{other}' and '{name}' differ in case only; to some file systems they are one"
            )
        if not isinstance(each, CompiledModel):
            raise _refused(f"'{name}' is none", name, each)


def _check_state(functions: Mapping[str, CompiledModel]) -> None:
    """State of one function is the same tensor of another, or apart from all that the other has.

    Otherwise the artefact, which has copies, would compute something else than the bundle in memory.
    """
    for (name, each), (other_name, other) in product(functions.items(), repeat=2):
        for state, tensor in _state(each).items():
            if any(
                place(theirs) != place(tensor) and overlap(theirs, tensor)
                for theirs in _state(other).values()
            ):
                raise OptionError(
                    f"'{state}', which '{name}' writes to, overlaps with state of '{other_name}' and is not "
                    "the same tensor; give each buffer memory of its own"
                )
            if any(overlap(weight, tensor) for weight in vars(other)["_weights"]):
                raise OptionError(
                    f"'{name}' writes to '{state}', and '{other_name}', which only reads it, was compiled "
                    "with its value as a constant; pass it to that function as an argument"
                )


def _state(function: CompiledModel) -> Mapping[str, Tensor]:
    effects = function.effects
    return {} if effects is None else dict(zip(effects.state_names, effects.state, strict=True))


def _refused(reason: str, option: str, value: Any) -> OptionError:
    return OptionError(
        f"a bundle holds compiled models, and {reason}",
        option,
        shown(value),
        "what regraft.compile returns, by name",
    )


def _not_a_name(name: Any) -> str | None:
    if not isinstance(name, str) or not name.isidentifier():
        return "is not an identifier"
    if keyword.iskeyword(name):
        return "is a keyword of Python"
    if name.startswith("_"):
        return "begins with an underscore"
    if hasattr(Bundle, name):
        return "is taken by the bundle itself"
    return None


def _source(function: CompiledModel, model: Any) -> Any:
    """What ``function`` takes its weights from: its method of ``model``, where it was made from a method."""
    made_from = vars(function)["_original"]
    if isinstance(made_from, MethodType) and not isinstance(model, MethodType):
        return MethodType(made_from.__func__, model)
    return model


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(map(str, names)) or "nothing"


def load(
    path: str | Path, *, allow_native: bool = False, plugins: Sequence[str | Plugin] = ()
) -> CompiledModel | Any:
    """What ``save`` of a compiled model, or of a ``Bundle`` of several, wrote.

    Args:
        path: the folder.
        allow_native: load machine code from the artefact. Only for artefacts you trust.
        plugins: installed plug-ins by name, or ``Plugin`` objects, whose back ends and ops it needs. Their
            code runs, libraries of ONNX Runtime kernels included: name those you trust.

    Returns:
        A ``CompiledModel``, or a ``Bundle`` where a bundle was saved. (A type checker sees a compiled model
        whose attributes may be anything.)

    Raises:
        PluginError: a plug-in cannot be found or used.
        ArtefactError: it is not an artefact, is damaged or of a newer format, or holds native code
            that was not allowed.
    """
    added = Added.by(plugins, tuple(artefact.LOADERS))
    found = artefact.read(Path(path), allow_native=allow_native, added=added)
    if isinstance(found, artefact.Contents):
        return model_of(found)
    try:
        return Bundle({name: model_of(contents) for name, contents in found.items()})
    except OptionError as error:
        raise ArtefactError(f"the manifest is malformed: {error}", str(path)) from error

"""From ``FILE.py:FACTORY`` or ``package.module:FACTORY`` to a model and its example arguments."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from regraft.errors import FactoryError, no_such

_SHAPES = "(model, args), (model, kwargs), (model, args, kwargs), or a dict or dataclass with these names"
_NOT_THE_USERS = (str(Path(__file__).parent), "<frozen importlib", str(Path(importlib.__file__).parent))


@dataclass(frozen=True)
class Example:
    """What a factory returned: the arguments of ``regraft.compile`` that belong to the model."""

    model: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    dynamic_shapes: Any = None


_FIELDS = tuple(each.name for each in dataclasses.fields(Example))


def is_reference(text: str) -> bool:
    """Whether ``text`` is meant as a factory, not as the path of a file of IR text."""
    module, colon, name = text.rpartition(":")
    if not colon or not name.isidentifier():
        return False
    return module.endswith(".py") or all(part.isidentifier() for part in module.split("."))


def load_example(reference: str) -> Example:
    """Call the factory that ``reference`` names.

    Raises:
        FactoryError: it does not exist, raises, or returns something else than an example.
    """
    factory = load_object(reference)
    name = reference.rpartition(":")[2]
    if not callable(factory):
        raise FactoryError(f"'{name}' is a {type(factory).__name__}, not a function")
    made = _guarded(f"{name}()", factory)
    return _example(name, made)


def load_object(reference: str) -> Any:
    """The object called NAME in ``FILE.py:NAME`` or ``package.module:NAME``.

    Raises:
        FactoryError: there is no such file, module or name, or its code raises.
    """
    place, colon, name = reference.rpartition(":")
    if not colon or not place or not name:
        raise FactoryError(f"'{reference}' is not FILE.py:NAME or package.module:NAME")
    module = _file_module(Path(place)) if place.endswith(".py") else _named_module(place)
    if not hasattr(module, name):
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__]
        raise FactoryError(f"{place}: {no_such('function', name, own)}")
    return getattr(module, name)


def _file_module(path: Path) -> ModuleType:
    """The file as a module; files beside it can be imported, as when Python runs it."""
    if path.is_dir():
        raise FactoryError(f"'{path}' is a folder, not a Python file")
    try:
        path.open("rb").close()
    except OSError as error:
        raise FactoryError(f"cannot read '{path}': {error.strerror}") from error
    _let_import_from(path.parent)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles of the file look their module up; a library of the same name stays what it is.
    sys.modules.setdefault(path.stem, module)
    _guarded(f"importing {path}", lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    return module


def _named_module(name: str) -> ModuleType:
    _let_import_from(Path.cwd())
    return _guarded(f"importing {name}", lambda: importlib.import_module(name))


def _let_import_from(folder: Path) -> None:
    """Let imports find modules in ``folder``, after all that is installed."""
    path = str(folder.resolve())
    if path not in sys.path:
        sys.path.append(path)


def _guarded(what: str, call: Callable[[], Any]) -> Any:
    """The result of a user's code.

    Raises:
        FactoryError: it raised, or ended the process; with its traceback from the user's own code on.
    """
    try:
        return call()
    except SystemExit as stop:
        raise FactoryError(f"{what} ended the process with sys.exit({stop.code!r})", _tail(stop)) from stop
    except Exception as error:
        raise FactoryError(f"{what} raised {type(error).__name__}: {error}", _tail(error)) from error


def _tail(error: BaseException) -> str | None:
    """The traceback's frames after ours and the import system's; a syntax error shows its own place."""
    if isinstance(error, SyntaxError):
        return "".join(traceback.format_exception_only(error)).rstrip()
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(_NOT_THE_USERS)]
    return "".join(traceback.format_list(own)).rstrip() or None


def _example(name: str, made: Any) -> Example:
    if isinstance(made, Mapping):
        return _from_fields(name, dict(made))
    if dataclasses.is_dataclass(made) and not isinstance(made, type):
        return _from_fields(name, {f.name: getattr(made, f.name) for f in dataclasses.fields(made)})
    if not isinstance(made, (tuple, list)) or not 2 <= len(made) <= 3:
        raise _wrong(name, _kinds(made))
    model, *rest = made
    if len(rest) == 1 and isinstance(rest[0], Mapping):
        return _from_fields(name, {"model": model, "kwargs": rest[0]})
    return _from_fields(name, {"model": model, **dict(zip(("args", "kwargs"), rest, strict=False))})


def _from_fields(name: str, fields: Mapping[str, Any]) -> Example:
    unknown = [each for each in fields if each not in _FIELDS]
    if unknown:
        raise FactoryError(f"{name}(): {no_such('field', str(unknown[0]), _FIELDS)}")
    if "model" not in fields:
        raise FactoryError(f"{name}() returned no 'model'; it has: {', '.join(fields) or 'nothing'}")
    args, kwargs = fields.get("args", ()), fields.get("kwargs") or {}
    if not isinstance(args, (tuple, list)):
        raise _wrong(name, f"args that are a {type(args).__name__}")
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise _wrong(name, f"kwargs that are a {type(kwargs).__name__}")
    return Example(fields["model"], tuple(args), dict(kwargs), fields.get("dynamic_shapes"))


def _kinds(made: Any) -> str:
    if isinstance(made, (tuple, list)):
        return f"({', '.join(type(each).__name__ for each in made)})"
    return type(made).__name__


def _wrong(name: str, found: str) -> FactoryError:
    return FactoryError(f"{name}() must return {_SHAPES}, not {found}; args are a tuple, kwargs a dict")

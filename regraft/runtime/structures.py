"""Pytree structures as text.

torch writes them as JSON that may name modules, and imports those when it reads it back: the factory of
a defaultdict, and the classes of enums among the keys. Importing a module that a file names is running
its code, so such structures are refused, when saving already.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import OrderedDict
from importlib import import_module
from typing import Any

from torch.utils import _pytree as pytree

from regraft.errors import ArtefactError

#: Output classes live in these modules, which only define classes when they are imported.
_OUTPUT_CLASS = re.compile(r"transformers\.(modeling_outputs|models\.\w+\.modeling_\w+)\.\w+")


def is_output_class(kind: Any) -> bool:
    """Whether ``kind`` is one of transformers' own output classes."""
    name = f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', '')}"
    return isinstance(kind, type) and issubclass(kind, OrderedDict) and bool(_OUTPUT_CLASS.fullmatch(name))


def dump_structure(structure: pytree.TreeSpec) -> str:
    """``structure`` as text.

    Raises:
        ArtefactError: it cannot be saved.
    """
    try:
        text = pytree.treespec_dumps(structure)
    except (NotImplementedError, TypeError) as error:
        raise ArtefactError(f"the structure {structure} cannot be saved: {error}") from error
    _check(json.loads(text)[1])
    return text


def load_structure(text: str) -> pytree.TreeSpec:
    """The structure that ``text`` describes; transformers' classes register when their module loads.

    Raises:
        ArtefactError: it is of a type that is not known here, or of one that is not allowed.
    """
    _check(json.loads(text)[1])
    try:
        return pytree.treespec_loads(text)
    except NotImplementedError as error:
        raise ArtefactError(
            f"the result's type is not known here; import its module first: {error}"
        ) from error
    except AssertionError as error:
        raise ArtefactError(f"the structure is malformed: {error}") from error


def _check(record: Any) -> None:
    """Refuse what makes torch import modules, except transformers' output classes, which we import."""
    name, context = record["type"], record["context"]
    if name == "collections.defaultdict":
        raise ArtefactError(
            "an argument or a result is a defaultdict, which an artefact cannot hold; use a dict"
        )
    if isinstance(context, str):
        # What is not JSON is the name of a namedtuple's class, looked up among the registered ones.
        with contextlib.suppress(json.JSONDecodeError):
            json.loads(context, object_hook=_refuse_enum)
    if isinstance(name, str) and _OUTPUT_CLASS.fullmatch(name):
        try:
            import_module(name.rpartition(".")[0])
        except ImportError as error:
            raise ArtefactError(f"the result is a {name}; install transformers to load this") from error
    for child in record["children_spec"]:
        _check(child)


def _refuse_enum(record: dict[str, Any]) -> dict[str, Any]:
    if "__enum__" in record:
        raise ArtefactError("a key of an argument or a result is an enum, which an artefact cannot hold")
    return record

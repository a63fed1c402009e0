"""Signatures as JSON, in artefacts and in the entries of the compile cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from regraft.errors import ArtefactError
from regraft.runtime.signature import GuardSpec, ParamSpec, Signature, SymbolSpec, TensorSpec, ValueSpec
from regraft.runtime.structures import dump_structure, load_structure


def signature_record(signature: Signature) -> dict[str, Any]:
    """The JSON record of a signature.

    Raises:
        ArtefactError: it holds a value or a structure that cannot be saved.
    """
    return {
        "params": [
            {
                "name": param.name,
                "leaves": [_leaf_record(leaf) for leaf in param.leaves],
                "structure": None if param.structure is None else dump_structure(param.structure),
            }
            for param in signature.params
        ],
        "positional": list(signature.positional),
        "defaults": {name: value for name, value in signature.defaults.items() if _is_json(value)},
        "symbols": [dataclasses.asdict(symbol) for symbol in signature.symbols],
        "outputs": [o if isinstance(o, int) else _leaf_record(o) for o in signature.outputs],
        "out_structure": dump_structure(signature.out_structure),
        "guards": [dataclasses.asdict(guard) for guard in signature.guards],
        "autocast": signature.autocast,
        "returned": list(signature.returned),
    }


def _is_json(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _leaf_record(leaf: TensorSpec | ValueSpec) -> dict[str, Any]:
    if isinstance(leaf, ValueSpec) and not _is_json(leaf.value):
        raise ArtefactError(f"the value of '{leaf.name}', {leaf.value!r}, cannot be saved")
    return dataclasses.asdict(leaf)


def signature_from(record: Mapping[str, Any]) -> Signature:
    """The signature of a record. Whether it fits a plan is for the caller to check.

    Raises:
        ArtefactError: the result's type is not known here, or is not allowed.
        LookupError, TypeError, ValueError, AttributeError, RuntimeError: it is not a record of ours.
    """
    params = tuple(
        ParamSpec(
            param["name"],
            tuple(_leaf_from(leaf) for leaf in param["leaves"]),
            None if param["structure"] is None else load_structure(param["structure"]),
        )
        for param in record["params"]
    )
    outputs = tuple(o if isinstance(o, int) else ValueSpec(o["name"], o["value"]) for o in record["outputs"])
    return Signature(
        params,
        tuple(record["positional"]),
        dict(record["defaults"]),
        tuple(_symbol_from(symbol) for symbol in record["symbols"]),
        outputs,
        load_structure(record["out_structure"]),
        tuple(GuardSpec(**guard) for guard in record["guards"]),
        record.get("autocast"),
        ints(record.get("returned", ())),
    )


def _symbol_from(record: Mapping[str, Any]) -> SymbolSpec:
    symbol = SymbolSpec(**record)
    ints((symbol.input, symbol.axis, symbol.lo, symbol.divisor, symbol.scale, symbol.offset))
    ints(() if symbol.hi is None else (symbol.hi,))
    return symbol


def _leaf_from(record: Mapping[str, Any]) -> TensorSpec | ValueSpec:
    if "dtype" in record:
        name, dtype, device = (text(record[key]) for key in ("name", "dtype", "device"))
        torch.device(device)  # or it would be found out by whoever uses the signature
        return TensorSpec(name, dtype, tuple(record["shape"]), device)
    return ValueSpec(text(record["name"]), record["value"])


def text(value: Any) -> str:
    """``value``, which must be text.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def ints(values: Iterable[Any]) -> tuple[int, ...]:
    """``values``, which must be whole numbers.

    Raises:
        TypeError: one is not.
    """
    found = tuple(values)
    if any(type(value) is not int for value in found):
        raise TypeError(f"{found} are not whole numbers")
    return found

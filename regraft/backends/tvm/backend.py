"""The back end: functions of the IR as programs of TVM kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from regraft.backends.protocol import ConstantStore, LowerOptions
from regraft.backends.tvm.client import Builder
from regraft.backends.tvm.cpu import host_cpu
from regraft.backends.tvm.expand import EXPANSIONS, expand
from regraft.backends.tvm.library import missing, usable_threads
from regraft.backends.tvm.lower import LOWERINGS, supports
from regraft.backends.tvm.run import TvmExecutable
from regraft.errors import BackendError
from regraft.ir import Constant, Function, Leaf, Module, Op, Symbol, Trait, print_module, symbols_in
from regraft.runtime import cpu_features


class TvmBackend:
    """Compiles functions to machine code for this CPU.

    Raises:
        BackendError: TVM, or the one version of tvm-ffi that works with it, is not installed.
    """

    name = "tvm"
    #: Op name -> its lowering; what the support matrix is made from.
    lowerings: Mapping[str, Any] = MappingProxyType({**LOWERINGS, **EXPANSIONS})

    def __init__(self) -> None:
        reason = missing()
        if reason is not None:
            raise BackendError(reason, self.name)
        self._builder = Builder()

    def supports(self, op: Op) -> str | None:
        """None when ``op`` can be lowered, else the reason why not."""
        return supports(op)

    def lower(self, function: Function, store: ConstantStore, options: LowerOptions) -> TvmExecutable:
        """The program of ``function``, its kernels compiled for this CPU.

        Raises:
            BackendError: an op is not supported, or TVM refused a kernel.
        """
        text, names = _described(function, store)
        built = self._builder.build(text, host_cpu(usable_threads(options.threads)))
        portable = options.portable
        return TvmExecutable(
            built.program,
            built.library,
            {name: store.tensor(constant) for name, constant in names.items()},
            features=cpu_features(),
            threads=options.threads,
            portable=None if portable is None else lambda: portable(function),
        )


def _described(function: Function, store: ConstantStore) -> tuple[str, dict[str, Constant]]:
    """The text of ``function`` with ops taken apart, its constants known by name and type alone.

    Raises:
        BackendError: an op is not supported.
    """
    copy = function.clone()
    names: dict[str, Constant] = {}
    leaves: dict[str, Leaf] = {}
    for op in copy.body.ops:
        if op.has(Trait.CONSTANT_LIKE):
            constant = op.attr("value")
            name = store.name(constant)
            names[name] = constant
            op.attrs["value"] = leaves.setdefault(name, Leaf(name, constant.type))
        elif (reason := supports(op)) is not None:
            raise BackendError(reason, backend=TvmBackend.name, op=op.name)
    expand(copy)
    copy.symbols = tuple(dict.fromkeys((*function.symbols, *_symbols(copy))))
    return print_module(Module({"forward": copy})), names


def _symbols(function: Function) -> Iterator[Symbol]:
    """Every symbol that is read: a piece of a function may know sizes that are none of its arguments'."""
    for op in function.body.ops:
        for each in (*(r.type for r in op.results), *op.attrs.values()):
            yield from symbols_in(each)

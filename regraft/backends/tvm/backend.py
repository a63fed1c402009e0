"""The back end: functions of the IR as programs of TVM kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from regraft.backends.protocol import ConstantStore, LowerOptions
from regraft.backends.tvm.anonymous import forget_names, renamed
from regraft.backends.tvm.client import Builder, BuiltProgram
from regraft.backends.tvm.cpu import Cpu, host_cpu
from regraft.backends.tvm.expand import EXPANSIONS, expand
from regraft.backends.tvm.library import missing, usable_threads
from regraft.backends.tvm.lower import LOWERINGS, supports
from regraft.backends.tvm.run import TvmExecutable
from regraft.errors import BackendError
from regraft.ir import Constant, Function, Leaf, Module, Op, Symbol, Trait, print_module, symbols_in
from regraft.runtime import cpu_features

#: Most programs that are kept for functions of the same text.
_KEPT = 64


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
        self._known: dict[tuple[str, Cpu], BuiltProgram] = {}

    def supports(self, op: Op) -> str | None:
        """None when ``op`` can be lowered, else the reason why not."""
        return supports(op)

    def lower(self, function: Function, store: ConstantStore, options: LowerOptions) -> TvmExecutable:
        """The program of ``function``, its kernels compiled for this CPU.

        Raises:
            BackendError: an op is not supported, or TVM refused a kernel.
        """
        text, constants = _described(function, store)
        built = self._built(text, host_cpu(usable_threads(options.threads)))
        names = {name: store.name(constant) for name, constant in constants.items()}
        portable = options.portable
        return TvmExecutable(
            renamed(built.program, names),
            built.library,
            {names[name]: store.tensor(constant) for name, constant in constants.items()},
            features=cpu_features(),
            threads=options.threads,
            portable=None if portable is None else lambda: portable(function),
        )

    def _built(self, text: str, cpu: Cpu) -> BuiltProgram:
        """What was built of the same text, as of an equal layer, or is now."""
        built = self._known.get((text, cpu))
        if built is None:
            built = self._builder.build(text, cpu)
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[text, cpu] = built
        return built


def _described(function: Function, store: ConstantStore) -> tuple[str, dict[str, Constant]]:
    """The text of ``function`` with ops taken apart, its constants known by number and type alone.

    Raises:
        BackendError: an op is not supported.
    """
    copy = function.clone()
    names: dict[str, Constant] = {}
    numbered: dict[str, str] = {}
    leaves: dict[str, Leaf] = {}
    for op in copy.body.ops:
        if op.has(Trait.CONSTANT_LIKE):
            constant = op.attr("value")
            name = numbered.setdefault(store.name(constant), f"constant_{len(numbered)}")
            names[name] = constant
            op.attrs["value"] = leaves.setdefault(name, Leaf(name, constant.type))
        elif (reason := supports(op)) is not None:
            raise BackendError(reason, backend=TvmBackend.name, op=op.name)
    expand(copy)
    forget_names(copy)
    copy.symbols = tuple(dict.fromkeys((*function.symbols, *_symbols(copy))))
    return print_module(Module({"forward": copy})), names


def _symbols(function: Function) -> Iterator[Symbol]:
    """Every symbol that is read: a piece of a function may know sizes that are none of its arguments'."""
    for op in function.body.ops:
        for each in (*(r.type for r in op.results), *op.attrs.values()):
            yield from symbols_in(each)

"""The back end: functions of the IR as programs of TVM kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from regraft.backends.protocol import ConstantStore, KernelTuning, LowerOptions
from regraft.backends.tvm.anonymous import forget_names, renamed
from regraft.backends.tvm.bodies import bodies
from regraft.backends.tvm.built import BuiltProgram, content_key
from regraft.backends.tvm.choices import choices_of, reported
from regraft.backends.tvm.client import Builder
from regraft.backends.tvm.cluster import symbols_of
from regraft.backends.tvm.cpu import Cpu, host_cpu
from regraft.backends.tvm.expand import EXPANSIONS, expand, lift_constants
from regraft.backends.tvm.library import missing, usable_threads
from regraft.backends.tvm.lower import LOWERINGS, supports
from regraft.backends.tvm.run import TvmExecutable
from regraft.backends.tvm.tune import Choice, Times
from regraft.errors import BackendError
from regraft.ir import Constant, Function, Leaf, Module, Op, Trait, print_module
from regraft.runtime import cpu_features

#: Most programs that are kept for functions of the same text.
_KEPT = 64


class TvmBackend:
    """Compiles functions to machine code for this CPU.

    Raises:
        BackendError: TVM, or the one version of tvm-ffi that works with it, is not installed.
    """

    name = "tvm"
    tunes_kernels = True
    #: Op name -> its lowering; what the support matrix is made from.
    lowerings: Mapping[str, Any] = MappingProxyType({**LOWERINGS, **EXPANSIONS})

    def __init__(self) -> None:
        reason = missing()
        if reason is not None:
            raise BackendError(reason, self.name)
        self._builder = Builder()
        self._known: dict[str, BuiltProgram] = {}

    def supports(self, op: Op) -> str | None:
        """None when ``op`` can be lowered, else the reason why not."""
        return supports(op)

    def claims(self, op: Op) -> bool:
        """Whether ``op`` is a loop that is one kernel here, and a kernel a step and op elsewhere."""
        return op.name == "cf.scan" and supports(op) is None

    def lower(self, function: Function, store: ConstantStore, options: LowerOptions) -> TvmExecutable:
        """The program of ``function``, its kernels compiled for this CPU.

        Raises:
            BackendError: an op is not supported, or TVM refused a kernel.
        """
        cpu = host_cpu(usable_threads(options.threads))
        described, constants = _described(function, store, cpu)
        text = print_module(Module({"forward": described}))
        choices = self._choices(described, text, cpu, options.tuning)
        built = self._built(text, cpu, choices, options)
        for note in built.notes:
            options.tuning.tell(note)
        names = {name: store.name(constant) for name, constant in constants.items()}
        portable = options.portable
        return TvmExecutable(
            renamed(built.program, names),
            built.library,
            {names[name]: store.tensor(constant) for name, constant in constants.items()},
            features=cpu_features(),
            own=frozenset(names[name] for name, each in constants.items() if not isinstance(each, Leaf)),
            threads=options.threads,
            portable=None if portable is None else lambda: portable(function),
            kernels=reported(built.program, choices),
        )

    def _built(
        self, text: str, cpu: Cpu, choices: Mapping[str, Choice], options: LowerOptions
    ) -> BuiltProgram:
        """What was built of the same text and configs, as of an equal layer, or kept, or is now."""
        configs = {key: tuple(map(str, each.configs)) for key, each in choices.items() if each.is_measured}
        key = content_key(text, cpu, configs)
        # Other threads may be here: what is kept may be gone at once.
        found = self._known.get(key)
        if found is None:
            found = self._from_cache(key, options) or self._anew(key, text, cpu, configs, options)
            self._known[key] = found
            for old in list(self._known)[:-_KEPT]:
                self._known.pop(old, None)
        return found

    def _from_cache(self, key: str, options: LowerOptions) -> BuiltProgram | None:
        content = None if options.code is None else options.code.read(key)
        return None if content is None else BuiltProgram.unpack(content)

    def _anew(
        self, key: str, text: str, cpu: Cpu, configs: Mapping[str, Sequence[str]], options: LowerOptions
    ) -> BuiltProgram:
        built = self._builder.build(text, cpu, configs)
        reason = None if options.code is None or built.notes else options.code.write(key, built.pack())
        if reason is not None:
            options.tuning.tell(f"built kernels are not kept: {reason}")
        return built

    def _choices(self, function: Function, text: str, cpu: Cpu, tuning: KernelTuning) -> dict[str, Choice]:
        """The configs of kernels of templates, where something was or is to be measured."""
        times = tuning.times.get(self.name)
        if times is None:
            return {}

        def measure(
            key: str, rows: Sequence[int], known: Times, deadline: float, first: Sequence[str]
        ) -> Any:
            return self._builder.tune(text, cpu, key, rows, known, deadline, first)

        return choices_of(function, cpu, times, tuning, measure)


def _described(function: Function, store: ConstantStore, cpu: Cpu) -> tuple[Function, dict[str, Constant]]:
    """``function`` with ops taken apart for ``cpu``, its constants known by number and type alone.

    Raises:
        BackendError: an op is not supported.
    """
    copy = function.clone()
    lift_constants(copy)
    names: dict[str, Constant] = {}
    numbered: dict[str, str] = {}
    leaves: dict[str, Leaf] = {}
    for op in (op for body in bodies(copy) for op in body.ops):
        if op.has(Trait.CONSTANT_LIKE):
            constant = op.attr("value")
            name = numbered.setdefault(store.name(constant), f"constant_{len(numbered)}")
            names[name] = constant
            op.attrs["value"] = leaves.setdefault(name, Leaf(name, constant.type))
        elif (reason := supports(op)) is not None:
            raise BackendError(reason, backend=TvmBackend.name, op=op.name)
    expand(copy, cpu)
    forget_names(copy)
    # A piece of a function may know sizes that are none of its arguments'.
    copy.symbols = tuple(dict.fromkeys((*function.symbols, *symbols_of(copy.body.ops))))
    return copy, names

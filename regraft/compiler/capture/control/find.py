"""Tracing a model in whose functions tensors decide.

The trace itself finds them: it stops where a tensor's value would be needed, the function that stands there
is converted, and the model is traced again.
"""

# What a trace returns is not ours to type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# pyright: reportPrivateUsage=false

from __future__ import annotations

import dis
import linecache
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, redirect_stderr, suppress
from itertools import pairwise
from types import CodeType, FrameType, FunctionType
from typing import Any, NoReturn

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from regraft.compiler.capture.control import trace
from regraft.compiler.capture.control.asked import Asked, Asks
from regraft.compiler.capture.control.calls import Calls
from regraft.compiler.capture.control.context import Context, Copy, Given, Learnt, shown_name
from regraft.compiler.capture.control.convert import convert, has_range, may_count_sizes
from regraft.compiler.capture.control.functions import Functions
from regraft.compiler.capture.control.growing import Growing
from regraft.compiler.capture.control.jumps import Note
from regraft.compiler.capture.control.meeting import run_arm
from regraft.compiler.capture.control.number import SYMBOLIC, UnknownNumber, number_tensor, unwrapped
from regraft.compiler.capture.control.swap import around, nested, owners, swapped
from regraft.compiler.capture.source import is_users
from regraft.compiler.owners import Owner, owner_of
from regraft.errors import CaptureError

#: Each trace finds one function more.
_TRACES = 100
#: The operators that change a set of Python's where the other one is no set.
_SETS_IN_PLACE = frozenset(["|=", "&=", "^=", "-="])
_WAY_OUT = (
    "decide with `if`, `while` or `for` in a function of the model's own, or compute both sides and select "
    "with torch.where"
)


class FrontEnd:
    """Traces a model, and remembers what had to be converted.

    Fields:
        has_open_sizes: whether some sizes of arguments are a call's to say.
        codes: pairs of the original code, which is told from an equal one, and what it was converted to.
        reached: the model's own functions, and those that they name.
    """

    def __init__(self, limit: int | None = None, *, has_open_sizes: bool = False) -> None:
        self.has_open_sizes = has_open_sizes
        self.context = Context(trace, limit)
        self.calls = Calls(self.context)
        self.codes: list[tuple[CodeType, CodeType]] = []
        self.notes: dict[str, list[Note]] = {}
        self.reached: list[FunctionType] = []

    def run(self, module: torch.nn.Module, traced: Callable[[], ExportedProgram]) -> ExportedProgram:
        """``traced()``, in which ``module`` is called, with code converted where a tensor decides.

        Raises:
            CaptureError: a tensor decides where it cannot be followed.
        """
        # Of a long loop, or of any length, one trip stands for all.
        self._convert_where(_counts_sizes if self.has_open_sizes else has_range, module)
        for attempt in range(_TRACES):
            if attempt == 1:  # something is not known
                self._convert_where(_asks_for_types, module)
            self.context.collected.clear()
            self.context.copies.clear()
            self.context.given.clear()
            self.context.changed = None
            hook = module.register_forward_hook(_as_tensors)
            try:
                with swapped(self.codes), self.context.tracing(), Asked(self._asks), self._quiet():
                    found = traced()
                self.context.note_changes()
                written = self.context.changed or self.context.written_copy(found)
                if written is None:
                    return found
                error = self._written(written)
            except Exception as raised:
                error = raised
            finally:
                hook.remove()
            self._learn(error)
        raise AssertionError("a trace finds functions without end")

    def _convert_where(self, holds: Callable[[CodeType], bool], module: torch.nn.Module) -> None:
        """Convert those functions of the model of which that ``holds``."""
        self.reached = list(_reachable(f for each in module.modules() for f in _methods(each)))
        for code in {id(f.__code__): f.__code__ for f in self.reached}.values():
            if not self._is_converted(code) and holds(code):
                with suppress(CaptureError):  # It is traced as it is.
                    self._convert(code, code, code.co_firstlineno)

    def _learn(self, error: Exception) -> None:
        """Prepare for a trace that gets further than the one that ended in ``error``; else raise it."""
        if isinstance(error, Learnt):
            self.context.learn(error)
            return
        frame = _deciding_frame(error) if _is_undecided(error) else None
        originals = self._convertible(frame[0].f_code) if frame is not None else []
        if frame is None and self._converts_after(error):
            return
        folded, self.context.folded = self.context.folded, []
        if frame is not None and originals:
            for code in originals:
                self._convert(code, frame[0].f_code, frame[1])
        elif folded:
            # Its trips are not the same for each index: the next trace unrolls it.
            self.context.unrolled.add(folded[-1])
        elif isinstance(error, NameError) and self._lost(error) is not None:
            self._refuse_lost(error)
        elif isinstance(error, NameError) and _is_in_an_arm(error):
            _refuse_unset(error)
        elif frame is None:
            if isinstance(error, UnknownNumber):  # found in what the model returns
                code = self.codes[0][0]
                _refuse_at(error.message, code.co_filename, code.co_firstlineno, error.hint, error)
            if _is_in_an_arm(error) and _is_the_models(error):
                _refuse_raising(error)
            raise error
        else:
            self._refuse(error, frame[0].f_code, frame[1])

    def _converts_after(self, error: Exception) -> bool:
        """Whether ``error`` may be that of code that knows no stand-ins for numbers, and is converted now."""
        frame = _deciding_frame(error) if isinstance(error, TypeError) and self.codes else None
        before = len(self.codes)
        with suppress(CaptureError):  # then the error is what there is to say
            for code in self._convertible(frame[0].f_code) if frame is not None else []:
                self._convert(code, code, code.co_firstlineno)
        return len(self.codes) > before

    def _written(self, found: Copy | Given) -> CaptureError:
        """What is wrong with a copy that should be the original; a loop that made it can be unrolled."""
        self.context.folded = [found.site] if found.site is not None else []
        return CaptureError(
            found.message,
            location=f"{found.line[0]}:{found.line[1]}",
            source_line=linecache.getline(*found.line).strip() or None,
            hint=found.hint,
        )

    @staticmethod
    def _quiet() -> AbstractContextManager[object]:
        return redirect_stderr(_Quiet(sys.stderr))

    def _asks(self, code: CodeType) -> bool:
        """Whether ``code``, which asks for a value, is the model's and still to be converted."""
        return is_users(code.co_filename) and bool(self._convertible(code))

    def _convertible(self, code: CodeType) -> list[CodeType]:
        """The functions that are still to be converted for ``code``, where a tensor decided."""
        converted = {each for _, made in self.codes for each in nested(made)}
        if code in converted:
            return []
        # To look for living functions among all objects takes a tenth of a second.
        is_living = any(function.__code__ is code for function in self.reached)
        found = [each for each in ([code] if is_living else owners(code)) if not self._is_converted(each)]
        return found or [each for each in around(code) if not self._is_converted(each)]

    def _is_converted(self, code: CodeType) -> bool:
        return any(code is original for original, _ in self.codes)

    def _convert(self, code: CodeType, deciding: CodeType, line: int) -> None:
        try:
            made = convert(code, self.calls)
        except CaptureError as error:
            error.location = f"{deciding.co_filename}:{line}"
            error.source_line = linecache.getline(deciding.co_filename, line).strip() or None
            raise
        self.codes.append((code, made.code))
        self.notes.setdefault(code.co_filename, []).extend(made.notes)

    def _refuse(self, error: Exception, code: CodeType, line: int) -> NoReturn:
        notes = [n for n in self.notes.get(code.co_filename, ()) if n.first <= line <= n.last]
        reason = min(notes, key=lambda n: n.last - n.first).reason if notes else None
        if isinstance(error, UnknownNumber):
            message, hint = error.message, error.hint
        else:
            message = "the value of a tensor decides here, where it cannot be followed"
            message += f": {reason}" if reason else ""
            hint = None if reason else _WAY_OUT
        _refuse_at(message, code.co_filename, line, hint, error)

    def _lost(self, error: NameError) -> str | None:
        """The variable without a value that ``error`` is about, where two paths left it so."""
        words = str(error).split("'")
        return words[1] if len(words) > 2 and words[1] in self.context.lost else None

    def _refuse_lost(self, error: NameError) -> NoReturn:
        name = self._lost(error)
        assert name is not None
        lost = self.context.lost[name]
        line = [f for f in traceback.extract_tb(error.__traceback__) if is_users(f.filename)][-1]
        raise CaptureError(
            f"{shown_name(name)} {lost.reason}",
            location=f"{line.filename}:{line.lineno}",
            source_line=(line.line or "").strip() or None,
            hint=lost.hint,
        ) from error


def _refuse_at(message: str, file: str, line: int, hint: str | None, error: Exception) -> NoReturn:
    source = linecache.getline(file, line).strip() or None
    raise CaptureError(message, location=f"{file}:{line}", source_line=source, hint=hint) from error


def _is_in_an_arm(error: Exception) -> bool:
    """Whether ``error`` is from an arm, which a call need not take."""
    return any(frame.f_code is run_arm.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))


def _is_the_models(error: Exception) -> bool:
    """Whether a `raise`, an `assert` or ``torch._check`` of the model's own code has raised ``error``."""
    last = error.__traceback__
    assert last is not None, "it was raised"
    own = last
    while last.tb_next is not None:
        last = last.tb_next
        if last.tb_frame.f_code not in (torch._check.__code__, torch._check_with.__code__):
            own = last
    code = own.tb_frame.f_code
    if not is_users(code.co_filename):
        return code in (Calls.check.__code__, Functions.check.__code__)
    return own is not last or dis.opname[code.co_code[own.tb_lasti]] in ("RAISE_VARARGS", "RERAISE")


def _refuse_raising(error: Exception) -> NoReturn:
    """Refuse an arm that does more than to raise, which no check of a call stands for."""
    frames = list(traceback.walk_tb(error.__traceback__))
    arm = max(i for i, (frame, _) in enumerate(frames) if frame.f_code is run_arm.__code__)
    condition = [pair for pair in frames[:arm] if is_users(pair[0].f_code.co_filename)]
    raising, line = [pair for pair in frames if is_users(pair[0].f_code.co_filename)][-1]
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    message = f"an arm that a tensor chooses raises, and does not do that alone: {text}"
    if condition:
        message += f" (the condition is at {condition[-1][0].f_code.co_filename}:{condition[-1][1]})"
    hint = (
        "let the `if` itself do nothing but raise, `if bad: raise ValueError(...)`, or write "
        "`assert not bad, ...`: the call checks that"
    )
    _refuse_at(message, raising.f_code.co_filename, line, hint, error)


def _refuse_unset(error: NameError) -> NoReturn:
    line = [f for f in traceback.extract_tb(error.__traceback__) if is_users(f.filename)][-1]
    raise CaptureError(
        f"{shown_name(str(error).split(chr(39))[1])} has no value where a tensor decides, and is read there",
        location=f"{line.filename}:{line.lineno}",
        source_line=(line.line or "").strip() or None,
        hint="give it a value of its final type before",
    ) from error


def _methods(module: torch.nn.Module) -> Iterator[FunctionType]:
    """The functions that ``module`` and its class have from their author."""
    held = [value for cls in type(module).__mro__ for value in vars(cls).values()]
    for value in (*held, *vars(module).values()):
        if isinstance(value, FunctionType) and is_users(value.__code__.co_filename):
            yield value


def _reachable(functions: Iterable[FunctionType]) -> Iterator[FunctionType]:
    """``functions``, and the users' own that they, and these in turn, name among the globals."""
    pending, seen = list(functions), set[FunctionType]()
    while pending:
        function = pending.pop()
        if function in seen:
            continue
        seen.add(function)
        yield function
        names = {name for code in nested(function.__code__) for name in code.co_names}
        held = [function.__globals__.get(name) for name in names]
        pending += [f for f in held if isinstance(f, FunctionType) and is_users(f.__code__.co_filename)]


def _counts_sizes(code: CodeType) -> bool:
    """Whether ``code`` has a loop that may count up to a size; of libraries, one over a range."""
    return may_count_sizes(code) if owner_of(code.co_filename) is Owner.USER else has_range(code)


def _asks_for_types(code: CodeType) -> bool:
    """Whether ``code`` is the user's own and asks for types, or whether something is another thing than None.

    Or it may change a set in place. What stands for Python's values is told from them there, unless the code
    is converted.
    """
    if owner_of(code.co_filename) is not Owner.USER:
        return False
    for each in nested(code):
        steps = list(dis.get_instructions(each))
        if any(step.opname == "LOAD_GLOBAL" and step.argval in ("type", "isinstance") for step in steps):
            return True
        if any(two.opname == "IS_OP" and not _is_none(one) for one, two in pairwise(steps)):
            return True
        if any(step.opname == "BINARY_OP" and step.argrepr in _SETS_IN_PLACE for step in steps):
            return True
    return False


def _is_none(step: dis.Instruction) -> bool:
    return step.opname == "LOAD_CONST" and step.argval is None


class _Quiet:
    """Standard error without the graphs that torch.export prints when a trace stops, as some do by plan.

    All else is the stream's own: progress is shown on it meanwhile, in colours where it is a terminal.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if "def forward(self" in text and "torch.ops.aten" in text:
            return len(text)
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _is_undecided(error: Exception) -> bool:
    name = type(error).__name__
    kinds = (GuardOnDataDependentSymNode, DataDependentOutputException, UnknownNumber, Asks)
    return isinstance(error, kinds) or (name == "UserError" and "data-dependent" in str(error).lower())


def _deciding_frame(error: Exception) -> tuple[FrameType, int] | None:
    """The innermost of the model's functions in the traceback of ``error``, and its line."""
    if isinstance(error, Asks):
        return error.frame, error.line
    found, tb = None, error.__traceback__
    while tb is not None:
        if is_users(tb.tb_frame.f_code.co_filename):
            found = (tb.tb_frame, tb.tb_lineno)
        tb = tb.tb_next
    return found


def _as_tensors(module: Any, args: Any, output: Any) -> Any:
    """A forward hook: numbers that only a run knows are tensors in what the model returns."""
    return pytree.tree_map(_as_tensor, output)


def _as_tensor(leaf: Any) -> Any:
    if isinstance(leaf, Growing):
        leaf.refuse("is returned")
    return number_tensor(leaf) if isinstance(leaf, SYMBOLIC) else unwrapped(leaf)

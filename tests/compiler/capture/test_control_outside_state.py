"""Global variables, class attributes and Python's memory that change where a tensor decides.

A called function that changes them would do so on both paths: it is refused, at the line that decides. Where
each path is Python's own, as in a loop that is unrolled, values are eager's.
"""

from __future__ import annotations

import array
import enum
import itertools
import logging
import types
import weakref
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.errors import CaptureError
from tests.compiler.capture import outside
from tests.compiler.capture.running import check_calls, rows

HERE = Path(__file__).name
UP = rows(4, shift=1.0)
CALLS = [(UP - 9,), (UP + 9,), (-UP,), (UP,)]

COUNT = 0
LAST = torch.ones(4)
LOG: list[float] = []
STATS: dict[str, Any] = {"n": 0, "rows": [0]}
IDS = itertools.count()
BYTES = bytearray(4)
TABLE = np.ones(3)


class Tally:
    total: ClassVar[int] = 0
    seen: ClassVar[list[int]] = []

    def add(self) -> int:
        Tally.total += 1
        return 1

    @classmethod
    def note(cls) -> None:
        cls.seen.append(1)

    @property
    def next(self) -> int:
        type(self).total += 2
        return 3


@dataclass
class Settings:
    scale: float = 1.0
    limits: list[float] = field(default_factory=lambda: [1.0])


SETTINGS = Settings()


def count_up() -> None:
    global COUNT  # noqa: PLW0603
    COUNT += 1


def through_another() -> None:
    partial(count_up)()


def double_last() -> None:
    global LAST  # noqa: PLW0603
    LAST = LAST * 2


def log() -> None:
    LOG.append(2.0)


def count_in_a_dict() -> None:
    STATS["n"] += 1


def count_in_a_list_in_a_dict() -> None:
    STATS["rows"][0] += 1


def change_an_object() -> None:
    SETTINGS.scale += 3.0


def change_in_a_list_of_an_object() -> None:
    SETTINGS.limits[0] = 2.0


def take() -> None:
    next(IDS)


def write_bytes() -> None:
    BYTES[0] = 7


def write_an_array() -> None:
    TABLE[1] += 1


def add_to_a_class() -> None:
    Tally().add()


def note_in_a_class() -> None:
    Tally.note()


def ask_a_property() -> None:
    _ = Tally().next


def count_in_a_module() -> None:
    outside.COUNT += 1


def set_in_a_module() -> None:
    setattr(outside, "COUNT", getattr(outside, "COUNT") + 1)  # noqa: B009, B010


def import_and_count() -> None:
    from tests.compiler.capture import outside as there

    there.COUNT += 1


def import_near_and_count() -> None:
    from . import outside as there

    there.COUNT += 1


WEAK = weakref.ref(SETTINGS)


def change_what_is_held_weakly() -> None:
    settings = WEAK()
    assert settings is not None
    settings.scale += 1


CHANGES = [
    (count_up, "COUNT of"),
    (through_another, "COUNT of"),
    (double_last, "LAST of"),
    (log, "LOG of"),
    (count_in_a_dict, "STATS of"),
    (count_in_a_list_in_a_dict, "STATS of"),
    (change_an_object, "SETTINGS of"),
    (change_in_a_list_of_an_object, "SETTINGS of"),
    (take, "IDS of"),
    (write_bytes, "BYTES of"),
    (write_an_array, "TABLE of"),
    (add_to_a_class, "Tally.total"),
    (note_in_a_class, "Tally.seen"),
    (ask_a_property, "Tally.total"),
    (count_in_a_module, "COUNT of tests.compiler.capture.outside"),
    (outside.count_up, "COUNT of tests.compiler.capture.outside"),
    (outside.count_by_its_name, "COUNT of tests.compiler.capture.outside"),
    (set_in_a_module, "COUNT of tests.compiler.capture.outside"),
    (import_and_count, "COUNT of tests.compiler.capture.outside"),
    (import_near_and_count, "COUNT of tests.compiler.capture.outside"),
    (change_what_is_held_weakly, "WEAK of"),
]
PLACES: tuple[str, ...] = ("in an arm", "in a loop", "in a test", "in an expression")


def model_of(change: Any, place: str) -> Any:
    def in_an_arm(x: Tensor) -> Tensor:
        if x.sum() > 0:  # decides
            change()
        return x * 2

    def in_a_loop(x: Tensor) -> Tensor:
        while x.abs().sum() < 40:  # decides
            change()
            x = x * 1.5
        return x

    def goes_on(x: Tensor) -> Any:
        change()
        return x.abs().sum() < 40

    def in_a_test(x: Tensor) -> Tensor:
        while goes_on(x):  # decides
            x = x * 1.5
        return x

    def in_an_expression(x: Tensor) -> Tensor:
        return x * (2 if x.sum() > 0 or change() else 3)  # decides

    models: list[Any] = [in_an_arm, in_a_loop, in_a_test, in_an_expression]
    return models[PLACES.index(place)]


def state() -> Any:
    objects = (SETTINGS.scale, SETTINGS.limits, list(LOG), dict(STATS), list(STATS["rows"]), bytes(BYTES))
    classes = Tally.total, len(Tally.seen), outside.COUNT
    return COUNT, LAST.tolist(), *map(str, objects), TABLE.tolist(), classes


CASES = [
    *((change, name, "in an arm") for change, name in CHANGES),
    *((*case, place) for case in (CHANGES[0], CHANGES[11]) for place in PLACES[1:]),
]


@pytest.mark.parametrize(("change", "name", "place"), CASES)
def test_what_a_called_function_changes_is_refused(change: Any, name: str, place: str) -> None:
    before = state()
    with pytest.raises(CaptureError, match="where a tensor decides") as caught:
        regraft.capture(model_of(change, place), (UP,))
    assert name in str(caught.value)
    assert caught.value.location is not None
    assert HERE in caught.value.location
    assert "# decides" in str(caught.value)
    assert caught.value.hint is not None
    assert state() == before


class Lazy:
    """Speaks for another object, of whichever class that is."""

    def __init__(self, value: Any) -> None:
        object.__setattr__(self, "value", value)

    def __getattribute__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "value"), name)


@pytest.mark.parametrize("other", [0, torch.zeros(1)], ids=["alone", "beside one that speaks for a tensor"])
def test_what_speaks_for_an_object_that_changes_is_refused(other: Any) -> None:
    settings = Lazy(types.SimpleNamespace(limits=[1.0, 2.0]))
    beside = Lazy(other)

    def change() -> None:
        settings.limits.reverse()

    def model(x: Tensor) -> Tensor:
        if beside is not None and x.sum() > 0:  # decides
            change()
        return x * settings.limits[0]

    with pytest.raises(CaptureError, match="where a tensor decides"):
        regraft.capture(model, (UP,))
    assert settings.limits == [1.0, 2.0]


# -- what is right -------------------------------------------------------------------------------


class Kind(enum.Enum):
    ONE = 1.0
    TWO = 2.0


LOGGER = logging.getLogger(__name__)
KINDS: dict[str, Kind] = {"one": Kind.ONE, "two": Kind.TWO}


class Shifted(nn.Module):
    """Looks at globals, classes and arrays in its arms, and changes none of them."""

    shift: ClassVar[float] = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.table = np.arange(4.0)

    def of(self, x: Tensor) -> Tensor:
        LOGGER.debug("shifted")
        known = KINDS["two"].value + float(self.table[2]) + TABLE[0] + SETTINGS.limits[0]
        return x + type(self).shift + known

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = self.of(x)
        while x.abs().sum() < 40:
            x = self.of(x) * 1.5
        return self.layer(x)


def test_what_is_only_looked_at_is_no_change() -> None:
    torch.manual_seed(0)
    check_calls(Shifted().eval(), (UP,), CALLS, backends=("ort",))


def of_a_long_loop(x: Tensor) -> Tensor:
    global COUNT  # noqa: PLW0603
    COUNT = 0
    for _ in range(40):
        count_up()
        x = x * 0.99
    return x + COUNT if x.sum() > 0 else x - COUNT


def of_an_array_in_a_long_loop(x: Tensor) -> Tensor:
    values = np.zeros(40)
    for i in range(40):
        values[i] = i
        x = x * 0.99
    return x + float(values.sum()) if x.sum() > 0 else x


def of_bytes_that_are_made_in_an_arm(x: Tensor) -> Tensor:
    if x.sum() > 0:
        values = bytearray(3)
        values[1] = 5
        x = x * values[1]
    return x


def of_the_function_s_own_arms(x: Tensor) -> Tensor:
    global COUNT  # noqa: PLW0603
    COUNT = 1
    LOG[:] = [1.0, 2.0]
    if x.sum() > 0:
        COUNT = 2
        LOG[1] = 5.0
    y = x * COUNT + LOG[1]
    COUNT = 0
    LOG.clear()
    return y


class Whole(np.ndarray):
    """An array too large to copy, as one of a file may be."""

    def __copy__(self) -> Any:
        raise AssertionError("copied")

    def tobytes(self, *_: Any) -> bytes:
        raise AssertionError("copied")


READ_ONLY = np.arange(12.0).reshape(3, 4).view(Whole)
READ_ONLY.flags.writeable = False
RECORDS = np.array([(1, None), (2, "two")], dtype=[("n", np.int32), ("what", object)])


def of_memory_that_is_only_read(x: Tensor) -> Tensor:
    values = np.asfortranarray(np.ones((3, 4))).view(Whole)
    if x.sum() > 0:
        x = x * 2
    return x + float(READ_ONLY[1, 2]) + float(values[1, 2])


def of_records_that_are_only_read(x: Tensor) -> Tensor:
    if x.sum() > 0:
        x = x * 2
    return x + float(RECORDS["n"][1])


def of_memory_of_no_bytes(x: Tensor) -> Tensor:
    values = np.zeros((0, 4)), np.array(2.0), np.zeros((4, 6))[:, ::2], np.array(["2020-01-01"], "M8[D]")
    if x.sum() > 0:
        x = x * float(values[1])
    return x + len(values)


FOLLOWED = [
    of_memory_that_is_only_read,
    of_records_that_are_only_read,
    of_memory_of_no_bytes,
    of_a_long_loop,
    of_an_array_in_a_long_loop,
    of_bytes_that_are_made_in_an_arm,
    of_the_function_s_own_arms,
]


@pytest.mark.parametrize("model", FOLLOWED, ids=lambda model: model.__name__)
def test_what_is_followed(model: Any) -> None:
    check_calls(model, (UP,), CALLS, backends=("ort",))


# -- Python's and NumPy's memory -----------------------------------------------------------------


def an_array_in_an_arm(x: Tensor) -> Tensor:
    values = np.zeros(3)
    if x.sum() > 0:
        values[0] = 1.0
    return x + float(values[0])


def a_view_of_an_array(x: Tensor) -> Tensor:
    values = np.zeros((2, 3))
    row = values[1]
    while x.abs().sum() < 40:
        row += 1
        x = x * 1.5
    return x + float(values.sum())


def an_array_of_objects(x: Tensor) -> Tensor:
    values = np.array([1, None], dtype=object)
    if x.sum() > 0:
        values[1] = 2
    return x + values[0]


def bytes_in_an_arm(x: Tensor) -> Tensor:
    values = bytearray(2)
    if x.sum() > 0:
        values.append(3)
    return x + len(values)


def bytes_in_a_view(x: Tensor) -> Tensor:
    values = memoryview(bytearray(2))
    if x.sum() > 0:
        values[0] = 3
    return x + values[0]


def an_array_of_pythons(x: Tensor) -> Tensor:
    values = array.array("d", [1.0, 2.0])
    if x.sum() > 0:
        values[0] = 3.0
    return x + values[0]


def an_array_of_records(x: Tensor) -> Tensor:
    values = np.array([(1, None)], dtype=RECORD)
    if x.sum() > 0:
        values["n"][0] = 2
    return x + float(values["n"][0])


def an_object_in_an_array_of_records(x: Tensor) -> Tensor:
    values = np.array([(1, None)], dtype=RECORD)
    if x.sum() > 0:
        values["what"][0] = "else"
    return x + (values["what"][0] is None)


def an_array_by_columns(x: Tensor) -> Tensor:
    values = np.zeros((2, 3), order="F")
    if x.sum() > 0:
        values[1, 2] = 2
    return x + float(values.sum())


RECORD = np.dtype([("n", np.int32), ("what", object)])
MEMORY = [
    *(an_array_in_an_arm, a_view_of_an_array, an_array_of_objects, bytes_in_an_arm, bytes_in_a_view),
    *(an_array_of_pythons, an_array_of_records, an_object_in_an_array_of_records, an_array_by_columns),
]


@pytest.mark.parametrize("model", MEMORY, ids=lambda model: model.__name__)
def test_memory_that_is_written_to_is_refused(model: Any) -> None:
    with pytest.raises(CaptureError, match="memory of Python's or NumPy's, is written to") as caught:
        regraft.capture(model, (UP,))
    assert HERE in str(caught.value.location)
    assert "tensor" in str(caught.value.hint)

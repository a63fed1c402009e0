"""The cache's key: all that may change the captured graph changes it, and the rest does not."""

from __future__ import annotations

import copy
import math
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from regraft.compiler import cache
from regraft.compiler import options as compile_options
from regraft.ir import Exactness
from tests.compiler.cache import helper_for_keys as helpers

X = (torch.ones(3, 4),)


def options(**changed: Any) -> compile_options.Options:
    given: dict[str, Any] = {
        "backends": ("eager",),
        "fallback": "error",
        "rewrites": (),
        "passes": (),
        "ops": (),
        "exactness": Exactness.REASSOCIATES,
        "verify": False,
        "dump": None,
        "threads": None,
    }
    return compile_options.Options.checked(**{**given, **changed})


def key(model: Any, args: tuple[Any, ...] = X, kwargs: Any = None, shapes: Any = None, **changed: Any) -> str:
    return cache.key_of(model, args, kwargs, shapes, options(**changed)).digest


def parts(model: Any) -> dict[str, str]:
    return dict(cache.key_of(model, X, None, None, options()).components)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.dropout = nn.Dropout(0.1)
        self.factor = 2.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.linear(x)) * self.factor


def model() -> nn.Module:
    return Model().eval()


def test_equal_models_have_equal_keys() -> None:
    assert key(model()) == key(model())  # the weights differ, which does not count
    assert key(copy.deepcopy(model())) == key(model())


def started(code: str, hash_seed: int) -> subprocess.Popen[str]:
    """A process that prints a key; its sets are in an order of their own."""
    env = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    command = [sys.executable, "-c", f"from tests.compiler.cache.test_key import *; {code}"]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_key_is_the_same_in_another_process() -> None:
    out, err = started("print(key(model()))", 1).communicate(timeout=300)
    assert out.strip() == key(model()), err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "modernbert", "vit"])
def test_keys_of_transformers_are_the_same_in_another_process(name: str) -> None:
    code = f"from tests.models import FAMILIES; print(key(FAMILIES[{name!r}].make('small'), ()))"
    runs = [started(code, seed) for seed in (1, 2)]
    (first, err), (second, _) = (run.communicate(timeout=600) for run in runs)
    assert first == second, err
    assert len(first.strip()) == 40, err


# -- what changes a model ------------------------------------------------------------------------


def other_forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.linear(x)


def patch_instance(m: Any) -> None:
    m.forward = MethodType(other_forward, m)


def tie(m: Any) -> None:
    m.more = nn.Linear(4, 4)
    m.more.weight = m.linear.weight


def untied(m: Any) -> None:
    m.more = nn.Linear(4, 4)


def register_hook(m: Any) -> None:
    m.linear.register_forward_hook(lambda module, args, result: result + 1)


class Double(nn.Module):
    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return w * 2


@pytest.mark.parametrize(
    "change",
    [
        patch_instance,
        tie,
        untied,
        register_hook,
        lambda m: setattr(m, "factor", 3.0),
        lambda m: setattr(m, "factor", 2),
        lambda m: setattr(m, "factor", True),
        lambda m: setattr(m, "factor", -0.0),
        lambda m: setattr(m, "extra", None),
        lambda m: setattr(m, "extra", {"a": [1, (2, {3})]}),
        lambda m: setattr(m, "extra", torch.float16),
        lambda m: setattr(m, "extra", torch.tensor(1.0)),
        lambda m: setattr(m, "extra", np.ones(3)),
        lambda m: setattr(m, "extra", lambda x: x),
        lambda m: setattr(m.dropout, "p", 0.2),
        lambda m: m.dropout.train(),
        lambda m: m.linear.register_buffer("b", torch.ones(2)),
        lambda m: m.linear.requires_grad_(False),
        lambda m: m.half(),
        lambda m: setattr(m, "linear", nn.Linear(4, 4, bias=False)),
        lambda m: setattr(m.linear, "weight", nn.Parameter(torch.ones(4, 4).t())),
        lambda m: setattr(m.linear, "weight", nn.Parameter(torch.ones(4, 8)[:, ::2])),
        lambda m: parametrize.register_parametrization(m.linear, "weight", Double()),
        lambda m: torch.nn.utils.parametrizations.weight_norm(m.linear),
    ],
)
def test_a_changed_model_has_another_key(change: Callable[[Any], Any]) -> None:
    changed = model()
    change(changed)
    assert key(changed) != key(model())


def test_ties_count() -> None:
    tied, separate = model(), model()
    tie(tied)
    untied(separate)
    assert key(tied) != key(separate)


@dataclass(frozen=True)
class Nested:
    sizes: tuple[int, ...]
    inner: Any = None


class Slots:
    __slots__ = ("scale",)

    def __init__(self, scale: float) -> None:
        self.scale = scale


class SlotsToo(Slots):
    __slots__ = ("offset",)

    def __init__(self, scale: float, offset: float) -> None:
        super().__init__(scale)
        self.offset = offset


class Kind(Enum):
    ONE = 1
    TWO = 2


class Config(dict[str, Any]):
    """A dict with attributes beside its items."""

    def __init__(self, mode: str, **items: Any) -> None:
        super().__init__(**items)
        self.mode = mode


def closure(factor: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x * factor


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (Nested((1, 2)), Nested((1, 3))),
        (Nested((1,), Nested((2,))), Nested((1,), Nested((3,)))),
        (Slots(1.0), Slots(2.0)),
        (SlotsToo(1.0, 2.0), SlotsToo(1.0, 3.0)),
        (SlotsToo(1.0, 2.0), SlotsToo(0.0, 2.0)),
        (Kind.ONE, Kind.TWO),
        (Config("a", b=1), Config("b", b=1)),
        (Config("a", b=1), Config("a", b=2)),
        (closure(1.0), closure(2.0)),
        (closure, Nested),
        (torch.tensor([1, 2]), torch.tensor([1, 3])),
        (torch.tensor([1.0]), torch.tensor([1])),
        (np.array([1, 2]), np.array([1, 3])),
        (re.compile("a"), re.compile("b")),
        (slice(1), slice(2)),
        ([1], (1,)),
        ({1, 2}, {1, 3}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (float("nan"), float("inf")),
        (0.0, -0.0),
        (1 + 2j, 1 - 2j),
        (torch.relu, torch.sigmoid),
        (nn.functional.gelu, nn.functional.silu),
        (math.sin, math.cos),
        (MethodType(other_forward, 1), MethodType(other_forward, 2)),
        (nn.Linear, nn.Conv2d),
    ],
)
def test_attributes_of_every_kind_count(one: Any, two: Any) -> None:
    first, again, second = model(), model(), model()
    first.value, again.value, second.value = one, copy.deepcopy(one), two  # type: ignore[assignment]
    assert key(first) != key(second)
    assert key(first) == key(again) or callable(one)


# -- what changes the code -----------------------------------------------------------------------


class UsesHelpers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = helpers.Shift()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shift(helpers.inner(x))


@pytest.mark.parametrize(
    ("target", "name", "value"),
    [
        (helpers, "SCALE", 3.0),
        (helpers, "scale", lambda x: x),
        (helpers, "inner", lambda x: x),
        (helpers.Shift, "amount", 2.0),
        (helpers.Shift, "__call__", lambda self, x: x),
        (UsesHelpers, "forward", lambda self, x: x),
        (nn.Module, "_call_impl", lambda self, x: x),
        (torch, "relu", lambda x: x + 1),
    ],
)
def test_code_that_changed(monkeypatch: pytest.MonkeyPatch, target: Any, name: str, value: Any) -> None:
    class UsesRelu(UsesHelpers):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(super().forward(x))

    before = key(UsesRelu().eval())
    monkeypatch.setattr(target, name, value)
    assert key(UsesRelu().eval()) != before


def test_what_the_code_does_not_use_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(UsesHelpers().eval())
    monkeypatch.setattr(helpers, "UNRELATED", 1, raising=False)
    monkeypatch.setattr(helpers.Shift, "unrelated", lambda self: 1, raising=False)
    assert key(UsesHelpers().eval()) == before


@pytest.mark.parametrize("name", ["gelu", "linear", "layer_norm"])
def test_a_library_function_that_somebody_replaced(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    block = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.LayerNorm(4)).eval()
    before = key(block)
    monkeypatch.setattr(nn.functional, name, lambda x, *args, **kwargs: x)
    assert key(block) != before


def test_a_replaced_method_of_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    class Softmax(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.softmax(-1)

    before = key(Softmax().eval())
    monkeypatch.setattr(torch.Tensor, "softmax", lambda self, dim: self)
    assert key(Softmax().eval()) != before


def test_functions() -> None:
    assert key(closure(1.0)) == key(closure(1.0)) != key(closure(2.0))

    def with_default(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return x * scale

    before = key(with_default)
    with_default.__defaults__ = (2.0,)
    assert key(with_default) != before


def test_weights_that_become_literals_count_by_value() -> None:
    hidden = model()
    hidden.layers = [nn.Linear(4, 4)]  # no submodule: its weights have no name in the model
    before = key(hidden)
    with torch.no_grad():
        hidden.linear.weight += 1  # type: ignore[operator]
    assert key(hidden) == before
    with torch.no_grad():
        hidden.layers[0].weight += 1  # type: ignore[index, operator]
    assert key(hidden) != before


def test_an_attention_of_the_users_own() -> None:
    from transformers import AttentionInterface
    from transformers.models.llama import modeling_llama

    from tests.models import FAMILIES

    def make(factor: float) -> Callable[..., Any]:
        return lambda *args, **kwargs: factor

    llama = FAMILIES["llama"].make("small")
    ids = (torch.ones(1, 4, dtype=torch.int64),)
    plain = key(llama, ids)
    try:
        AttentionInterface.register("mine", make(1.0))
        first = key(llama, ids)
        AttentionInterface.register("mine", make(2.0))
        assert len({plain, first, key(llama, ids)}) == 3
    finally:
        del AttentionInterface._global_mapping["mine"]
    assert key(llama, ids) == plain
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_llama, "rotate_half", lambda x: x)
        assert key(llama, ids) != plain
    llama.config.rms_norm_eps = 0.5
    assert key(llama, ids) != plain


# -- the process, the arguments, the options ---------------------------------------------------------


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def matmul_precision() -> Iterator[None]:
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@contextmanager
def without_onednn() -> Iterator[None]:
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(True)


@contextmanager
def global_hook() -> Iterator[None]:
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, result: result)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "context",
    [
        default_dtype,
        matmul_precision,
        global_hook,
        lambda: torch.autocast("cpu", torch.bfloat16),
        torch.no_grad,
        torch.inference_mode,
        without_onednn,
        lambda: torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ],
)
def test_the_state_of_the_process_counts(context: Any) -> None:
    m = model()
    before = key(m)
    with context():
        assert key(m) != before
    assert key(m) == before


def test_arguments_count() -> None:
    m = model()
    keys = [
        key(m),
        key(m, (torch.ones(3, 4, dtype=torch.float64),)),
        key(m, (torch.ones(2, 4),)),
        key(m, (torch.ones(4, 3).t(),)),
        key(m, (torch.ones(3, 4, requires_grad=True),)),
        key(m, (), {"x": X[0]}),
        key(m, (X[0], 1)),
        key(m, (X[0], 1.0)),
        key(m, (X[0], X[0])),
        key(m, (X[0], torch.ones(3, 4))),
        key(m, ([X[0]],)),
        key(m, X, None, {"x": {0: torch.export.Dim.AUTO}}),
        key(m, X, None, {"x": {0: torch.export.Dim("n", min=2, max=8)}}),
        key(m, X, None, {"x": {0: torch.export.Dim("n", min=2, max=9)}}),
    ]
    assert len(set(keys)) == len(keys)
    assert key(m, (torch.zeros(3, 4),)) == keys[0]  # a tensor's values are not captured


def test_options_count() -> None:
    m = model()
    keys = [
        key(m),
        key(m, backends=("eager", "example")),
        key(m, fallback="eager"),
        key(m, exactness=Exactness.EXACT),
        key(m, threads=1),
    ]
    assert len(set(keys)) == len(keys)
    assert key(m, verify=True) == keys[0]


# -- what cannot be described ------------------------------------------------------------------------


class Reads(nn.Module):
    """Runs ``action`` in its forward."""

    def __init__(self, action: Callable[[], Any]) -> None:
        super().__init__()
        self.action = action

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * float(self.action() is None)


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (lambda: os.environ.get("MODE"), "it uses the module os"),
        (lambda: os.getenv("MODE"), "it uses the module os"),
        (lambda: random.random(), "it uses the module random"),
        (lambda: time.time(), "it uses the module time"),
        (lambda: open("scale.txt"), r"it uses open\(\)"),  # noqa: SIM115
        (lambda: eval("1"), r"it uses eval\(\)"),
        (lambda: np.random.rand(), "it uses numpy.random"),
        (lambda: torch.initial_seed(), "it uses torch.initial_seed"),
        (lambda: np.load("x.npy"), "it uses numpy.load"),
        (time.time, r"it uses time\.time\(\)"),
        (os.getcwd, r"it uses posix\.getcwd\(\)"),
        (threading.Lock().acquire, "it holds a _thread.lock"),
        (iter([1]).__next__, "it holds a builtins.list_iterator"),
    ],
)
def test_code_whose_result_nobody_knows(action: Callable[[], Any], expected: str) -> None:
    with pytest.raises(cache.Uncacheable, match=expected):
        key(Reads(action).eval())


def imports_when_it_runs(x: torch.Tensor) -> torch.Tensor:
    import tests.compiler.cache.never_imported as other  # type: ignore[import-not-found]

    return other.scale(x)


def test_a_module_that_is_not_there_yet() -> None:
    with pytest.raises(cache.Uncacheable, match=r"it imports .* when it runs"):
        key(imports_when_it_runs)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.Generator(), "it holds a torch._C.Generator"),
        (threading.local(), "it holds a _thread._local"),
        ((i for i in range(3)), "it holds a builtins.generator"),
        (torch.empty(32 << 20), "too large to hash"),
        (torch.empty(2, device="meta"), "has no values to hash"),
        (np.array([object()]), "too large to hash"),
    ],
)
def test_attributes_that_cannot_be_described(value: Any, expected: str) -> None:
    m = model()
    m.value = value
    with pytest.raises(cache.Uncacheable, match=expected):
        key(m)


def test_models_that_cannot_be_described() -> None:
    program = torch.export.export(model(), X)
    for each in (program, torch.jit.script(nn.Linear(4, 4)), program.module()):
        with pytest.raises(cache.Uncacheable):
            key(each)


def test_a_mode_that_sees_every_call() -> None:
    with torch.device("meta"), pytest.raises(cache.Uncacheable, match="a torch mode is active"):
        key(model())


def test_values_that_nest_without_end() -> None:
    value: list[Any] = []
    value.append(value)
    m = model()
    m.value = value  # type: ignore[assignment]
    assert key(m) == key(m)
    deep: Any = ()
    for _ in range(100_000):
        deep = (deep,)
    m.value = deep
    with pytest.raises(cache.Uncacheable, match="nests too deeply"):
        key(m)

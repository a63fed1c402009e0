"""What may be given as a model, besides a plain module, and what is refused by name."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import regraft
from regraft.errors import CaptureError, OptionError, RegraftError
from regraft.testing import assert_close, randomise


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))

    def encode(self, x: Tensor, scale: float = 2.0) -> Tensor:
        return self.first(x) * scale


def rows(count: int = 3) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(0))


def check(compiled: Any, model: Callable[..., Any]) -> None:
    with torch.no_grad():
        assert_close(compiled(rows()), model(rows()).double())


NET = randomise(Net().eval())
TABLE = torch.arange(8.0)


def through_globals(x: Tensor) -> Tensor:
    return NET(x) + TABLE


def through_another_function(x: Tensor) -> Tensor:
    return through_globals(x) * 2


def plus_one(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Tensor:
        return function(*args, **kwargs) + 1

    return wrapper


@plus_one
def decorated(x: Tensor, scale: float = 3.0) -> Tensor:
    return NET.encode(x, scale)


class Service:
    """An object that is called, and that is not a module."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.parts = net, {"shift": torch.ones(8)}

    def __call__(self, x: Tensor) -> Tensor:
        return self.net(x) + self.parts["shift"]

    def scores(self, x: Tensor) -> Tensor:
        return self(x).softmax(-1)


def weighted(weight: Tensor, x: Tensor) -> Tensor:
    return x @ weight


def closure(net: nn.Module, table: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: net(x) * table


FORMS: dict[str, Callable[[nn.Module], Callable[[Tensor], Tensor]]] = {
    "closure": lambda net: closure(net, TABLE),
    "bound method": lambda net: net.encode,
    "object": Service,
    "method of an object": lambda net: Service(net).scores,
    "partial of a method": lambda net: functools.partial(net.encode, scale=0.5),
    "partial of an object": lambda net: functools.partial(Service(net)),
    "no_grad": lambda net: torch.no_grad()(closure(net, TABLE)),
    "torch.compile of a module": torch.compile,
    "torch.compile of a function": lambda net: torch.compile(closure(net, TABLE)),
    "DataParallel": nn.DataParallel,
    "vmap": lambda net: torch.func.vmap(lambda row: net(row)),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_form(form: Callable[[nn.Module], Callable[[Tensor], Tensor]]) -> None:
    """It computes the same; a change of its weights is noticed; it takes another one's weights."""
    net = randomise(Net().eval())
    model = form(net)
    compiled = regraft.compile(model, (rows(),))
    check(compiled, model)

    other = form(randomise(Net().eval(), seed=1))
    compiled.refresh(other)
    check(compiled, other)
    compiled.refresh(model)

    with torch.no_grad():
        net.first.weight.mul_(2)
    with pytest.raises(RegraftError, match="changed in place"):
        compiled(rows())
    compiled.refresh(model)
    check(compiled, model)


@pytest.mark.parametrize("model", [through_globals, through_another_function, decorated])
def test_functions_of_a_file(model: Callable[[Tensor], Tensor]) -> None:
    compiled = regraft.compile(model, (rows(),))
    check(compiled, model)
    assert "NET.first.weight" in compiled.ir
    assert "lifted_tensor" not in compiled.ir


def test_tensors_that_a_function_holds() -> None:
    table, weight = torch.ones(8), torch.randn(8, 8)
    for model in (lambda x: x + table, functools.partial(weighted, weight)):
        compiled = regraft.compile(model, (rows(),))
        check(compiled, model)
        (table if isinstance(model, type(lambda: 0)) else weight).mul_(2)
        with pytest.raises(RegraftError, match="changed in place"):
            compiled(rows())
        compiled.refresh(model)
        check(compiled, model)


def test_the_modes_of_modules_that_a_function_reaches() -> None:
    dropout = nn.Dropout(0.5)
    with pytest.raises(OptionError, match="the submodule 'dropout' is in training mode"):
        regraft.compile(lambda x: dropout(x), (rows(),))
    assert dropout.training
    net = Net()
    check(regraft.compile(closure(net, TABLE), (rows(),)), closure(net, TABLE))
    assert net.training


def test_distributed_data_parallel(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        net = randomise(Net().eval())
        compiled = regraft.compile(nn.parallel.DistributedDataParallel(net).eval(), (rows(),))
        check(compiled, net)
        assert compiled.first is net.first
    finally:
        torch.distributed.destroy_process_group()


# -- modules that are more than their code -----------------------------------------------------


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


def parametrized() -> nn.Module:
    net = Net()
    parametrize.register_parametrization(net.first, "weight", Doubled())
    return net


def hooked() -> nn.Module:
    net = Net()
    net.first.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    net.register_forward_hook(lambda module, args, result: result * 2)
    net.second.register_forward_hook(lambda module, args, kwargs, result: result - args[0], with_kwargs=True)
    return net


MODULES: dict[str, Callable[[], nn.Module]] = {
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(8, 8)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(8, 8)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(8, 8)),
    "parametrized": parametrized,
    "hooks": hooked,
}


@pytest.mark.parametrize("make", MODULES.values(), ids=list(MODULES))
def test_module(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    compiled = regraft.compile(model, (rows(),))
    check(compiled, model)
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    with pytest.raises(RegraftError, match="changed in place"):
        compiled(rows())
    compiled.refresh(model)
    check(compiled, model)


class Scaled(Tensor):
    """A weight that stands for twice its values, as quantized wrapper subclasses stand for others."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Scaled:
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], meta: None, size: Any, stride: Any) -> Scaled:
        return cls(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.detach.default:
            return cls(args[0].inner)
        plain = [arg.inner * 2 if isinstance(arg, cls) else arg for arg in args]
        return function(*plain, **(kwargs or {}))


def test_a_tensor_subclass_as_a_weight() -> None:
    net = randomise(Net().eval())
    net.first.weight = nn.Parameter(Scaled(net.first.weight.detach()), requires_grad=False)
    before = type(net.first)
    compiled = regraft.compile(net, (rows(),))
    check(compiled, net)
    assert type(net.first.weight.data) is Scaled or isinstance(net.first.weight, Scaled)
    assert type(net.first) is before
    with pytest.raises(RegraftError, match="Compile again"):
        compiled.refresh(net)


# -- refused -----------------------------------------------------------------------------------


def traced() -> Any:
    from warnings import catch_warnings, simplefilter

    with catch_warnings():
        simplefilter("ignore")  # torch.jit is deprecated; that is why it is refused
        return torch.jit.trace(Net().eval(), (rows(),))


def with_old_norm() -> nn.Module:
    from warnings import catch_warnings, simplefilter

    with catch_warnings():
        simplefilter("ignore")  # deprecated in favour of what the error names
        return nn.utils.weight_norm(nn.Linear(8, 8)).eval()


def quantized() -> nn.Module:
    from warnings import catch_warnings, simplefilter

    with catch_warnings():
        simplefilter("ignore")  # torch.ao.quantization is deprecated
        return torch.ao.quantization.quantize_dynamic(Net().eval(), {nn.Linear})


def fake() -> nn.Module:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        return Net().eval()


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "traced": (traced, "TorchScript module; compile the nn.Module it was made from"),
    "inside": (lambda: nn.Sequential(traced()).eval(), "submodule '0' is a TorchScript module"),
    "old weight_norm": (with_old_norm, r"old-style weight_norm.*remove_weight_norm"),
    "quantized": (quantized, r"'first' is a quantized Linear.*compile the float model"),
    "meta": (lambda: Net().eval().to("meta"), r"'first\.weight' is on the meta device.*load the weights"),
    "fake": (fake, r"'first\.weight' is a FakeTensor"),
    "lazy": (
        lambda: nn.Sequential(nn.LazyLinear(8)).eval(),
        r"'0\.weight' is not initialised.*run the model",
    ),
    "a class": (lambda: Net, "expected an nn.Module"),
    "a builtin": (lambda: torch.relu, r"has no signature; wrap it: lambda x: relu\(x\)"),
}


@pytest.mark.parametrize(("make", "words"), REFUSED.values(), ids=list(REFUSED))
def test_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        regraft.compile(make(), (rows(),))


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # torch.export's, on the transform it then fails at
def test_gradients_inside_are_refused() -> None:
    with pytest.raises(CaptureError, match=r"torch\.func transform"):
        regraft.compile(torch.func.grad(lambda x: (x * x).sum()), (rows(),))


def test_the_model_is_not_touched() -> None:
    net = randomise(Net().eval())
    state, attributes = copy.deepcopy(net.state_dict()), set(vars(net))
    regraft.compile(Service(net), (rows(),))
    regraft.compile(net.encode, (rows(),))
    assert set(vars(net)) == attributes
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())

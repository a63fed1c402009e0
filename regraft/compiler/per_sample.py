"""``batch="per_sample"``: a model for one sample, called with many, each of which takes its own path."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from regraft.compiler.trial import same_draws
from regraft.errors import OptionError, UnsupportedOp, UnsupportedOpError
from regraft.ir import (
    Builder,
    Dim,
    Function,
    Module,
    Op,
    PassContext,
    Region,
    Symbol,
    TensorType,
    Value,
    symbol,
)
from regraft.rewrites import batching
from regraft.runtime import ParamSpec, Signature, SymbolSpec, TensorSpec

PER_SAMPLE = "per_sample"

_NAME = "batch"
_OPTION = f"batch={PER_SAMPLE!r}"


@dataclass(frozen=True)
class PerSample:
    """Gives every argument whose first size is 1, and every result, an axis of samples in its place.

    A result without a first size of 1 gets the axis before its own. The pass belongs after ``fold``, which
    has made one nest of a chain of exits: a sample that has left one is not looked at by the next. Ops that
    have no form for many samples are an ``UnsupportedOpError`` that lists them.
    """

    name: str = "per-sample"
    stage: str = "recover"
    after: tuple[str, ...] = ()
    before: tuple[str, ...] = ("recover.rewrite",)

    def run(self, module: Module, context: PassContext) -> bool:
        function = module.main
        _refuse_obstacles(function)
        taken = {s.name for s in function.symbols} | {s.name for op in function.walk() for s in op.symbols}
        size = Symbol(_unused(_NAME, taken))
        rewriter = context.rewriter(self.name)
        body = Region()
        function.body = _many(function, rewriter.at_end(body), body, size, taken)
        function.symbols = (size, *function.symbols)
        function.signature = _many_arguments(function.signature, size)
        return True


def check_example(arguments: Mapping[str, Any]) -> None:
    """Refuse an example, by parameter, that is not one sample: a model for one is captured with it.

    Raises:
        OptionError: no tensor in it has a first size of 1.
    """
    sizes: dict[str, int] = {}
    for name, value in arguments.items():
        for path, leaf in pytree.tree_flatten_with_path(value)[0]:
            if _is_sample(leaf):
                return
            if isinstance(leaf, torch.Tensor) and leaf.dim():
                sizes.setdefault(name + pytree.keystr(path), leaf.shape[0])
    told = ", ".join(f"'{name}' has {size}" for name, size in sizes.items())
    which = next(iter(sizes), None)
    raise OptionError(
        f"no argument of the example has a first size of 1{f': {told}' if told else ''}",
        "batch",
        repr(PER_SAMPLE),
        f"one sample as the example, {which}[:1]: calls take any number"
        if which is not None
        else "arguments with samples along their first dim",
    )


def check_samples(function: Function) -> None:
    """Refuse a model that has no meaning for many samples.

    Raises:
        OptionError: no argument has a sample, or the model writes to a tensor.
    """
    reason = None
    if not _samples(function):
        reason = "no argument has a first size of 1, fixed by the example: leave it out of dynamic_shapes"
    if function.state or function.aliases or function.signature.returned:
        reason = "the model writes to a tensor, which samples would share"
    if reason is not None:
        wanted = "a model that computes results from arguments whose first size is 1"
        raise OptionError(reason, "batch", repr(PER_SAMPLE), wanted)


def shared_arguments(signature: Signature) -> list[str]:
    """What to tell of the arguments of a model for many samples that are the same for all of them."""
    size = signature.symbols[0].name
    names = [f"'{each.name}'" for each in signature.tensors if each.shape and each.shape[0] != size]
    return [f"{_OPTION}: the same for all samples: {', '.join(names)}"] if names else []


def _refuse_obstacles(function: Function) -> None:
    found: dict[tuple[str, str], list[Op]] = {}
    for op, reason in batching.obstacles(function.body, _samples(function)):
        found.setdefault((op.name, reason), []).append(op)
    if found:
        refused = [
            UnsupportedOp(name, len(ops), tuple(dict.fromkeys(str(op.loc) for op in ops)), {_OPTION: reason})
            for (name, reason), ops in found.items()
        ]
        raise UnsupportedOpError(tuple(refused))


def _samples(function: Function) -> set[Value]:
    return {arg for arg in function.args if arg.tensor.rank and arg.tensor.shape[0] == 1}


def _many(function: Function, op: Builder, body: Region, size: Symbol, taken: set[str]) -> Region:
    """The body of ``function`` for many samples, built in ``body``."""
    count = symbol(size.name, size.lo)
    numbers = itertools.count()

    def fresh() -> Symbol:
        name = next(n for i in numbers if (n := f"rows{i}") not in taken)
        return Symbol(name)

    batch = batching.Batch(op, count, fresh)
    samples = _samples(function)
    for arg in function.args:
        if arg in samples:
            shape = arg.tensor.shape
            given = body.add_arg(arg.tensor.with_shape((count, *shape[1:])), arg.hint)
            batch.enter(arg, op.aten.view(given, (count, *shape)), varies=True)
        else:
            batch.enter(arg, body.add_arg(arg.type, arg.hint), varies=False)
    batch.run(function.body)
    results = [_without_one(op, batch.lifted(value), count, value.tensor) for value in function.results]
    op.create("cf.yield", (results,))
    return body


def _without_one(op: Builder, value: Value, count: Dim, type: TensorType) -> Value:
    """A result, of which ``type`` is one sample's, with the samples in place of its first size of 1."""
    is_one = bool(type.rank) and type.shape[0] == 1
    return op.aten.view(value, (count, *type.shape[1:])) if is_one else value


def _unused(name: str, taken: set[str]) -> str:
    return next(each for i in itertools.count() if (each := f"{name}{i or ''}") not in taken)


# -- the call ----------------------------------------------------------------------------------


def _many_arguments(signature: Signature, size: Symbol) -> Signature:
    """``signature`` with the number of samples as a size."""
    places = iter(range(len(signature.tensors)))
    first: list[int] = []

    def spec(leaf: Any) -> Any:
        if not isinstance(leaf, TensorSpec):
            return leaf
        index = next(places)
        if not leaf.shape or leaf.shape[0] != 1:
            return leaf
        first.append(index)
        return replace(leaf, shape=(size.name, *leaf.shape[1:]))

    params = tuple(
        ParamSpec(each.name, tuple(spec(leaf) for leaf in each.leaves), each.structure)
        for each in signature.params
    )
    symbols = (SymbolSpec(size.name, first[0], 0, lo=size.lo), *signature.symbols)
    return replace(signature, params=params, symbols=symbols)


class OneByOne(torch.nn.Module):
    """``model`` run on one sample of a batch after the other, to compare a compile with.

    ``example`` are the arguments of one sample: what has a first size of 1 there has it for each sample of a
    call. A call gives the results that ``outputs``, of the signature, has as tensors, as ``PerSample`` does.
    """

    def __init__(self, model: Any, example: Any, outputs: Sequence[Any]) -> None:
        super().__init__()
        self.model = model
        self.varies = tuple(map(_is_sample, pytree.tree_leaves(example)))
        self.places = tuple(i for i, output in enumerate(outputs) if isinstance(output, int))

    def forward(self, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        rows = list(zip(leaves, self.varies, strict=True))
        count = next(len(leaf) for leaf, varies in rows if varies)
        runs: list[list[torch.Tensor]] = []
        for i in range(count):
            own_args, own_kwargs = pytree.tree_unflatten([x[i : i + 1] if v else x for x, v in rows], spec)
            found = pytree.tree_leaves(self.model(*own_args, **own_kwargs))
            runs.append([_as_sample(found[place]) for place in self.places])
        return [torch.cat(each) for each in zip(*runs, strict=True)]

    def batch(self, example: Any) -> Any:
        """Samples like the one of ``example``, that first; those that eager itself refuses are left out."""
        leaves, spec = pytree.tree_flatten(example)
        samples: list[list[Any]] = []
        for i in range(_COUNT):
            sample = [_another(x, i) if varies else x for x, varies in zip(leaves, self.varies, strict=True)]
            args, kwargs = pytree.tree_unflatten(copy.deepcopy(sample), spec)
            try:
                with torch.no_grad(), same_draws():
                    self.model(*args, **kwargs)
            except Exception:
                if not i:
                    raise
                continue  # the model checks its input: not every change of the example is one
            samples.append(sample)
        many = [
            torch.cat(parts) if varies else parts[0]
            for varies, *parts in zip(self.varies, *samples, strict=True)
        ]
        return pytree.tree_unflatten(many, spec)


#: How many samples a compile is compared on.
_COUNT = 4


def _is_sample(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.dim() > 0 and leaf.shape[0] == 1


def _another(sample: torch.Tensor, number: int) -> torch.Tensor:
    """``sample`` with its values in other places, so that samples may part; any value may be another's."""
    return sample.flatten().roll(number * max(1, sample.numel() // _COUNT)).view(sample.shape)


def _as_sample(leaf: Any) -> torch.Tensor:
    """A result of one sample, the sample first."""
    if not isinstance(leaf, torch.Tensor):
        return torch.tensor([leaf], dtype=torch.float64 if isinstance(leaf, float) else None)
    return leaf if _is_sample(leaf) else leaf.unsqueeze(0)

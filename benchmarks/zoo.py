"""Never slower: linear algebra and whole transformers with its rewrites against the same compile without."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import regraft
from benchmarks import machine
from regraft.rewrites import FAMILIES
from regraft.testing import randomise
from regraft.timing import race
from tests.models import FAMILIES as TRANSFORMERS
from tests.zoo.test_adapters import BlockLoRALinear, GenerativeAdapter, MixLoRA, PeftDoraLinear
from tests.zoo.test_flash_svd import SVDFeedForward
from tests.zoo.test_gated_ffn import GatedFFN
from tests.zoo.test_low_rank import MLP, BlockDense, BlockShuffle, LoRALinear, LowRank, Mlp, PeftLinear, pela
from tests.zoo.test_products import LAMA, SoftmaxFreeAttention
from tests.zoo.test_reparameterised import (
    ChannelMixer,
    Downsample,
    FFNifiedAttention,
    PeftConv2d,
    RepVGGBlock,
)
from tests.zoo.test_scales import LayerScaleBlock, NeoXLayer, PathEnsemble
from tests.zoo.test_supernets import Activator, LightHuBERTLayer, MatFormerBlock

#: Rewrites that every compile needs, whatever it is compared with.
_KEPT = ("ConvBatchNorm", "GatedFFN")
_SWITCHED = ("linear", "convolution", "ffn")
TOKENS = (1, 16, 128)

Maker = Callable[[], nn.Module]


def _layers(layer: Callable[[int, int], nn.Module]) -> Maker:
    return lambda: nn.Sequential(layer(768, 3072), nn.GELU(), layer(3072, 768))


#: Models whose input is [1, tokens, width].
SEQUENCES: dict[str, tuple[Maker, int]] = {
    "low rank 64": (lambda: MLP(lambda n, m: LowRank(n, m, 64), 768, 3072), 768),
    "low rank 768": (lambda: MLP(lambda n, m: LowRank(n, m, 768), 768, 3072), 768),
    "block dense": (lambda: MLP(lambda n, m: BlockDense(n, m, 512, 4), 768, 3072), 768),
    "block shuffle": (lambda: MLP(BlockShuffle, 1024, 4096), 1024),
    "pela": (lambda: pela(Mlp()), 24),
    "lora": (_layers(lambda n, m: LoRALinear(n, m, 16, 32)), 768),
    "two adapters": (_layers(PeftLinear), 768),
    "dora": (_layers(lambda n, m: PeftDoraLinear(n, m, 16)), 768),
    "block lora": (_layers(lambda n, m: BlockLoRALinear(n, m, 4, 32)), 768),
    "mixlora": (lambda: MixLoRA(512, 1024, 8, 8), 512),
    "generative adapter": (lambda: GenerativeAdapter(768, 768, torch.randn(64, 768), 64), 768),
    "svd ffn": (lambda: SVDFeedForward(768, 3072, 96), 768),
    "gated ffn": (lambda: GatedFFN(nn.functional.silu), 32),
    "layer scale": (lambda: LayerScaleBlock(384), 384),
    "parallel block": (lambda: NeoXLayer(384), 384),
    "path ensemble": (lambda: PathEnsemble(384, 2), 384),
    "matformer": (lambda: MatFormerBlock(512, 2048, 2), 512),
    "lighthubert": (lambda: LightHuBERTLayer(512, 8, 4.0, 640), 512),
    "activator": (lambda: Activator(384, 768), 384),
    "lama": (lambda: LAMA(512, 64, 8), 512),
}

#: Models of images, with the shape of their input.
IMAGES: dict[str, tuple[Maker, tuple[int, ...]]] = {
    "ffnet attention": (lambda: FFNifiedAttention(96), (1, 96, 56, 56)),
    "ffnet mixer": (lambda: ChannelMixer(96), (1, 96, 56, 56)),
    "ffnet downsampling": (lambda: Downsample(96), (1, 96, 56, 56)),
    "repvgg": (lambda: RepVGGBlock(64, 64), (1, 64, 56, 56)),
    "conv lora": (lambda: PeftConv2d(64, 64, 3, 8), (1, 64, 56, 56)),
    "soft": (lambda: SoftmaxFreeAttention(64, 1, 8, 56, 20), (1, 3136, 64)),
}


@dataclass(frozen=True)
class Case:
    """A model and what it is called with."""

    name: str
    make: Maker
    args: tuple[Tensor, ...] = ()
    kwargs: Mapping[str, Tensor] = field(default_factory=dict)


def cases(only: Sequence[str] = ()) -> Iterator[Case]:
    """The zoo, then the whole transformers in their full form; ``only`` those of some names."""
    for name, (make, width) in SEQUENCES.items():
        for count in TOKENS if not only or name in only else ():
            yield Case(f"{name}, {count} tokens", make, (_normal(1, count, width),))
    for name, (make, shape) in IMAGES.items():
        if not only or name in only:
            yield Case(name, make, (_normal(*shape),))
    for name, family in TRANSFORMERS.items():
        if not only or name in only:
            yield Case(name, partial(family.make, "full"), (), family.inputs(1, 128))


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def run(
    only: Sequence[str] = (), rounds: int = 20, patience: float = 10.0, budget: str = "20s", name: str = "zoo"
) -> None:
    """Race both compiles of each case, without and with measured times; writes ``<name>.json``."""
    torch.set_num_threads(machine.THREADS)
    where = machine.describe()
    points = [_point(case, rounds, patience, budget) for case in cases(only)]
    slower = [p["model"] for p in points for r in p["races"].values() if _verdict(r) == "slower"]
    result = {
        "benchmark": "zoo",
        "settings": {"threads": machine.THREADS, "dtype": "f32", "batch": 1},
        "ratio": "time without the rewrites over time with them: above 1, they pay",
        "machine": where,
        "slower": slower,
        "points": points,
    }
    print(f"{len(slower)} of {2 * len(points)} slower: {slower} -> {machine.save(name, result).name}")


@contextmanager
def without(*names: str) -> Iterator[None]:
    """The rewrites of these names left out."""
    saved = dict(FAMILIES)
    try:
        for family, rewrites in saved.items():
            FAMILIES[family] = tuple(rewrite for rewrite in rewrites if rewrite.name not in names)
        yield
    finally:
        FAMILIES.update(saved)


def _algebra() -> list[str]:
    """The rewrites of linear algebra."""
    return [r.name for family in _SWITCHED for r in FAMILIES[family] if r.name not in _KEPT]


def _point(case: Case, rounds: int, patience: float, budget: str) -> dict[str, Any]:
    torch.manual_seed(0)
    model, (args, kwargs) = randomise(case.make().eval()), (case.args, dict(case.kwargs))
    with without(*_algebra()):
        plain = regraft.compile(model, args, kwargs, threads=machine.THREADS, cache=False)
    races: dict[str, Any] = {}
    forms: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["REGRAFT_CACHE_DIR"] = folder
        for how, options in (("estimated", {}), ("measured", {"tune": True, "budget": budget})):
            rewritten = regraft.compile(model, args, kwargs, threads=machine.THREADS, cache=False, **options)
            forms[how] = [c.forms[i] for c in rewritten.report.choices for i in c.order]
            calls = {
                "rewritten": lambda m=rewritten: m(*args, **kwargs),
                "plain": lambda: plain(*args, **kwargs),
            }
            inner = 20 if args and args[0].numel() < 1 << 15 else 1
            races[how] = race(calls, rounds=rounds, inner=inner, patience=patience).to_dict()
    print(
        case.name, {how: (r["entrants"]["plain"]["ratio"]["median"], _verdict(r)) for how, r in races.items()}
    )
    shapes = [list(each.shape) for each in (*args, *kwargs.values())]
    return {"model": case.name, "shapes": shapes, "forms": forms, "races": races}


def _verdict(found: dict[str, Any]) -> str:
    return found["entrants"]["plain"]["verdict"]

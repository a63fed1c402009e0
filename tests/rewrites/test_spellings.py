"""Recognisers see through spellings and names."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from torch import nn

import regraft
from regraft.ir import OPS, STAGES, Module, PassContext, print_module, run_stage, verify
from regraft.rewrites import FAMILIES, default_passes
from regraft.testing import assert_close, evaluate, randomise
from tests.rewrites.spellings import SPELLINGS, Spelling
from tests.rewrites.spellings_around_layers import AROUND_LAYERS
from tests.zoo.checking import normal
from tests.zoo.test_adapters import BlockLoRALinear, GenerativeAdapter, MixLoRA, PeftDoraLinear
from tests.zoo.test_flash_svd import SVDFeedForward
from tests.zoo.test_low_rank import MLP, BlockShuffle, LoRALinear
from tests.zoo.test_reparameterised import ChannelMixer, Downsample, PeftConv2d, RepVGGBlock
from tests.zoo.test_scales import LayerScaleBlock, NeoXLayer, PathEnsemble
from tests.zoo.test_supernets import Activator, LightHuBERTLayer, MatFormerBlock

ALL = (*SPELLINGS, *AROUND_LAYERS)


def rewritten(model: Any, inputs: tuple[Any, ...]) -> tuple[Module, PassContext]:
    module, context = regraft.capture(model, inputs), PassContext(OPS)
    for stage in STAGES:
        run_stage(default_passes(), stage, module, context)
        verify(module, stage, table=OPS)
    return module, context


@pytest.mark.conformance
@pytest.mark.parametrize("spelling", ALL, ids=str)
def test_spelling(spelling: Spelling) -> None:
    module, context = rewritten(spelling.function, spelling.inputs)
    stats = context.stats[spelling.rewrite]
    assert stats.hits >= 1, stats.declined
    native = spelling.function(*spelling.inputs)
    (found,) = evaluate(module.main, list(spelling.inputs), {})
    assert_close(found, native.double(), native, reassociates=True)


def test_each_recogniser_has_three_spellings() -> None:
    counts = Counter(spelling.rewrite for spelling in ALL)
    assert min(counts.values()) >= 3
    families = ("convolution", "linear", "ffn")
    recognisers = {rewrite.name for family in families for rewrite in FAMILIES[family]}
    elsewhere = {"ConvBatchNorm", "GatedFFN"}  # tests/zoo/test_cnn.py and test_gated_ffn.py
    # How features lie between products, whoever spelled these: test_shuffle.py and test_blocks.py.
    elsewhere |= {"ShuffledFeatures", "BlocksApart", "OneRowOfBlocks", "MovedStack"}
    assert recognisers == {*counts, *elsewhere}


MODELS = {
    "monarch": (lambda: MLP(BlockShuffle), (2, 5, 16)),
    "lora": (lambda: nn.Sequential(LoRALinear(16, 24), nn.GELU(), LoRALinear(24, 16)), (2, 5, 16)),
    "dora": (lambda: PeftDoraLinear(16, 24), (2, 5, 16)),
    "block-lora": (lambda: BlockLoRALinear(16, 24), (2, 5, 16)),
    "mixlora": (MixLoRA, (2, 5, 16)),
    "generative": (lambda: GenerativeAdapter(16, 24, normal(9, 16, seed=3)), (2, 5, 16)),
    "svd": (SVDFeedForward, (2, 300, 32)),
    "repvgg": (lambda: RepVGGBlock(8, 8), (2, 8, 9, 9)),
    "conv-lora": (lambda: PeftConv2d(8, 6), (2, 8, 9, 9)),
    "ffnet": (lambda: nn.Sequential(ChannelMixer(8), Downsample(8)), (2, 8, 9, 9)),
    "scales": (LayerScaleBlock, (2, 5, 16)),
    "neox": (NeoXLayer, (2, 5, 16)),
    "paths": (PathEnsemble, (2, 5, 16)),
    "matformer": (lambda: MatFormerBlock(factor=2), (2, 5, 16)),
    "lighthubert": (LightHuBERTLayer, (2, 5, 16)),
    "activator": (Activator, (2, 5, 16)),
}


def renamed(model: nn.Module) -> nn.Module:
    """The same modules, of classes that say nothing."""
    for index, module in enumerate(model.modules()):
        kind = type(module)
        if kind.__module__.startswith("tests."):
            module.__class__ = type(f"C{index}", (kind,), {"__module__": "somewhere"})
    return model


@pytest.mark.conformance
@pytest.mark.parametrize("name", MODELS)
def test_class_names_mean_nothing(name: str) -> None:
    make, shape = MODELS[name]
    texts = []
    for change in (lambda model: model, renamed):
        module, _ = rewritten(change(randomise(make().eval())), (normal(*shape),))
        texts.append(print_module(module, locations=False))
    assert texts[0] == texts[1]

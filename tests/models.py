"""The transformers of docs/workloads.md, full size and small, with inputs; benchmarks use them too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from regraft.testing import randomise

Config = Mapping[str, Any]
Sizes = Mapping[str, int]

VOCABULARY = 1000
SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}


@dataclass(frozen=True)
class Family:
    """A family of models.

    Fields:
        name: as in ``FAMILIES``.
        workload: the full form in a line.
        build: the model from the arguments of its configuration.
        small, full: those arguments for the two forms.
        axes: the sizes that may vary, as axes of the one input, by name.
    """

    name: str
    workload: str
    build: Callable[[Config], nn.Module]
    small: Config
    full: Config
    axes: Mapping[str, int]

    @property
    def argument(self) -> str:
        return "input_ids" if "length" in self.axes else "pixel_values"

    def make(self, form: str = "small", dtype: torch.dtype = torch.float32) -> nn.Module:
        """A model in eval mode with weights drawn from seed 0; ``form`` is ``small`` or ``full``."""
        model = self.build({"small": self.small, "full": self.full}[form])
        return randomise(model.eval(), seed=0).to(dtype)

    def inputs(self, batch: int = 2, length: int = 24, seed: int = 0) -> dict[str, Tensor]:
        """Keyword arguments; ``length`` is in tokens and means nothing to ViT."""
        generator = torch.Generator().manual_seed(seed)
        if "length" in self.axes:
            return {"input_ids": torch.randint(3, VOCABULARY, (batch, length), generator=generator)}
        return {"pixel_values": torch.randn(batch, 3, 224, 224, generator=generator)}

    def dynamic(self) -> dict[str, dict[int, Any]]:
        """``dynamic_shapes`` that leaves every axis of ``axes`` open."""
        return {self.argument: dict.fromkeys(self.axes.values(), Dim.AUTO)}


def _bert(config: Config) -> nn.Module:
    from transformers import BertConfig, BertModel

    return _quietly(lambda: BertModel(BertConfig(**config)))


def _gpt2(config: Config) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return _quietly(lambda: GPT2LMHeadModel(GPT2Config(**config)))


def _llama(config: Config) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return _quietly(lambda: LlamaForCausalLM(LlamaConfig(**config)))


def _vit(config: Config) -> nn.Module:
    from transformers import ViTConfig, ViTModel

    return _quietly(lambda: ViTModel(ViTConfig(**config)))


def _modernbert(config: Config) -> nn.Module:
    from transformers import ModernBertConfig, ModernBertModel

    return _quietly(lambda: ModernBertModel(ModernBertConfig(**config)))


def _quietly(make: Callable[[], nn.Module]) -> nn.Module:
    """transformers warns that the token ids of its default configurations exceed a small vocabulary."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return make()
    finally:
        logging.set_verbosity(level)


_TOKENS = {"batch": 0, "length": 1}
_LLAMA = {"num_key_value_heads": 4, "vocab_size": VOCABULARY, "use_cache": False}
_MODERNBERT = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            "bert",
            "BERT-base, ids [1, 128]",
            _bert,
            small={**SMALL, "vocab_size": VOCABULARY},
            full={"vocab_size": VOCABULARY},
            axes=_TOKENS,
        ),
        Family(
            "gpt2",
            "GPT-2, 6 layers, ids [1, 128]",
            _gpt2,
            small={
                "n_embd": 128,
                "n_layer": 2,
                "n_head": 4,
                "n_inner": 256,
                "vocab_size": VOCABULARY,
                "use_cache": False,
            },
            full={"n_layer": 6, "vocab_size": VOCABULARY, "use_cache": False},
            axes=_TOKENS,
        ),
        Family(
            "llama",
            "Llama-style, 6 layers, 768 wide, 12 heads over 4, ids [1, 128]",
            _llama,
            small={**SMALL, **_LLAMA, "num_key_value_heads": 2},
            full={
                "hidden_size": 768,
                "intermediate_size": 2048,
                "num_hidden_layers": 6,
                "num_attention_heads": 12,
                **_LLAMA,
            },
            axes=_TOKENS,
        ),
        Family("vit", "ViT-B/16, pixels [1, 3, 224, 224]", _vit, small=SMALL, full={}, axes={"batch": 0}),
        Family(
            "modernbert",
            "ModernBERT, 6 layers, 512 wide, ids [1, 2048]",
            _modernbert,
            small={**SMALL, **_MODERNBERT},
            full={
                "hidden_size": 512,
                "intermediate_size": 768,
                "num_hidden_layers": 6,
                "num_attention_heads": 8,
                **_MODERNBERT,
            },
            axes=_TOKENS,
        ),
    )
}


def in_double(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What ``model`` gives in fp64: the reference of the numerics rule. ``model`` itself is not touched."""
    import copy

    with torch.no_grad():
        return copy.deepcopy(model).double()(*_double(args), **_double(kwargs))


def _double(value: Any) -> Any:
    from torch.utils import _pytree as pytree

    def wide(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return pytree.tree_map(wide, value)

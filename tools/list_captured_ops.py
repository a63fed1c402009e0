"""Lists the ATen ops that captures of the reference models hold: `regraft/ir/ops/captured.json`.

Each op of the list must be typed. The models are small forms with random weights; `python -m
tools.list_captured_ops` writes the list anew, which a newer torch or transformers may change.
"""

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

FILE = Path(__file__).resolve().parent.parent / "regraft" / "ir" / "ops" / "captured.json"

SIZES = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
TOKENS = {"vocab_size": 1000, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MODELS = ("bert", "gpt2", "llama", "vit", "modernbert")
IN_BF16 = ("bert", "llama")

#: Not ops on tensors: sizes, and picking one of several results.
IGNORED = frozenset({"aten.sym_size.int", "getitem"})


def small_model(name: str) -> torch.nn.Module:
    import transformers as hf

    makers: dict[str, Any] = {
        "bert": lambda: hf.BertModel(hf.BertConfig(**SIZES, vocab_size=1000)),
        "gpt2": lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(n_layer=2, n_embd=128, n_head=4, n_inner=256, vocab_size=1000, use_cache=False)
        ),
        "llama": lambda: hf.LlamaForCausalLM(
            hf.LlamaConfig(**SIZES, num_key_value_heads=2, vocab_size=1000, use_cache=False)
        ),
        "vit": lambda: hf.ViTModel(hf.ViTConfig(**SIZES)),
        "modernbert": lambda: hf.ModernBertModel(
            hf.ModernBertConfig(**SIZES, **TOKENS, cls_token_id=1, sep_token_id=2)
        ),
    }
    return makers[name]().eval()


def example(name: str, dtype: torch.dtype) -> tuple[str, torch.Tensor, int]:
    """Parameter, value and number of dynamic axes. Sizes are at least 2: export fixes an axis of 1."""
    if name == "vit":
        return "pixel_values", torch.randn(2, 3, 224, 224).to(dtype), 1
    return "input_ids", torch.randint(3, 1000, (2, 24)), 2


def captured_ops(name: str, dtype: torch.dtype, dynamic: bool) -> Iterator[str]:
    """Names of the ops in one capture, as the IR writes them."""
    parameter, value, axes = example(name, dtype)
    shapes = {parameter: dict.fromkeys(range(axes), Dim.AUTO)} if dynamic else None
    model = small_model(name).to(dtype)
    program = torch.export.export(model, (), {parameter: value}, dynamic_shapes=shapes, strict=False)
    for node in program.run_decompositions({}).graph.nodes:
        if node.op == "call_function":
            yield str(getattr(node.target, "_name", "") or node.target.__name__)


def ir_name(name: str) -> str:
    """`aten::add.Tensor` as `aten.add.Tensor`, `aten::relu` as `aten.relu`."""
    return name.replace("::", ".").removesuffix(".default")


def generate() -> dict[str, list[str]]:
    """Op -> the captures that hold it."""
    found: dict[str, set[str]] = {}
    for name in MODELS:
        for dtype in (torch.float32, torch.bfloat16) if name in IN_BF16 else (torch.float32,):
            suffix = "" if dtype == torch.float32 else "-bf16"
            for dynamic in (False, True):
                tag = f"{name}{suffix}{'-dynamic' if dynamic else ''}"
                for op in captured_ops(name, dtype, dynamic):
                    found.setdefault(ir_name(op), set()).add(tag)
    return {op: sorted(tags) for op, tags in sorted(found.items()) if op not in IGNORED}


def main() -> int:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    FILE.write_text(json.dumps(generate(), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

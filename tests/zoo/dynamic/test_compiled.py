"""The dynamic zoo compiled in one call and exported as one file, equal to eager on every path of the table.

What is refused today is in ``REFUSED`` with the line that its error names. A network there that compiles is
compared like the others.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import regraft
from regraft.errors import CaptureError, RegraftError, UnsupportedOpError
from regraft.testing import TOLERANCES, assert_close
from tests.e2e.exported import run_without_torch, write_case
from tests.models import in_double
from tests.zoo.dynamic.networks import DYNAMIC
from tests.zoo.dynamic.record import DynamicNetwork

_EXIT = "if confidence >= self.confidence_threshold:"
_END = "if word.item() == END:"
_GATE = "if mask > 0.5:"

#: The first line of each network that branches on a value, where its capture stops.
REFUSED: Mapping[str, str] = {
    "beam_search": "while steps < self.new_tokens and not finished.all():",
    "blockdrop": "if policy[t] == 1:",
    "blockdrop_batch": "if action.data.sum() == 0:",
    "captioning_googlenet": _END,
    "captioning_resnext": _END,
    "duo_llm_token": "if route == 2:",
    "duo_llm_tokens": "if index.numel() == 0:",
    "early_exit_encoder": "if i < len(self.thresholds) and logits.softmax(-1).max() > self.thresholds[i]:",
    "ffn_skip_llm": "if similarity >= self.threshold:",
    "greedy_decode": (
        "this_peer_finished = unfinished_sequences.max() == 0 or input_ids.shape[1] >= longest"
    ),
    "hrm": "if carry.halted.all():",
    "kangaroo": (
        "if step == self.draft_steps or (step > 0 and predict_score < self.threshold):  # noqa: F821"
    ),
    "neural_ode": "if d0 < 1e-5 or d1 < 1e-5:",
    "pabee": "if (patient_result is not None) and torch.all(labels.eq(patient_labels)):",
    "pabee_regression": "if (patient_result is not None) and torch.abs(",
    "palbert": "if current_cdf > self.threshold:",
    "pointer_hull": "if index.item() == 0:",
    "ranet": "if max_preds.item() >= self.thresholds[classifier_idx]:",
    "shallow_deep_mobilenet": _EXIT,
    "shallow_deep_resnet": _EXIT,
    "shallow_deep_vgg": _EXIT,
    "shallow_deep_wide_resnet": _EXIT,
    "shrinking_beams": (
        "incomplete_inds = [ind for ind, next_word in enumerate(next_word_inds) if next_word != END]"
    ),
    "skipnet_ff_skipping": _GATE,
    "skipnet_rnn_skipping": _GATE,
    "skipping_decoder": "if decision <= 0:",
}

#: Those with an op that no back end runs: rows chosen by a mask.
UNSUPPORTED = ("pointer_tour",)

#: Those that a plain run takes.
PLAIN = ("ftwt", "skipnet_rnn", "early_exit_encoder", "hrm")
ALL = [
    pytest.param(network, id=name, marks=[] if name in PLAIN else [pytest.mark.conformance])
    for name, network in DYNAMIC.items()
]


def first_input(network: DynamicNetwork) -> tuple[Tensor, ...]:
    return network.inputs(next(iter(network.small.paths.values())))


def check_refusal(network: DynamicNetwork, model: nn.Module, error: RegraftError) -> None:
    """The network is among those refused, and the error is the one for it, word by word."""
    if network.name in UNSUPPORTED:
        assert type(error) is UnsupportedOpError
        assert [op.name for op in error.ops] == ["aten.index.Tensor"]
        return
    assert type(error) is CaptureError
    line = REFUSED[network.name]
    file = inspect.getsourcefile(type(model))
    assert file is not None
    texts = Path(file).read_text(encoding="utf-8").splitlines()
    numbers = [number for number, text in enumerate(texts, start=1) if text.strip() == line]
    assert str(error) in [
        "the model branches on the value of a tensor, which one graph cannot follow\n"
        f"  at {file}:{number}\n    {line}\n  hint: compute both sides and select with torch.where"
        for number in numbers
    ]


@pytest.mark.parametrize("network", ALL)
def test_compiled(network: DynamicNetwork) -> None:
    model = network.make()
    try:
        compiled = regraft.compile(model, first_input(network))
    except RegraftError as error:
        check_refusal(network, model, error)
        return
    report = compiled.report.to_dict()
    assert list(report["executors"]) == ["ort"]
    assert report["fallbacks"] == []
    for path, seed in network.small.paths.items():
        arguments = network.inputs(seed)
        result = compiled(*arguments)
        with torch.no_grad():
            eager = model(*arguments)
        assert network.decisions(result) == path
        assert pytree.tree_structure(result) == pytree.tree_structure(eager)
        expected = _tensors(in_double(model, *arguments))
        assert_close(_tensors(result), expected, _tensors(eager), reassociates=True)


@pytest.mark.parametrize("network", ALL)
def test_exported(network: DynamicNetwork, tmp_path: Path) -> None:
    """One file for all paths; plain ONNX Runtime runs it in a process without torch."""
    model = network.make()
    (tmp_path / "folder").mkdir()
    try:
        report = regraft.export_onnx(model, first_input(network), tmp_path / "folder" / "model.onnx")
    except RegraftError as error:
        check_refusal(network, model, error)
        return
    for number, seed in enumerate(network.small.paths.values()):
        arguments = network.inputs(seed)
        inputs = dict(zip(report.inputs, arguments, strict=True))
        outputs = dict(zip(report.outputs, _tensors(in_double(model, *arguments)), strict=True))
        write_case(tmp_path / "folder" / str(number), inputs, outputs)
    errors = run_without_torch(tmp_path)["folder"]["errors"]
    assert set(errors) == set(report.outputs)
    assert all(len(each) == len(network.small.paths) for each in errors.values())
    assert max(max(each) for each in errors.values()) <= TOLERANCES[torch.float32]


def _tensors(result: Any) -> list[Tensor]:
    """The leaves; a number that the data decide, such as the index of an exit, may come as a tensor."""
    return [leaf if isinstance(leaf, Tensor) else torch.tensor(leaf) for leaf in pytree.tree_leaves(result)]

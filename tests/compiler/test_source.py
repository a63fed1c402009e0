"""Which files of a stack trace are the user's."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch

import regraft
from regraft.compiler.capture.source import is_users

INSTALLED = Path(sysconfig.get_path("purelib"))


def test_libraries_whose_names_begin_like_torchs_or_ours_are_not_theirs() -> None:
    assert is_users(f"{Path(torch.__file__).parent}vision/models/resnet.py")
    assert is_users(f"{Path(regraft.__file__).parent}_models/net.py")
    assert is_users(str(INSTALLED / "transformers" / "modeling.py"))


def test_torch_and_regraft_and_generated_code_are_not_the_users() -> None:
    assert not is_users(torch.__file__)
    assert not is_users(regraft.__file__)
    assert not is_users("<eval_with_key>.1")


def test_torchs_examples_are() -> None:
    assert is_users(f"{Path(torch.__file__).parent}/_export/db/examples/cond_branch.py")

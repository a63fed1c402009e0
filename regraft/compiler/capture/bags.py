"""Calls of ``torch.nn.EmbeddingBag``, whose further results only a gradient needs."""

# torch's fx classes are partly untyped.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from torch.fx import Node

from regraft.ir import BAG_MODES, Builder, Value

_BAGS = ("aten._embedding_bag", "aten._embedding_bag_forward_only")


def gives_bags(name: str, node: Node) -> bool:
    """Whether ``node``, a call of the op ``name``, is asked for nothing but its bags."""
    return name in _BAGS and all(user.target is operator.getitem and user.args[1] == 0 for user in node.users)


def bags(arguments: Mapping[str, Any], builder: Builder) -> Value:
    """The bags of a call with ``arguments``, by schema name."""
    return builder.rg.embedding_bag(
        arguments["weight"],
        arguments["indices"],
        arguments["offsets"],
        arguments.get("per_sample_weights"),
        BAG_MODES[arguments.get("mode", 0)],
        arguments.get("include_last_offset", False),
        arguments.get("padding_idx", -1),
    )

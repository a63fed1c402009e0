"""The dynamic networks by name."""

from __future__ import annotations

from collections.abc import Mapping

from tests.zoo.dynamic import (
    blockdrop,
    captioning,
    early_exit_bert,
    ode,
    pointer,
    recurrent,
    shallow_deep,
    skipnet,
    workloads,
)
from tests.zoo.dynamic.record import DynamicNetwork

FAMILIES = (
    blockdrop,
    captioning,
    early_exit_bert,
    ode,
    pointer,
    recurrent,
    shallow_deep,
    skipnet,
    workloads,
)

DYNAMIC: Mapping[str, DynamicNetwork] = {
    network.name: network for family in FAMILIES for network in family.NETWORKS
}

"""The dynamic networks by name."""

from __future__ import annotations

from collections.abc import Mapping

from tests.zoo.dynamic import (
    blockdrop,
    captioning,
    duo_llm,
    early_exit_bert,
    evit,
    ffn_skip,
    ftwt,
    generate,
    hrm,
    kangaroo,
    ode,
    pointer,
    ranet,
    recurrent,
    shallow_deep,
    skipnet,
    workloads,
)
from tests.zoo.dynamic.record import DynamicNetwork

FAMILIES = (
    blockdrop,
    captioning,
    duo_llm,
    early_exit_bert,
    evit,
    ffn_skip,
    ftwt,
    generate,
    hrm,
    kangaroo,
    ode,
    pointer,
    ranet,
    recurrent,
    shallow_deep,
    skipnet,
    workloads,
)

DYNAMIC: Mapping[str, DynamicNetwork] = {
    network.name: network for family in FAMILIES for network in family.NETWORKS
}

"""The rewrites that regraft ships, in families, and the passes that apply them.

A family is an explicit tuple; the order within one never matters (see ``regraft.ir.in_order``).
``default_passes`` is the part of the pipeline that works on the IR alone.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence

from regraft.ir import Pass, Rewrite
from regraft.rewrites import batching, dynamic, fold, linear, sequence
from regraft.rewrites.activation import ACTIVATION
from regraft.rewrites.attention import ATTENTION
from regraft.rewrites.canonical import CANONICAL, CanonicalSpellings
from regraft.rewrites.convolution import CONVOLUTION
from regraft.rewrites.dynamic import DYNAMIC
from regraft.rewrites.ffn import FFN
from regraft.rewrites.fold import FOLD
from regraft.rewrites.linear import LINEAR
from regraft.rewrites.norm import NORM
from regraft.rewrites.sequence import SEQUENCE
from regraft.rewrites.simplify import Simplify

__all__ = [
    "ACTIVATION",
    "ATTENTION",
    "CANONICAL",
    "CONVOLUTION",
    "DYNAMIC",
    "FAMILIES",
    "FFN",
    "FOLD",
    "LINEAR",
    "NORM",
    "SEQUENCE",
    "CanonicalSpellings",
    "Simplify",
    "batching",
    "catalogue",
    "default_passes",
    "dynamic",
    "fold",
    "linear",
    "sequence",
]

#: Family name -> its rewrites.
FAMILIES: dict[str, tuple[Rewrite, ...]] = {
    "canonical": CANONICAL,
    "fold": FOLD,
    "dynamic": DYNAMIC,
    "sequence": SEQUENCE,
    "norm": NORM,
    "convolution": CONVOLUTION,
    "activation": ACTIVATION,
    "attention": ATTENTION,
    "linear": LINEAR,
    "ffn": FFN,
}

_STAGES = ("canonicalize", "fold", "recover", "algebra", "fuse")


def default_passes(rewrites: Sequence[Rewrite] = (), without: Collection[str] = ()) -> tuple[Pass, ...]:
    """The passes of a compile up to ``fuse``, with a user's ``rewrites`` beside the shipped ones.

    Those named by ``without`` are left out; the canonical ones, which others rely on, cannot be.

    Every stage applies its rewrites together with the canonical ones, to a common fixpoint, so that the
    normal form holds between stages; and then gathers constants and removes what is left unused. Those of
    conditions and loops belong to every stage from ``fold`` on, since each stage may find a constant, a dead
    value or a common one. The passes hold nothing of a compile: those without ``rewrites`` are made once.
    """
    return _shipped(frozenset(without)) if not rewrites else _passes(rewrites, without)


@functools.lru_cache(maxsize=16)
def _shipped(without: frozenset[str]) -> tuple[Pass, ...]:
    return _passes((), without)


def _passes(rewrites: Sequence[Rewrite], without: Collection[str]) -> tuple[Pass, ...]:
    shipped = [r for family in FAMILIES.values() for r in family if r in CANONICAL or r.name not in without]
    passes: list[Pass] = []
    for stage in _STAGES:
        own = [r for r in (*shipped, *rewrites) if r.stage == stage and r not in (*CANONICAL, *DYNAMIC)]
        passes += _stage_passes(stage, own)
    return tuple(passes)


def _stage_passes(stage: str, rewrites: Sequence[Rewrite]) -> list[Pass]:
    if stage == "canonicalize":
        return [Simplify(f"{stage}.rewrite", stage, (*CANONICAL, *rewrites))]
    simplify = Simplify(f"{stage}.rewrite", stage, (*CANONICAL, *DYNAMIC, *rewrites))
    first: list[Pass] = [simplify]
    if stage == "fold":
        first.append(fold.ConstantIndices(f"{stage}.indices", stage, before=(simplify.name,)))
    merge = fold.CommonSubexpressions(f"{stage}.merge", stage, after=(simplify.name,))
    # Index arithmetic stays readable until attention has been recovered.
    constants = fold.ConstantRecipes(f"{stage}.constants", stage, (merge.name,), generated=stage != "fold")
    sweep = fold.DeadCode(f"{stage}.sweep", stage, after=(constants.name,))
    return [*first, merge, constants, sweep]


def catalogue() -> list[tuple[str, str, str, str]]:
    """For each shipped rewrite: family, name, the equation of its docstring, exactness."""
    return [
        (family, rewrite.name, _equation(rewrite), str(rewrite.exactness))
        for family, rewrites in FAMILIES.items()
        for rewrite in sorted(rewrites, key=lambda r: r.name)
    ]


def _equation(rewrite: Rewrite) -> str:
    """The first paragraph of the docstring, on one line."""
    paragraph = (type(rewrite).__doc__ or "").strip().split("\n\n")[0]
    return " ".join(paragraph.split())

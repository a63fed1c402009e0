"""The plug-in ``acme`` of regraft: an op, a rewrite that writes it, and a back end that runs it."""

from __future__ import annotations

from regraft import Plugin
from regraft_acme.backend import NumpyBackend, load
from regraft_acme.ops import SOFT_CAP
from regraft_acme.rewrites import RecoverSoftCap

__all__ = ["SOFT_CAP", "NumpyBackend", "RecoverSoftCap", "load", "plugin"]

plugin = Plugin(
    "acme",
    rewrites=(RecoverSoftCap,),
    ops=(SOFT_CAP,),
    backends=(NumpyBackend,),
    loaders={NumpyBackend.name: load},
)

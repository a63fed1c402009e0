"""The compile cache: rewritten graphs on disk, found by what they depend on.

``key`` describes a compile before anything is captured (``values`` walks the model's Python, ``tensors``
its modules and weights' metadata), ``entry`` is the graph as bytes, ``folder`` the files, ``session`` what
``compile`` does with them; ``code`` keeps what back ends built.
"""

from __future__ import annotations

from regraft.compiler.cache.code import CodeCache
from regraft.compiler.cache.folder import DEFAULT_LIMIT, CacheFolder, Stored, default_folder
from regraft.compiler.cache.key import Key, key_of
from regraft.compiler.cache.session import Session, cache_path
from regraft.compiler.cache.values import Uncacheable

__all__ = [
    "DEFAULT_LIMIT",
    "CacheFolder",
    "CodeCache",
    "Key",
    "Session",
    "Stored",
    "Uncacheable",
    "cache_path",
    "default_folder",
    "key_of",
]

"""What the plug-ins that a user names add to the loading of an artefact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from regraft.errors import ArtefactError
from regraft.plugins import Plugin, find_plugins, installed_plugins


@dataclass(frozen=True)
class Added:
    """Loaders of executables by back end, and libraries of ONNX Runtime kernels by domain.

    An artefact names a back end or a domain; what is loaded for it is found here, and nowhere else.
    ``native`` are the back ends whose loaders run machine code from the artefact. A library of kernels is
    none of the artefact's: who names the plug-in has installed it, and lets it run by naming it.
    """

    loaders: Mapping[str, Callable[[Any, Any], Any]] = field(default_factory=dict[str, Any])
    libraries: Mapping[str, str] = field(default_factory=dict[str, str])
    native: frozenset[str] = frozenset()

    @staticmethod
    def by(plugins: Sequence[str | Plugin], taken: Sequence[str]) -> Added:
        """What ``plugins`` add; ``taken`` are the back ends that have a loader already.

        Raises:
            PluginError: one cannot be found, or loads for a back end that another one loads for.
        """
        loaders: dict[str, Callable[[Any, Any], Any]] = {}
        libraries: dict[str, str] = {}
        native: set[str] = set()
        for named in find_plugins(plugins):
            native |= set(named.plugin.native)
            for name, load in named.plugin.loaders.items():
                if name in loaders or name in taken:
                    raise named.refuse(f"it loads for the back end '{name}', which has a loader already")
                loaders[name] = load
            for onnx in (getattr(op, "onnx", None) for op in named.plugin.ops):
                if onnx is not None and onnx.library is not None:
                    libraries[onnx.domain] = onnx.library
        return Added(loaders, libraries, frozenset(native))

    def loader(self, backend: str) -> Callable[[Any, Any], Any]:
        """The loader of a back end that regraft does not have.

        Raises:
            ArtefactError: no plug-in that was named has it.
        """
        if backend not in self.loaders:
            raise ArtefactError(
                f"it needs the back end '{backend}', which this version does not know; {_ask()}"
            )
        return self.loaders[backend]

    def library(self, domain: str) -> str:
        """The library with the kernels of ``domain``.

        Raises:
            ArtefactError: no plug-in that was named has it.
        """
        if domain not in self.libraries:
            raise ArtefactError(f"it needs the ONNX Runtime kernels of the domain '{domain}'; {_ask()}")
        return self.libraries[domain]


def _ask() -> str:
    names = ", ".join(sorted(installed_plugins())) or "none"
    return f"name the plug-in that has them, load(path, plugins=[...]); installed plug-ins: {names}"

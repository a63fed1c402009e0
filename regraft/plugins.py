"""Plug-ins: rewrites, passes, ops and back ends under one name.

A package announces a plug-in by an entry point of the group ``regraft.plugins`` that gives a ``Plugin``.
It is imported when a user names it, and never otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from regraft.errors import PluginError, no_such, shown

GROUP = "regraft.plugins"


@dataclass(frozen=True)
class Plugin:
    """What ``plugins=[...]`` adds to a compile, an export or a load.

    Fields:
        name: what it is called, without dots.
        rewrites: classes or instances of ``Rewrite``; they are applied beside regraft's own.
        passes: pairs ``(stage, Pass)``.
        ops: definitions of ops (``OpDef``).
        backends: classes or instances of ``Backend``; they run nothing until ``backends=[...]`` names them.
        loaders: back end name -> ``load(record, reader)``, which makes its executables from an artefact.
        native: those of ``loaders`` that run machine code from the artefact's files: ``load`` calls them
            with ``allow_native=True`` only.
    """

    name: str
    rewrites: Sequence[Any] = ()
    passes: Sequence[tuple[str, Any]] = ()
    ops: Sequence[Any] = ()
    backends: Sequence[Any] = ()
    loaders: Mapping[str, Callable[[Any, Any], Any]] = field(default_factory=dict[str, Any])
    native: Sequence[str] = ()


@dataclass(frozen=True)
class NamedPlugin:
    """A plug-in that a user named, and the package that it came from ("" when it was given as an object)."""

    plugin: Plugin
    package: str = ""

    def refuse(self, message: str, hint: str = "") -> PluginError:
        """The error that says ``message`` of this plug-in."""
        return PluginError(message, self.plugin.name, self.package, hint or _report_to(self.package))


def find_plugins(wanted: Sequence[str | Plugin]) -> tuple[NamedPlugin, ...]:
    """The plug-ins that a user names, or gives as objects, in their order.

    Raises:
        PluginError: one is not installed, two packages have it, it cannot be imported, or it is no
            ``Plugin``.
    """
    if isinstance(wanted, (str, Plugin)):
        raise PluginError("'plugins' is not a list", hint=f"write plugins=[{shown(wanted)}]")
    found: dict[str, NamedPlugin] = {}
    for entry in wanted:
        named = _installed(entry) if isinstance(entry, str) else _given(entry)
        _check_parts(named)
        if named.plugin.name in found:
            raise named.refuse(f"two plug-ins are called '{named.plugin.name}'", "name it once")
        found[named.plugin.name] = named
    return tuple(found.values())


def installed_plugins() -> dict[str, str]:
    """Names of the installed plug-ins -> their packages; none of them is imported."""
    return {entry.name: _package_of(entry) for entry in entry_points(group=GROUP)}


def _installed(name: str) -> NamedPlugin:
    entries = list(dict.fromkeys(entry_points(group=GROUP, name=name)))
    if not entries:
        raise PluginError(
            no_such("plug-in", name, installed_plugins()), name, hint="pip install the package that has it"
        )
    packages = [_package_of(entry) for entry in entries]
    if len(entries) > 1:
        raise PluginError(
            "two packages have a plug-in of this name", name, " and ".join(packages), "uninstall one of them"
        )
    (entry,), (package,) = entries, packages
    try:
        plugin = entry.load()
    except Exception as error:
        raise PluginError(
            f"the plug-in cannot be imported: {type(error).__name__}: {error}",
            name,
            package,
            f"see that `import {entry.module}` works: install what it needs, or a version for this regraft",
        ) from error
    if not isinstance(plugin, Plugin):
        raise PluginError(
            f"'{entry.value}' is a {type(plugin).__name__}, not a regraft.Plugin",
            name,
            package,
            _report_to(package),
        )
    if plugin.name != name:
        raise PluginError(
            f"the plug-in calls itself '{plugin.name}'; its entry point says '{name}'",
            name,
            package,
            _report_to(package),
        )
    return NamedPlugin(plugin, package)


def _given(entry: object) -> NamedPlugin:
    if not isinstance(entry, Plugin):
        raise PluginError(f"a plug-in is a name or a regraft.Plugin, not {shown(entry)}")
    return NamedPlugin(entry)


def _check_parts(named: NamedPlugin) -> None:
    """Refuse a plug-in whose fields have the wrong form; what is in them is checked where it is used."""
    plugin = named.plugin
    if not isinstance(plugin.name, str) or not plugin.name or "." in plugin.name:
        raise named.refuse(f"{plugin.name!r} is not a name of a plug-in: it is a text without dots")
    for part in ("rewrites", "passes", "ops", "backends"):
        value = getattr(plugin, part)
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise named.refuse(f"its '{part}' is {shown(value)}, not a list")
    loaders: Any = plugin.loaders
    if not isinstance(loaders, Mapping) or not all(callable(load) for load in loaders.values()):
        raise named.refuse("its 'loaders' is not a dict of functions by the names of back ends")
    native: Any = plugin.native
    if isinstance(native, str) or not isinstance(native, Sequence) or not set(native) <= set(loaders):
        raise named.refuse("its 'native' is not a list of names of its 'loaders'")


def _package_of(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value


def _report_to(package: str) -> str:
    return f"this is for the authors of {package} to mend" if package else "mend the Plugin"

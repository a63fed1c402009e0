"""One compile's dealings with the cache: its key, the entry that serves it, the entry it leaves."""

# The model is of any type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from regraft.compiler.cache.entry import (
    DamagedEntry,
    Entry,
    Unstorable,
    describe_module,
    restore_module,
    restore_signature,
)
from regraft.compiler.cache.folder import CacheFolder, default_folder
from regraft.compiler.cache.key import Key, key_of, version_of
from regraft.compiler.cache.tensors import TooLarge, content_hash
from regraft.compiler.cache.values import Uncacheable
from regraft.compiler.capture import as_module
from regraft.compiler.choose import Choice
from regraft.compiler.materialise import tensor_of
from regraft.compiler.options import Options
from regraft.compiler.progress import Phases
from regraft.compiler.report import CacheOutcome, Report
from regraft.errors import ArtefactError, OptionError, RegraftError
from regraft.ir import Leaf, Module, RewriteStats

#: How many entries of the same model are compared to say what has changed.
_COMPARED = 16


class Stale(Exception):
    """An entry fits the key, but not the values of this model's tensors."""


@dataclass
class Session:
    """The cache as one compile sees it.

    Fields:
        outcome: what came of it, for the report.
        folder: where entries are; None when nothing is looked up or stored.
        key: the compile's key, once ``folder`` is not None.
        model: what holds the constants by their names: the model, or the module that stands for a function.
    """

    outcome: CacheOutcome
    folder: CacheFolder | None = None
    key: Key | None = None
    model: Any = None

    @staticmethod
    def begin(
        model: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
        shapes: Any,
        options: Options,
        phases: Phases | None = None,
    ) -> Session:
        """The session of ``compile(model, args, ...)``. That it cannot be cached is an outcome, no error."""
        path = cache_path(options.cache)
        if path is None:
            reason = "REGRAFT_CACHE_DIR is empty, or there is no home" if options.cache else "cache=False"
            return Session(CacheOutcome("off", reason))
        if options.dump is not None or options.verify == "each":
            asked = "dump" if options.dump is not None else "verify='each'"
            return Session(CacheOutcome("not cached", f"{asked} looks at every pass"))
        if options.adapters.names:
            return Session(CacheOutcome("not cached", "adapters= are read anew"))
        if options.budget is not None:
            return Session(CacheOutcome("not cached", "tune=True measures what is not known yet"))
        if options.approximates and not options.verify:
            return Session(CacheOutcome("not cached", "what approximations change is measured anew"))
        try:
            with (phases or Phases()).phase("cache"):
                key = key_of(model, args, kwargs, shapes, options)
        except (Uncacheable, OptionError) as error:  # what is no model is for capture to refuse
            return Session(CacheOutcome("not cached", str(error)))
        return Session(CacheOutcome("miss", ""), CacheFolder(path), key, as_module(model))

    # -- looking up ------------------------------------------------------------------------------

    def find(self, defaults: Mapping[str, Any], options: Options, report: Report) -> Module | None:
        """The rewritten module of this compile over the model's tensors; None when no entry serves.

        ``report`` is filled with what the compile that made the entry had reported.
        """
        if self.folder is None or self.key is None:
            return None
        name = _file_name(self.key)
        try:
            content = self.folder.read(name)
            if content is None:
                return self.miss(self._difference())
            entry = Entry.unpack(content)
            if dict(entry.components) != dict(self.key.components):
                raise DamagedEntry("it is for another compile")
            module = _bound(entry, self.model, defaults, options)
            _fill(report, entry.report)
            return module
        except (DamagedEntry, ArtefactError) as error:
            message = error.message if isinstance(error, ArtefactError) else str(error)
            return self.miss(f"the entry cannot be used, {message}")
        except Stale as error:
            return self.miss(str(error))

    def miss(self, reason: str) -> None:
        """Note that no entry serves, and why."""
        self.outcome = CacheOutcome("miss", reason, self._path())

    def hit(self) -> None:
        """Note that the entry serves."""
        self.outcome = CacheOutcome("hit", "", self._path())

    def _path(self) -> str | None:
        if self.folder is None or self.key is None:
            return None
        return str(self.folder.path / f"{_file_name(self.key)}.entry")

    def _difference(self) -> str:
        """What has changed since the most similar entry of the same model."""
        assert self.key is not None
        ours = self.key.components
        closest = min(self._others(), key=lambda other: _distance(ours, other), default=None)
        if closest is None:
            return f"nothing is stored for {self.key.model}"
        return _first_difference(ours, closest)

    def _others(self) -> Iterator[Mapping[str, str]]:
        assert self.folder is not None
        assert self.key is not None
        prefix = _prefix(self.key.model)
        similar = [s for s in self.folder.entries() if s.path.name.startswith(prefix)]
        for stored in similar[:_COMPARED]:
            try:
                content = self.folder.peek(stored.path)
                if content is not None:
                    yield Entry.unpack(content).components
            except (DamagedEntry, ArtefactError):
                continue  # it will be replaced when its own compile comes

    # -- storing ---------------------------------------------------------------------------------

    def describe(self, module: Module, read: Sequence[Leaf], report: Report) -> Entry | None:
        """The entry for a module that has been through all passes; None when it cannot be stored."""
        if self.folder is None or self.key is None:
            return None
        try:
            hashes = {leaf.name: content_hash(leaf.storage) for leaf in read}
            ir, signatures, leaves = describe_module(module, self.model)
        except (Unstorable, TooLarge) as error:
            return self.not_cached(str(error))
        reported = report.to_dict()
        kept = {k: reported[k] for k in ("captured", "passes", "rewrites", "flops", "bytes")}
        kept["choices"] = [asdict(choice) for choice in report.choices]
        return Entry(self.key.model, self.key.components, ir, signatures, leaves, hashes, kept)

    def store(self, entry: Entry | None) -> None:
        """Write an entry. That it cannot be written is an outcome, no error."""
        if entry is None or self.folder is None or self.key is None:
            return
        head = {
            "created": time.time(),
            "regraft": version_of("regraft"),
            "torch": torch.__version__,
            "key": self.key.digest,
        }
        try:
            self.folder.write(_file_name(self.key), entry.pack(head))
        except Unstorable as error:
            self.not_cached(str(error))
        except OSError as error:
            self.not_cached(f"{self.folder.path} cannot be written: {error.strerror}")

    def not_cached(self, reason: str) -> None:
        """Note that this compile is not kept, and why."""
        before = f"; before that: {self.outcome.reason}" if self.outcome.reason else ""
        self.outcome = CacheOutcome("not cached", f"{reason}{before}")


def _bound(entry: Entry, model: Any, defaults: Mapping[str, Any], options: Options) -> Module:
    """``entry`` over the tensors of ``model``.

    Raises:
        DamagedEntry: the entry is not sound.
        Stale: a tensor whose value shaped the graph has another value now.
    """
    for name, expected in entry.read.items():
        try:
            found = content_hash(tensor_of(model, name))
        except (TooLarge, RegraftError) as error:
            raise Stale(f"'{name}', whose value a pass has read, cannot be compared") from error
        if found != expected:
            raise Stale(f"the value of '{name}', which a pass has read, changed")
    tensors = {
        name: _tied(model, record.names or (record.name,))
        for name, record in entry.leaves.items()
        if record.literal is None
    }
    module = restore_module(entry, options.table, tensors)
    for function in module.functions.values():
        restore_signature(entry, function, defaults)
    return module


def _fill(report: Report, found: Mapping[str, Any]) -> None:
    """Report what the compile that made the entry had reported.

    Raises:
        DamagedEntry: it is not a report.
    """
    try:
        captured = {str(name): int(count) for name, count in found["captured"].items()}
        passes = [(str(p["name"]), float(p["seconds"])) for p in found["passes"]]
        rewrites = {str(name): _stats(record) for name, record in found["rewrites"].items()}
        flops, bytes_ = (
            {str(when): int(count) for when, count in found[each].items()} for each in ("flops", "bytes")
        )
        choices = [_choice(record) for record in found["choices"]]
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DamagedEntry(f"its report is malformed: {error!r}") from error
    report.captured, report.passes, report.rewrites = captured, passes, rewrites
    report.flops, report.bytes, report.choices = flops, bytes_, choices


def _stats(record: Mapping[str, Any]) -> RewriteStats:
    declined = {str(reason): int(count) for reason, count in record["declined"].items()}
    return RewriteStats(int(record["hits"]), declined, float(record["seconds"]))


def _choice(record: Mapping[str, Any]) -> Choice:
    changed: dict[str, Any] = {name: tuple(record[name]) for name in ("forms", "cuts", "order", "layers")}
    values: dict[str, Callable[[Any], Any]] = {
        "times": lambda each: tuple(map(float, each)),
        "estimated": lambda each: tuple(map(float, each)),
        "based_on": lambda each: tuple(map(int, each)),
        "noise": float,
        "why": str,
    }
    for name, value in values.items():
        changed[name] = {int(rows): value(each) for rows, each in record[name].items()}
    return Choice(**{**record, **changed})


def _tied(model: Any, names: Sequence[str]) -> torch.Tensor:
    """The tensor that ``model`` has under all of ``names``."""
    try:
        tensors = [tensor_of(model, name) for name in names]
    except RegraftError as error:
        raise DamagedEntry(error.message) from error
    if any(t.data_ptr() != tensors[0].data_ptr() for t in tensors):
        raise DamagedEntry(f"{' and '.join(names)} are not tied")
    return tensors[0].detach()


def cache_path(cache: bool | Path) -> Path | None:
    """The folder that the option ``cache`` stands for; None where nothing is to be cached."""
    if isinstance(cache, Path):
        return cache
    return default_folder() if cache else None


def _prefix(model: str) -> str:
    return f"{hashlib.sha256(model.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}-"


def _file_name(key: Key) -> str:
    return f"{_prefix(key.model)}{key.digest}"


def _distance(ours: Mapping[str, str], other: Mapping[str, str]) -> int:
    return len(set(ours.items()) ^ set(other.items()))


def _first_difference(ours: Mapping[str, str], other: Mapping[str, str]) -> str:
    for name, value in ours.items():
        before = other.get(name)
        if before is None:
            continue  # what leads to a new component has changed as well
        if before != value:
            shown = value.startswith("#") or before.startswith("#")
            return f"{name} changed" if shown else f"{name}: {before} -> {value}"
    added = [name for name in ours if name not in other]
    removed = [name for name in other if name not in ours]
    return f"{added[0]} is new" if added else f"{removed[0]} is gone" if removed else "the order changed"

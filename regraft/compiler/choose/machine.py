"""What the machine can do: the few numbers that the cost model reads.

They are measured once through the executor that will run the plans, in a few seconds, and stored. Without
a measurement the defaults below stand: rough figures of current CPUs, since only ratios between forms of
one computation matter.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from regraft.backends import LowerOptions, backend
from regraft.errors import OptionError
from regraft.graphs import GraphConstants
from regraft.ir import OPS, Builder, DType, Function, Leaf, Region, TensorType, Value
from regraft.runtime import cpu_features, cpu_model

_FORMAT = 1

#: The vector extensions that kernels are chosen by.
_VECTORS = frozenset({"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve"})


#: What the times of a back end depend on beside torch and ONNX Runtime, by the names of packages.
_LIBRARIES = {"tvm": ("apache-tvm",)}
#: What ``machine_name`` makes.
_NAME = re.compile(r"(?P<executor>.+?) on .*; threads (?P<threads>\d+); .*")


@dataclass(frozen=True)
class MachineProfile:
    """Speeds of one machine with one executor.

    Fields:
        name: CPU, threads and library versions that the figures hold for.
        memory_bandwidth: bytes per second of a read from main memory.
        cache_bandwidth: bytes per second of an elementwise op over values in the cache.
        peak: f32 operations per second of a large matrix product.
        efficiency: pairs of rows and the fraction of ``peak`` that a product with so many rows reaches.
        op_overhead: seconds that an op takes besides its work.
        measured: whether this was measured here.
    """

    name: str
    memory_bandwidth: float = 40e9
    cache_bandwidth: float = 80e9
    peak: float = 150e9
    efficiency: tuple[tuple[int, float], ...] = ((1, 0.1), (4, 0.35), (16, 0.7), (64, 0.9), (256, 1.0))
    op_overhead: float = 2e-6
    measured: bool = False

    def efficiency_at(self, rows: float) -> float:
        """The fraction of ``peak`` at ``rows`` rows, interpolated over their logarithm."""
        low_rows, low = self.efficiency[0]
        for high_rows, high in self.efficiency:
            if rows <= high_rows:
                if high_rows == low_rows:
                    return high
                share = math.log(max(rows, low_rows) / low_rows) / math.log(high_rows / low_rows)
                return low + share * (high - low)
            low_rows, low = high_rows, high
        return low

    def to_dict(self) -> dict[str, Any]:
        """The profile as JSON values."""
        return dataclasses.asdict(self)


def machine_name(threads: int | None = None, executor: str = "ort") -> str:
    """What a profile, or a measured time, depends on besides the computation.

    ``executor`` is the back end that was timed, or several that were compared, joined by ``+``; a profile is
    measured through ONNX Runtime.
    """
    flags = ",".join(sorted(_VECTORS & cpu_features()))
    others = [package for name in executor.split("+") for package in _LIBRARIES.get(name, ())]
    packages = ("torch", "onnxruntime", *others)
    versions = ",".join(f"{p} {_version(p)}" for p in packages)
    cpu = f"{platform.machine()} {cpu_model()} [{flags}]"
    return f"{executor} on {cpu}; threads {threads or cores()}; {versions}"


@functools.cache
def _version(package: str) -> str:
    """The version of an installed package, which takes a file to be parsed.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    return metadata.version(package)


def holds_here(name: str) -> bool:
    """Whether what was measured under this name counts here, with as many threads as it was measured with."""
    found = _NAME.fullmatch(name)
    try:
        return found is not None and machine_name(int(found["threads"]), found["executor"]) == name
    except metadata.PackageNotFoundError:  # of a back end whose library is not installed
        return False


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# -- storing -----------------------------------------------------------------------------------


def default_profile(threads: int | None = None) -> MachineProfile:
    """Figures for a machine that was not measured."""
    return MachineProfile(machine_name(threads))


def load_profile(folder: Path | None, threads: int | None = None) -> MachineProfile:
    """The profile that was measured on this machine, or the defaults.

    A file that is damaged, or of another machine or version, counts as not there.
    """
    name = machine_name(threads)
    try:
        if folder is None:
            return MachineProfile(name)
        content: Any = json.loads(_path(folder).read_text())
        record: dict[str, Any] = content["profiles"][name] if content["format"] == _FORMAT else {}
        record["efficiency"] = tuple((int(rows), float(share)) for rows, share in record["efficiency"])
        return MachineProfile(**record)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return MachineProfile(name)


def store_profile(profile: MachineProfile, folder: Path) -> None:
    """Write ``profile`` beside those of other settings, whole or not at all.

    Raises:
        OptionError: the folder cannot be written.
    """
    path = _path(folder)
    try:
        content = json.loads(path.read_text())
        profiles = dict(content["profiles"]) if content["format"] == _FORMAT else {}
    except (OSError, ValueError, LookupError, TypeError):
        profiles = {}
    profiles[profile.name] = profile.to_dict()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".tmp", delete=False) as file:
            json.dump({"format": _FORMAT, "profiles": profiles}, file, indent=1)
        os.replace(file.name, path)
    except OSError as error:
        raise OptionError(f"the machine profile cannot be written to {path}: {error.strerror}") from error


def _path(folder: Path) -> Path:
    return folder / "machine.json"


# -- measuring ---------------------------------------------------------------------------------


def measure_profile(threads: int | None = None) -> MachineProfile:
    """Measure this machine through ONNX Runtime; takes a few seconds."""
    executor = _Executor(threads)
    rows = (1, 4, 16, 64, 256)
    speeds = [2 * r * 1024 * 1024 / executor.linear(r, 1024, 1024) for r in rows]
    peak = max(speeds)
    one, many = executor.chain(1, 16), executor.chain(33, 16)
    elements = 1 << 20
    # The chain reads and writes its values; the first link's overhead is taken off.
    copy = (executor.chain(9, elements) - executor.chain(1, elements)) / 8
    return MachineProfile(
        machine_name(threads),
        memory_bandwidth=4 * 4096 * 6144 / executor.linear(1, 4096, 6144),
        cache_bandwidth=8 * elements / max(copy, 1e-7),
        peak=peak,
        efficiency=tuple((r, speed / peak) for r, speed in zip(rows, speeds, strict=True)),
        op_overhead=max((many - one) / 32, 1e-8),
        measured=True,
    )


class _Executor:
    """Times small functions on ONNX Runtime, in seconds."""

    def __init__(self, threads: int | None) -> None:
        self.backend = backend("ort")
        self.options = LowerOptions(threads)

    def linear(self, rows: int, inner: int, outer: int) -> float:
        type = TensorType(DType.F32, (outer, inner))
        weight = Leaf("weight", type, torch.full((outer, inner), 0.5))
        return self._time((rows, inner), lambda b, x: b.aten.linear(x, b.constant(weight)))

    def chain(self, length: int, elements: int) -> float:
        def build(b: Builder, x: Value) -> Value:
            for _ in range(length):
                x = b.aten.abs(x)
            return x

        return self._time((elements,), build)

    def _time(self, shape: Sequence[int], build: Callable[[Builder, Value], Value]) -> float:
        region = Region([TensorType(DType.F32, tuple(shape))])
        builder = Builder(OPS, region)
        builder.create("cf.yield", ((build(builder, region.args[0]),),))
        executable = self.backend.lower(Function("probe", region), GraphConstants(), self.options)
        x = torch.full(tuple(shape), 0.5)
        return median_seconds(lambda: executable.run([x], {}), budget=0.4)


def median_seconds(call: Callable[[], object], budget: float, least: int = 9) -> float:
    """The median time of ``call``, called for about ``budget`` seconds and at least ``least`` times."""
    call()
    times: list[float] = []
    deadline = time.perf_counter() + budget
    while len(times) < least or (time.perf_counter() < deadline and len(times) < 1000):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)

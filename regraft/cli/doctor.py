"""``regraft doctor``: what this machine has and can do."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from regraft.cli.output import Json, Output, Quiet, Verbose
from regraft.errors import OptionError

_REQUIRED = ("torch", "onnxruntime", "onnx", "onnx-ir", "sympy", "numpy", "safetensors")
#: Package -> the extra of regraft that brings it, and what it is for.
_OPTIONAL: Mapping[str, tuple[str, str]] = {
    "transformers": ("demo", "models of the demo"),
    "onnxscript": ("bench", "torch.onnx as a peer in bench"),
    "matplotlib": ("plot", "drawings of regraft tune"),
    "apache-tvm": ("tvm", "kernels built by TVM"),
}
#: What decides which kernels a CPU can run, of the flags that the kernel lists.
_FEATURES = (
    "avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8",
    "asimd", "sve", "i8mm", "bf16",
)  # fmt: skip


def doctor_command(
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Measure this machine for estimates, and keep the figures."),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show versions, back ends and what this machine can do."""
    output = Output(as_json, quiet, verbose)
    with output.working("doctor"):
        if measure:
            _measure()
        findings = _findings()
    output.show(findings, _table(findings))


def _measure() -> None:
    """Measure the machine and keep its profile.

    Raises:
        OptionError: there is no folder to keep it in.
    """
    from regraft.compiler import choose, state_folder

    folder = state_folder()
    if folder is None:
        raise OptionError("there is no folder for the profile; set REGRAFT_CACHE_DIR to one")
    choose.store_profile(choose.measure_profile(), folder)


def machine() -> dict[str, Any]:
    """Versions and processor, as figures need them beside themselves."""
    import regraft

    return {
        "regraft": {"version": regraft.__version__, "folder": str(Path(regraft.__file__).parent)},
        "python": f"{platform.python_version()} on {platform.machine()}, {platform.system()}",
        "cpu": _cpu(),
        "threads": _threads(),
        "packages": {name: _version(name) for name in _REQUIRED},
    }


def _findings() -> dict[str, Any]:
    return {
        **machine(),
        "backends": _backends(),
        "profile": _profile(),
        "cache": _cache(),
        "tuning": _tuning(),
        "optional": {
            name: {"version": _version(name), "get": f"pip install 'regraft[{extra}]'", "for": purpose}
            for name, (extra, purpose) in _OPTIONAL.items()
        },
    }


def _cpu() -> dict[str, Any]:
    from regraft.runtime import cpu_features, cpu_model

    known = cpu_features()
    return {"model": cpu_model(), "features": [each for each in _FEATURES if each in known] or None}


def _threads() -> dict[str, Any]:
    import torch

    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "cores": os.cpu_count(),
        "usable": affinity,
        "torch": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
    }


def _backends() -> dict[str, str]:
    from regraft.backends import BUILTIN

    return {name: _state(name) for name in sorted(BUILTIN)}


def _state(name: str) -> str:
    """Whether a back end can be used, or what it lacks and how to get it."""
    from regraft.backends import backend
    from regraft.errors import BackendError

    try:
        backend(name)
    except BackendError as error:
        return error.message
    return "ready"


def _profile() -> dict[str, Any]:
    """The machine's speeds that estimates are made with."""
    from regraft.compiler import choose, state_folder

    return choose.load_profile(state_folder()).to_dict()


def _cache() -> dict[str, Any] | None:
    """The compile cache; None when it is off."""
    from regraft.compiler import cache

    folder = cache.default_folder()
    if folder is None:
        return None
    found = cache.CacheFolder(folder)
    return {"path": str(folder), "entries": len(found.entries()), "bytes": found.size(), "limit": found.limit}


def _tuning() -> dict[str, Any] | None:
    """The file of measured times, which is only read; None where there is none.

    ``times`` is how many it has, ``here`` how many of them count on this machine with these versions. Where
    it cannot be read both are None, and ``problem`` says why.
    """
    from regraft.compiler import choose, state_folder, tuning_path

    folder = state_folder()
    if folder is None or not tuning_path(folder).is_file():
        return None
    path = tuning_path(folder)
    found: dict[str, Any] = {"path": str(path), "bytes": path.stat().st_size, "times": None, "here": None}
    try:
        counts = choose.times_by_machine(path)
    except OptionError as error:
        return {**found, "problem": error.message}
    here = sum(count for machine, count in counts.items() if choose.holds_here(machine))
    return {**found, "times": sum(counts.values()), "here": here}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _table(findings: Mapping[str, Any]) -> Any:
    from rich.table import Table

    cpu, threads = findings["cpu"], findings["threads"]
    table = Table("what", "found", box=None, pad_edge=False)
    table.add_row("regraft", f"{findings['regraft']['version']} in {findings['regraft']['folder']}")
    table.add_row("python", findings["python"])
    table.add_row("cpu", cpu["model"])
    table.add_row("cpu features", "unknown" if cpu["features"] is None else " ".join(cpu["features"]))
    known = ", ".join(f"{name} {count}" for name, count in threads.items() if count is not None)
    table.add_row("threads", known)
    profile = findings["profile"]
    measured = "measured, for the default number of threads"
    origin = measured if profile["measured"] else "default figures; regraft doctor --measure measures them"
    speeds = f"{profile['memory_bandwidth'] / 1e9:.0f} GB/s, {profile['peak'] / 1e9:.0f} GFLOP/s"
    table.add_row("speed", f"{speeds} ({origin})")
    table.add_row("cache", _cache_text(findings["cache"]))
    table.add_row("tuning", _tuning_text(findings["tuning"]))
    for name, state in findings["backends"].items():
        table.add_row(f"back end {name}", state)
    for name, version in findings["packages"].items():
        table.add_row(name, version or "not installed, and needed: pip install regraft")
    for name, found in findings["optional"].items():
        table.add_row(name, found["version"] or f"not installed ({found['for']}): {found['get']}")
    return table


def _cache_text(cache: Mapping[str, Any] | None) -> str:
    if cache is None:
        return "off: REGRAFT_CACHE_DIR is empty, or there is no home"
    size = f"{cache['bytes'] / 1e6:.1f} of {cache['limit'] / 1e6:.0f} MB"
    return f"{cache['entries']} entries, {size} in {cache['path']}"


def _tuning_text(tuning: Mapping[str, Any] | None) -> str:
    if tuning is None:
        return "nothing measured; regraft tune FACTORY, or compile(..., tune=True)"
    if tuning["times"] is None:
        return f"cannot be read: {tuning['problem']}"
    counts = f"{tuning['times']} times, {tuning['here']} of them of this machine and these versions"
    return f"{counts}: {tuning['bytes'] / 1e3:.1f} kB in {tuning['path']}"

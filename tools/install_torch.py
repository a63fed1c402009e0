"""Installs torch into the environment of the Python that runs this script: the CPU build wherever possible.

On Linux x86_64 plain `pip install torch` brings the CUDA build and gigabytes of libraries with it, so there
`auto` asks pip first which wheel it would take. Takes one argument: `auto`, or `default` for plain pip.
"""

import json
import platform
import subprocess
import sys
from enum import Enum
from typing import Any

REQUIREMENT = "torch>=2.13,<2.14"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
MODES = ("auto", "default")

UNREACHABLE = f"""
The CPU build of torch could not be installed from {CPU_INDEX} (pip's reason is above).
Either give access to that index, or let pip take the platform's default build, which on Linux x86_64
includes CUDA (several GB): make TORCH=default <target>
"""


class Source(Enum):
    """Where torch is installed from."""

    PLAIN_PIP = "the indexes that pip is configured with"
    CPU_INDEX = CPU_INDEX


def default_build_has_cuda(system: str, machine: str) -> bool:
    """Whether PyPI's torch wheel for this platform is a CUDA build."""
    return system == "Linux" and machine.lower() in ("x86_64", "amd64")


def choose_source(mode: str, system: str, machine: str, plain_version: str | None) -> Source:
    """Where to install from; `plain_version` is what plain pip would take (None: nothing, or not asked)."""
    if mode == "default" or not default_build_has_cuda(system, machine):
        return Source.PLAIN_PIP
    if plain_version is not None and plain_version.endswith("+cpu"):
        return Source.PLAIN_PIP
    return Source.CPU_INDEX


def version_in_report(report: dict[str, Any]) -> str | None:
    """The version of torch in the report of `pip install --report`."""
    for item in report.get("install", []):
        if item["metadata"]["name"].lower() == "torch":
            return str(item["metadata"]["version"])
    return None


def plain_pip_version() -> str | None:
    """The version that plain pip would install here, or None if it finds none."""
    command = [*_pip_install(), "--dry-run", "--ignore-installed", "--no-deps", "--report", "-", REQUIREMENT]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return version_in_report(json.loads(result.stdout)) if result.returncode == 0 else None


def _pip_install() -> list[str]:
    return [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def main(arguments: list[str]) -> int:
    mode = arguments[0] if len(arguments) == 1 else ""
    if mode not in MODES:
        print(
            f"TORCH must be one of {', '.join(MODES)}, not {' '.join(arguments) or 'empty'}", file=sys.stderr
        )
        return 2
    system, machine = platform.system(), platform.machine()
    ask_pip = mode == "auto" and default_build_has_cuda(system, machine)
    plain_version = plain_pip_version() if ask_pip else None
    source = choose_source(mode, system, machine, plain_version)
    build = "CPU build" if ask_pip else "platform's default build"
    print(f"torch (TORCH={mode}): {build} from {source.value}", flush=True)
    index = ["--index-url", CPU_INDEX] if source is Source.CPU_INDEX else []
    status = subprocess.run([*_pip_install(), *index, REQUIREMENT], check=False).returncode
    if status != 0 and source is Source.CPU_INDEX:
        print(UNREACHABLE, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Where torch is installed from, on each kind of platform."""

import pytest

from tools.install_torch import Source, choose_source, main, version_in_report


@pytest.mark.parametrize(
    ("mode", "system", "machine", "plain_version", "expected"),
    [
        ("auto", "Linux", "x86_64", "2.13.0+cpu", Source.PLAIN_PIP),
        ("auto", "Linux", "x86_64", "2.13.0", Source.CPU_INDEX),
        ("auto", "Linux", "x86_64", "2.13.0+cu130", Source.CPU_INDEX),
        ("auto", "Linux", "x86_64", None, Source.CPU_INDEX),
        ("auto", "Linux", "aarch64", None, Source.PLAIN_PIP),
        ("auto", "Darwin", "arm64", None, Source.PLAIN_PIP),
        ("auto", "Windows", "AMD64", None, Source.PLAIN_PIP),
        ("default", "Linux", "x86_64", None, Source.PLAIN_PIP),
    ],
)
def test_choose_source(
    mode: str, system: str, machine: str, plain_version: str | None, expected: Source
) -> None:
    assert choose_source(mode, system, machine, plain_version) is expected


def test_version_in_report() -> None:
    report = {"install": [{"metadata": {"name": "torch", "version": "2.13.0+cpu"}}]}
    assert version_in_report(report) == "2.13.0+cpu"
    assert version_in_report({"install": []}) is None


@pytest.mark.parametrize("arguments", [[], ["cuda"], ["auto", "auto"]])
def test_other_modes_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "TORCH must be one of auto, default" in capsys.readouterr().err

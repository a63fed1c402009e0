"""The size check finds what is too long; the repository itself passes it."""

from pathlib import Path

from tools.check_size import oversized

REPOSITORY = Path(__file__).resolve().parents[2]


def function_of(lines: int, name: str = "f", indent: str = "") -> str:
    return f"{indent}def {name}():\n" + f"{indent}    pass\n" * (lines - 1)


def write(root: Path, text: str) -> None:
    (root / "regraft").mkdir()
    (root / "regraft" / "a.py").write_text(text)


def test_repository_passes() -> None:
    assert oversized(REPOSITORY) == []


def test_limits_themselves_are_allowed(tmp_path: Path) -> None:
    write(tmp_path, function_of(60) + "x = 1\n" * 540)
    assert oversized(tmp_path) == []


def test_long_file_is_found(tmp_path: Path) -> None:
    write(tmp_path, "x = 1\n" * 601)
    assert oversized(tmp_path) == ["regraft/a.py: 601 lines, at most 600"]


def test_long_method_is_found_by_its_qualified_name(tmp_path: Path) -> None:
    write(tmp_path, "class C:\n" + function_of(61, indent="    "))
    assert oversized(tmp_path) == ["regraft/a.py:2: C.f has 61 lines, at most 60"]


def test_docstring_does_not_count(tmp_path: Path) -> None:
    documented = function_of(60).replace("():\n", '():\n    """Says\n    much."""\n')
    write(tmp_path, documented)
    assert oversized(tmp_path) == []


def test_exemption_must_be_needed(tmp_path: Path) -> None:
    write(tmp_path, function_of(61))
    exempt = {"regraft/a.py::f": "one table", "regraft/a.py::g": "gone"}
    assert oversized(tmp_path, exempt) == ["regraft/a.py::g: its exemption is not needed"]

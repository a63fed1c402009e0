"""The layering of docs/architecture.md: the repository keeps it, and the checker finds every breach."""

from pathlib import Path

import pytest

from tools.check_layering import Repository

REPOSITORY = Path(__file__).resolve().parent.parent


def violations(root: Path, files: dict[str, str]) -> list[str]:
    """What the checker says of a tree that has these files beside empty packages."""
    skeleton = ["errors", *(f"{f}/__init__" for f in ("ir", "rewrites", "compiler", "backends", "runtime"))]
    skeleton += ["__init__", "backends/ort/__init__", "backends/tvm/__init__", "ir/core", "rewrites/fold"]
    for path, text in {**{f"regraft/{name}.py": "" for name in skeleton}, **files}.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return Repository(root).violations()


def test_repository_keeps_the_layering() -> None:
    assert Repository(REPOSITORY).violations() == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("regraft/ir/text.py", "from regraft.errors import ParseError\nfrom regraft.ir.core import Op"),
        ("regraft/ir/text.py", "from . import core\nfrom .core import Op"),
        ("regraft/rewrites/moe.py", "from regraft.ir import Rewrite"),
        ("regraft/compiler/pipeline.py", "from regraft import backends, errors, ir, rewrites, runtime"),
        ("regraft/backends/ort/lower.py", "import onnxruntime\nfrom regraft.ir import Op"),
        ("regraft/backends/ort/lower.py", "from regraft.backends.base import Backend\nfrom . import run"),
        ("regraft/backends/ort/run.py", "import onnxruntime\nfrom regraft.runtime import Step"),
        ("regraft/backends/ort/reference.py", "from regraft.backends.ort.run import Step"),
        ("regraft/backends/ort/__init__.py", "if TYPE_CHECKING:\n    from regraft.ir import Op"),
        ("regraft/backends/__init__.py", "def f():\n    from regraft.ir import Op"),
        (
            "regraft/conformance.py",
            "from regraft.backends import Backend\nfrom regraft.testing import evaluate",
        ),
        ("regraft/runtime/load.py", "module = import_module(RUN_MODULES[name])"),
        ("regraft/__init__.py", "if TYPE_CHECKING:\n    from regraft.ir import Rewrite"),
        ("tests/ir/test_core.py", "from regraft.ir import Op"),
        ("tests/zoo/test_moe.py", "import regraft\nfrom regraft.testing import randomise"),
        ("examples/demo.py", "from regraft import Rewrite, compile, errors\nfrom regraft.ir import Match"),
        ("tests/backends/test_ort.py", "from regraft.backends.ort.run import load"),
        ("benchmarks/peers.py", "import onnxruntime"),
    ],
)
def test_allowed(tmp_path: Path, path: str, text: str) -> None:
    assert violations(tmp_path, {path: text}) == []


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("regraft/errors.py", "import regraft.ir", "errors may not import regraft.ir"),
        ("regraft/ir/a.py", "from regraft.runtime import load", "ir may not import regraft.runtime"),
        ("regraft/ir/a.py", "from .. import rewrites", "ir may not import regraft.rewrites"),
        ("regraft/ir/a.py", "from regraft import compile", "ir may not import regraft"),
        ("regraft/runtime/a.py", "import regraft.ir", "runtime may not import regraft.ir"),
        ("regraft/rewrites/a.py", "import regraft.backends", "rewrites may not import regraft.backends"),
        ("regraft/backends/ort/a.py", "import regraft.rewrites", "backends may not import regraft.rewrites"),
        (
            "regraft/backends/ort/run.py",
            "from regraft.ir import Op",
            "backends/run may not import regraft.ir",
        ),
        (
            "regraft/backends/ort/run.py",
            "from . import lower",
            "backends/run may not import regraft.backends",
        ),
        ("regraft/backends/ort/a.py", "import regraft.backends.tvm", "is inside the back end tvm"),
        ("regraft/backends/base.py", "from . import ort", "is inside the back end ort"),
        ("regraft/compiler/a.py", "from regraft.backends import ort", "is inside the back end ort"),
        ("regraft/compiler/a.py", "import regraft.cli", "compiler may not import regraft.cli"),
        ("regraft/helpers.py", "import regraft.ir", "has no row in the layering table"),
        ("examples/a.py", "import regraft.rewrites", "examples may not import regraft.rewrites"),
        ("benchmarks/a.py", "import regraft.compiler", "benchmarks may not import regraft.compiler"),
        ("tests/zoo/test_a.py", "import regraft.runtime", "tests may not import regraft.runtime"),
    ],
)
def test_wrong_layer(tmp_path: Path, path: str, text: str, expected: str) -> None:
    (problem,) = violations(tmp_path, {path: text})
    assert problem.startswith(f"{path}:1: ")
    assert expected in problem


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {
                "run": "from .table import TABLE",
                "table": "from .names import NAMES",
                "names": "def f():\n    import regraft.ir",
            },
            "regraft/backends/ort/names.py:2: backends/run may not import regraft.ir",
        ),
        (
            {
                "run": "from regraft.runtime import Step",
                "__init__": "from regraft.backends.ort.lower import f",
            },
            "regraft/backends/ort/__init__.py:1: regraft.backends.ort may load regraft.backends.ort.lower",
        ),
        (
            {"run": "", "__init__": "if DEBUG:\n    from regraft.ir import Op"},
            "regraft/backends/ort/__init__.py:2: regraft.backends.ort may load regraft.ir only",
        ),
        (
            {"run": "", "../__init__": "from regraft.ir import Op"},
            "regraft/backends/__init__.py:1: regraft.backends may load regraft.ir only",
        ),
    ],
)
def test_run_works_without_the_compiler(tmp_path: Path, files: dict[str, str], expected: str) -> None:
    """What ``run`` imports of its own back end, and the packages around it, count as part of it."""
    own = {"lower": "import regraft.ir\nf = 1"} | files
    (problem,) = violations(tmp_path, {f"regraft/backends/ort/{name}.py": text for name, text in own.items()})
    assert problem.startswith(expected)


def test_run_may_import_its_siblings(tmp_path: Path) -> None:
    own = {
        "run": "from .table import TABLE",
        "table": "import regraft.runtime",
        "__init__": "from regraft.backends.ort.run import x\nif TYPE_CHECKING:\n    from .lower import f",
        "lower": "import regraft.ir\nfrom regraft.backends.ort.table import TABLE",
    }
    assert violations(tmp_path, {f"regraft/backends/ort/{name}.py": text for name, text in own.items()}) == []


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    import regraft.compiler",
        "if TYPE_CHECKING:\n    from regraft.compiler import compile",
        "async def f():\n    from regraft import compiler",
        "class C:\n    module = importlib.import_module('regraft.compiler')",
        "def f():\n    __import__('regraft.compiler')",
    ],
)
def test_an_import_counts_wherever_it_stands(tmp_path: Path, text: str) -> None:
    assert violations(tmp_path, {"regraft/ir/a.py": text}) == [
        "regraft/ir/a.py:2: ir may not import regraft.compiler"
    ]


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("regraft/rewrites/a.py", "from regraft.ir.core import Op", "regraft.ir.core is not the public face"),
        ("regraft/rewrites/a.py", "from regraft.ir import core", "regraft.ir.core is not the public face"),
        ("regraft/compiler/a.py", "import regraft.rewrites.fold", "regraft.rewrites.fold is not the public"),
        ("tests/ir/test_a.py", "from regraft.ir.core import Op", "regraft.ir.core is not the public face"),
        ("tests/ir/test_a.py", "from regraft.ir import _table", "_table is private to regraft.ir"),
        (
            "tests/backends/test_a.py",
            "from regraft.backends.ort.lower import f",
            "regraft.backends.ort.lower is not the public face of regraft.backends.ort",
        ),
    ],
)
def test_only_the_public_face(tmp_path: Path, path: str, text: str, expected: str) -> None:
    (problem,) = violations(tmp_path, {path: text})
    assert expected in problem


def test_a_module_listed_in_all_is_part_of_the_face(tmp_path: Path) -> None:
    files = {
        "regraft/ir/__init__.py": "__all__ = ['core']",
        "regraft/rewrites/a.py": "from regraft.ir import core",
    }
    assert violations(tmp_path, files) == []


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("regraft/ir/a.py", "import torch.fx", "torch must not be imported here"),
        ("regraft/rewrites/a.py", "from torch import nn", "torch must not be imported here"),
        ("regraft/compiler/a.py", "def f():\n    import tvm", "tvm is imported only in regraft/backends/tvm"),
        ("regraft/backends/tvm/a.py", "import onnxruntime", "onnxruntime is imported only in"),
    ],
)
def test_library_out_of_place(tmp_path: Path, path: str, text: str, expected: str) -> None:
    (problem,) = violations(tmp_path, {path: text})
    assert expected in problem


@pytest.mark.parametrize(
    "files",
    [
        {"regraft/ir/a.py": "from . import b", "regraft/ir/b.py": "def f():\n    from .a import x"},
        {"regraft/ir/__init__.py": "from .core import Op", "regraft/ir/core.py": "import regraft.ir"},
        {
            "regraft/ir/a.py": "import regraft.ir.b",
            "regraft/ir/b.py": "from .core import Op",
            "regraft/ir/core.py": "if TYPE_CHECKING:\n    from .a import x",
        },
    ],
)
def test_import_cycle(tmp_path: Path, files: dict[str, str]) -> None:
    (problem,) = violations(tmp_path, files)
    assert problem.startswith("import cycle: regraft.ir")
    first, *_, last = problem.removeprefix("import cycle: ").split(" -> ")
    assert first == last

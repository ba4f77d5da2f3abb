"""The arrows of the design, asserted from the imports; and what must stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "teacherless"
LOW = {"errors", "losses", "method"}
# Which parts of the package each part may import. A part that is not here may import everything.
MAY: dict[str, set[str]] = {
    "errors": set(),
    "losses": set(),
    "method": set(),
    "methods": LOW | {"methods", "models"},
    "models": {"errors", "models"},
    "data": {"errors", "method", "data"},
    "evaluate": LOW,
    "reid": LOW | {"evaluate"},
    "recipe": {"errors", "run"},
    "statistics": {"errors"},
    "analysis": LOW | {"evaluate"},
    "plots": {"analysis", "statistics"},
    "findings": LOW | {"analysis", "checkpoint", "data", "evaluate", "methods", "models", "plots", "run", "statistics"},
    "analyse": LOW | {"data", "engine", "findings", "methods", "run"},
    "run": LOW | {"data", "methods", "models", "shrink"},
    "shrink": set(),
    "engine": LOW | {"run", "methods", "threads", "graph"},
    "threads": LOW,
    "graph": LOW,
    "record": LOW,
    "results": LOW | {"data", "evaluate", "record", "reid", "run"},
    "average": LOW,
    "checkpoint": {"errors"},
    "explain": LOW | {"engine", "run", "train"},
    "train": LOW
    | {"average", "checkpoint", "data", "engine", "evaluate", "methods", "models", "record", "results", "run"},
}


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


@pytest.mark.parametrize("file", sorted(SRC.rglob("*.py")), ids=lambda f: str(f.relative_to(SRC)))
def test_arrows_go_down(file: Path) -> None:
    part = file.relative_to(SRC).parts[0].removesuffix(".py")
    found = imports(file)
    inside = {name.split(".")[1] for name in found if name.startswith("teacherless.")} - {"__version__"}
    if part in MAY:
        assert inside <= MAY[part], inside - MAY[part]
    outside = {name.split(".")[0] for name in found} - {"teacherless", *sys.stdlib_module_names}
    if part == "losses":
        assert outside == {"torch"}
    if part != "distributed":
        assert not any(name.startswith("torch.distributed") for name in found)


def test_help_and_import_need_no_torch() -> None:
    code = (
        "import sys, teacherless; assert 'torch' not in sys.modules, 'import';"
        "from teacherless.cli import main; assert main(['--help']) == 0; assert main(['train', '--help']) == 0;"
        "assert 'torch' not in sys.modules, 'help'"
    )
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert time.perf_counter() - began < 10  # a sanity bound; about 0.4 s alone


def test_importing_a_file_does_not_hide_the_function_of_its_name() -> None:
    code = (
        "import teacherless.train, teacherless.evaluate, teacherless as tl;"
        "from teacherless.train import execute; assert callable(tl.train) and callable(tl.evaluate)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

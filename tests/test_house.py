"""The arrows of the design, asserted from the imports; and what must stay light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "teacherless"
LOW = {"errors", "losses", "batch", "network", "method"}
# Which parts of the package each part may import, by the longest name that fits. A part that is not here may import
# everything.
MAY: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "losses": set(),
    "batch": {"errors"},
    "network": {"errors", "batch"},
    "method": {"errors", "batch", "network"},
    "methods": LOW | {"models"},
    "models": {"batch", "errors", "files", "network"},
    "data": {"batch", "errors", "files", "method"},
    "evaluation": LOW,
    "training": LOW | {"data", "evaluation", "files", "methods", "models"},
    "training.engines": LOW | {"evaluation"},
    "training.settings": {"errors", "files"},
    "training.folder": {"errors", "files"},
    "training.checkpoint": {"errors", "files"},
    "runs": LOW | {"data", "evaluation", "files", "methods", "models", "training"},
    "runs.shrink": set(),
    "runs.config": {"errors", "files", "runs.shrink", "training.settings"},
    "study": LOW | {"data", "evaluation", "files", "methods", "models", "runs", "training"},
    "study.statistics": {"errors"},
    "study.drawing": {"files"},
    "study.plots": {"study.drawing", "study.statistics", "study.tables"},
    "study.plots_of_networks": {"study.drawing", "study.flatness", "study.tables"},
}


# The core, to be read in an evening, without what has a subject of its own: other engines, revival, what a run shows,
# and the methods that came after the papers, a page each, which nothing but the table of methods reads.
CORE = {"losses", "method", "methods", "models.staged", "evaluation", "training"}
SUCCESSORS = {
    "methods.r_drop",
    "methods.cosub",
    "methods.zipf_ls",
    "methods.mean_teacher",
    "methods.dlb",
    "methods._targets",
    "methods.pcl",
    "methods.okddip",
    "methods._copies",
}
RANKS = {"training.distributed", "training.mesh", "training.rank_states", "training.torchrun"}
NOT_CORE = {"training.engines", "training.revival", "training.live", "training.board", *RANKS, *SUCCESSORS}
# All of its lines, and those of code, at most: to be lowered; ranks took 100, peers that meet seldom 40.
CORE_LINES, CORE_CODE = 5154, 3187
# What the core may import besides itself and Python's own library: from outside, and from the house.
FENCE = {"torch", "numpy", "safetensors", "pydantic", "filelock"}
NEAR = {"errors", "batch", "network", "files", "data", "models.files", "models.layers", *NOT_CORE, "__version__"}
PLAIN_ROOMS = {
    "cli",
    "files",
    "study",
    "losses",
    "method",
    "batch",
    "network",
    "errors",
    "methods",
    "evaluation",
    "training",
    "data",
}


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def part_of(module: str) -> str:
    """The longest entry of MAY that a module (without `teacherless.`) belongs to; else its first name."""
    names = module.split(".")
    prefixes = [".".join(names[:n]) for n in range(len(names), 0, -1)]
    return next((prefix for prefix in prefixes if prefix in MAY), names[0])


def within(module: str, parts: set[str]) -> bool:
    """Whether a module, or a name in it, belongs to one of the parts."""
    return any(f"{module}.".startswith(f"{part}.") for part in parts)


@pytest.mark.parametrize("file", sorted(SRC.rglob("*.py")), ids=lambda f: str(f.relative_to(SRC)))
def test_arrows_go_down(file: Path) -> None:
    part = part_of(".".join(file.relative_to(SRC).with_suffix("").parts))
    found = imports(file)
    inside = {name.removeprefix("teacherless.") for name in found if name.startswith("teacherless.")}
    if part in MAY:
        allowed = MAY[part] | {part, "__version__"}
        packages = {folder.name for folder in SRC.iterdir() if folder.is_dir()}
        assert not (wrong := {name for name in inside - packages if not within(name, allowed)}), wrong
    outside = {name.split(".")[0] for name in found} - {"teacherless", *sys.stdlib_module_names}
    if part == "losses":
        assert outside == {"torch"}
    if file.stem != "distributed":
        assert not any(name.startswith("torch.distributed") for name in found)


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")


def core() -> list[Path]:
    modules = {file: module_of(file) for file in sorted(SRC.rglob("*.py"))}
    return [file for file, name in modules.items() if within(name, CORE) and not within(name, NOT_CORE)]


def code_lines(text: str) -> int:
    """Lines that are not blank, comments or docstrings."""
    spans = [range(0)]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            spans.append(range(node.body[0].lineno - 1, node.body[0].end_lineno or 0))
    docs = set().union(*spans)
    lines = (line.strip() for i, line in enumerate(text.splitlines()) if i not in docs)
    return sum(bool(line) and not line.startswith("#") for line in lines)


def test_the_core_is_read_in_an_evening() -> None:
    texts = [file.read_text(encoding="utf-8") for file in core()]
    assert sum(text.count("\n") for text in texts) <= CORE_LINES
    assert sum(map(code_lines, texts)) <= CORE_CODE


@pytest.mark.parametrize("file", sorted(SRC.rglob("*.py")), ids=lambda f: str(f.relative_to(SRC)))
def test_a_file_is_one_subject_and_its_names_say_what_they_hold(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert code_lines(text) <= 300
    names = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    assert "found" not in names


def test_the_core_keeps_to_its_fence() -> None:
    names = {name for file in core() for name in imports(file)}
    inside = {name.removeprefix("teacherless.") for name in names if name.startswith("teacherless.")}
    packages = {folder.name for folder in SRC.iterdir() if folder.is_dir()}
    assert not {name for name in inside - packages if not within(name, CORE | NEAR)}
    assert {name.split(".")[0] for name in names} - {"teacherless", *sys.stdlib_module_names} <= FENCE


@pytest.mark.parametrize("file", sorted(SRC.rglob("*.py")), ids=lambda f: str(f.relative_to(SRC)))
def test_layouts_are_ruffs_own(file: Path) -> None:
    if within(module_of(file), PLAIN_ROOMS):
        assert "# fmt: skip" not in file.read_text(encoding="utf-8")


def test_help_and_import_need_no_torch() -> None:
    code = (
        "import sys, teacherless; assert 'torch' not in sys.modules, 'import';"
        "from teacherless.cli import main; assert main(['--help']) == 0; assert main(['train', '--help']) == 0;"
        "assert 'torch' not in sys.modules, 'help'"
    )
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert time.perf_counter() - began < 10  # a sanity bound; about 0.4 s alone


def test_every_dependency_has_code_behind_it() -> None:
    project = tomllib.loads((SRC.parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *(line for name in extras if name not in ("dev", "docs") for line in extras[name]),
    ]
    modules = {"scikit-learn": "sklearn", "pillow": "PIL"}
    files = list(SRC.rglob("*.py"))
    found = {name.split(".")[0] for file in files for name in imports(file)}
    found |= {package for file in files for package in re.findall(r'extra\("(\w+)"', file.read_text())}
    assert {modules.get(name, name) for name in (re.split("[>=<]", line)[0] for line in wanted)} <= found


def test_no_module_has_the_name_of_a_public_name() -> None:
    import teacherless

    assert not {file.stem for file in SRC.rglob("*.py")} & (set(teacherless.__all__) - {"data", "losses", "models"})


@pytest.mark.parametrize("file", sorted(SRC.rglob("*.py")), ids=lambda f: str(f.relative_to(SRC)))
def test_text_is_read_and_written_as_utf8(file: Path) -> None:
    """Elsewhere it would be whatever the system's locale says."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        text = name in ("read_text", "write_text") or (
            name == "open" and any(mode in ("r", "w", "a") for mode in modes)
        )
        keywords = {keyword.arg for keyword in node.keywords}
        text = text or (name in ("run", "Popen", "check_output") and "text" in keywords)
        assert not text or "encoding" in keywords, f"{file.name}:{node.lineno}"

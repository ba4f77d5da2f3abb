"""Every block of code in the README, on the site and under --help runs, or says above it why it does not.

A block is preceded by `<!-- not run: reason -->`, or by `<!-- run: FLAGS -->` with what makes its commands short.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from cyclopts import App
from joblib.externals.loky import get_reusable_executor
from PIL import Image
from torch import nn

import teacherless as tl
from teacherless.cli import app, main
from teacherless.methods import METHODS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:^<!-- (not run|run): ([^\n]+) -->\n)?^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NO_CODE = ("text", "math")  # what is printed, or drawn
SHORT = ["--small", "--seeds=2", "--student=small-cnn", "--epochs=2", "--peers=2"]  # examples of --help that train


class Block(NamedTuple):
    """A block of code on a page."""

    page: Path
    language: str
    text: str
    why_not: str
    flags: list[str]

    def commands(self) -> Iterator[list[str]]:
        """Its lines as `main` takes them."""
        for line in self.text.splitlines():
            if words := shlex.split(line, comments=True):
                assert words.pop(0) == "teacherless", f"{self.page.name}: {line}"
                yield shortened(words, self.flags)


def shortened(words: list[str], flags: list[str]) -> list[str]:
    """A command that trains, with flags instead of its own or beside them."""
    if words[0] not in ("train", "compare", "plan"):
        return words
    replaced = dict(flag.split("=") for flag in flags if "=" in flag)
    found = [replaced.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    return found + [flag for flag in flags if "=" not in flag and flag not in words]


def blocks(page: Path) -> list[Block]:
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [
        Block(page, language, text, said if mark == "not run" else "", said.split() if mark == "run" else [])
        for mark, said, language, text in found
        if language not in NO_CODE
    ]


RUN = {page: [block for block in blocks(page) if not block.why_not] for page in PAGES}


def examples(command: App, name: str = "") -> Iterator[str]:
    """The lines under --help of a command and all in it."""
    yield from re.findall(r"^  teacherless ((?!COMMAND).*)$", command.help_epilogue or "", re.MULTILINE)
    for inner in command:
        if inner not in ("--help", "-h", "--version"):
            assert command[inner].help_epilogue != app.help_epilogue, f"{name} {inner} --help has no example of its own"
            yield from examples(command[inner], f"{name} {inner}")


EXAMPLES = list(dict.fromkeys(examples(app)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("\n```") == 2 * len(BLOCK.findall(text)), "a block that this test does not see"
    for block in blocks(page):
        assert block.language in ("sh", "python"), f"{page.name}: language {block.language!r}"
        if block.why_not:
            assert len(block.why_not.split()) > 2, f"{page.name}: {block.why_not!r} is no reason"
        elif block.language == "python":
            compile(block.text, page.name, "exec")
        else:
            for words in block.commands():
                app.parse_args(words, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_of_help_parses(example: str) -> None:
    assert len(f"  teacherless {example}") <= 80, "it breaks in a terminal of 80 columns"
    app.parse_args(shlex.split(example, comments=True), exit_on_error=False, print_error=False)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a reader's photos in it."""
    get_reusable_executor().shutdown()  # workers of an earlier test stand in its folder
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    draw = np.random.default_rng(0)
    for folder in ("photos", "more-photos", "path/to/photos", "path/to/images"):
        for channel, name in enumerate(("cat", "dog", "fox")):
            (tmp_path / folder / name).mkdir(parents=True)
            for row in range(20):
                image = draw.integers(0, 120, (40, 48, 3), dtype=np.uint8)
                image[10:30, 10:30, channel] += 60
                Image.fromarray(image).save(tmp_path / folder / name / f"{row:02}.jpg")
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(image).save(tmp_path / name)
    return tmp_path


def given() -> dict[str, Any]:
    """What a reader of a Python block has already."""
    x, y = torch.randn(32, 1, 8, 8), torch.arange(32) % 4
    net = nn.Sequential()
    for number in (1, 2, 3):
        net.add_module(f"block{number}", nn.Sequential(nn.Conv2d(1 if number == 1 else 4, 4, 3, 2, 1), nn.ReLU()))
    net.add_module("head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)))
    nets = {name: nn.Sequential(nn.Flatten(), nn.Linear(64, 4)) for name in ("net_a", "net_b")}
    loaders = dict.fromkeys(("train_loader", "val_loader", "train_data", "val_data"), [(x, y)] * 2)
    trackers = {"mlflow": SimpleNamespace(log_metrics=track), "wandb": SimpleNamespace(log=track)}
    return {"tl": tl, "x": x, "y": y, "my_net": net, "method": tl.DML(*nets.values()), **nets, **loaders, **trackers}


def track(numbers: dict[str, float], step: int) -> None:
    """What an experiment tracker takes."""
    assert step >= 0 and "val/top1/peer0" in numbers


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if RUN[page]], ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page: Path, here: Path) -> None:
    names = given()
    for block in RUN[page]:
        if block.language == "python":
            exec(compile(block.text, page.name, "exec"), names)
        else:
            for words in block.commands():
                assert main(words) == 0, words


@pytest.mark.exhaustive
def test_the_examples_of_help_run(here: Path, zoo: None, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda page: opened.append(page) is None)
    for seed, out in enumerate(("first", "second")):
        assert (
            main(["train", "dml", "--data", "photos", "--small", "--out", f"runs/{out}", "--seed", f"{seed + 5}"]) == 0
        )
    short = ["--data", "photos", "--methods", "plain,dml", "--seeds", "2", "--small", "--out", "runs/compare-photos"]
    assert main(["compare", *short]) == 0
    for example in EXAMPLES:
        words = shortened(shlex.split(example, comments=True), SHORT)
        if words[0] == "train" and "runs/first" in words and "--resume" not in words:
            shutil.rmtree(here / "runs" / "first", ignore_errors=True)
        if words[0] == "compare" and "--seeds" not in words:
            words += ["--seeds", "2"]
        if "onnx" in words and importlib.util.find_spec("onnxscript") is None:
            continue  # in the extra dev, and not here
        assert main(words) == 0, example
    assert len(opened) == 1


def test_every_method_has_its_equations() -> None:
    equations = tomllib.loads((ROOT / "docs" / "_equations.toml").read_text(encoding="utf-8"))
    assert equations.keys() == METHODS.keys(), "docs/_equations.toml"
    assert all(equations.values())


def test_numbers_of_which_method_stand_in_their_source() -> None:
    """A row of numbers ends with its source; README and log are what was measured."""
    sources = {name: (ROOT / path).read_text() for name, path in (("README", "README.md"), ("log", "docs/log.md"))}
    said = {name: " ".join(text.split()) for name, text in sources.items()}
    rows = [line.strip("|").split("|") for line in (ROOT / "docs" / "which.md").read_text().splitlines() if "|" in line]
    measured = [[cell.strip() for cell in row] for row in rows if row[-1].strip() in said]
    assert len(measured) > 10
    for _, *cells, source in measured:
        for number in re.findall(r"[+−-]?\d+\.\d+(?: ± \d+\.\d+| \[[^\]]*\])?", " ".join(cells)):
            assert number in said[source], f"{number} is not in {source}"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="the extra docs is not installed: make docs")
def test_the_site_is_built_and_loads_nothing(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", tmp_path], cwd=ROOT, check=True)
    pages = {str(page.relative_to(tmp_path)): page.read_text() for page in tmp_path.rglob("*.html")}
    assert {f"methods/{name}.html" for name in METHODS} <= pages.keys()
    for name, text in pages.items():
        assert not re.search(r"<(?:script|img|iframe)[^>]*src=\"?(?:https?:)?//|<link[^>]*href=\"?https?://", text), (
            name
        )

"""The pages of docs/loops, run with the real libraries: as good as our own loop, and the same for batches in parts."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked
from safetensors.torch import load_file, save_file

PAGES = Path(__file__).parent.parent / "docs" / "loops"
NEEDS = {"pytorch": (), "transformers": ("transformers", "accelerate"), "lightning": ("lightning",),
         "accelerate": ("accelerate",), "timm": ("timm.task",), "scikit-learn": ("skorch",)}  # fmt: skip
TO_THE_BIT = {"pytorch", "lightning", "accelerate", "timm"}
OURS = """
import teacherless as tl
from digits import EPOCHS, accuracy, loader, net_a, net_b
method = tl.DML(net_a, net_b)
tl.train(method, loader, epochs=EPOCHS, lr=0.05, nesterov=False, weight_decay=0, sched="constant", engine="loop",
         quiet=True)
print(accuracy(net_a), accuracy(net_b))
"""
LOOP = re.compile(r"```python\n(.*?)```", re.DOTALL)
MORE = {"pytorch", "lightning"}  # whose last block trains on with another method


def run(code: str, folder: Path, accumulate: int = 1) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The weights after the code, and the accuracies it printed."""
    folder.mkdir(exist_ok=True)

    def page() -> None:
        os.chdir(folder)
        os.environ["ACCUMULATE"] = str(accumulate)
        sys.path.insert(0, str(PAGES))
        warnings.simplefilter("ignore")
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(code, "page", "exec"), names)
        save_file(names["method"].state_dict(), "weights.safetensors")

    done = Forked(before=page)
    out, err = done.communicate()
    assert done.returncode == 0, err
    weights = load_file(folder / "weights.safetensors")
    return weights, [float(number) for number in re.findall(r"\d+\.\d+", out.splitlines()[-1])]


@pytest.fixture(scope="module", autouse=True)
def importable(request: pytest.FixtureRequest) -> None:
    """timm and lightning import torchvision where it is there, of another build than torch's too."""
    if all(map(importlib.util.find_spec, ("torchvision", "timm"))):
        request.getfixturevalue("zoo")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], list[float]]:
    return run(OURS, tmp_path_factory.mktemp("ours"))


def code_of(page: str) -> str:
    blocks = LOOP.findall((PAGES / f"{page}.md").read_text(encoding="utf-8"))
    first = "".join(blocks[:-1] if page in MORE else blocks)
    return first if "\nmethod = " in first else f"{first}\nmethod = tl.DML(net_a, net_b)\n"


@pytest.mark.slow
@pytest.mark.parametrize("page", list(NEEDS))
def test_page(page: str, ours: Any, tmp_path: Path) -> None:
    for package in NEEDS[page]:
        there = Forked(before=partial(importlib.import_module, package))
        if there.wait():  # in a process of its own, as the page will be
            pytest.skip(f"{package}: {there.communicate()[1].splitlines()[-1]}")
    weights, scores = run(code_of(page), tmp_path / "1")
    print(page, scores, ours[1])
    assert min(scores[:2]) > 85 and abs(scores[0] - ours[1][0]) < 3 and abs(scores[1] - ours[1][1]) < 3
    same = all(torch.equal(value, weights[key]) for key, value in ours[0].items() if key in weights)
    assert same or page not in TO_THE_BIT
    for accumulate in (4, 8):
        parts, _ = run(code_of(page), tmp_path / str(accumulate), accumulate)
        for key, value in weights.items():
            assert torch.allclose(parts[key], value, atol=2e-4), (page, accumulate, key)


@pytest.mark.parametrize("page", sorted(MORE))
def test_a_page_to_its_end(page: str, tmp_path: Path) -> None:
    """With methods of several turns too."""
    for package in NEEDS[page]:
        pytest.importorskip(package)
    blocks = LOOP.findall((PAGES / f"{page}.md").read_text(encoding="utf-8"))
    code = "".join(blocks) + "\nmethod = tl.DML(net_a, net_b)\n" + "print(accuracy(net_a), accuracy(net_b))\n"
    assert min(run(code, tmp_path)[1]) > 80


def test_every_page_is_listed() -> None:
    listed = re.findall(r"\((\S+)\.md\)", (PAGES / "README.md").read_text(encoding="utf-8"))
    assert {path.stem for path in PAGES.glob("*.md")} - {"README"} == set(listed) == set(NEEDS)

"""Every method, end to end from the command line: it trains in seconds, what it ships is no worse than plain's, and the
doctor finds nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from teacherless.cli import main
from teacherless.methods import METHODS

# `make slow` has those that differ in what they ship, and what the papers compare with; `make exhaustive` the rest
SAMPLE = {"plain", "label-smoothing", "kd", "dml", "one", "ddgsd", "frskd", "pcl", "ps-kd", "tf-kd"}
EPOCHS = 15  # the refiner of frskd needs them; the others are there after six


def trained(method: str, out: Path, *more: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    assert main(["train", method, "--epochs", str(EPOCHS), "--student", "small-cnn", *more, "--out", str(out)]) == 0
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("digits") / "plain"
    trained("plain", out)
    return out


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SAMPLE else pytest.mark.exhaustive) for name in METHODS],
)
def test_every_method_on_digits(name: str, plain: Path, tmp_path: Path) -> None:
    kind = METHODS[name]
    more = ["--peers", "2"] if kind.cohort else []
    more += ["--teacher", str(plain)] if kind.teacher_use == "required" else []
    began = time.process_time()  # other tests run beside this one
    summary = trained(name, tmp_path / "run", *more)
    assert time.process_time() - began < 30
    least = json.loads((plain / "summary.json").read_text())["students"]["student"]["test_top1"] - 5
    assert summary["doctor"] == []
    for student, row in summary["students"].items():
        assert row["test_top1"] >= least, (student, row)
    if summary["ensemble"]:
        assert summary["ensemble"]["test_top1"] >= least

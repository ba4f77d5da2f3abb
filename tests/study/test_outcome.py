"""What is compared is one network; the best of several and all of several are counted apart."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from teacherless.cli import main
from teacherless.evaluation.metrics import flops
from teacherless.files import schemas
from teacherless.runs.build import load_source
from teacherless.runs.config import Run
from teacherless.study import show
from teacherless.study.cells import Cell
from teacherless.study.cost import training_flops
from teacherless.study.outcome import Results, comparable, tabulate, ways, write_csv

Rows = dict[str, tuple[float | None, float]]  # a network's validation and test accuracy


def summary(students: Rows, ensemble: float | None = None) -> dict[str, Any]:
    """A cell's summary.json, in what a comparison reads."""

    def row(val: float | None, test: float) -> dict[str, Any]:
        return {"val_top1": val, "test_top1": test, "test_nll": 1 - test / 100, "test_ece": 1.0}

    return {"students": {name: row(*found) for name, found in students.items()}, "typical_seconds": len(students),
            "ensemble": None if ensemble is None else row(None, ensemble)}  # fmt: skip


def comparison(plain: list[Rows], dml: list[Rows]) -> tuple[list[Cell], Results]:
    """Cells and their summaries, one of each per seed."""
    cells, results = [], {}
    for row, peers, found in (("plain", None, plain), ("dml", 2, dml)):
        for seed, students in enumerate(found):
            cells.append(Cell(row, Run(method=row, seed=seed, peers=peers), Path()))
            results[row, seed] = summary(students, ensemble=99.0 if row == "dml" else None)
    return cells, results


def test_a_cohort_that_teaches_itself_nothing_shows_no_difference() -> None:
    """With weight 0 a cohort is two independent networks, the first of them plain's own. In 5 seeds its mean differs
    from plain in no more comparisons than the level says; the better one on validation would in most."""
    g = np.random.default_rng(0)
    shown, chosen_shown, rounds = 0, 0, 400
    for _ in range(rounds):
        seed = g.normal(95, 0.8, 5)
        true = seed[:, None] + g.normal(0, 0.6, (5, 2))  # [seed, peer]: what each network is worth
        val, test = (np.round(true + g.normal(0, 0.3, true.shape), 2) for _ in range(2))
        each = [(float(v), float(t)) for v, t in zip(val.ravel(), test.ravel(), strict=True)]
        pairs: list[Rows] = [{"peer0": each[2 * s], "peer1": each[2 * s + 1]} for s in range(5)]
        table = tabulate(*comparison([{"student": pair["peer0"]} for pair in pairs], pairs))
        found = table["methods"]["dml"]
        shown += "no difference shown" not in found["verdict"]
        chosen_shown += found["best"]["mean"] - table["methods"]["plain"]["student"]["mean"] > 0
    assert shown <= 0.06 * rounds, "95 of 100 show none, give or take a standard deviation"
    assert chosen_shown > 0.85 * rounds


def test_the_mean_the_best_and_what_plain_gives() -> None:
    plain: list[Rows] = [{"student": (80.0, 90.0)}, {"student": (82.0, 70.0)}, {"student": (81.0, 80.0)}]
    dml: list[Rows] = [{"peer0": (70.0, 91.0), "peer1": (71.0, 81.0)}] * 3
    table = tabulate(*comparison(plain, dml))
    found = table["methods"]["dml"]
    assert found["per_seed"] == {0: 86.0, 1: 86.0, 2: 86.0}
    assert found["student"]["mean"] == 86 and found["best"]["mean"] == 81 and found["ensemble"]["mean"] == 99
    assert found["difference"]["mean"] == 86 - 80 and found["cost"] == 2
    # Of seeds (0, 1), (0, 2), (1, 2) validation chooses 1, 2, 1.
    assert table["plain_networks"] == [{"networks": 2, "of": 3, "ensemble": None, "best": (70 + 80 + 70) / 3}]
    nothing = tabulate(
        *comparison([{"student": (None, 90.0)}] * 3, [{"peer0": (None, 91.0), "peer1": (None, 1.0)}] * 3)
    )
    assert nothing["methods"]["dml"]["best"] is None and nothing["plain_networks"][0]["best"] is None


def test_ways_to_take_some() -> None:
    assert ways([3, 4, 5], 2) == [(3, 4), (3, 5), (4, 5)]
    many = ways(range(30), 5)
    assert len(many) == 100 and many == ways(range(30), 5) and all(len(set(way)) == 5 for way in many)


def test_only_students_like_plains_are_compared() -> None:
    found = summary({"peer0": (1.0, 50.0), "peer1": (1.0, 60.0), "peer2": (1.0, 80.0)})
    mixed = Run(method="dml", student=("small-cnn,width=8", "resnet8", "small-cnn,width=8,lr=0.1"))
    assert list(comparable(mixed, found)) == ["peer0", "peer2"]
    assert list(comparable(Run(method="one"), found)) == ["peer0", "peer1", "peer2"], "branches"


@pytest.mark.slow
def test_a_real_cohort_of_weight_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its first peer is plain's network to the last bit; what is reported is the mean of both."""
    argv = ["compare", "--methods", "dml", "--set", "dml.weight=0", "--seeds", "3", "--epochs", "3", "--jobs", "1"]
    argv += ["--student"]
    assert main([*argv, "small-cnn,width=8", "--train-samples", "300", "--out", str(tmp_path)]) == 0
    table = json.loads((tmp_path / "compare.json").read_text())
    assert table is not None
    for seed in range(3):
        plain, dml = (schemas.summary(tmp_path / "cells" / f"{row}-s{seed}") for row in ("plain", "dml"))
        assert plain is not None and dml is not None
        own = [row["test_top1"] for row in dml["students"].values()]
        assert own[0] == plain["students"]["student"]["test_top1"]
        assert table["methods"]["dml"]["per_seed"][str(seed)] == pytest.approx(sum(own) / 2)
    assert "dml: no difference shown" in (shown := capsys.readouterr().out)
    assert "plain, any 2 of 3 seeds" in shown and "dml, 2" in shown
    found = table["methods"]["dml"]["difference"]
    assert found["images"] == table["test_images"] == 359 and found["both"][0] <= found["corrected"][0]
    assert "seeds and images" in shown and f"[{found['both'][0]:+.2f}, {found['both'][1]:+.2f}]" in shown
    assert "also that of the 359 test images, of which one is 0.28 points" in " ".join(shown.split())
    two = table["plain_networks"][0]
    assert two["networks"] == 2 and 0 < two["ensemble"] <= 100 and 0 < two["best"] <= 100
    with (tmp_path / "compare.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["method"] for line in lines] == ["plain", "dml", "2 plain networks"]
    assert float(lines[1]["test_top-1"]) == table["methods"]["dml"]["student"]["mean"]
    assert float(lines[2]["ensemble"]) == two["ensemble"]
    assert float(lines[1]["low_both"]) == found["both"][0]
    for file in tmp_path.glob("cells/dml-s1/predictions.safetensors"):
        file.write_bytes(b"")  # and the same command makes do without
    assert main([*argv, "small-cnn,width=8", "--train-samples", "300", "--out", str(tmp_path)]) == 0
    again = json.loads((tmp_path / "compare.json").read_text())["methods"]["dml"]["difference"]
    assert again == found | {"both": None, "sign_both": None, "images": None}


def test_training_flops() -> None:
    run = Run(method="plain", student=("small-cnn,width=8",), train_samples=256, batch_size=64, epochs=3)
    source = load_source(run)
    from teacherless.models import create

    forward = flops(create("small-cnn", num_classes=10, in_channels=1, width=8), torch.zeros(1, 1, *source.size))
    counted = training_flops(run, source)
    steps = 3 * (len(source.train) // 64)
    assert 2.5 * forward * 64 * steps < counted < 3 * forward * 64 * steps, "the first layer needs no gradient of x"
    pair = run.model_copy(update={"method": "dml", "peers": 2})
    assert training_flops(pair, source) == 2 * counted
    turns = pair.model_copy(update={"set": {"update": "in_turn"}})
    assert training_flops(turns, source) == pytest.approx(2 * counted + 2 * forward * 64 * steps)
    assert training_flops(run.model_copy(update={"epochs": 1, "steps": 6}), source) == counted // steps * 6


def test_who_left_is_said_and_not_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair: Rows = {"peer0": (90.0, 91.0), "peer1": (None, math.nan)}
    cells, results = comparison([{"student": (90.0, 90.0)}], [pair])
    results["dml", 0].update(left={"peer1": 30})
    table = tabulate(cells, results)
    assert table["methods"]["dml"]["per_seed"] == {0: 91.0}
    for found in table["methods"].values():
        found |= {"train_flops": None, "inference": None}
    write_csv(table, tmp_path / "compare.csv")
    assert "peer1 not finite since step 30" in (tmp_path / "compare.csv").read_text()
    show.comparison({**table, "sweep": None, "cohort_size": []})
    assert "dml, seed 0: peer1 not finite since step 30; its numbers are the others'" in capsys.readouterr().out


def test_csv_of_a_comparison_that_failed(tmp_path: Path) -> None:
    cells = [Cell("plain", Run(method="plain"), tmp_path), Cell("dml", Run(method="dml", peers=2), tmp_path)]
    table = tabulate(cells, {("plain", 0): {"failed": "diverged"}, ("dml", 0): {"failed": "diverged"}})
    for found in table["methods"].values():
        found |= {"train_flops": None, "inference": None}
    write_csv(table, tmp_path / "compare.csv")
    assert (tmp_path / "compare.csv").read_text().count("diverged") == 2

"""Re-identification from the command line: train on persons, find others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from formats import write_market

from teacherless.cli import main

FAST = ["--img-size", "16", "--student", "small-cnn,width=8", "--epochs", "3", "-b", "8"]
METRICS = {f"{kind}{name}" for kind in ("", "mq_") for name in ("rank1", "rank5", "rank10", "map")}


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("market")
    write_market(root, persons=6)
    return root


@pytest.fixture(scope="module")
def run(market: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "market"
    torch.set_num_threads(1)
    data = ["--data", "market1501", "--data-dir", str(market)]
    assert main(["train", "dml", *data, *FAST, "--peers", "2", "--val-fraction", "0.2", "--out", str(out)]) == 0
    return out


def test_the_summary_has_both_students_and_the_cohort(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    rows = {**summary["students"], "ensemble": summary["ensemble"]}
    assert rows.keys() == {"peer0", "peer1", "ensemble"}
    for row in rows.values():
        assert {f"test_{metric}" for metric in METRICS} <= row.keys() and row["test_top1"] is None
        assert row["test_map"] > 60, "persons have colours: chance is about a sixth"
        assert row["test_rank1"] <= row["test_rank5"] <= row["test_rank10"] <= 100
    assert summary["students"]["peer0"]["val_top1"] is not None, "validation classifies"


def test_evaluate_says_what_the_summary_says(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert main(["evaluate", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "mAP %" in shown and "rank-1 %" in shown and "MQ mAP %" in shown and "ensemble" in shown
    for row in (*summary["students"].values(), summary["ensemble"]):
        assert f"{row['test_map']:.2f}" in shown and f"{row['test_mq_rank1']:.2f}" in shown
    assert main(["evaluate", str(run), "--split", "val"]) == 0
    assert "top-1 %" in capsys.readouterr().out
    assert main(["evaluate", str(run / "students" / "peer1")]) == 0
    alone = capsys.readouterr().out
    assert f"{summary['students']['peer1']['test_map']:.2f}" in alone and "ensemble" not in alone


def test_compare_shows_map(market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "--data",
        "market1501",
        "--data-dir",
        str(market),
        "--val-fraction",
        "0.2",
        *FAST[:4],
        "--steps",
        "2",
        "-b",
        "8",
    ]
    out = tmp_path / "compare"
    assert main(["compare", "--methods", "plain,dml", "--seeds", "2", "--jobs", "1", *argv, "--out", str(out)]) == 0
    shown = "".join(capsys.readouterr())
    row = json.loads((out / "cells" / "plain-s0" / "summary.json").read_text())["students"]["student"]
    assert "test mAP %" in shown and f"{row['test_map']:.2f} % on test" in shown


def test_a_folder_without_query(market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("bounding_box_train", "bounding_box_test"):
        (tmp_path / part).symlink_to(market / part)
    assert main(["train", "plain", "--data", "market1501", "--data-dir", str(tmp_path)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "found no query/" in line and str(tmp_path) in line


@pytest.mark.slow
def test_analyse_where_the_test_is_a_search(market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Entropy and flatness (Figures 3b and 4 of the DML paper) need no test labels, nor validation."""
    cells = tmp_path / "cells"
    data = ["--data", "market1501", "--data-dir", str(market), "--val-fraction", "0", "--steps", "2", *FAST[:4]]
    for seed in "01":
        for method, more in (("plain", []), ("dml", ["--peers", "3"])):
            where = ["--seed", seed, "--out", str(cells / f"{method}-s{seed}")]
            assert main(["train", method, *data, "-b", "8", *more, *where]) == 0
    capsys.readouterr()
    assert main(["analyse", str(tmp_path), "--out", str(tmp_path / "found")]) == 0
    said = {line.partition(":")[0] for line in capsys.readouterr().out.splitlines()}
    assert {
        "posteriors",
        "weight-noise",
        "unit-direction",
        "dml-targets",
        "variance",
        "cohort-size",
        "accuracy",
    } <= said
    assert not said & {"reliability", "class-gain", "agreement-dml", "features-pca"}, "these need classes on test"
    per_seed = json.loads((tmp_path / "found" / "accuracy.json").read_text())["per_seed"]["dml"]
    students = json.loads((cells / "dml-s1" / "summary.json").read_text())["students"].values()
    assert per_seed["1"] == pytest.approx(sum(row["test_map"] for row in students) / 3)
    entropy = json.loads((tmp_path / "found" / "posteriors.json").read_text())
    assert entropy["train"]["dml"]["entropy"] > 0 and entropy["test"]["dml"]["entropy"] > 0

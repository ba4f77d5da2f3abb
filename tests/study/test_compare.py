"""The comparison: interrupted and continued it says the same; a failed cell is kept out and named."""

from __future__ import annotations

import csv
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked

from teacherless.cli import main
from teacherless.runs.config import Run
from teacherless.study import cells as study_cells
from teacherless.study import findings, read_runs

ARGS = ["--data", "digits", "--student", "small-cnn,width=8", "--epochs", "2", "--train-samples", "400",
        "--methods", "dml,one", "--seeds", "3", "--jobs", "1"]  # fmt: skip
MEASURED = {"cost", "train_seconds", "inference", "verdict"}  # times differ from one run to the next


def told(out: Path) -> dict[str, Any]:
    """compare.json without what a clock decided."""
    table = json.loads((out / "compare.json").read_text())
    methods = {row: {k: v for k, v in found.items() if k not in MEASURED} for row, found in table["methods"].items()}
    return {**table, "methods": methods}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)  # as the other processes
    out = tmp_path_factory.mktemp("compare") / "whole"
    assert main(["compare", *ARGS, "--out", str(out)]) == 0
    return out


def test_table_and_files(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = json.loads((whole / "compare.json").read_text())
    assert list(table["methods"]) == ["plain", "dml", "one"]
    for row, found in table["methods"].items():
        assert found["student"]["seeds"] == 3
        assert len(found["per_seed"]) == 3
        assert found["inference"] == table["methods"]["plain"]["inference"], "one architecture is timed once"
        assert found["inference"]["flops"] > 0
        assert 0 < found["inference"]["low_ms"] <= found["inference"]["ms"] <= found["inference"]["high_ms"]
        assert (found["difference"] is None) == (row == "plain")
        assert found["networks"] == {"plain": 1, "dml": 2, "one": 3}[row]
        assert (found["best"] is None) == (row == "plain")
        assert found["train_flops"] > 0
    with (whole / "compare.csv").open() as file:
        assert [line["method"] for line in csv.DictReader(file)] == [
            "plain",
            "dml",
            "one",
            "2 plain networks",
            "3 plain networks",
        ]
    for name in ("accuracy", "cost", "training-curves"):
        assert (whole / f"{name}.png").stat().st_size > 1000
        assert (whole / f"{name}.svg").stat().st_size > 1000
    cell = json.loads((whole / "cells" / "dml-s1" / "summary.json").read_text())
    each = [student["test_top1"] for student in cell["students"].values()]
    assert table["methods"]["dml"]["per_seed"]["1"] == pytest.approx(sum(each) / 2)
    before = {p: p.stat().st_mtime_ns for p in whole.glob("cells/*/summary.json")}
    assert main(["compare", *ARGS, "--out", str(whole)]) == 0
    shown = capsys.readouterr().out
    assert "dml: " in shown
    assert "cover the choice of seeds" in shown and "359 test images, of which one is 0.28 points" in shown
    assert before == {p: p.stat().st_mtime_ns for p in whole.glob("cells/*/summary.json")}, "a finished cell was rerun"


def test_the_shared_student_starts_equal_and_sees_the_same_order(whole: Path) -> None:
    """With one step and rate 0 nothing moves: what is evaluated is the start."""
    first = [json.loads((whole / "cells" / f"{m}-s0" / "run.json").read_text()) for m in ("plain", "dml", "one")]
    assert len({found["data"]["fingerprint"] for found in first}) == 1
    from teacherless.runs.build import build_method, load_source

    nets = []
    for found in first:
        run = Run(**found["settings"])
        method, _ = build_method(run, load_source(run))
        nets.append(next(iter(method.students().values())).state_dict())
    for other in nets[1:]:
        for key, value in other.items():
            assert value.equal(nets[0][key]), key


def start(out: Path) -> Forked:
    return Forked("compare", *ARGS, "--checkpoint-every", "1s", "--out", str(out))


@pytest.mark.slow
def test_interrupted_and_killed_it_says_the_same(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "broken"
    for cells, number in ((1, signal.SIGINT), (4, signal.SIGKILL)):
        process = start(out)
        while len(list(out.glob("cells/*/checkpoints/*"))) <= 2 * cells and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(number)
        _, err = process.communicate()
        assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL), err
    process = start(out)
    _, err = process.communicate()
    assert process.returncode == 0, err
    expected, found = told(whole), told(out)
    expected["settings"].pop("checkpoint_every")
    found["settings"].pop("checkpoint_every")
    assert found == expected


def test_a_cell_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """label-smoothing is made to diverge; plain is kept, the table says why, and it is not tried again."""
    args = ["compare", "--student", "small-cnn,width=8", "--steps", "3", "--seeds", "2", "--lr", "1e25"]
    args += ["--jobs", "1", "--out"]
    assert main([*args, str(tmp_path / "c"), "--methods", "label-smoothing"]) == 4
    shown = capsys.readouterr().out
    assert "label-smoothing, seed 0 failed: training diverged" in shown
    table = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert table["methods"]["label-smoothing"]["student"] is None
    assert set(table["methods"]["label-smoothing"]["failed"]) == {"0", "1"}
    assert main([*args, str(tmp_path / "c"), "--methods", "label-smoothing"]) == 4


def test_one_seed_gives_a_table_and_no_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["compare", "--student", "small-cnn,width=8", "--epochs", "1", "--methods", "label-smoothing"]
    assert main([*args, "--seeds", "1", "--jobs", "1", "--out", str(tmp_path / "c")]) == 0
    assert "one seed shows nothing" in capsys.readouterr().out
    found = json.loads((tmp_path / "c" / "compare.json").read_text())["methods"]["label-smoothing"]
    assert found["difference"]["interval"] is None


def test_equal_compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FLOPs decide what is equal: a busy machine, where plain seems the dearer one, compares the same."""
    monkeypatch.setattr(study_cells, "_seconds", lambda folder: 1.0 if folder.name.startswith("dml") else 3.0)
    args = ["compare", "--student", "small-cnn,width=8", "--epochs", "2", "--methods", "dml", "--seeds", "2"]
    assert main([*args, "--equal-compute", "--jobs", "1", "--out", str(tmp_path / "c")]) == 0
    table = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert list(table["methods"]) == ["plain", "dml", "plain-2x-longer", "plain-2x-wider"]
    longer = json.loads((tmp_path / "c" / "cells" / "plain-2x-longer-s1" / "run.json").read_text())["settings"]
    assert longer["epochs"] == 4
    wider, plain = (table["methods"][row]["inference"]["flops"] for row in ("plain-2x-wider", "plain"))
    assert wider / plain == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--methods", "plain,dlm"], ["'dlm'", "did you mean 'dml'"]),
        (["--seeds", "0"], ["--seeds", "0"]),
        (["--peers", "3..1"], ["--peers", "'3..1'", "as 1..5"]),
        (["--peers", "1..3", "--student", "resnet8*2"], ["--peers", "1..3", "one --student"]),
        (["--jobs", "0"], ["--jobs", "0"]),
        (["--set", "temperature=2"], ["'temperature'", "METHOD.temperature"]),
        (["--set", "dml.temprature=2"], ["'temprature'", "did you mean 'temperature'"]),
        (["--methods", "kd"], ["--teacher", "kd reads a teacher"]),
        (["--student", "resnet23"], ["'resnet23'"]),
        (["--data", "digit"], ["'digit'"]),
    ],
)
def test_bad_input(argv: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *argv, "--out", str(tmp_path / "c")]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    for word in words:
        assert word in line
    assert not list(tmp_path.iterdir()), "a half-made folder"


def test_cells_of_other_settings_are_refused(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *ARGS, "--lr", "0.5", "--out", str(whole)]) == 2
    assert "was run with lr 0.1, not 0.5" in capsys.readouterr().err


@pytest.mark.slow
def test_one_command_makes_the_cohort_size_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["compare", "--student", "small-cnn,width=4", "--epochs", "1", "--train-samples", "200", "--seeds", "3"]
    assert main([*argv, "--methods", "dml", "--peers", "1..3", "--jobs", "1", "--out", str(tmp_path / "c")]) == 0
    table = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert {row: found["networks"] for row, found in table["methods"].items()} == {
        "plain": 1, "dml-2-peers": 2, "dml-3-peers": 3}  # fmt: skip
    sizes = {(row["kind"], row["size"]): row for row in table["cohort_size"]}
    assert sizes.keys() == {("dml", 2), ("dml", 3), *(("independent", k) for k in (1, 2, 3))}
    assert sizes["dml", 3]["single"] == pytest.approx(table["methods"]["dml-3-peers"]["student"]["mean"])
    assert sizes["independent", 3]["ensemble"] == table["plain_networks"][1]["ensemble"]
    assert (tmp_path / "c" / "cohort-size.png").stat().st_size > 1000
    capsys.readouterr()
    monkeypatch.setattr(read_runs, "KINDS", (findings.sizes,))  # the others are slow, and not of this
    assert main(["analyse", str(tmp_path / "c")]) == 0
    said = capsys.readouterr().out
    assert "cohort-size: dml K=2" in said and "dml K=3" in said

"""--sweep: every method chooses on validation, with seeds of its own, at a cost that is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from teacherless.cli import main
from teacherless.errors import InputError
from teacherless.runs.config import Run
from teacherless.study import sweep
from teacherless.study.cells import Cell

ARGS = ["compare", "--student", "small-cnn,width=4", "--train-samples", "200", "--epochs", "2", "--methods", "dml",
        "--seeds", "2", "--jobs", "1", "--equal-compute"]  # fmt: skip


def cell(out: Path, val: dict[str, float | None], nll: float | None, test: float) -> Cell:
    out.mkdir(parents=True)
    more = {"test_top1": test, "test_nll": 0.1, "test_ece": 1.0}
    students = {name: {"val_top1": top1, **more} for name, top1 in val.items()}
    summary = {"method": "dml", "epochs": 1, "ensemble": None, "chosen": next(iter(val)), "train_seconds": 1.0}
    (out / "summary.json").write_text(json.dumps({**summary, "students": students}))
    line = {"epoch": 0, "seconds": 2.0, **{f"val/nll/{name}": nll for name in val}}
    (out / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return Cell("dml", Run(method="dml"), out)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """All cells that were to be run."""
    seen: list[Cell] = []
    monkeypatch.setattr(sweep, "run_cells", lambda cells, jobs, told, then: seen.extend(cells))
    return seen


def test_validation_decides_and_never_test(tmp_path: Path, trials: list[Cell]) -> None:
    """0.3 is best on test and 0.1 on validation; 0.01 has one peer that is better and one that is worse."""
    best = {0.01: ({"a": 95.0, "b": 80.0}, 0.1, 99.0), 0.1: ({"a": 90.0, "b": 90.0}, 0.5, 10.0),
            0.3: ({"a": 89.0, "b": 90.0}, 0.1, 100.0)}  # fmt: skip
    for value, made in best.items():
        for seed in (1000, 1001):
            cell(tmp_path / "sweep" / f"dml-lr={value:g}-s{seed}", *made)
    found = sweep.choose("lr", [0.01, 0.1, 0.3], {"dml": Run(method="dml")}, tmp_path, 1, quiet=True)
    assert found == {"setting": "lr", "seeds": 2, "methods": {"dml": {
        "tried": {"0.01": 87.5, "0.1": 90.0, "0.3": 89.5}, "chosen": 0.1, "seconds": 12.0}}}  # fmt: skip
    assert [(trial.run.lr, trial.run.seed) for trial in trials] == [
        (lr, seed) for lr in (0.01, 0.1, 0.3) for seed in (1000, 1001)
    ]


def test_nll_decides_between_equals_and_who_diverged_is_out(tmp_path: Path, trials: list[Cell]) -> None:
    for value, nll in ((0.01, 0.5), (0.1, 0.4), (0.3, 0.1)):
        for seed in (1000, 1001):
            made = cell(tmp_path / "sweep" / f"plain-lr={value:g}-s{seed}", {"student": 90.0}, nll, 90.0)
    (made.folder / "summary.json").unlink()  # of 0.3
    (made.folder / "failed.json").write_text(json.dumps({"failed": "diverged"}))
    found = sweep.choose("lr", [0.01, 0.1, 0.3], {"plain": Run(method="plain")}, tmp_path, 1, quiet=True)
    assert found["methods"]["plain"]["chosen"] == 0.1
    assert found["methods"]["plain"]["tried"]["0.3"] is None


def test_a_value_whose_nll_is_no_number_is_out(tmp_path: Path, trials: list[Cell]) -> None:
    for value, top1, nll in ((0.1, 80.0, 0.5), (0.3, 90.0, None)):
        for seed in (1000, 1001):
            cell(tmp_path / "sweep" / f"plain-lr={value:g}-s{seed}", {"student": top1}, nll, 90.0)
    found = sweep.choose("lr", [0.1, 0.3], {"plain": Run(method="plain")}, tmp_path, 1, quiet=True)
    assert found["methods"]["plain"]["chosen"] == 0.1


def test_without_validation_nothing_is_chosen(tmp_path: Path, trials: list[Cell]) -> None:
    for value in (0.1, 0.3):
        for seed in (1000, 1001):
            cell(tmp_path / "sweep" / f"plain-lr={value:g}-s{seed}", {"student": None}, 0.1, 90.0)
    with pytest.raises(InputError, match="no validation split"):
        sweep.choose("lr", [0.1, 0.3], {"plain": Run(method="plain")}, tmp_path, 1, quiet=True)


@pytest.mark.slow
def test_a_whole_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A rate that teaches nothing is left; the cells, plain's longer and wider ones too, have what was chosen."""
    out = tmp_path / "c"
    assert main([*ARGS, "--sweep", "lr=1e-7,0.1", "--json", "--out", str(out)]) == 0
    shown, said = capsys.readouterr()
    table = json.loads(shown)
    assert table == json.loads((out / "compare.json").read_text()) | {key: table[key] for key in ("pictures", "report")}
    said = next(line for line in said.splitlines() if line.startswith("[1/8] plain, lr 1e-07, seed 1000: "))
    assert "on validation" in said
    assert {row: found["chosen"] for row, found in table["sweep"]["methods"].items()} == {"plain": 0.1, "dml": 0.1}
    assert all(found["seconds"] > 0 for found in table["sweep"]["methods"].values())
    runs = [json.loads(path.read_text())["settings"] for path in out.glob("cells/*/run.json")]
    assert len(runs) >= 4 and {run["lr"] for run in runs} == {0.1} and {run["seed"] for run in runs} == {0, 1}
    assert main([*ARGS, "--sweep", "lr=1e-7,0.1", "--out", str(out)]) == 0
    shown, said = capsys.readouterr()
    assert said == "", "something was run again"
    assert "lr was chosen by top-1 on validation, in %, with 2 other seeds" in shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr", ["--sweep", "'lr'", "lr=0.03,0.1,0.3"]),
        ("lr=0.1", ["--sweep", "two values"]),
        ("lr=0.1,0.10", ["--sweep", "two values"]),
        ("lr=0.1,no", ["--sweep", "--lr", "'no'"]),
        ("lr=0.1,-1", ["--sweep", "--lr", "'-1'"]),
        ("data=digits,svhn", ["unknown setting to sweep 'data'"]),
        ("weight-decya=0,1e-4", ["'weight-decya'", "did you mean 'weight_decay'"]),
    ],
)
def test_bad_input(text: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ARGS, "--sweep", text, "--out", str(tmp_path / "c")]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    for word in words:
        assert word in line
    assert not list(tmp_path.iterdir())

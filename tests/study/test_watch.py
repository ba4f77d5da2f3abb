"""What a comparison says while it runs: read from the folders, so that it does not matter who writes them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from teacherless.runs.config import Run
from teacherless.study.cells import Cell
from teacherless.study.watch import Progress


def cell(out: Path, row: str, seed: int) -> Cell:
    folder = out / f"{row}-s{seed}"
    folder.mkdir()
    return Cell(row, Run(method="plain", seed=seed, epochs=4), folder)


def trained(cell: Cell, epochs: int, seconds: float, total: int = 4) -> None:
    stored = {"settings": {}, "data": {}, "engine": "loop", "amp": None, "epochs": total}
    (cell.folder / "run.json").write_text(json.dumps(stored))
    lines = [json.dumps({"epoch": epoch, "seconds": seconds}) + "\n" for epoch in range(epochs)]
    (cell.folder / "metrics.jsonl").write_text("".join(lines))


def finished(cell: Cell, top1: float) -> None:
    row = {"val_top1": None, "test_top1": top1, "test_nll": 0.1, "test_ece": 1.0}
    summary = {"method": "plain", "epochs": 4, "students": {"student": row}, "ensemble": None, "chosen": "student",
               "train_seconds": 1.0}  # fmt: skip
    (cell.folder / "summary.json").write_text(json.dumps(summary))


def test_the_time_left_weighs_epochs_by_what_they_take(tmp_path: Path) -> None:
    a, b, c = cell(tmp_path, "plain", 0), cell(tmp_path, "dml", 0), cell(tmp_path, "dml", 1)
    trained(a, 1, 1.0)  # of an earlier session: its time is not this one's
    progress = Progress([a, b, c], lambda cell, done: "done", then=", then more")
    assert progress._left() == ""
    progress.began = time.monotonic() - 20
    trained(a, 3, 1.0)
    trained(b, 2, 4.0)
    for each in (a, b):
        progress.start(each)
    progress._look(None)  # type: ignore[arg-type]  # nothing has finished: nothing is said
    # Done are 2 x 1 + 2 x 4 in 20 s; missing are 1 x 1 + 2 x 4 + 4 x 4.
    assert progress._left() == ", about 50 s left, then more"
    assert progress._status() == [
        "plain, seed 0: epoch 4/4", "dml, seed 0: epoch 3/4", "0 of 3 runs done, about 50 s left, then more"
    ]  # fmt: skip


def test_a_run_with_phases_has_as_many_epochs_as_it_says(tmp_path: Path) -> None:
    a = cell(tmp_path, "fitnets", 0)
    progress = Progress([a], lambda cell, done: "done")
    progress.start(a)
    assert progress._status()[0] == "fitnets, seed 0: epoch 1/4"
    trained(a, 5, 1.0, total=8)
    progress._look(None)  # type: ignore[arg-type]
    assert progress._status()[0] == "fitnets, seed 0: epoch 6/8"


def told(cell: Cell, done: dict[str, Any]) -> str:
    return str(done["failed"]) if "failed" in done else f"{done['students']['student']['test_top1']} %"


def test_plain_lines_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teacherless.study.watch.SILENCE", 0.3)
    a, b = cell(tmp_path, "plain", 0), cell(tmp_path, "dml", 0)
    with Progress([a, b], told) as progress:
        progress.start(a)
        time.sleep(1)
        trained(a, 4, 1.0)
        finished(a, 91.5)
        progress.start(b)
        (b.folder / "failed.json").write_text('{"failed": "diverged"}')
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "plain, seed 0: epoch 1/4; 0 of 2 runs done"
    assert said[-2].startswith("[1/2] plain, seed 0: 91.5 %, about ") or said[-2] == "[1/2] plain, seed 0: 91.5 %"
    assert said[-1] == "[2/2] dml, seed 0: diverged"


def test_nothing_to_do_is_not_worth_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = cell(tmp_path, "plain", 0)
    trained(a, 4, 1.0)
    finished(a, 91.5)
    with Progress([a], lambda cell, done: "done"):
        pass
    assert capsys.readouterr().err == ""

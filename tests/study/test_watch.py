"""What a comparison says while it runs: read from the folders, so that it does not matter who writes them."""

from __future__ import annotations

import json
import re
import sys
import time
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from rich.console import Console
from terminal import run

from teacherless.files import disk
from teacherless.runs.config import Run
from teacherless.study.cells import Cell
from teacherless.study.watch import Progress, Told, estimate


def cell(out: Path, row: str, seed: int) -> Cell:
    folder = out / f"{row}-s{seed}"
    folder.mkdir()
    return Cell(row, Run(method="plain", seed=seed, epochs=4), folder)


def trained(cell: Cell, epochs: int, seconds: float, total: int = 4) -> None:
    stored = {"settings": {}, "data": {}, "engine": "loop", "amp": None, "epochs": total}
    disk.write_json(cell.folder / "run.json", stored)  # whole or not at all, as a run does: somebody is reading
    lines = [json.dumps({"epoch": epoch, "seconds": seconds}) + "\n" for epoch in range(epochs)]
    (cell.folder / "metrics.jsonl").write_text("".join(lines))


def finished(cell: Cell, top1: float) -> None:
    row = {"val_top1": None, "test_top1": top1, "test_nll": 0.1, "test_ece": 1.0}
    summary = {"method": "plain", "epochs": 4, "students": {"student": row}, "ensemble": None, "chosen": "student",
               "train_seconds": 1.0}  # fmt: skip
    disk.write_json(cell.folder / "summary.json", summary)


TOLD = Told("test", lambda cell, done: done["students"]["student"]["test_top1"])


def test_the_time_left_weighs_epochs_by_what_they_take(tmp_path: Path) -> None:
    a, b, c = cell(tmp_path, "plain", 0), cell(tmp_path, "dml", 0), cell(tmp_path, "dml", 1)
    trained(a, 1, 1.0)  # of an earlier session: its time is not this one's
    progress = Progress([a, b, c], TOLD, then=", then more")
    assert progress._left() == ""
    progress.began = time.monotonic() - 20
    trained(a, 3, 1.0)
    trained(b, 2, 4.0)
    for each in (a, b):
        progress.start(each)
    progress._look()  # nothing has finished: nothing is said
    # Done are 2 x 1 + 2 x 4 in 20 s; missing are 1 x 1 + 2 x 4 + 4 x 4.
    assert progress._left() == ", about 50 s left, then more"
    assert progress._at() == ["plain, seed 0: epoch 4/4", "dml, seed 0: epoch 3/4"]
    assert progress._count() == "0 of 3 runs done, about 50 s left, then more"


def test_a_run_with_phases_has_as_many_epochs_as_it_says(tmp_path: Path) -> None:
    a = cell(tmp_path, "fitnets", 0)
    progress = Progress([a], TOLD)
    progress.start(a)
    assert progress._at()[0] == "fitnets, seed 0: epoch 1/4"
    trained(a, 5, 1.0, total=8)
    progress._look()
    assert progress._at()[0] == "fitnets, seed 0: epoch 6/8"


def test_plain_lines_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teacherless.study.watch.SILENCE", 0.3)
    monkeypatch.setattr("teacherless.training.live.SHARE", 10)  # where CPU time is dear it would hardly look
    cells = a, b, c = cell(tmp_path, "plain", 0), cell(tmp_path, "dml", 0), cell(tmp_path, "dml", 1)
    with Progress(cells, TOLD) as progress:
        progress.start(a)
        time.sleep(1)
        trained(a, 4, 1.0)
        finished(a, 91.5)
        time.sleep(0.5)
        progress.start(b)
        trained(b, 4, 1.0)
        finished(b, 92.75)
        time.sleep(0.5)
        progress.start(c)
        (c.folder / "failed.json").write_text('{"failed": "diverged"}')
    said = [re.sub(", about .* left$", "", line) for line in capsys.readouterr().err.splitlines()]
    assert said[0] == "plain, seed 0: epoch 1/4; 0 of 3 runs done"
    assert [line for line in said if line.startswith("[")] == [
        "[1/3] plain, seed 0: 91.50 % on test, 1.0 s",
        "[2/3] dml, seed 0: 92.75 % on test, 1.0 s, vs plain so far +1.25",
        "[3/3] dml, seed 1: failed: diverged",
    ]


def test_nothing_to_do_is_not_worth_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = cell(tmp_path, "plain", 0)
    trained(a, 4, 1.0)
    finished(a, 91.5)
    with Progress([a], TOLD):
        pass
    assert capsys.readouterr().err == ""


def test_an_estimate_is_paired_and_has_an_interval_from_three_seeds_on() -> None:
    numbers = {"plain": {0: 90.0, 1: 91.0, 2: 92.0}, "dml": {3: 99.0}}
    assert estimate(numbers, "dml") == estimate(numbers, "plain") == ()
    numbers["dml"] |= {0: 91.0, 1: 91.0}
    assert estimate(numbers, "dml") == ("+0.50",)
    numbers["dml"][2] = 94.0
    assert estimate(numbers, "dml") == ("+1.00", "[-1.48, +3.48]")  # 1 ± 4.303 x 1 / sqrt 3
    numbers["dml"] |= {1: 92.0, 2: 93.0}
    assert estimate(numbers, "dml") == ("+1.00",), "without a spread nothing is known of it"


def compared(tmp_path: Path) -> Progress:
    """Of five seeds three are done, but for one that failed; dml's fourth runs."""
    cells = [cell(tmp_path, row, seed) for seed in range(5) for row in ("plain", "dml")]
    for each in cells[:6]:
        trained(each, 4, 1.0)
        finished(each, 90.0 + each.run.seed * (2 if each.row == "dml" else 1))
    (cells[6].folder / "failed.json").write_text('{"failed": "diverged"}')
    trained(cells[7], 2, 1.0)
    progress = Progress(cells, TOLD)
    progress.start(cells[7])
    return progress


def drawn(progress: Progress, columns: int, encoding: str = "utf-8") -> list[str]:
    file = TextIOWrapper(BytesIO(), encoding=encoding)
    progress.console = Console(file=file, width=columns, force_terminal=True, color_system=None)
    progress.console.print(progress._picture())
    file.seek(0)
    return [line.rstrip() for line in file]


def test_the_grid(tmp_path: Path) -> None:
    progress = compared(tmp_path)
    assert drawn(progress, 80) == [
        "method  runs   vs plain    95 %, so far  test %",
        "plain   ███✗·                             91.00",
        "dml     ███▄·     +1.00  [-1.48, +3.48]   92.00",
        "7 of 10 runs done",
        "dml, seed 3: epoch 3/4",
    ]


def test_the_grid_where_it_is_narrow(tmp_path: Path) -> None:
    progress = compared(tmp_path)
    assert drawn(progress, 40)[:3] == [
        "method  runs   vs plain    95 %, so far", "plain   ███✗·", "dml     ███▄·     +1.00  [-1.48, +3.48]"
    ]  # fmt: skip
    assert drawn(progress, 30)[2] == "dml     ███▄·     +1.00"
    assert drawn(progress, 30, "ascii")[1:3] == ["plain   ###x.", "dml     ###4.     +1.00"]


PATHS = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
WATCHED = """
import sys
sys.path[:0] = {paths!r}
import time
from pathlib import Path
from test_watch import TOLD, cell, finished, trained
from teacherless.study.watch import Progress
from teacherless.training import live
live.SHARE = 10  # where CPU time is dear, hardly anything would be drawn
out = Path({out!r})
cells = [cell(out, row, seed) for seed in range(2) for row in ("plain", "dml")]
with Progress(cells, TOLD) as progress:
    for each in cells:
        progress.start(each)
        trained(each, 2, 1.0)
        time.sleep(0.8)
        trained(each, 4, 1.0)
        finished(each, 90.0 + each.run.seed + (each.row == "dml"))
        time.sleep(0.8)
"""


@pytest.mark.parametrize("columns", [100, pytest.param(40, marks=pytest.mark.slow)])
def test_in_a_terminal(tmp_path: Path, columns: int) -> None:
    """The grid is drawn over itself, and gone in the end; the lines of the finished cells stay."""
    code = WATCHED.format(paths=PATHS, out=str(tmp_path))
    shown, written = run([sys.executable, "-c", code], columns)
    assert "█▄" in written and "2 of 4 runs done" in written and "+1.00" in written
    assert "method" in written and not any("method" in line or "runs done" in line for line in shown)
    said = "".join(line.ljust(columns) if len(line) == columns else line + "\n" for line in shown)
    assert [line[:5] for line in said.splitlines() if line.startswith("[")] == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]


@pytest.mark.slow
def test_a_dumb_terminal_gets_lines(tmp_path: Path) -> None:
    code = WATCHED.format(paths=PATHS, out=str(tmp_path))
    shown, written = run([sys.executable, "-c", code], 200, TERM="dumb")
    assert "\x1b" not in written and "vs plain so far +1.00" in shown[1]

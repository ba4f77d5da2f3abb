"""Every file operation of a comparison's cell is where it ends, once: the comparison goes on to the same bits."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
from operations import How, Operations
from test_checkpoint import contents

from teacherless.errors import InputError
from teacherless.files import disk
from teacherless.runs.config import Run
from teacherless.study.cells import Cell, run_cell

SMALL: dict[str, Any] = {"student": ["small-cnn,width=2"], "steps": 2, "batch_size": 600, "checkpoint_every": "1s",
                         "device": "cpu"}  # fmt: skip
RUNS = {"done": Run(method="dml", peers=2, **SMALL), "diverged": Run(method="plain", lr=1e30, **SMALL)}
STRIDE = 13  # of the operations, where all of them would take too long


def left(cell: Cell) -> dict[str, Any]:
    """What a cell that has come to its end leaves, apart from times."""
    done = cell.done()
    assert done is not None
    return done if "failed" in done else contents(cell.folder)


def ended(cell: Cell, at: int, how: How) -> None:
    """A process of its own that comes to its end at an operation."""
    child = os.fork()
    if child == 0:
        try:
            with Operations(cell.folder.parents[1], at, how):
                run_cell(cell.run, cell.folder)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("how", ["kill", "power", "ENOSPC", "EIO"])
@pytest.mark.parametrize("points", ["some", pytest.param("all", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("kind", RUNS)
def test_it_ends_anywhere(kind: str, how: How, points: str, tmp_path: Path) -> None:
    def cell(name: str) -> Cell:
        (tmp_path / name / "cells").mkdir(parents=True)  # of its own comparison, whose locks are beside its cells
        return Cell(kind, RUNS[kind], tmp_path / name / "cells" / "cell")

    straight = cell("straight")
    with Operations(straight.folder.parents[1], 0, "never") as operations:
        run_cell(straight.run, straight.folder)
    expected, last = left(straight), operations.count
    assert ("failed" in expected) == (kind == "diverged")
    tried = range(1 if points == "all" else STRIDE, last + 1, 1 if points == "all" else STRIDE)
    for at in tried:
        again = cell(str(at))
        if how in ("kill", "power"):
            ended(again, at, how)
        else:  # what is refused is said in one line; only removing is never refused
            with Operations(again.folder.parents[1], at, how), contextlib.suppress(InputError):
                run_cell(again.run, again.folder)
        if again.done() is None:
            run_cell(again.run, again.folder)
            assert not list(again.folder.rglob(disk.PART + "*"))
        assert left(again) == expected, at
    print(f"{kind}, {how}: {len(tried)} of {last} operations")

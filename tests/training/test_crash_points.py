"""Every file operation of a run is where it ends, once: `--resume` gives the bits of a run that nobody disturbed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from operations import How, Operations
from test_checkpoint import contents, fit

from teacherless.errors import InputError
from teacherless.files import disk
from teacherless.training import checkpoint

RUN: dict[str, Any] = {"epochs": 2, "checkpoint_every": "2s"}  # of four steps each: four checkpoints, of which two stay
STRIDE = 9  # of the operations, where all of them would take too long


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], int]:
    """What an undisturbed run leaves, and how many file operations it takes."""
    out = tmp_path_factory.mktemp("straight") / "run"
    with Operations(out.parent, 0, "never") as operations:
        fit("dml", out, **RUN)
    return contents(out), operations.count


def disturbed(out: Path, at: int, how: How) -> None:
    """A process of its own that comes to its end at an operation."""
    child = os.fork()
    if child == 0:
        try:
            with Operations(out.parent, at, how):
                fit("dml", out, **RUN)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def whole(out: Path) -> None:
    """What is there under a final name is whole."""
    for path in out.rglob("*.json"):
        json.loads(path.read_text())


def try_all(straight: tuple[dict[str, Any], int], how: How, points: range, tmp_path: Path) -> None:
    expected, _ = straight
    for at in points:
        out = tmp_path / str(at) / "run"
        out.parent.mkdir()
        if how in ("kill", "power"):
            disturbed(out, at, how)
        else:
            with (
                Operations(out.parent, at, how),
                pytest.raises(InputError, match=r"^[^\n]*(No space left|Input/output)"),
            ):
                fit("dml", out, **RUN)
            whole(out)
        fit("dml", out, resume=True, **RUN)
        assert contents(out) == expected, at
        whole(out)
        assert not list(out.rglob(disk.PART + "*"))
        assert len(checkpoint.steps(out / "checkpoints")) == checkpoint.KEEP


@pytest.mark.parametrize("how", ["kill", "power", "ENOSPC", "EIO"])
@pytest.mark.parametrize("points", ["some", pytest.param("all", marks=pytest.mark.exhaustive)])
def test_it_ends_anywhere(how: How, points: str, straight: tuple[dict[str, Any], int], tmp_path: Path) -> None:
    last = straight[1]
    few = range(STRIDE, last + 1, STRIDE)
    try_all(straight, how, range(1, last + 1) if points == "all" else few, tmp_path)
    print(f"{how}: each of {last} operations" if points == "all" else f"{how}: {len(few)} of {last} operations")

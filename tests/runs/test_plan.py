"""What `plan` says is what `train` does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from teacherless.cli import main
from teacherless.runs.config import Run
from teacherless.runs.plan import plan


def test_a_plan_is_the_runs_own_bill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = plan(Run(method="dml", student=("small-cnn,width=4",), peers=3, epochs=7, train_samples=640))
    assert (found.epochs, found.steps, found.engine, found.helpers) == (7, 10, "loop", 0)
    assert list(found.students) == ["peer0", "peer1", "peer2"] and len(set(found.students.values())) == 1
    assert found.epoch_seconds >= 10 * found.step_seconds > 0
    assert found.seconds == pytest.approx(7 * found.epoch_seconds)
    assert found.room is not None and found.room > 3
    assert found.relative > 1.2 and 1e8 < found.peak_bytes < 1e11
    assert not os.listdir(tmp_path)


def test_phases_and_helpers_are_counted() -> None:
    found = plan(Run(method="one", student=("small-cnn,width=4",), steps=25, batch_size=32, train_samples=320))
    assert (found.epochs, found.steps, found.room) == (3, 10, None)
    assert found.helpers > 0 and len(found.students) == 3


def test_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "dml", "--student", "small-cnn,width=4", "--peers", "2", "--train-samples", "128"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["parameters", "peak", "engine", "time", "cost"]
    assert main(["plan", "dml", "--student", "small-cnn"]) == 2

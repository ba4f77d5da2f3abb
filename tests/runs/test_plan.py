"""What `plan` says is what `train` does."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from teacherless.cli import main
from teacherless.data import Loader
from teacherless.method import Batch
from teacherless.runs.config import Run
from teacherless.runs.plan import Plan


def test_a_plan_is_the_runs_own_bill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = Plan(Run(method="dml", student=("small-cnn,width=4",), peers=3, epochs=7, train_samples=640))
    assert (found.epochs, found.per_epoch, found.engine, found.helpers) == (7, 10, "loop", 0)
    assert list(found.students) == ["peer0", "peer1", "peer2"] and len(set(found.students.values())) == 1
    bill = found.bill()
    assert bill.epoch_seconds >= 10 * bill.step_seconds > 0
    assert bill.seconds == pytest.approx(7 * bill.epoch_seconds)
    assert bill.relative > 1.2 and 1e8 < bill.peak_bytes < 1e11
    assert not os.listdir(tmp_path)


def test_phases_and_helpers_are_counted() -> None:
    found = Plan(Run(method="one", student=("small-cnn,width=4",), steps=25, batch_size=32, train_samples=320))
    assert (found.epochs, found.per_epoch) == (3, 10)
    assert found.helpers > 0 and len(found.students) == 3


def test_plain_costs_as_much_as_plain() -> None:
    assert Plan(Run(method="plain", student=("small-cnn,width=4",), train_samples=128)).bill().relative == 1


def test_a_few_steps_and_no_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every phase six batches; one where a step is slow; of validation, what one batch of training says."""
    batches: list[bool] = []  # of a loader with distortions: training
    read = Loader.epoch

    def counted(self: Loader, *where: int) -> Iterator[Batch]:
        for batch in read(self, *where):
            batches.append(self.augment is not None)
            yield batch

    monkeypatch.setattr(Loader, "epoch", counted)
    run = Run(method="dml", student=("small-cnn,width=4",), peers=2)
    Plan(run).bill()
    assert batches == [True] * (6 + 1 + 6)
    batches.clear()
    monkeypatch.setattr("teacherless.runs.plan.SLOW", 0.0)
    Plan(run).bill()
    assert batches == [True] * 3


def test_it_says_that_amp_stays_in_fp32(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("teacherless.training.step.fast_in_bf16", lambda device: False)
    argv = ["plan", "plain", "--student", "small-cnn,width=4", "--train-samples", "128"]
    for flag, said in (("--amp", "fp32, since this CPU has no bf16 instructions"), ("--amp-anyway", "bf16")):
        assert main([*argv, flag, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["precision"] == said


def test_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "dml", "--student", "small-cnn,width=4", "--peers", "2", "--train-samples", "128"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["parameters", "engine", "peak", "time", "cost"]
    assert lines[1].endswith("loop, fp32")
    assert "would fit" not in "".join(lines)
    assert main(["plan", "dml", "--student", "small-cnn", "--engine", "graph"]) == 2

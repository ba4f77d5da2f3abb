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


def test_ranks_are_planned(capsys: pytest.CaptureFixture[str]) -> None:
    """Two of four students each, of which one is dearer: what a rank sends, and the batch of all."""
    argv = [
        "plan",
        "dml",
        "--student",
        "small-cnn,width=8",
        "--student",
        "small-cnn*3,width=4",
        "--train-samples",
        "256",
    ]
    argv += ["-b", "16", "--json", "--parallel"]
    planned = {}
    for words in ("2x2", "4x1", "1x4", "2x1 --set topology=ring", "2x1 --exchange-every 100", "2x1 --place 0,0,1,1"):
        assert main([*argv, *words.split()]) == 0
        planned[words] = json.loads(capsys.readouterr().out)
    sizes = planned["2x2"]["students"]
    ranks = {words: each["ranks"] for words, each in planned.items()}
    assert ranks["4x1"]["students"] == [["peer0"], ["peer1"], ["peer2"], ["peer3"]]
    assert ranks["2x1 --place 0,0,1,1"]["students"] == [["peer0", "peer1"], ["peer2", "peer3"]]
    assert [ranks[words]["batch_size"] for words in ("2x2", "4x1", "1x4")] == [32, 16, 64]
    assert [planned[words]["per_epoch"] for words in ("2x2", "4x1", "1x4")] == [8, 16, 4]
    message = 4 * 16 * 11  # B x (C + 1) numbers, however many students are here
    assert [ranks[words]["peer_bytes"] for words in ("2x2", "4x1", "1x4")] == [message, message, 0]
    (here,) = (each for each in ranks["2x2"]["students"] if "peer0" in each)
    assert ranks["2x2"]["data_bytes"] == 4 * sum(sizes[name] for name in here)
    assert ranks["1x4"]["data_bytes"] == 4 * sum(sizes.values())
    ring = ranks["2x1 --set topology=ring"]
    assert ring["peer_bytes"] == 4 * 16 * 10 * max(map(len, ring["students"])) and ring["data_bytes"] == 0
    assert ranks["2x1 --exchange-every 100"]["peer_bytes"] == 0.04 * max(sizes.values()) * max(
        map(len, ring["students"])
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--parallel peers", "--parallel: found 'peers'; without ranks it must be as 2x4 (peer x data)"),
        ("--parallel 3x1", "--parallel: found 3 ranks for peers; there are 2 students to share out"),
        ("--parallel 1x2 -b 100", "--batch-size: found 100 on each of 2 data ranks; the training set has 128 samples"),
        ("--parallel 2x1 --place 0,0", "--place: found '0,0'"),
    ],
)
def test_ranks_that_do_not_fit_are_one_line(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "dml", "--student", "small-cnn,width=4", "--train-samples", "128", *words.split()]) == 2
    assert capsys.readouterr().err.startswith(f"teacherless: {said}")


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

"""Snapshot ensembles against a training written by hand from the paper's equation."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CLASSES, batch, tiny
from torch.nn import functional as F

from teacherless.data import as_loader
from teacherless.errors import InputError
from teacherless.method import Batch, Wants
from teacherless.methods.snapshot import Snapshot
from teacherless.training.checkpoint import steps
from teacherless.training.lifecycle import to_the_end, train
from teacherless.training.loop import Training
from teacherless.training.settings import Settings

# Which children of the method each term's gradient may reach; everything else must get none.
ROUTES = {"ce": {"student"}}

F64 = torch.float64
EPOCHS, CYCLES, LR = 6, 3, 0.1


def test_equals_a_training_written_by_hand() -> None:
    """Equation 2's rate, step by step; a copy where it has fallen to zero; their mean probability."""
    data = [batch(seed, dtype=F64) for seed in range(4)]
    method = Snapshot(tiny(0, dtype=F64), cycles=CYCLES)
    train(method, data, epochs=EPOCHS, lr=LR, quiet=True)

    net, kept = tiny(0, dtype=F64).train(), []
    per_cycle = len(data) * EPOCHS // CYCLES
    for t in range(len(data) * EPOCHS):
        if t % per_cycle == 0:
            optimizer = torch.optim.SGD(net.parameters(), LR, 0.9, weight_decay=5e-4, nesterov=True)
        for group in optimizer.param_groups:
            group["lr"] = LR / 2 * (math.cos(math.pi * (t % per_cycle) / per_cycle) + 1)
        optimizer.zero_grad()
        F.cross_entropy(net(data[t % len(data)].inputs[0]), data[t % len(data)].labels).backward()
        optimizer.step()
        if (t + 1) % per_cycle == 0:
            kept.append(copy.deepcopy(net).eval())

    x = batch(9, dtype=F64).inputs[0]
    method.eval()
    with torch.no_grad():
        for ours, by_hand in zip([*method.snapshots, method.student], kept, strict=True):
            torch.testing.assert_close(ours(x), by_hand(x), rtol=1e-9, atol=1e-10)
        together = torch.stack([by_hand(x).softmax(1) for by_hand in kept]).mean(0)
        torch.testing.assert_close(method.ensemble()(x).exp(), together.float(), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(kept[0](x), kept[2](x), rtol=1e-2), "the cycles are not the same network"


def test_epochs_are_shared_and_rounded_up() -> None:
    method = Snapshot(tiny(0), cycles=CYCLES)
    assert [method.share(amount) for amount in (1, 3, 6, 7)] == [1, 1, 2, 3]
    history = train(method, [batch()], epochs=7, quiet=True).history
    assert [line["phase"] for line in history] == ["cycle1"] * 3 + ["cycle2"] * 3 + ["cycle3"] * 3
    assert [line["epoch"] for line in history] == list(range(9))


def test_a_cycle_does_not_see_again_what_the_last_one_saw() -> None:
    """The order and the distortions of samples are a function of the epoch, so the epochs of all cycles are counted."""
    asked = []

    class Data:
        def epoch(self, epoch: int, start: int = 0) -> list[Batch]:
            asked.append(epoch)
            return [batch(epoch)][start:]

        def __len__(self) -> int:
            return 1

    training = Training(Snapshot(tiny(0), cycles=3), Data(), None, Settings(epochs=6), {}, None, quiet=True)
    training.loop()
    assert asked == list(range(6))


def test_many_cycles_resume_from_the_newest_checkpoint(tmp_path: Path) -> None:
    """Checkpoints are numbered by phase, and from phase ten on a number has a digit more."""
    data = [batch(seed) for seed in range(2)]
    train(Snapshot(tiny(0), cycles=12), data, epochs=12, out=tmp_path / "run", checkpoint_every="1e", quiet=True)
    found = steps(tmp_path / "run" / "checkpoints")
    assert [int(path.name) for path in found] == [11 * 10**9 + 2, 10 * 10**9 + 2]


def test_phases_that_are_over_have_no_more_epochs(tmp_path: Path) -> None:
    data = as_loader([batch(seed) for seed in range(2)], Wants(), torch.device("cpu"))

    def run(epochs: int, **more: Any) -> dict[str, Any]:
        training = Training(
            Snapshot(tiny(0), cycles=2), data, None, Settings(epochs=epochs), {}, tmp_path / "run", quiet=True
        )
        return to_the_end(training, None, **more).summary

    assert run(3)["epochs"] == 4
    assert run(3, resume=True)["epochs"] == 4
    with pytest.raises(InputError, match=r"a run with phases \(cycle1, cycle2\) keeps its own"):
        run(8, resume=True, anyway=True)


def test_steps_are_shared() -> None:
    method = Snapshot(tiny(0), cycles=2)
    result = train(method, [batch(seed) for seed in range(3)], steps=8, quiet=True)
    assert [line["step"] for line in result.history] == [3, 4, 3, 4]


def test_averaged_weights_are_what_a_cycle_leaves() -> None:
    method = Snapshot(tiny(0), cycles=2)
    data = [batch(seed) for seed in range(3)]
    train(method, data, epochs=1, ema=0.9, quiet=True)
    last = Snapshot(tiny(0), cycles=2)
    train(last, data, epochs=1, quiet=True)
    ours, plain = method.snapshots[0].state_dict(), last.snapshots[0].state_dict()
    assert any(not torch.equal(ours[key], plain[key]) for key in ours)


def test_copies_do_not_learn() -> None:
    method = Snapshot(tiny(0))
    assert method.phases == tuple(f"cycle{i}" for i in range(1, 6))
    assert all(not p.requires_grad for p in method.snapshots.parameters())
    assert method.ensemble()(batch().inputs[0]).shape == (len(batch().labels), CLASSES)


@pytest.mark.parametrize("cycles", [1, 0, -2])
def test_refuses_what_is_no_cycle(cycles: int) -> None:
    with pytest.raises(InputError, match=f"cycles: found {cycles}; must be at least 2"):
        Snapshot(tiny(0), cycles=cycles)

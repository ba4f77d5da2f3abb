"""--ema: the average against a slow loop; what is evaluated, shipped and resumed with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import batch, tiny
from test_all_methods import build, every_method
from test_checkpoint import contents, fit
from test_foreign import ViT, user
from torch import nn

import teacherless as tl
from teacherless.data import as_loader
from teacherless.errors import Stopped
from teacherless.evaluation.metrics import evaluate
from teacherless.methods.one import ONE
from teacherless.training.ema import Average
from teacherless.training.lifecycle import Result, to_the_end
from teacherless.training.loop import Training
from teacherless.training.settings import Settings

DECAY = 0.7  # reached from step 21 on; until then (1 + n) / (10 + n)
DATA = [batch(seed) for seed in range(4)]
VAL = [batch(9, 20)]


def run(**settings: Any) -> Result:
    method = tl.DML(tiny(0), tiny(1))
    return tl.train(method, DATA, VAL, VAL, sched="constant", quiet=True, **settings)


def state(method: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def test_average_is_that_of_a_slow_loop() -> None:
    expected = state(tl.DML(tiny(0), tiny(1)))
    for n in range(1, 25):
        decay = min(DECAY, (1 + n) / (10 + n))
        for name, now in state(run(steps=n).method).items():
            whole = not now.is_floating_point()  # counts, and who has left
            expected[name] = now if whole else decay * expected[name] + (1 - decay) * now
    found = run(steps=24, ema=DECAY)
    for name, value in found.method.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_training_goes_on_as_without() -> None:
    plain, averaged = run(epochs=3), run(epochs=3, ema=DECAY)
    for a, b in zip(plain.history, averaged.history, strict=True):
        assert {k: v for k, v in a.items() if k.startswith("train/")} == {
            k: v for k, v in b.items() if k.startswith("train/")
        }
    assert plain.history[-1]["val/nll/peer0"] != averaged.history[-1]["val/nll/peer0"]


@pytest.mark.parametrize("select", ["last", "best"])
def test_what_is_evaluated_is_what_is_shipped(select: str, tmp_path: Path) -> None:
    result = run(epochs=3, ema=DECAY, select=select, out=tmp_path / "run")
    for name, net in result.method.students().items():
        shipped = tl.load_student(tmp_path / "run" / "students" / name, net=tiny(5)).net
        assert all(torch.equal(a, b) for a, b in zip(shipped.parameters(), net.parameters(), strict=True))
        found = evaluate({name: shipped}, VAL)[name]
        assert found["top1"] == result.summary["students"][name]["test_top1"]
        if select == "last":
            assert found["nll"] == pytest.approx(result.history[-1][f"val/nll/{name}"], rel=1e-6)
    if select == "best":
        means = [(line["val/top1/peer0"] + line["val/top1/peer1"]) / 2 for line in result.history]
        assert sum(s["val_top1"] for s in result.summary["students"].values()) / 2 == pytest.approx(max(means))


@pytest.mark.parametrize("name", ["dml", "one", "fitnets", "ps-kd"])
@pytest.mark.parametrize("select", ["last", "best"])
def test_resume_is_the_same_bits(name: str, select: str, tmp_path: Path) -> None:
    fit(name, tmp_path / "a", ema=DECAY, select=select)
    with pytest.raises(Stopped):
        fit(name, tmp_path / "b", ema=DECAY, select=select, stop_at=11)
    fit(name, tmp_path / "b", ema=DECAY, select=select, resume=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("ema", [0.0, DECAY])
@pytest.mark.parametrize("select", ["last", "best"])
def test_more_epochs_go_on_from_the_weights_that_were_trained(ema: float, select: str, tmp_path: Path) -> None:
    """Not from those that were shipped."""

    def go(out: Path, epochs: int, **more: bool) -> None:
        settings = Settings(epochs=epochs, sched="constant", ema=ema, select=select)
        data = [as_loader(batches, tl.Wants(), torch.device("cpu")) for batches in (DATA, VAL)]
        to_the_end(Training(tl.Plain(tiny(0)), *data, settings, {}, out, quiet=True), None, **more)

    go(tmp_path / "a", 4)
    go(tmp_path / "b", 2)
    go(tmp_path / "b", 4, resume=True, anyway=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@every_method
def test_twice_is_as_before(name: str) -> None:
    """Whatever is shared inside a method is averaged, and exchanged, once."""
    twice(build(name))


def test_twice_is_as_before_for_foreign_branches() -> None:
    twice(ONE(user(ViT), branches=3))


def twice(method: tl.Method) -> None:
    average = Average(method, DECAY)
    start = state(method)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(1.0)
    average.update(5)
    trained = state(method)
    with average:
        inside = state(method)
    assert all(torch.equal(value, trained[name]) for name, value in method.state_dict().items())
    learnt = {parameter.data_ptr() for parameter in method.parameters()}
    for name, value in inside.items():
        if method.state_dict()[name].data_ptr() in learnt:
            torch.testing.assert_close(value, start[name] + 0.6, rtol=0, atol=1e-5)  # 6/15 of the old stays
        else:
            assert torch.equal(value, trained[name]), name


def test_memory_is_not_averaged() -> None:
    method = build("ps-kd")
    memory = {name for name, value in method.state_dict().items() if value.shape[:1] == (64,)}
    assert memory and not memory & Average(method, DECAY).values.keys()

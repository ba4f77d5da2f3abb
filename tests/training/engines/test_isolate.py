"""A peer that goes bad leaves the others' mean: they end with the bits of a run without it."""

from __future__ import annotations

import contextlib
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import images, tiny
from test_all_methods import data
from test_checkpoint import Data, contents
from test_graph import tape
from torch import Tensor, nn

import teacherless as tl
from teacherless.errors import Diverged, Stopped
from teacherless.method import Batch, Output, Progress
from teacherless.training.engines.graph import Graph
from teacherless.training.engines.threads import share
from teacherless.training.precision import channels_last
from teacherless.training.settings import Settings
from teacherless.training.step import Engine, make_optimizer, train_step

STEPS, BAD_FROM, GOOD = 40, 30, (0, 2)
Step = Callable[[Batch, Progress], Output]


def cohort(**options: Any) -> tl.Method:
    return tl.METHODS["dml"](*(tiny(seed) for seed in range(3)), **options).train()


def batches(views: int = 1) -> Iterator[tuple[Batch, Progress]]:
    for step in range(STEPS):
        inputs = tuple(images(V * 1000 + step, 12)[0] for V in range(views))
        yield (
            Batch(inputs, images(step, 12)[1]),
            Progress(torch.tensor(step), torch.tensor(step // 10), torch.tensor(4)),
        )


def spoil(net: nn.Module, value: float) -> None:
    next(net.parameters()).data.fill_(value)


@contextlib.contextmanager
def engine(name: str, method: tl.Method, optimizer: torch.optim.Optimizer, settings: Settings) -> Iterator[Step]:
    if name == "graph":
        one = lambda b, p: train_step(method, optimizer, b, p, settings.clip_grad)  # noqa: E731
        yield Graph(one, optimizer, record=tape).step
        return
    with Engine(method, settings.model_copy(update={"engine": name}), torch.device("cpu")) as made:
        yield lambda b, p: made.step(optimizer, b, p)


def weights(method: tl.Method, names: tuple[str, ...]) -> list[Tensor]:
    students = method.students()
    return [value for name in names for value in students[name].state_dict().values()]


def both(
    name: str,
    options: dict[str, Any],
    without: dict[str, Any],
    settings: Settings,
    bad: float = math.nan,
) -> tuple[tl.Method, list[Tensor], list[Tensor]]:
    """Peers 0 and 2 of a run in which peer 1 is spoiled before step 30, and of one that they end without it."""
    method = cohort(**options)
    optimizer = make_optimizer(method.param_groups(), settings, {})
    with engine(name, method, optimizer, settings) as step:
        for at, (batch, progress) in enumerate(batches(options.get("views", 1))):
            if at == BAD_FROM:
                spoil(method.students()["peer1"], bad)
            out = step(batch, progress)
            assert all(term.isfinite() for term in out.terms.values())
    assert method.left().tolist() == [-1, BAD_FROM, -1]

    whole = cohort(**options)
    if name != "graph":
        channels_last(whole)  # as the engine has it
    together = make_optimizer(whole.param_groups(), settings, {})
    rest = tl.METHODS["dml"](*(whole.peers[i] for i in GOOD), **without).train()
    for at, (batch, progress) in enumerate(batches(options.get("views", 1))):
        if at < BAD_FROM:
            train_step(whole, together, batch, progress, settings.clip_grad)
        else:
            train_step(rest, share(together, GOOD), batch, progress, settings.clip_grad)
    return method, weights(method, ("peer0", "peer2")), weights(rest, ("peer0", "peer1"))


@pytest.mark.parametrize(
    "bad", [math.nan, *(pytest.param(bad, marks=pytest.mark.exhaustive) for bad in (math.inf, 3e38))]
)
@pytest.mark.parametrize("settings", [{}, {"opt": "adam", "lr": 1e-3}, {"clip_grad": 0.1}], ids=str)
@pytest.mark.parametrize("name", ["loop", "threads", "graph"])
def test_the_others_end_with_the_bits_of_a_run_without_it(name: str, settings: dict[str, Any], bad: float) -> None:
    method, ours, reference = both(name, {}, {}, Settings(**settings), bad)
    assert all(map(torch.equal, ours, reference))
    assert set(method.students()["peer0"].state_dict()) == set(tiny(0).state_dict()), "the flag is not shipped"
    ensemble = method.ensemble()
    assert ensemble is not None
    assert ensemble(images(0)[0]).isfinite().all()


LAST = ((0.0, 1.0), (0.0, 0.0))


@pytest.mark.parametrize(
    ("options", "without"),
    [
        *(({key: value},) * 2 for key, value in [("mimicry", "dml_e"), ("temperature", 2.0), ("update", "in_turn"),
                                                 ("reduce", "sum"), ("mimicry", "symmetric"), ("topology", "star")]),
        ({"mimicry": "dml_e", "reduce": "sum"},) * 2,
        ({"topology": "weak-to-strong"},) * 2,
        ({"topology": "ring"}, {"topology": ((0.0, 1.0), (0.0, 0.0))}),  # peer 2 listened to who has left
    ],
    ids=str,
)  # fmt: skip
def test_dialects(options: dict[str, Any], without: dict[str, Any]) -> None:
    _, ours, reference = both("loop", options, without, Settings())
    assert all(map(torch.equal, ours, reference))


def test_views() -> None:
    """Three of five others remain, which is no power of two: equal but for rounding."""
    _, ours, reference = both("loop", {"views": 2}, {"views": 2}, Settings())
    for value, expected in zip(ours, reference, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"mimicry": "symmetric"}, {"topology": "ring"}], ids=str)
def test_when_all_have_left_the_loss_is_no_number(options: dict[str, Any]) -> None:
    method = cohort(**options)
    for net in method.students().values():
        spoil(net, math.nan)
    out = method(Batch(*[(images(0)[0],)], images(0)[1]))
    assert out.loss.isnan()
    assert method.ensemble() is None


# A whole run ---------------------------------------------------------------------------------------------------------


def fit(out: Path, *, resume: bool = False, **settings: Any) -> None:
    """Three peers, four epochs of four batches; the last peer is spoiled before batch `spoil_at`, counted from 1."""
    method = cohort()
    at = {key: settings.pop(key, None) for key in ("stop_at", "spoil_at")}
    val = [(data(method, 5).inputs[0], data(method, 5).labels)]
    how = {"epochs": 4, "checkpoint_every": "1e", "quiet": True} | settings
    random.seed(0)
    np.random.seed(0)
    tl.train(method, Data(method, **at), val, val, out=out, resume=resume, **how)


@pytest.mark.parametrize("stop", [7, 8, 12], ids=str)  # in the step in which it leaves, after it, at an epoch's end
@pytest.mark.parametrize(
    "how",
    [
        {"engine": "loop"},
        {"engine": "threads"},
        pytest.param({"ema": 0.9}, marks=pytest.mark.exhaustive),
        pytest.param({"select": "best"}, marks=pytest.mark.exhaustive),
    ],
    ids=str,
)
def test_resume_in_between(stop: int, how: dict[str, Any], tmp_path: Path) -> None:
    fit(tmp_path / "straight", spoil_at=7, **how)
    with pytest.raises(Stopped):
        fit(tmp_path / "halves", spoil_at=7, stop_at=stop, **how)
    fit(tmp_path / "halves", resume=True, **how)
    assert contents(tmp_path / "halves") == contents(tmp_path / "straight")


def test_summary_and_log_say_who_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, spoil_at=7, quiet=False)
    printed = capsys.readouterr().out.splitlines()
    assert "not finite" not in printed[0]
    assert all("  (peer2 not finite since step 6)  " in line for line in printed[1:])
    no = pytest.fail  # NaN is no JSON
    lines = [json.loads(line, parse_constant=no) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("left") for line in lines] == [None, *[{"peer2": 6}] * 3]
    for line in lines[1:]:
        numbers = {key: value for key, value in line.items() if key.count("/")}
        assert {key for key, value in numbers.items() if value is None} == {k for k in numbers if k.endswith("/peer2")}
    found = json.loads((tmp_path / "summary.json").read_text(), parse_constant=no)
    assert found["left"] == {"peer2": 6}
    assert {v for key, v in found["students"]["peer2"].items() if key != "params"} == {None}
    assert found["doctor"][0]["evidence"] == "peer2 not finite since step 6: not in their mean, not shipped"
    assert found["ensemble"]["val_top1"] is not None
    assert found["chosen"] != "peer2"
    assert {path.name for path in (tmp_path / "students").iterdir()} == {"peer0", "peer1"}
    again = tmp_path / "students" / "peer0" / "model.safetensors"
    before = again.read_bytes()
    fit(tmp_path, resume=True)  # finished
    again.unlink()
    fit(tmp_path, resume=True)
    assert again.read_bytes() == before
    assert {path.name for path in (tmp_path / "students").iterdir()} == {"peer0", "peer1"}


class Counted(list[Batch]):
    """Batches that count how often they are read."""

    reads = 0

    def __iter__(self) -> Iterator[Batch]:
        self.reads += 1
        return super().__iter__()


def test_who_goes_bad_in_the_last_step_has_left_too(tmp_path: Path) -> None:
    method = cohort()
    parts = data(method)
    next(method.students()["peer1"].parameters()).register_hook(lambda grad: grad * math.inf)
    test = Counted([parts])
    result = tl.train(method, [parts], [parts], test, out=tmp_path, epochs=1, quiet=True)
    assert result.summary["left"] == {"peer1": 1}
    assert test.reads == 1, "validation tells who has left, before the test set is read"
    assert result.summary["ensemble"]["val_top1"] is not None
    assert not (tmp_path / "students" / "peer1").exists()


def test_all_gone_is_the_end(tmp_path: Path) -> None:
    method = cohort()
    for net in method.students().values():
        next(net.parameters()).register_hook(lambda grad: grad * math.inf)
    with pytest.raises(Diverged, match="training diverged in epoch 0: train/ce, train/mimicry is not finite"):
        tl.train(method, [data(method)] * 3, out=tmp_path, epochs=2, quiet=True)
    assert not (tmp_path / "summary.json").exists()

"""`--on-divergence revive`: a peer that went bad comes back as it was at the last epoch's end at which it was whole."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_all_methods import data
from test_checkpoint import Data, contents
from test_graph import tape
from test_isolate import batches, cohort, fit, spoil
from torch import Tensor

import teacherless as tl
from teacherless.data import as_loader
from teacherless.errors import Stopped
from teacherless.training.engines.graph import Graph
from teacherless.training.loop import Training
from teacherless.training.revival import TIMES, Revival
from teacherless.training.settings import Settings
from teacherless.training.step import make_optimizer, train_step

HOW = [{"engine": "loop"}, {"engine": "threads"}, {"opt": "adam", "lr": 1e-3}, {"ema": 0.9}, {"momentum": 0.0}]


def by_hand(how: dict[str, Any]) -> dict[str, Tensor]:
    """What the definition says: peer2 goes bad in the second of four epochs, and at its end gets the weights of
    the end of the first, an optimizer that has no state of it, and an average that begins there."""
    method = cohort()
    settings = Settings(**{"epochs": 4, "checkpoint_every": "1e"} | how)
    training = Training(method, Data(method, spoil_at=7), None, settings, {}, None, quiet=True)
    remembered: dict[str, Tensor] = {}

    def end(line: dict[str, Any]) -> None:
        peer = method.peers[2]
        if line["epoch"] == 0:
            remembered.update({key: value.clone() for key, value in peer.state_dict().items()})
        if line["epoch"] == 1:
            assert line["left"] == {"peer2": 6}
            peer.load_state_dict(remembered)
            for parameter in peer.parameters():
                training.optimizer.state.pop(parameter, None)
            method.left_at[2] = -1
            if training.average:
                training.average.values.update(
                    {f"peers.2.{key}": value.clone() for key, value in peer.state_dict().items()
                     if f"peers.2.{key}" in training.average.values}
                )  # fmt: skip

    training.on_epoch = end
    training.data = as_loader(training.data, method.wants, torch.device("cpu"), dtype=None, train=True)
    training.loop()
    return method.state_dict()


@pytest.mark.parametrize("how", HOW, ids=str)
def test_the_bits_are_those_of_the_definition(how: dict[str, Any], tmp_path: Path) -> None:
    random.seed(0)
    np.random.seed(0)
    expected = by_hand(how)
    method = cohort()
    random.seed(0)
    np.random.seed(0)
    how = {"epochs": 4, "checkpoint_every": "1e", "quiet": True, "on_divergence": "revive"} | how
    result = tl.train(method, Data(method, spoil_at=7), out=tmp_path, **how)
    assert all(torch.equal(value, expected[key]) for key, value in method.state_dict().items())
    assert all(value.isfinite().all() for value in method.state_dict().values())
    assert result.summary["revived"] == {"peer2": 1} and "left" not in result.summary
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("left") for line in lines] == [None, {"peer2": 6}, None, None]
    assert [line.get("revived") for line in lines] == [None, None, {"peer2": 1}, {"peer2": 1}]
    assert (tmp_path / "students" / "peer2").is_dir()


@pytest.mark.parametrize(
    "stop", [7, 8, *(pytest.param(stop, marks=pytest.mark.exhaustive) for stop in (9, 12))], ids=str
)  # when it leaves, when it comes back, after
@pytest.mark.parametrize("how", [*HOW[:4], {"select": "best"}], ids=str)
def test_resume_in_between(stop: int, how: dict[str, Any], tmp_path: Path) -> None:
    how = how | {"on_divergence": "revive"}
    fit(tmp_path / "straight", spoil_at=7, **how)
    with pytest.raises(Stopped):
        fit(tmp_path / "halves", spoil_at=7, stop_at=stop, **how)
    fit(tmp_path / "halves", resume=True, **how)
    assert contents(tmp_path / "halves") == contents(tmp_path / "straight")


def test_not_for_ever(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every step spoils it: it comes back twice, then it stays away."""
    method = cohort()
    next(method.students()["peer1"].parameters()).register_hook(lambda grad: grad * math.inf)
    batch = data(method)
    result = tl.train(method, [batch] * 3, [batch], out=tmp_path, epochs=5, on_divergence="revive")
    assert result.summary["revived"] == {"peer1": TIMES}
    assert result.summary["left"] == {"peer1": 1 + 3 * TIMES}
    assert f"peer1 comes back as it was when it was last whole ({TIMES} of {TIMES} times)" in capsys.readouterr().out
    assert not (tmp_path / "students" / "peer1").exists()


@pytest.mark.parametrize("settings", [{}, {"opt": "adam", "lr": 1e-3}], ids=str)
def test_a_recorded_step_sees_who_has_come_back(settings: dict[str, Any]) -> None:
    """All is written in place: the graph's tape goes on with the loop's bits."""
    found = []
    for recorded in (False, True):
        method, chosen = cohort(), Settings(**settings)
        optimizer = make_optimizer(method.param_groups(), chosen, {})
        revival = Revival(method.students(), on=True)
        step = lambda b, p, m=method, o=optimizer: train_step(m, o, b, p, None)  # noqa: E731
        step = Graph(step, optimizer, record=tape).step if recorded else step
        for at, (batch, progress) in enumerate(batches()):
            if at == 10:
                spoil(method.students()["peer1"], math.nan)
            if at in (5, 15):
                revival.end_epoch(method.left(), {}, optimizer)
            step(batch, progress)
        assert method.left().tolist() == [-1, -1, -1] and revival.times == {"peer1": 1}
        found.append(list(method.state_dict().values()))
    assert all(map(torch.equal, *found))
    assert all(value.isfinite().all() for value in found[0])

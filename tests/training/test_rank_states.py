"""The state of a run out of its ranks' states, and theirs out of the run's, without processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from teacherless.training import rank_states
from teacherless.training.checkpoint import State, pack

MESH: dict[str, Any] = {"peer": 2, "data": 2, "students": [[0, 2], [1, 3]]}


def of_one(rank: int) -> State:
    """A rank's own state on MESH, with everything of students that it does not hold as it was at the beginning."""
    peer, data = divmod(rank, MESH["data"])
    weights = {f"peer{i}.weight": torch.full((2,), float(i * (i in MESH["students"][peer]))) for i in range(4)}
    means = {f"peer{i}.mean": torch.tensor([float(rank)]) for i in range(4)}
    sums = {"train/ce": torch.tensor(1.0 + rank), "students": torch.full((4, 2), 10.0 + rank)}
    recorder = {"count": 8 + data, "history": ["a line"], "terms": list(sums)}
    return pack(
        loop=State({}, {"step": 3}),
        method=State(weights | means, {}),
        optimizer=State({}, {"numbers": {str(i): 0.9 for i in MESH["students"][peer]}}),
        recorder=State(sums, recorder),
        random=State({"torch": torch.tensor([rank])}, {"drawn": rank}),
        epoch_random=State({}, {}),
    )


def of_all() -> State:
    parameters = {f"peer{i}.weight" for i in range(4)}
    states = []
    for rank in range(4):
        peer, data = divmod(rank, MESH["data"])
        foreign = tuple(f"peer{i}." for i in range(4) if i not in MESH["students"][peer])
        states.append(rank_states.sent(of_one(rank), data, foreign, parameters))
    return rank_states.of_run(states, MESH)


def test_a_run_has_every_student_from_a_rank_that_holds_it_and_all_sums() -> None:
    tensors, values = of_all()
    assert [tensors[f"method/peer{i}.weight"].tolist() for i in range(4)] == [[i, i] for i in range(4)]
    assert [tensors[f"method/peer{i}.mean"].item() for i in range(4)] == [0, 2, 0, 2]
    assert not any(name.startswith("rank") and name.endswith("weight") for name in tensors), "alike on all data ranks"
    assert tensors["recorder/train/ce"] == 1 + 2 + 3 + 4
    assert tensors["recorder/students"][0].tolist() == [10 + 11, 12 + 13, 10 + 11, 12 + 13]
    assert values["recorder"]["count"] == 8 + 9
    assert values["optimizer"]["numbers"].keys() == {"0", "1", "2", "3"}
    assert "history" not in values["rank1"]["recorder"]


@pytest.mark.parametrize("rank", range(4))
def test_a_rank_on_the_same_mesh_has_its_own_again(rank: int) -> None:
    (tensors, values), own = rank_states.of_rank(rank, of_all(), MESH), of_one(rank)
    for name, tensor in own.tensors.items():
        holds = any(f"/peer{i}." in name for i in MESH["students"][rank // 2])
        assert torch.equal(tensors[name], tensor) or not (holds or name.startswith(rank_states.OWN))
    assert {name: values[name] for name in rank_states.OWN} == {name: own.values[name] for name in rank_states.OWN}


def test_ranks_of_another_mesh_have_the_sums_between_them() -> None:
    run, mesh = of_all(), {"peer": 1, "data": 2, "students": [[0, 1, 2, 3]]}
    epochs: list[tuple[dict[str, Tensor], int]] = []
    for rank in range(2):
        tensors, values = rank_states.of_rank(rank, run, mesh)
        sums = {name: tensors[f"recorder/{name}"] for name in values["recorder"]["terms"]}
        epochs.append((sums, values["recorder"]["count"]))
    total, count = rank_states.added(epochs, mesh)
    assert count == run.values["recorder"]["count"]
    assert all(torch.equal(value, run.tensors[f"recorder/{name}"]) for name, value in total.items())

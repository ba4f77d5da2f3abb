"""The state of a run out of its ranks' states, and a rank's state out of the run's. Without collectives.

`mesh` is what a checkpoint says of the ranks: in `{"peer": 2, "data": 2, "students": [[0, 2], [1, 3]]}` rank r has the
students of place r // 2 along "peer", and is at place r % 2 along "data".
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from teacherless.training.checkpoint import State, unpack
from teacherless.training.record import STUDENTS

OWN = ("recorder", "random", "epoch_random")  # parts of a run's state that each rank has for itself


def sent(state: State, data: int, foreign: tuple[str, ...], parameters: Collection[str]) -> State:
    """A rank's part of the run's state, on the CPU: nothing whose name is `foreign`, and from a place along "data"
    behind the first only what may differ there, which the method's `parameters` do not."""
    tensors = {}
    for key, tensor in state.tensors.items():
        pack, _, name = key.partition("/")
        may_differ = pack in OWN or (pack in ("method", "average") and name not in parameters)
        if not name.startswith(foreign) and (data == 0 or may_differ):
            tensors[key] = tensor.cpu()
    return State(tensors, state.values)


def of_run(states: Sequence[State], mesh: dict[str, Any]) -> State:
    """The run's state as one process has it, and what each rank has for itself; `states` are what all ranks sent."""
    tensors, values = dict(states[0].tensors), dict(states[0].values)
    numbers: dict[str, Any] = {}
    for rank, state in enumerate(states):
        for key, tensor in state.tensors.items():
            own = key.split("/")[0] in OWN
            if not own and rank % mesh["data"] == 0:
                tensors[key] = tensor
            elif own or key not in tensors or not torch.equal(tensors[key], tensor):
                tensors[f"rank{rank}/{key}"] = tensor
        numbers |= state.values["optimizer"]["numbers"]
        recorder = {key: value for key, value in state.values["recorder"].items() if key != "history"}
        values[f"rank{rank}"] = {name: state.values[name] for name in OWN} | {"recorder": recorder}
    recorders = [unpack(state, "recorder") for state in states]
    sums, count = added([(each.tensors, each.values["count"]) for each in recorders], mesh)
    tensors |= {f"recorder/{name}": value for name, value in sums.items()}
    values["recorder"] = values["recorder"] | {"count": count}
    values["optimizer"] = values["optimizer"] | {"numbers": numbers}
    values["mesh"] = mesh
    return State(tensors, values)


def of_rank(rank: int, state: State, mesh: dict[str, Any]) -> State:
    """What a rank goes on from: on the same mesh with what it had for itself, to the same bits."""
    tensors, values = state
    if values.get("mesh") == mesh:
        own = unpack(state, f"rank{rank}")
        return State(tensors | own.tensors, values | {name: values[name] | own.values[name] for name in OWN})
    first, (peer, data) = rank == 0, divmod(rank, mesh["data"])
    changed = {f"recorder/{name}": tensors[f"recorder/{name}"] * first for name in values["recorder"]["terms"]}
    if (students := f"recorder/{STUDENTS}") in changed:
        changed[students] = tensors[students][:, mesh["students"][peer]] * (data == 0)
    if not first:  # or all ranks would drop the same units
        generator = torch.Generator().manual_seed(rank + (values["loop"]["step"] << 20))
        changed["random/torch"] = generator.get_state()
    recorder = values["recorder"] | {"count": values["recorder"]["count"] * first}
    return State(tensors | changed, values | {"recorder": recorder})


def added(epochs: Sequence[tuple[dict[str, Tensor], int]], mesh: dict[str, Any]) -> tuple[dict[str, Tensor], int]:
    """An epoch's sums so far, and of how many samples they are: those of all ranks out of each rank's."""
    total: dict[str, Tensor] = {}
    for rank, (sums, _) in enumerate(epochs):
        for name, value in sums.items():
            if name == STUDENTS:
                rows = torch.tensor(mesh["students"][rank // mesh["data"]])
                every = value.new_zeros(len(value), sum(map(len, mesh["students"])))
                value = every.index_copy(1, rows, value)
            total[name] = total[name] + value if name in total else value
    return total, sum(count for _, count in epochs[: mesh["data"]])

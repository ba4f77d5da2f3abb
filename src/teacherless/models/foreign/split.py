"""A foreign network cut after a stage, for ONE, without a word about how its modules are wired.

The trunk runs the network's own `forward` up to that stage and keeps what every module on the way answered. A branch
runs `forward` again from the start, but there the trunk's modules repeat their outputs instead of computing; what comes
after the stage is the branch's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from teacherless.batch import Input
from teacherless.errors import InputError
from teacherless.models.foreign.stages import first_tensor, join
from teacherless.network import call, calling

if TYPE_CHECKING:
    from teacherless.models.foreign.wrapper import Foreign


class TrunkOutput(NamedTuple):
    """What a trunk says: enough for a branch to go on."""

    x: Input
    map: Tensor  # of its last stage
    outputs: dict[str, list[Any]]  # of each of its modules, in the order of their calls


class Trunk(nn.Module):
    """A foreign network up to a stage."""

    def __init__(self, foreign: Foreign, stages: int) -> None:
        super().__init__()
        self._foreign = (foreign,)  # a tuple: not registered
        self._last = stages - 1
        calls = foreign.structure.calls
        end = calls[foreign.structure.stages[self._last]].ended
        before = cut(foreign, stages)[0]
        self._before = [path for path in before if path in calls and calls[path].ended <= end]
        self.modules_before = nn.ModuleList(map(foreign.net.get_submodule, before))
        self.across = nn.ModuleList(Holder(foreign.net.get_submodule(path)) for path in across(foreign, stages))

    def forward(self, x: Input) -> TrunkOutput:
        """`[B, ...]` -> the stage's map, and what every module returned."""
        (foreign,) = self._foreign
        one_graph_cannot()
        outputs: dict[str, list[Any]] = {path: [] for path in self._before}
        with ExitStack() as hooks:
            for path, recorded in outputs.items():
                module = foreign.net.get_submodule(path)
                hooks.enter_context(module.register_forward_hook(lambda _m, _a, out, into=recorded: into.append(out)))
            return TrunkOutput(x, foreign.reach(x, self._last), outputs)


class Branch(nn.Module):
    """A foreign network after a stage: its own `forward`, in which the trunk's modules repeat what they returned."""

    def __init__(self, foreign: Foreign, stages: int) -> None:
        super().__init__()
        self._foreign = (foreign,)  # a tuple: not registered
        self.modules_after = nn.ModuleList(map(foreign.net.get_submodule, cut(foreign, stages)[1]))

    def forward(self, trunk_output: TrunkOutput) -> Tensor:
        """What a trunk returned -> logits `[B, C]`.

        Raises: InputError if the network changes a shared map in place: the next branch would read the changed one.
        """
        (foreign,) = self._foreign
        outputs = trunk_output.outputs
        versions = {path: _versions(recorded) for path, recorded in outputs.items()}
        told = {foreign.net.get_submodule(path): partial(_next, iter(each)) for path, each in outputs.items()}
        with calling(told):
            logits = call(foreign, trunk_output.x)
        for path, recorded in outputs.items():
            if _versions(recorded) != versions[path]:
                what = f"changes the output of {path!r} in place after the split"
                raise InputError(f"{foreign.name}: {what}, so branches cannot share it; split elsewhere")
        return logits


class Holder(nn.Module):
    """What a container of modules holds itself: its very own tensors, without the modules."""

    def __init__(self, container: nn.Module) -> None:
        super().__init__()
        self._parameters, self._buffers = container._parameters, container._buffers
        self._non_persistent_buffers_set = container._non_persistent_buffers_set


def cut(foreign: Foreign, stages: int) -> tuple[list[str], list[str]]:
    """Paths of the modules that run only up to a stage, and of those that run only after it, as few as can be."""
    calls = foreign.structure.calls
    end = calls[foreign.structure.stages[stages - 1]].ended if stages else -1
    before: list[str] = []
    after: list[str] = []

    def sort(path: str, module: nn.Module) -> None:
        call = calls.get(path)
        if call and call.began > end:
            after.append(path)
        elif (call and call.ended <= end) or not any(True for _ in module.children()):
            before.append(path)  # also what ran on both sides, or never: it is one module for all
        else:
            for name, child in module.named_children():
                sort(join(path, name), child)

    sort("", foreign.net)
    return before, after


def across(foreign: Foreign, stages: int) -> list[str]:
    """Paths of the containers of modules on both sides."""
    within = tuple(f"{path}." if path else "" for side in cut(foreign, stages) for path in side)
    whole = {path for side in cut(foreign, stages) for path in side}
    return [path for path, _ in foreign.net.named_modules() if path not in whole and not f"{path}.".startswith(within)]


def _next(recorded: Iterator[Any], *args: Any, **kwargs: Any) -> Any:
    """A module that returns what it is told, call after call, and computes nothing."""
    return next(recorded)


def tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [*module.parameters(), *module.buffers()]


def _versions(recorded: list[Any]) -> list[int]:
    return [tensor._version for tensor in map(first_tensor, recorded) if tensor is not None]


def one_graph_cannot() -> None:
    """Break the graph where torch.compile makes one."""
    if torch.compiler.is_compiling():
        why = "stages of somebody else's network are read by hooks, which no graph can hold"
        torch._dynamo.graph_break(f"{why}; compile without fullgraph=True")

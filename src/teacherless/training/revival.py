"""`--on-divergence revive`: a peer that went bad comes back, at the epoch's end, as it was when it was last whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from teacherless.training import checkpoint
from teacherless.training.checkpoint import State
from teacherless.training.ema import Average

TIMES = 2  # that a peer comes back: one that goes bad a third time will do so for ever


class Revival:
    """The students as they were at the last epoch's end at which each was whole, at first as they began.

    Args:
        students: by name.
        on: whether any comes back; without it nothing is remembered.
    """

    def __init__(self, students: Mapping[str, nn.Module], on: bool) -> None:
        self.students, self.on = students, on
        self.times: dict[str, int] = {}  # how often each has come back
        self.whole: dict[str, dict[str, Tensor]] = {}
        self._remember(())

    def end_epoch(
        self,
        left: Tensor | None,
        measured: Mapping[str, Mapping[str, float]],
        optimizer: torch.optim.Optimizer,
        average: Average | None = None,
        say: Callable[[str], object] = lambda line: None,
    ) -> None:
        """Bring back who has left, and remember who is whole.

        Args:
            left: as `Method.left()` has it; changed in place.
            measured: everyone's metrics on validation, or nothing; one whose predictions are not finite is not whole.
            optimizer: forgets who comes back.
            average: of the weights, if there is one; begins again with them.
            say: is told of everyone who comes back.
        """
        if not self.on or left is None:
            return
        for row, name in enumerate(self.students):
            if left[row] >= 0 and self.times.get(name, 0) < TIMES and name in self.whole:
                self._bring_back(name, optimizer, average)
                left[row] = -1
                say(f"{name} comes back as it was when it was last whole ({self.times[name]} of {TIMES} times)")
        gone = [name for row, name in enumerate(self.students) if left[row] >= 0]
        self._remember({*gone, *(name for name, each in measured.items() if not math.isfinite(each["nll"]))})

    def _bring_back(self, name: str, optimizer: torch.optim.Optimizer, average: Average | None) -> None:
        """Weights and buffers as remembered, the average too; the optimizer's state as at the start, which is zeros.
        In place: a recorded step knows only addresses."""
        net = self.students[name]
        self.times[name] = self.times.get(name, 0) + 1
        net.load_state_dict(self.whole[name])
        for parameter in net.parameters():
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor):
                    value.zero_()
        if average:
            own = {tensor.data_ptr() for tensor in net.state_dict().values()}
            for place, live in average.live.items():
                if live.data_ptr() in own:
                    average.values[place].copy_(live)

    def _remember(self, bad: Collection[str]) -> None:
        for name, net in self.students.items() if self.on else ():
            if name not in bad and is_whole(net):
                self.whole[name] = {key: value.clone() for key, value in net.state_dict().items()}

    def state(self) -> State:
        """What a checkpoint holds."""
        tensors = {f"{name}/{key}": value for name, state in self.whole.items() for key, value in state.items()}
        return State(tensors, self.times)

    def restore(self, state: State) -> None:
        """The reverse of `state`, from the whole checkpoint."""
        if self.on:
            own = checkpoint.unpack(state, "revival")
            self.times, self.whole = dict(own.values), {}
            for place, value in own.tensors.items():
                name, _, key = place.partition("/")
                self.whole.setdefault(name, {})[key] = value


def is_whole(net: nn.Module) -> bool:
    """Whether all its weights and buffers are finite."""
    return all(bool(value.isfinite().all()) for value in net.state_dict().values())

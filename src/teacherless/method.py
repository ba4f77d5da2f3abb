"""The contract between data, methods and the loop. One screen.

A method is an `nn.Module` that holds what is trained; `forward(batch, progress)` returns named, weighted terms that add
up to the loss. `students()` is what is shipped: plain networks with the plain architecture's own keys.

    B samples   C classes   S students   V inputs per sample
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn


class Batch(NamedTuple):
    """One batch, as a method sees it."""

    inputs: tuple[Tensor, ...]  # V inputs per sample, each [B, ...]; images are [B, C, H, W]
    labels: Tensor  # [B] class ids; of mixed images (mixup, CutMix) [B, C] shares of classes
    index: Tensor | None = None  # type: ignore[assignment]  # [B] row in the training set


class Progress(NamedTuple):
    """Where training stands. 0-d tensors: a compiled or captured step sees new values without compiling again."""

    step: Tensor = torch.tensor(0)
    epoch: Tensor = torch.tensor(0)
    epochs: Tensor = torch.tensor(1)
    turn: int = 0  # whose turn it is (DML in turn); an int, so that each turn has a graph of its own


class Output(NamedTuple):
    """What a step gave: the terms are weighted, and the log uses the same names."""

    terms: dict[str, Tensor]
    logits: Tensor  # [S, B, C], detached, one row per student, for training accuracy

    @property
    def loss(self) -> Tensor:
        """The sum of the terms."""
        return torch.stack(list(self.terms.values())).sum()


Exchange = Callable[[Tensor], Tensor]  # own [k, B, C+1] -> mean over the others [k, B, C+1]


class Wants(NamedTuple):
    """What a method asks of the data; a loader that cannot give it is refused by name."""

    views: int = 1  # independent distortions of each image
    classmate: bool = False  # plus another image of the same class, as the last input
    index: bool = False  # type: ignore[assignment]  # the sample's row in the training set


class Method(nn.Module):
    """What is trained: the student or students, and whatever helps them learn."""

    cohort: ClassVar[bool] = False  # takes any number of students, not just one
    teacher_use: ClassVar[Literal["none", "optional", "required"]] = "none"
    needs: ClassVar[tuple[str, ...]] = ()  # numbers of the data its constructor takes: num_classes, num_samples
    variants: ClassVar[dict[str, dict[str, Any]]] = {}  # named presets of options that reproduce another code base

    phases: tuple[str, ...] = ("",)  # each a training of its own, one after the other (FitNets: hint, kd)
    phase: str = ""
    wants: Wants = Wants()
    turns: int = 1  # optimizer steps per batch
    smoothing: float = 0.0  # of the labels, in every cross-entropy with labels; `--smoothing` sets it

    def forward(self, batch: Batch, progress: Progress = Progress()) -> Output:
        """The terms of this batch's loss, and the students' logits."""
        raise NotImplementedError

    def students(self) -> dict[str, nn.Module]:
        """What is shipped, by name."""
        raise NotImplementedError

    def begin(self, phase: str) -> None:
        """A phase begins, the first one too."""
        self.phase = phase

    def share(self, amount: int) -> int:
        """How many of a run's epochs, or steps, each phase gets: all of them, as a training of its own."""
        return amount

    def ensemble(self) -> nn.Module | None:
        """A predictor that returns logits, or None where the method has no ensemble."""
        return None

    def shard(self, students: Sequence[int], exchange: Exchange) -> Method | None:
        """The same method over some of its students, which meet the others in `exchange`; None if it does not split.

        Where it does, students, rows of logits and parameter groups are in one order.
        """
        return None

    def param_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups: one for each student or peer whose settings may differ."""
        return [{"name": "student", "params": list(self.parameters())}]

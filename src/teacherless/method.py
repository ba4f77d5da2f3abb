"""The contract between data, methods and the loop. One screen.

A method is an `nn.Module` that holds what is trained; `forward(batch, progress)` returns named, weighted terms that add
up to the loss. `students()` is what is shipped: plain networks with the plain architecture's own keys.

    B samples   C classes   S students   V inputs per sample
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from teacherless import network
from teacherless.batch import Batch as Batch
from teacherless.batch import Wants as Wants
from teacherless.batch import as_batch, check_values, check_wants, weighted
from teacherless.errors import InputError


class Progress(NamedTuple):
    """Where training stands. 0-d tensors: a compiled or captured step sees new values without compiling again."""

    step: Tensor = torch.tensor(0)
    epoch: Tensor = torch.tensor(0)
    epochs: Tensor = torch.tensor(1)
    turn: int | None = None  # whose turn it is (DML in turn); an int, so that each turn has a graph of its own

    def advance(self) -> None:
        """An epoch is over. Raises: InputError if it was the last one already."""
        if int(self.epoch) >= int(self.epochs):
            raise InputError(f"progress: all {int(self.epochs)} epochs are over; tl.progress(epochs=...) has how many")
        self.epoch.add_(1)


def progress(epochs: int) -> Progress:
    """For a loop of one's own, at its beginning; call `advance()` after every epoch. Raises: InputError below 1."""
    if epochs < 1:
        raise InputError(f"epochs: found {epochs}; must be at least 1")
    return Progress(torch.tensor(0), torch.tensor(0), torch.tensor(epochs))


class Output(NamedTuple):
    """What a step gave: the terms are weighted, and the log uses the same names."""

    terms: dict[str, Tensor]
    logits: Tensor  # [S, B, C], detached, one row per student, for training accuracy

    @property
    def loss(self) -> Tensor:
        """The sum of the terms."""
        return torch.stack(list(self.terms.values())).sum()


Variants = dict[str, dict[str, Any]]  # named presets of options that reproduce another code base
Exchange = Callable[[Tensor], Tensor]  # own [k, B, C+1] -> mean over the others [k, B, C+1]
Gather = Callable[[Tensor], tuple[Tensor, Sequence[int] | slice]]  # own [k, B, C] -> all [K, B, C], our rows


def own_rows(rows: Tensor) -> Tensor:
    """The local `whole_batch`: all rows of a batch are here. `[B, ...] -> [B, ...]`."""
    return rows


class Method(nn.Module):
    """What is trained: the student or students, and whatever helps them learn."""

    student: nn.Module
    cohort: ClassVar[bool] = False  # takes any number of students, not just one
    teacher_use: ClassVar[Literal["none", "optional", "required"]] = "none"
    needs: ClassVar[tuple[str, ...]] = ()  # numbers of the data its constructor takes: num_classes, num_samples
    variants: ClassVar[Variants] = {}

    phases: tuple[str, ...] = ("",)  # each a training of its own, one after the other (FitNets: hint, kd)
    phase: str = ""
    wants: Wants = Wants()
    turns: int = 1  # optimizer steps per batch
    exchange_every: int = 1  # steps from one meeting of the students to the next
    needs_progress: bool = False  # something changes from step to step, or from epoch to epoch
    class_weights: Tensor | None = None  # [C], in every cross-entropy with labels; `--class-weights` sets it
    smoothing: float = 0.0  # of the labels, in every cross-entropy with labels; `--smoothing` sets it
    whole_batch: Callable[[Tensor], Tensor] = staticmethod(own_rows)  # rows of our part of a batch -> of all its parts
    _checked: bool = False  # the first batch's values

    def forward(self, batch: Batch, progress: Progress = Progress()) -> Output:
        """The terms of this batch's loss, and the students' logits."""
        raise NotImplementedError

    def __call__(self, *given: Any, progress: Progress | None = None) -> Output:
        """`method(x, y)`, `method(x, y, index)` or `method(batch)`, and the progress: `forward`, behind the guard.

        Raises: InputError for what would train on nonsense without a word: another number of views, no classmate or
            index, labels that are no classes, a turn, a phase or a progress that nobody told.
        """
        if given and isinstance(given[-1], Progress):
            *given, progress = given  # type: ignore[assignment]
        batch = as_batch(given[0] if len(given) == 1 else tuple(given))
        self._check(batch, progress)
        try:
            if self.class_weights is not None:
                batch = batch._replace(labels=weighted(batch.labels, self.class_weights))
            output: Output = super().__call__(batch, Progress() if progress is None else progress)
        except (RuntimeError, TypeError, ValueError) as error:
            if reason := network.reason(error, batch):
                raise InputError(reason) from error
            raise
        return output

    def _check(self, batch: Batch, progress: Progress | None) -> None:
        check_wants(self.wants, batch)
        if not torch.compiler.is_compiling() and not self._checked:
            network.check_ready(self)
            with suppress(RuntimeError):  # inside torch.func no value can be read
                check_values(batch)
            self._checked = True
        loop = "for out in method.steps(batch, progress): ..., with progress = tl.progress(epochs=...)"
        if self.phase not in self.phases:
            raise InputError(f"method: trains in phases ({', '.join(self.phases)}), and none has begun: {loop}")
        if self.turns > 1 and (progress is None or progress.turn is None):
            raise InputError(f"method: takes {self.turns} steps a batch, and nobody said whose turn it is: {loop}")
        if self.needs_progress and progress is None:
            raise InputError(f"method: goes by the step or the epoch, and neither was told: {loop}")

    def steps(self, batch: Any, progress: Progress, through: nn.Module | None = None) -> Iterator[Output]:
        """A batch's outputs, an optimizer step after each: what makes every method run in every loop.

        Begins the phases when they are due: their shares of the epochs are equal, or nearly so.

        Args:
            batch: whatever `method(...)` takes, `(x, y)` for example.
            progress: from `tl.progress(epochs=...)`.
            through: what to call instead of the method: it wrapped by DDP, or compiled.

        Raises: InputError as calling does, for fewer epochs than phases, and for turns in a DDP that would wait for
            gradients of those whose turn it is not.
        """
        if self.turns > 1 and getattr(through, "find_unused_parameters", True) is False:
            hint = "DistributedDataParallel needs find_unused_parameters=True"
            raise InputError(f"through: one student learns at a time; {hint}")
        now = self._in_phase(progress)
        for turn in range(self.turns):
            yield (self if through is None else through)(as_batch(batch), now._replace(turn=turn))
        progress.step.add_(1)

    def _in_phase(self, progress: Progress) -> Progress:
        """The progress within the phase that is due; begins it."""
        epoch, epochs, count = int(progress.epoch), int(progress.epochs), len(self.phases)
        if epochs < count:
            raise InputError(f"progress: found {epochs} epochs; {count} phases ({', '.join(self.phases)}) need {count}")
        due = min(epoch * count // epochs, count - 1)
        if self.phase != self.phases[due]:
            self.begin(self.phases[due])
        start, end = (-(-i * epochs // count) for i in (due, due + 1))
        return progress._replace(epoch=progress.epoch - start, epochs=torch.full_like(progress.epochs, end - start))

    def students(self) -> dict[str, nn.Module]:
        """What is shipped, by name: the one network `student`, where a method does not say otherwise."""
        return {"student": self.student}

    def begin(self, phase: str) -> None:
        """A phase begins, the first one too."""
        self.phase = phase

    def share(self, amount: int) -> int:
        """How many of a run's epochs, or steps, each phase gets: all of them, as a training of its own."""
        return amount

    def ensemble(self) -> nn.Module | None:
        """A predictor that returns logits, or None where the method has no ensemble."""
        return None

    def left(self) -> Tensor | None:
        """The step at which each student stopped to matter to the others since it was not finite, -1 for one that still
        does, `[S]`; None where a student that is not finite ends the training."""
        return None

    def shard(self, students: Sequence[int], exchange: Exchange, gather: Gather | None = None) -> Method | None:
        """The same method over some of its students, which meet the others in `exchange`, or in `gather` where their
        mean is not enough; None if it does not split.

        Where it does, students, rows of logits and parameter groups are in one order.
        """
        return None

    def param_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups of what learns: one for each student or peer whose settings may differ."""
        return [{"name": "student", "params": [p for p in self.parameters() if p.requires_grad]}]

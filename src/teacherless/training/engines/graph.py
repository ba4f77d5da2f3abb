"""A method's whole step as one CUDA graph: recorded once, then launched as a whole. A step of small networks is
hundreds of launches from the host, and the GPU waits for each of them.

What is recorded reads and writes at fixed addresses and knows no number that Python holds: the batch and the progress
are copied into place, the rates become tensors. Students that do not wait for each other run on streams of their own.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from teacherless.batch import leaves, mapped
from teacherless.errors import InputError, first_line
from teacherless.method import Batch, Output, Progress
from teacherless.network import calling

One = Callable[[Batch, Progress], Output]  # a step of the method
Record = Callable[[Callable[[], Output]], tuple[Callable[[], None], Output]]  # to what repeats it, and where it answers
EAGER = 3  # steps before the recording: libraries choose their kernels, the optimizer makes its state


def record(work: Callable[[], Output]) -> tuple[Callable[[], None], Output]:
    """Capture `work` without running it. Raises: RuntimeError if it waits for the device."""
    graph = torch.cuda.CUDAGraph()
    # The outer context, since a recording that fails leaves its own stream the current one.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
        output = work()
    return graph.replay, output


class Graph:
    """The steps of one optimizer, so of one phase. Batches of another shape than the first are computed as by the loop,
    and all of them where the step cannot be recorded; a warning says why. A student that draws random numbers is then
    refused, since a recording that fails may leave their generator unfit.

    Args:
        one: a step of the method.
        optimizer: of the phase.
        independent: students that never wait for each other before the last of them has answered.
        draws: a step draws random numbers.
        record: other than CUDA's, for tests.
    """

    def __init__(
        self,
        one: One,
        optimizer: torch.optim.Optimizer,
        independent: Sequence[nn.Module] = (),
        record: Record = record,
        *,
        draws: bool = False,
    ) -> None:
        self.one, self.optimizer, self.independent, self.record = one, optimizer, independent, record
        self.draws = draws
        self.steps = 0
        self.shapes: list[torch.Size] = []  # of the first batch
        self.given: list[Tensor] = []  # what a recorded step reads: at a fixed place
        self.replay: Callable[[], None] | None = None

    def step(self, batch: Batch, progress: Progress) -> Output:
        """One batch. The output is at a fixed place too: read it before the next step."""
        self.steps += 1
        given = _read(batch, progress)
        if self.steps <= EAGER:
            self.shapes = [x.shape for x in given] if self.steps == 1 else self.shapes
            _rates_to_tensors(self.optimizer, batch.labels.device)
            return _aside(functools.partial(self.one, batch, progress), batch.labels.device)
        fits = [x.shape for x in given] == self.shapes
        if fits and not self.given:
            self._record(batch, progress)
        if self.replay is None or not fits:
            return self.one(batch, progress)
        for place, value in zip(self.given, given, strict=True):
            place.copy_(value)
        self.replay()
        return self.output

    def _record(self, batch: Batch, progress: Progress) -> None:
        inputs = tuple(mapped(Tensor.clone, x) for x in batch.inputs)
        fixed = Batch(inputs, batch.labels.clone(), None if batch.index is None else batch.index.clone())
        now = Progress(progress.step.clone(), progress.epoch.clone(), progress.epochs.clone())
        self.given = _read(fixed, now)

        def work() -> Output:
            with streams(self.independent):
                return self.one(fixed, now)

        try:
            self.replay, self.output = self.record(work)
        except RuntimeError as error:
            self.optimizer.zero_grad(set_to_none=True)
            reason = first_line(error.__context__ or error)
            if self.draws:
                why = f"the step cannot be recorded ({reason})"
                raise InputError(f"--engine: found graph, but {why}; use --engine loop") from None
            warnings.warn(f"--engine graph: the step cannot be recorded ({reason}); it runs as by loop", stacklevel=2)


def _read(batch: Batch, progress: Progress) -> list[Tensor]:
    """All that a step reads."""
    inputs = [part for x in batch.inputs for part in leaves(x)]
    index = [] if batch.index is None else [batch.index]
    return [*inputs, batch.labels, *index, progress.step, progress.epoch, progress.epochs]


def _rates_to_tensors(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Rates that a recorded step reads anew. Kernels want them as float32 on the GPU."""
    for group in optimizer.param_groups:
        if not isinstance(group["lr"], Tensor):
            dtype = torch.float32 if device.type == "cuda" else torch.float64
            group["lr"] = torch.tensor(group["lr"], dtype=dtype, device=device)
        if "capturable" in group:
            group["capturable"] = device.type == "cuda"


def _aside(work: Callable[[], Output], device: torch.device) -> Output:
    """Run on a side stream, as what is to be recorded must first be run."""
    if device.type != "cuda":
        return work()
    main, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    side.wait_stream(main)
    with torch.cuda.stream(side):
        output = work()
    main.wait_stream(side)
    return output


@contextlib.contextmanager
def streams(students: Sequence[nn.Module]) -> Iterator[None]:
    """Each student's forward, and with it its backward, on a stream of its own.

    The calling stream waits for all when the last one has been called: so they must be called in their order, once
    each, and nobody's answer may be read before.
    """
    if len(students) < 2:
        yield
        return
    own = [torch.cuda.Stream() for _ in students]  # type: ignore[no-untyped-call]
    forwards: dict[nn.Module, Callable[..., Any]] = {}
    for student, stream in zip(students, own, strict=True):
        fork = own if student is students[0] else []
        join = own if student is students[-1] else []
        forwards[student] = functools.partial(_on, stream, student.forward, fork, join)
    with calling(forwards):
        yield


def _on(own: Any, forward: Callable[[Tensor], Tensor], fork: Sequence[Any], join: Sequence[Any], x: Tensor) -> Tensor:
    main = torch.cuda.current_stream()
    for stream in fork:
        stream.wait_stream(main)
    with torch.cuda.stream(own):
        logits = forward(x)
    for stream in join:
        main.wait_stream(stream)
    return logits

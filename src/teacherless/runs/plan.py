"""What a run will cost, before it is paid: a few steps of it, timed and thrown away."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import NamedTuple

import torch
from torch import Tensor

from teacherless.data import Source
from teacherless.evaluation.metrics import evaluate
from teacherless.method import Batch, Progress
from teacherless.runs.build import build_method, load_source
from teacherless.runs.config import Run, alone
from teacherless.runs.execute import loaders
from teacherless.training.mesh import dealt, part_of, shape, splits
from teacherless.training.precision import tune_allocator
from teacherless.training.step import Engine, body, make_optimizer, pick_device

TIMED = 5  # steps, after one that is not counted
SLOW = 2.0  # seconds: a first step that takes longer is the only one


class Mesh(NamedTuple):
    """A run's ranks. Bytes are what one rank hands over, as a mean over steps."""

    peer: int
    data: int
    students: list[list[str]]  # of each place along "peer"
    batch_size: int  # of all ranks
    peer_bytes: float
    data_bytes: int  # of gradients; DistributedDataParallel keeps a second copy of them, which is in no peak here


class Bill(NamedTuple):
    """What was measured."""

    step_seconds: float
    epoch_seconds: float  # validation included
    seconds: float  # all epochs
    peak_bytes: int | None  # None where the system does not say (Windows)
    relative: float  # to a step of plain training of the first student
    ranks: Mesh | None  # with `--parallel PxD`: all that is above is of one rank


class Plan:
    """A run that is built and not trained; nothing is written. With `--parallel PxD` its bill is that of one rank, the
    one with most to do, which waits for nobody. Raises: InputError as `train`."""

    def __init__(self, run: Run) -> None:
        tune_allocator()
        self.run, self.device, self.source = run, pick_device(run.device), load_source(run)
        self.steps = _Steps(run, self.source, self.device)
        method = self.steps.whole
        nets = method.students()
        inside = {id(p) for net in nets.values() for p in net.parameters()}
        self.engine = self.steps.engine.name
        self.precision = self.steps.engine.precision
        self.students = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
        self.helpers = sum(p.numel() for p in method.parameters() if id(p) not in inside)  # trained, not shipped
        self.per_epoch = len(self.steps.data)  # steps
        each = -(-method.share(run.steps) // self.per_epoch) if run.steps else method.share(run.epochs)
        self.epochs = each * len(method.phases)

    def bill(self) -> Bill:
        """Take a few steps of every phase, and of plain training: a few seconds, or one step each where it is slow."""
        seconds = self.steps.seconds()
        step = statistics.mean(seconds)
        epoch = self.per_epoch * step + self._validation(8 if step > SLOW else self.run.batch_size)
        peak, relative = _peak(self.device), 1.0
        if self.run.method != "plain":
            plain = _Steps(plain_of(self.run), self.source, self.device)
            relative = step / statistics.mean(plain.seconds())
        return Bill(step, epoch, self.epochs * epoch, peak, relative, self._mesh())

    def _mesh(self) -> Mesh | None:
        if self.run.parallel == "auto":
            return None
        steps, names, (peers, data) = self.steps, list(self.students), self.steps.shape
        students = [[names[i] for i in each] for each in steps.assigned]
        gradients = sum(p.numel() * p.element_size() for p in steps.method.parameters() if p.requires_grad)
        sent = steps.sent / steps.whole.exchange_every, gradients if data > 1 else 0
        return Mesh(peers, data, students, data * self.run.batch_size, *sent)

    def _validation(self, images: int) -> float:
        """Seconds of an evaluation, from that of some training images."""
        if self.source.val is None:
            return 0.0
        batch = next(iter(self.steps.data.epoch(0)))
        sample = [Batch((batch.inputs[0][:images],), batch.labels[:images])]
        seconds = _typical(lambda: evaluate(self.steps.method.students(), sample), self.device)
        return seconds * len(self.source.val.labels) / images


def plain_of(run: Run) -> Run:
    """Plain training of a run's first student."""
    return alone(run).model_copy(
        update={"method": "plain", "parallel": "auto", "set": {}, "teacher": None, "engine": "auto"}
    )


class _Steps:
    """A method with its data and its engine: all of it, or what one rank has."""

    def __init__(self, run: Run, source: Source, device: torch.device) -> None:
        self.run, self.device = run, device
        self.shape, self.assigned, self.sent = (1, 1), [[0]], 0
        self.whole, self.per_student = build_method(run, source)
        self.method = self.whole
        self.data = loaders(run, source, self.whole.wants, device)[0]
        self.whole.to(device)
        if run.parallel != "auto":
            self._as_rank(run)
        self.engine = Engine(self.method, run, device, ranks=math.prod(self.shape))

    def _as_rank(self, run: Run) -> None:
        """Only what the rank with most to do computes; what it sends is counted, and comes back as it is."""
        count = len(self.whole.students())
        self.shape = peers, data = shape(run.parallel, None, count, splits(self.whole))
        self.assigned, costs = dealt(self.whole, run.place, self.data, peers)
        part_of(self.data, 0, data)
        if peers > 1:
            dearest = self.assigned[costs.index(max(costs))]
            part = self.whole.shard(dearest, self._exchange, partial(self._gather, dearest))
            assert part is not None
            self.method = part

    def _exchange(self, own: Tensor) -> Tensor:
        self.sent = own[0].numel() * own.element_size()
        return own

    def _gather(self, ours: list[int], own: Tensor) -> tuple[Tensor, list[int]]:
        views, count, most = len(own) // len(ours), len(self.whole.students()), max(map(len, self.assigned))
        self.sent = most * views * own[0].numel() * own.element_size()  # all ranks send as many rows
        rows = own.view(len(ours), views, *own.shape[1:])[[i % len(ours) for i in range(count)]]
        return rows.flatten(0, 1), [i * views + view for i in ours for view in range(views)]

    def seconds(self) -> list[float]:
        """What a step takes, phase by phase."""
        each = []
        for phase in self.whole.phases:
            self.whole.train().begin(phase)
            optimizer = make_optimizer(self.whole.param_groups(), self.run, self.per_student, body(self.whole))
            batches = cycle(self.data.epoch(0))
            with self.engine:
                step = partial(self.engine.step, optimizer, progress=Progress())
                each.append(_typical(lambda: step(batch=next(batches)), self.device))  # noqa: B023  # called here
        return each


def _typical(work: Callable[[], object], device: torch.device) -> float:
    """Seconds: the median of a few after a first, or that alone where it is slow."""

    def once() -> float:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    first = once()
    return first if first > SLOW else statistics.median(once() for _ in range(TIMED))


def _peak(device: torch.device) -> int | None:
    """The most bytes held so far, by the process or on the GPU; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most

"""What training and inference cost, counted and timed."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from teacherless.data import Source
from teacherless.evaluation.metrics import evaluating
from teacherless.method import Progress
from teacherless.runs.build import build_method
from teacherless.runs.config import Run
from teacherless.runs.execute import loaders
from teacherless.runs.explain import first_rows

SAMPLES = 4  # that a step is counted on


@torch.no_grad()
def flops(net: nn.Module, image: torch.Tensor) -> int:
    """Floating-point operations of one forward, a multiply-add counted as two."""
    with evaluating([net]), FlopCounterMode(display=False) as counter:
        net(image)
    return int(counter.get_total_flops())


def training_flops(run: Run, source: Source) -> int:
    """Floating-point operations of a whole training, forward and backward: a step's on a few samples, scaled up.

    Only what grows with the batch counts: convolutions and matrix products, a multiply-add as two.
    """
    method, _ = build_method(run, source)
    data = loaders(run, source, method.wants, torch.device("cpu"))[0]
    first = next(iter(data.epoch(0)))
    batch = first_rows(first, SAMPLES)
    total = 0.0
    for phase in method.phases:
        method.train().begin(phase)
        with FlopCounterMode(display=False) as counter:
            for turn in range(method.turns):
                method(batch, Progress(turn=turn)).loss.backward()  # type: ignore[no-untyped-call]
        steps = method.share(run.steps) if run.steps else method.share(run.epochs) * len(data)
        total += counter.get_total_flops() * steps * len(first.labels) / len(batch.labels)
    return round(total)


@torch.no_grad()
def latency(net: nn.Module, image: torch.Tensor, runs: int = 30) -> float:
    """Milliseconds of one forward, the median."""
    times = []
    with evaluating([net]):
        for _ in range(runs + 3):
            began = time.perf_counter()
            net(image)
            times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[3:])

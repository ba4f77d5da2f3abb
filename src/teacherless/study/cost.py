"""What training and inference cost, counted and timed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from teacherless.batch import first_rows
from teacherless.data import Source
from teacherless.method import Progress
from teacherless.network import evaluating
from teacherless.runs.build import build_method
from teacherless.runs.config import Run
from teacherless.runs.execute import loaders

SAMPLES = 4  # that a step is counted on
WARM, ROUNDS = 3, 50  # forwards of each network that are not timed, and that are


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
def latencies(nets: Mapping[str, tuple[nn.Module, torch.Tensor]], rounds: int = ROUNDS) -> dict[str, Any]:
    """What a forward of each network on its image takes, in ms: the median, and what 5 and 95 of 100 stay below.

    By turns, so that what slows the machine slows them all.
    """
    times: dict[str, list[float]] = {name: [] for name in nets}
    with evaluating([net for net, _ in nets.values()]):
        for _ in range(WARM + rounds):
            for name, (net, image) in nets.items():
                began = time.perf_counter()
                net(image)
                times[name].append(1000 * (time.perf_counter() - began))
    spread = {name: np.percentile(each[WARM:], (50, 5, 95)).tolist() for name, each in times.items()}
    return {name: dict(zip(("ms", "low_ms", "high_ms"), each, strict=True)) for name, each in spread.items()}

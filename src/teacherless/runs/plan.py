"""What a run will cost, before it is paid: a few steps of it, timed and thrown away."""

from __future__ import annotations

import re
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import torch

from teacherless.data import Source
from teacherless.evaluation.metrics import evaluate
from teacherless.method import Method, Progress
from teacherless.runs.build import build_method, load_source
from teacherless.runs.config import Run
from teacherless.runs.execute import loaders
from teacherless.training.step import Engine, make_optimizer, pick_device

WARM, TIMED = 2, 5  # steps


class Plan(NamedTuple):
    """A bill that has not been paid."""

    engine: str
    students: dict[str, int]  # parameters of what is shipped
    helpers: int  # parameters of what is trained and not shipped
    epochs: int  # in all phases
    steps: int  # per epoch
    step_seconds: float
    epoch_seconds: float  # validation included
    seconds: float  # all epochs
    peak_bytes: int
    relative: float  # to a step of plain training of the first student
    room: int | None  # how many students of this size would fit, where a method takes any number


def plan(run: Run) -> Plan:
    """Build the run, take a few steps of every phase, time them. Writes nothing. Raises: InputError as `train`."""
    source, device = load_source(run), pick_device(run.device)
    empty = _used(device)
    method, engine, seconds = _steps(run, source, device)
    peak = _peak(device)
    data, val, _ = loaders(run, source, method.wants, device)
    epochs = -(-method.share(run.steps) // len(data)) if run.steps else method.share(run.epochs)
    shipped = {name: sum(p.numel() for p in net.parameters()) for name, net in method.students().items()}
    inside = {id(p) for net in method.students().values() for p in net.parameters()}
    validation = _seconds_of(lambda: evaluate(method.students(), val.epoch(0))) if val else 0.0
    whole = [len(data) * each + validation for each in seconds]  # an epoch of each phase
    simple = run.model_copy(
        update={"method": "plain", "student": (re.sub(r"\*\d+", "", run.student[0]),), "peers": None, "set": {},
                "teacher": None, "engine": "auto"}
    )  # fmt: skip
    step = statistics.mean(seconds)
    return Plan(
        engine=engine.name,
        students=shipped,
        helpers=sum(p.numel() for p in method.parameters() if id(p) not in inside),
        epochs=epochs * len(method.phases),
        steps=len(data),
        step_seconds=step,
        epoch_seconds=statistics.mean(whole),
        seconds=epochs * sum(whole),
        peak_bytes=peak,
        relative=step / statistics.mean(_steps(simple, source, device)[2]),
        room=int(len(shipped) + _free(device) * len(shipped) / max(1, peak - empty)) if method.cohort else None,
    )


def _steps(run: Run, source: Source, device: torch.device) -> tuple[Method, Engine, list[float]]:
    """The method after a few steps of each phase, and the median seconds of one, phase by phase."""
    method, per_student = build_method(run, source)
    data = loaders(run, source, method.wants, device)[0]
    engine = Engine(method.to(device), run, device)
    seconds = []
    for phase in method.phases:
        method.train().begin(phase)
        optimizer = make_optimizer(method.param_groups(), run, per_student)
        with engine:
            times = []
            for batch in islice(cycle(data.epoch(0)), WARM + TIMED):
                times.append(_seconds_of(partial(engine.step, optimizer, batch, Progress()), device))
        seconds.append(statistics.median(times[WARM:]))
    return method, engine, seconds


def _seconds_of(work: Callable[[], object], device: torch.device | None = None) -> float:
    began = time.perf_counter()
    work()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _used(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    return _peak(device)


def _peak(device: torch.device) -> int:
    """The most bytes held so far, by the process or on the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _free(device: torch.device) -> int:
    """Bytes that could be had besides."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))

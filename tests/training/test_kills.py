"""Every method on every engine, killed with SIGKILL at random moments: it goes on to the bits of an undisturbed run.

Processes are forked, so that a kill costs no imports: one kill of each method and engine here; `make crash` sets
TEACHERLESS_CRASHES=200 for all together.
"""

from __future__ import annotations

import math
import os
import random
import signal
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from test_checkpoint import contents, fit
from test_graph import tape

from teacherless.files import disk
from teacherless.methods import METHODS
from teacherless.training import checkpoint, step
from teacherless.training.engines.graph import Graph

CASES = [*((name, "loop") for name in METHODS), ("dml", "threads"), ("dml", "graph"), ("plain", "graph")]
SAMPLE = [
    ("dml", "loop"),
    ("ps-kd", "loop"),
    ("fitnets", "loop"),
    ("dml", "threads"),
    ("dml", "graph"),
]  # of `make slow`
EACH = math.ceil(int(os.environ.get("TEACHERLESS_CRASHES", "0")) / len(CASES)) or 1
HOW: dict[str, Any] = {"epochs": 2, "checkpoint_every": "1s"}  # it saves half of the time


def on_tape() -> None:
    """In this process the graph engine runs on the CPU, with the tests' tape in place of CUDA's recording."""

    def graph(one: Any, optimizer: Any, apart: Sequence[Any] = (), *, draws: bool = False) -> Graph:
        return Graph(one, optimizer, record=tape, draws=draws)

    warnings.simplefilter("error")  # where it cannot be recorded
    step.Graph = graph  # type: ignore[assignment,misc]
    step.Engine.choose = lambda self, name: setattr(self, "name", name)  # type: ignore[method-assign]


def begin(name: str, engine: str, out: Path, *, resume: bool = False) -> int:
    """A process of its own that trains; returns its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if engine == "graph":
                on_tape()
            fit(name, out, resume=resume, engine=engine, **HOW)
            code = 0
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize(
    ("name", "engine"),
    [pytest.param(*case, marks=pytest.mark.slow if case in SAMPLE else pytest.mark.exhaustive) for case in CASES],
)
def test_killed_anywhere(name: str, engine: str, tmp_path: Path) -> None:
    straight, draw = tmp_path / "straight", random.Random(f"{name} {engine}")
    began = time.monotonic()
    assert ended(begin(name, engine, straight)) == 0
    expected, long = contents(straight), time.monotonic() - began
    killed = tried = 0
    while killed < EACH and tried < 10 * EACH:
        out = tmp_path / str(tried)
        tried += 1
        for again in range(draw.choice([1, 1, 2])):
            child = begin(name, engine, out, resume=again > 0)
            time.sleep(draw.uniform(0, 0.9 * long))
            os.kill(child, signal.SIGKILL)  # a child that has ended is still ours
            hit = ended(child) == -signal.SIGKILL
            killed, long = killed + hit, long if hit else 0.8 * long  # the machine was busier when it was measured
        assert ended(begin(name, engine, out, resume=True)) == 0
        assert contents(out) == expected, tried
        assert not list(out.rglob(disk.PART + "*")) and len(checkpoint.steps(out / "checkpoints")) == checkpoint.KEEP
    print(f"{name}, {engine}: {killed} kills, all went on to the same bits")
    assert killed >= EACH

"""What the benchmarks share: interleaved rounds, ratios with intervals, dated result files.

Machines drift, so settings are never measured one after the other: in every round each of them runs once, every other
round in reverse order, and a ratio is taken within a round. Reported are the median over rounds and the interval of
order statistics that holds the true median with at least 95 %.
"""

from __future__ import annotations

import datetime
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
Times = dict[str, list[float]]  # milliseconds, one per round


def interleave(ways: Mapping[str, Callable[[], float]], rounds: int) -> Times:
    """Each way returns its own milliseconds, of one measurement."""
    times: Times = {name: [] for name in ways}
    for round_ in range(rounds):
        for name in list(ways) if round_ % 2 == 0 else reversed(ways):
            times[name].append(ways[name]())
    return times


def timed(step: Callable[[], object], repeats: int = 1, device: str = "cpu") -> Callable[[], float]:
    """A way to run `step` some times and return the milliseconds of one."""

    def measure() -> float:
        gc.collect()
        gc.disable()
        wait(device)
        began = time.perf_counter()
        for _ in range(repeats):
            step()
        wait(device)
        spent = time.perf_counter() - began
        gc.enable()
        return 1000 * spent / repeats

    return measure


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


class Process:
    """A setting that lives in a process of its own: `script --serve JSON` answers each number of steps with the time
    of one. Allocators and thread counts are a process's, so they cannot be interleaved in one."""

    def __init__(self, script: str, setting: Mapping[str, Any], steps: int) -> None:
        command = [sys.executable, script, "--serve", json.dumps(setting)]
        self.steps = steps
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = json.loads(self._line())

    def _line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a benchmark process ended with code {self.process.wait()}")
        return line

    def __call__(self) -> float:
        assert self.process.stdin
        self.process.stdin.write(f"{self.steps}\n")
        self.process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def serve(step: Callable[[], object], device: str, about: Mapping[str, Any] | None = None) -> None:
    """The other end of `Process`: warm up, say so, answer."""
    for _ in range(3):
        step()
    print(json.dumps(about or {}), flush=True)
    for line in sys.stdin:
        print(timed(step, int(line), device)(), flush=True)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, and the narrowest order statistics around it that hold the true one with at least 95 %."""
    ordered, n = sorted(values), len(values)
    k = max((k for k in range(n // 2) if 1 - 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n >= 0.95), default=0)
    return statistics.median(ordered), ordered[k], ordered[n - 1 - k]


def ratio(over: Sequence[float], under: Sequence[float], factor: float = 1.0) -> tuple[float, float, float]:
    """`over / (factor · under)` within rounds: median and interval."""
    return interval([a / (factor * b) for a, b in zip(over, under, strict=True)])


def shown(found: tuple[float, float, float], digits: int = 2) -> str:
    return f"{found[0]:.{digits}f} [{found[1]:.{digits}f}, {found[2]:.{digits}f}]"


def machine(device: str) -> dict[str, Any]:
    """Where and with what."""
    names = (
        re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if os.path.exists("/proc/cpuinfo") else []
    )
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": git.stdout.strip(),
        "load": round(os.getloadavg()[0], 2),
    }


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows)]
    return "\n".join(lines)


def write(what: str, where: Mapping[str, Any], sections: Mapping[str, str], raw: Any) -> None:
    """`results/<date>-<machine>-<what>.md`, for people, and `.json`, with every round."""
    name = re.sub(r"[^a-z0-9]+", "-", f"{where['gpu'] or where['cpu']}".lower()).strip("-")
    stem = RESULTS / f"{where['date']}-{name}-{where['cores']}-cores-{what}"
    RESULTS.mkdir(exist_ok=True)
    load = f"load {where['load']} at the start, {os.getloadavg()[0]:.2f} at the end"
    device = where["gpu"] or where["cpu"]
    head = (
        f"# {what}: {where['date']}\n\n{device}, {where['cores']} cores, {where['threads']} threads; "
        f"torch {where['torch']}, Python {where['python']}, commit {where['commit']}; {load}. "
        "Medians over interleaved rounds; ratios within rounds, with the interval that holds the true median with at "
        "least 95 %.\n"
    )
    body = "".join(f"\n## {title}\n\n{text}\n" for title, text in sections.items())
    stem.with_suffix(".md").write_text(head + body)
    stem.with_suffix(".json").write_text(json.dumps({"machine": where, "raw": raw}, indent=1) + "\n")
    print(head + body)

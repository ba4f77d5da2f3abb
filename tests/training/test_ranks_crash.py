"""torchrun, four ranks, one of them killed at a random moment: all start again, and end with an undisturbed run's bits.

Two here, one of them the first rank; TEACHERLESS_CRASHES=10 kills ten.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_crash import contents

from teacherless.training import checkpoint

CRASHES = int(os.environ.get("TEACHERLESS_CRASHES", "2"))
RANKS = 4
RUN = [
    "train",
    "dml",
    "--data",
    os.environ.get("TEACHERLESS_CRASH_DATA", "digits"),
    "--train-samples",
    "1000",
    "--student",
    "small-cnn,width=4",
    "--peers",
    "4",
    "--epochs",
    "4",
    "--checkpoint-every",
    "5s",
]


def start(out: Path) -> subprocess.Popen[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS), "--max-restarts", "3"]
    command = [*launch, "-m", "teacherless", *RUN, "--out", str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def rank(parent: int, number: int) -> int:
    """The process of a rank."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            stat, env = (path / "stat").read_text(), (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(stat.rpartition(")")[2].split()[1]) == parent and f"RANK={number}".encode() in env:
            return int(path.name)
    raise AssertionError("no such rank")


@pytest.mark.exhaustive
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_rank_that_is_killed_is_started_again_and_nothing_is_lost(tmp_path: Path) -> None:
    straight = start(tmp_path / "straight")
    printed, _ = straight.communicate()
    assert straight.returncode == 0, printed
    expected = contents(tmp_path / "straight")
    draw, killed = random.Random(0), 0
    for crash in range(CRASHES):
        out, victim = tmp_path / f"run{crash}", 0 if crash == 0 else draw.randrange(RANKS)
        process = start(out)
        wanted = draw.randint(1, 9)  # checkpoints that this run has written before
        while process.poll() is None and _newest(out) < 5 * wanted:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.05))
        os.kill(rank(process.pid, victim), signal.SIGKILL)
        killed += 1
        printed, _ = process.communicate()
        assert process.returncode == 0, printed
        assert "resuming from" in printed
        assert contents(out) == expected, f"crash {crash}, rank {victim}"
        print(f"crash {crash + 1} of {CRASHES}: rank {victim} killed after step {5 * wanted}, equal", flush=True)
    assert killed == CRASHES


def _newest(out: Path) -> int:
    """The step of the newest checkpoint."""
    steps = checkpoint.steps(out / "checkpoints")
    return int(steps[0].name) if steps else 0

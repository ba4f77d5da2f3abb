"""A week's habits in half an hour: runs are started, stopped, killed, gone on with, compared, evaluated and asked, in
random order; at the end all is finished, and every folder is whole.

SOAK_MINUTES=30 SOAK_SEED=... python tests/soak.py [FOLDER]
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from teacherless.files import disk, schemas
from teacherless.models.files import load_student
from teacherless.training import checkpoint, predictions

SMALL = ["--data", "digits", "--train-samples", "64", "--batch-size", "16", "--student", "small-cnn,width=2"]
RUNS = {
    "plain": ["train", "plain", *SMALL, "--epochs", "6"],
    "dml": ["train", "dml", *SMALL, "--peers", "2", "--epochs", "6", "--select", "best"],
    "threads": ["train", "dml", *SMALL, "--peers", "3", "--epochs", "6", "--engine", "threads"],
    "one": ["train", "one", *SMALL, "--epochs", "6", "--ema", "0.9"],
    "cs-kd": ["train", "cs-kd", *SMALL, "--epochs", "6"],
}  # by the beginning of their folders' names; runs of one name end with the same bits
COMPARE = ["compare", *SMALL, "--methods", "plain,dml", "--seeds", "2", "--steps", "12"]
OFTEN = ["--checkpoint-every", "1s"]
MAY = {0, 1, 2, 130, 141, 143, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}  # how a command may end


class Soak:
    """The folder in which all happens."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng, self.done = folder, random.Random(seed), Counter[str]()
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(3):
            Image.fromarray(np.full((8, 8), 80 * i, np.uint8)).save(folder / f"{i}.png")
        (folder / "no-image.png").write_text("no image")

    def command(self, words: list[str], stop: signal.Signals | None = None) -> int:
        """A command, perhaps stopped after a while; it says no traceback, and one line where it refuses."""
        process = subprocess.Popen(
            [sys.executable, "-m", "teacherless", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            _, said = process.communicate(timeout=self.rng.uniform(0.5, 12) if stop else None)
        except subprocess.TimeoutExpired:
            assert stop is not None
            process.send_signal(stop)
            _, said = process.communicate()
        assert process.returncode in MAY and "Traceback" not in said, (words, process.returncode, said)
        assert process.returncode != 2 or said.count("\n") == 1, (words, said)
        return process.returncode

    def runs(self) -> list[Path]:
        return [path for name in RUNS for path in sorted(self.folder.glob(f"{name}-*"))]

    def habit(self) -> None:
        """One thing that somebody does."""
        what = self.rng.choice(["start", "start", "stop", "kill", "resume", "resume", "compare", "evaluate", "predict"])
        stop = {"stop": self.rng.choice([signal.SIGINT, signal.SIGTERM]), "kill": signal.SIGKILL}.get(what)
        runs = self.runs()
        self.done[what] += 1
        if what in ("start", "stop", "kill") or not runs:
            name = self.rng.choice([*RUNS])
            self.command([*RUNS[name], *OFTEN, "--out", str(self.folder / f"{name}-{len(runs)}")], stop)
        elif what == "resume":
            self.resume(self.rng.choice(runs), self.rng.choice([None, None, signal.SIGTERM, signal.SIGKILL]))
        elif what == "compare":
            how = self.rng.choice([None, signal.SIGINT, signal.SIGKILL])
            self.command([*COMPARE, *OFTEN, "--jobs", "2", "--out", str(self.folder / "comparison")], how)
        elif what == "evaluate":
            self.command(["evaluate", str(self.rng.choice(runs)), "--split", self.rng.choice(["val", "test"])])
        else:
            self.command(["predict", str(self.rng.choice(runs)), str(self.folder)])

    def resume(self, run: Path, stop: signal.Signals | None = None) -> int:
        """Go on with a run; one that was killed before it began gets its whole command again."""
        words = [] if (run / "run.json").exists() else RUNS[run.name.rpartition("-")[0]] + OFTEN
        return self.command([*(words or ["train"]), "--resume", "--out", str(run)], stop)

    def finish(self) -> None:
        """All runs to their end, the comparison too; each is whole, and equal to others of its name."""
        bits: dict[str, list[bytes]] = {}
        for run in self.runs():
            assert self.resume(run) == 0, run
            whole(run)
            found = [path.read_bytes() for path in sorted(run.glob("students/*/model.safetensors"))]
            assert bits.setdefault(run.name.rpartition("-")[0], found) == found, run
        assert self.command([*COMPARE, *OFTEN, "--jobs", "2", "--out", str(self.folder / "comparison")]) == 0
        for cell in (self.folder / "comparison" / "cells").iterdir():
            whole(cell)
        assert not list(self.folder.rglob(disk.PART + "*"))


def whole(run: Path) -> None:
    """Everything in a finished run's folder can be opened, and has its checksum."""
    summary = schemas.summary(run)
    assert summary and schemas.stored(run) and schemas.lines(run), run
    assert not disk.damaged(run, summary["files"], summary["files"]), run
    assert predictions.read(run, summary["files"]), run
    for name in schemas.staying(summary):
        load_student(run / "students" / name)
    saved = checkpoint.read(run / "checkpoints")
    assert saved and not saved[2] and len(checkpoint.steps(run / "checkpoints")) <= checkpoint.KEEP, run


def main() -> None:
    minutes, seed = float(os.environ.get("SOAK_MINUTES", "30")), int(os.environ.get("SOAK_SEED", time.time()))
    soak = Soak(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="teacherless-soak-")), seed)
    print(f"seed {seed}, {minutes:g} minutes, {soak.folder}", flush=True)
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        soak.habit()
    habits = ", ".join(f"{count} x {what}" for what, count in sorted(soak.done.items()))
    print(f"{habits}; now all to the end", flush=True)
    soak.finish()
    print(f"{len(soak.runs())} runs and a comparison are whole, and runs of one kind have the same bits")


if __name__ == "__main__":
    main()

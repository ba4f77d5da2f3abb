"""What a run writes while it runs: one JSON line per epoch.

Sums are kept on the device and fetched once per epoch; nothing here waits for a step.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teacherless import losses
from teacherless.errors import ADVICE, Diverged
from teacherless.evaluation.metrics import predicted
from teacherless.files import disk
from teacherless.method import Output
from teacherless.training.board import Board
from teacherless.training.live import View, view

Line = dict[str, Any]
STUDENTS, METRICS = "students", ("top1", "nll", "entropy")  # the key of the students' sums, [4, S]; what three are


class Recorder:
    """Adds up an epoch's steps, then writes and shows one line.

    Args:
        students: the rows of `Output.logits`, by name.
        epochs: how many there will be.
        batches: how many of all epochs, or None where the data does not say.
        file: `metrics.jsonl`, or None to write nothing.
        quiet: show nothing.
        board: where the numbers go too.
        totals: from our sums and number of samples to those of all ranks.
    """

    def __init__(
        self,
        students: list[str],
        epochs: int,
        batches: int | None,
        file: Path | None = None,
        *,
        quiet: bool = False,
        board: Board | None = None,
        totals: Callable[[dict[str, Tensor], int], tuple[dict[str, Tensor], int]] = lambda sums, count: (sums, count),
    ) -> None:
        self.students, self.file, self.board, self.totals = students, file, board, totals
        self.history: list[Line] = []
        self.seconds = 0.0  # of training, without evaluation and saving
        self.images = 0
        self.screen = None if quiet else view(students, epochs, batches)
        self._clear()

    def _clear(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.means: dict[str, float] = {}
        self.finite: dict[str, float] = {}  # each student's share of samples whose prediction was finite
        self.count, self.spent, self.began = 0, 0.0, time.perf_counter()
        self.seen = 0  # samples, of all ranks

    def start(self) -> None:
        """The clock runs: training begins, or goes on."""
        self.began = time.perf_counter()

    def stop(self) -> None:
        """Fetch the sums (the one wait for the device: at an epoch's end, and to save) and stop the clock."""
        if self.sums:
            summed, self.seen = self.totals(self.sums, self.count)
            terms = [name for name in summed if name != STUDENTS]
            names = [*terms, *(f"train/{metric}/{student}" for metric in METRICS for student in self.students)]
            sums = torch.cat([summed[name].double().flatten() for name in (*terms, STUDENTS)])
            means = (sums / self.seen).tolist()
            self.means = dict(zip(names, means, strict=False))
            self.finite = dict(zip(self.students, means[len(names) :], strict=True))
            self.spent += time.perf_counter() - self.began

    def step(self, out: Output, labels: Tensor) -> None:
        """Add one batch: terms weighted by its size, and each student's correct predictions."""
        size = len(labels)
        sums = {f"train/{name}": term.detach() * size for name, term in out.terms.items()}
        right = 100.0 * (predicted(out.logits) == losses.class_ids(labels)).sum(-1)  # [S]
        nll, entropy = losses.ce(out.logits, labels), losses.entropy(out.logits)  # [S, B]
        sums[STUDENTS] = torch.stack([right, nll.sum(-1), entropy.sum(-1), nll.isfinite().to(nll).sum(-1)])
        for name, value in sums.items():
            self.sums[name] = self.sums[name].to(value.device) + value if name in self.sums else value
        self.count += size
        if self.screen:
            self.screen.step()

    def epoch(self, epoch: int, step: int, lr: float, evaluated: dict[str, dict[str, float]], **more: Any) -> Line:
        """Write the line. `evaluated` is each student's validation metrics, or empty.

        Raises: Diverged if the loss is not finite; the line is written, with null for what is no number.
        """
        line: Line = {"epoch": epoch, "step": step, "lr": lr} | {key: each for key, each in more.items() if each}
        seconds = max(self.spent, 1e-9)
        terms = {name: mean for name, mean in self.means.items() if name.count("/") == 1}
        line["train/loss"] = sum(terms.values())
        line |= self.means
        for name, values in evaluated.items():
            line |= {f"val/{metric}/{name}": values[metric] for metric in (*METRICS, "agreement") if metric in values}
        line |= {key: math.nan for key in line if key.rpartition("/")[2] in line.get("left", {})}
        line |= {"img_per_s": round(self.seen / seconds, 1), "seconds": round(seconds, 3)}
        self.seconds, self.images = self.seconds + seconds, self.images + self.seen
        self.history.append(disk.finite(line))
        if self.file:
            disk.append(self.file, json.dumps(self.history[-1]))
        for each in self._watchers():
            each.epoch(self.history[-1])
        self.check(epoch)
        self._clear()
        return line

    def check(self, epoch: int) -> None:
        """Raises: Diverged if a term is not finite; it names the student that was the first to go."""
        bad = [name for name, mean in self.means.items() if name.count("/") == 1 and not math.isfinite(mean)]
        if bad:
            first = [name for name, share in self.finite.items() if share == min(self.finite.values()) < 1]
            who = f", first in {', '.join(first)}" if first and len(self.students) > 1 else ""
            raise Diverged(f"training diverged in epoch {epoch}: {', '.join(bad)} is not finite{who}; {ADVICE}")

    def rewrite(self) -> str:
        """Make the file say just what the history says: no line doubled, none missing; returns its SHA-256."""
        assert self.file is not None
        return disk.write(self.file, "".join(json.dumps(line) + "\n" for line in self.history))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint holds: the sums of the epoch so far, and the lines."""
        values = {"count": self.count, "spent": self.spent, "seconds": self.seconds, "images": self.images}
        return dict(self.sums), {**values, "history": self.history, "terms": list(self.sums)}

    def restore(self, sums: dict[str, Tensor], values: dict[str, Any]) -> None:
        """The reverse of `state`."""
        self.count, self.seconds, self.images = values["count"], values["seconds"], values["images"]
        self.history = list(values["history"])
        self.sums = {name: sums[name] for name in values["terms"]}  # in the order in which they are added up
        self.spent = values["spent"]

    def _watchers(self) -> list[View | Board]:
        return [each for each in (self.screen, self.board) if each]

    def __enter__(self) -> Recorder:
        for each in self._watchers():
            each.open(self.history)
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._watchers():
            each.close()

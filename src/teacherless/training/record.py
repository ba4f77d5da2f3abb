"""What a run says while it runs: one JSON line per epoch, and a terminal that shows it.

Sums are kept on the device and fetched once per epoch; nothing here waits for a step.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teacherless import losses
from teacherless.errors import ADVICE, Diverged
from teacherless.evaluation.metrics import predicted
from teacherless.files import disk, schemas
from teacherless.method import Output

Line = dict[str, Any]
STUDENTS, METRICS = "students", ("top1", "nll", "entropy")  # the key of the students' sums, [4, S]; what three are


class Recorder:
    """Adds up an epoch's steps, then writes and shows one line.

    Args:
        students: the rows of `Output.logits`, by name.
        epochs: how many there will be, for the time left.
        steps: how many batches an epoch has, or None where the data does not say.
        file: `metrics.jsonl`, or None to write nothing.
        quiet: show nothing.
    """

    def __init__(
        self, students: list[str], epochs: int, steps: int | None, file: Path | None = None, *, quiet: bool = False
    ) -> None:
        self.students, self.epochs, self.file = students, epochs, file
        self.history: list[Line] = []
        self.seconds = 0.0  # of training, without evaluation and saving
        self.images = 0
        self.screen: Screen | Lines | None = None
        if not quiet:
            self.screen = Screen(students, epochs, steps) if sys.stdout.isatty() else Lines(students, epochs)
        self._clear()

    def _clear(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.means: dict[str, float] = {}
        self.finite: dict[str, float] = {}  # each student's share of samples whose prediction was finite
        self.count, self.spent, self.began = 0, 0.0, time.perf_counter()

    def start(self) -> None:
        """The clock runs: training begins, or goes on."""
        self.began = time.perf_counter()

    def stop(self) -> None:
        """Fetch the sums (the one wait for the device: at an epoch's end, and to save) and stop the clock."""
        if self.sums:
            terms = [name for name in self.sums if name != STUDENTS]
            names = [*terms, *(f"train/{metric}/{student}" for metric in METRICS for student in self.students)]
            sums = torch.cat([self.sums[name].double().flatten() for name in (*terms, STUDENTS)])
            means = (sums / self.count).tolist()
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
        line: Line = {"epoch": epoch, "step": step, "lr": lr, **more}
        seconds = max(self.spent, 1e-9)
        terms = {name: mean for name, mean in self.means.items() if name.count("/") == 1}
        line["train/loss"] = sum(terms.values())
        line |= self.means
        for name, values in evaluated.items():
            line |= {f"val/{metric}/{name}": values[metric] for metric in ("top1", "nll", "entropy")}
        line |= {key: math.nan for key in line if key.rpartition("/")[2] in line.get("left", {})}
        line |= {"img_per_s": round(self.count / seconds, 1), "seconds": round(seconds, 3)}
        self.seconds, self.images = self.seconds + seconds, self.images + self.count
        self.history.append(disk.finite(line))
        if self.file:
            disk.append(self.file, json.dumps(self.history[-1]))
        if self.screen:
            self.screen.epoch(line)
        self.check(epoch)
        self._clear()
        return line

    def check(self, epoch: int) -> None:
        """Raises: Diverged if a term is not finite; it names the student that was the first to go."""
        bad = [name for name, mean in self.means.items() if name.count("/") == 1 and not math.isfinite(mean)]
        if bad:
            least = min(self.finite.values())
            first = [name for name, share in self.finite.items() if share == least < 1]
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

    def __enter__(self) -> Recorder:
        if self.screen:
            self.screen.open(len(self.history))
        return self

    def __exit__(self, *_: object) -> None:
        if self.screen:
            self.screen.close()


class Lines:
    """Where output is not a terminal: one plain line per epoch."""

    def __init__(self, students: list[str], epochs: int) -> None:
        self.students, self.epochs = students, epochs

    def open(self, epochs_done: int) -> None:
        """Nothing to prepare."""

    def step(self) -> None:
        """Nothing: a line per step is noise."""

    def epoch(self, line: Line) -> None:
        """`epoch 3/30  loss 1.23  peer0 97.1 / 96.0  …` (train / validation top-1, percent)."""
        left = line.get("left", {})
        each = "  ".join(f"{s} {_pair(line, s)}" for s in self.students if s not in left)
        each += f"  ({schemas.who_left(left)})" if left else ""
        print(f"epoch {line['epoch'] + 1}/{self.epochs}  loss {line['train/loss']:.4f}  top-1 {each}  "
              f"{line['img_per_s']:.0f} img/s", flush=True)  # fmt: skip

    def close(self) -> None:
        """Nothing to restore."""


class Screen:
    """On a terminal: a bar with the time left, over a table with a row per student."""

    def __init__(self, students: list[str], epochs: int, steps: int | None) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.students, self.epochs, self.steps = students, epochs, steps
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
        )
        self.task = self.bar.add_task("", total=steps and steps * epochs, epoch=f"1/{epochs}", speed="")
        self.live = Live(self.bar, refresh_per_second=4, transient=False)

    def open(self, epochs_done: int) -> None:
        """Start drawing."""
        self.bar.update(self.task, completed=(self.steps or 0) * epochs_done)
        self.live.start()

    def step(self) -> None:
        """One batch done."""
        self.bar.advance(self.task)

    def epoch(self, line: Line) -> None:
        """Show the epoch's numbers."""
        from rich.console import Group
        from rich.table import Table

        epoch = line["epoch"] + 1
        self.bar.update(
            self.task, epoch=f"{min(epoch + 1, self.epochs)}/{self.epochs}", speed=f"{line['img_per_s']:.0f} img/s"
        )
        table = Table(
            "student", "train loss", "train top-1", "val top-1", title=f"epoch {epoch}, loss {line['train/loss']:.4f}"
        )
        for s in self.students:
            val = line.get(f"val/top1/{s}")
            table.add_row(
                s,
                f"{line[f'train/nll/{s}']:.4f}",
                f"{line[f'train/top1/{s}']:.2f}",
                "-" if val is None else f"{val:.2f}",
            )
        left = schemas.who_left(line.get("left", {}))
        self.live.update(Group(table, *([left] if left else []), self.bar))

    def close(self) -> None:
        """Stop drawing; the last table stays."""
        self.live.stop()


def _pair(line: Line, student: str) -> str:
    val = line.get(f"val/top1/{student}")
    return f"{line[f'train/top1/{student}']:.2f} / {'-' if val is None else f'{val:.2f}'}"

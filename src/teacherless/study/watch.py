"""How far a comparison is and what it found so far: read from the folders of its cells, shown on stderr."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from teacherless.errors import InputError
from teacherless.files import schemas
from teacherless.study.statistics import INTERVAL_FROM, t_interval
from teacherless.training.live import duration, fitted, seldom

if TYPE_CHECKING:
    from rich.console import RenderableType

    from teacherless.study.cells import Cell

LOOK = 0.25  # seconds at least between two looks at the folders
SILENCE = 15  # seconds at most without a line where there is no terminal, or a tenth of the time so far
WAITING, RUNNING, DONE, FAILED = "·", "▁▂▃▄▅▆▇", "█", "✗"  # a cell in the grid
IN_ASCII = str.maketrans(WAITING + RUNNING + DONE + FAILED, ".1234567#x")


class Told(NamedTuple):
    """What is said of a finished cell."""

    split: str  # test or validation
    number: Callable[[Cell, dict[str, Any]], float | None]  # accuracy in percent; None where there is no such split

    def line(self, cell: Cell, done: dict[str, Any]) -> str:
        """`97.50 % on test, 1.2 s`."""
        if "failed" in done:
            return f"failed: {done['failed']}"
        top1 = self.number(cell, done)
        said = f"no {self.split} set" if top1 is None else f"{top1:.2f} % on {self.split}"
        return f"{said}, {done['train_seconds']:.1f} s"


class Progress:
    """While it is entered: a line for every cell that finishes, and how far the others are, on a terminal as a grid
    with what was found so far. It looks so seldom that it takes a two-hundredth of the time.

    Args:
        cells: all of the comparison.
        told: what is said of a finished cell; None shows nothing.
        then: what comes after these cells, said beside the time left.
    """

    def __init__(self, cells: Sequence[Cell], told: Told | None, then: str = "") -> None:
        from rich.console import Console

        self.cells, self.told, self.then = cells, told, then
        self.seconds = {cell.folder: _epochs(cell.folder) for cell in cells}  # of each epoch that is done
        self.before = {folder: len(epochs) for folder, epochs in self.seconds.items()}
        self.unfinished, self.failed = list(cells), set[Path]()
        self.numbers: dict[str, dict[int, float]] = {cell.row: {} for cell in cells}  # of each row and seed
        for cell in cells:
            if done := cell.done():
                self._finish(cell, done)
        self.running: list[Cell] = []
        self.totals: dict[str, int] = {}  # epochs of a cell of each row
        self.began = self.spoke = time.monotonic()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def __enter__(self) -> Progress:
        if self.told and self.unfinished:
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        if self.thread.is_alive():
            self.thread.join()

    def start(self, cell: Cell) -> None:
        """A cell begins."""
        self.running.append(cell)

    def _watch(self) -> None:
        if not (self.console.file.isatty() and self.console.is_interactive):
            seldom(self.over, self._look_and_say, LOOK)
            return self._look()
        from rich.live import Live

        def draw() -> None:
            self._look()
            live.update(self._picture(), refresh=True)

        with Live(console=self.console, auto_refresh=False, transient=True) as live:
            seldom(self.over, draw, LOOK)
            live.update("")
            self._look()

    def _look_and_say(self) -> None:
        self._look()
        if time.monotonic() - self.spoke > max(SILENCE, (time.monotonic() - self.began) / 10):
            self._say("; ".join([*self._at(), self._count()]))

    def _look(self) -> None:
        """Read how far the running cells are; say which have finished."""
        assert self.told
        for cell in list(self.running):
            self.seconds[cell.folder] = _epochs(cell.folder) or self.seconds[cell.folder]
            if done := cell.done():
                self.running.remove(cell)
                self._finish(cell, done)
                number = f"[{len(self.cells) - len(self.unfinished)}/{len(self.cells)}]"
                difference = () if "failed" in done else estimate(self.numbers, cell.row)
                so_far = f", vs plain so far {' '.join(difference)}" if difference else ""
                line = f"{self.told.line(cell, done)}{so_far}{self._left()}"
                self._say(f"{number} {cell.row}, seed {cell.run.seed}: {line}")

    def _finish(self, cell: Cell, done: dict[str, Any]) -> None:
        self.unfinished.remove(cell)
        if "failed" in done:
            self.failed.add(cell.folder)
        elif self.told and (number := self.told.number(cell, done)) is not None:
            self.numbers[cell.row][cell.run.seed] = number

    def _say(self, line: str) -> None:
        self.console.print(line)
        self.spoke = time.monotonic()

    def _at(self) -> list[str]:
        return [
            f"{cell.row}, seed {cell.run.seed}: epoch {min(len(self.seconds[cell.folder]) + 1, total)}/{total}"
            for cell in self.running
            for total in [self._total(cell)]
        ]

    def _count(self) -> str:
        return f"{len(self.cells) - len(self.unfinished)} of {len(self.cells)} runs done{self._left()}"

    def _picture(self) -> RenderableType:
        """The grid, what is running, and the time left."""
        from rich.console import Group
        from rich.table import Table

        assert self.told
        rows = []
        for row, numbers in self.numbers.items():
            runs = "".join(self._state(cell) for cell in self.cells if cell.row == row)
            difference, interval = (*estimate(self.numbers, row), "", "")[:2]
            mean = f"{fmean(numbers.values()):.2f}" if numbers else ""
            shown = runs.translate(IN_ASCII) if self.console.options.ascii_only else runs
            rows.append([row, shown, difference, interval, mean])
        columns = ["method", "runs", "vs plain", "95 %, so far", f"{self.told.split} %"]
        if not any(row[2] for row in rows):
            columns, rows = [columns[i] for i in (0, 1, 4)], [[row[i] for i in (0, 1, 4)] for row in rows]
        empty = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        grid = fitted(empty, self.console, columns, rows, left=2, text="runs")
        return Group(grid, self._count(), *self._at())

    def _state(self, cell: Cell) -> str:
        """The cell as a character of the grid."""
        if cell not in self.unfinished:
            return FAILED if cell.folder in self.failed else DONE
        if cell not in self.running:
            return WAITING
        return RUNNING[min(len(RUNNING) * len(self.seconds[cell.folder]) // self._total(cell), len(RUNNING) - 1)]

    def _left(self) -> str:
        """The time left at the pace so far; an epoch weighs what it takes in its row."""
        by_row: dict[str, list[float]] = {}
        for cell in self.cells:
            by_row.setdefault(cell.row, []).extend(self.seconds[cell.folder])
        pace = {row: fmean(epochs) for row, epochs in by_row.items() if epochs}
        mean_pace = fmean(pace.values()) if pace else 0.0
        done = rest = 0.0
        for cell in self.cells:
            weight, epochs = pace.get(cell.row, mean_pace), len(self.seconds[cell.folder])
            done += weight * (epochs - self.before[cell.folder])
            rest += weight * (self._total(cell) - epochs) if cell in self.unfinished else 0.0
        if not done or not rest:
            return ""
        return f", about {duration((time.monotonic() - self.began) * rest / done)} left{self.then}"

    def _total(self, cell: Cell) -> int:
        """Its epochs in all, as the first run of its row has written down."""
        if cell.row not in self.totals:
            with contextlib.suppress(InputError):
                if stored := schemas.stored(cell.folder):
                    self.totals[cell.row] = stored.get("epochs", cell.run.epochs)
        return self.totals.get(cell.row, cell.run.epochs)


def estimate(numbers: Mapping[str, Mapping[int, float]], row: str) -> tuple[str, ...]:
    """A row's mean difference to plain over the seeds that both have, and from three on its 95 % interval for this row
    alone; nothing where there is none, as for plain itself."""
    plain, own = numbers.get("plain", {}), numbers[row]
    differences = [value - plain[seed] for seed, value in own.items() if seed in plain]
    if row == "plain" or not differences:
        return ()
    mean = f"{fmean(differences):+.2f}"
    if len(differences) < INTERVAL_FROM or len(set(differences)) == 1:
        return (mean,)
    low, high = t_interval(differences)
    return mean, f"[{low:+.2f}, {high:+.2f}]"


def _epochs(folder: Path) -> list[float]:
    """Seconds of each epoch in `metrics.jsonl`."""
    with contextlib.suppress(InputError):
        return [line["seconds"] for line in schemas.lines(folder)]
    return []

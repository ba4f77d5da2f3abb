"""How far a comparison is: read from the folders of its cells, shown on stderr."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from teacherless.errors import InputError
from teacherless.files import schemas
from teacherless.training.live import duration

if TYPE_CHECKING:
    from rich.console import Console

    from teacherless.study.cells import Cell

Told = Callable[["Cell", dict[str, Any]], str]  # (cell, what `Cell.done()` gives) -> its line
LOOK = 0.25  # seconds between two looks at the folders
SILENCE = 15  # seconds at most without a line where there is no terminal, or a tenth of the time so far


class Progress:
    """While it is entered: a line for every cell that finishes, and how far the others are.

    Args:
        cells: all of the comparison.
        told: what a finished cell's line says; None shows nothing.
        then: what comes after these cells, said beside the time left.
    """

    def __init__(self, cells: Sequence[Cell], told: Told | None, then: str = "") -> None:
        self.cells, self.told, self.then = cells, told, then
        self.seconds = {cell.folder: _epochs(cell.folder) for cell in cells}  # of each epoch that is done
        self.before = {folder: len(epochs) for folder, epochs in self.seconds.items()}
        self.unfinished = [cell for cell in cells if cell.done() is None]
        self.running: list[Cell] = []
        self.totals: dict[str, int] = {}  # epochs of a cell of each row
        self.began = self.spoke = time.monotonic()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch)

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
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True, highlight=False, soft_wrap=True)
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while not self.over.wait(LOOK):
                self._look(console)
                lines = self._status()
                if console.is_terminal:
                    live.update("\n".join(lines), refresh=True)
                elif time.monotonic() - self.spoke > max(SILENCE, (time.monotonic() - self.began) / 10):
                    self._say(console, "; ".join(lines))
            live.update("")
            self._look(console)

    def _look(self, console: Console) -> None:
        """Read how far the running cells are; say which have finished."""
        assert self.told
        for cell in list(self.running):
            self.seconds[cell.folder] = _epochs(cell.folder) or self.seconds[cell.folder]
            if done := cell.done():
                self.running.remove(cell)
                self.unfinished.remove(cell)
                number = f"[{len(self.cells) - len(self.unfinished)}/{len(self.cells)}]"
                self._say(console, f"{number} {cell.row}, seed {cell.run.seed}: {self.told(cell, done)}{self._left()}")

    def _say(self, console: Console, line: str) -> None:
        console.print(line, markup=False)
        self.spoke = time.monotonic()

    def _status(self) -> list[str]:
        each = [
            f"{cell.row}, seed {cell.run.seed}: epoch {min(len(self.seconds[cell.folder]) + 1, total)}/{total}"
            for cell in self.running for total in [self._total(cell)]
        ]  # fmt: skip
        return [*each, f"{len(self.cells) - len(self.unfinished)} of {len(self.cells)} runs done{self._left()}"]

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
            found = None
            with contextlib.suppress(InputError):
                found = schemas.stored(cell.folder)
            if found is None:
                return cell.run.epochs
            self.totals[cell.row] = found.get("epochs", cell.run.epochs)
        return self.totals[cell.row]


def _epochs(folder: Path) -> list[float]:
    """Seconds of each epoch in `metrics.jsonl`."""
    with contextlib.suppress(InputError):
        return [line["seconds"] for line in schemas.lines(folder)]
    return []

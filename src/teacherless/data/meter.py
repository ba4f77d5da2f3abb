"""Progress of what takes long before training starts."""

from __future__ import annotations

import sys
import time
from typing import Any


class Meter:
    """`with Meter("reading photos", 3000, "files") as meter: meter.advance(1)`, on stderr.

    Nothing in the first two seconds; then a bar on a terminal, and elsewhere a line every ten seconds.

    Args:
        what: is going on.
        total: how many `unit`s there are; None if nobody knows.
        unit: of `total` and of `advance`.
        per: how many steps of `advance` make a unit as it is shown (1e6 for bytes shown as MB).
    """

    patience = 2.0  # seconds before the first word
    every = 10.0  # seconds between plain lines

    def __init__(self, what: str, total: int | None, unit: str, per: float = 1) -> None:
        self.what, self.total, self.unit, self.per = what, total, unit, per
        self.done = 0
        self.next = time.monotonic() + self.patience
        self.bar: Any = None

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def advance(self, steps: int = 1) -> None:
        """`steps` more are done."""
        self.done += steps
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=self.done, description=str(self))
        elif time.monotonic() >= self.next:
            self.next += self.every
            if sys.stderr.isatty():
                self._open_bar()
            else:
                print(self, file=sys.stderr, flush=True)

    def __str__(self) -> str:
        shown = f"{self.done / self.per:,.0f}" + (f" of {self.total / self.per:,.0f}" if self.total else "")
        return f"{self.what}: {shown} {self.unit}"

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self.bar.add_task(str(self), total=self.total, completed=self.done)
        self.bar.start()

"""What a run shows while it runs: on a terminal a table that is drawn again and again, elsewhere a line per epoch.

Both say the same. Nothing here waits for the device: a step is counted, an epoch's line comes as it was written, and a
terminal is drawn on a thread of its own, so seldom that it takes a two-hundredth of the time.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from teacherless.files import schemas

if TYPE_CHECKING:
    from rich.console import Console, JustifyMethod, RenderableType
    from rich.table import Table

OFTEN = 0.5  # seconds at least between two drawings
SHARE = 200  # times as long as a drawing took, it waits for the next one
BLOCKS, PLAIN_BLOCKS = "▁▂▃▄▅▆▇█", ".:-=+*#@"
LOW, HIGH = 10, 20  # characters of a sparkline, on a terminal of less than WIDE columns and on others
WIDE = 60
SENTENCE = 30  # characters of a sentence that a column must have room for
OTHER_LINES = 8  # of a terminal's height, that rows of students must leave free

Line = Mapping[str, Any]


def view(students: Sequence[str], epochs: int, batches: int | None) -> View:
    """What suits the output. Args as of `View`."""
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console(highlight=False, markup=False, emoji=False)
        if console.is_interactive:  # TERM is not dumb
            return Screen(students, epochs, batches, console)
    return View(students, epochs, batches)


class View:
    """A line per epoch, where the output is no terminal.

    Args:
        students: their names.
        epochs: of the whole run.
        batches: of the whole run, or None where the data does not say.
    """

    def __init__(self, students: Sequence[str], epochs: int, batches: int | None) -> None:
        self.students, self.epochs, self.batches = students, epochs, batches
        self.lines: list[Line] = []
        self.done = 0  # batches
        self.start = self.began = 0.0  # the share that was done when this was opened, and when that was

    def open(self, history: Sequence[Line]) -> None:
        """The run begins, or goes on after these epochs."""
        self.lines, self.done = list(history), batches_of(history)
        self.start, self.began = self.far(), time.monotonic()

    def step(self) -> None:
        """One batch is done."""
        self.done += 1

    def epoch(self, line: Line) -> None:
        """An epoch is done; `line` as in metrics.jsonl."""
        self.lines.append(line)
        self.done = batches_of(self.lines)
        self.show()

    def show(self) -> None:
        """Say what the last epoch brought."""
        line = self.lines[-1]
        names = [name for name in self.students if name not in line.get("left", {})]
        each = [f"{name} {shown(line, 'train/top1', name)} / {shown(line, 'val/top1', name)}" for name in names]
        left = [f"({who})"] if (who := self.who_left()) else []
        loss, *facts = self.facts()
        epoch = f"epoch {line['epoch'] + 1}/{self.epochs}"
        print("  ".join([epoch, loss, "top-1 " + "  ".join([*each, *left]), *self.agreement(), *facts]), flush=True)

    def close(self) -> None:
        """The run ends."""

    def far(self) -> float:
        """How much of the run is done, in [0, 1]."""
        return self.done / self.batches if self.batches else len(self.lines) / self.epochs

    def facts(self) -> list[str]:
        """Of the whole run: the last epoch's loss, what teaches against cross-entropy, speed, the time left."""
        facts = []
        if self.lines:
            line = self.lines[-1]
            facts.append("loss not finite" if line["train/loss"] is None else f"loss {line['train/loss']:.4f}")
            labels, others = schemas.terms(line)
            if others and sum(labels.values()):
                facts.append(f"{' + '.join(others)} / ce {sum(others.values()) / sum(labels.values()):.3g}")
            facts.append(f"{line['img_per_s']:,.0f} img/s")
        gained = self.far() - self.start
        if gained > 0 and self.far() < 1:
            facts.append(f"{duration((time.monotonic() - self.began) / gained * (1 - self.far()))} left")
        return facts

    def agreement(self) -> list[str]:
        """How often the others take a validation image for the same class: of every student, of two of both."""
        each = [shown(self.lines[-1], "val/agreement", name) for name in self.students]
        known = [value for value in each if value != "-"]
        return [f"agreement {' '.join(known[: 1 if len(each) == 2 else None])} %"] if known else []

    def who_left(self) -> str:
        """Students that are not finite, and since when."""
        return schemas.who_left(self.lines[-1].get("left", {})) if self.lines else ""


class Screen(View):
    """A table with a row per student over the facts and a bar, for a terminal."""

    def __init__(self, students: Sequence[str], epochs: int, batches: int | None, console: Console) -> None:
        super().__init__(students, epochs, batches)
        self.console = console

    def open(self, history: Sequence[Line]) -> None:
        """Start drawing."""
        from rich.live import Live

        super().open(history)
        self.live = Live(console=self.console, auto_refresh=False)
        self.over = threading.Event()
        self.thread = threading.Thread(target=seldom, args=(self.over, self.draw), daemon=True)
        self.live.start()
        self.thread.start()

    def show(self) -> None:
        """The clock shows it."""

    def draw(self) -> None:
        """Show where the run stands."""
        self.live.update(self.picture(self.console.height - OTHER_LINES), refresh=True)

    def close(self) -> None:
        """Stop drawing; the last picture stays, with all students."""
        self.over.set()
        self.thread.join()
        self.live.update(self.picture(len(self.students)))
        self.live.stop()

    def picture(self, room: int) -> RenderableType:
        """Everything, with rows for `room` students."""
        from rich.columns import Columns
        from rich.console import Group
        from rich.progress_bar import ProgressBar

        epoch = f"epoch {min(len(self.lines) + 1, self.epochs)}/{self.epochs}"
        facts = Columns([epoch, *self.facts()], padding=(0, 2))
        bar = ProgressBar(total=1.0, completed=self.far(), width=min(self.console.width, WIDE))
        hidden = len(self.students) - max(room, 1)
        more = [f"and {hidden} more"] if hidden > 0 else []
        left = [who] if (who := self.who_left()) else []
        return Group(self.table(self.students[: max(room, 1)]), *more, *left, facts, bar)

    def table(self, students: Sequence[str]) -> Table:
        """A row for each of these; a narrow terminal loses the last columns."""
        from rich.table import Table

        size = HIGH if self.console.width >= WIDE else LOW
        blocks = PLAIN_BLOCKS if self.console.options.ascii_only else BLOCKS
        curves = {name: [line.get(f"val/top1/{name}") for line in self.lines] for name in students}
        known = [value for curve in curves.values() for value in curve if value is not None]
        low, high = min(known, default=0.0), max(known, default=0.0)
        keys = {"agreement %": "val/agreement", "train top-1": "train/top1", "train loss": "train/nll"}
        if len(self.students) == 1:
            del keys["agreement %"]
        last = self.lines[-1] if self.lines else {}
        rows = []
        for name, curve in curves.items():
            numbers = [shown(last, key, name) for key in ("val/top1", *keys.values())]
            rows.append([name, sparkline(curve, low, high, size, blocks).ljust(size), *numbers])
        empty = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        return fitted(empty, self.console, ["student", "val top-1", "last", *keys], rows, left=2)


def seldom(over: threading.Event, draw: Callable[[], None], least: float = OFTEN) -> None:
    """Call `draw` until `over` is set, so seldom that it takes a two-hundredth of the time; or until the terminal is
    gone. The first time, which imports what it needs, does not count."""
    pause = least
    with contextlib.suppress(OSError):
        draw()
        while not over.wait(pause):
            began = time.thread_time()
            draw()
            pause = max(least, SHARE * (time.thread_time() - began))


def batches_of(history: Sequence[Line]) -> int:
    """How many batches these epochs had. Every phase counts its own."""
    return sum({line.get("phase"): line["step"] for line in history}.values())


def shown(line: Line, key: str, student: str) -> str:
    """A student's number in a line; - where there is none."""
    value = line.get(f"{key}/{student}")
    return "-" if value is None else f"{value:.{4 if key.endswith('nll') else 2}f}"


def sparkline(values: Sequence[float | None], low: float, high: float, size: int, blocks: str = BLOCKS) -> str:
    """A block for each value, or for the mean of several where there are more than `size`; - where nothing is known.

    Args:
        values: of every epoch.
        low: what is drawn as the lowest block.
        high: the highest.
        size: characters at most.
        blocks: from low to high.
    """
    count = min(size, len(values))
    parts = [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
    means = [sum(known) / len(known) if (known := [v for v in part if v is not None]) else None for part in parts]
    steps = (len(blocks) - 1) / max(high - low, 1e-9)
    return "".join("-" if mean is None else blocks[round((mean - low) * steps)] for mean in means)


def fitted(
    table: Table, console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int, text: str = ""
) -> Table:
    """The table with these columns, without the last ones for which there is no room: no cell is cut.

    Args:
        table: without columns yet.
        console: that it is for.
        columns: their names.
        rows: a cell per column.
        left: how many of the columns begin at the left.
        text: the column whose cells may go on in a second line.
    """
    from rich.measure import Measurement

    for i, column in enumerate(columns):
        widest = max(len(column), *(len(row[i]) for row in rows))
        width = min(widest, SENTENCE) if column == text else widest
        side: JustifyMethod = "left" if i < left else "right"
        table.add_column(column, justify=side, no_wrap=column != text, min_width=width)
    for row in rows:
        table.add_row(*row)
    wide = console.options.update(max_width=10_000)
    if not console.is_terminal:
        console.width = Measurement.get(console, wide, table).maximum
    while len(table.columns) > 1 and Measurement.get(console, wide, table).minimum > console.width:
        table.columns.pop()
    return table


def duration(seconds: float) -> str:
    """`12 s`, `3 min`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.{1 if seconds < 10 else 0}f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

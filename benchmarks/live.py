"""What it costs a run to be watched: on a terminal, as lines, and not at all.

python benchmarks/live.py [--rounds 10] [--epochs 20]

One training of two small networks on digits, whose steps take milliseconds: a larger network's take longer, and a
drawing as long as before. The terminal is a pseudo-terminal of 100 columns whose other end is read and thrown away.

Two measures. Wall time of whole runs is what a user feels; on a rented machine its rounds differ by several percent,
and that hides one. So CPU time is counted, too: what threads spend in the view, as a share of the run's.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import pty
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO
from unittest import mock

from bench import interleave, interval, machine, ratio, shown, table, timed, write

import teacherless as tl
from teacherless.data import Loader, load
from teacherless.training.live import Screen, View
from teacherless.training.precision import tune_allocator


@contextlib.contextmanager
def terminal() -> Iterator[TextIO]:
    """A terminal that somebody reads."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))

    def read() -> None:
        with contextlib.suppress(OSError):
            while os.read(ours, 65536):
                pass

    threading.Thread(target=read, daemon=True).start()
    os.environ["TERM"] = "xterm-256color"
    with os.fdopen(theirs, "w", encoding="utf-8") as stream:
        yield stream


def watched(stream: TextIO | None, epochs: int) -> Callable[[], object]:
    """A training that is shown there, or nowhere."""
    source = load("digits")
    train, val = (Loader(split, batch_size=64, mean=source.mean, std=source.std, augment=None) for split in
                  (source.train, source.val))  # fmt: skip

    def run() -> None:
        method = tl.DML(*(tl.create("small-cnn", num_classes=10, in_channels=1, seed=seed) for seed in (0, 1)))
        with contextlib.redirect_stdout(stream or sys.stdout):
            tl.train(method, train, val, epochs=epochs, engine="loop", device="cpu", quiet=stream is None)

    return run


def share(run: Callable[[], object]) -> float:
    """The part of a run's CPU time that is spent in the view: its calls in the loop, and its thread that draws."""
    spent: list[float] = []

    def counted(call: Callable[..., None]) -> Callable[..., None]:
        def method(*args: Any) -> None:
            began = time.thread_time()
            call(*args)
            spent.append(time.thread_time() - began)

        return method

    outermost = [(View, "open"), (View, "step"), (View, "epoch"), (View, "close"), (Screen, "draw")]
    outermost += [(Screen, "open"), (Screen, "close")]
    with contextlib.ExitStack() as patched:
        for kind, name in outermost:
            patched.enter_context(mock.patch.object(kind, name, counted(vars(kind)[name])))
        began = time.process_time()
        run()
        return sum(spent) / (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    tune_allocator()
    where = machine("cpu")
    with terminal() as screen, open(os.devnull, "w", encoding="utf-8") as nowhere:
        runs = {"quiet": watched(None, args.epochs), "lines": watched(nowhere, args.epochs),
                "terminal": watched(screen, args.epochs)}  # fmt: skip
        for run in runs.values():
            run()
        times = interleave({name: timed(run) for name, run in runs.items()}, args.rounds)
        # a Screen's open calls a View's: counted twice, so a little more than it is
        shares = {name: [share(run) for _ in range(3)] for name, run in runs.items()}
    slower = {name: ratio(each, times["quiet"]) for name, each in times.items()}
    rows = [
        [name, f"{interval(t)[0] / 1000:.2f}", shown(slower[name], 4), f"{100 * max(shares[name]):.2f} %"]
        for name, t in times.items()
    ]
    title = f"dml, two small-cnn on digits, {args.epochs} epochs"
    write(
        "live",
        where,
        {title: table(["shown", "seconds", "times as long as quiet", "CPU time in the view"], rows)},
        times,
    )
    if max(map(max, shares.values())) > 0.01:
        raise SystemExit("more than the 1 % that were promised")


if __name__ == "__main__":
    main()

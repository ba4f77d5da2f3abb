"""Ctrl-C and its kin: a stop that is asked for, and when it is granted."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

from teacherless.errors import Stopped

T = TypeVar("T")


class Interrupted(Stopped):
    """A signal came while nothing was half done: what is there can be saved."""


class Signals:
    """Ctrl-C, SIGTERM and SIGHUP ask for a stop after the current step; a second one stops at once.

    While nothing is half done (`at_once`), the first one stops at once too. One that this process was told to ignore
    (`nohup`) is ignored.

    Args:
        alone: no other rank computes this run; ranks stop together, after a step.
    """

    def __init__(self, *, alone: bool = True) -> None:
        self.alone = alone
        self.asked: int | None = None
        self._waiting = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # Python delivers signals nowhere else
            for number in (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")):
                if number and signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self.asked is not None:
            raise Stopped(number, "stopped at once")
        self.asked = number
        if self._waiting:
            raise Interrupted(number, "stopped at once")

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Nothing in here changes what is saved. Raises: Interrupted for the first signal."""
        self._waiting = self.alone
        try:
            yield
        finally:
            self._waiting = False

    def between(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches; each is waited for `at_once`."""
        each = iter(batches)
        while True:
            with self.at_once():
                batch = next(each, None)
            if batch is None:
                return
            yield batch

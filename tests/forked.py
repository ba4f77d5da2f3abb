"""A process of its own without the seconds that imports take: a fork of the tests' process, used like a Popen."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from teacherless.cli import main

STREAMS = ("stdout", "stderr")  # descriptors 1 and 2
ROOM = 1 << 20  # of a pipe: what is written while nobody reads


class Forked:
    """The command line with these words in a process of its own.

    Args:
        words: what `main` gets; none where `before` is all there is to do.
        before: called in the process first, to make something slow or to limit it.
    """

    def __init__(self, *words: str, before: Callable[[], object] = bool) -> None:
        self.returncode: int | None = None
        self._said = {name: b"" for name in STREAMS}
        pipes = {name: os.pipe() for name in STREAMS}
        self._ends = {name: ours for name, (ours, _) in pipes.items()}
        self.pid = os.fork()
        if self.pid == 0:
            _be(words, before, [theirs for _, theirs in pipes.values()])
        for ours, theirs in pipes.values():
            os.close(theirs)
            os.set_blocking(ours, False)
            fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, ROOM)

    def poll(self) -> int | None:
        """The exit code; None as long as it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
            self._read()
        return self.returncode

    def wait(self, timeout: float = 120) -> int:
        """The exit code, once it has ended."""
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                raise TimeoutError(f"no end after {timeout} seconds")
            time.sleep(0.005)
        return code

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """What it wrote, once it has ended."""
        self.wait(timeout)
        return self._said["stdout"].decode(), self._said["stderr"].decode()

    def says(self, line: str) -> None:
        """Wait until it has written this line."""
        while f"{line}\n".encode() not in self._said["stdout"]:
            assert self.poll() is None, self._said["stderr"].decode()
            time.sleep(0.005)

    def send_signal(self, number: int) -> None:
        """As `os.kill`; nothing where it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _read(self) -> None:
        for name, end in self._ends.items():
            with contextlib.suppress(BlockingIOError):
                while part := os.read(end, ROOM):
                    self._said[name] += part
        if self.returncode is not None:
            for end in self._ends.values():
                os.close(end)
            self._ends = {}


def _be(words: tuple[str, ...], before: Callable[[], object], ends: list[int]) -> NoReturn:
    code = 1
    try:
        for number, end, name in zip((1, 2), ends, STREAMS, strict=True):  # in place of pytest's
            os.dup2(end, number)
            setattr(sys, name, open(number, "w", encoding="utf-8", buffering=1, closefd=False))  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        before()
        code = main(words) if words else 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)

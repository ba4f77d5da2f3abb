"""A terminal for tests: a command in a pseudo-terminal, and what stands on its screen in the end."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Callable, Sequence


class Shown:
    """The lines of a screen without an end, of so many columns. An escape that it does not know is an error."""

    def __init__(self, columns: int) -> None:
        self.columns, self.rows, self.row, self.column = columns, [""], 0, 0

    def feed(self, text: str) -> None:
        for escape, count, kind, character in re.findall(r"(\x1b\[\??(\d*)[\d;]*([A-Za-z]))|(.)", text, re.DOTALL):
            if kind == "A":
                self.row = max(0, self.row - int(count or 1))
            elif kind == "K":
                assert count == "2"
                self.rows[self.row] = ""
            elif character == "\r":
                self.column = 0
            elif character == "\n":
                self._down()
            elif escape:
                assert kind in "mhl", f"unknown escape {escape!r}"
            else:
                self._write(character)

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append("")

    def _write(self, character: str) -> None:
        assert character != "\x1b"
        if self.column >= self.columns:
            self._down()
            self.column = 0
        line = self.rows[self.row].ljust(self.column)
        self.rows[self.row] = line[: self.column] + character + line[self.column + 1 :]
        self.column += 1


def run(
    argv: Sequence[str],
    columns: int,
    *,
    height: int = 30,
    then: Callable[[str], int | None] = lambda shown: None,
    **environment: str,
) -> tuple[list[str], str]:
    """The command in a terminal: what stands there in the end, line by line, and all that was written.

    Args:
        argv: the command.
        columns: of the terminal.
        height: its lines.
        then: is given all that was written so far and may return another number of columns.
        environment: more variables.
    """
    ours, theirs = pty.openpty()

    def resize(columns: int) -> None:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, columns, 0, 0))

    resize(columns)
    inherited = {key: value for key, value in os.environ.items()
                 if key not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")}  # fmt: skip
    env = {**inherited, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **environment}
    process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True)
    screen, written, pending = Shown(columns), "", b""
    while process.poll() is None or _ready(ours):
        if not _ready(ours, 0.05):
            continue
        pending += os.read(ours, 65536)
        text = pending.decode(errors="ignore") if not _cut(pending) else ""
        if not text:
            continue
        pending, written = b"", written + text
        screen.feed(text)
        if wanted := then(written):
            screen.columns = wanted
            resize(wanted)
    os.close(theirs)
    os.close(ours)
    assert process.wait() == 0, written
    return [line.rstrip() for line in screen.rows], written


def _ready(descriptor: int, seconds: float = 0.0) -> bool:
    import select

    return bool(select.select([descriptor], [], [], seconds)[0])


def _cut(data: bytes) -> bool:
    """Whether it ends within a character or an escape."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return True
    return bool(re.search(r"\x1b(\[[\d;?]*)?$", text))

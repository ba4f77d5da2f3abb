"""Bounds that are checked before memory is taken: a file may unpack to anything, and a pipe never ends."""

from __future__ import annotations

import stat
from pathlib import Path

from teacherless.errors import InputError

ROOM = 2**28  # bytes that any file may unpack to
RATIO = 100  # how many times its size a larger one may; images pack two to five times, zeros a thousand


def a_file(path: Path, most: int | None = None) -> Path:
    """The path. Raises: InputError if it is not a file that can be read to its end, or has more than `most` bytes."""
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise InputError(f"{path}: found {kind}; must be a file")
    if most is not None and status.st_size > most:
        raise InputError(f"{path}: found {status.st_size:,} bytes; must be {most:,} at most")
    return path


def check_unpacked(path: Path, size: int) -> None:
    """Raises: InputError where a file unpacks to `size` bytes and that is a bomb rather than images."""
    packed = path.stat().st_size
    if size > max(ROOM, RATIO * packed):
        raise InputError(f"{path}: found {packed:,} bytes; it unpacks to {size:,} or more, which no images do")

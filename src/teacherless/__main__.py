"""The command `teacherless`, and `python -m teacherless`: Ctrl-C is one line from the first import on."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def main() -> int:
    """Run the command line; returns the exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        from teacherless.cli import main as run

        return run()
    except KeyboardInterrupt:
        return _say()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, as ever. In the middle of an import end at once: nothing is to be put away then, and
    modules written in C make errors of their own of an exception."""
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            os._exit(_say())
        frame = frame.f_back
    raise KeyboardInterrupt


def _say() -> int:
    print("teacherless: interrupted", file=sys.stderr, flush=True)
    return 130


if __name__ == "__main__":
    sys.exit(main())

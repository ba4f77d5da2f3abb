"""What torchrun says of this process, in its environment. Imports no torch."""

from __future__ import annotations

import os


def _number(name: str, without: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else without


def size() -> int:
    """How many ranks it has started; 1 without it."""
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """Which of them this is. The first one prints and writes."""
    return _number("RANK", 0)


def local_rank() -> int:
    """Which of this machine's it is."""
    return _number("LOCAL_RANK", 0)


def restarts() -> tuple[int, int]:
    """How often it has started all of them again, after one died, and how often it may."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0), _number("TORCHELASTIC_MAX_RESTARTS", 0)

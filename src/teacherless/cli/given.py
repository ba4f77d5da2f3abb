"""What a user gave: the flags that were typed, and the settings they merge to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from teacherless.errors import InputError, short
from teacherless.runs.config import Run


def given(flags: BaseModel) -> list[str]:
    """The flags that were typed."""
    return [f"--{flag.replace('_', '-')}" for flag, value in flags if value is not None]


def merged(method: str | None, flags: BaseModel, recipe: Path | None = None, stored: Any = None) -> Run:
    """As `runs.merge.merge`, which needs torch: `--help` does not."""
    from teacherless.runs.merge import merge

    return merge(method, dict(flags), recipe, stored)


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\n".join(["Examples:", *(f"  teacherless {line}" for line in lines)])


def number_range(name: str, text: str) -> range:
    """`1..5`, both ends included. Raises: InputError for anything else."""
    low, _, high = text.partition("..")
    if not (low.isdecimal() and high.isdecimal() and 0 < int(low) <= int(high)):
        raise InputError(f"{name}: found {short(text)}; must be a number, or a range as 1..5")
    return range(int(low), int(high) + 1)

"""A run's folder: opened, its JSON read and written whole, and whether the run in it may go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from teacherless import disk
from teacherless.errors import InputError


def open_folder(out: Path, resume: bool = False) -> Path:
    """Make the run folder. Raises: InputError if it holds a run that is not to be resumed, or cannot be written."""
    if not resume:
        if (out / "summary.json").exists():
            raise InputError(f"--out: {str(out)!r} holds a finished run; choose another folder")
        if (out / "run.json").exists():
            raise InputError(
                f"--out: {str(out)!r} holds an unfinished run; go on with --resume, or choose another folder"
            )
        if out.is_dir() and any(out.iterdir()):
            raise InputError(f"--out: {str(out)!r} is not empty; choose a new or empty folder")
    elif out.is_dir() and any(out.iterdir()) and not (out / "run.json").exists() and not (out / ".lock").exists():
        raise InputError(f"--out: {str(out)!r} is not a run folder; nothing to resume")
    with disk.saying(f"--out: cannot write to {str(out)!r}"):
        disk.make_folder(out)
    return out


SAFE = {"epochs", "steps", "checkpoint_every", "workers"}  # may change in a resumed run, on request


def compare(before: Mapping[str, Any], now: Mapping[str, Any], anyway: bool) -> None:
    """Whether a run may go on. Raises: InputError listing what is not as it was."""
    differences, unsafe = [], False
    for key in before["settings"].keys() | now["settings"].keys():
        old, new = before["settings"].get(key), now["settings"].get(key)
        if old != new:
            differences.append(f"{key} was {old!r}, is {new!r}")
            unsafe |= key not in SAFE
    for what, old, new in (
        ("data", before["data"].get("fingerprint"), now["data"].get("fingerprint")),
        ("teacher", before.get("teacher"), now.get("teacher")),
        ("engine", before["engine"], now["engine"]),
    ):
        if old != new:
            differences.append(f"the {what} is not the same")
            unsafe = True
    if differences and (unsafe or not anyway):
        how = "" if unsafe else "; --resume-anyway goes on with these"
        raise InputError(f"--resume: the run was started otherwise: {'; '.join(sorted(differences))}{how}")


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON file of a run folder, or None where there is none. Raises: InputError if it is not JSON."""
    try:
        value: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, line by line."""
    return [json.loads(line) for line in path.read_text().splitlines()]

"""A run's folder: opened, held by one process, and whether the run in it may go on."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from teacherless.errors import InputError, short
from teacherless.files import disk


def open_folder(out: Path, resume: bool = False) -> Path:
    """Make the run folder. Raises: InputError if it holds a run that is not to be resumed, or cannot be written."""
    if not resume:
        if (out / "summary.json").exists():
            raise InputError(f"--out: {str(out)!r} holds a finished run; choose another folder")
        if (out / "run.json").exists():
            hint = "go on with --resume, or choose another folder"
            raise InputError(f"--out: {str(out)!r} holds an unfinished run; {hint}")
        if out.is_dir() and any(out.iterdir()):
            raise InputError(f"--out: {str(out)!r} is not empty; choose a new or empty folder")
    elif out.is_dir() and any(out.iterdir()) and not (out / "run.json").exists() and not (out / ".lock").exists():
        raise InputError(f"--out: {str(out)!r} is not a run folder; nothing to resume")
    with disk.saying(f"--out: cannot write to {str(out)!r}"):
        disk.make_folder(out)
    return out


FREE = {"parallel", "place", "timeout"}  # change nothing but where it is computed
SAFE = {"epochs", "steps", "checkpoint_every", "workers", "bad_images", "log"}  # may change in a resumed run, if asked
ADDED = {"exchange_every": 1}  # settings that older runs do not have, and what these did


def compare(before: Mapping[str, Any], now: Mapping[str, Any], anyway: bool) -> None:
    """Whether a run may go on. Raises: InputError listing what is not as it was."""
    differences, unsafe = [], False
    was, wanted = _settings(before), _settings(now)
    for key in was.keys() | wanted.keys():
        old, new = was.get(key, ADDED.get(key)), wanted.get(key)
        if old != new:
            differences.append(f"{key} was {short(old)}, is {short(new)}")
            unsafe |= key not in SAFE
    for what, old, new in (
        ("data", before["data"].get("fingerprint"), now["data"].get("fingerprint")),
        ("teacher", before.get("teacher"), now.get("teacher")),
        ("start of --init", before.get("init", now.get("init")), now.get("init")),  # runs from before have none
        ("weight of each class", before.get("class_weights", now.get("class_weights")), now.get("class_weights")),
        ("engine", before["engine"], now["engine"]),
    ):
        if old != new:
            differences.append(f"the {what} is not the same")
            unsafe = True
    if differences and (unsafe or not anyway):
        how = "" if unsafe else "; --resume-anyway goes on with these"
        raise InputError(f"--resume: the run was started otherwise: {'; '.join(sorted(differences))}{how}")


def _settings(run: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a run's numbers; the batch is that of all ranks together."""
    settings = {key: value for key, value in run["settings"].items() if key not in FREE}
    if "batch_size" in settings:
        settings["batch_size"] *= (run.get("ranks") or {}).get("data", 1)
    return settings


def elsewhere(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What may round otherwise than where a run began, a line each. Runs from before do not say all of it."""
    for what in ("torch", "device", "threads"):
        was, here = (run.get("versions", {}).get(what) or run.get(what) for run in (before, now))
        if was and was != here:
            yield f"begun with {what} {was}, goes on with {here}: the same but for rounding"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder; the system lets go when the process ends, however it ends.

    Raises: InputError if another process holds it.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(f"--out: {str(folder)!r} is in use by another process") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
            raise InputError(f"--out: cannot write to {str(folder)!r}: {error.strerror}") from None
        print(f"{folder}: this file system has no locks; see to it that no other process writes there", file=sys.stderr)
    try:
        yield
    finally:
        lock.release()

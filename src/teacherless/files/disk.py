"""Files that are whole under their name, or not there: after a kill, a full disk, a power cut."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from teacherless.errors import InputError
from teacherless.files.bounds import a_file

PART = ".part-"  # the beginning of a name whose content is not finished, or not wanted any more


def write(path: Path, data: bytes | str) -> str:
    """Write a file whole; returns its SHA-256.

    Raises: InputError if it cannot be written; what was there before is untouched.
    """
    data = data.encode() if isinstance(data, str) else data
    with whole(path) as part:
        part.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write what is to be at `path`; at the end it is flushed and renamed.

    Raises: InputError if it cannot be written; what was there before is untouched.
    """
    part = path.with_name(f"{PART}{os.getpid()}-{path.name}")  # another process may be writing the same
    with saying(f"cannot write {str(path)!r}"):
        try:
            make_folder(path.parent)
            yield part
            with part.open("r+b") as file:
                os.fsync(file.fileno())
            part.replace(path)
            flush_folder(path.parent)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Where to write the files of a folder that is to be at `path`; at the end they are flushed and it is renamed.

    Raises: InputError if it cannot be written, or is there already.
    """
    part = path.with_name(f"{PART}{os.getpid()}-{path.name}")  # another process may be writing the same
    if path.exists():
        raise InputError(f"{path}: is there already; remove it, or name another folder")
    with saying(f"cannot write {str(path)!r}"):
        try:
            make_folder(path.parent)
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            yield part
            for file in part.iterdir():
                with file.open("r+b") as there:
                    os.fsync(there.fileno())
            flush_folder(part)
            part.rename(path)
            flush_folder(path.parent)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


def append(path: Path, line: str) -> None:
    """Add a line: all of it or nothing. Not flushed. Raises: InputError if it cannot be written."""
    data = (line + "\n").encode()
    with saying(f"cannot write {str(path)!r}"), path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(size)
            raise


def write_json(path: Path, value: Any) -> str:
    """Write JSON; returns its SHA-256. Raises: as `write`."""
    return write(path, json.dumps(finite(value), indent=1, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """The same, with None for every number that is not finite: JSON has no name for those."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sha256(path: Path) -> str | None:
    """The checksum of a file; None for one that cannot be read."""
    try:
        with a_file(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (InputError, OSError):
        return None


def damaged(folder: Path, names: Iterable[str], sums: Mapping[str, str]) -> list[str]:
    """Those of a folder's files that are missing, or do not have the checksum that is known of them."""
    digests = {name: sha256(folder / name) for name in names}
    return [name for name, digest in digests.items() if digest is None or digest != sums.get(name, digest)]


@contextmanager
def saying(what: str) -> Iterator[None]:
    """What the system refuses, in one line. Raises: InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{what}: {error.strerror or error}") from None


def make_folder(path: Path) -> None:
    """Make a folder, and those above it; their names are on the disk afterwards."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        flush_folder(path.parent)


def write_flushed(path: Path, data: bytes) -> None:
    """Write and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can do that with folders."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EINVAL, errno.ENOTSUP):
            raise


def remove(folder: Path) -> None:
    """Remove a folder, its name first: nobody takes what is half removed for whole."""
    gone = folder.with_name(PART + folder.name)
    folder.rename(gone)
    flush_folder(folder.parent)
    shutil.rmtree(gone)


def clear(folder: Path) -> None:
    """Remove what a process that was killed had not finished, or not finished removing."""
    for part in list(folder.rglob(PART + "*")):
        shutil.rmtree(part) if part.is_dir() else part.unlink()

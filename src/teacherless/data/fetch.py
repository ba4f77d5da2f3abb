"""A file from the net: whole and right under its own name, or not there at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from teacherless.data.meter import Meter
from teacherless.errors import InputError

ATTEMPTS = 4  # in a row without a single new byte
PAUSE = 1.0  # seconds before the second attempt; doubles
TIMEOUT = 30.0  # seconds without a byte
BLOCK = 1 << 16
TEMPORARY = {408, 425, 429, 500, 502, 503, 504}


def cache_dir() -> Path:
    """Where downloads are kept: `$TEACHERLESS_CACHE`, or the platform's cache folder."""
    if chosen := os.environ.get("TEACHERLESS_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "teacherless"


def download(url: str, path: Path, sha256: str | None = None, *, md5: str | None = None) -> None:
    """Fetch `url` to `path`, unless it is there. One checksum is given: sha256, or md5 where nothing else is published.

    Bytes go to `path.part`, which a later attempt or a later run continues; the file gets its name once its checksum is
    right. A connection that is cut is taken up again where it broke; who comes second waits for who is fetching.

    Raises: InputError when the server refuses, the connection stays broken, the checksum is wrong (the bytes are
    deleted), or the folder cannot be written or is full (the bytes are kept).
    """
    if path.exists():
        return
    part = path.with_name(path.name + ".part")
    kind, expected = ("md5", md5) if sha256 is None else ("sha256", sha256)
    assert expected, "a file without a checksum is not fetched"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(part):
            if path.exists():  # while we waited
                return part.unlink()
            continued = _size(part) > 0
            _complete(url, part)
            if continued and digest(part, kind) != expected:  # its beginning may have been another file's
                part.write_bytes(b"")
                _complete(url, part)
            found = digest(part, kind)
            if found != expected:
                part.unlink()
                raise InputError(
                    f"{url}: found {kind} {found[:16]}…; must be {expected[:16]}…: not the file it should be"
                )
            part.replace(path)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "no space left" if full else error.strerror or str(error)
        raise InputError(f"cannot write {str(part)!r}: {why}") from error


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[None]:
    """One process fetches, the others wait for it. Where the file system has no locks, nobody waits."""
    while True:
        with part.open("ab") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another process that fetches {part.stem}", file=sys.stderr, flush=True)
                fcntl.flock(held, fcntl.LOCK_EX)
            except OSError:
                pass
            if part.exists() and os.path.samestat(os.fstat(held.fileno()), part.stat()):
                yield
                return
            # who held it has renamed or deleted it: what we hold is no longer that file


def digest(path: Path, kind: str = "sha256") -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _complete(url: str, part: Path) -> None:
    """Call again and again until the last byte is there."""
    stalled = 0
    while True:
        before = _size(part)
        try:
            return _receive(url, part)
        except _Broken as broken:
            stalled = 0 if _size(part) > before else stalled + 1
            if stalled >= ATTEMPTS:
                raise InputError(f"{url}: gave up after {ATTEMPTS} attempts: {broken}") from broken
            if stalled:
                time.sleep(PAUSE * 2 ** (stalled - 1))


class _Broken(Exception):
    """The connection, not the disk: worth another attempt."""


def _receive(url: str, part: Path) -> None:
    """Append what is missing. Raises: _Broken, InputError for a refusal, OSError of the disk."""
    with part.open("ab") as file:
        have = file.tell()
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        try:
            response = urllib.request.urlopen(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # nothing after the last byte we have: the checksum will tell
                return
            if error.code in TEMPORARY:
                raise _Broken(f"HTTP {error.code} {error.reason}") from error
            raise InputError(f"{url}: HTTP {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(str(getattr(error, "reason", "") or error or type(error).__name__)) from error
        with response:
            if response.status != 206:  # it does not do ranges: from the start
                have = 0
                file.truncate(0)
            total = _total(response, have)
            with Meter(f"downloading {url.rpartition('/')[2]}", total, "MB", per=1e6) as meter:
                meter.advance(have)
                while block := _read(response):
                    append(file, block)
                    meter.advance(len(block))
        if total is not None and file.tell() < total:
            raise _Broken(f"the connection was cut at byte {file.tell():,} of {total:,}")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(str(error) or type(error).__name__) from error


def append(file: IO[bytes], block: bytes) -> None:
    """Write and flush, so that a full disk is met here and not when the file is closed."""
    file.write(block)
    file.flush()


def _total(response: http.client.HTTPResponse, have: int) -> int | None:
    """How long the whole file is, if the server says."""
    if ranged := re.search(r"/(\d+)$", response.headers.get("Content-Range", "")):
        return int(ranged[1])
    length = response.headers.get("Content-Length")
    return have + int(length) if length else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0

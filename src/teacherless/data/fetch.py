"""A file from the net: whole and right under its own name, or not there at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from teacherless.data.meter import Meter
from teacherless.errors import InputError

ATTEMPTS = 3
CHUNK = 1 << 16  # bytes
TIMEOUT = 30.0  # seconds without a byte


def cache_dir() -> Path:
    """Where downloads are kept: `$TEACHERLESS_CACHE`, or the platform's cache folder."""
    if chosen := os.environ.get("TEACHERLESS_CACHE"):
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("teacherless", appauthor=False)


def download(url: str, path: Path, sha256: str | None = None, *, md5: str | None = None) -> None:
    """Fetch `url` to `path`, unless it is there. One checksum is given: sha256, or md5 where nothing else is published.

    A connection that breaks is tried again; who comes second waits for who is fetching.

    Raises: InputError when the server refuses, the connection stays broken, the checksum is wrong, or the folder cannot
    be written or is full. Nothing is left of the file then.
    """
    import pooch
    from filelock import FileLock
    from requests import RequestException

    assert sha256 or md5, "a file without a checksum is not fetched"
    if path.exists():
        return
    pooch.get_logger().setLevel("ERROR")
    known = f"sha256:{sha256}" if sha256 else f"md5:{md5}"
    where = pooch.create(
        path.parent, base_url="", registry={path.name: known}, urls={path.name: url}, retry_if_failed=ATTEMPTS - 1
    )
    bar = _Bar(f"downloading {url.rpartition('/')[2]}", None, "MB", per=1e6)
    get = pooch.HTTPDownloader(progressbar=bar, chunk_size=CHUNK, timeout=TIMEOUT)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError, NotImplementedError):  # others wait, but where the file system has no locks
            lock.acquire()
        where.fetch(path.name, downloader=get)
    except RequestException as error:
        raise InputError(f"{url}: gave up after {ATTEMPTS} attempts: {error}") from error
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{url}: not the file it should be: {error}") from error
    finally:
        lock.release()


class _Bar(Meter):
    """A meter with the names that pooch knows, which also says `total` once the server has."""

    update, close = Meter.advance, Meter.__exit__

    def reset(self) -> None:
        """All bytes are here; pooch tells their number once more."""

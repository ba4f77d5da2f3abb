"""The IDX format of MNIST and its descendants: a magic number, the sizes, the bytes."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from teacherless.errors import InputError

UNSIGNED_BYTE = 0x08


def read_idx(path: Path, dims: int) -> Tensor:
    """The array in an IDX file of bytes, gzipped or not. uint8, with `dims` axes.

    Raises: InputError for a file that cannot be read, that is not IDX with so many axes, or that has fewer or more
    bytes than it says.
    """
    data = _bytes(path)
    if len(data) < 4 or data[:4] != bytes((0, 0, UNSIGNED_BYTE, dims)):
        raise InputError(f"{path}: found first bytes {data[:4].hex()!r}; must be an IDX file: 000008{dims:02x}")
    start = 4 + 4 * dims
    if len(data) < start:
        raise InputError(f"{path}: found {len(data)} bytes; truncated")
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4)]
    expected = start + int(np.prod(shape))
    if len(data) != expected:
        state = "truncated" if len(data) < expected else "too long"
        raise InputError(f"{path}: found {len(data):,} bytes; must be {expected:,} for {shape}: {state}")
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy())


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: a truncated or damaged gzip file ({error})") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error

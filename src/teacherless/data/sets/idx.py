"""The IDX format of MNIST and its descendants: a magic number, the sizes, the bytes."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from teacherless.errors import InputError
from teacherless.files.bounds import a_file, check_unpacked

UNSIGNED_BYTE = 0x08


def read_idx(path: Path, dims: int) -> Tensor:
    """The array in an IDX file of bytes, gzipped or not. uint8, with `dims` axes.

    Raises: InputError for a file that cannot be read, that is not IDX with so many axes, that has fewer or more bytes
    than it says, or says that it has more than it can.
    """
    try:
        with a_file(path).open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            head = file.read(4 + 4 * dims)
            if head[:4] != bytes((0, 0, UNSIGNED_BYTE, dims)):
                raise InputError(f"{path}: found first bytes {head[:4].hex()!r}; must be an IDX file: 000008{dims:02x}")
            if len(head) < 4 + 4 * dims:
                raise InputError(f"{path}: found {len(head)} bytes; truncated")
            shape = [int.from_bytes(head[at : at + 4], "big") for at in range(4, len(head), 4)]
            size = math.prod(shape)
            check_unpacked(path, math.prod(max(1, sides) for sides in shape))  # nothing of a size that no array has
            body = file.read(size + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: a truncated or damaged gzip file ({error})") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    if len(body) != size:
        count, state = ("more", "too long") if len(body) > size else (f"{len(head) + len(body):,} bytes", "truncated")
        raise InputError(f"{path}: found {count}; must be {len(head) + size:,} bytes for {shape}: {state}")
    return torch.from_numpy(np.frombuffer(body, np.uint8).reshape(shape).copy())

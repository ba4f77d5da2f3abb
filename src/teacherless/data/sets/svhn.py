"""SVHN, street view house numbers, cropped digits (Netzer et al. 2011): MATLAB files of 32x32 images."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from teacherless.data.contents import Contents, Options, as_it_is, same_classes
from teacherless.data.fetch import cache_dir, download
from teacherless.data.splits import Resident
from teacherless.errors import InputError
from teacherless.files.bounds import a_file, check_unpacked

URL = "http://ufldl.stanford.edu/housenumbers"
FILES = {  # md5, MB
    "train_32x32.mat": ("e26dedcc434d2e4c54c9b2d4a06d8373", 182),
    "extra_32x32.mat": ("a93ce644f1a588dc4d68dda5feec44a7", 1330),
    "test_32x32.mat": ("eb5a983be6a315427106f1b164d9cef3", 64),
}


def svhn(options: Options) -> Contents:
    """svhn: 73,257 + 26,032 digits of house numbers, 32x32 RGB, 10 classes (246 MB to download once).

    Read from `--data-dir` (train_32x32.mat, test_32x32.mat), else downloaded to the cache folder. Not distorted: a
    shifted crop shows other digits, a flipped one is none.
    """
    return _read("svhn", ("train_32x32.mat",), options)


def svhn_extra(options: Options) -> Contents:
    """svhn-extra: svhn with its 531,131 extra images in train, as ONE trains it (1.6 GB to download once).

    Needs 2 GB of memory for the images.
    """
    return _read("svhn-extra", ("train_32x32.mat", "extra_32x32.mat"), options)


def _read(name: str, files: tuple[str, ...], options: Options) -> Contents:
    as_it_is(name, options, 32, 3)
    parts = [_mat(_file(name, file, options.data_dir)) for file in files]
    train = Resident(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))
    test = _mat(_file(name, "test_32x32.mat", options.data_dir))
    classes = [str(digit) for digit in range(10)]
    same_classes(name, classes, {"train": train, "test": test})
    return Contents(name, classes, 32, 3, train, None, test)


def _file(name: str, file: str, data_dir: Path | None) -> Path:
    """Raises: InputError that says what to download, how big it is, and where we looked."""
    url, (md5, megabytes) = f"{URL}/{file}", FILES[file]
    if data_dir is not None:
        if not (data_dir / file).is_file():
            hint = f"download {url} ({megabytes} MB) to it, or leave --data-dir out"
            raise InputError(f"{name}: found no {file} in {str(data_dir)!r}; {hint}")
        return data_dir / file
    path = cache_dir() / "svhn" / file
    try:
        download(url, path, md5=md5)
    except InputError as error:
        hint = f"or download {url}, {megabytes} MB, yourself, and give its folder: --data-dir"
        raise InputError(f"{name}: {error} ({hint})") from error
    return path


def _mat(path: Path) -> Resident:
    """`X` uint8 [32, 32, 3, N] and `y` [N, 1] with classes 1 to 10, where 10 is the digit 0.

    Raises: InputError for a file that is cut, or of other contents.
    """
    from scipy.io import loadmat

    a_file(path)
    try:
        check_unpacked(path, _unpacked(path))
        arrays = loadmat(path, variable_names=["X", "y"])
    except InputError:
        raise
    except Exception as error:  # a damaged file can raise anything: ValueError, zlib.error, TypeError, …
        raise InputError(f"{path}: is not a readable MATLAB file: truncated or foreign ({error})") from error
    x, y = (np.asarray(arrays.get(key)) for key in ("X", "y"))
    if x.dtype != np.uint8 or x.size == 0 or x.shape != (32, 32, 3, y.size) or y.shape != (y.size, 1):
        shapes = {key: list(arrays[key].shape) for key in ("X", "y") if key in arrays}
        raise InputError(f"{path}: found {shapes or 'neither X nor y'}; must be X, bytes [32, 32, 3, N], and y [N, 1]")
    legal = np.isin(y[:, 0], np.arange(1, 11)) if y.dtype.kind in "iuf" else np.zeros(len(y), bool)
    if not legal.all():
        raise InputError(f"{path}: found label {y[:, 0][~legal][0]!s:.20}; must be 1 to 10, where 10 is the digit 0")
    labels = torch.from_numpy(y[:, 0].astype(np.int64))
    return Resident(torch.from_numpy(np.ascontiguousarray(x.transpose(3, 0, 1, 2))), labels % 10)


def _unpacked(path: Path) -> int:
    """How many bytes a MATLAB 5 file holds once its compressed parts are unpacked; counted, not kept."""
    total, compressed = 0, 15
    with path.open("rb") as file:
        file.seek(128)  # of text
        while len(tag := file.read(8)) == 8:
            kind, size = struct.unpack("<II", tag)
            unpacker, end = zlib.decompressobj(), file.tell() + size
            while kind == compressed and not unpacker.eof and (block := file.read(min(2**16, end - file.tell()))):
                while block and not unpacker.eof:
                    total += len(unpacker.decompress(block, 2**22))
                    check_unpacked(path, total)
                    block = unpacker.unconsumed_tail
            file.seek(end)
    return total

"""CIFAR-10 and CIFAR-100 in their binary release (Krizhevsky 2009): records of label bytes and 3072 pixels.

The Python release is a pickle, which is a program; it is not read.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from teacherless.data.contents import Contents, Options, as_it_is, same_classes
from teacherless.data.fetch import cache_dir, download
from teacherless.data.splits import Resident
from teacherless.errors import InputError
from teacherless.files import disk
from teacherless.files.bounds import a_file

SIDE = 32
MOST = 50_000  # records of a file
PIXELS = 3 * SIDE * SIDE  # of a record: a plane of red, of green, of blue, each row by row


class Release(NamedTuple):
    """What one of the two archives holds."""

    name: str
    folder: str  # in the archive
    train: tuple[str, ...]
    test: str
    names: str  # the file with one class name per line
    classes: int
    labels: int  # bytes before the pixels; the last one is the class
    url: str
    md5: str
    megabytes: int


CIFAR10 = Release(
    name="cifar10",
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test="test_batch.bin",
    names="batches.meta.txt",
    classes=10,
    labels=1,
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    megabytes=170,
)
CIFAR100 = Release(
    name="cifar100",
    folder="cifar-100-binary",
    train=("train.bin",),
    test="test.bin",
    names="fine_label_names.txt",
    classes=100,
    labels=2,
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    megabytes=169,
)


def cifar10(options: Options) -> Contents:
    """cifar10: 50,000 + 10,000 photos, 32x32 RGB, 10 classes (binary release; 170 MB to download once).

    Read from `--data-dir` (the unpacked files, or the folder they are in), else downloaded to the cache folder.
    Training crops from a border of four black pixels and flips, as ONE does; `--aug pad4-reflect-flip` is DML's.
    """
    return _read(CIFAR10, options)


def cifar100(options: Options) -> Contents:
    """cifar100: 50,000 + 10,000 photos, 32x32 RGB, 100 classes (binary release, fine labels; 169 MB to download once).

    Read and distorted as cifar10.
    """
    return _read(CIFAR100, options)


def _read(release: Release, options: Options) -> Contents:
    as_it_is(release.name, options, SIDE, 3)
    where = _where(release, options.data_dir)
    parts = [_records(release, where / file) for file in release.train]
    for file, part in zip(release.train, parts, strict=True):
        if len(part) != len(parts[0]):
            raise InputError(f"{where / file}: found {len(part):,} images; {release.train[0]} has {len(parts[0]):,}")
    train = Resident(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))
    test = _records(release, where / release.test)
    classes = _class_names(release, where / release.names)
    same_classes(release.name, classes, {"train": train, "test": test})
    return Contents(release.name, classes, SIDE, 3, train, None, test)


def _where(release: Release, data_dir: Path | None) -> Path:
    """The folder with the files. Raises: InputError that says what to download, how big it is, and where we looked."""
    root = data_dir or cache_dir() / release.name
    for where in (root, root / release.folder):
        if (where / release.test).is_file():
            return where
    size = f"{release.megabytes} MB"
    if data_dir is not None:
        missing = f"found no {release.test} in {str(root)!r}, nor in {release.folder} below it"
        hint = f"download {release.url} ({size}) and unpack it there, or leave --data-dir out"
        raise InputError(f"{release.name}: {missing}; {hint}")
    archive = root / release.url.rpartition("/")[2]
    try:
        download(release.url, archive, md5=release.md5)
    except InputError as error:
        hint = f"or download {release.url}, {size}, yourself, unpack it, and give its folder: --data-dir"
        raise InputError(f"{release.name}: {error} ({hint})") from error
    _unpack(release, archive, root / release.folder)
    archive.unlink()
    return root / release.folder


def _unpack(release: Release, archive: Path, folder: Path) -> None:
    """The files we read, by name, and nothing else; the test file, which says that all are there, comes last."""
    with tarfile.open(archive) as tar:
        for file in (*release.train, release.names, release.test):
            member = tar.extractfile(f"{release.folder}/{file}")
            assert member is not None, "the checksum was right"
            disk.write(folder / file, member.read())


def _records(release: Release, path: Path) -> Resident:
    """One file of records. Raises: InputError for a missing, empty or cut file, and for labels out of range."""
    record = release.labels + PIXELS
    with disk.saying(str(path)):
        raw = np.fromfile(a_file(path, MOST * record), np.uint8)
    if len(raw) == 0 or len(raw) % record:
        why = f"truncated, or not of {release.name}'s binary release"
        raise InputError(f"{path}: found {len(raw):,} bytes; must be a multiple of {record}: {why}")
    rows = torch.from_numpy(raw).view(-1, record)
    labels = rows[:, release.labels - 1].long()
    if labels.max() >= release.classes:
        raise InputError(f"{path}: found label {int(labels.max())}; must be 0 to {release.classes - 1}")
    images = rows[:, release.labels :].view(-1, 3, SIDE, SIDE).permute(0, 2, 3, 1).contiguous()
    return Resident(images, labels)


def _class_names(release: Release, path: Path) -> list[str]:
    try:
        names = a_file(path, 2**20).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or 'is not text'}") from error
    if len(names) != release.classes or len(set(names)) != len(names):
        raise InputError(f"{path}: found {len(set(names))} class names; must be {release.classes}")
    return names

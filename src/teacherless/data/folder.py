"""A folder of images: one sub-folder per class, or `train/`, `val/` and `test/` of that shape."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from teacherless.data import images
from teacherless.data.contents import Contents, Options
from teacherless.data.meter import Meter
from teacherless.data.splits import Files, Resident, stratified
from teacherless.errors import InputError

IMG_SIZE = 64  # pixels: photos stay recognisable, and a CPU trains on it
IN_MEMORY = 2**30  # bytes of decoded images, all splits together
TEST_FRACTION = 0.2  # of a folder without splits
VAL_NAMES = ("val", "valid", "validation")
SHAPE = "one sub-folder of images per class, or train/, val/ and test/ of that shape"

log = logging.getLogger("teacherless.data")


def read_folder(root: Path, options: Options, size: int = IMG_SIZE) -> Contents:
    """Read a folder of images; each is resized to `size x size`, where `options` do not say another.

    If all decoded images fit in 1 GiB they are decoded now, once. Otherwise (or with `stream` or `crop`) only their
    headers are looked at now, and workers decode them in every epoch. Files that turn out not to be images are left out
    and named in one warning; one that fails only when it is decoded in an epoch is named then.

    A folder without `train/` gives 20 % of each class for test, by a hash of the file names.

    Raises: InputError for a folder of another shape, with fewer than two classes, with an empty class, or with splits
    whose classes differ.
    """
    size, channels = options.img_size or size, 1 if options.gray else 3
    parts = {split: _list(root, where) for split, where in _layout(root).items()}
    classes = _classes(root, parts)
    bytes_needed = sum(map(len, parts.values())) * size * size * channels
    read = _headers if options.stream or options.crop or bytes_needed > IN_MEMORY else _decode
    fit = options.fit or ("crop-0.875" if options.crop else "squash")
    splits: dict[str, Resident | Files] = {}
    bad: list[str] = []
    for split, part in parts.items():
        files = replace(part.files(classes, size, channels), fit=fit)
        splits[split], failed = read(files, root.name)
        bad += [f"{files.name(row)}: {why}" for row, why in failed]
        _check_left(root, classes, files, failed)
        if split == "train":
            keys = torch.tensor([zlib.crc32(name) for name in np.delete(files.names, [row for row, _ in failed])])
    if not options.quiet:
        _report(root, bad, sum(part.others for part in parts.values()))
    train, test = splits["train"], splits.get("test")
    if parts["train"].where == root:
        rest, held = stratified(train.labels, TEST_FRACTION, keys=keys, spare=True)
        train, test, keys = train.take(rest), train.take(held) if len(held) else None, keys[rest]
    what = (root.resolve().name, classes, size, channels)
    return Contents(*what, train, splits.get("val"), test, keys, fit=fit, unreadable=tuple(bad))


def survey(name: str, data_dir: Path | None = None) -> list[tuple[int, int]]:
    """Width and height of the photos of a folder that can be opened, by area; of other sets nothing."""
    root, sizes = (data_dir or Path()) / Path(name).expanduser(), []
    if not root.is_dir():
        return []
    for part in (_list(root, where) for where in _layout(root).values()):
        for file, _ in chain(*part.by_class.values()):
            with contextlib.suppress(images.Unreadable), images.quietly():
                sizes.append(images.size_of(root / os.fsdecode(file)))
    return sorted(sizes, key=math.prod)


def decoded(files: Files, stream: bool = False) -> Files | Resident:
    """In memory where 1 GiB holds them all, unless they are to be streamed.

    Raises: InputError for an unreadable one.
    """
    count = len(files) * files.size[0] * files.size[1] * files.channels
    split, bad = (_headers if stream or count > IN_MEMORY else _decode)(files, files.root.name)
    for row, why in bad:
        raise InputError(f"{files.root}: cannot read {files.name(row)}: {why}")
    return split


class _Part(NamedTuple):
    """The files of one split, before anybody opened them."""

    root: Path
    where: Path
    by_class: dict[str, list[tuple[bytes, int]]]  # (name below root, bytes)
    others: int  # files without an image's suffix

    def __len__(self) -> int:
        return sum(map(len, self.by_class.values()))

    def files(self, classes: list[str], size: int, channels: int) -> Files:
        """The same as a split."""
        each = [self.by_class[name] for name in classes]
        names, sizes = zip(*chain(*each), strict=True)
        labels = torch.arange(len(classes)).repeat_interleave(torch.tensor(list(map(len, each))))
        return Files(self.root, np.array(names), labels, np.array(sizes), (size, size), channels)


def _layout(root: Path) -> dict[str, Path]:
    """Where the splits are. A class may be called "train": a split has folders in it, a class has images."""
    if not root.is_dir():
        raise InputError(f"{root}: {'is a file' if root.exists() else 'no such folder'}; must be a folder with {SHAPE}")
    if not (root / "train").is_dir() or not _folders(root / "train"):
        names = {path.name for path in _folders(root)}
        if names and names <= {*VAL_NAMES, "test"}:
            raise InputError(f"{root}: found {', '.join(sorted(names))} but no train/; must have {SHAPE}")
        return {"train": root}
    val = [root / name for name in VAL_NAMES if (root / name).is_dir()]
    if len(val) > 1:
        raise InputError(f"{root}: found {val[0].name}/ and {val[1].name}/; only one of them can be the validation set")
    splits = {"train": root / "train", **({"val": val[0]} if val else {}), "test": root / "test"}
    return {split: where for split, where in splits.items() if where.is_dir()}


def _folders(where: Path) -> list[Path]:
    """Sub-folders by name, without what systems leave behind."""
    names = sorted(entry.name for entry in os.scandir(where) if entry.is_dir())
    folders = [where / name for name in names if not name.startswith(".") and name != "__MACOSX"]
    for folder in folders:
        if folder.is_symlink() and where.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{where}: {folder.name!r} is a link to a folder that it is in")
    return folders


def _list(root: Path, where: Path) -> _Part:
    """All files with an image's suffix, by class, at any depth. Raises: OSError."""
    by_class: dict[str, list[tuple[bytes, int]]] = {}
    others = 0
    for folder in _folders(where):
        files: list[tuple[bytes, int]] = []
        for path, _, names in os.walk(folder, onerror=_raise):
            below = Path(path).relative_to(root).as_posix()
            for name in names:
                if os.path.splitext(name)[1].lower() in images.SUFFIXES and not name.startswith("."):
                    files.append((os.fsencode(f"{below}/{name}"), _bytes(f"{path}/{name}")))
                elif not name.startswith("."):
                    others += 1
        by_class[folder.name] = sorted(files)
    return _Part(root, where, by_class, others)


def _bytes(path: str) -> int:
    """The size of a file; 0 for a link to nowhere, which is found out when it is opened."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _raise(error: OSError) -> None:
    raise error


def _classes(root: Path, parts: dict[str, _Part]) -> list[str]:
    """The classes, which all splits share."""
    classes = list(parts["train"].by_class)
    for part in parts.values():
        where = "" if part.where == root else f"{part.where.name}/"
        if not any(part.by_class.values()):
            raise InputError(f"{root}: found no images in {where or 'its sub-folders'}; must have {SHAPE}")
        for name, files in part.by_class.items():
            if not files:
                raise InputError(f"{root}: class {name!r} has no images in {where}{name}/")
        if missing := sorted(set(classes) - set(part.by_class)):
            raise InputError(f"{root}: {where} lacks class {missing[0]!r}, which train/ has; classes must be the same")
        if more := sorted(set(part.by_class) - set(classes)):
            raise InputError(f"{root}: {where} has class {more[0]!r}, which train/ lacks; classes must be the same")
    if len(classes) < 2:
        raise InputError(f"{root}: found one class ({classes[0]!r}); a classifier needs at least two")
    return classes


Bad = list[tuple[int, str]]  # rows that cannot be read, and why


def _check_left(root: Path, classes: list[str], files: Files, failed: Bad) -> None:
    """Refuse a class of which nothing can be read."""
    lost = files.labels[[row for row, _ in failed]].bincount(minlength=len(classes))
    for row, why in failed:
        kind = int(files.labels[row])
        if lost[kind] == (files.labels == kind).sum():
            raise InputError(f"{root}: no image of class {classes[kind]!r} can be read ({files.name(row)}: {why})")


def _decode(files: Files, what: str) -> tuple[Resident, Bad]:
    """Decode all, into memory."""
    pixels = torch.empty((len(files), *files.size, files.channels), dtype=torch.uint8)
    out = pixels.numpy()

    def put(row: int) -> None:
        out[row] = files.decode(row)

    left, bad = _try_all(put, len(files), f"reading {what}")
    split = Resident(pixels, files.labels)
    return split.take(left) if bad else split, bad


def _headers(files: Files, what: str) -> tuple[Files, Bad]:
    """Look at all headers."""
    look = f"looking through {what}"
    left, bad = _try_all(lambda row: images.size_of(files.root / files.name(row)), len(files), look)
    return files.take(left), bad


def _try_all(do: Callable[[int], object], count: int, what: str) -> tuple[Tensor, Bad]:
    """`do(row)` for all rows, on all cores (decoding does not hold Python's lock): the good rows, and the bad."""

    def attempt(row: int) -> str | None:
        try:
            do(row)
        except images.Unreadable as error:
            return str(error)
        return None

    bad = []
    with images.quietly(), ThreadPoolExecutor(os.cpu_count()) as pool, Meter(what, count, "images") as meter:
        for row, why in enumerate(pool.map(attempt, range(count))):
            meter.advance()
            if why is not None:
                bad.append((row, why))
    return torch.from_numpy(np.delete(np.arange(count), [row for row, _ in bad])), bad


def _report(root: Path, bad: list[str], others: int) -> None:
    """One warning for all files that are not what their names say."""
    if bad:
        more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
        ignored = f" ({_count(others, 'other file')} ignored)" if others else ""
        log.warning("%s: skipped %s: %s%s%s", root, _count(len(bad), "unreadable file"), bad[0], more, ignored)


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"

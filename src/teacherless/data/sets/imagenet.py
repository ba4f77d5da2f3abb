"""ImageNet-style sets: a folder of whole photos per class. They are decoded in every epoch, each through a crop.

Training crops are random in size, shape and place (Szegedy et al. 2015, section 6); evaluation reads the centre. The
labels of the official test sets are not public: `val/` is what papers report, so it is the test split here, read once
at the end; validation is carved from train, and with `--val-fraction 0` there is none, as in the papers.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from teacherless.data.contents import Contents, Options, absent, as_it_is, same_classes
from teacherless.data.fetch import cache_dir
from teacherless.data.folder import decoded, read_folder
from teacherless.data.splits import Files
from teacherless.errors import InputError

TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


def imagenet(options: Options) -> Contents:
    """imagenet: photos of 1,000 classes (or of any other folders), streamed; to download by hand, 155 GB.

    `--data-dir` is the folder with train/ and val/, each with one folder per class. Training: a random-resized crop to
    224x224 (`--img-size`) and a flip; evaluation: the centre, 7/8 of the shorter side. Give workers: `-j`.
    """
    root = options.data_dir or cache_dir() / "imagenet"
    if not (root / "train").is_dir() or not (root / "val").is_dir():
        lacks = "val/" if (root / "train").is_dir() else "train/"
        images = "the ILSVRC 2012 training and validation images from image-net.org (an account is needed)"
        raise absent("imagenet", lacks, root, f"{images}, one folder per class in train/ and in val/", "155 GB")
    folder = read_folder(root, options._replace(stream=True, fit=options.fit or "crop-0.875"), 224)
    return folder._replace(name="imagenet", val=None, test=folder.val)


def tiny_imagenet(options: Options) -> Contents:
    """tiny-imagenet: 100,000 + 10,000 photos, 64x64 RGB, 200 classes (to download by hand, 248 MB).

    `--data-dir` is the unpacked folder: train/n…/images/, val/images/ and val/val_annotations.txt. val/ is the test
    split, as the published numbers are of it. Training crops from a mirrored border of eight pixels and flips; with
    `--aug rrc-flip` it reads a random part, evaluation the whole photo. `--img-size 32` is what CS-KD trains.
    """
    as_it_is("tiny-imagenet", options._replace(stream=False, crop=False, img_size=None), 64, 3)
    size = options.img_size or 64
    where = options.data_dir or cache_dir() / "tiny-imagenet"
    root = where / "tiny-imagenet-200" if (where / "tiny-imagenet-200").is_dir() else where
    if not (root / "wnids.txt").is_file():
        raise absent("tiny-imagenet", "wnids.txt", where, TINY_URL, "248 MB")
    classes = (root / "wnids.txt").read_text(encoding="utf-8").split()
    wanted = set(classes)
    photos = [(name, path) for name in classes for path in _images(root, f"train/{name}/images")]
    train = _files(root, photos, classes, size)
    notes = root / "val" / "val_annotations.txt"
    try:
        lines = [line.split("\t") for line in notes.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{notes}: {getattr(error, 'strerror', None) or 'is not text'}") from error
    for number, line in enumerate(lines, 1):
        if len(line) < 2 or line[1] not in wanted:
            raise InputError(f"{notes}: line {number}: found class {line[:2][-1]!r}; must be one of wnids.txt")
    listed = {line[0]: line[1] for line in lines}
    there = _images(root, "val/images")
    if missing := sorted(set(listed) - {Path(path).name for path in there}):
        raise InputError(f"{notes}: found {missing[0]!r}, which is not in val/images/")
    if unknown := [path for path in there if Path(path).name not in listed]:
        raise InputError(f"{notes}: lacks {unknown[0]}; every image of val/ must have its class")
    test = _files(root, [(listed[Path(path).name], path) for path in there], classes, size)
    same_classes("tiny-imagenet", classes, {"train": train, "test": test})
    splits = [decoded(train, options.stream or options.crop), decoded(test, options.stream)]
    return Contents("tiny-imagenet", classes, size, 3, splits[0], None, splits[1])


def _images(root: Path, below: str) -> list[str]:
    return sorted(f"{below}/{entry.name}" for entry in os.scandir(root / below) if entry.name.endswith(".JPEG"))


def _files(root: Path, photos: list[tuple[str, str]], classes: list[str], size: int) -> Files:
    """Photos as a split, each a class and a path below `root`."""
    number = {name: i for i, name in enumerate(classes)}
    names = np.array([os.fsencode(path) for _, path in photos])
    sizes = np.array([os.stat(root / path).st_size for _, path in photos])
    return Files(root, names, torch.tensor([number[name] for name, _ in photos]), sizes, (size, size), 3)

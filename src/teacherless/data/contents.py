"""What a source hands over, before splits are carved; and what a user may say about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from teacherless.data.augment.distort import Augment
from teacherless.data.splits import Split, stratified
from teacherless.errors import InputError


class Options(NamedTuple):
    """What a user may say about where and how images are read."""

    data_dir: Path | None = None
    img_size: int | None = None
    gray: bool | None = None
    stream: bool = False
    crop: bool = False  # random-resized crops of whole images: they are decoded in every epoch
    fit: str | None = None  # how a folder's photos become squares, one of `images.FITS`
    quiet: bool = False  # no warning of files that cannot be read


class Persons(NamedTuple):
    """Images of persons by cameras."""

    split: Split  # its labels are the persons
    cameras: Tensor  # [N]


class Gallery(NamedTuple):
    """What re-identification is measured on; see `teacherless.evaluation.reid`."""

    query: Persons
    gallery: Persons
    multi: Persons | None  # more images of the queries' persons

    def limited(self, limit: int) -> Gallery:
        """`limit / 8` of the persons that are asked for, and `limit` images of nobody at most."""
        persons = torch.unique(self.query.split.labels)
        last = int(persons[: max(1, limit // 8)][-1])

        def some(part: Persons) -> Persons:
            ids = part.split.labels
            asked = (ids > 0) & (ids <= last)
            nobody = (ids <= 0) & ((ids <= 0).cumsum(0) <= limit)
            rows = (asked | nobody).nonzero().flatten()
            return Persons(part.split.take(rows), part.cameras[rows])

        return Gallery(some(self.query), some(self.gallery), self.multi and some(self.multi))


class Contents(NamedTuple):
    """A data set as it comes, with the splits it has of its own."""

    name: str
    classes: list[str]
    size: int  # images are size x size
    channels: int
    train: Split
    val: Split | None
    test: Split | None
    keys: Tensor | None = None  # [N_train], what rows are known by; their number by default
    reid: Gallery | None = None
    fit: str = "squash"
    unreadable: tuple[str, ...] = ()  # "file: why"


# How training images are distorted: a data set's own, whoever reads it (`cifar10`, `torch/CIFAR10`, `hfds/…/cifar10`).
AUGMENTS: dict[str, Augment] = {
    "digits": Augment(pad=1),
    "fashionmnist": Augment(pad=2, flip=True),
    "cifar10": Augment(pad=4, flip=True),
    "cifar100": Augment(pad=4, flip=True),
    "svhn": Augment(),
    "svhnextra": Augment(),
    "imagenet": Augment(crop=True, flip=True),
    "market1501": Augment(flip=True),
}


def default_augment(name: str, size: int, channels: int) -> Augment:
    """The data set's own distortions; of one nobody knows the papers' crop and flip, in the proportion they have at 32
    pixels, the border mirrored, as photos go on; gray images may be digits or letters and are not flipped."""
    unknown = Augment(pad=size // 8, mode="reflect", flip=channels == 3)
    return AUGMENTS.get("".join(filter(str.isalnum, name.lower())), unknown)


def limited(split: Split, limit: int) -> Split:
    """At most `limit` of the samples, class by class."""
    return split if len(split) <= limit else split.take(stratified(split.labels, 0, count=limit)[1])


def as_it_is(name: str, options: Options, size: int, channels: int = 1) -> None:
    """Refuse what only a folder of images can do."""
    if options.img_size not in (None, size):
        raise InputError(f"--img-size: found {options.img_size}; {name} is {size}x{size}, only folders are resized")
    if options.gray is (channels > 1):
        has = "three channels" if channels > 1 else "one channel"
        raise InputError(f"gray: found {options.gray}; {name} has {has}")
    if options.stream:
        raise InputError(f"stream: found True; {name} is read into memory, only folders are streamed")
    if options.crop:
        raise InputError(f"--aug: found rrc; {name} is read into memory, only files can be cropped at full size")


def same_classes(name: str, classes: Sequence[str], splits: Mapping[str, Split | None]) -> None:
    """Raises: InputError for a split that has no image of some class, with both counts."""
    for key, split in splits.items():
        missing = [] if split is None else without_images(split, len(classes))
        if missing:
            has = f"{key} has images of {len(classes) - len(missing)} classes"
            raise InputError(f"{name}: {has} and must have {len(classes)}: none of {classes[missing[0]]!r}")


def without_images(split: Split, classes: int) -> list[int]:
    """The classes that no image of a split is of."""
    return (split.labels.bincount(minlength=classes) == 0).nonzero().flatten().tolist()


def absent(name: str, what: str, where: Path, get: str, size: str) -> InputError:
    """The error for data that is not there: what to get, how big it is, and where we looked."""
    hint = f"download {get} ({size}), unpack it, and give its folder: --data-dir"
    return InputError(f"{name}: found no {what} in {str(where)!r}; {hint}")

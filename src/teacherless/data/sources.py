"""Where samples come from: a source has classes, a size, normalisation, and a train, validation and test split."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from teacherless.data.augment.distort import Augment, parse_augment
from teacherless.data.contents import (
    Contents,
    Gallery,
    Options,
    as_it_is,
    default_augment,
    limited,
    same_classes,
    without_images,
)
from teacherless.data.fetch import cache_dir, download
from teacherless.data.folder import read_folder
from teacherless.data.sets.cifar import cifar10, cifar100
from teacherless.data.sets.hub import PREFIXES
from teacherless.data.sets.idx import read_idx
from teacherless.data.sets.imagenet import imagenet, tiny_imagenet
from teacherless.data.sets.market1501 import market1501
from teacherless.data.sets.svhn import svhn, svhn_extra
from teacherless.data.sets.synthetic import SHAPES
from teacherless.data.sets.synthetic import synthetic as noise
from teacherless.data.splits import Files as Files
from teacherless.data.splits import Resident as Resident
from teacherless.data.splits import Split as Split
from teacherless.data.splits import moments, stratified
from teacherless.errors import InputError, unknown

LARGEST = 1024  # pixels, of a side: as much as a student's config may say


@dataclass(frozen=True, eq=False)
class Source:
    """A data set, split."""

    name: str
    classes: list[str]
    channels: int
    size: tuple[int, int]  # H, W
    mean: tuple[float, ...]  # of train, per channel, pixels in [0, 1]
    std: tuple[float, ...]
    augment: Augment  # of training images
    train: Split
    val: Split | None
    test: Split | None
    fingerprint: str  # sha256 of the contents, before validation was carved
    reid: Gallery | None = None  # what a search for persons is measured on, instead of a test split
    fit: str = "squash"  # how photos became squares, one of `images.FITS`
    unreadable: tuple[str, ...] = ()  # files that were left out: "file: why"

    def __str__(self) -> str:
        """`460 images, 8 classes: 331 train, 37 val, 92 test, 64x64`."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        sizes = {name: len(split) for name, split in parts.items() if split is not None}
        shown = ", ".join(f"{size:,} {name}" for name, size in sizes.items())
        height, width = self.size
        return f"{sum(sizes.values()):,} images, {len(self.classes)} classes: {shown}, {width}x{height}"


def load(
    name: str,
    *,
    data_dir: Path | None = None,
    img_size: int | None = None,
    val_fraction: float = 0.1,
    train_samples: int | None = None,
    gray: bool | None = None,
    stream: bool = False,
    aug: str | None = None,
    limit: int | None = None,
    fit: str | None = None,
    quiet: bool = False,
    synthetic: bool = False,
) -> Source:
    """A source by name, a folder of images by its path, or `hfds/NAME`, `torch/NAME` and `npz:FILE`.

    Splits a source has are used as they are; validation is carved from train where there is none, by a seed that is
    the data's own, so that all runs see the same splits.

    Args:
        name: one of `SOURCES`, or the path of a folder (see `teacherless.data.folder`).
        data_dir: where the source's files are; a folder's path is relative to it.
        img_size: images of a folder are resized to `img_size x img_size` (default 64), as `fit` says.
        val_fraction: of train, for validation, class by class; with 0 there is no validation.
        train_samples: so many of the training images, class by class.
        gray: one channel instead of three, for folders.
        stream: decode a folder's images in every epoch, even if they fit in memory.
        aug: how training images are distorted, see `parse_augment`; the source's own way by default.
        limit: so many images of every split at most, class by class, but two of each class.
        fit: how a folder's photos become squares: "squash" (default) keeps all of a photo but not its aspect ratio,
            "crop" is its middle, "crop-0.875" the middle of the middle, as on ImageNet.
        quiet: no warning of files that are left out; `Source.unreadable` has them.
        synthetic: of a data set that would be read from files, noise of its shape; a random part of a photo (rrc) is
            then the whole.

    Raises: InputError for an unknown name, values out of range, files that are missing or damaged, and splits that
    leave nothing to train on.
    """
    if not 0 <= val_fraction < 1:
        raise InputError(f"--val-fraction: found {val_fraction}; must be at least 0 and less than 1")
    if train_samples is not None and train_samples < 1:
        raise InputError(f"--train-samples: found {train_samples}; must be at least 1")
    if img_size is not None and not 1 <= img_size <= LARGEST:
        raise InputError(f"--img-size: found {img_size}; must be 1 to {LARGEST}")
    crop = aug is not None and parse_augment(aug).crop
    if "\0" in name:
        raise InputError(f"--data: found {name!r}; a name has no NUL in it")
    try:
        options = Options(data_dir, img_size, gray, stream, crop, fit, quiet)
        made_up = synthetic and name in SHAPES
        data = noise(name, options) if made_up else _read(name, options)
    except OSError as error:
        raise InputError(f"--data {name}: cannot read {error.filename}: {error.strerror}") from error
    augment = default_augment(data.name, data.size, data.channels)
    augment = augment if aug is None else parse_augment(aug, augment)
    if made_up:
        augment = augment._replace(crop=False)
    train, val, test, reid = data.train, data.val, data.test, data.reid
    fingerprint = _fingerprint([train, val, test, *(part.split for part in reid or () if part)])
    keys = torch.arange(len(train)) if data.keys is None else data.keys
    if val is None and val_fraction > 0:
        rest, carved = stratified(train.labels, val_fraction, keys=keys, spare=True)
        if len(carved) == 0:
            none = f"of {len(train)} images that is none (0 is allowed)"
            raise InputError(f"--val-fraction: found {val_fraction}; {none}")
        train, val, keys = train.take(rest), train.take(carved), keys[rest]
    if train_samples is not None:
        train = _some(data, train, train_samples, keys)
    if limit is not None:
        most = max(limit, 2 * len(data.classes))
        train, val, test = limited(train, most), val and limited(val, most), test and limited(test, most)
        reid = reid and reid.limited(limit)
    mean, std = moments(train)
    what = (data.name, data.classes, data.channels, (data.size, data.size), mean, std, augment)
    return Source(*what, train, val, test, fingerprint, reid, data.fit, data.unreadable)


def _fingerprint(splits: Iterable[Split | None]) -> str:
    digest = hashlib.sha256()
    for split in splits:
        for part in split.contents() if split else ():
            digest.update(part)
    return digest.hexdigest()


def _some(data: Contents, train: Split, count: int, keys: Tensor) -> Split:
    """So many of the training images, of every class. Raises: InputError where there are not so many."""
    if count > len(train):
        raise InputError(f"--train-samples: found {count}; {data.name} has {len(train)} to train on")
    train = train.take(stratified(train.labels, 0, count=count, keys=keys)[1])
    if none := without_images(train, len(data.classes)):
        left = f"that leaves no image of class {data.classes[none[0]]!r}"
        raise InputError(f"--train-samples: found {count}; {left}; {data.name} has {len(data.classes)} classes")
    return train


def _read(name: str, options: Options) -> Contents:
    """The source of that name, else the folder of that path."""
    if name in SOURCES:
        return SOURCES[name](options)
    for prefix, read in PREFIXES.items():
        if name.startswith(prefix):
            return read(name.removeprefix(prefix), options)
    path = (options.data_dir or Path()) / Path(name).expanduser()
    if os.path.exists(path) or any(separator in name for separator in {os.sep, "/"}) or name.startswith((".", "~")):
        return read_folder(path, options)
    prefixes = ", ".join(f"{prefix}NAME" for prefix in PREFIXES)
    raise InputError(f"{unknown('data', name, SOURCES)}; or give the path of a folder of images, or {prefixes}")


def digits(options: Options) -> Contents:
    """digits: 1,797 handwritten digits, 8x8 gray, 10 classes (scikit-learn's; nothing to download).

    One fifth is the test split, the same for everybody. Training crops from a border of one pixel; digits are not
    flipped, because a flipped 2 is no digit.
    """
    from sklearn.datasets import load_digits

    as_it_is("digits", options, 8)
    bunch = load_digits()
    images = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8))[..., None]  # levels 0 … 16
    whole = Resident(images, torch.from_numpy(bunch.target).long())
    rest, test = stratified(whole.labels, 0.2)
    classes = [str(i) for i in range(10)]
    return Contents("digits", classes, 8, 1, whole.take(rest), None, whole.take(test))


FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
FASHION_DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it
FASHION_URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion"
# sha256 of the authors' files. Debian packs the same content anew (without the name and time in gzip's header), so
# files that are found on disk are held to the format, not to these bytes; the fingerprint in run.json tells them apart.
FASHION_SHA256 = {
    "train-images-idx3-ubyte": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}


def fashion_mnist(options: Options) -> Contents:
    """fashion-mnist: 60,000 + 10,000 photos of clothes, 28x28 gray, 10 classes (Zalando; 30 MB to download once).

    Read from `--data-dir` (IDX files, gzipped or not), else from where Debian's package puts it, else downloaded to the
    cache folder. Training crops from a border of two pixels (CIFAR's 4 of 32 would push sleeves and soles, which reach
    the edge of these tightly cropped photos, out of sight) and flips: a mirrored shirt is a shirt.
    """
    as_it_is("fashion-mnist", options, 28)
    where = options.data_dir or (FASHION_DEBIAN if FASHION_DEBIAN.is_dir() else _fashion_download())
    train, test = (_idx_pair(where, part) for part in ("train", "t10k"))
    return Contents("fashion-mnist", list(FASHION), 28, 1, train, None, test)


def _fashion_download() -> Path:
    where = cache_dir() / "fashion-mnist"
    for name, sha256 in FASHION_SHA256.items():
        try:
            download(f"{FASHION_URL}/{name}.gz", where / f"{name}.gz", sha256)
        except InputError as error:
            raise InputError(f"fashion-mnist: {error} (or put its four files in a folder: --data-dir)") from error
    return where


def _idx_pair(where: Path, part: str) -> Resident:
    """Images and labels of one part. Raises: InputError for files that are missing or do not belong together."""
    paths = []
    for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
        there = [path for path in (where / name, where / f"{name}.gz") if path.exists()]
        if not there:
            raise InputError(f"fashion-mnist: found no {name} (or .gz) in {where}")
        paths.append(there[0])
    images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1).long()
    if images.shape[1:] != (28, 28) or len(images) == 0:
        raise InputError(f"{paths[0]}: found images {list(images.shape)}; must be 28x28")
    if len(labels) != len(images):
        raise InputError(f"{paths[1]}: found {len(labels)} labels; {paths[0].name} has {len(images)} images")
    if labels.max() > 9:
        raise InputError(f"{paths[1]}: found label {int(labels.max())}; must be 0 to 9")
    split = Resident(images[..., None], labels)
    same_classes("fashion-mnist", FASHION, {part: split})
    return split


SOURCES: dict[str, Callable[[Options], Contents]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "svhn": svhn,
    "svhn-extra": svhn_extra,
    "tiny-imagenet": tiny_imagenet,
    "imagenet": imagenet,
    "market1501": market1501,
}

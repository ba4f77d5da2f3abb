"""Other people's collections: `hfds/NAME` (Hugging Face datasets), `torch/NAME` (torchvision), `npz:FILE`."""

from __future__ import annotations

import inspect
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from teacherless.data.contents import Contents, Options, as_it_is, same_classes
from teacherless.data.fetch import cache_dir
from teacherless.data.images import FITS, colours
from teacherless.data.meter import Meter
from teacherless.data.splits import Resident
from teacherless.errors import InputError, extra, first_line, unknown
from teacherless.files.bounds import a_file, check_unpacked

LIMIT = 2**32  # bytes of images that are taken into memory
VAL = ("validation", "valid", "val", "dev")


def npz(path: Path, options: Options) -> Contents:
    """Arrays of a NumPy file: x_train, y_train, x_test, y_test and maybe x_val, y_val.

    Images are bytes, `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`, square, with 1 or 3 channels; labels are class ids,
    all from 0 on. Objects in the file, which would be unpickled, are refused.

    Raises: InputError naming what does not fit.
    """
    a_file(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                check_unpacked(path, sum(member.file_size for member in packed.infolist()))
        with np.load(path, allow_pickle=False) as file:
            if not hasattr(file, "files"):
                raise InputError(f"{path}: holds one array; must be .npz with x_train, y_train, x_test, y_test")
            arrays = {key: file[key] for key in file.files}
    except InputError:
        raise
    except Exception as error:  # a damaged file can raise anything: BadZipFile, ValueError, zlib.error, …
        raise InputError(f"{path}: is not a readable .npz file of plain arrays ({error})") from error
    legal = [f"{axis}_{split}" for split in ("train", "val", "test") for axis in "xy"]
    for key in arrays:
        if key not in legal:
            raise unknown(f"array in {path.name}:", key, legal)
    for key in ("x_train", "y_train"):
        if key not in arrays:
            raise InputError(f"{path}: lacks the array {key!r}")
    splits = {}
    for split in ("train", "val", "test"):
        x, y = arrays.get(f"x_{split}"), arrays.get(f"y_{split}")
        if (x is None) != (y is None):
            raise InputError(f"{path}: lacks the array {('x_' if x is None else 'y_') + split!r}")
        if x is not None and y is not None:
            splits[split] = _split(f"{path}: x_{split}", x, f"{path}: y_{split}", y)
    classes = [str(i) for i in range(int(splits["train"].labels.max()) + 1)]
    return _contents(path.stem, classes, splits, options, str(path))


def torchvision(name: str, options: Options) -> Contents:
    """A data set of torchvision, by its class's name in any case: `torch/cifar10`, `torch/svhn`.

    Raises: InputError if torchvision is missing or broken, or has no such set.
    """
    datasets = extra("torchvision", f"torch/{name}").datasets
    kinds = {key.lower(): value for key, value in vars(datasets).items() if inspect.isclass(value)}
    if name.lower() not in kinds:
        raise unknown("torchvision data set", name, kinds)
    kind: Any = kinds[name.lower()]
    takes = inspect.signature(kind).parameters
    root = str(options.data_dir or cache_dir() / "torchvision")

    def part(test: bool) -> Any:
        which = {"train": not test} if "train" in takes else {"split": "test" if test else "train"}
        if not set(which) <= set(takes):
            raise InputError(f"torch/{name}: it has no train and test split, which a classifier needs")
        try:
            return kind(root, **which, **({"download": True} if "download" in takes else {}))
        except Exception as error:
            raise InputError(f"torch/{name}: {first_line(error)} (looked in {root})") from error

    parts = {"train": part(test=False), "test": part(test=True)}
    named = getattr(parts["train"], "classes", None)
    splits = {split: _gather(f"torch/{name}", each, len(each), options) for split, each in parts.items()}
    count = int(splits["train"].labels.max()) + 1
    classes = [str(each) for each in named] if named and len(named) == count else [str(i) for i in range(count)]
    return _contents(name, classes, splits, options, f"torch/{name}")


def hugging_face(name: str, options: Options) -> Contents:
    """A data set of the Hugging Face hub with one image column and one class column: `hfds/NAME`.

    Raises: InputError if the package `datasets` is missing or broken, or the set is not of images and classes.
    """
    datasets = extra("datasets", f"hfds/{name}")
    try:
        loaded = datasets.load_dataset(name, cache_dir=str(options.data_dir) if options.data_dir else None)
    except Exception as error:
        raise InputError(f"hfds/{name}: {first_line(error)}") from error
    if not isinstance(loaded, Mapping) or "train" not in loaded:
        has = ", ".join(loaded) if isinstance(loaded, Mapping) else "no splits"
        raise InputError(f"hfds/{name}: found {has}; must have train")
    kinds = {key: type(kind).__name__ for key, kind in loaded["train"].features.items()}
    image, label = _only(name, kinds, "Image"), _only(name, kinds, "ClassLabel")
    classes = list(loaded["train"].features[label].names)
    splits = {}
    for split, keys in (("train", ("train",)), ("val", VAL), ("test", ("test",))):
        for key in [key for key in keys if key in loaded][:1]:
            pairs = ((row[image], row[label]) for row in loaded[key])
            splits[split] = _gather(f"hfds/{name}", pairs, len(loaded[key]), options)
    return _contents(name.rpartition("/")[2], classes, splits, options, f"hfds/{name}")


PREFIXES: dict[str, Callable[[str, Options], Contents]] = {
    "hfds/": hugging_face,
    "torch/": torchvision,
    "npz:": lambda text, options: npz((options.data_dir or Path()) / Path(text).expanduser(), options),
}


def _only(name: str, kinds: Mapping[str, str], kind: str) -> str:
    """The one column of a kind."""
    columns = [key for key, value in kinds.items() if value == kind]
    if len(columns) != 1:
        has = ", ".join(f"{key}: {value}" for key, value in kinds.items())
        raise InputError(f"hfds/{name}: found {len(columns)} columns of {kind}; must be one (it has {has})")
    return columns[0]


def _gather(what: str, pairs: Iterable[Sequence[Any]], count: int, options: Options) -> Resident:
    """All images into memory: gray where the first is, else RGB, resized to `--img-size` or the first one's size."""
    mode = {None: "", True: "L", False: "RGB"}[options.gray]
    images: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
    labels: list[int] = []
    side, cut = options.img_size, FITS[options.fit or "squash"]
    with Meter(f"reading {what}", count, "images") as meter:
        for row, (image, label) in enumerate(pairs):
            if not hasattr(image, "convert"):
                raise InputError(f"{what}: row {row}: found a {type(image).__name__}; must be an image")
            mode = mode or ("L" if image.mode in ("1", "L", "I;16") else "RGB")
            side = side or max(image.size)
            if count * side * side * len(mode) > LIMIT:
                raise InputError(f"{what}: {count:,} images of {side}x{side} do not fit in memory; give --img-size")
            square = colours(image, mode).resize((side, side), box=cut and cut(*image.size))
            images.append(np.asarray(square).reshape(side, side, -1))
            try:
                labels.append(int(label))
            except (TypeError, ValueError, OverflowError):
                raise InputError(f"{what}: row {row}: found label {label!r:.20}; must be a class id") from None
            meter.advance()
    _check_classes(what, min(labels), max(labels), len(labels))
    return Resident(torch.from_numpy(np.stack(images)), torch.tensor(labels))


def _split(x_name: str, x: Any, y_name: str, y: Any) -> Resident:
    """Arrays as a split. Raises: InputError naming the array."""
    if x.dtype != np.uint8:
        raise InputError(f"{x_name}: found {x.dtype}; images must be bytes: uint8, 0 to 255")
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[3] not in (1, 3):
        x = x.transpose(0, 2, 3, 1)
    x = x[..., None] if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[1] != x.shape[2] or x.shape[3] not in (1, 3) or 0 in x.shape:
        legal = "square images [N, H, W], with 1 or 3 channels"
        raise InputError(f"{x_name}: found shape {list(x.shape)}; must be {legal}")
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer):
        legal = f"integers, one for each of {len(x)} images"
        raise InputError(f"{y_name}: found {y.dtype} {list(y.shape)}; must be {legal}")
    _check_classes(y_name, int(y.min()), int(y.max()), len(y))
    return Resident(torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(y.astype(np.int64)))


def _check_classes(what: str, low: int, high: int, count: int) -> None:
    """Raises: InputError for classes that cannot all have an image, before there is a name for each."""
    if low < 0 or high >= count:
        bad = low if low < 0 else high
        raise InputError(f"{what}: found class {bad} among {count:,} images; must be 0, 1, 2, … without a gap")


def _contents(name: str, classes: list[str], splits: Mapping[str, Resident], options: Options, what: str) -> Contents:
    shape = splits["train"].images.shape[1:]
    size, _, channels = shape
    for key, split in splits.items():
        if split.images.shape[1:] != shape:
            other, own = ("x".join(map(str, each)) for each in (split.images.shape[1:], shape))
            raise InputError(f"{what}: {key} has images of {other}, train of {own}; must be the same")
        if (last := int(split.labels.max())) >= len(classes):
            raise InputError(f"{what}: {key} has class {last}; train has {len(classes)} classes")
    if len(classes) < 2:
        raise InputError(f"{what}: found one class; a classifier needs at least two")
    same_classes(what, classes, splits)
    as_it_is(what, options._replace(gray=None, img_size=None), size, channels)
    return Contents(name, classes, size, channels, splits["train"], splits.get("val"), splits.get("test"))

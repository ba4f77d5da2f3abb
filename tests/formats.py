"""The papers' data sets, small, in their real formats."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from teacherless.data.sets.cifar import CIFAR10, CIFAR100

Array = np.ndarray[Any, np.dtype[Any]]


def noise(count: int, side: int = 32, seed: int = 0) -> Array:
    """Images [N, side, side, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def write_cifar(
    root: Path, classes: int, per_class: int, test_per_class: int = 2
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Records as on the authors' page; returns what was written, train and test."""
    release = CIFAR10 if classes == 10 else CIFAR100
    where = root / release.folder
    where.mkdir(parents=True)
    written = []
    for files, each in ((release.train, per_class), ((release.test,), test_per_class)):
        images, labels = noise(classes * each, seed=each), np.arange(classes * each) % classes
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        coarse = [labels // 5] if release.labels == 2 else []
        rows = np.concatenate([np.stack([*coarse, labels], 1), planes], 1).astype(np.uint8)
        for file, part in zip(files, np.array_split(rows, len(files)), strict=True):
            (where / file).write_bytes(part.tobytes())
        written.append((images, labels))
    (where / release.names).write_text("".join(f"thing_{i}\n" for i in range(classes)) + "\n")
    return written[0], written[1]


def write_svhn(root: Path, per_class: int) -> dict[str, tuple[Array, Array]]:
    """X [32, 32, 3, N] and y [N, 1] with classes 1 to 10; returns images [N, 32, 32, 3] and these classes."""
    root.mkdir(parents=True, exist_ok=True)
    parts = {}
    for seed, part in enumerate(("train", "extra", "test")):
        images, labels = noise(10 * per_class, seed=seed), np.arange(10 * per_class) % 10 + 1
        savemat(root / f"{part}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": labels[:, None].astype(np.uint8)},
                do_compression=True)  # fmt: skip
        parts[part] = images, labels
    return parts


def idx(array: Array) -> bytes:
    """An array of bytes as Fashion-MNIST's authors write it."""
    header = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_fashion(root: Path, per_class: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Fashion-MNIST's four files, train gzipped, test (a quarter as large) not; returns images and labels of both."""
    written = []
    for part, n in (("train", 10 * per_class), ("t10k", 10 * -(-per_class // 4))):
        images, labels = noise(n, 28, seed=n)[..., 0], np.arange(n) % 10
        pack, suffix = (gzip.compress, ".gz") if part == "train" else (bytes, "")
        (root / f"{part}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(images)))
        (root / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(labels)))
        written.append((images, labels))
    return written[0], written[1]


def write_market(root: Path, persons: int, images: int = 6) -> dict[str, list[str]]:
    """Persons 2, 7, 12, … to train on and 3, 8, … to find, from cameras 1 to 3; returns the names by folder.

    Each person has a colour, so that there is something to find.
    """
    names: dict[str, list[str]] = {}

    def write(folder: str, person: int, camera: int, frame: int) -> None:
        name = f"{person:04}_c{camera}s1_{frame:06}_00.jpg" if person >= 0 else f"-1_c{camera}s1_{frame:06}_00.jpg"
        (root / folder).mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(1000 * abs(person) + frame)
        colour = np.random.default_rng(abs(person)).integers(40, 215, 3)
        pixels = np.clip(colour + rng.normal(0, 20, (128, 64, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / folder / name)
        names.setdefault(folder, []).append(name)

    for i in range(persons):
        for frame in range(images):
            camera = frame % 3 + 1
            write("bounding_box_train", 5 * i + 2, camera, frame)
            write("bounding_box_test", 5 * i + 3, camera, frame)
            write("gt_bbox", 5 * i + 3, camera, frame)
        write("query", 5 * i + 3, 1, 100)
        write("query", 5 * i + 3, 2, 101)
    for frame in range(4):
        write("bounding_box_test", -1, frame % 3 + 1, frame)
        write("bounding_box_test", 0, frame % 3 + 1, frame)
    for folder in names:
        (root / folder / "Thumbs.db").write_bytes(b"\0")  # as in the release
    return names


def write_imagenet(root: Path, classes: int, per_class: int) -> None:
    """train/ and val/ of JPEGs of different sizes."""
    for split, each in (("train", per_class), ("val", 2)):
        for c in range(classes):
            where = root / split / f"n{c:08}"
            where.mkdir(parents=True)
            for i in range(each):
                pixels = noise(1, 48, seed=1000 * c + i)[0]
                Image.fromarray(pixels).resize((64 + 8 * i, 56)).save(where / f"{split}_{c}_{i}.JPEG", quality=95)


def write_tiny(root: Path, classes: int, per_class: int) -> list[int]:
    """tiny-imagenet-200/ with wnids.txt and val_annotations.txt; returns the classes of val, by file name."""
    base = root / "tiny-imagenet-200"
    names = [f"n{c:08}" for c in range(classes)]
    for c, name in enumerate(names):
        (base / "train" / name / "images").mkdir(parents=True)
        for i in range(per_class):
            image = Image.fromarray(noise(1, 64, seed=100 * c + i)[0])
            image.save(base / "train" / name / "images" / f"{name}_{i}.JPEG")
    (base / "val" / "images").mkdir(parents=True)
    (base / "test" / "images").mkdir(parents=True)
    lines, labels = [], []
    for i in range(2 * classes):
        Image.fromarray(noise(1, 64, seed=9000 + i)[0]).save(base / "val" / "images" / f"val_{i}.JPEG")
        lines.append(f"val_{i}.JPEG\t{names[(i + 1) % classes]}\t0\t0\t63\t63\n")
        labels.append((i + 1) % classes)
    (base / "val" / "val_annotations.txt").write_text("".join(lines))
    (base / "wnids.txt").write_text("\n".join(names) + "\n")
    return labels

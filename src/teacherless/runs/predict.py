"""Classes and probabilities of image files, from a shipped student."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from teacherless import losses
from teacherless.data import images
from teacherless.data.augment.distort import normalise
from teacherless.errors import InputError
from teacherless.models.files import Student
from teacherless.network import evaluating

BATCH = 64


class Prediction(NamedTuple):
    """One file: its classes, most probable first, or why it cannot be read."""

    path: Path
    probabilities: dict[str, float]
    error: str | None


def find(paths: Sequence[Path]) -> list[Path]:
    """The files named, and every image below the folders named. Raises: InputError where there is nothing at all."""
    files: list[Path] = []
    for path in paths:
        below = (p for p in path.rglob("*") if p.suffix.lower() in images.SUFFIXES and p.is_file())
        files += sorted(below) if path.is_dir() else [path]
    if not any(path.exists() for path in files):
        raise InputError(f"{', '.join(map(str, paths))}: no such file" + ("" if files else ", or no images in there"))
    return files


def predict(student: Student, paths: Sequence[Path], top: int = 5) -> Iterator[Prediction]:
    """A prediction per file, in order; a file that cannot be read has an error and no classes."""
    for start in range(0, len(paths), BATCH):
        some = paths[start : start + BATCH]
        read = [_read(path, student.config) for path in some]
        arrays = [torch.from_numpy(pixels.copy()) for pixels in read if not isinstance(pixels, str)]
        rows = iter(_probabilities(student, torch.stack(arrays)).tolist() if arrays else [])
        for path, pixels in zip(some, read, strict=True):
            if isinstance(pixels, str):
                yield Prediction(path, {}, pixels)
            else:
                ranked = sorted(zip(student.config["classes"], next(rows), strict=True), key=lambda pair: -pair[1])
                yield Prediction(path, dict(ranked[:top]), None)


def _read(path: Path, config: dict[str, Any]) -> images.Pixels | str:
    cut = images.FITS[config.get("fit", "squash")]
    try:
        with images.quietly():
            return images.read(path, tuple(config["input_size"]), config["channels"], cut)
    except images.Unreadable as error:
        return str(error)


@torch.no_grad()
def _probabilities(student: Student, pixels: torch.Tensor) -> torch.Tensor:
    """uint8 `[B, H, W, C] -> [B, classes]`."""
    x = normalise(pixels, student.config["mean"], student.config["std"])
    with evaluating([student.net]):
        return losses.log_probs(student.net(x)).exp()

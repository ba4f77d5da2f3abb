"""What a run's students took each test image for, in a file beside its summary: comparisons are paired by image too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from teacherless.errors import InputError
from teacherless.evaluation.metrics import predict, predicted
from teacherless.files import disk

FILE = "predictions.safetensors"
LABELS = "labels"


def of(logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Class ids `[N]`, int32: under LABELS the true ones, under `student/NAME` the predicted ones, -1 for none."""
    guesses = {f"student/{name}": predicted(z) for name, z in logits.items()}
    return {name: each.int().cpu() for name, each in {LABELS: labels, **guesses}.items()}


def again(students: Mapping[str, nn.Module], test: Any) -> dict[str, Tensor]:
    """The same of students that are evaluated again; nothing without a test set."""
    return of(*predict(students, test.epoch(0))) if test else {}


def write(folder: Path, classes: Mapping[str, Tensor]) -> dict[str, str]:
    """The file, if there is anything to write, and its SHA-256."""
    return {FILE: disk.write(folder / FILE, save(dict(classes)))} if classes else {}


def read(folder: Path, files: Mapping[str, str]) -> dict[str, Tensor] | None:
    """What was written, or None where a summary's `files` has none. Raises: InputError for a file that is not it."""
    if FILE not in files:
        return None
    if disk.damaged(folder, [FILE], files):
        raise InputError(f"{folder / FILE}: is missing or damaged, by its checksum in summary.json")
    try:
        return dict(load((folder / FILE).read_bytes()))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{folder / FILE}: is not a readable safetensors file ({error})") from None

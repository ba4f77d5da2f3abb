"""What studies read that no command makes: images with wrong labels, of rare classes or of another size, always the
same ones; and several networks as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F


def make(
    path: Path,
    data: str,
    count: int,
    *,
    val: float = 0.1,
    wrong: float = 0.0,
    rarest: float = 1.0,
    size: int | None = None,
) -> None:
    """Write `path`, a file for `--data npz:`; nothing where it is there. Validation and test are left as they are.

    Args:
        path: of the file.
        data: where the images are from, a name of `teacherless list data`.
        count: training images, class by class, before some are left out.
        val: the share of all of them for validation.
        wrong: share of the training images whose label is another class, drawn evenly.
        rarest: of the last class so much is kept, of those before it geometrically more, of the first all.
        size: pixels of a side, of all images, validation's and test's too; as they are by default.
    """
    from teacherless.data import load

    if path.exists():
        return
    source = load(data, val_fraction=val, train_samples=count)
    draw = np.random.default_rng(0)
    classes = len(source.classes)
    arrays = {}
    for name, split in (("train", source.train), ("val", source.val), ("test", source.test)):
        assert split is not None
        images: torch.Tensor = split.images  # type: ignore[attr-defined]
        arrays[f"x_{name}"], arrays[f"y_{name}"] = resized(images, size).numpy(), split.labels.numpy()
    y = arrays["y_train"]
    order = draw.permutation(len(y))
    place = np.empty(len(y), int)  # of a sample in its class, in the order that was drawn
    for c in range(classes):
        rows = order[y[order] == c]
        place[rows] = np.arange(len(rows))
    kept = place < np.round(np.bincount(y)[y] * rarest ** (y / (classes - 1)))
    arrays["x_train"], y = arrays["x_train"][kept], y[kept]
    flipped = draw.permutation(len(y))[: round(wrong * len(y))]
    y[flipped] = (y[flipped] + draw.integers(1, classes, len(flipped))) % classes
    arrays["y_train"] = y
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez(file, **arrays)


def resized(images: torch.Tensor, size: int | None) -> torch.Tensor:
    """Bytes `[N, H, W, C] -> [N, size, size, C]`; as they are without a size."""
    if size is None:
        return images
    x = F.interpolate(images.permute(0, 3, 1, 2).float(), (size, size), mode="bilinear", antialias=True)
    return x.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def together(path: Path, run: Path) -> None:
    """Write `path`, a student's folder for --teacher: all students of a run, small-cnns of one kind, as one network,
    which gives the mean of their probabilities. Nothing where it is there."""
    from teacherless import models
    from teacherless.files.schemas import OF_DATA
    from teacherless.models.files import CONFIG, save_student
    from teacherless.runs.stored import read_run

    if (path / CONFIG).exists():
        return
    students = list(read_run(run).students.values())
    config: dict[str, Any] = students[0].config
    arguments = {"copies": len(students), **config["arguments"]}
    net: Any = models.create("results.nets:several_small_cnns", **arguments)
    for own, student in zip(net.net.nets, students, strict=True):
        assert student.config["architecture"] == "small-cnn"
        own.load_state_dict(student.net.state_dict())
    save_student(path, net, {key: config[key] for key in OF_DATA if key in config})

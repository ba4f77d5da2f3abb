"""Images with wrong labels, or with classes of which there are few, made from a data set: always the same ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def make(path: Path, data: str, count: int, *, val: float = 0.1, wrong: float = 0.0, rarest: float = 1.0) -> None:
    """Write `path`, a file for `--data npz:`; nothing where it is there. Validation and test are left as they are.

    Args:
        path: of the file.
        data: where the images are from, a name of `teacherless list data`.
        count: training images, class by class, before some are left out.
        val: the share of all of them for validation.
        wrong: share of the training images whose label is another class, drawn evenly.
        rarest: of the last class so much is kept, of those before it geometrically more, of the first all.
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
        arrays[f"x_{name}"], arrays[f"y_{name}"] = split.images.numpy(), split.labels.numpy()  # type: ignore[attr-defined]
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

"""A split is labelled images: in memory (`Resident`) or decoded when they are needed (`Files`)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from teacherless.data import images
from teacherless.data.augment.distort import counter_hash

SPLIT_SEED = 0  # splits are the data's, not the run's: every seed and every method sees the same


@dataclass(frozen=True, eq=False)
class Resident:
    """Images that fit in memory; the loader moves them to the device once."""

    images: Tensor  # uint8 [N, H, W, C]
    labels: Tensor  # int64 [N]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> Resident:
        """Some of the samples."""
        return Resident(self.images[rows], self.labels[rows])

    def sample(self, rows: Tensor) -> Tensor:
        """Some of the images. `[B] -> uint8 [B, H, W, C]`."""
        return self.images[rows]

    def contents(self) -> Iterator[Any]:
        """What tells this split from another, as buffers to hash: pixels and labels."""
        yield from (self.images.contiguous().numpy(), self.labels.numpy())


@dataclass(frozen=True, eq=False)
class Files:
    """Images that are decoded when they are needed, in workers.

    Names are one array of bytes, not a list of strings: a forked worker that only reads them copies no page of it, so
    that memory stays flat however many files there are.
    """

    root: Path
    names: np.ndarray[Any, np.dtype[np.bytes_]]  # [N], below `root`
    labels: Tensor  # int64 [N]
    sizes: np.ndarray[Any, np.dtype[np.int64]]  # [N], bytes
    size: tuple[int, int]  # H, W that images are resized to
    channels: int  # 1 or 3
    fit: str = "squash"  # one of `images.FITS`

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, row: int) -> str:
        """The path of a file, below `root`."""
        return os.fsdecode(bytes(self.names[row]))

    def decode(self, row: int, draws: Sequence[float] | None = None) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """One image, uint8 `[H, W, C]`; `draws` say which part, see `images.random_part`.

        Raises: `images.Unreadable`.
        """
        cut = images.FITS[self.fit] if draws is None else images.random_part(draws)
        return images.read(self.root / self.name(row), self.size, self.channels, cut)

    def take(self, rows: Tensor) -> Files:
        """Some of the samples."""
        some = rows.numpy()
        return replace(self, names=self.names[some], labels=self.labels[rows], sizes=self.sizes[some])

    def sample(self, rows: Tensor) -> Tensor:
        """Those of the images that can be read. `[B] -> uint8 [at most B, H, W, C]`."""
        decoded = [np.zeros((0, *self.size, self.channels), np.uint8)]
        for row in rows.tolist():
            with suppress(images.Unreadable):  # the loader says so when it meets it
                decoded.append(self.decode(row)[None])
        return torch.from_numpy(np.concatenate(decoded))

    def contents(self) -> Iterator[Any]:
        """Names, sizes and labels: to read every byte of a set larger than memory would cost an epoch."""
        yield from (self.names.tobytes(), self.sizes, self.labels.numpy())


Split = Resident | Files


def stratified(
    labels: Tensor, fraction: float, *, count: int | None = None, keys: Tensor | None = None, spare: bool = False
) -> tuple[Tensor, Tensor]:
    """Rows of the two parts, the second with `fraction` of each class as nearly as whole images allow.

    Fixed by the data alone: within a class, rows are taken in the order of their keys' hash.

    Args:
        labels: `[N]`.
        fraction: of all rows, for the second part.
        count: exactly this many rows, instead of the fraction's.
        keys: `[N]`, what identifies a row; its number by default.
        spare: leave at least one row of each class in the first part.
    """
    keys = torch.arange(len(labels)) if keys is None else keys
    order = counter_hash(SPLIT_SEED, keys).argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]  # by class, then by hash
    sizes = labels.bincount()
    rank = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels[order]]  # place in its class: 0, 1, …
    share = (rank + 0.5) / sizes[labels[order]]  # the same in (0, 1)
    count = round(fraction * len(labels)) if count is None else count
    if spare:
        share[rank == sizes[labels[order]] - 1] = 2.0
        count = min(count, len(labels) - int((sizes > 0).sum()))
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[order[share.argsort(stable=True)[:count]]] = True
    return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()


def balanced(labels: Tensor, classes: int) -> Tensor:
    """Weights of classes, `[C]`, with which each counts as much as any other: N / (C n_c), 1 over all samples."""
    sizes = labels.bincount(minlength=classes)
    return len(labels) / (classes * sizes.clamp(min=1).float())


def moments(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of pixels in [0, 1].

    Of all images in memory, of the first 512 in hash order where they are files. From histograms: exact integers, so
    that neither the order of sums nor the number of threads shows, and no float copy of the set.
    """
    rows = torch.arange(len(split))
    if isinstance(split, Files):
        rows = counter_hash(SPLIT_SEED, rows).argsort(stable=True)[:512]
    shape = (*split.size, split.channels) if isinstance(split, Files) else split.images.shape[1:]
    counts = torch.zeros(shape[-1], 256, dtype=torch.int64)
    for part in torch.split(rows, max(1, 2**26 // math.prod(shape))):
        counts += torch.stack([channel.bincount(minlength=256) for channel in split.sample(part).flatten(0, 2).T])
    level = torch.arange(256, dtype=torch.float64) / 255
    mean = [float((level * n).sum() / n.sum()) for n in counts]
    std = [float(((level - m).square() * n).sum().div(n.sum()).sqrt()) for m, n in zip(mean, counts, strict=True)]
    return tuple(mean), tuple(max(s, 1e-3) for s in std)  # one flat colour must not divide by zero

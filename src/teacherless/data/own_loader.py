"""A user's own loader, in any of the usual shapes, as the loop wants it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from teacherless.batch import SHAPES, Batch, Wants, as_batch, check_samples, check_wants, mapped
from teacherless.data.loader import Loader
from teacherless.errors import InputError

ARRAYS_BATCH = 64  # samples, where arrays are given instead of a loader


def as_loader(
    data: Any,
    wants: Wants = Wants(),
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype | None = None,
    train: bool = False,
) -> Any:
    """Anything that yields batches, as an object with `epoch(epoch, start)`, and `len()` if it has one.

    A `Loader` is returned as it is. Two arrays `(X, y)` are batches of 64, shuffled to train on. float64, which is
    numpy's, becomes `dtype`, which is the networks'. Where a method wants more than `(x, y)`, the first batch is looked
    at now, so that a loader that cannot give it is refused before training starts.

    Raises: InputError for what is not iterable, and for a loader that lacks what the method wants.
    """
    if isinstance(data, Loader):
        if wants != Wants() and data.wants != wants:
            pair = f"the method wants {_listed(wants)}; found {_listed(data.wants)}"
            raise InputError(f"data: {pair}: build it with wants=method.wants")
        return data
    if isinstance(data, Adapted):
        return data
    if isinstance(data, (str, bytes, Mapping)) or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        raise InputError(f"data: found a {type(data).__name__}; must be an iterable of {SHAPES}")
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(hasattr(part, "shape") for part in data):
        data = _from_arrays(*data, train=train)
    adapted = (Adapted if _length(data) is None else Sized)(data, wants, device, dtype)
    if wants != Wants():
        adapted.look()
    return adapted


def _from_arrays(x: Any, y: Any, *, train: bool) -> DataLoader[Any]:
    whole = as_batch((x, y))
    samples: TensorDataset = TensorDataset(whole.inputs[0], whole.labels)
    full = train and len(whole.labels) >= ARRAYS_BATCH
    return DataLoader(samples, ARRAYS_BATCH, shuffle=train, drop_last=full)


class Adapted:
    """A user's iterable of batches; read from its beginning once per epoch."""

    def __init__(
        self, batches: Iterable[Any], wants: Wants, device: torch.device | str, dtype: torch.dtype | None
    ) -> None:
        self.batches, self.wants, self.device, self.dtype = batches, wants, device, dtype
        self.classes: int | None = None  # whoever knows how many there are may say so

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The iterable, read once more. The first `start` batches are read, and thrown away, before this returns: who
        resumes sets the generators before the call and after it.

        Raises: InputError if it gives nothing, or not what the method wants.
        """
        batches = iter(self.batches)
        for _ in islice(batches, start):
            pass
        return self._rest(batches, epoch, start)

    def _rest(self, batches: Iterator[Any], epoch: int, start: int) -> Iterator[Batch]:
        number = start
        for item in batches:
            batch = as_batch(item)
            check_samples(batch, number, self.classes)
            number += 1
            yield self.convert(batch)
        if number == 0:
            why = "; a generator can be read only once: give a list or a DataLoader" if epoch else ""
            raise InputError(f"data: the loader gave no batches in epoch {epoch}{why}")

    def look(self) -> None:
        """Check the first batch, and leave no trace: what can be read only once gets it back."""
        with torch.random.fork_rng(devices=[]):  # a DataLoader draws its order when it is asked for an iterator
            batches = iter(self.batches)
            first = list(islice(batches, 1))
        if batches is self.batches:
            self.batches = chain(first, batches)
        for item in first:
            check_wants(self.wants, self.convert(item))

    def convert(self, item: Any) -> Batch:
        """One batch, on the device."""
        batch = as_batch(item)
        index = None if batch.index is None else batch.index.to(self.device)
        return Batch(tuple(mapped(self._moved, x) for x in batch.inputs), batch.labels.to(self.device), index)

    def _moved(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.device, self.dtype if x.dtype == torch.float64 else None, non_blocking=True)


class Sized(Adapted):
    """One that knows how many batches it has."""

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]


def _listed(wants: Wants) -> str:
    views = "1 view" if wants.views == 1 else f"{wants.views} views"
    return " and ".join([f"{views} of each sample", *(name for name in ("classmate", "index") if getattr(wants, name))])


def _length(data: Any) -> int | None:
    """`len(data)`, or None; a DataLoader over an endless set has `__len__`, but not the number."""
    try:
        return len(data)
    except TypeError:
        return None

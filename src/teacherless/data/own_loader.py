"""A user's own loader, in any of the usual shapes, as the loop wants it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from teacherless.data.loader import Loader
from teacherless.errors import InputError
from teacherless.method import Batch, Wants

INPUTS = ("inputs", "input", "image", "images", "x", "pixel_values")
LABELS = ("labels", "label", "y", "target", "targets")
SHAPES = "(x, y), ((x1, x2), y), (x, y, index), a dict or a Batch"


def as_loader(data: Any, wants: Wants = Wants(), device: torch.device | str = "cpu") -> Any:
    """Anything that yields batches, as an object with `epoch(epoch, start)`, and `len()` if it has one.

    A `Loader` is returned as it is. Where a method wants more than `(x, y)`, the first batch is looked at now, so that
    a loader that cannot give it is refused before training starts.

    Raises: InputError for what is not iterable, and for a loader that lacks what the method wants.
    """
    if isinstance(data, Loader):
        _check(wants, data.wants.views, data.wants.classmate, data.wants.index, "build it with wants=method.wants")
        return data
    if isinstance(data, Adapted):
        return data
    if isinstance(data, (str, bytes, Mapping)) or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        raise InputError(f"data: found a {type(data).__name__}; must be an iterable of {SHAPES}")
    adapted = (Adapted if _length(data) is None else Sized)(data, wants, device)
    if wants != Wants():
        adapted.look()
    return adapted


class Adapted:
    """A user's iterable of batches; read from its beginning once per epoch."""

    def __init__(self, batches: Iterable[Any], wants: Wants, device: torch.device | str) -> None:
        self.batches, self.wants, self.device = batches, wants, device

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The iterable, read once more. The first `start` batches are read, and thrown away, before this returns: who
        resumes sets the generators before the call and after it.

        Raises: InputError if it gives nothing, or not what the method wants.
        """
        batches = iter(self.batches)
        for _ in islice(batches, start):
            pass
        return self._rest(batches, epoch, empty=start == 0)

    def _rest(self, batches: Iterator[Any], epoch: int, empty: bool) -> Iterator[Batch]:
        for item in batches:
            empty = False
            yield self.convert(item)
        if empty:
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
            self.convert(item)

    def convert(self, item: Any) -> Batch:
        """One batch, checked, on the device."""
        inputs, labels, index = as_batch(item)
        hint = "yield ((x, mate), y)" if self.wants.views == 1 else f"yield ({_views(self.wants)}, y)"
        if self.wants.index and index is None:
            hint = "yield (x, y, index)"
        _check(self.wants, len(inputs) - self.wants.classmate, self.wants.classmate, index is not None, hint)
        inputs = tuple(x.to(self.device, non_blocking=True) for x in inputs)
        return Batch(inputs, labels.to(self.device), None if index is None else index.to(self.device))


class Sized(Adapted):
    """One that knows how many batches it has."""

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]


def as_batch(item: Any) -> Batch:
    """What a loader yielded, as a Batch with int64 labels. Raises: InputError for anything else."""
    x, y, index = _parts(item)
    inputs = tuple(map(_tensor, x)) if isinstance(x, (tuple, list)) else (_tensor(x),)
    if not inputs:
        raise InputError(f"data: found no input; the loader must yield {SHAPES}")
    labels = _tensor(y)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"data: found labels of {labels.dtype}; must be class ids, which are integers")
    if labels.dim() != 1:
        hint = "; a data set of single samples goes into a DataLoader" if labels.dim() == 0 else ""
        raise InputError(f"data: found labels of shape {list(labels.shape)}; must be [B]: one class id a sample{hint}")
    for x in inputs:
        if x.dim() == 0 or len(x) != len(labels):
            raise InputError(f"data: found inputs {list(x.shape)} with {len(labels)} labels; the first axes must agree")
    return Batch(inputs, labels.long(), None if index is None else _tensor(index).long())


def _parts(item: Any) -> tuple[Any, Any, Any]:
    """Inputs, labels and maybe the index."""
    if isinstance(item, Batch):
        return item.inputs, item.labels, item.index
    if isinstance(item, Mapping):
        x, y = (next((item[key] for key in keys if key in item), None) for keys in (INPUTS, LABELS))
        if x is None or y is None:
            raise InputError(
                f"data: found a dict with {sorted(map(str, item))}; needs one of {INPUTS} and one of {LABELS}"
            )
        return x, y, item.get("index")
    if isinstance(item, (tuple, list)) and len(item) in (2, 3):
        return item[0], item[1], item[2] if len(item) == 3 else None
    what = f"{type(item).__name__}" + (f" of {len(item)}" if isinstance(item, (tuple, list)) else "")
    raise InputError(f"data: found a {what}; the loader must yield {SHAPES}")


def _tensor(value: Any) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"data: found a {type(value).__name__} in a batch; must be a tensor or an array") from error


def _check(wants: Wants, views: int, classmate: bool, index: bool, hint: str) -> None:
    """Refuse what is missing, by name."""
    if views < wants.views and wants.views > 1:
        raise InputError(f"data: the method wants {wants.views} views of each sample; found {max(views, 0)}: {hint}")
    if classmate < wants.classmate or views < 1:
        raise InputError(f"data: the method wants a classmate of each sample; found none: {hint}")
    if index < wants.index:
        raise InputError(f"data: the method wants each sample's index; found none: {hint}")


def _views(wants: Wants) -> str:
    names = [f"x{i + 1}" for i in range(wants.views)] + ["mate"] * wants.classmate
    return f"({', '.join(names)})"


def _length(data: Any) -> int | None:
    """`len(data)`, or None; a DataLoader over an endless set has `__len__`, but not the number."""
    try:
        return len(data)
    except TypeError:
        return None

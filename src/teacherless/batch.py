"""A batch, in whatever shape a loader gives it, and what no method may train on without a word.

An input is what a network reads of B samples: a tensor `[B, ...]`, a tuple of tensors (it is called `net(*x)`) or a
dict of tensors (`net(**x)`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from teacherless.errors import InputError, short

Input = Any  # a tensor [B, ...], a tuple of them, or a dict of them
LABELS = ("labels", "label", "y", "target", "targets")
INDEX = ("index", "idx")
NO_MULTI_LABEL = "a sample of several classes (multi-label) cannot be trained"
SHAPES = "(x, y), ((x1, x2), y), (x, y, index), a dict or a Batch"


class Batch(NamedTuple):
    """One batch, as a method sees it."""

    inputs: tuple[Input, ...]  # V inputs per sample; images are [B, C, H, W]
    labels: Tensor  # [B] class ids; of mixed images (mixup, CutMix) [B, C] shares of classes
    index: Tensor | None = None  # type: ignore[assignment]  # [B] row in the training set


class Wants(NamedTuple):
    """What a method asks of the data; a loader that cannot give it is refused by name."""

    views: int = 1  # independent distortions of each sample
    classmate: bool = False  # plus another sample of the same class, as the last input
    index: bool = False  # type: ignore[assignment]  # the sample's row in the training set


def as_batch(item: Any) -> Batch:
    """What a loader yielded, as a Batch of tensors. Reads shapes and dtypes, no values.

    Raises: InputError for anything else, and for labels that are neither class ids nor shares of classes.
    """
    x, y, index = parts(item)
    inputs = tuple(map(as_input, x)) if isinstance(x, (tuple, list)) else (as_input(x),)
    if not inputs:
        raise InputError(f"data: found no input; must be {SHAPES}")
    labels = _labels(_tensor(y))
    for tensor in (leaf for x in inputs for leaf in leaves(x)):
        if tensor.dim() == 0 or len(tensor) != len(labels):
            shape = list(tensor.shape)
            raise InputError(f"data: found inputs {shape} with {len(labels)} labels; the first axes must agree")
    return Batch(inputs, labels, None if index is None else _tensor(index).long())


def parts(item: Any) -> tuple[Any, Any, Any]:
    """Inputs, labels and maybe the index; of a dict by their usual names, and the inputs are its other entries."""
    if isinstance(item, Batch):
        return item
    if isinstance(item, Mapping):
        rest = {key: value for key, value in item.items() if not _is_text(value)}
        y, index = (next((rest.pop(key) for key in keys if key in rest), None) for keys in (LABELS, INDEX))
        if y is None or not rest:
            raise InputError(f"data: found a dict with {sorted(map(str, item))}; needs one of {LABELS}, and an input")
        return next(iter(rest.values())) if len(rest) == 1 else rest, y, index
    if isinstance(item, (tuple, list)) and len(item) in (2, 3):
        x, y, index = (*item, None)[:3]
        return x, y, index
    what = f"{type(item).__name__}" + (f" of {len(item)}" if isinstance(item, (tuple, list)) else "")
    raise InputError(f"data: found a {what}; must be {SHAPES}")


def _is_text(value: Any) -> bool:
    """File names and the like, which go along with samples and are no inputs."""
    return isinstance(value, str) or (isinstance(value, (list, tuple)) and any(isinstance(v, str) for v in value))


def as_input(x: Any) -> Input:
    """A tensor, a tuple or a dict of tensors. Raises: InputError for what is no array."""
    if isinstance(x, Mapping):
        return {str(key): _tensor(value) for key, value in x.items()}
    return tuple(map(_tensor, x)) if isinstance(x, (tuple, list)) else _tensor(x)


def _tensor(value: Any) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"data: found a {type(value).__name__} in a batch; must be a tensor or an array") from error


def _labels(labels: Tensor) -> Tensor:
    """Class ids `[B]`, or shares of classes `[B, C]` as floats; nothing that a softmax would quietly make wrong."""
    shape = list(labels.shape)
    one_each = "must be [B]: one class id a sample"
    if labels.dim() == 2 and labels.is_floating_point() and shape[1] > 1:
        return labels
    if labels.dim() == 2 and shape[1] == 1:
        raise InputError(f"data: found labels of shape {shape}; {one_each}: labels.squeeze(1)")
    if labels.dim() == 2:
        or_shares = f"or float shares of classes that add up to 1; {NO_MULTI_LABEL}"
        raise InputError(f"data: found {labels.dtype} labels of shape {shape}; {one_each}, {or_shares}")
    if labels.dim() != 1:
        hint = "; a data set of single samples goes into a DataLoader" if labels.dim() == 0 else ""
        raise InputError(f"data: found labels of shape {shape}; {one_each}{hint}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"data: found labels of {labels.dtype}; must be class ids, which are integers")
    return labels.long()


def check_wants(wants: Wants, batch: Batch) -> None:
    """Raises: InputError, by name, for a batch with less or more than a method reads."""
    count, needed = len(batch.inputs), wants.views + int(wants.classmate)
    wrap = "or wrap the data set: tl.Views(dataset, *method.wants)"
    if count > needed:
        reads = "1 input" if needed == 1 else f"{needed} inputs"
        hint = "a network of several inputs takes them as one: a dict, or ((a, b),)"
        raise InputError(f"data: the method reads {reads} of each sample; found {count}; {hint}")
    if count < needed:
        views = ["x"] if wants.views == 1 else [f"x{i + 1}" for i in range(wants.views)]
        names = ", ".join([*views, "mate"] if wants.classmate else views)
        lacks = f"{wants.views} views of each sample; found {count}"
        if wants.classmate:
            lacks = "a classmate of each sample; found none"
        raise InputError(f"data: the method wants {lacks}: yield (({names}), y), {wrap}")
    if wants.index and batch.index is None:
        raise InputError(f"data: the method wants each sample's index; found none: yield (x, y, index), {wrap}")


def check_values(batch: Batch) -> None:
    """What only the values tell; waits for the device. Raises: InputError for ids below 0 and shares that are none."""
    labels = batch.labels
    if labels.dim() == 1 and len(labels) and int(labels.min()) < 0:
        raise InputError(f"data: found class {int(labels.min())}; class ids count from 0")
    if labels.dim() == 2:
        sums = labels.double().sum(1)
        worst = float(sums[(sums - 1).abs().argmax()])
        if abs(worst - 1) > 1e-2 or float(labels.min()) < 0:
            need = f"shares of classes add up to 1 ({NO_MULTI_LABEL})"
            raise InputError(f"data: found labels that add up to {worst:g} in a sample; {need}")


def check_samples(batch: Batch, number: int, classes: int | None = None) -> None:
    """What one sample can spoil for all: NaN among inputs, a label that is no class. Looks only at what is on the CPU.

    Raises: InputError that names the batch and the row.
    """
    where = f"data: batch {number}, row"
    for x in (leaf for inputs in batch.inputs for leaf in leaves(inputs)):
        if x.is_floating_point() and x.device.type == "cpu" and bool(x.isnan().any()):
            rows = x.isnan().reshape(len(x), -1).any(1)
            raise InputError(f"{where} {int(rows.nonzero()[0])}: found NaN; inputs must be numbers")
    labels = batch.labels
    if labels.dim() == 1 and labels.device.type == "cpu":
        bad = ((labels < 0) | (labels >= (classes or torch.inf))).nonzero().flatten().tolist()
        if bad:
            legal = f"0 to {classes - 1}" if classes else "0 or more"
            raise InputError(f"{where} {bad[0]}: found class {int(labels[bad[0]])}; must be {legal}")


def as_weights(given: Sequence[float] | Tensor | None, default: Tensor | None) -> Tensor | None:
    """Weights of classes `[C]`; the default where none are given. Raises: InputError for what are none."""
    if given is None:
        return default
    weights = torch.as_tensor(given, dtype=torch.float32)
    if weights.dim() != 1 or not bool((weights.isfinite() & (weights >= 0)).all()) or not bool(weights.any()):
        raise InputError(f"class_weights: found {short(given)}; must be a number for each class, 0 or more")
    return weights


def weighted(labels: Tensor, weights: Tensor) -> Tensor:
    """Labels that give each sample the weight of its class in every cross-entropy. `[B] or [B, C], [C] -> [B, C]`."""
    shares = labels if labels.dim() == 2 else torch.nn.functional.one_hot(labels, len(weights))
    return shares * weights.to(labels.device)


def leaves(x: Input) -> Iterator[Tensor]:
    """Every tensor of an input."""
    if isinstance(x, Mapping):
        return iter(x.values())
    return iter((x,) if isinstance(x, Tensor) else x)


def mapped(change: Callable[..., Tensor], *inputs: Input) -> Input:
    """`change` of the inputs' tensors that belong together; the inputs have one structure."""
    first = inputs[0]
    if isinstance(first, Tensor):
        return change(*inputs)
    if isinstance(first, Mapping):
        return {key: change(*(x[key] for x in inputs)) for key in first}
    return tuple(change(*each) for each in zip(*inputs, strict=True))


def first_rows(batch: Batch, rows: int) -> Batch:
    """So many samples of a batch, the first."""
    inputs = tuple(mapped(lambda x: x[:rows], x) for x in batch.inputs)
    return Batch(inputs, batch.labels[:rows], None if batch.index is None else batch.index[:rows])


def joined(inputs: Sequence[Input]) -> Input:
    """V inputs of B samples as one of V·B."""
    return mapped(lambda *each: torch.cat(each), *inputs)

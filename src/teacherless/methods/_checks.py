"""What several methods refuse, each in one line that names the thing, what was found and what is legal."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import get_args

from torch import Tensor, nn

from teacherless.errors import InputError
from teacherless.models.staged import Insides


def positive(**numbers: float) -> None:
    """Raises: InputError for a number that is not finite and above 0."""
    for name, number in numbers.items():
        if not (math.isfinite(number) and number > 0):
            raise InputError(f"{name}: found {number}; must be above 0")


def not_negative(**numbers: float) -> None:
    """Raises: InputError for a number that is not finite and at least 0."""
    for name, number in numbers.items():
        if not (math.isfinite(number) and number >= 0):
            raise InputError(f"{name}: found {number}; must be at least 0")


def share(**numbers: float) -> None:
    """Raises: InputError for a number outside [0, 1]."""
    for name, number in numbers.items():
        if not 0 <= number <= 1:
            raise InputError(f"{name}: found {number}; must be from 0 to 1")


def choices(method: type[nn.Module], **options: str) -> None:
    """Raises: InputError for an option that is not among the literals of its annotation in `method`."""
    for name, option in options.items():
        legal = get_args(inspect.signature(method, eval_str=True).parameters[name].annotation)
        if option not in legal:
            raise InputError(f"{name}: found {option!r}; must be {' or '.join(map(repr, legal))}")


def no_effect(method: type[nn.Module], where: str, **options: object) -> None:
    """Refuse options that would change nothing and are not `method`'s defaults. Raises: InputError."""
    for name, option in options.items():
        default = inspect.signature(method).parameters[name].default
        if option != default:
            raise InputError(f"{name}: found {option!r}; it has no effect with {where}, so leave it at {default!r}")


def same_classes(teacher: Tensor, student: Tensor) -> None:
    """Raises: InputError if the two sets of logits, `[B, C]`, are not of one shape."""
    theirs, own = teacher.shape[-1], student.shape[-1]
    if teacher.shape != student.shape:
        raise InputError(f"teacher: it predicts {theirs} classes and the student {own}; both must know the data's")


def one_width(each: Sequence[Tensor]) -> None:
    """Raises: InputError for peers whose logits, `[B, C]`, are not of as many classes."""
    widths = [logits.shape[-1] for logits in each]
    if len(set(widths)) > 1:
        raise InputError(f"dml: found peers of {' and '.join(map(str, widths))} classes; all must know the same ones")


def staged(method: str, net: nn.Module, role: str = "student", at_least: int = 1, maps: bool = True) -> Insides:
    """`net`, known to have stages, and maps `[B, C, H, W]` unless tokens will do.

    Raises: InputError that says how to name them.
    """
    if not isinstance(net, Insides):
        hint = "name them with teacherless.adapt(net, stages='layer1+layer2+layer3')"
        raise InputError(f"{method}: needs a {role} with stages and found {type(net).__name__}; {hint}")
    try:
        count = len(net.channels)
    except InputError as error:  # someone else's network, whose stages nobody has named
        raise InputError(f"{method}: needs a {role} with stages; {error}") from None
    if count < at_least:
        raise InputError(f"{method}: found a {role} of {count} stage; it needs at least {at_least} to have an inside")
    if maps and not net.maps:
        hint = "use a convolutional one, or a method that reads no maps (one, dml, ddgsd, ...)"
        raise InputError(f"{method}: needs a {role} whose stages give maps [B, C, H, W], and these give tokens; {hint}")
    return net


def stage_index(net: Insides, role: str = "student", **index: int) -> int:
    """A stage's place, counted from 0; negative counts from the end. Raises: InputError for one that is not there."""
    ((name, stage),) = index.items()
    count = len(net.channels)
    if not -count <= stage < count:
        legal = f"the {role} has {count} stages, so must be from {-count} to {count - 1}"
        raise InputError(f"{name}: found {stage}; {legal}")
    return stage % count

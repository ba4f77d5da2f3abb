"""What several methods refuse, each in one line that names the thing, what was found and what is legal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from teacherless.errors import InputError
from teacherless.models.staged import Insides


def positive(**numbers: float) -> None:
    """Raises: InputError for a number that is not finite and above 0."""
    for name, found in numbers.items():
        if not (math.isfinite(found) and found > 0):
            raise InputError(f"{name}: found {found}; must be above 0")


def not_negative(**numbers: float) -> None:
    """Raises: InputError for a number that is not finite and at least 0."""
    for name, found in numbers.items():
        if not (math.isfinite(found) and found >= 0):
            raise InputError(f"{name}: found {found}; must be at least 0")


def share(**numbers: float) -> None:
    """Raises: InputError for a number outside [0, 1]."""
    for name, found in numbers.items():
        if not 0 <= found <= 1:
            raise InputError(f"{name}: found {found}; must be from 0 to 1")


def one_of(legal: tuple[str, ...], **choices: str) -> None:
    """Raises: InputError for a choice that is not legal."""
    for name, found in choices.items():
        if found not in legal:
            raise InputError(f"{name}: found {found!r}; must be {' or '.join(map(repr, legal))}")


def no_effect(where: str, **options: tuple[object, object]) -> None:
    """Refuse options, name=(found, default), that would change nothing. Raises: InputError."""
    for name, (found, default) in options.items():
        if found != default:
            raise InputError(f"{name}: found {found!r}; it has no effect with {where}, so leave it at {default!r}")


def same_classes(teacher: Tensor, student: Tensor) -> None:
    """Raises: InputError if the two sets of logits, `[B, C]`, are not of one shape."""
    if teacher.shape != student.shape:
        raise InputError(f"teacher: it predicts {teacher.shape[-1]} classes and the student {student.shape[-1]}; "
                         "both must know the classes of the data")  # fmt: skip


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
        raise InputError(
            f"{method}: needs a {role} with stages and found {type(net).__name__}; name them with "
            "teacherless.adapt(net, stages='layer1+layer2+layer3')"
        )
    try:
        count = len(net.channels)
    except InputError as error:  # someone else's network, whose stages nobody has named
        raise InputError(f"{method}: needs a {role} with stages; {error}") from None
    if count < at_least:
        raise InputError(f"{method}: found a {role} of {count} stage; it needs at least {at_least} to have an inside")
    if maps and not net.maps:
        raise InputError(
            f"{method}: needs a {role} whose stages give maps [B, C, H, W], and these give tokens; "
            "use a convolutional one, or a method that reads no maps (one, dml, ddgsd, ...)"
        )
    return net


def stage_index(net: Insides, role: str = "student", **index: int) -> int:
    """A stage's place, counted from 0; negative counts from the end. Raises: InputError for one that is not there."""
    ((name, found),) = index.items()
    count = len(net.channels)
    if not -count <= found < count:
        raise InputError(
            f"{name}: found {found}; the {role} has {count} stages, so must be from {-count} to {count - 1}"
        )
    return found % count

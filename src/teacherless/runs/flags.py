"""The fields of a run as flags of the command line.

Imports no torch: `--help` must answer at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from cyclopts import Parameter
from pydantic import BaseModel, create_model

from teacherless.runs.config import Run

_SHORT = {"batch_size": ("--batch-size", "-b"), "workers": ("--workers", "-j")}
_DATA = ("data_dir", "img_size", "fit", "val_fraction", "train_samples", "aug")


def flags(*names: str) -> Any:
    """Fields of Run as optional flags. Text throughout: Run itself checks the types and words the errors."""
    fields: dict[str, Any] = {}
    for name in names:
        field = Run.model_fields[name]
        annotation: Any = field.annotation
        kind: Any = str
        if annotation is bool:
            kind = bool
        elif name == "opt_betas":
            kind = tuple[str, str]
        elif name == "set" or get_origin(annotation) is tuple:
            kind = list[str]
        note = Parameter(
            name=_SHORT.get(name),
            help=f"{field.description} {_default(field.default)}".strip(),
            metavar="KEY=VALUE" if name == "set" else _metavar(annotation),
            negative=None if kind is bool else (),
            consume_multiple=1 if name == "decay_milestones" else None,
        )
        fields[name] = (Annotated[kind | None, note], None)
    return create_model("Flags", **fields)


def _metavar(annotation: Any) -> str | None:
    """`INT`, `sgd|adam|adamw`; None for a switch."""
    if annotation is bool:
        return None
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    inside = [kind for kind in get_args(annotation) if kind not in (type(None), ...)] or [annotation]
    return " ".join({int: "INT", float: "FLOAT", Path: "PATH"}.get(kind, "TEXT") for kind in inside)


def _default(value: Any) -> str:
    shown = (value is not False and isinstance(value, (int, float, str))) or (isinstance(value, tuple) and value)
    return f"[{' '.join(map(str, value)) if isinstance(value, tuple) else value}]" if shown else ""


if TYPE_CHECKING:
    Flags = BaseModel
    DataFlags = BaseModel
else:
    Flags = flags(*(name for name in Run.model_fields if name != "method"))
    DataFlags = flags(*_DATA)

"""Run: one run's settings, and how its students are written: `NAME[*K][,key=value...]`.

`Settings` is what the loop needs; `Run` adds what a command needs: the method, the data, the networks.
This module imports no torch: `--help` must answer at once.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import Field, field_validator

from teacherless.errors import InputError, names_code, short
from teacherless.files import disk
from teacherless.runs import shrink
from teacherless.training.settings import Settings

T = TypeVar("T")
MOST = 1024  # students, and processes


class Run(Settings):
    """One run of the command line: everything that decides its result."""

    method: str = Field(description="what to train")
    data: str = Field("digits", description="a data set's name, or a folder of images")
    data_dir: Path | None = Field(None, description="where the data set's files are")
    student: tuple[str, ...] = Field(("small-cnn",), min_length=1, description="NAME[*K][,key=value...]; repeatable")
    peers: int | None = Field(
        None, ge=1, le=MOST, description="copies of the one --student that train together (dml: 2)"
    )
    split_into: int | None = Field(
        None, ge=2, le=MOST, description="the one --student as so many peers, which share its FLOPs by their width"
    )
    exchange_every: int = Field(
        1, ge=1, description="dml: peers meet every N steps, and learn from copies of each other's weights in between"
    )
    pretrained: bool = Field(False, description="start from the weights of timm or torchvision")
    init: Path | None = Field(
        None, description="a run or student folder: start from its weights, read images as it does"
    )
    teacher: Path | None = Field(None, description="a run or student folder, for methods that read a teacher")
    trust_imports: bool = Field(
        False,
        exclude=True,
        description="import code that a recipe, run.json or config.json names; no file can say this itself",
    )
    set: dict[str, Any] = Field(default_factory=dict, description="key=value: an option of the method; repeatable")
    batch_size: int = Field(64, ge=1, le=2**20, description="samples per step")
    val_fraction: float = Field(0.1, ge=0, lt=1, description="share of train kept for validation where there is none")
    train_samples: int | None = Field(None, ge=1, lt=2**62, description="use only this many training samples")
    img_size: int | None = Field(None, ge=1, description="resize images of a folder to N x N")
    fit: Literal["squash", "crop", "crop-0.875"] | None = Field(
        None, description="how photos become squares: squash keeps all of them, crop their middle (default: squash)"
    )
    aug: str | None = Field(
        None, description="distortions of training images, as pad4-flip+cutout (default: the data's)"
    )
    small: bool = Field(
        False, description="shrink everything, to see that it runs: noise for data, narrow nets, 20 steps"
    )
    workers: int = Field(0, ge=0, le=MOST, description="processes that decode images that do not fit in memory")
    bad_images: Literal["skip", "stop"] = Field("skip", description="what to do about files that cannot be decoded")
    class_weights: Literal["balanced"] | None = Field(
        None, description="balanced: in every cross-entropy with labels, a class counts as much as any other"
    )
    balanced_sampler: bool = Field(False, description="an epoch has as many images of each class as of any other")

    @field_validator("data", "data_dir", "teacher", "init")
    @classmethod
    def _is_a_path(cls, value: str | Path | None) -> str | Path | None:
        if "\0" in str(value):
            raise ValueError(f"found {short(str(value))}; no name of a file has a NUL")
        return value

    @field_validator("set")
    @classmethod
    def _is_shallow(cls, value: dict[str, Any]) -> dict[str, Any]:
        return shallow(value)


class Spec(NamedTuple):
    """One `--student`, parsed."""

    name: str
    copies: int
    arguments: dict[str, Any]  # of the constructor
    optimizer: dict[str, float]  # of this peer's parameter group


def parse_student(text: str) -> Spec:
    """`NAME[*K][,key=value...]`. Raises: InputError for anything else."""
    head, *pairs = text.split(",")
    name, star, count = head.partition("*")
    if not name or (star and not (count.isdecimal() and len(count) < 5 and 0 < int(count) <= MOST)):
        raise InputError(f"--student: found {short(text)}; must be NAME, NAME*K (K at most {MOST}) or NAME,key=value")
    arguments, optimizer = {}, {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InputError(f"--student: found {short(pair)} in {short(text)}; must be key=value")
        if key in ("lr", "weight_decay", "momentum"):
            try:
                optimizer[key] = float(value)
            except ValueError:
                raise InputError(f"--student: found {short(pair)}; {key} must be a number") from None
            if not 0 <= optimizer[key] < float("inf"):
                raise InputError(f"--student: found {short(pair)}; {key} must be at least 0")
        else:
            arguments[key] = literal(value)
    return Spec(name, int(count) if star else 1, arguments, optimizer)


def specs(run: Run) -> list[Spec]:
    """One spec per student, `*K` and `--peers` unrolled. Raises: InputError where the two disagree."""
    each = [spec for spec in map(parse_student, run.student) for _ in range(spec.copies)]
    if run.small:
        each = [spec._replace(**shrink.student(spec.name, spec.arguments)) for spec in each]
    if run.split_into and (run.peers or len(each) > 1):
        raise InputError(f"--split-into: found {run.split_into}; it makes peers of one --student, without --peers")
    if run.peers is None or run.peers == len(each):
        return each
    if len(each) > 1:
        raise InputError(f"--peers: found {run.peers}; {len(each)} students were given, so it must be {len(each)}")
    return each * run.peers


def alone(run: Run) -> Run:
    """The same for its first student alone."""
    head, comma, rest = run.student[0].partition(",")
    first = head.partition("*")[0] + comma + rest
    return run.model_copy(update={"student": (first,), "peers": None, "split_into": None, "exchange_every": 1})


def refuse_code(run: Run, where: object) -> None:
    """Raises: InputError if settings from a file name code to run, a student `package.module:function`."""
    for name in (parse_student(text).name for text in run.student):
        if ":" in name and not run.trust_imports:
            raise names_code(where, name)


def as_given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in run.json as a user could give them: --steps without --epochs, nothing that is None, no trust."""
    given = {name: value for name, value in settings.items() if value is not None and name != "trust_imports"}
    return {name: value for name, value in given.items() if name != "epochs" or "steps" not in given}


def new_folder(run: Run) -> Path:
    """Make `runs/<time>-<method>-<data>-s<seed>`, with a number behind it where another run has it already."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{run.method}-{Path(run.data).name}-s{run.seed}"
    for number in itertools.count(1):
        out = Path("runs") / (name if number == 1 else f"{name}-{number}")
        with disk.saying(f"--out: cannot write to {str(out)!r}"), suppress(FileExistsError):
            out.mkdir(parents=True)
            return out
    raise AssertionError


def literal(value: Any) -> Any:
    """A value typed on the command line: JSON where it parses as JSON, text otherwise."""
    if not isinstance(value, str):
        return value
    try:
        return shallow(json.loads(value))
    except (ValueError, RecursionError):
        return value


def shallow(value: T, levels: int = 5) -> T:
    """The value, if it is not nested deeper. Raises: ValueError if it is."""
    if isinstance(value, (dict, list)):
        if levels == 0:
            raise ValueError("lists and tables are nested too deeply")
        for each in value.values() if isinstance(value, dict) else value:
            shallow(each, levels - 1)
    return value

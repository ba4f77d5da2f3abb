"""What stands in the files of a run folder, one schema for each; `read` is how all of them are read.

A file may hold more than its schema; what the schema says, a reader can rely on. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypeVar, cast

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from teacherless.errors import InputError, short
from teacherless.files import disk
from teacherless.files.bounds import a_file

T = TypeVar("T")
LARGEST_FILE = 2**26  # bytes of JSON; the lines of 100,000 epochs
LARGEST_SIDE = 1024  # of the images a student says it reads: a batch of them must fit in memory

Name = Annotated[str, Field(max_length=1000)]
Count = Annotated[int, Field(ge=1, le=2**20)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
OPEN = ConfigDict(extra="allow")


def read(path: Path, schema: TypeAdapter[T]) -> T | None:
    """A file of JSON, or None where there is none. Raises: InputError if it is not JSON, or not what it should be."""
    with disk.saying(f"{path}: cannot be read"):
        try:
            path.stat()
            content = a_file(path, LARGEST_FILE).read_bytes()
        except FileNotFoundError:
            return None
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error})") from None
    return check(value, schema, path)


def check(value: Any, schema: TypeAdapter[T], where: object) -> T:
    """`value`, as the schema has it, keys in order. Raises: InputError with the first complaint, in one line."""
    try:
        checked = schema.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"][:4]))
        raise InputError(f"{where}: {place + ': ' if place else ''}{wording(first)}") from None
    return cast(T, {key: checked[key] for key in value}) if isinstance(checked, dict) else checked


def wording(complaint: Any) -> str:
    """pydantic's complaint in our words: what was found, what is legal."""
    value = "" if complaint["type"] in ("missing", "value_error") else f"found {short(complaint['input'])}; "
    message: str = complaint["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return value + message.replace("Field required", "is required")


# A student's config.json ---------------------------------------------------------------------------------------------


@with_config(OPEN)
class Config(TypedDict):
    """What rebuilds a student, and what it expects. The data is not known of one that was trained from Python."""

    architecture: Name | None
    arguments: dict[str, Any]
    classes: NotRequired[Annotated[list[str], Field(min_length=1)]]
    input_size: NotRequired[tuple[Side, Side]]
    channels: NotRequired[Annotated[int, Field(ge=1, le=1024)]]
    fit: NotRequired[Literal["squash", "crop", "crop-0.875"]]
    mean: NotRequired[list[Number]]
    std: NotRequired[list[Annotated[Number, Field(gt=0)]]]


OF_DATA = ("classes", "input_size", "channels", "fit", "mean", "std")


def _agrees(config: Config) -> Config:
    """The parts of a config fit each other."""
    arguments = config["arguments"]
    if config["architecture"] and not {"num_classes", "in_channels"} <= arguments.keys():
        raise ValueError("arguments need num_classes and in_channels")
    classes, channels = config.get("classes"), config.get("channels")
    if classes and "num_classes" in arguments and arguments["num_classes"] != len(classes):
        raise ValueError(f"found {len(classes)} classes; num_classes is {short(arguments['num_classes'])}")
    if channels and not len(config.get("mean", [])) == len(config.get("std", [])) == channels:
        raise ValueError(f"mean and std must have {channels} numbers, one for each channel")
    return config


CONFIG = TypeAdapter(Annotated[Config, AfterValidator(_agrees)])
Small = Annotated[float, Field(ge=-(2**20), le=2**20, allow_inf_nan=False)]
Scalar = bool | Annotated[int, Field(ge=-1, le=2**20)] | Small | Annotated[str, Field(max_length=200)] | None
ARGUMENTS = TypeAdapter(dict[str, Scalar | Annotated[list[Scalar], Field(max_length=64)]])  # without trust


# A recipe ------------------------------------------------------------------------------------------------------------


@with_config(OPEN)
class Told(TypedDict):
    """[published] and [ours]: numbers, of one network or of several by name, and what is said of them."""

    value: NotRequired[Number | dict[str, Number]]
    what: NotRequired[str]
    metric: NotRequired[str]
    source: NotRequired[str]
    open: NotRequired[list[str]]


@with_config(OPEN)
class Recipe(TypedDict):
    """What a recipe holds besides settings."""

    published: NotRequired[Told]
    ours: NotRequired[Told]
    teacher_recipe: NotRequired[str]


RECIPE = TypeAdapter(Recipe)


# A run's run.json, summary.json and metrics.jsonl --------------------------------------------------------------------


@with_config(OPEN)
class Data(TypedDict):
    """What run.json says of the data; nothing of what was given from Python."""

    fingerprint: NotRequired[str]


@with_config(OPEN)
class Mesh(TypedDict):
    """How many ranks computed a run, along each axis."""

    peer: Count
    data: Count


@with_config(OPEN)
class Stored(TypedDict):
    """run.json: what a run was started with. The settings are checked by who takes them up."""

    settings: dict[str, Any]
    data: Data
    engine: Literal["loop", "threads", "graph"]
    amp: dict[str, Any] | None
    versions: NotRequired[dict[str, Any]]
    ranks: NotRequired[Mesh | None]
    epochs: NotRequired[int]  # of all phases
    teacher: NotRequired[str | None]  # the hash of its weights
    init: NotRequired[str | None]  # of those that the students started from


Row = dict[str, int | Number | None]  # a student's or the ensemble's numbers
MEASURED = {"val_top1", "test_top1", "test_nll", "test_ece"}  # in every row


@with_config(OPEN)
class Finding(TypedDict):
    """Of the doctor: what is wrong, how that is known, what to try."""

    finding: str
    evidence: str
    advice: str


@with_config(OPEN)
class Summary(TypedDict):
    """summary.json: what a finished run's networks are worth."""

    method: str
    data: NotRequired[str | None]
    seed: NotRequired[int]
    epochs: int
    steps: NotRequired[int]
    students: Annotated[dict[str, Row], Field(min_length=1)]
    ensemble: Row | None
    chosen: str
    doctor: NotRequired[list[Finding]]
    left: NotRequired[dict[str, int]]  # students that are not finite, and after how many steps
    revived: NotRequired[dict[str, int]]  # students that have come back, and how often
    dead: NotRequired[list[str]]  # students that say the same of every validation image
    unreadable: NotRequired[int]
    files: NotRequired[dict[str, str]]
    train_seconds: Number


def _is_measured(summary: Summary) -> Summary:
    """Every row has its numbers, and what is chosen is one of them."""
    rows = {**summary["students"], **({"ensemble": summary["ensemble"]} if summary["ensemble"] else {})}
    for name, row in rows.items():
        if missing := sorted(MEASURED - row.keys()):
            raise ValueError(f"{name} has no {missing[0]}")
        if row.get("params", 0) is None:
            raise ValueError(f"{name}: params: found None; must be a number")
    if summary["chosen"] not in summary["students"]:
        raise ValueError(f"chooses {short(summary['chosen'])}, which is none of its students")
    return summary


@with_config(OPEN)
class Line(TypedDict):
    """An epoch of metrics.jsonl; besides, `train/...` and `val/...` are numbers, or null."""

    epoch: int
    seconds: Number


def _has_numbers(line: Line) -> Line:
    """What was measured are numbers."""
    for key, value in line.items():
        if key.startswith(("train/", "val/")) and not (value is None or type(value) in (int, float)):
            raise ValueError(f"{short(key)}: found {short(value)}; must be a number")
    return line


Steps = Annotated[int, Field(ge=0, lt=2**62)]
STRICT = ConfigDict(extra="allow", strict=True)  # what is not changed by being read


@with_config(STRICT)
class Loop(TypedDict):
    """Where a checkpoint's training stands."""

    step: Steps
    epoch: Steps
    batch: Steps
    phase: Steps
    sound: int
    best: Number | None


@with_config(STRICT)
class Recorded(TypedDict):
    """What a checkpoint has of the metrics."""

    count: Steps
    images: Steps
    spent: Number
    seconds: Number
    history: list[Annotated[Line, AfterValidator(_has_numbers)]]
    terms: list[str]


@with_config(STRICT)
class State(TypedDict):
    """state.json of a checkpoint: what is not checked by being put in its place."""

    loop: Loop
    recorder: Recorded


def staying(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of a summary's students, without those that have left."""
    return {name: row for name, row in summary["students"].items() if name not in summary.get("left", {})}


def who_left(left: Mapping[str, int]) -> str:
    """As it is printed: `peer1 not finite since step 30`."""
    return ", ".join(f"{name} not finite since step {step}" for name, step in left.items())


def terms(line: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """The terms of an epoch's loss by name: cross-entropy with the labels, and all others."""
    names = [key for key in line if key.startswith("train/") and key.count("/") == 1 and key != "train/loss"]
    values = {key.removeprefix("train/"): line[key] or 0.0 for key in names}
    labels = {name: value for name, value in values.items() if name.startswith("ce")}
    return labels, {name: value for name, value in values.items() if name not in labels}


@with_config(OPEN)
class Failed(TypedDict):
    """failed.json of a run that diverged."""

    failed: str


@with_config(OPEN)
class Mean(TypedDict):
    """A mean over seeds, in percent."""

    seeds: int
    mean: Number
    std: Number | None


@with_config(OPEN)
class ComparedRow(TypedDict):
    """A method's row of a comparison."""

    student: Mean
    verdict: str | None


@with_config(OPEN)
class Compared(TypedDict):
    """compare.json, as much of it as a model card says."""

    methods: dict[str, ComparedRow]
    caveat: str


COMPARED = TypeAdapter(Compared)


class Seen(TypedDict):
    """An image in mistakes.json."""

    row: int
    file: str | None
    label: str
    taken_for: str
    confidence: Number
    png: str


class Mistakes(TypedDict):
    """mistakes.json of a run: validation images that the student to ship gets wrong."""

    student: str
    images: list[Seen]


STORED = TypeAdapter(Stored)
SUMMARY = TypeAdapter(Annotated[Summary, AfterValidator(_is_measured)])
LINE = TypeAdapter(Annotated[Line, AfterValidator(_has_numbers)])
STATE = TypeAdapter(State)
FAILED = TypeAdapter(Failed)
MISTAKES = TypeAdapter(Mistakes)


def stored(folder: Path) -> Stored | None:
    """run.json of a run folder, or None where there is none. Raises: InputError if it is not as it should be."""
    return read(folder / "run.json", STORED)


def summary(folder: Path) -> dict[str, Any] | None:
    """summary.json of a run folder, or None where there is none. Raises: InputError if it is not as it should be."""
    value = read(folder / "summary.json", SUMMARY)
    return None if value is None else dict(value)


def lines(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl of a run folder, a dict per epoch; a last line that was torn is left out.

    Raises: InputError if there is none, or it is not as it should be.
    """
    path = folder / "metrics.jsonl"
    with disk.saying(f"{path}: cannot be read"):
        *whole, _ = a_file(path, LARGEST_FILE).read_bytes().split(b"\n")
    try:
        each = [json.loads(line) for line in whole]
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON in every line ({error})") from None
    checked = [check(line, LINE, f"{path}, line {number}") for number, line in enumerate(each, 1)]
    return [dict(line) for line in checked]


def finished_lines(folder: Path) -> list[dict[str, Any]]:
    """`lines` of a run that is finished. Raises: InputError also where there is no line."""
    if not (each := lines(folder)):
        raise InputError(f"{folder / 'metrics.jsonl'}: has no epoch of a run that is finished")
    return each

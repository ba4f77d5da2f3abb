"""Run: one run's settings, and what they build.

`Settings` is what the loop needs; `Run` adds what a command needs: the method, the data, the networks, the folder.
Field descriptions are the command line's help, so a flag is declared in one place. This module imports no torch:
`--help` must answer at once.
"""

from __future__ import annotations

import inspect
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from teacherless.errors import InputError, unknown
from teacherless.runs import shrink

if TYPE_CHECKING:
    from torch import nn

    from teacherless.data import Source
    from teacherless.method import Method
    from teacherless.models.files import Student

M = TypeVar("M", bound=BaseModel)


class Settings(BaseModel):
    """How the loop trains. Rates are per step, epochs count from 0."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)

    epochs: int = Field(30, ge=1, description="passes over the training data")
    steps: int | None = Field(None, ge=1, description="batches to train for, instead of --epochs")
    lr: float = Field(0.1, gt=0, description="learning rate")
    opt: Literal["sgd", "adam", "adamw"] = Field("sgd", description="optimizer: sgd, adam or adamw")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    nesterov: bool = Field(True, description="Nesterov momentum, for sgd")
    opt_betas: tuple[float, float] = Field((0.9, 0.999), description="of adam and adamw")
    weight_decay: float = Field(5e-4, ge=0, description="L2 penalty (adamw: decoupled)")
    clip_grad: float | None = Field(None, gt=0, description="largest gradient norm, per student")
    sched: Literal["cosine", "step", "constant"] = Field("cosine", description="rate: cosine, step or constant")
    warmup_epochs: int = Field(0, ge=0, description="epochs of linear warm-up")
    decay_epochs: int | None = Field(None, ge=1, description="sched step: decay every N epochs (default: a third)")
    decay_milestones: tuple[int, ...] = Field((), description="sched step: decay at these epochs")
    decay_rate: float = Field(0.1, gt=0, le=1, description="sched step: factor of each decay")
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing, inside any method")
    seed: int = Field(0, ge=0, description="of weights, sample order, distortions")
    select: Literal["last", "best"] = Field("last", description="ship the last epoch, or the best on validation")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of averaged weights, evaluated and shipped instead; 0: none")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto, cpu or cuda")
    engine: Literal["auto", "loop", "threads", "graph"] = Field(
        "auto",
        description="students in turn (loop), one per core (threads), a CUDA graph (graph); auto goes by a fixed rule",
    )
    amp: bool = Field(False, description="train in bfloat16 where that is fast; losses and weights stay in float32")
    checkpoint_every: str = Field(
        "10m", pattern=r"^[1-9]\d*[mes]$", description="10m, 2e or 500s: minutes, epochs, steps"
    )

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> Settings:
        if self.steps is not None and {"steps", "epochs"} <= self.model_fields_set:
            raise ValueError("give --epochs or --steps, not both")
        return self


class Run(Settings):
    """One run of the command line: everything that decides its result."""

    method: str = Field(description="what to train")
    data: str = Field("digits", description="a data set's name, or a folder of images")
    data_dir: Path | None = Field(None, description="where the data set's files are")
    student: tuple[str, ...] = Field(("small-cnn",), min_length=1, description="NAME[*K][,key=value...]; repeatable")
    peers: int | None = Field(None, ge=1, description="how many copies of the one --student train together")
    pretrained: bool = Field(False, description="start from the weights of timm or torchvision")
    teacher: Path | None = Field(None, description="a run or student folder, for methods that read a teacher")
    trust_imports: bool = Field(False, description="import the code that a teacher's config.json names")
    set: dict[str, Any] = Field(default_factory=dict, description="key=value: an option of the method; repeatable")
    batch_size: int = Field(64, ge=1, description="samples per step")
    val_fraction: float = Field(0.1, ge=0, lt=1, description="share of train kept for validation where there is none")
    train_samples: int | None = Field(None, ge=1, description="use only this many training samples")
    img_size: int | None = Field(None, ge=1, description="resize images of a folder to N x N")
    aug: str | None = Field(
        None, description="distortions of training images, as pad4-flip+cutout (default: the data's)"
    )
    small: bool = Field(False, description="shrink everything, to see that it runs: few samples, narrow nets, 20 steps")
    workers: int = Field(0, ge=0, description="processes that decode images that do not fit in memory")


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
    if not name or (star and not (count.isdecimal() and int(count) > 0)):
        raise InputError(f"--student: found {text!r}; must be NAME, NAME*K or NAME,key=value")
    arguments, optimizer = {}, {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InputError(f"--student: found {pair!r} in {text!r}; must be key=value")
        if key in ("lr", "weight_decay", "momentum"):
            try:
                optimizer[key] = float(value)
            except ValueError:
                raise InputError(f"--student: found {pair!r}; {key} must be a number") from None
            if not 0 <= optimizer[key] < float("inf"):
                raise InputError(f"--student: found {pair!r}; {key} must be at least 0")
        else:
            arguments[key] = _literal(value)
    return Spec(name, int(count) if star else 1, arguments, optimizer)


def specs(run: Run) -> list[Spec]:
    """One spec per student, `*K` and `--peers` unrolled. Raises: InputError where the two disagree."""
    each = [
        spec._replace(copies=1) for text in run.student for spec in [parse_student(text)] for _ in range(spec.copies)
    ]
    if run.small:
        each = [spec._replace(**shrink.student(spec.name, spec.arguments)) for spec in each]
    if run.peers is None or run.peers == len(each):
        return each
    if len(each) > 1:
        raise InputError(f"--peers: found {run.peers}; {len(each)} students were given, so it must be {len(each)}")
    return each * run.peers


def read(model: type[M], values: Mapping[str, Any], where: str = "") -> M:
    """`model(**values)`, its first complaint in one line. Raises: InputError."""
    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]).replace("_", "-")
        if first["type"] == "extra_forbidden":
            raise unknown(f"{where}setting", str(first["loc"][0]), model.model_fields) from None
        if first["type"] == "value_error":
            raise InputError(f"{where}{first['ctx']['error']}") from None
        found = "" if first["type"] == "missing" else f"found {_short(first['input'])}; "
        message = first["msg"].replace("Input should be", "must be").replace("Field required", "is required")
        raise InputError(f"{where}--{name}: {found}{message}") from None


def load_source(run: Run) -> Source:
    """The data the run names."""
    from teacherless import data

    return data.load(
        run.data,
        data_dir=run.data_dir,
        img_size=run.img_size,
        val_fraction=run.val_fraction,
        train_samples=run.train_samples,
        aug=run.aug,
        limit=shrink.SAMPLES if run.small else None,
    )


def build_method(run: Run, source: Source) -> tuple[Method, dict[str, dict[str, float]]]:
    """The method over freshly initialised students, and each student's own optimizer settings.

    Student i starts from seed (seed, i) whatever the method, so methods can be compared from the same start; helpers
    (gates, exits) come after, from a seed of their own.
    """
    import torch

    from teacherless import models
    from teacherless.data.augment.distort import counter_hash
    from teacherless.methods import METHODS

    kind = METHODS[run.method]
    wanted = specs(run)
    if len(wanted) > 1 and not kind.cohort:
        raise InputError(f"--student: found {len(wanted)} students; {run.method} trains one")
    options = method_options(kind, run.method, run.set)
    teacher = _read_teacher(run, kind, source)
    nets: list[nn.Module] = []
    for i, spec in enumerate(wanted):
        seed = int(counter_hash(run.seed, i))
        known: dict[str, Any] = {"num_classes": len(source.classes), "in_channels": source.channels, "seed": seed,
                                 "size": source.size, "pretrained": run.pretrained}  # fmt: skip
        if taken := sorted(known.keys() & spec.arguments.keys()):
            raise InputError(f"--student: found {taken[0]}= for {spec.name}; the run sets it")
        net = models.create(spec.name, **known, **spec.arguments)
        models.check_input(net, source.size, source.channels)
        nets.append(net)
    for name, value in (("num_classes", len(source.classes)), ("num_samples", len(source.train.labels))):
        if name in inspect.signature(kind.__init__).parameters:
            options[name] = value
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(counter_hash(run.seed, len(wanted), 1)))
        method = kind(*nets, *teacher, **options)
    method.smoothing = run.smoothing or method.smoothing
    names = [str(group["name"]) for group in method.param_groups()]
    return method, {name: spec.optimizer for name, spec in zip(names, wanted, strict=False) if spec.optimizer}


def _read_teacher(run: Run, kind: type[Method], source: Source) -> list[nn.Module]:
    """The teacher, if the method reads one: a student's folder, or the chosen student of a run's.

    Raises: InputError if one is missing, not wanted, or does not fit the data.
    """
    from teacherless import models

    if run.teacher is None:
        if kind.teacher_use == "required":
            raise InputError(f"--teacher: {run.method} reads a teacher; give a run folder or a student's folder")
        return []
    if kind.teacher_use == "none":
        raise InputError(f"--teacher: found {str(run.teacher)!r}, but {run.method} reads no teacher")
    _, students = read_folder(run.teacher, trust_imports=run.trust_imports)
    name = next(iter(students))
    if summary := read_json(run.teacher / "summary.json"):
        name = summary["chosen"]
    net, config = students[name]
    if config["classes"] != source.classes:
        raise InputError(f"--teacher: {run.teacher} knows {len(config['classes'])} classes, not those of {source.name} "
                         f"({len(source.classes)})")  # fmt: skip
    models.check_input(net, source.size, source.channels)
    return [net]


def method_options(kind: type[Method], name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The method's keyword arguments from `--set`, with the constructor's own names and types.

    Raises: InputError for a key the method does not have, and for a value of another type.
    """
    legal = settable(kind)
    options = dict(given)
    preset = _variant(kind, name, options)
    for key, value in options.items():
        if key not in legal:
            raise unknown(f"option of {name}", key, legal) if legal else InputError(f"--set: {name} has no options")
        try:
            options[key] = TypeAdapter(legal[key]).validate_python(_literal(value))
        except ValidationError as error:
            wanted = dict.fromkeys(
                e["msg"].removeprefix("Input should be ") for e in error.errors()
            )  # of a union, each
            raise InputError(f"--set {key}: found {_short(value)}; must be {', or '.join(wanted)}") from None
    return preset | options


def _variant(kind: type[Method], name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The preset that `variant=NAME` stands for, taken out of the options.

    Raises: InputError for a name the method does not have, and for options that belong to a variant: then it would not
    be the variant it is called.
    """
    variant = options.pop("variant", None)
    if variant is None:
        return {}
    if variant not in kind.variants:
        raise unknown(f"variant of {name}", str(variant), kind.variants) if kind.variants else InputError(
            f"--set variant: {name} has no variants")  # fmt: skip
    for owner in (variant, *kind.variants):
        for key in kind.variants[owner].keys() & options.keys():
            raise InputError(
                f"--set {key}: belongs to variant {owner!r} of {name}; leave out variant={variant} or {key}"
            )
    return dict(kind.variants[variant])


def settable(kind: type[Method]) -> dict[str, Any]:
    """The options a user may set, name -> type: keyword-only arguments that are plain values."""
    hints = get_type_hints(kind.__init__, include_extras=True)
    return {
        name: hints[name]
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
        and name not in ("num_classes", "num_samples")
        and not _is_callable(hints[name])
    }


def _is_callable(hint: Any) -> bool:
    return getattr(hint, "__origin__", None) is getattr(Callable[..., Any], "__origin__", None)


def _literal(value: Any) -> Any:
    """A value typed on the command line: JSON where it parses as JSON, text otherwise."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def open_folder(out: Path, resume: bool = False) -> Path:
    """Make the run folder. Raises: InputError if it holds a run that is not to be resumed, or cannot be written."""
    if not resume:
        if (out / "summary.json").exists():
            raise InputError(f"--out: {str(out)!r} holds a finished run; choose another folder")
        if (out / "run.json").exists():
            raise InputError(
                f"--out: {str(out)!r} holds an unfinished run; go on with --resume, or choose another folder"
            )
        if out.is_dir() and any(out.iterdir()):
            raise InputError(f"--out: {str(out)!r} is not empty; choose a new or empty folder")
    elif out.is_dir() and any(out.iterdir()) and not (out / "run.json").exists() and not (out / ".lock").exists():
        raise InputError(f"--out: {str(out)!r} is not a run folder; nothing to resume")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".lock").touch()
    except OSError as error:
        raise InputError(f"--out: cannot write to {str(out)!r}: {error.strerror}") from None
    return out


SAFE = {"epochs", "steps", "checkpoint_every", "workers"}  # may change in a resumed run, on request


def compare(before: Mapping[str, Any], now: Mapping[str, Any], anyway: bool) -> None:
    """Whether a run may go on. Raises: InputError listing what is not as it was."""
    differences, unsafe = [], False
    for key in before["settings"].keys() | now["settings"].keys():
        old, new = before["settings"].get(key), now["settings"].get(key)
        if old != new:
            differences.append(f"{key} was {old!r}, is {new!r}")
            unsafe |= key not in SAFE
    for what, old, new in (
        ("data", before["data"].get("fingerprint"), now["data"].get("fingerprint")),
        ("teacher", before.get("teacher"), now.get("teacher")),
        ("engine", before["engine"], now["engine"]),
    ):
        if old != new:
            differences.append(f"the {what} is not the same")
            unsafe = True
    if differences and (unsafe or not anyway):
        how = "" if unsafe else "; --resume-anyway goes on with these"
        raise InputError(f"--resume: the run was started otherwise: {'; '.join(sorted(differences))}{how}")


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON file of a run folder, or None where there is none. Raises: InputError if it is not JSON."""
    try:
        value: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, line by line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def default_out(run: Run) -> Path:
    """`runs/<time>-<method>-<data>-s<seed>`."""
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{run.method}-{Path(run.data).name}-s{run.seed}"


def read_folder(path: Path, *, trust_imports: bool = False) -> tuple[Run | None, dict[str, Student]]:
    """The run a folder belongs to (None where that is not known) and its students: a run folder's all, or the one.

    Raises: InputError if it is neither, or holds no student.
    """
    from teacherless.models.files import load_student

    folder = next((f for f in (path, path.parent.parent) if (f / "run.json").is_file()), None)
    if folder is None and not (path / "config.json").is_file():
        raise InputError(f"{path}: is neither a run folder nor a student's folder")
    folders = sorted((path / "students").glob("*")) if path == folder else [path]
    students = {p.name: load_student(p, trust_imports=trust_imports) for p in folders}
    if not students:
        raise InputError(f"{path}: holds no students; the run is not finished")
    if folder is None:
        return None, students
    settings = as_given(json.loads((folder / "run.json").read_text())["settings"])
    return (read(Run, settings, where=f"{folder / 'run.json'}: ") if "method" in settings else None), students


def as_given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in run.json as a user could give them: --steps without --epochs, nothing that is None."""
    given = {name: value for name, value in settings.items() if value is not None}
    return {name: value for name, value in given.items() if name != "epochs" or "steps" not in given}


def write_json(path: Path, value: Any) -> None:
    """Write whole or not at all."""
    part = path.with_suffix(".part")
    with part.open("w") as file:
        file.write(json.dumps(value, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)

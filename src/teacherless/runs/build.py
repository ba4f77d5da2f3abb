"""From a run's settings to its data, its networks and its method."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_origin, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from teacherless import data, models
from teacherless.data import Source
from teacherless.data.augment.distort import counter_hash
from teacherless.data.splits import balanced
from teacherless.errors import InputError, short, unknown
from teacherless.method import Method
from teacherless.methods import METHODS
from teacherless.models.files import start_from, state_hash
from teacherless.models.foreign import by_name
from teacherless.runs import shrink
from teacherless.runs.config import Run, Spec, literal, parse_student, specs
from teacherless.runs.stored import shipped
from teacherless.runs.widths import split


def load_source(run: Run, *, reader: Mapping[str, Any] | None = None, quiet: bool = False) -> Source:
    """The data the run names; noise of its shape for `--small`, unless --data-dir says where files are.

    Args:
        run: the settings.
        reader: the config of a student that is to read these images (default: of what the run's students start from).
        quiet: say nothing about files.

    Raises: InputError, with `--bad-images stop` also for a file that cannot be read.
    """
    reads = _reads(run) if reader is None else _as_read_by(reader)
    fixed = run.data in data.SOURCES or run.data.startswith("npz:")  # images that come in one size
    source = data.load(
        run.data,
        data_dir=run.data_dir,
        img_size=run.img_size if fixed else run.img_size or reads.get("size"),
        val_fraction=run.val_fraction,
        train_samples=run.train_samples,
        aug=run.aug,
        limit=shrink.SAMPLES if run.small else None,
        gray=reads.get("gray"),
        fit=run.fit or reads.get("fit"),
        quiet=quiet,
        synthetic=run.small and run.data_dir is None,
    )
    if reads:
        mean, std = (_of_channels(reads[key], source.channels) for key in ("mean", "std"))
        source = replace(source, mean=mean, std=std)
    if source.unreadable and run.bad_images == "stop":
        more = f" and {len(source.unreadable) - 1} more" if len(source.unreadable) > 1 else ""
        raise InputError(f"{run.data}: cannot read {source.unreadable[0]}{more}; --bad-images skip goes on without")
    return source


def _reads(run: Run) -> dict[str, Any]:
    """How the weights that students start from want their images: size, fit, mean and std; nothing where they start
    afresh. What a user says of the size beats it."""
    if run.init is not None:
        return _as_read_by(shipped(run.init, trust_imports=run.trust_imports).config)
    return by_name.reads(parse_student(run.student[0]).name) if run.pretrained else {}


def _as_read_by(config: Mapping[str, Any]) -> dict[str, Any]:
    """How a student reads its images, by its config."""
    size, gray = config["input_size"][0], True if config["channels"] == 1 else None
    return {"size": size, "gray": gray} | {key: config.get(key) for key in ("fit", "mean", "std")}


def _of_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """A number for each channel, where the weights read as many; else their mean for the one."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),)


def init_hash(run: Run) -> str | None:
    """Of the weights of `--init`, for run.json."""
    return state_hash(shipped(run.init, trust_imports=run.trust_imports).net) if run.init else None


def build_method(run: Run, source: Source) -> tuple[Method, dict[str, dict[str, float]]]:
    """The method over freshly initialised students, and each student's own optimizer settings.

    Student i starts from seed (seed, i) whatever the method, so methods can be compared from the same start; helpers
    (gates, exits) come after, from a seed of their own.
    """
    kind = METHODS[run.method]
    wanted = specs(run)
    if run.split_into:
        wanted, _ = split(wanted, run.split_into)
    elif kind.cohort and len(wanted) == 1 and run.peers is None:
        wanted *= 2  # peers take two
    if len(wanted) > 1 and not kind.cohort:
        raise InputError(f"--student: found {len(wanted)} students; {run.method} trains one")
    options = method_options(kind, run.method, run.set)
    if run.exchange_every > 1:
        if not kind.cohort:
            why = f"{run.method} has no peers that learn from each other (dml has)"
            raise InputError(f"--exchange-every: found {run.exchange_every}; {why}")
        options = {"exchange_every": run.exchange_every} | options
    teacher = _read_teacher(run, kind, source)
    nets = _students(run, wanted, source)
    for net in (*teacher, *nets):
        models.check_input(net, source.size, source.channels)
    numbers = {"num_classes": len(source.classes), "num_samples": len(source.train.labels)}
    options |= {name: numbers[name] for name in kind.needs}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(counter_hash(run.seed, len(wanted), 1)))
        method = kind(*nets, *teacher, **options)
    method.smoothing = run.smoothing or method.smoothing
    if run.class_weights:
        method.class_weights = balanced(source.train.labels, len(source.classes))
    names = [str(group["name"]) for group in method.param_groups()]
    return method, {name: spec.optimizer for name, spec in zip(names, wanted, strict=False) if spec.optimizer}


def _students(run: Run, wanted: Sequence[Spec], source: Source) -> list[nn.Module]:
    """The networks, each with its first weights. Raises: InputError for one that cannot be."""
    known: dict[str, Any] = {"num_classes": len(source.classes), "in_channels": source.channels, "size": source.size}
    known["pretrained"] = run.pretrained
    start = run.init and shipped(run.init, trust_imports=run.trust_imports)
    nets = []
    for i, spec in enumerate(wanted):
        if taken := sorted({"seed", *known} & spec.arguments.keys()):
            raise InputError(f"--student: found {taken[0]}= for {spec.name}; the run sets it")
        seed = int(counter_hash(run.seed, i))
        net = models.create(spec.name, seed=seed, **known, **spec.arguments)
        if start and (key := start_from(net, start, source.classes)):
            other = f"{run.init} holds another architecture than {run.student[0]}"
            raise InputError(f"--init: {other}: {key!r} does not fit")
        nets.append(net)
    return nets


def _read_teacher(run: Run, kind: type[Method], source: Source) -> list[nn.Module]:
    """The teacher, if the method reads one: a student's folder, or the chosen student of a run's.

    Raises: InputError if one is missing, not wanted, or does not fit the data.
    """
    if run.teacher is None:
        if kind.teacher_use == "required":
            raise InputError(f"--teacher: {run.method} reads a teacher; give a run folder or a student's folder")
        return []
    if kind.teacher_use == "none":
        raise InputError(f"--teacher: found {str(run.teacher)!r}, but {run.method} reads no teacher")
    net, config = shipped(run.teacher, trust_imports=run.trust_imports)
    if config["classes"] != source.classes:
        theirs, ours = len(config["classes"]), len(source.classes)
        raise InputError(f"--teacher: {run.teacher} knows {theirs} classes, not those of {source.name} ({ours})")
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
            options[key] = TypeAdapter(legal[key]).validate_python(literal(value))
        except ValidationError as error:
            of_each = dict.fromkeys(e["msg"].removeprefix("Input should be ") for e in error.errors())  # in a union
            raise InputError(f"--set {key}: found {short(value)}; must be {', or '.join(of_each)}") from None
    return preset | options


def _variant(kind: type[Method], name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The preset that `variant=NAME` stands for, taken out of the options.

    Raises: InputError for a name the method does not have, and for options that belong to a variant: then it would not
    be the variant it is called.
    """
    variant = options.pop("variant", None)
    if variant is None:
        return {}
    if not kind.variants:
        raise InputError(f"--set variant: {name} has no variants")
    if variant not in kind.variants:
        raise unknown(f"variant of {name}", str(variant), kind.variants)
    for owner in (variant, *kind.variants):
        for key in kind.variants[owner].keys() & options.keys():
            whose = f"belongs to variant {owner!r} of {name}"
            raise InputError(f"--set {key}: {whose}; leave out variant={variant} or {key}")
    return dict(kind.variants[variant])


def settable(kind: type[Method]) -> dict[str, Any]:
    """The options a user may set, name -> type: keyword-only arguments that are plain values."""
    hints = get_type_hints(kind.__init__, include_extras=True)
    return {
        name: hints[name]
        for name, each in inspect.signature(kind.__init__).parameters.items()
        if each.kind is each.KEYWORD_ONLY and name not in kind.needs and get_origin(hints[name]) is not Callable
    }

"""What the user gave, merged once: flags, a recipe, the run that goes on."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from teacherless.errors import InputError, short, unknown
from teacherless.methods import METHODS
from teacherless.runs import shrink
from teacherless.runs.config import Run, as_given, refuse_code
from teacherless.runs.recipes import load
from teacherless.training.settings import read

COMPARED = "plain,label-smoothing,dml,one,ddgsd"  # without a word about methods


def merge(
    method: str | None, flags: Mapping[str, Any], recipe: Path | None = None, stored: Mapping[str, Any] | None = None
) -> Run:
    """A flag beats the recipe, the recipe beats what a resumed run was, that beats the default.

    Args:
        method: what the user named, if anything.
        flags: fields of `Run` as typed; None for what was not given.
        recipe: one of ours by name, or a file.
        stored: the settings in the run.json of the run that goes on.

    Raises: InputError.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    values = as_given(stored or {})
    read(Run, {"method": "plain", **values}, where="run.json: ")
    if recipe:
        row = load(recipe)
        method = method or row.settings.get("method")
        values |= row.settings
        if method != row.settings.get("method", method):
            values["set"] = {}  # its options are those of its own method
        if row.teacher and method == row.settings["method"] and not given.get("teacher"):
            first = f"teacherless train --recipe {row.teacher} --out DIR; then give --teacher DIR"
            raise InputError(f"--teacher: recipe {row.name} reads one, to be trained first: {first}")
    if given.get("small"):
        values = shrink.settings(values)
    if "set" in given:
        given["set"] = {**values.get("set", {}), **_pairs(given["set"])}
    for one, other in (("epochs", "steps"), ("steps", "epochs")):  # the one that is given replaces the other
        if one in given and other not in given:
            values.pop(other, None)
    method = method or values.get("method")
    if method is None:
        raise InputError("METHOD: is missing; give one of `teacherless list methods`, or a --recipe that names it")
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    run = read(Run, {**values, **given, "method": method})
    if "student" not in given:
        refuse_code(run, f"recipe {recipe}" if recipe else "run.json")
    return run


def merge_comparison(
    methods: str | None, flags: Mapping[str, Any], recipe: Path | None = None
) -> tuple[Run, list[str]]:
    """A comparison's settings, of which plain is the method, and the methods that are compared.

    Args:
        methods: names with commas between; by default the recipe's own, or `COMPARED`.
        flags: as of `merge`; `set` names the method of each option, METHOD.key=value.
        recipe: its `[set]` are the options of its own method.

    Raises: InputError.
    """
    run = merge("plain", flags, recipe)
    settings = load(recipe).settings if recipe else {}
    own = settings.get("method")
    names = [name.strip() for name in (methods or own or COMPARED).split(",") if name.strip()]
    if own in names and own != "plain":
        options = {f"{own}.{key}": value for key, value in settings.get("set", {}).items()}
        run = run.model_copy(update={"set": options | run.set})
    return run, names


def _pairs(texts: Iterable[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"--set: found {short(text)}; must be key=value")
        pairs[key] = value
    return pairs


def command_of(words: Sequence[str], settings: Mapping[str, Any]) -> str:
    """The command line that these settings come from, without what is the default anyway."""
    command = ["teacherless", *words]
    for key, value in as_given(settings).items():
        typed = tuple(value) if isinstance(value, list) else value  # JSON has no tuples
        field, flag = Run.model_fields.get(key), "--" + key.replace("_", "-")
        if key == "methods":
            command += [flag, ",".join(value)]
        elif key == "sizes":
            command += ["--peers", f"{value[0]}..{value[-1]}"] if value else []
        elif key in ("seeds", "sweep"):
            command += [flag, str(value)]
        elif key == "equal_compute":
            command += [flag] if value else []
        elif field and key != "method" and typed != field.default:
            command += _flag(flag, value)
    return shlex.join(command)


def _flag(flag: str, value: Any) -> Iterable[str]:
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag.removeprefix('--')}"]
    if isinstance(value, dict):
        pairs = {key: each if isinstance(each, str) else json.dumps(each) for key, each in value.items()}
        return [part for key, each in pairs.items() for part in (flag, f"{key}={each}")]
    if isinstance(value, list):
        repeated = flag == "--student"
        return [part for each in value for part in (flag, str(each))] if repeated else [flag, *map(str, value)]
    return [flag, str(value)]

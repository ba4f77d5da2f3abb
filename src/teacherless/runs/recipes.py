"""Recipes: rows of the papers' tables as settings, each with the number that was published.

`recipes/` has one TOML file per paper:

    [defaults]      what every row has, unless it says otherwise
    [parts.NAME]    what some rows have
    [rows."ID"]     a recipe; `parts` names what it takes

What comes later beats what comes earlier: defaults, the parts in their order, the row. `set` is merged key by key, and
`open` adds up. Keys are a `Run`'s fields, `teacher_recipe` (what trains its teacher), and what is said of the published
number: `what`, `value`, `metric`, `source`, `open` (what the paper leaves open and we chose), and `unchecked` where the
number was noted from memory and nobody could read it in the paper since.

A file of one's own is one recipe: a `Run`'s fields, and optionally `[published]` and `[ours]` (value, seeds, commit).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from teacherless.errors import InputError, unknown
from teacherless.files import schemas
from teacherless.runs.config import Run
from teacherless.training.settings import read

PUBLISHED = ("what", "value", "metric", "source", "open", "unchecked")
UNCHECKED = "noted from memory of the paper, not checked against it"
NO_SETTINGS = ("published", "ours", "teacher_recipe")


class Recipe(NamedTuple):
    """One row, or one file of the user's own."""

    name: str  # dml/cifar100-resnet32x2, or the path of a file
    settings: dict[str, Any]
    published: dict[str, Any]
    ours: dict[str, Any]
    teacher: str | None  # the recipe that trains the teacher


def folder() -> Path:
    """Where our recipes are: in the package, or beside `src/` in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parents[1] / "recipes"


def names() -> list[str]:
    """All of ours, by name."""
    return sorted(_rows())


@cache
def _rows() -> dict[str, dict[str, Any]]:
    """Every row of our files, by name, with what it takes from defaults and parts."""
    rows = {}
    for path in sorted(folder().glob("*.toml")):
        paper = tomllib.loads(path.read_text(encoding="utf-8"))
        for name, row in paper["rows"].items():
            parts = [paper["parts"][part] for part in row.pop("parts", ())]
            rows[name] = _merged([paper["defaults"], *parts, row])
    return rows


def _merged(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Later layers beat earlier ones; `set` is merged, `open` adds up."""
    merged: dict[str, Any] = {}
    for layer in layers:
        options = {**merged.get("set", {}), **layer.get("set", {})}
        choices = [*merged.get("open", []), *layer.get("open", [])]
        merged |= layer
        merged |= {key: value for key, value in (("set", options), ("open", choices)) if value}
    return merged


def load(text: str | Path) -> Recipe:
    """One of ours by its name, or a file by its path.

    Raises: InputError for an unknown name, a missing or broken file, and for keys that are no settings.
    """
    name = str(text)
    if name in _rows():
        row = _rows()[name]
        values = {key: value for key, value in row.items() if key not in PUBLISHED}
        values["published"] = {key: row[key] for key in PUBLISHED if key in row}
    elif name.endswith(".toml") or Path(text).is_file():
        try:
            values = tomllib.loads(Path(text).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"--recipe: cannot read {name!r}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"--recipe: {name!r} is not TOML: {error}") from None
    else:
        raise unknown("recipe", name, names())
    settings = {key: value for key, value in values.items() if key not in NO_SETTINGS}
    if "trust_imports" in settings:
        raise InputError(f"recipe {name}: found trust_imports; a file cannot trust itself: say --trust-imports")
    for key in settings:
        if key not in Run.model_fields:
            raise unknown(f"key in recipe {Path(text).name}:", key, [*Run.model_fields, *NO_SETTINGS])
    read(Run, {"method": "plain", **settings}, where=f"recipe {Path(text).name}: ")
    about = schemas.check(values, schemas.RECIPE, f"recipe {Path(text).name}")
    published, ours = dict(about.get("published", {})), dict(about.get("ours", {}))
    return Recipe(name, settings, published, ours, about.get("teacher_recipe"))


def shown(values: Mapping[str, Any]) -> str:
    """`{"value": {"peer0": 71.19, "peer1": 70.75}}` as "71.19, 70.75"; "-" where there is none; * if not checked."""
    value = values.get("value")
    each = value.values() if isinstance(value, dict) else [] if value is None else [value]
    mark = " *" if values.get("unchecked") else ""
    return (", ".join(f"{number:.2f}" for number in each) or "-") + mark


def published_line(recipe: Recipe) -> str:
    """What was published, in one line."""
    published = recipe.published
    value = published.get("value")
    if value is None:
        return "nothing"
    named = value.items() if isinstance(value, dict) else [("", value)]
    each = ", ".join(f"{name} {number:.2f}".strip() for name, number in named)
    about = [published.get("metric"), published.get("source"), UNCHECKED if published.get("unchecked") else None]
    return f"{each} ({'; '.join(filter(None, about))})" if any(about) else each


def card(recipe: Recipe) -> str:
    """All about one recipe."""
    lines = [f"{recipe.name}: {recipe.published.get('what', '')}", f"published: {published_line(recipe)}"]
    if ours := recipe.ours:
        lines.append(f"ours: {shown(ours)}" + "".join(f", {key} {ours[key]}" for key in ours if key != "value"))
    if recipe.teacher:
        lines.append(f"teacher: teacherless train --recipe {recipe.teacher}")
    lines += ["settings:", *(f"  {key} = {value}" for key, value in recipe.settings.items())]
    if choices := recipe.published.get("open"):
        lines += ["open in the paper, and chosen:", *(f"  {line}" for line in choices)]
    return "\n".join(lines)

"""Recipes: one TOML file of settings per row of the papers' tables, with the number that was published.

A recipe is a `Run`'s fields, and besides them `[published]` (value, metric, source, open: what the paper leaves open
and we chose), `[ours]` once somebody has run it (value, seeds, commit), and `teacher_recipe`: what trains its teacher.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from teacherless.errors import InputError, unknown
from teacherless.runs.config import Run

OURS_TO_READ = ("published", "ours", "teacher_recipe")  # keys that are no settings


class Recipe(NamedTuple):
    """One file."""

    name: str  # dml/cifar100-resnet32x2, or the path of a file of the user's own
    settings: dict[str, Any]
    published: dict[str, Any]
    ours: dict[str, Any]
    teacher: str | None  # the recipe that trains the teacher


def folder() -> Path:
    """Where our recipes are: in the package, or beside `src/` in a checkout."""
    inside = Path(__file__).parents[1] / "recipes"
    return inside if inside.is_dir() else Path(__file__).parents[3] / "recipes"


def names() -> list[str]:
    """All of ours, by name."""
    return sorted(path.relative_to(folder()).with_suffix("").as_posix() for path in folder().rglob("*.toml"))


def load(text: str | Path) -> Recipe:
    """One of ours by its name, or a file by its path.

    Raises: InputError for an unknown name, a missing or broken file, and for keys that are no settings.
    """
    name = str(text)
    path = Path(text) if name.endswith(".toml") or Path(text).is_file() else folder() / f"{name}.toml"
    if path.parent.is_relative_to(folder()) and not path.is_file():
        raise unknown("recipe", name, names())
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--recipe: cannot read {name!r}: {getattr(error, 'strerror', None) or error}") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"--recipe: {name!r} is not TOML: {error}") from None
    settings = {key: value for key, value in values.items() if key not in OURS_TO_READ}
    for key in settings:
        if key not in Run.model_fields:
            raise unknown(f"key in recipe {path.name}:", key, [*Run.model_fields, *OURS_TO_READ])
    tables = [values.get(key, {}) for key in ("published", "ours")]
    if not all(isinstance(table, dict) for table in tables):
        raise InputError(f"recipe {path.name}: published and ours must be tables")
    return Recipe(name, settings, tables[0], tables[1], values.get("teacher_recipe"))


def shown(values: Mapping[str, Any]) -> str:
    """`{"value": {"peer0": 71.19, "peer1": 70.75}}` as "71.19, 70.75"; "-" where there is none."""
    value = values.get("value")
    each = value.values() if isinstance(value, dict) else [] if value is None else [value]
    return ", ".join(f"{number:.2f}" for number in each) or "-"


def card(recipe: Recipe) -> str:
    """All about one recipe."""
    published, ours = recipe.published, recipe.ours
    value = published.get("value")
    each = ", ".join(f"{k} {v:.2f}" for k, v in value.items()) if isinstance(value, dict) else shown(published)
    settings = [f"  {key} = {value}" for key, value in recipe.settings.items()]
    choices = [f"  {line}" for line in published.get("open", [])]
    return "\n".join([
        f"{recipe.name}: {published.get('what', '')}",
        f"published: {each} ({published.get('metric', '')}; {published.get('source', '')})",
        f"ours: {shown(ours)}" + "".join(f", {key} {ours[key]}" for key in ours if key != "value"),
        *([f"teacher: teacherless train --recipe {recipe.teacher}"] if recipe.teacher else []),
        "settings:", *settings,
        *(["open in the paper, and chosen:", *choices] if choices else []),
    ])  # fmt: skip

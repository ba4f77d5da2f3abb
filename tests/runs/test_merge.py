"""Flags, recipes and stored runs, merged."""

from __future__ import annotations

from pathlib import Path

import pytest

from teacherless.methods import METHODS
from teacherless.runs import recipes
from teacherless.runs.merge import COMPARED, merge, merge_comparison
from teacherless.study import compare


@pytest.mark.parametrize("name", recipes.names())
@pytest.mark.parametrize("methods", [None, "dml,one", "all"])
def test_a_recipe_can_be_compared(name: str, methods: str | None) -> None:
    """Its options are those of its own method, whatever else is compared, and none where that is not."""
    own = recipes.load(name).settings
    given = "dml,one," + own["method"] if methods == "all" else methods
    template, names = merge_comparison(given, {"teacher": "runs/teacher"}, Path(name))
    rows = list(dict.fromkeys(["plain", *names]))
    options = compare._options(template, rows)
    for row in rows:
        run = compare._settings(template, row, options[row])
        assert run.set == (own.get("set", {}) if row == own["method"] else {})
        assert run.method == row and row in METHODS
    assert own["method"] in rows or methods == "dml,one"


def test_flags_beat_a_recipes_options() -> None:
    flags = {"set": ["dml.update=simultaneous", "one.temperature=2"]}
    name = next(n for n in recipes.names() if recipes.load(n).settings.get("set", {}).get("update") == "in_turn")
    run, names = merge_comparison("dml,one", flags, Path(name))
    assert run.set["dml.update"] == "simultaneous" and run.set["one.temperature"] == "2" and names == ["dml", "one"]
    assert merge_comparison(None, {})[1] == COMPARED.split(",")


def test_another_method_takes_none_of_a_recipes_options() -> None:
    name = next(n for n in recipes.names() if recipes.load(n).settings.get("set") and n.startswith("dml/"))
    assert merge("plain", {}, Path(name)).set == {}
    assert merge(None, {}, Path(name)).set == recipes.load(name).settings["set"]

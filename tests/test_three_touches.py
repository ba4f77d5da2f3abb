"""A method is added by its file, its line in METHODS and its reference test. What does not follow is named here."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import mutate
import pytest
from test_golden import CASES, GOLDEN

import teacherless as tl
from teacherless.methods import METHODS

README = (Path(__file__).parents[1] / "README.md").read_text()

every_method = pytest.mark.parametrize("name", METHODS)


def file_of(name: str) -> str:
    return METHODS[name].__module__.removeprefix("teacherless.").replace(".", "/") + ".py"


@every_method
def test_it_is_exported(name: str) -> None:
    kind = METHODS[name]
    assert getattr(tl, kind.__name__, None) is kind, f"teacherless/__init__.pyi does not export {kind.__name__}"


@every_method
def test_it_is_in_the_readme(name: str) -> None:
    assert re.search(rf"^\| `{name}` \|", README, re.MULTILINE), f"README's table has no row `{name}`"


def test_the_readmes_table_is_grouped_and_fits_a_screen() -> None:
    table = README[README.index("| method | soft target |") :].partition("\n\n")[0].splitlines()[2:]
    assert table[0].startswith("| **") and len(table) <= 32
    rows = [row.split("|")[1].strip() for row in table]
    groups = [row for row in rows if row.startswith("**")]
    assert sorted(set(rows) - set(groups)) == sorted(f"`{name}`" for name in METHODS)
    assert len(rows) == len(set(rows)) and not any(a in groups and b in groups for a, b in pairwise(rows))


@every_method
def test_it_has_a_golden_curve(name: str) -> None:
    assert name in CASES and (GOLDEN / f"{name}.json").exists(), "run: make golden"


@every_method
def test_it_has_mutants(name: str) -> None:
    assert any(mutant.file == file_of(name) for mutant in mutate.MUTANTS), (
        f"tests/mutate.py breaks {file_of(name)} nowhere"
    )


def test_every_mutant_finds_its_place() -> None:
    for mutant in mutate.MUTANTS:
        mutate.mutate((mutate.PACKAGE / mutant.file).read_text(), mutant)

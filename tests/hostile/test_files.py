"""Damaged recipes and students: one line, never a traceback."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from mutation import DEEP, damage, damage_bytes, damage_file

from teacherless.cli import main
from teacherless.errors import InputError
from teacherless.models.files import load_student
from teacherless.runs import recipes

COUNTS = [pytest.param(40, id="40"), pytest.param(300, id="300", marks=pytest.mark.exhaustive)]


def is_told(capsys: pytest.CaptureFixture[str], *argv: object) -> int:
    """Runs a command that may fail, with one printable line."""
    capsys.readouterr()
    code = main([str(word) for word in argv])
    err = capsys.readouterr().err
    assert code in (0, 2, 4), argv
    assert code == 0 or (err.count("\n") == 1 and "\x1b" not in err), err
    return code


def toml(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return "nan" if value != value else json.dumps(value).replace("Infinity", "inf").replace("null", '""')


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_recipes(count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On digits, small: a recipe that is still whole trains for one step."""
    rng, names, file = random.Random(count), recipes.names(), tmp_path / "mine.toml"
    for i in range(count):
        found = recipes.load(rng.choice(names))
        content = {**found.settings, "data": "digits", "published": found.published, "ours": {"value": 1.0}}
        for _ in range(rng.choice([1, 1, 2])):
            content = damage(content, rng) if isinstance(content, dict) else content
        text = "".join(f"{json.dumps(key)} = {toml(value)}\n" for key, value in content.items()) \
            if isinstance(content, dict) else toml(content)  # fmt: skip
        data = text.encode(errors="surrogatepass")
        file.write_bytes(damage_bytes(data, rng) if data and rng.random() < 0.3 else data)
        is_told(capsys, "list", "recipes", file)
        if is_told(capsys, "plan", "--recipe", file, "--small", "--lr", "nan") == 0:
            raise AssertionError("a rate that is no number was taken")
        argv = ["--recipe", file, "--data", "digits", "--small", "--steps", "1", "--device", "cpu"]
        if i % 8 == 0:
            is_told(capsys, "train", *argv, "--out", tmp_path / str(i))


@pytest.mark.parametrize("text", ["x = " + "[" * 10_000, "set = {a = " + "{a = " * 5_000, "lr = " + "9" * 5_000,
                                  ".".join(["set"] * 3_000) + " = 1", "set.x = " + "[" * 50 + "]" * 50,
                                  "data = '\\u0000'", 'data = "\\u0000"', 'published = 3', 'ours.value = "x"',
                                  'published.open = 3', 'lr = 2026-01-01', '"\\u001b[31m" = 1'])  # fmt: skip
def test_recipes_that_say_absurd_things(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.toml").write_text(text + "\n")
    for command in (["list", "recipes"], ["train", "plain", "--out", tmp_path / "out", "--steps", "1", "--recipe"]):
        assert is_told(capsys, *command, tmp_path / "mine.toml") in (0, 2)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("student") / "run"
    argv = ["--student", "small-cnn,width=2", "--steps", "1", "--train-samples", "64", "--out", str(out)]
    assert main(["train", "plain", *argv]) == 0
    return out / "students" / "student"


@pytest.mark.parametrize(
    "count", [pytest.param(300, id="300"), pytest.param(3000, marks=pytest.mark.exhaustive, id="3000")]
)
def test_damaged_students(count: int, student: Path, tmp_path: Path) -> None:
    """`load_student` reads them as every command does."""
    rng, refused = random.Random(count), 0
    for i in range(count):
        folder = tmp_path / str(i)
        shutil.copytree(student, folder)
        damage_file(folder / rng.choice(["config.json", "config.json", "model.safetensors"]), rng)
        try:
            load_student(folder)
        except InputError as error:
            refused += str(folder) in str(error) or pytest.fail(str(error))
        shutil.rmtree(folder)
    assert refused > count / 3


@pytest.mark.parametrize(
    "value", [DEEP, {"architecture": DEEP, "arguments": {}}, {"architecture": "x", "arguments": DEEP}]
)
def test_configs_that_are_deep(value: Any, student: Path, tmp_path: Path) -> None:
    shutil.copytree(student, tmp_path / "student")
    (tmp_path / "student" / "config.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"config\.json"):
        load_student(tmp_path / "student")

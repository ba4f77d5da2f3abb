"""Every recipe: it parses, says where its number is from, and runs end to end, small, on data in its own format."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from formats import write_cifar, write_imagenet, write_market, write_svhn, write_tiny
from rich.console import Console

from teacherless.cli import main
from teacherless.data import SOURCES
from teacherless.errors import InputError
from teacherless.methods import METHODS
from teacherless.models import MODELS, options
from teacherless.runs import recipes as recipe
from teacherless.runs.build import method_options
from teacherless.runs.config import Run, specs
from teacherless.study import show
from teacherless.training.settings import read

NAMES = recipe.names()
WRITERS: dict[str, Callable[[Path], object]] = {
    "cifar10": lambda root: write_cifar(root, 10, per_class=5),
    "cifar100": lambda root: write_cifar(root, 100, per_class=2, test_per_class=1),
    "svhn-extra": lambda root: write_svhn(root, per_class=3),
    "imagenet": lambda root: write_imagenet(root, classes=10, per_class=4),
    "tiny-imagenet": lambda root: write_tiny(root, classes=10, per_class=4),
    "market1501": lambda root: write_market(root, persons=5),
}


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run of `--recipe NAME --small --steps 2`, made once; teachers are trained first."""
    base = tmp_path_factory.mktemp("recipes")

    def data(name: str) -> Path:
        if not (base / name).exists():
            (base / name).mkdir()
            WRITERS[name](base / name)
        return base / name

    def run(name: str) -> Path:
        out = base / "runs" / name.replace("/", "-")
        if not (out / "summary.json").exists():
            found = recipe.load(name)
            teacher = ["--teacher", str(run(found.teacher))] if found.teacher else []
            argv = [
                "train",
                "--recipe",
                name,
                "--small",
                "--steps",
                "2",
                "--data-dir",
                str(data(found.settings["data"])),
            ]
            torch.set_num_threads(1)
            assert main([*argv, *teacher, "--out", str(out)]) == 0
        return out

    return run


def sample() -> set[str]:
    """A recipe of each method and data set, of a small network where there is one."""
    first: dict[tuple[str, str], str] = {}
    for name in sorted(NAMES, key=lambda name: not re.search("resnet32|resnet18|mobilenet", name)):
        settings = recipe.load(name).settings
        first.setdefault((settings["method"], settings["data"]), name)
    return set(first.values())


SAMPLE = sample()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SAMPLE else pytest.mark.exhaustive) for n in NAMES]
)
def test_a_recipe_runs_small(name: str, small: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    out = small(name)
    assert capsys.readouterr().err == ""
    found = recipe.load(name)
    settings = json.loads((out / "run.json").read_text())["settings"]
    assert (settings["method"], settings["steps"], settings["small"]) == (found.settings["method"], 2, True)
    summary = json.loads((out / "summary.json").read_text())
    metric = "test_map" if found.settings["data"] == "market1501" else "test_top1"
    assert all(0 <= row[metric] <= 100 for row in summary["students"].values())


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_where_its_number_is_from(name: str) -> None:
    found = recipe.load(name)
    assert {"what", "value", "metric", "source"} <= found.published.keys() <= set(recipe.PUBLISHED)
    value = found.published["value"]
    assert all(0 < number < 100 for number in (value.values() if isinstance(value, dict) else [value]))
    run = read(Run, found.settings)
    assert run.val_fraction == 0 and not run.small, "the papers train on all of train"
    method_options(METHODS[run.method], run.method, run.set)
    assert all(spec.arguments.keys() <= options(spec.name).keys() for spec in specs(run) if spec.name in MODELS)
    assert found.teacher is None or found.teacher in NAMES
    assert all(len(line) < 250 for line in found.published.get("open", []))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("baselines/ps-kd-cifar100-resnet18", "20.82, 1.77"),
        ("dml/market1501-mobilenetx2", "52.15, 76.90, 60.97, 83.48"),
    ],
)
def test_values_stand_in_the_order_of_their_metric(name: str, values: str) -> None:
    assert recipe.shown(recipe.load(name).published) == values


def test_the_tables_are_there() -> None:
    for part, count in (("dml", 25), ("one", 40), ("ddgsd", 12), ("baselines", 15)):
        assert sum(name.startswith(f"{part}/") for name in NAMES) >= count


def test_a_row_beats_its_parts_and_they_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "paper.toml").write_text(
        'defaults = { lr = 0.1, epochs = 3, open = ["a"] }\n'
        'parts = { long = { epochs = 9, set = { x = 1, y = 1 }, open = ["b"] }, two = { set = { y = 2 } } }\n'
        'rows = { "p/one" = { parts = ["long", "two"], method = "plain", lr = 0.2, open = ["c"] } }\n'
    )
    monkeypatch.setattr(recipe, "folder", lambda: tmp_path)
    recipe._rows.cache_clear()
    try:
        found = recipe.load("p/one")
    finally:
        recipe._rows.cache_clear()
    assert found.settings == {"method": "plain", "lr": 0.2, "epochs": 9, "set": {"x": 1, "y": 2}}
    assert found.published == {"open": ["a", "b", "c"]}


def test_list_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "recipes"]) == 0
    shown = capsys.readouterr().out
    assert "dml/cifar100-resnet32x2" in shown and "71.19, 70.75" in shown and len(shown.splitlines()) >= len(NAMES)
    assert main(["list", "recipes", "dml/cifar100-resnet32x2"]) == 0
    shown = capsys.readouterr().out
    assert "Table 2" in shown and "ours" not in shown and "decay_epochs = 60" in shown and "1e-4" in shown
    assert main(["list", "recipes", "dml/cifar100-resnet32"]) == 2
    assert "did you mean 'dml/cifar100-resnet32x2'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["recipes", "methods", "models", "data"])
@pytest.mark.parametrize("width", [None, 60, 120])
def test_names_in_a_list_are_never_cut(
    kind: str, width: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Piped (None), a table is as wide as it must be; on a terminal the last columns go before a name is cut."""
    if width is not None:
        monkeypatch.setattr(show, "console", lambda: Console(width=width, force_terminal=True, color_system=None))
    keys = {"recipes": NAMES, "methods": METHODS, "models": MODELS, "data": SOURCES}[kind]
    assert main(["list", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if line.strip()} >= set(keys)
    if width is None:
        assert sum(1 for line in lines if line.startswith("  ") and line.strip()) == len(keys) + 1, "no cell wraps"
    else:
        assert max(map(len, lines)) <= width
        if kind == "recipes":
            assert ("metric" in lines[1]) == (width == 120) and "what" not in lines[1]


def test_numbers_that_nobody_checked_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    unchecked = {name for name in NAMES if recipe.load(name).published.get("unchecked")}
    assert len(unchecked) == 43
    baselines = {name.removeprefix("baselines/") for name in unchecked if name.startswith("baselines/")}
    assert {name.split("-")[0] for name in baselines} == {"frskd"}
    assert main(["list", "recipes"]) == 0
    out = capsys.readouterr().out
    marked = {line.split()[0] for line in out.splitlines() if " * " in line and line.startswith("  ")}
    assert marked == unchecked and out.splitlines()[-1] == f"* {recipe.UNCHECKED}"
    assert main(["list", "recipes", "one/svhn-resnet32"]) == 0
    assert f"published: branches 1.83 (top-1 error %; ONE (arXiv:1806.04606), Table 1; {recipe.UNCHECKED})" in (
        capsys.readouterr().out
    )
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert f"{len(unchecked)} of the {len(NAMES)}" in readme


@pytest.mark.parametrize(
    "name", ["one/svhn-resnet32-alone", pytest.param("dml/market1501-mobilenetx2", marks=pytest.mark.slow)]
)
def test_small_downloads_nothing_and_says_that_it_is_a_smoke_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEACHERLESS_CACHE", str(tmp_path / "cache"))
    assert main(["train", "--recipe", name, "--small", "--steps", "1", "--out", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert show.SMOKE in out and "ship " not in out
    assert not (tmp_path / "cache").exists()
    assert main(["evaluate", str(tmp_path / "run")]) == 0, "on the same noise"


def fail(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("teacherless: "), err
    return err


def test_what_recipes_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHERLESS_CACHE", str(tmp_path / "cache"))
    line = fail(capsys, "train", "--recipe", "dml/cifar100-resnet23x2")
    assert "unknown recipe 'dml/cifar100-resnet23x2'; did you mean 'dml/cifar100-resnet32x2'" in line
    line = fail(capsys, "train", "--recipe", "dml/cifar100-wrn-28-10-distills-resnet32")
    assert "--recipe dml/cifar100-wrn-28-10-alone --out DIR; then give --teacher DIR" in line
    line = fail(capsys, "train", "--recipe", "dml/market1501-mobilenetx2")
    assert "download Market-1501" in line and "146 MB" in line and str(tmp_path / "cache") in line
    line = fail(capsys, "train", "--recipe", "one/imagenet-resnet18")
    assert "155 GB" in line and str(tmp_path / "cache") in line
    line = fail(capsys, "train", "--recipe", "dml/cifar100-resnet32x2", "--data-dir", str(tmp_path))
    assert "cifar-100-binary.tar.gz (169 MB)" in line and str(tmp_path) in line
    assert "METHOD" in fail(capsys, "train")
    assert "did you mean 'randaug" in fail(capsys, "train", "plain", "--aug", "randomaug")


def test_a_file_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('method = "plain"\nlr = 0.1\n[published]\nvalue = 12.5\n[ours]\nvalue = 13.0\nseeds = 3\n')
    found = recipe.load(file)
    assert found.settings == {"method": "plain", "lr": 0.1}
    assert recipe.shown(found.published) == "12.50" and "ours: 13.00, seeds 3" in recipe.card(found)
    out = tmp_path / "run"
    assert main(["train", "--recipe", str(file), "--steps", "1", "--out", str(out)]) == 0
    assert json.loads((out / "run.json").read_text())["settings"]["method"] == "plain"
    assert "published: 12.50\n" in capsys.readouterr().out
    file.write_text("published = 3\n")
    with pytest.raises(InputError, match="published: found 3; must be a valid dictionary"):
        recipe.load(file)

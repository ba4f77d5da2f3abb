"""Real runs of a few steps, and everything that is found in them."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from teacherless.cli import main
from teacherless.errors import InputError
from teacherless.method import Batch
from teacherless.methods.plain import Plain
from teacherless.models import create
from teacherless.runs.config import Run
from teacherless.runs.execute import execute
from teacherless.study import findings, plots, plots_of_networks
from teacherless.study import read_runs as module
from teacherless.study.findings import gate_weights, look
from teacherless.study.read_runs import analyse, read
from teacherless.training.lifecycle import train
from teacherless.training.settings import read as read_settings

COMMON: dict[str, Any] = {"epochs": 2, "train_samples": 200, "student": ("small-cnn,width=4",), "lr": 0.2}
ALWAYS = {"training-curves", "entropy-per-epoch", "posteriors", "reliability", "weight-noise", "random-direction",
          "unit-direction", "consistency", "features-pca", "features-tsne"}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """Fewer samples and draws than a user gets."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("SAMPLES", 60),
            ("SHOWN", 20),
            ("DRAWS", 2),
            ("NOISE", (0.1, 0.2)),
            ("DISTANCE", (0.5,)),
            ("LENGTH", (0.0, 1.0)),
        ):
            patch.setattr(module if name == "SAMPLES" else findings, name, value)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison's cells, and a cohort of three beside them."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        for method, peers in (("plain", None), ("dml", 2), ("one", None), ("kd", None)):
            teacher = out / "cells" / "plain-s0" if method == "kd" else None
            run = Run(method=method, seed=seed, peers=peers, teacher=teacher, **COMMON)
            execute(run, out / "cells" / f"{method}-s{seed}", quiet=True)
    execute(Run(method="dml", peers=3, **COMMON), out / "three", quiet=True)
    return out


@pytest.fixture(scope="module")
def tables(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What all runs together give, by name."""
    before = {f: f.read_bytes() for f in runs.rglob("*") if f.is_file()}
    out = tmp_path_factory.mktemp("analysis")
    files = analyse([runs, runs / "three"], out)
    assert {f: f.read_bytes() for f in runs.rglob("*") if f.is_file()} == before, "a run was changed"
    assert sorted(files) == sorted(out.iterdir())
    assert all(f.with_suffix(end) in files for f in files[1:] for end in (".json", ".png", ".svg"))
    assert files[0] == out / "index.html"
    page = files[0].read_text()
    assert all(f'src="{f.name}"' in page for f in files if f.suffix == ".svg")
    return {f.stem: json.loads(f.read_text()) for f in files if f.suffix == ".json"}


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_everything_that_applies_is_there(tables: dict[str, Any]) -> None:
    assert tables.keys() == ALWAYS | {
        "accuracy", "class-gain", "dml-against-kd", "variance", "cohort-size", "dml-targets", "gates",
        *(f"{kind}-{name}" for kind in ("agreement", "similarity")
          for name in ("plain", "dml-peers-2", "dml-peers-3", "one", "kd")),
    }  # fmt: skip
    assert list(tables["posteriors"]["test"]) == ["plain", "dml peers=2", "dml peers=3", "one", "kd"]


def test_tables_agree_with_the_runs(runs: Path, tables: dict[str, Any]) -> None:
    for label, name in (("plain", "plain"), ("dml peers=2", "dml"), ("one", "one")):
        for seed in (0, 1):
            said = summary(runs / "cells" / f"{name}-s{seed}")
            each = [student["test_top1"] for student in said["students"].values()]
            assert tables["accuracy"]["per_seed"][label][str(seed)] == pytest.approx(sum(each) / len(each))
    against = tables["dml-against-kd"]
    assert against["differences"].keys() == {"dml peers=2", "dml peers=3"}
    seeds = [against["per_seed"]["dml peers=2"][s] - against["per_seed"]["kd"][s] for s in ("0", "1")]
    assert against["differences"]["dml peers=2"]["mean"] == pytest.approx(sum(seeds) / 2)
    three = summary(runs / "three")
    assert tables["agreement-dml-peers-3"]["top1"] == pytest.approx(
        [s["test_top1"] for s in three["students"].values()]
    )
    assert tables["agreement-dml-peers-3"]["ensemble"] == pytest.approx(three["ensemble"]["test_top1"])
    rows = {(row["kind"], row["size"]): row for row in tables["cohort-size"]}
    assert rows.keys() == {("dml", 2), ("dml", 3), ("independent", 1), ("independent", 2)}
    assert rows["dml", 3]["ensemble"] == pytest.approx(three["ensemble"]["test_top1"])
    assert rows["dml", 2]["cohorts"] == 2 and rows["independent", 1]["cohorts"] == 2
    assert tables["dml-targets"]["gradient_difference"] < 1e-6
    assert tables["variance"]["one"]["networks"] == 3 and tables["variance"]["plain (independent)"]["networks"] == 2
    assert len(tables["training-curves"]["plain"]) == 2 and tables["training-curves"]["plain"][0]["epoch"] == [1, 2]
    entropy = tables["entropy-per-epoch"]["one"][0]["val_entropy"][-1]
    assert 0 < entropy < math.log(10)
    pooled = tables["reliability"]["plain"]
    assert sum(b["count"] for b in pooled) == 2 * 359
    assert tables["consistency"]["plain"]["distance"] < 0.93, "two views of one image are nearer than two images"


def test_gate_weights_are_those_of_the_trained_gate(runs: Path, tables: dict[str, Any]) -> None:
    folder = runs / "cells" / "one-s0"
    groups, source = read([folder])
    seen = groups["one"][0]
    weights = gate_weights(seen, source)
    assert weights is not None and weights.shape == (359, 3)
    assert weights.mean(0).tolist() == pytest.approx(tables["gates"]["mean"])
    mixed = (weights.T[..., None] * torch.stack(list(seen.on_test.values()))).sum(0)  # the ensemble, from its parts
    right = (mixed.argmax(-1) == seen.test_labels).double().mean()
    assert 100 * float(right) == pytest.approx(summary(folder)["ensemble"]["test_top1"])
    shutil.copytree(folder, runs / "bare", ignore=shutil.ignore_patterns("checkpoints"))
    assert gate_weights(seen._replace(folder=runs / "bare"), source) is None
    shutil.rmtree(runs / "bare")


def test_one_run_alone(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for figures in (plots, plots_of_networks):  # drawn, not rendered
        monkeypatch.setattr(figures, "save", lambda figure, path: [path.with_suffix(".png")])
    folder = tmp_path / "run"
    shutil.copytree(runs / "cells" / "plain-s0", folder)
    assert main(["analyse", str(folder)]) == 0
    assert {f.stem for f in (folder / "analysis").iterdir()} == ALWAYS | {"index"}
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == f"open {folder / 'analysis' / 'index.html'}"
    assert {line.partition(":")[0] for line in lines} == ALWAYS
    assert all(len(line) < 200 for line in lines)
    assert main(["analyse", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [f"{name}: {says}" for name, says in found["findings"].items()] == lines
    assert found["files"][0] == str(folder / "analysis" / "index.html")


def test_look_reads_networks_with_and_without_named_insides() -> None:
    net = create("small-cnn", num_classes=3, in_channels=1, width=2)
    x = torch.randn(5, 1, 8, 8)
    batches = [Batch((x[:3],), torch.tensor([0, 1, 2])), Batch((x[3:],), torch.tensor([1, 1]))]
    sight = look(net.train(), batches)
    assert net.training and sight.features is not None
    with torch.no_grad():
        torch.testing.assert_close(sight.logits, net.eval()(x))
        torch.testing.assert_close(sight.features, net.embed(x))
    assert sight.labels.tolist() == [0, 1, 2, 1, 1]
    assert look(nn.Sequential(net), batches).features is None


def test_what_cannot_be_analysed(runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match="nothing: is neither a finished run nor a comparison"):
        analyse([tmp_path / "nothing"])
    cell = runs / "cells" / "plain-s0"
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--out: cannot write to"):
        analyse([cell], tmp_path / "file")
    with pytest.raises(InputError, match="is the same run as"):
        analyse([cell, cell])
    other = tmp_path / "other"
    shutil.copytree(cell, other)
    about = json.loads((other / "run.json").read_text())
    about["data"]["fingerprint"] = "0"
    (other / "run.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match="was trained on other data than"):
        analyse([cell, other])
    x, y = torch.randn(4, 1, 8, 8), torch.arange(4)
    own = tmp_path / "own"
    train(Plain(create("small-cnn", num_classes=4, in_channels=1, width=2)), [(x, y)], out=own, epochs=1, quiet=True)
    with pytest.raises(InputError, match="was trained from Python"):
        analyse([own])
    (tmp_path / "half" / "cells" / "plain-s0").mkdir(parents=True)
    with caplog.at_level(logging.WARNING), pytest.raises(InputError, match="half: holds no finished run"):
        analyse([tmp_path / "half"])
    assert "plain-s0: is not finished; left out" in caplog.text


def test_labels_say_what_sets_runs_apart() -> None:
    def run(**settings: Any) -> Run:
        return read_settings(Run, settings)

    found = [run(method="dml", seed=0), run(method="dml", seed=1), run(method="plain")]
    assert module._labels(["dml", "dml", "plain"], found) == ["dml", "dml", "plain"]
    found = [run(method="dml", peers=2), run(method="dml", peers=4, set={"temperature": 2}), run(method="plain", lr=1)]
    assert module._labels(["dml", "dml", "plain"], found) == ["dml peers=2", "dml peers=4 temperature=2", "plain"]
    assert module._labels(["plain-2x-longer", "plain"], [run(method="plain", epochs=60), run(method="plain")]) == [
        "plain-2x-longer", "plain"]  # fmt: skip


def test_cohorts_of_one_kind_differ_in_nothing_but_their_number() -> None:
    same = [{"peers": 2}, {"peers": 3}, {"student": ("resnet8*4",)}, {"student": ("resnet8", "resnet8")}]
    other = [{"peers": 2, "set": {"weight": 0}}, {"peers": 3, "set": {"mimicry": "dml_e"}}]
    found = [read_settings(Run, {"method": "dml", "student": ("resnet8",), **each}) for each in same + other]
    kinds = module._labels(["dml"] * 6, [module._any_number(run) for run in found])
    assert kinds == ["dml"] * 4 + ["dml weight=0", "dml mimicry=dml_e"]

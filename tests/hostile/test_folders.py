"""Folders that are JSON but not ours, or not even JSON: one line that says so, never a traceback."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mutation import damage, damaged_copy
from PIL import Image
from safetensors.torch import save

from teacherless.cli import main
from teacherless.errors import InputError
from teacherless.files import schemas
from teacherless.study.findings import gate_weights
from teacherless.study.read_runs import read

SMALL = ["--data", "digits", "--train-samples", "64", "--student", "small-cnn,width=2", "--steps", "2"]
COUNTS = [pytest.param(12, id="12"), pytest.param(300, id="300", marks=pytest.mark.exhaustive)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of DML, a comparison of plain, two images."""
    base = tmp_path_factory.mktemp("whole")
    assert main(["train", "dml", *SMALL, "--peers", "2", "--out", str(base / "run")]) == 0
    argv = ["compare", *SMALL, "--methods", "plain", "--seeds", "2", "--jobs", "1", "--out", str(base / "comparison")]
    assert main(argv) == 0
    (base / "photos").mkdir()
    for i in range(2):
        Image.fromarray(np.full((8, 8), 80 * i, np.uint8)).save(base / "photos" / f"{i}.png")
    return base


def said(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """What a command says on stderr: at most one line, and then with an exit code of its own."""
    capsys.readouterr()
    code = main([str(word) for word in argv])
    err = capsys.readouterr().err
    assert code in (0, 1, 2, 4), argv
    assert code == 0 or err.count("\n") == 1 or argv[0] == "compare", err
    assert "\x1b" not in err
    return err


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_run_folders(count: int, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(count)
    for i in range(count):
        out = tmp_path / str(i)
        what = damaged_copy(whole / "run", out, rng)
        print(i, what)
        said(capsys, "evaluate", out, "--split", "val")
        said(capsys, "predict", out, whole / "photos")
        said(capsys, "train", "--resume", "--out", out)
        if i % 5 == 0:
            said(capsys, "train", "kd", *SMALL, "--teacher", out, "--out", tmp_path / f"kd{i}")
        if i % 5 == 1:
            with contextlib.suppress(InputError):
                read([out])  # as analyse reads them
        shutil.rmtree(out)


@pytest.mark.parametrize("count", COUNTS)
def test_forged_checkpoints(count: int, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What they hold is not a run's, and their checksums are right."""
    rng = random.Random(count)
    for i in range(count):
        out = tmp_path / str(i)
        shutil.copytree(whole / "run", out)
        (out / "summary.json").unlink()
        for folder in (out / "checkpoints").iterdir():
            state = folder / "state.json"
            state.write_text(json.dumps(damage(json.loads(state.read_text()), rng)))
            files = [state, folder / "tensors.safetensors"]
            sums = (f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
            (folder / "SHA256SUMS").write_text("".join(sums))
        said(capsys, "train", "--resume", "--out", out)
        shutil.rmtree(out)


@pytest.mark.parametrize("count", [pytest.param(2, id="2"), pytest.param(60, id="60", marks=pytest.mark.exhaustive)])
def test_a_damaged_cell_is_named_and_left_out(
    count: int, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(count)
    for i in range(count):
        out = tmp_path / str(i)
        shutil.copytree(whole / "comparison", out)
        cell = out / "cells" / f"plain-s{i % 2}"
        shutil.rmtree(cell)
        damaged_copy(whole / "comparison" / "cells" / f"plain-s{i % 2}", cell, rng)
        argv = ["compare", *SMALL, "--methods", "plain", "--seeds", "2", "--jobs", "1", "--out", str(out)]
        assert main(argv) in (0, 2, 4)
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        shutil.rmtree(out)


def test_what_a_broken_cell_leaves(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "comparison"
    shutil.copytree(whole / "comparison", out)
    broken = out / "cells" / "plain-s1"
    argv = ["compare", *SMALL, "--methods", "plain", "--seeds", "2", "--jobs", "1", "--out", str(out)]
    for file, content, words in (
        ("summary.json", "[]", "summary.json: found []"),
        ("summary.json", '{"students": {"\\u001b[2J": {}}}', "summary.json: "),
        ("metrics.jsonl", '{"epoch": 0}\n', "metrics.jsonl, line 1: seconds: is required"),
        ("metrics.jsonl", "", "metrics.jsonl: has no epoch"),
        ("run.json", '{"settings": 3}', "run.json: settings: found 3"),
        ("students/student/config.json", "{}", "config.json"),
    ):
        before = (broken / file).read_text()
        (broken / file).write_text(content)
        capsys.readouterr()
        assert main(argv) == 4
        shown = capsys.readouterr().out
        assert (
            "\x1b" not in shown and f"plain, seed 1 failed: {broken}" in " ".join(shown.split()) and words in shown
        ), shown
        assert json.loads((out / "compare.json").read_text())["methods"]["plain"]["per_seed"].keys() == {"0"}
        caplog.clear()
        groups, _ = read([out])  # as analyse reads them
        assert [seen.run.seed for seen in groups["plain"]] == [0]
        assert words in caplog.text and "left out" in caplog.text
        (broken / file).write_text(before)


def test_a_torn_last_line_of_metrics(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(whole / "run", tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 1, "train/lo')
    assert schemas.lines(tmp_path / "run") == schemas.lines(whole / "run")
    assert said(capsys, "evaluate", tmp_path / "run") == ""
    read([tmp_path / "run"])  # as analyse reads it


def test_a_student_named_from_where_it_stands(
    whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run is found, and with it the data, from every folder."""
    tables = []
    for here, name in ((".", "run/students/peer0"), ("run/students", "peer0"), ("run/students/peer0", ".")):
        monkeypatch.chdir(whole / here)
        assert main(["evaluate", name]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1] == tables[2]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
@pytest.mark.parametrize("name", ["run.json", "summary.json", "metrics.jsonl", "students/peer0/config.json",
                                  "students/peer0/model.safetensors", "checkpoints/*/state.json"])  # fmt: skip
def test_a_pipe_of_the_name_of_a_file(
    name: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be read for ever."""
    run = tmp_path / "run"
    shutil.copytree(whole / "run", run)
    for path in list(run.glob(name)):
        path.unlink()
        os.mkfifo(path)
    if name.startswith("checkpoints"):
        (run / "summary.json").unlink()
    for words in (["evaluate", run], ["predict", run, whole / "photos"], ["train", "--resume", "--out", run]):
        said(capsys, *words)
    with contextlib.suppress(InputError):
        read([run])


def test_a_gigabyte_of_metrics(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(whole / "run", tmp_path / "run")
    for name in ("metrics.jsonl", "summary.json"):
        os.truncate(tmp_path / "run" / name, 2**30)
    with pytest.raises(InputError, match=r"found 1,073,741,824 bytes; must be 67,108,864 at most"):
        schemas.lines(tmp_path / "run")
    assert "must be 67,108,864 at most" in said(capsys, "evaluate", tmp_path / "run")


def test_a_gate_that_is_not_of_this_run(tmp_path: Path) -> None:
    """analyse reads ONE's gate from the checkpoint: one that was forged is one line."""
    run = tmp_path / "run"
    assert main(["train", "one", *SMALL, "--out", str(run)]) == 0
    for folder in (run / "checkpoints").iterdir():
        (folder / "tensors.safetensors").write_bytes(save({"method/gate.weight": torch.zeros(1)}))
        files = [folder / "state.json", folder / "tensors.safetensors"]
        sums = (f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
        (folder / "SHA256SUMS").write_text("".join(sums))
    groups, source = read([run])
    with pytest.raises(InputError, match="is no checkpoint of this run: RuntimeError"):
        gate_weights(groups["one"][0], source)

"""What can happen to a run, as a user meets it: each ends in the last good state, and one clear line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from test_checkpoint import flip_a_bit
from test_cli import fail

from teacherless.cli import main

SMALL = ["--student", "small-cnn,width=4", "--steps", "3"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "dml"
    assert main(["train", "dml", *SMALL, "--peers", "2", "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run of one's own."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_flipped_bit_in_a_student(file: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody takes it for what summary.json was written of; --resume brings back the bytes that were there."""
    student = run / "students" / "peer1"
    before = (student / file).read_bytes()
    flip_a_bit(student / file)
    picture = run / "picture.png"
    commands = [
        ("evaluate", str(run)),
        ("evaluate", str(student)),
        ("predict", str(student), str(picture)),
        ("train", "kd", *SMALL, "--teacher", str(student), "--out", str(run / "kd")),
    ]
    for command in commands:
        line = fail(capsys, *command)
        assert f"{student / file}: is missing or damaged, by its checksum in summary.json" in line
    assert main(["train", "--out", str(run), "--resume"]) == 0
    assert (student / file).read_bytes() == before
    assert main(["evaluate", str(run)]) == 0


def test_checksums_stand_in_the_summary(run: Path) -> None:
    files = json.loads((run / "summary.json").read_text())["files"]
    assert files.keys() == {"metrics.jsonl", *(f"students/{peer}/{file}" for peer in ("peer0", "peer1")
                                               for file in ("config.json", "model.safetensors"))}  # fmt: skip


@pytest.mark.parametrize("method", [["plain"], ["dml", "--peers", "2"]], ids=" ".join)
def test_what_blows_up_in_the_last_step_is_not_shipped(
    method: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--student", "small-cnn,width=4", "--lr", "3e37", "--out", str(tmp_path / "run")]
    assert main(["train", *method, *small, "--steps", "1"]) == 4
    printed = capsys.readouterr()
    assert "ship" not in printed.out
    assert printed.err.count("\n") == 1
    assert "training diverged: predictions of " in printed.err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", "run.json", "metrics.jsonl", "checkpoints"}
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert None in line.values()

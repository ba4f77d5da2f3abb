"""export: what is written is read again without us, and predicts the same; or nothing is kept."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import teacherless as tl
from teacherless.cli import main
from teacherless.data import load
from teacherless.data.augment.distort import normalise
from teacherless.files.disk import PART
from teacherless.runs import export as exporting

Shown = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A short run of a method, once for all tests."""
    made: dict[str, Path] = {}

    def get(method: str) -> Path:
        if method not in made:
            out = made[method] = tmp_path_factory.mktemp("runs") / method
            words = ["train", method, "--student", "small-cnn,width=4", "--epochs", "1", "--out", str(out), "--json"]
            assert main(words) == 0
        return made[method]

    return get


def export(folder: Path, out: Path, capsys: Shown, *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["export", str(folder), "--out", str(out), "--json", *words]) == 0
    return dict(json.loads(capsys.readouterr().out))


def digits(count: int = 20) -> torch.Tensor:
    split = load("digits").val
    assert split is not None
    return split.sample(torch.arange(count))


def test_a_program(run: Callable[[str], Path], tmp_path: Path, capsys: Shown) -> None:
    found = export(run("dml"), tmp_path / "x", capsys, "--format", "torch", "--dynamic-batch")
    assert found["images"] == 256 and found["difference"] == 0 and found["agree"] == 1
    assert list(found["ms"]) == ["1", "7", "64"] and min(found["ms"].values()) > 0
    assert found["size"] == (tmp_path / "x" / "model.pt2").stat().st_size
    program = torch.export.load(tmp_path / "x" / "model.pt2").module()
    chosen = json.loads((run("dml") / "summary.json").read_text())["chosen"]
    net, config = tl.load_student(run("dml") / "students" / chosen)
    x = normalise(digits(), config["mean"], config["std"])
    assert torch.allclose(program(x), net.eval()(x), atol=1e-6)
    about = json.loads((tmp_path / "x" / "config.json").read_text())
    assert about["classes"] == config["classes"] and about["export"]["batch"] == "any"


def test_an_ensemble_that_reads_pixels(run: Callable[[str], Path], tmp_path: Path, capsys: Shown) -> None:
    words = ["--format", "torch", "--which", "ensemble", "--with-preprocessing"]
    export(run("dml"), tmp_path / "x", capsys, *words)
    program = torch.export.load(tmp_path / "x" / "model.pt2").module()
    nets = [tl.load_student(folder) for folder in sorted((run("dml") / "students").iterdir())]
    x = normalise(digits(1), nets[0].config["mean"], nets[0].config["std"])
    mean = torch.stack([student.net.eval()(x).softmax(1) for student in nets]).mean(0)
    assert torch.allclose(program(digits(1)).softmax(1), mean, atol=1e-5)


@pytest.mark.slow
def test_an_ensemble_with_a_gate(run: Callable[[str], Path], tmp_path: Path, capsys: Shown) -> None:
    words = ["--format", "torch", "--which", "ensemble"]
    assert export(run("one"), tmp_path / "x", capsys, *words)["name"] == "ensemble"
    without = shutil.copytree(run("one"), tmp_path / "without")
    shutil.rmtree(without / "checkpoints")
    assert main(["export", str(without), *words]) == 2
    assert "own weights" in capsys.readouterr().err


@pytest.mark.slow
def test_an_ensemble_with_a_gate_over_somebody_elses_network(zoo: None, tmp_path: Path, capsys: Shown) -> None:
    """A trunk that stops half-way, and branches that repeat what it said, are one program."""
    student = "timm/test_vit,img_size=8,patch_size=2"
    words = ["train", "one", "--student", student, "--steps", "2", "-b", "16", "--out", str(tmp_path / "run"), "--json"]
    assert main(words) == 0
    words = ["--which", "ensemble", "--dynamic-batch", "--format"]
    assert export(tmp_path / "run", tmp_path / "torch", capsys, *words, "torch")["difference"] == 0
    if importlib.util.find_spec("onnxscript") and importlib.util.find_spec("onnxruntime"):
        assert export(tmp_path / "run", tmp_path / "onnx", capsys, *words, "onnx")["agree"] == 1


@pytest.mark.parametrize("half", [(), pytest.param(("--half",), marks=pytest.mark.slow)])
def test_weights(run: Callable[[str], Path], tmp_path: Path, capsys: Shown, half: tuple[str, ...]) -> None:
    found = export(run("dml"), tmp_path / "x", capsys, "--format", "safetensors", "--which", "peer1", *half)
    again, before = tl.load_student(tmp_path / "x").net, tl.load_student(run("dml") / "students" / "peer1").net
    same = [torch.equal(value, before.state_dict()[key]) for key, value in again.state_dict().items()]
    assert all(same) != bool(half)
    assert (found["difference"] == 0) != bool(half)


@pytest.mark.parametrize("which", [pytest.param("best", marks=pytest.mark.slow), "ensemble"])
def test_onnx(run: Callable[[str], Path], tmp_path: Path, capsys: Shown, which: str) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    words = ["--format", "onnx", "--dynamic-batch", "--which", which]
    found = export(run("dml"), tmp_path / "x", capsys, *words)
    assert 0 <= found["difference"] <= 1e-4 and found["agree"] == 1 and list(found["ms"]) == ["1", "7", "64"]
    assert [file.name for file in sorted((tmp_path / "x").iterdir())] == ["README.md", "config.json", "model.onnx"]


def test_what_predicts_something_else_is_not_kept(
    run: Callable[[str], Path], tmp_path: Path, capsys: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = exporting._write

    def wrong(file: Path, program: exporting.Program, *rest: Any) -> None:
        with torch.no_grad():
            next(program.parameters()).flatten()[0].add_(1e-3)
        written(file, program, *rest)

    monkeypatch.setattr(exporting, "_write", wrong)
    assert main(["export", str(run("dml")), "--format", "torch", "--out", str(tmp_path / "x")]) == 2
    assert "does not predict what the network does" in capsys.readouterr().err
    assert not list(tmp_path.glob(f"{PART}*")) and not (tmp_path / "x").exists()


def test_teacherless_is_not_there(run: Callable[[str], Path], tmp_path: Path, capsys: Shown,
                                  monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """A file that needs us is refused: here a program that cannot be read at all."""
    monkeypatch.setattr(exporting, "_write", lambda file, *_: file.write_bytes(b"import teacherless"))
    assert main(["export", str(run("dml")), "--format", "torch", "--out", str(tmp_path / "x")]) == 2
    assert "cannot be used without teacherless" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "torch", "--which", "peer7"], "unknown student 'peer7'; did you mean 'peer"),
        (["--format", "safetensors", "--which", "ensemble"], "--which ensemble: is of a program"),
        (["--format", "safetensors", "--dynamic-batch"], "--dynamic-batch: is of a program"),
        (["--format", "torch", "--data", "fashion-mnist"], "fashion-mnist is 28x28"),
    ],
)
def test_wrong_arguments(run: Callable[[str], Path], capsys: Shown, words: list[str], said: str) -> None:
    run("dml")
    capsys.readouterr()
    assert main(["export", str(run("dml")), *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_runs_without(run: Callable[[str], Path], tmp_path: Path, capsys: Shown,
                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    assert main(["export", str(run("plain")), "--format", "torch", "--which", "ensemble"]) == 2
    assert "plain has no ensemble" in capsys.readouterr().err
    unfinished = shutil.copytree(run("plain"), tmp_path / "unfinished")
    (unfinished / "summary.json").unlink()
    assert main(["export", str(unfinished), "--format", "torch"]) == 2
    assert "is not finished" in capsys.readouterr().err
    shutil.rmtree(unfinished / "students")
    assert main(["export", str(unfinished), "--format", "torch"]) == 2
    assert "not finished" in capsys.readouterr().err
    alone = shutil.copytree(run("plain") / "students" / "student", tmp_path / "alone")
    assert main(["export", str(alone), "--format", "torch"]) == 2
    assert "--data:" in capsys.readouterr().err
    assert main(["export", str(alone), "--format", "torch", "--data", "digits", "--out", str(alone)]) == 2
    assert "is there already" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", str(run("plain")), "--format", "onnx"]) == 2
    assert "pip install 'teacherless[onnx]'" in capsys.readouterr().err

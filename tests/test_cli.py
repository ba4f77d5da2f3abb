"""The command line as a user meets it: what it writes, and one line for everything that can be wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import teacherless as tl
from teacherless.cli import main
from teacherless.models.files import load_student

FAST = ["--student", "small-cnn", "--epochs", "2"]
METRICS = {"epoch", "step", "lr", "train/loss", "train/ce", "img_per_s", "seconds"}


def fail(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 2) -> str:
    """Run, expect the exit code, one line on stderr and no traceback; returns the line."""
    assert main(argv) == code
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    assert err.startswith("teacherless: ")
    assert "Traceback" not in err
    return err


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "dml"
    torch.set_num_threads(1)
    assert main(["train", "dml", *FAST, "--peers", "2", "--out", str(out), "--set", "temperature=2"]) == 0
    return out


def test_run_folder(finished: Path) -> None:
    run = json.loads((finished / "run.json").read_text())
    assert {"versions", "commit", "device", "engine", "data", "settings"} <= run.keys()
    assert run["settings"]["method"] == "dml"
    assert run["settings"]["set"] == {"temperature": "2"}
    assert run["data"]["fingerprint"]
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    for line in lines:
        assert METRICS | {"train/mimicry"} <= line.keys()
        assert {
            f"{kind}/{peer}" for kind in ("train/top1", "val/top1", "val/nll") for peer in ("peer0", "peer1")
        } <= line.keys()
        assert line["train/loss"] == pytest.approx(line["train/ce"] + line["train/mimicry"])
    summary = json.loads((finished / "summary.json").read_text())
    assert summary.keys() == {
        "method",
        "data",
        "seed",
        "epochs",
        "steps",
        "files",
        "students",
        "ensemble",
        "doctor",
        "chosen",
        "train_seconds",
        "img_per_s",
    }
    assert summary["students"].keys() == {"peer0", "peer1"}
    for row in summary["students"].values():
        assert row.keys() == {"params", "val_top1", "test_top1", "test_balanced", "test_nll", "test_ece"}
        assert 50 < row["test_top1"] <= 100
    best = max(summary["students"].values(), key=lambda row: row["val_top1"])
    assert summary["students"][summary["chosen"]]["val_top1"] == best["val_top1"]
    assert summary["ensemble"].keys() >= {"test_top1", "test_nll", "test_ece"}
    student = load_student(finished / "students" / "peer0")
    assert student.config["architecture"] == "small-cnn"
    assert student.config["classes"] == [str(i) for i in range(10)]
    assert {"input_size", "channels", "mean", "std"} <= student.config.keys()


def test_two_peers_are_the_default(tmp_path: Path) -> None:
    assert main(["train", "dml", "--steps", "1", "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in (tmp_path / "students").iterdir()) == ["peer0", "peer1"]


def test_last_line_says_what_to_ship(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "plain", *FAST, "--out", str(tmp_path / "r")]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("ship student (")
    assert last.endswith(str(tmp_path / "r" / "students" / "student"))


def test_evaluate_says_what_the_summary_says(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert main(["evaluate", str(finished)]) == 0
    shown = capsys.readouterr().out
    for row in (*summary["students"].values(), summary["ensemble"]):
        assert f"{row['test_top1']:.2f}" in shown
        assert f"{row['test_nll']:.4f}" in shown
    assert "ensemble" in shown
    assert main(["evaluate", str(finished / "students" / "peer1"), "--split", "val"]) == 0
    assert f"{summary['students']['peer1']['val_top1']:.2f}" in capsys.readouterr().out


def test_other_data_is_evaluated_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run's --train-samples, --val-fraction, --aug and --small are of its own data."""
    out, images = tmp_path / "run", np.zeros((500, 8, 8, 1), np.uint8)
    few = {"x_train": images[:20], "y_train": np.arange(20) % 10}
    np.savez(tmp_path / "other.npz", **few, x_test=images, y_test=np.arange(500) % 10)
    own = ["--train-samples", "100", "--val-fraction", "0", "--aug", "cutout=4", "--small"]
    assert main(["train", "plain", "--student", "small-cnn", "-b", "8", "--out", str(out), *own]) == 0
    stored = json.loads((out / "run.json").read_text())["settings"]
    assert stored["train_samples"] == 100 and stored["small"]
    capsys.readouterr()
    assert main(["evaluate", str(out), "--data", f"npz:{tmp_path / 'other.npz'}"]) == 0
    assert "10.00" in capsys.readouterr().out, "one class of ten, of all 500 images"


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    for kind, some in (("methods", "dml"), ("models", "resnet32"), ("data", "digits")):
        assert main(["list", kind]) == 0
        assert some in capsys.readouterr().out
        assert main(["list", kind, some]) == 0
        assert some.upper() in capsys.readouterr().out.upper()


def test_lists_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    for kind, some in (("methods", "dml"), ("models", "resnet32"), ("data", "digits")):
        for argv in ([], [some]):
            assert main(["list", kind, *argv, "--json"]) == 0
            assert len(json.loads(capsys.readouterr().out)[some]) > 10
    assert main(["list", "recipes", "dml/cifar100-resnet32x2", "--json"]) == 0
    (recipe,) = json.loads(capsys.readouterr().out)
    assert recipe["settings"]["student"] and recipe["published"]["value"]


def test_help_names_types_and_gives_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for words in ("--epochs INT", "--lr FLOAT", "--opt sgd|adam|adamw", "--teacher PATH", "--set KEY=VALUE",
                  "--opt-betas FLOAT FLOAT", "Examples:", "teacherless train dml"):  # fmt: skip
        assert words in shown, words
    assert "STR" not in shown
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == tl.__version__


# It completes only in a terminal: one of its own, where TAB is typed, until the word is there.
ZSH = r"""
zmodload zsh/zpty
zpty shell "TERM=dumb zsh -i"
zpty -w shell "PS1=; source $HOME/.zshrc; echo READY-NOW"
zpty -r -m shell seen "*READY-NOW*READY-NOW*"
zpty -w -n shell $'teacherless tr\t'
zpty -r -m shell seen "*teacherless train*" && print train
zpty -d shell
"""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed_and_completes(shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("ZDOTDIR", "ZSH_CUSTOM", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert main(["--install-completion", "--shell", shell]) == 0
    (script,) = [path for path in tmp_path.rglob("*teacherless*") if path.is_file()]
    assert "epochs" in script.read_text()
    if shell == "zsh":
        assert (tmp_path / ".zshrc").read_text().count("compinit\n") == 1
    if shutil.which(shell) is None:
        return
    ask = {
        "bash": f"source {script}; COMP_WORDS=(teacherless tr); COMP_CWORD=1; _teacherless; echo ${{COMPREPLY[@]}}",
        "fish": f"source {script}; complete -C 'teacherless tr'",
        "zsh": ZSH,
    }[shell]
    said = subprocess.run([shell, "-c", ask], capture_output=True, text=True, check=True, timeout=120).stdout
    assert said.split()[0] == "train"


def test_recipe_and_flags(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        'student = ["small-cnn", "small-cnn,width=8,lr=0.02"]\nepochs = 7\nlr = 0.05\n[set]\ntemperature = 2\n'
    )
    out = tmp_path / "out"
    assert main(["train", "dml", "--recipe", str(recipe), "--steps", "3", "--lr", "0.03", "--out", str(out)]) == 0
    settings = json.loads((out / "run.json").read_text())["settings"]
    assert (settings["steps"], settings["lr"], settings["set"]) == (3, 0.03, {"temperature": 2})
    line = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["step"] == 3


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train", "dlm"], ["'dlm'", "did you mean 'dml'"]),
        (["train", "plain", "--student", "resnet23"], ["'resnet23'", "resnet"]),
        (["train", "plain", "--data", "digit"], ["'digit'", "did you mean 'digits'"]),
        (["train", "dml", "--peers", "2", "--set", "temprature=2"], ["'temprature'", "did you mean 'temperature'"]),
        (["train", "plain", "--set", "temperature=2"], ["plain has no options"]),
        (["train", "dml", "--peers", "2", "--set", "temperature=hot"], ["--set temperature", "'hot'", "number"]),
        (["train", "dml", "--peers", "2", "--set", "temperature"], ["'temperature'", "key=value"]),
        (["train", "dml", "--peers", "1"], ["1 peer", "two peers"]),
        (["train", "plain", "--peers", "2"], ["2 students", "plain trains one"]),
        (["train", "plain", "--epochs", "0"], ["--epochs", "'0'", "greater than or equal to 1"]),
        (["train", "plain", "--epochs", "many"], ["--epochs", "'many'", "integer"]),
        (["train", "plain", "--epochs", "1", "--steps", "1"], ["--epochs", "--steps"]),
        (["train", "plain", "--lr", "-1"], ["--lr", "'-1'", "greater than 0"]),
        (["train", "plain", "--lr", "nan"], ["--lr", "finite"]),
        (["train", "plain", "-b", "5000"], ["batch", "5000"]),
        (["train", "plain", "--val-fraction", "1.5"], ["--val-fraction", "'1.5'", "less than 1"]),
        (["train", "plain", "--opt", "sdg"], ["--opt", "'sdg'", "'sgd'"]),
        (["train", "plain", "--recipe", "nowhere.toml"], ["nowhere.toml", "No such file"]),
        (["train", "plain", "--bath-size", "3"], ["unknown flag '--bath-size'; did you mean '--batch-size'", "--help"]),
        (["train", "plain", "--student", "small-cnn,lr=fast"], ["lr=fast", "number"]),
        (["train", "plain", "--student", "small-cnn,depth=3"], ["depth", "small-cnn"]),
        (["train", "plain", "--student", "small-cnn*x"], ["'small-cnn*x'"]),
        (["train", "one", "--set", "branches=1"], ["--set branches", "greater than or equal to 2"]),
        (["train", "one", "--set", "branches=0"], ["--set branches", "greater than or equal to 2"]),
        (
            ["train", "dml", "--peers", "2", "--set", "topology=[[0,2],[1,0]]"],
            ["row 0 = [0.0, 2.0]", "sum to 1, or to 0"],
        ),
        (["train", "dml", "--peers", "2", "--set", "topology=[[0,-1],[1,0]]"], ["row 0", "at least 0"]),
        (["train", "dml", "--peers", "2", "--set", "topology=[[1,0],[1,0]]"], ["[0][0]", "does not listen to itself"]),
        (["train", "dml", "--peers", "3", "--set", "topology=[[0,1],[1,0]]"], ["3 peers need 3 rows of 3"]),
        (["train", "dml", "--peers", "2", "--set", "topology=[[0,NaN],[1,0]]"], ["row 0", "at least 0"]),
        (["train", "dml", "--peers", "2", "--set", "topology=rings"], ["--set topology", "'ring'", "or a valid tuple"]),
        (["train", "dml", "--peers", "2", "--set", 'topology=[[0,"x"],[1,0]]'], ["--set topology", "a valid number"]),
        (["train", "one", "--set", "variant=rampp"], ["'rampp'", "did you mean 'ramp'"]),
        (
            ["train", "one", "--set", "variant=ramp", "--set", "ramp_epochs=3"],
            ["ramp_epochs", "belongs to variant 'ramp'"],
        ),
        (["train", "tf-kd", "--set", "variant=released", "--set", "mode=self"], ["mode", "variant 'released-self'"]),
        (["train", "plain", "--set", "variant=x"], ["plain has no variants"]),
        (["train", "kd"], ["--teacher", "kd reads a teacher"]),
        (["train", "plain", "--teacher", "somewhere"], ["--teacher", "plain reads no teacher"]),
        (["train", "dml", "--peers", "2", "--teacher", "somewhere"], ["--teacher", "dml reads no teacher"]),
        (["train", "fitnets"], ["--teacher", "fitnets reads a teacher"]),
        (["train", "tf-kd", "--set", "mode=self"], ["mode 'self' needs a teacher"]),
        (["train", "kd", "--teacher", "nowhere"], ["nowhere"]),
        (["train", "plain", "--checkpoint-every", "soon"], ["--checkpoint-every", "'soon'"]),
        (["train", "plain", "--resume"], ["--resume", "--out"]),
        (["train"], ["METHOD"]),
        (["trian"], ["unknown command 'trian'; did you mean 'train'? (known: analyse, compare, ", "report, train)"]),
        (["list", "method"], ["unknown command 'method'; did you mean 'methods'? (known: data, methods"]),
        (["train", "dml", "more"], ["train: found 'more', a word too many; takes METHOD flags"]),
        (["compare", "dml"], ["compare: found 'dml', a word too many; takes flags"]),
        (["train", "plain", "--epochs"], ["--epochs: found no value; must be INT"]),
        (["train", "plain", "--decay-milestones"], ["--decay-milestones: found no value; must be INT"]),
        (["train", "plain", "-b"], ["-b: found no value; must be INT"]),
        (["train", "plain", "--opt-betas", "0.9"], ["--opt-betas: found only '0.9'; must be FLOAT FLOAT"]),
        (["train", "plain", "--epochs", "1", "--epochs", "2"], ["--epochs: found twice; must be given once"]),
        (["train", "plain", "--resume=7"], ["--resume: found '7'; must be a switch, without a value"]),
        (["train", "plain", "--no-resume"], ["unknown flag '--no-resume'; did you mean '--resume'?"]),
        (["compare", "--seeds", "many"], ["--seeds: found 'many'; must be a whole number, at least 1"]),
        (["compare", "--seeds", "0"], ["--seeds: found '0'; must be a whole number, at least 1"]),
        (["compare", "--jobs", "1.5"], ["--jobs: found '1.5'; must be a whole number, at least 1"]),
        (["compare", "--jobs"], ["--jobs: found no value; must be a whole number"]),
        (["compare", "--backend", "dask"], ["--backend: found only 'dask'; must be 'dask' or 'ray' and a text"]),
        (["compare", "--backend", "spark", "x"], ["--backend: found 'spark'; must be 'dask' or 'ray'"]),
        (["predict", "nowhere", "x", "--top", "-1"], ["--top: found '-1'; must be a whole number, at least 1"]),
        (["evaluate", "nowhere", "--split", "tset"], ["--split: found 'tset'; must be 'val' or 'test'"]),
        (
            ["export", "nowhere", "--format", "onxn"],
            ["--format: found 'onxn'; must be 'safetensors', 'torch' or 'onnx'"],
        ),
        (["export", "nowhere"], ["--format: is missing; must be 'safetensors', 'torch' or 'onnx'"]),
        (["evaluate"], ["PATH: is missing; must be a path"]),
        (["predict", "nowhere"], ["IMAGES: is missing; must be a path"]),
        (["predict", "nowhere", '["a"'], ["""IMAGES: found '["a"'; must be a path"""]),
        (["list", "methods", "dlm"], ["'dlm'", "did you mean 'dml'"]),
        (["evaluate", "nowhere"], ["nowhere"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[:1] in (["train"], ["list"]) else "",
)
def test_bad_input_is_one_line(
    argv: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    line = fail(capsys, *argv)
    for word in words:
        assert word in line, line
    assert not list(tmp_path.iterdir()), "a half-made run folder"


def test_unknown_recipe_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text("epoch = 3\n")
    assert "did you mean 'epochs'" in fail(capsys, "train", "plain", "--recipe", str(recipe))
    recipe.write_text("epochs = 'many'\n")
    assert "recipe r.toml" in fail(capsys, "train", "plain", "--recipe", str(recipe))
    recipe.write_text("epochs = \n")
    assert "is not TOML" in fail(capsys, "train", "plain", "--recipe", str(recipe))


def test_out_that_cannot_be_used(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "summary.json").read_bytes()
    assert "finished run" in fail(capsys, "train", "plain", *FAST, "--out", str(finished))
    assert (finished / "summary.json").read_bytes() == before
    (tmp_path / "file").write_text("")
    assert "cannot write" in fail(capsys, "train", "plain", *FAST, "--out", str(tmp_path / "file" / "run"))
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        assert "cannot write" in fail(capsys, "train", "plain", *FAST, "--out", str(tmp_path / "locked" / "run"))


def test_student_file_of_another_architecture(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(**change: Any) -> Path:
        folder = tmp_path / f"student{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        source = finished / "students" / "peer0"
        (folder / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
        (folder / "config.json").write_text(json.dumps(json.loads((source / "config.json").read_text()) | change))
        return folder

    resnet = {"architecture": "resnet8", "arguments": {"num_classes": 10, "in_channels": 1}}
    assert "another architecture" in fail(capsys, "evaluate", str(broken(**resnet)), "--data", "digits")
    assert "unknown model" in fail(capsys, "evaluate", str(broken(architecture="resnet9000")), "--data", "digits")
    assert "--data" in fail(capsys, "evaluate", str(broken()))
    cut = broken()
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:100])
    assert "safetensors" in fail(capsys, "evaluate", str(cut), "--data", "digits")
    (cut / "model.safetensors").unlink()
    assert "missing" in fail(capsys, "evaluate", str(cut), "--data", "digits")


@pytest.mark.parametrize("method", ["kd", "fitnets"])
def test_a_teacher_from_a_run(method: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "kd"
    assert main(["train", method, *FAST, "--teacher", str(finished), "--out", str(out)]) == 0
    assert json.loads((out / "run.json").read_text())["teacher"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    if method == "fitnets":
        assert [(line["phase"], line["epoch"]) for line in lines] == [("hint", 0), ("hint", 1), ("kd", 2), ("kd", 3)]
    config = finished / "students" / "peer0" / "config.json"
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes((config.parent / "model.safetensors").read_bytes())
    (other / "config.json").write_text(json.dumps(json.loads(config.read_text()) | {"classes": list("abcdefghij")}))
    capsys.readouterr()
    line = fail(capsys, "train", method, *FAST, "--teacher", str(other), "--out", str(tmp_path / "no"))
    assert "--teacher" in line
    assert "knows 10 classes, not those of digits" in line


def test_a_teacher_where_the_mode_reads_none(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = fail(capsys, "train", "tf-kd", *FAST, "--teacher", str(finished), "--out", str(tmp_path / "no"))
    assert "mode 'reg' reads no teacher" in line
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("method", ["one", "byot", "frskd", "fitnets"])
def test_a_feature_method_on_a_network_whose_stages_have_no_names(
    method: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flat_net.py").write_text(
        "from torch import nn\n"
        "def make(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, num_classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    teacher = ["--teacher", str(finished)] if method == "fitnets" else []
    argv = ["train", method, "--student", "flat_net:make", *teacher, "--out", str(tmp_path / "no")]
    line = fail(capsys, *argv)
    for word in (f"{method}: needs a student with stages", "name them: stages=", "it has 0, 1"):
        assert word in line, line
    assert not (tmp_path / "no").exists()


def test_diverged_run_exits_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = fail(capsys, "train", "plain", *FAST, "--lr", "1e30", "--out", str(tmp_path / "r"), code=4)
    assert "diverged in epoch 0" in line
    assert not (tmp_path / "r" / "summary.json").exists()

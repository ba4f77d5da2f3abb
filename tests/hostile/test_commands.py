"""Random command lines, and streams that are closed, full, or of another encoding."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from forked import Forked

from teacherless.cli import main

DEEP = "[" * 5000
WORDS = [
    "", "-", "--", "x", "-1", "0", "1", "nan", "inf", "1e999", "9" * 5000, "x" * 300, DEEP, "a=b", "=", "a=" + DEEP,
    "a={}", "Ω", "\udcff", "\x1b[31m", "a b", "*", "small-cnn*2", "small-cnn*0", "small-cnn*99999999999",
    "small-cnn,width=" + DEEP, "small-cnn,width=1e9", "small-cnn,lr=nan", "small-cnn,width", "timm/", "torchvision/x",
    ":", "os:", ":x", "dml", "one", "kd", "plain", "digits", "npz:x", "hfds/", "torch/", "/nothing", "/dev/null",
    "/proc/self/mem", "true", "[]", "{", "cuda", "cpu", "10m", "2e", "variant=", "variant=sum", "dml.variant=x", "a\0b",
]  # fmt: skip
COMMANDS = [
    "train",
    "plan",
    "compare",
    "evaluate",
    "predict",
    "analyse",
    "list",
    "methods",
    "recipes",
    "data",
    "models",
]
FLAGS = [
    "--student", "--set", "--data", "--data-dir", "--out", "--recipe", "--teacher", "--lr", "--epochs", "--steps",
    "--seed", "--aug", "--img-size", "--opt", "--sched", "--clip-grad", "--checkpoint-every", "--resume", "--methods",
    "--seeds", "--jobs", "--split", "--format", "--top", "--show", "--amp", "--engine", "--ema", "--fit", "--device",
    "--trust-imports", "--help", "--version", "-b", "-j", "--no-amp", "--opt-betas", "--decay-milestones", "--nonsense",
]  # fmt: skip


def line(rng: random.Random) -> list[str]:
    """A command line that ends at once if it is right: two steps of a tiny network."""
    command = rng.choice(COMMANDS)
    words = [command, *(["plain"] if command in ("train", "plan") and rng.random() < 0.7 else [])]
    for _ in range(rng.randrange(5)):
        words += [rng.choice(FLAGS)] if rng.random() < 0.6 else []
        words += [rng.choice(WORDS)] if rng.random() < 0.8 else []
    rng.shuffle(words) if rng.random() < 0.1 else None
    small = ["--small", "--steps", "1"] if command in ("train", "plan", "compare") else []
    one = ["--methods", "plain", "--seeds", "1", "--jobs", "1"] if command == "compare" else []
    return words + small + one


@pytest.mark.parametrize(
    "count", [pytest.param(60, id="60"), pytest.param(3000, marks=pytest.mark.exhaustive, id="3000")]
)
def test_random_command_lines(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEACHERLESS_CACHE", str(tmp_path / "cache"))
    rng = random.Random(count)
    for _ in range(count):
        words = line(rng)
        capsys.readouterr()
        try:
            code = main(words)
        except SystemExit as error:
            code = error.code
        except BaseException:
            print([word[:100] for word in words])
            raise
        err = capsys.readouterr().err
        assert code in (0, 1, 2, 4, None), words
        assert code != 2 or (err.count("\n") >= 1 and err.splitlines()[-1].startswith("teacherless: ")), (words, err)
        assert "\x1b" not in err


ONE = ["--methods", "plain", "--seeds", "1", "--jobs", "1", "--steps", "1", "--train-samples", "64"]


@pytest.mark.parametrize("flag", ["--set", "--student", "--methods", "--out"])
def test_words_that_are_deep(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    for word in (DEEP, "a=" + DEEP, "[" * 499, "x," + "a=" + "{" * 499):
        assert main(["compare", flag, word, "--seeds", "0"]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("width", [10**6, 10**13])
def test_a_network_that_no_memory_holds(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "plain", "--steps", "1", "--student", f"small-cnn,width={width}"]) == 2
    assert "small-cnn: cannot be built" in (err := capsys.readouterr().err) and err.count("\n") == 1


@pytest.mark.parametrize("out", ["x" * 300, "a\0b", "/proc/nothing/here", "/dev/null/x"])
def test_folders_that_cannot_be(out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["train", "plain", "--steps", "1"], ["train", "--resume"], ["compare", *ONE]):
        assert main([*command, "--out", str(tmp_path / out)]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("teacherless: ")
    for command in ("evaluate", "analyse"):
        assert main([command, str(tmp_path / out)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


TRAIN = ["train", "plain", "--steps", "1", "--train-samples", "64", "--out", "run"]


@pytest.mark.parametrize("argv", [["list", "methods"], ["list", "recipes"], TRAIN, ["train", "plain", "--lr", "-1"]])
def test_streams_that_were_closed_before(argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for streams in (["stdout"], ["stdout", "stderr"]):
        with monkeypatch.context() as patch:
            for name in streams:
                patch.setattr(sys, name, None)
            assert main(argv) == (2 if "-1" in argv else 0)
        shutil.rmtree("run", ignore_errors=True)


@pytest.mark.parametrize("argv", [["list", "methods"], ["list", "recipes"], ["list", "methods", "dml"], TRAIN])
@pytest.mark.parametrize(
    ("full", "code", "says"), [(True, 2, "cannot write the output: No space left"), (False, 141, "")]
)
def test_output_that_goes_nowhere(
    argv: list[str], full: bool, code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A disk that is full; a reader that has gone, as `| head -1` has."""
    monkeypatch.chdir(tmp_path)
    ends = os.pipe()
    os.close(ends[0])
    with open("/dev/full", "w") if full else os.fdopen(ends[1], "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        try:
            found = main(argv)
        except SystemExit as error:  # rich ends the process by itself where nobody reads
            found = {1: 141}[int(str(error.code))]
    assert found == code
    assert says in (err := capsys.readouterr().err) and err.count("\n") == bool(says)
    if full:
        os.close(ends[1])


def test_output_in_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    for argv in (["list", "methods", "dml"], ["list", "recipes"], ["list", "models"]):
        out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", out)
        assert main(argv) == 0
        assert out.buffer.getvalue().isascii()  # type: ignore[attr-defined]


@pytest.mark.parametrize("argv", [["list", "recipes"], ["evaluate"], ["analyse"], ["train", "--recipe"]])
def test_names_that_no_terminal_should_see(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*argv, "a\udcff\x1b[31m[/x]\n.toml"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "\x1b" not in err and "[/x]" in err


@pytest.mark.slow
def test_a_real_pipe() -> None:
    for words in ("list recipes", "list methods dml"):
        command = f"{sys.executable} -m teacherless {words} | head -1; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1, 141) and done.stderr == "", done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to be somebody else")
def test_somebody_elses_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o700)
    for argv in (["train", "--resume", "--out"], ["evaluate"], ["predict", "x.png"]):
        done = Forked(*argv, str(tmp_path / "mine" / "run"), before=partial(os.seteuid, 65534))
        _, err = done.communicate()
        assert done.returncode == 2 and err.count("\n") == 1, err

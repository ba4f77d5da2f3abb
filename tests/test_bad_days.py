"""What can happen to a run, as a user meets it: each ends in the last good state, and one clear line."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import Forked
from PIL import Image
from test_checkpoint import flip_a_bit
from test_cli import fail

import teacherless
from teacherless.cli import main
from teacherless.errors import InputError
from teacherless.files import disk
from teacherless.runs.config import Run, new_folder
from teacherless.training import checkpoint, record, summary
from teacherless.training.lifecycle import _commit
from teacherless.training.step import Engine

MORE = partial(pytest.param, marks=pytest.mark.exhaustive)
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


def test_lost_predictions_come_back(run: Path) -> None:
    file = run / "predictions.safetensors"
    before = file.read_bytes()
    for spoil in (file.unlink, lambda: flip_a_bit(file)):
        spoil()
        assert main(["train", "--out", str(run), "--resume"]) == 0
        assert file.read_bytes() == before
        digest = json.loads((run / "summary.json").read_text())["files"][file.name]
        assert disk.sha256(file) == digest


def test_checksums_stand_in_the_summary(run: Path) -> None:
    files = json.loads((run / "summary.json").read_text())["files"]
    students = [
        f"students/{peer}/{file}" for peer in ("peer0", "peer1") for file in ("config.json", "model.safetensors")
    ]
    assert files.keys() == {"metrics.jsonl", "predictions.safetensors", *students}


@pytest.mark.parametrize("method", [["plain"], ["dml", "--peers", "2"]], ids=" ".join)
def test_what_blows_up_in_the_last_step_is_not_shipped(
    method: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--student", "small-cnn,width=4", "--lr", "3e37", "--out", str(tmp_path / "run")]
    assert main(["train", *method, *small, "--steps", "1"]) == 4
    printed = capsys.readouterr()
    assert "ship" not in printed.out
    assert printed.err.count("\n") == 1
    assert "training diverged at step 1: predictions of " in printed.err
    kept = {".lock", "run.json", "metrics.jsonl", "checkpoints", "failed.json", "report.html"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == kept
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert None in line.values()


# What a system may lack ----------------------------------------------------------------------------------------------


def python(code: str, *argv: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """A process of its own, with `main` at hand."""
    begin = "import sys\nfrom teacherless.cli import main\n"
    command = [sys.executable, "-c", begin + code, *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **more)


WINDOWS = """
import errno, os, signal
for name in ("fcntl", "resource"):
    sys.modules[name] = None
for name in ("SIGHUP", "SIGKILL", "SIGUSR1"):
    delattr(signal, name)
for name in ("sched_getaffinity", "fork", "setpgrp", "getuid"):
    delattr(os, name)
really = os.open
def opened(path, *args, **more):
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)
    return really(path, *args, **more)
os.open = opened
sys.exit(main(["plan", *sys.argv[1:-2]]) or main(["train", *sys.argv[1:]]))
"""


def test_without_what_only_posix_has(tmp_path: Path) -> None:
    words = ["plain", *SMALL, "--out", str(tmp_path / "run")]
    done = python(WINDOWS, *words, env={**os.environ, "USERNAME": "someone"})
    assert done.returncode == 0, done.stderr
    assert "unknown" in done.stdout and "ship student" in done.stdout


def test_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert main(["train", "plain", *SMALL, "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["commit"] is None


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_of_someone_elses_repository_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def commit_of(file: Path) -> str | None:
        file.parent.mkdir(parents=True)
        monkeypatch.setattr(teacherless, "__file__", str(file))
        return _commit()

    for line in ("init", "-c user.name=a -c user.email=a@example.org commit -q --allow-empty -m x"):
        subprocess.run(["git", *line.split()], cwd=tmp_path, check=True, capture_output=True)
    assert commit_of(tmp_path / ".venv" / "site-packages" / "teacherless" / "__init__.py") is None
    assert len(commit_of(tmp_path / "src" / "teacherless" / "__init__.py") or "") == 40, "a checkout of ours"


@pytest.mark.parametrize("error", ["ENOLCK", "ENOTSUP"])
def test_a_file_system_without_locks(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(*_: object) -> None:
        raise OSError(getattr(errno, error), os.strerror(getattr(errno, error)))

    monkeypatch.setattr("fcntl.flock", flock)
    assert main(["train", "plain", *SMALL, "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr()
    assert (
        printed.err
        == f"{tmp_path / 'run'}: this file system has no locks; see to it that no other process writes there\n"
    )
    assert "ship student" in printed.out


def test_a_run_that_was_stopped_before_it_began(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert "is no run folder; give the whole command again" in fail(capsys, "train", "--out", str(out), "--resume")
    out.mkdir()
    (out / ".lock").touch()
    line = fail(capsys, "train", "--out", str(out), "--resume")
    assert f"{out} was stopped before it began; give the whole command again" in line
    assert main(["train", "plain", *SMALL, "--out", str(out), "--resume"]) == 0


def test_two_runs_begun_in_the_same_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "20260101-000000")
    run = Run(method="plain")
    names = [new_folder(run).name for _ in range(3)]
    assert names == [f"20260101-000000-plain-digits-s0{end}" for end in ("", "-2", "-3")]


def test_smoothing_is_of_one_run(tmp_path: Path) -> None:
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    method = teacherless.Plain(torch.nn.Linear(3, 2))
    teacherless.train(method, [(x, y)], epochs=1, smoothing=0.3, quiet=True)
    assert method.smoothing == 0.0
    own = teacherless.LabelSmoothing(torch.nn.Linear(3, 2), smoothing=0.2)
    teacherless.train(own, [(x, y)], epochs=1, quiet=True)
    assert own.smoothing == 0.2


# What cannot be written ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [100, 5_000, 30_000])
def test_a_limit_on_the_size_of_files(limit: int, finished: Path, tmp_path: Path) -> None:
    """run.json is larger than the first limit, a checkpoint than the second; pictures are larger than the third."""
    commands = {
        100: ["train", "plain", *SMALL],
        5_000: ["train", "dml", *SMALL, "--peers", "2"],
        30_000: ["analyse", str(finished)],
    }
    out = tmp_path / "out"
    before = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    done = Forked(*commands[limit], "--out", str(out), before=before)
    _, err = done.communicate()
    assert done.returncode == 2, err
    assert re.fullmatch(r"teacherless: cannot (write|save) .*: File too large.*\n", err)
    assert not list(out.rglob(disk.PART + "*"))
    for path in out.rglob("*"):
        assert path.is_dir() or path.stat().st_size < limit, f"{path} is half of what it should be"
    if commands[limit][0] == "train":
        assert main([*commands[limit], "--out", str(out), "--resume"]) == 0


def test_a_picture_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"before")
    with pytest.raises(InputError, match=r"cannot write .*a\.png': No space left on device"), disk.whole(path) as part:
        part.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert path.read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


# What a system may send ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 40 images, big enough that decoding them takes a while."""
    folder = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for number in range(80):
        file = folder / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (256, 256, 3), np.uint8)).save(file)
    return folder


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def begin(*argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "teacherless", *argv], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    while process.poll() is None and len(children(process.pid)) < 2:
        time.sleep(0.01)
    return children(process.pid)


STREAMED = ["plain", "--student", "small-cnn,width=4", "--img-size", "64", "--workers", "2", "--aug", "rrc",
            "--batch-size", "4"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes in /proc")
def test_a_worker_that_is_killed(photos: Path, tmp_path: Path) -> None:
    """One line, no hang, and the bits of a run whose workers live."""
    argv = ["train", *STREAMED, "--data", str(photos), "--epochs", "3", "--out"]
    assert main([*argv, str(tmp_path / "whole")]) == 0
    process = begin(*argv, str(tmp_path / "run"))
    os.kill(workers_of(process)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err.count("\n") == 1
    assert "--workers: a process that decodes images died (killed, or out of memory)" in err
    weights = Path("students/student/model.safetensors")
    assert (tmp_path / "run" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes in /proc")
def test_a_worker_that_is_stopped_stops_nobody_from_stopping(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = begin("train", *STREAMED, "--data", str(photos), "--epochs", "300", "--out", str(out))
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
        time.sleep(0.01)
    team = workers_of(process)
    for worker in team:
        os.kill(worker, signal.SIGSTOP)
    time.sleep(1)  # by now it waits
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 143
    assert "saved; go on with" in err
    assert err.count("\n") == 1
    assert not [worker for worker in team if Path(f"/proc/{worker}").exists()]
    assert checkpoint.read(out / "checkpoints")


def test_a_terminal_that_is_gone_saves_first(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = Forked("train", "plain", "--student", "small-cnn,width=4", "--epochs", "300", "--out", str(out))
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 129
    assert "saved; go on with" in err
    assert checkpoint.read(out / "checkpoints")


@pytest.mark.parametrize("after", [0.1, 0.4, 1.2, 2.0, *map(MORE, (0.05, 0.2, 0.8, 1.6))])
def test_ctrl_c_while_modules_are_imported(after: float, tmp_path: Path) -> None:
    begun = "import sys; print('begun', flush=True); from teacherless.__main__ import main; sys.exit(main())"
    argv = ["train", "plain", "--student", "small-cnn,width=4", "--epochs", "300", "--out", str(tmp_path / "run")]
    process = subprocess.Popen([sys.executable, "-c", begun, *argv], text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)  # fmt: skip
    assert process.stdout and process.stdout.readline() == "begun\n"
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    assert err.count("\n") == 1
    assert process.returncode == 130


def test_ctrl_c_while_data_is_read_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def read(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("teacherless.data.load", read)
    assert main(["train", "plain"]) == 130
    assert capsys.readouterr().err == "teacherless: interrupted\n"


def test_what_nohup_told_us_to_ignore_is_ignored(tmp_path: Path) -> None:
    argv = ["train", "plain", *SMALL, "--out", str(tmp_path / "run")]
    epoch = record.Recorder.epoch

    def gone(*args: Any, **more: Any) -> Any:
        signal.raise_signal(signal.SIGHUP)
        return epoch(*args, **more)

    def before() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        record.Recorder.epoch = gone  # type: ignore[method-assign]

    done = Forked(*argv, before=before)
    out, err = done.communicate()
    assert done.returncode == 0, err
    assert "ship student" in out


def test_ctrl_c_twice_stops_at_once_and_leaves_what_was_saved(tmp_path: Path) -> None:
    """The first is heard after a step that takes for ever; the second need not wait for it."""
    out = tmp_path / "run"
    step = Engine.step

    def slow(self: Engine, optimizer: Any, batch: Any, progress: Any) -> Any:
        if int(progress.step) == 30:
            print("there", flush=True)
            time.sleep(100)
        return step(self, optimizer, batch, progress)

    argv = ["train", "plain", "--student", "small-cnn,width=4", "--epochs", "9", "--checkpoint-every", "1e"]
    process = Forked(*argv, "--out", str(out), before=partial(setattr, Engine, "step", slow))
    process.says("there")
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == "teacherless: stopped at once\n"
    assert checkpoint.read(out / "checkpoints")
    assert main(["train", "--out", str(out), "--resume"]) == 0


def test_a_run_whose_every_student_is_dead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so in one line, and its exit code is not that of a run with something to ship."""
    monkeypatch.setattr(summary, "constant", lambda logits: True)
    argv = ["train", "dml", "--peers", "2", "--data", "digits", "--student", "small-cnn,width=2", "--steps", "2"]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 3
    printed = capsys.readouterr().out
    assert "ship peer" not in printed
    assert printed.splitlines()[-1].startswith("nothing to ship: every student says the same of all images")

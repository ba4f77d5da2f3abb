"""Cells run side by side: the same bits as one after the other, nothing left running, one line where a worker dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import Forked

from teacherless.cli import main

ARGS = ["compare", "--student", "small-cnn,width=8", "--train-samples", "200", "--methods", "dml", "--seeds", "2"]


def command(out: Path, *more: str) -> subprocess.Popen[str]:
    code = "import sys; from teacherless.cli import main; sys.exit(main(sys.argv[1:]))"
    argv = [sys.executable, "-c", code, *ARGS, "--jobs", "2", "--out", str(out), *more]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def numbers(out: Path) -> dict[str, bytes | list[dict[str, float]]]:
    """Every student's weights, and every line of the metrics without what a clock decided."""
    found: dict[str, bytes | list[dict[str, float]]] = {
        str(path.relative_to(out)): path.read_bytes() for path in out.glob("cells/*/students/*/*")
    }
    for path in out.glob("cells/*/metrics.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[str(path.relative_to(out))] = [
            {key: value for key, value in line.items() if key not in ("seconds", "img_per_s")} for line in lines
        ]
    return found


def workers(parent: int) -> list[int]:
    """The processes a process has started, that train (not joblib's tracker of resources)."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            stat, line = (path / "stat").read_text(), (path / "cmdline").read_text()
            if int(stat.rpartition(")")[2].split()[1]) == parent and "popen_loky" in line:
                found.append(int(path.name))
    return found


def wait(what: Callable[[], object], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def alive(pids: list[int]) -> list[int]:
    """Those that are there and are no zombies."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(pid)
    return found


@pytest.fixture(scope="module")
def one_at_a_time(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cells") / "one"
    assert main([*ARGS, "--epochs", "3", "--jobs", "1", "--out", str(out)]) == 0
    return out


def test_the_bits_do_not_depend_on_jobs(
    one_at_a_time: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ARGS, "--epochs", "3", "--jobs", "2", "--out", str(tmp_path / "two")]) == 0
    assert "[4/4]" in capsys.readouterr().err
    assert len(numbers(tmp_path / "two")) == 2 * 2 + 4 * 2 + 4  # students' files of plain and of dml, metrics
    assert numbers(tmp_path / "two") == numbers(one_at_a_time)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.exhaustive),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.exhaustive),
    ],
)
def test_a_stop_leaves_nothing_running_and_goes_on(number: int, code: int, tmp_path: Path) -> None:
    out, settings = tmp_path / "c", ("--epochs", "16")
    process = command(out, *settings)
    wait(lambda: len(list(out.glob("cells/*/metrics.jsonl"))) == 2)
    team = workers(process.pid)
    assert len(team) == 2
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == code, err
    wait(lambda: not alive(team), 60)
    if number != signal.SIGKILL:
        assert "the same command goes on" in err.splitlines()[-1]
        assert "Traceback" not in err and "Warning" not in err
        assert list(out.glob("cells/*/checkpoints/*")), "nothing was saved"
    assert main([*ARGS, *settings, "--jobs", "1", "--out", str(out)]) == 0
    assert len(numbers(out)) == 16


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_dead_worker_is_one_line(tmp_path: Path) -> None:
    process = command(tmp_path / "c", "--epochs", "200")
    wait(lambda: len(list(tmp_path.glob("c/cells/*/metrics.jsonl"))) == 2)
    team = workers(process.pid)
    os.kill(team[0], signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 2, err
    said = [line for line in err.splitlines() if not line.startswith("[") and "runs done" not in line]
    assert len(said) == 1 and "one of 2 workers died" in said[0] and "the same command goes on" in said[0]
    wait(lambda: not alive(team), 60)


def test_two_commands_over_one_folder_share_the_cells(one_at_a_time: Path, tmp_path: Path) -> None:
    out = tmp_path / "c"
    two = [Forked(*ARGS, "--epochs", "3", "--jobs", "1", "--out", str(out)) for _ in range(2)]
    said = [process.communicate() for process in two]
    assert [process.returncode for process in two] == [0, 0], said
    assert numbers(out) == numbers(one_at_a_time)


@pytest.mark.slow
def test_a_cluster_loses_a_worker_and_the_table_is_the_same_to_the_bit(tmp_path: Path) -> None:
    """Twelve cells on dask, two workers in processes of their own, one killed in the middle."""
    pytest.importorskip("distributed.cli", reason="dask's distributed is not installed (extra cluster)")
    settings = [*ARGS[:-1], "6", "--epochs", "12"]
    assert main([*settings, "--jobs", "1", "--out", str(tmp_path / "one")]) == 0
    serve = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard"]
    scheduler = subprocess.Popen([*serve, "--scheduler-file", str(tmp_path / "where")], stderr=subprocess.DEVNULL)
    wait(lambda: (tmp_path / "where").exists() and (tmp_path / "where").read_text())
    address = json.loads((tmp_path / "where").read_text())["address"]
    work = [
        sys.executable,
        "-m",
        "distributed.cli.dask_worker",
        address,
        "--nthreads",
        "1",
        "--no-nanny",
        "--no-dashboard",
    ]
    team = [subprocess.Popen(work, stderr=subprocess.DEVNULL, cwd=tmp_path) for _ in range(2)]
    try:
        code = "import sys; from teacherless.cli import main; sys.exit(main(sys.argv[1:]))"
        argv = [sys.executable, "-c", code, *settings, "--backend", "dask", address, "--out", str(tmp_path / "many")]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait(lambda: len(list(tmp_path.glob("many/cells/*/summary.json"))) >= 3)
        team[0].kill()
        _, err = process.communicate()
        assert process.returncode == 0, err
    finally:
        for each in (*team, scheduler):
            each.kill()
            each.wait()
    assert numbers(tmp_path / "many") == numbers(tmp_path / "one")
    measured = ("per_seed", "student", "best", "ensemble", "nll", "ece", "difference")  # by no clock
    one, many = (json.loads((tmp_path / name / "compare.json").read_text())["methods"] for name in ("one", "many"))
    assert {row: [each[key] for key in measured] for row, each in many.items()} == {
        row: [each[key] for key in measured] for row, each in one.items()
    }


@pytest.mark.slow
def test_cells_on_ray_are_those_of_one_job(one_at_a_time: Path, tmp_path: Path) -> None:
    """A cluster of ray's own on this machine; its token is written into a home that is thrown away."""
    pytest.importorskip("ray", reason="ray is not installed (extra ray)")
    code = "import sys; from teacherless.cli import main; sys.exit(main(sys.argv[1:]))"
    argv = [sys.executable, "-c", code, *ARGS, "--epochs", "3", "--backend", "ray", "local"]
    env = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([*argv, "--out", str(tmp_path / "c")], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert numbers(tmp_path / "c") == numbers(one_at_a_time)


def test_no_cluster_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ARGS, "--backend", "spark", "tcp://127.0.0.1:1"]) == 2
    assert main([*ARGS, "--backend", "ray", "127.0.0.1:1"]) == 2
    assert "--backend" in capsys.readouterr().err

"""Real processes, killed with SIGKILL at random moments, some of them inside the writing of a checkpoint.

Six here; `make crash` sets TEACHERLESS_CRASHES=50.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from forked import Forked
from safetensors.torch import load
from test_checkpoint import TIMES

from teacherless.data.fetch import download
from teacherless.files import disk
from teacherless.training import checkpoint, folder

CRASHES = int(os.environ.get("TEACHERLESS_CRASHES", "6"))
RUN = ["train", "dml", "--data", "digits", "--student", "small-cnn,width=8", "--peers", "2", "--epochs", "4",
       "--select", "best", "--checkpoint-every", "3s"]  # fmt: skip

write = disk.write_flushed


def slow(path: Path, data: bytes) -> None:
    """Every file of a checkpoint takes a while to reach the disk: a kill lands in between."""
    for end in range(0, len(data), max(1, len(data) // 4)):
        write(path, data[:end])
        time.sleep(0.004)
    write(path, data)


def start(out: Path, *more: str) -> Forked:
    return Forked(*RUN, "--out", str(out), *more, before=partial(setattr, disk, "write_flushed", slow))


def contents(out: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        "students": {p.parent.name: p.read_bytes() for p in sorted(out.glob("students/*/model.safetensors"))},
        "metrics": [{k: v for k, v in line.items() if k not in TIMES} for line in lines],
        "summary": {k: v for k, v in json.loads((out / "summary.json").read_text()).items() if k not in TIMES},
    }


@pytest.fixture(scope="module", params=["loop", "threads"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def straight(engine: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float, float]:
    """A run that nobody disturbed; how long it took to reach its first checkpoint, and to end."""
    out = tmp_path_factory.mktemp("straight") / "run"
    began = time.monotonic()
    process = start(out, "--engine", engine)
    while not checkpoint.steps(out / "checkpoints"):
        time.sleep(0.01)
    first = time.monotonic() - began
    assert process.wait() == 0
    return out, first, time.monotonic() - began


@pytest.mark.exhaustive
def test_killed_anywhere_resumes_to_the_same_bits(
    engine: str, straight: tuple[Path, float, float], tmp_path: Path
) -> None:
    expected, first, whole = straight
    draw = random.Random(engine)
    survived = killed = inside = 0
    for crash in range(CRASHES // 2):  # for each engine
        out = tmp_path / f"run{crash}"
        resume: list[str] = ["--engine", engine]
        for _ in range(draw.choice([1, 1, 2])):
            process = start(out, *resume)
            time.sleep(
                draw.uniform(0.3 * first, 0.3 * first + whole) if crash % 3 == 0 else draw.uniform(0.95 * first, whole)
            )
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
            process.communicate()
            inside += bool(list((out / "checkpoints").glob(".part-*")))
            for path in checkpoint.steps(out / "checkpoints"):
                assert load((path / "tensors.safetensors").read_bytes())  # a folder of that name is whole
            resume = ["--engine", engine, "--resume"]
        process = start(out, "--engine", engine, "--resume")
        _, err = process.communicate()
        assert process.returncode == 0, err
        assert contents(out) == contents(expected), f"crash {crash}"
        survived += 1
    print(f"{engine}: {survived} of {CRASHES // 2} runs equal, {killed} kills, {inside} while a checkpoint was written")
    assert killed >= CRASHES // 4, "most kills came after the end: the test proves little"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(
    number: signal.Signals, code: int, engine: str, straight: tuple[Path, float, float], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start(out, "--engine", engine)
    while not checkpoint.steps(out / "checkpoints"):
        time.sleep(0.005)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == code
    assert err.count("\n") == 1
    assert "--resume" in err
    assert str(out) in err
    resumed = start(out, "--engine", engine, "--resume")
    printed, err = resumed.communicate()
    assert resumed.returncode == 0, err
    assert "resuming from" in printed
    assert contents(out) == contents(straight[0])


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / ".lock").touch()
    with folder.locked(out):
        second = start(out, "--resume")
        _, err = second.communicate()
    assert second.returncode == 2
    assert "in use by another process" in err
    assert {path.name for path in out.iterdir()} == {".lock"}


def test_sigterm_during_a_download(tmp_path: Path) -> None:
    """Nothing gets the file's name before it is whole; the next run fetches it."""
    content = os.urandom(400_000)
    half = threading.Event()

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            first = not half.is_set()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(content[:200_000])
                self.wfile.flush()
                half.set()
                if first:
                    time.sleep(60)  # the client is stopped before this ends
                self.wfile.write(content[200_000:])

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    target = tmp_path / "set.gz"
    address = f"http://127.0.0.1:{server.server_port}/set.gz"
    fetch = partial(download, address, target, hashlib.sha256(content).hexdigest())
    first = Forked("--version", before=fetch)
    assert half.wait(30)
    first.send_signal(signal.SIGTERM)
    assert first.wait() == -signal.SIGTERM
    assert not target.exists()
    fetch()
    assert target.read_bytes() == content
    server.shutdown()

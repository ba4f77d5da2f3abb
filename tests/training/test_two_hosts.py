"""Two hosts, as network namespaces: the two-node command, and a link that is cut."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from teacherless.cli import main
from teacherless.training import checkpoint

HOSTS = {"tl-a": "10.231.77.1", "tl-b": "10.231.77.2"}  # a namespace, and its address; its interface has its name
TIMEOUT = 10


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def link() -> Iterator[None]:
    if os.name != "posix" or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root, and ip of iproute2")
    first, second = HOSTS
    try:
        for host in HOSTS:
            ip("netns", "add", host)
        ip("link", "add", first, "netns", first, "type", "veth", "peer", "name", second, "netns", second)
        for host, address in HOSTS.items():
            ip("-n", host, "addr", "add", f"{address}/24", "dev", host)
            ip("-n", host, "link", "set", host, "up")
            ip("-n", host, "link", "set", "lo", "up")
        yield
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", host], check=False, capture_output=True)


def start(host: str, out: Path) -> subprocess.Popen[bytes]:
    """The two-node command, on one host."""
    where = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{HOSTS['tl-a']}:29500", "--local-addr", HOSTS[host]]
    where += ["--rdzv-conf", f"is_host={host == 'tl-a'}"]  # a namespace has no host name that torchrun could look up
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *where]
    train = ["train", "dml", "--student", "small-cnn,width=4", "--epochs", "2000", "--checkpoint-every", "20s"]
    command = [*launch, "-m", "teacherless", *train, "--timeout", str(TIMEOUT), "--out", str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": host}
    with out.with_name(f"{host}.txt").open("w") as file:
        return subprocess.Popen(["ip", "netns", "exec", host, *command], env=env, stdout=file, stderr=file)


@pytest.mark.exhaustive
@pytest.mark.usefixtures("link")
def test_a_cut_link_is_an_error_in_time_and_leaves_a_good_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"
    team = [start(host, out) for host in HOSTS]
    end = time.monotonic() + 180
    while len(checkpoint.steps(out / "checkpoints")) < 2:
        assert time.monotonic() < end and all(process.poll() is None for process in team)
        time.sleep(0.02)
    ip("-n", "tl-a", "link", "set", "tl-a", "down")
    cut = time.monotonic()
    lost = f"a rank is gone, or did not answer within --timeout {TIMEOUT}"
    said = [out.with_name(f"{host}.txt") for host in HOSTS]
    try:
        while not all(lost in file.read_text() for file in said):
            assert time.monotonic() - cut < TIMEOUT + 20, [file.read_text() for file in said]
            time.sleep(0.1)
    finally:
        for (
            process
        ) in team:  # torchrun itself waits for the other host much longer, and ends no sooner if it is asked to
            process.kill()
            process.wait()
    found = checkpoint.read(out / "checkpoints")
    assert found is not None and not found[2], "the newest checkpoint is whole"
    steps = found[0].values["loop"]["step"]
    more = steps // 20 + 1  # epochs, of 20 steps
    assert steps > 0
    assert main(["train", "--out", str(out), "--resume-anyway", "--epochs", str(more)]) == 0

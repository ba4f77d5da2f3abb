"""Downloads against a server on this machine that cuts, lies and refuses."""

from __future__ import annotations

import gzip
import hashlib
import resource
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_sources import idx

from teacherless.data import load, sources
from teacherless.data.fetch import cache_dir, download
from teacherless.data.meter import Meter
from teacherless.errors import InputError

BODY = np.random.default_rng(0).bytes(300_000)
SHA = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """What it does is set by the test; what it was asked for is kept."""

    files: dict[str, bytes]
    cuts: int = 0  # how many answers are cut after 100,000 bytes
    length: bool = True
    errors: list[int]  # statuses to answer first
    asked: int = 0  # requests so far

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked += 1
        if self.server.errors:
            return self.send_error(self.server.errors.pop(0))
        body = self.server.files.get(self.path.rpartition("/")[2])
        if body is None:
            return self.send_error(404)
        self.send_response(200)
        if self.server.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut, self.server.cuts = self.server.cuts > 0, self.server.cuts - 1
        self.wfile.write(body[:100_000] if cut else body)
        return None

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("time.sleep", lambda _: None)  # before the next attempt
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server(("127.0.0.1", 0), Handler) as http:
        http.files, http.errors = {"file": BODY}, []
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield http
        http.shutdown()


def names(where: Path) -> list[str]:
    return sorted(path.name for path in where.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_whole_and_once(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    download(f"{server.url}/file", path, SHA)
    assert path.read_bytes() == BODY and names(tmp_path) == ["file"]
    download(f"{server.url}/file", path, SHA)
    assert server.asked == 1, "what is there is not fetched again"


def test_two_at_once_fetch_it_once(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file"
    both = [threading.Thread(target=download, args=(f"{server.url}/file", path, SHA)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert path.read_bytes() == BODY and names(tmp_path) == ["file"]
    assert server.asked == 1


def test_a_broken_connection_is_tried_again(server: Server, tmp_path: Path) -> None:
    server.cuts, server.errors = 1, [503]
    download(f"{server.url}/file", tmp_path / "file", SHA)
    assert (tmp_path / "file").read_bytes() == BODY and names(tmp_path) == ["file"]
    assert server.asked == 3


def test_a_server_that_never_finishes(server: Server, tmp_path: Path) -> None:
    server.cuts = 99
    with pytest.raises(InputError, match=r"/file: gave up after 3 attempts: .*IncompleteRead"):
        download(f"{server.url}/file", tmp_path / "file", SHA)
    assert names(tmp_path) == []


def test_a_server_that_does_not_say_how_long(server: Server, tmp_path: Path) -> None:
    server.length = False
    download(f"{server.url}/file", tmp_path / "file", SHA)
    assert (tmp_path / "file").read_bytes() == BODY


def test_wrong_bytes_are_deleted(server: Server, tmp_path: Path) -> None:
    server.files["file"] = BODY[:-1] + b"?"
    with pytest.raises(InputError, match=r"/file: not the file it should be: SHA256 hash of downloaded file"):
        download(f"{server.url}/file", tmp_path / "file", SHA)
    assert names(tmp_path) == []


def test_not_found(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="/nothing: gave up after 3 attempts: 404 Client Error: Not Found"):
        download(f"{server.url}/nothing", tmp_path / "nothing", SHA)
    assert names(tmp_path) == []


def test_nobody_answers(server: Server, tmp_path: Path) -> None:
    url = server.url
    server.server_close()
    with pytest.raises(InputError, match=r"gave up after 3 attempts: .*refused"):
        download(f"{url}/file", tmp_path / "file", SHA)


def test_no_space(server: Server, tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(InputError, match=r"cannot write '.*file': File too large"):
            download(f"{server.url}/file", tmp_path / "file", SHA)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        download(f"{server.url}/file", tmp_path / "taken" / "file", SHA)


def test_fashion_mnist_is_downloaded_to_the_cache(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part, n in (("train", 40), ("t10k", 10)):
        server.files[f"{part}-images-idx3-ubyte.gz"] = gzip.compress(idx(np.zeros((n, 28, 28))))
        server.files[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(idx(np.arange(n) % 10))
    sha = {name: hashlib.sha256(server.files[f"{name}.gz"]).hexdigest() for name in sources.FASHION_SHA256}
    monkeypatch.setattr(sources, "FASHION_URL", server.url)
    monkeypatch.setattr(sources, "FASHION_DEBIAN", tmp_path / "not-installed")
    monkeypatch.setenv("TEACHERLESS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"fashion-mnist: .*SHA256.*--data-dir"):
        load("fashion-mnist")
    monkeypatch.setattr(sources, "FASHION_SHA256", sha)
    assert len(load("fashion-mnist").train) == 36
    assert names(tmp_path) == sorted(f"{name}.gz" for name in sha)


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TEACHERLESS_CACHE", str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("TEACHERLESS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert sys.platform != "linux" or cache_dir() == tmp_path / "teacherless"


def test_meter(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with Meter("reading", 10, "files") as meter:
        meter.advance(5)
    assert capsys.readouterr().err == "", "quick work is not worth a word"
    monkeypatch.setattr(Meter, "patience", 0.0)
    with Meter("downloading", 5_000_000, "MB", per=1e6) as meter:
        meter.advance(2_000_000)
        meter.advance(1_000_000)
    assert capsys.readouterr().err == "downloading: 2 of 5 MB\n", "then a line every ten seconds"
    with Meter("downloading", None, "MB", per=1e6) as meter:
        meter.advance(2_000_000)
    assert capsys.readouterr().err == "downloading: 2 MB\n"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Meter("reading", 10, "files") as meter:
        meter.advance(5)
        meter.advance(5)
    assert meter.bar is not None

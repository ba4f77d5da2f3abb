"""Downloads against a server on this machine that cuts, lies and refuses."""

from __future__ import annotations

import errno
import gzip
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_sources import idx

from teacherless.data import fetch as module
from teacherless.data import load, sources
from teacherless.data.fetch import cache_dir, download
from teacherless.data.meter import Meter
from teacherless.errors import InputError

BODY = np.random.default_rng(0).bytes(300_000)
SHA = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """What it does is set by the test; what it was asked for is kept."""

    files: dict[str, bytes]
    cut_after: int | None = None  # bytes of each answer
    ranges: bool = True
    length: bool = True
    chunked: bool = False  # the first answer, cut within a chunk
    errors: list[int]  # statuses to answer first
    asked: list[str | None]  # the Range header of each request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        ranged = self.headers.get("Range")
        self.server.asked.append(ranged)
        if self.server.errors:
            return self.send_error(self.server.errors.pop(0))
        body = self.server.files.get(self.path.rpartition("/")[2])
        if body is None:
            return self.send_error(404)
        start = int(ranged.removeprefix("bytes=").rstrip("-")) if ranged and self.server.ranges else 0
        if start >= len(body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if self.server.chunked and not ranged:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(f"{len(body):x}\r\n".encode() + body[:100_000])
            return None
        if self.server.length:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        cut = self.server.cut_after
        self.wfile.write(body[start:] if cut is None else body[start : start + cut])
        return None

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "PAUSE", 0.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server(("127.0.0.1", 0), Handler) as http:
        http.files, http.errors, http.asked = {"file": BODY}, [], []
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield http
        http.shutdown()


def names(where: Path) -> list[str]:
    return sorted(path.name for path in where.rglob("*") if path.is_file())


def test_whole_and_once(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    download(f"{server.url}/file", path, SHA)
    assert path.read_bytes() == BODY and names(tmp_path) == ["file"]
    download(f"{server.url}/file", path, SHA)
    assert server.asked == [None], "what is there is not fetched again"


def test_two_at_once_fetch_it_once(server: Server, tmp_path: Path) -> None:
    server.cut_after = 100_000  # so that it takes a while
    path = tmp_path / "file"
    both = [threading.Thread(target=download, args=(f"{server.url}/file", path, SHA)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert path.read_bytes() == BODY and names(tmp_path) == ["file"]
    assert server.asked == [None, "bytes=100000-", "bytes=200000-"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_connection_is_resumed(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.cut_after, server.ranges = 100_000 if ranges else None, ranges
    if not ranges:
        (tmp_path / "file.part").write_bytes(BODY[:1000])
    download(f"{server.url}/file", tmp_path / "file", SHA)
    assert (tmp_path / "file").read_bytes() == BODY and names(tmp_path) == ["file"]
    assert server.asked == ([None, "bytes=100000-", "bytes=200000-"] if ranges else ["bytes=1000-"])


def test_a_later_run_goes_on_where_the_last_one_stopped(server: Server, tmp_path: Path) -> None:
    server.errors = [503] * module.ATTEMPTS
    (tmp_path / "file.part").write_bytes(BODY[:123])
    with pytest.raises(InputError, match="gave up after 4 attempts: HTTP 503"):
        download(f"{server.url}/file", tmp_path / "file", SHA)
    assert names(tmp_path) == ["file.part"]
    server.errors = [500]  # once is no reason to give up
    download(f"{server.url}/file", tmp_path / "file", SHA)
    assert (tmp_path / "file").read_bytes() == BODY and server.asked[-1] == "bytes=123-"


@pytest.mark.parametrize("part", [BODY, b"another file's beginning", BODY + b"more"])
def test_what_an_earlier_run_left(server: Server, tmp_path: Path, part: bytes) -> None:
    (tmp_path / "file.part").write_bytes(part)
    download(f"{server.url}/file", tmp_path / "file", SHA)
    assert (tmp_path / "file").read_bytes() == BODY and names(tmp_path) == ["file"]


def test_a_server_that_never_finishes(server: Server, tmp_path: Path) -> None:
    server.cut_after = 0
    with pytest.raises(InputError, match=r"gave up after 4 attempts: the connection was cut at byte 0 of 300,000"):
        download(f"{server.url}/file", tmp_path / "file", SHA)
    assert not (tmp_path / "file").exists()


def test_a_server_that_does_not_say_how_long(server: Server, tmp_path: Path) -> None:
    server.length = False
    download(f"{server.url}/file", tmp_path / "file", SHA)
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_cut_within_a_chunk(server: Server, tmp_path: Path) -> None:
    server.chunked = True
    download(f"{server.url}/file", tmp_path / "file", SHA)
    assert (tmp_path / "file").read_bytes() == BODY and server.asked == [None, f"bytes={module.BLOCK}-"]


def test_wrong_bytes_are_deleted(server: Server, tmp_path: Path) -> None:
    server.files["file"] = BODY[:-1] + b"?"
    with pytest.raises(InputError, match=r"/file: found sha256 .*; must be .*not the file it should be"):
        download(f"{server.url}/file", tmp_path / "file", SHA)
    assert names(tmp_path) == []


def test_not_found(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="/nothing: HTTP 404 Not Found"):
        download(f"{server.url}/nothing", tmp_path / "nothing", SHA)
    assert len(server.asked) == 1 and not (tmp_path / "nothing").exists()


def test_nobody_answers(server: Server, tmp_path: Path) -> None:
    url = server.url
    server.server_close()
    with pytest.raises(InputError, match=r"gave up after 4 attempts: .*refused"):
        download(f"{url}/file", tmp_path / "file", SHA)


def test_no_space(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = module.append

    def full(file: Any, block: bytes) -> None:
        if file.tell() + len(block) > 100_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, block)

    monkeypatch.setattr(module, "append", full)
    with pytest.raises(InputError, match=r"cannot write .*file.part': no space left$"):
        download(f"{server.url}/file", tmp_path / "file", SHA)
    assert names(tmp_path) == ["file.part"]
    monkeypatch.setattr(module, "append", write)
    download(f"{server.url}/file", tmp_path / "file", SHA)
    assert (tmp_path / "file").read_bytes() == BODY and server.asked[-1] != "bytes=0-"


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
    with pytest.raises(InputError, match=r"fashion-mnist: .*found sha256.*--data-dir"):
        load("fashion-mnist")
    monkeypatch.setattr(sources, "FASHION_SHA256", sha)
    assert len(load("fashion-mnist").train) == 36
    assert names(tmp_path) == sorted(f"{name}.gz" for name in sha)


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TEACHERLESS_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for platform, expected in (
        ("linux", ".cache/teacherless"),
        ("darwin", "Library/Caches/teacherless"),
        ("win32", "AppData/Local/teacherless"),
    ):
        monkeypatch.setattr(module.sys, "platform", platform)
        assert cache_dir() == tmp_path / expected
    monkeypatch.setenv("TEACHERLESS_CACHE", str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"


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

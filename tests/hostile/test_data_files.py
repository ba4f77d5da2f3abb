"""Data files that were made to hurt: each is refused, or read, in one line, in time, in less memory than 1.5 GB."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_array

from teacherless.data import load
from teacherless.data.sets import cifar
from teacherless.errors import InputError

MEMORY = 1.5e9  # bytes, of the whole process

# --- files


def photos(root: Path, classes: tuple[str, ...] = ("a", "b"), each: int = 6) -> Path:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            Image.new("RGB", (9, 9), (40 * i, 90 * number, 7)).save(root / name / f"{i}.png")
    return root


def png(path: Path, side: int, bits: int, kind: int, samples: int, orientation: int | None = None) -> None:
    """`side` x `side` pixels of zeros, a file of some hundred kilobytes."""
    packer = zlib.compressobj(9)
    line = bytes(1 + side * samples * bits // 8)
    body = b"".join(packer.compress(line) for _ in range(side)) + packer.flush()

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    exif = b""
    if orientation:
        tag = struct.pack("<2sHLHHHLHHL", b"II", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)
        exif = chunk(b"eXIf", tag)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, bits, kind, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + exif + chunk(b"IDAT", body) + chunk(b"IEND", b""))


def zeros(path: Path, size: int, head: bytes = b"") -> None:
    """A gzip file of a header and zeros: the same member again and again."""
    path.write_bytes(gzip.compress(head) + gzip.compress(bytes(2**24)) * (size // 2**24))


def fashion(root: Path, labels: bytes, images: bytes) -> Path:
    """The four files of Fashion-MNIST, gzipped where they are given so."""
    root.mkdir()
    for part in ("train", "t10k"):
        (root / f"{part}-labels-idx1-ubyte").write_bytes(labels)
        (root / f"{part}-images-idx3-ubyte").write_bytes(images)
    return root


def idx(*shape: int, body: bytes = b"") -> bytes:
    return bytes((0, 0, 8, len(shape))) + b"".join(struct.pack(">I", side) for side in shape) + body


def arrays(path: Path, **changes: Any) -> Path:
    given = {"x_train": np.zeros((8, 6, 6), np.uint8), "y_train": np.arange(8) % 2, **changes}
    np.savez_compressed(path, **{key: value for key, value in given.items() if value is not None})
    return path


def npz_of_zeros(path: Path) -> None:
    """x_train of 2 GB in 9 MB."""
    shape = (700_000, 32, 32, 3)
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
    labels = io.BytesIO()
    np.save(labels, np.arange(shape[0]) % 2)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("y_train.npy", labels.getvalue())
        with file.open("x_train.npy", "w", force_zip64=True) as member:
            member.write(head.getvalue())
            for _ in range(700):
                member.write(bytes(1000 * 32 * 32 * 3))


def mat_of_zeros(path: Path, size: int) -> None:
    """A MATLAB file whose X says that it is small and unpacks to `size` bytes."""
    name = struct.pack("<II8s", 1, 1, b"X")
    shape = struct.pack("<IIiiii", 5, 16, 32, 32, 3, 8)
    flags = struct.pack("<IIII", 6, 8, 9, 0)
    inner = flags + shape + name + struct.pack("<II", 2, size)
    packer = zlib.compressobj(1)
    body = packer.compress(struct.pack("<II", 14, len(inner) + size) + inner)
    body += b"".join(packer.compress(bytes(2**24)) for _ in range(size // 2**24)) + packer.flush()
    head = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H2s", 0x0100, b"IM")
    path.write_bytes(head + struct.pack("<II", 15, len(body)) + body)


def svhn(root: Path, x: Any = None, y: Any = None) -> Path:
    root.mkdir()
    x = np.zeros((32, 32, 3, 20), np.uint8) if x is None else x
    y = np.arange(20)[:, None] % 10 + 1 if y is None else y
    for part in ("train", "test"):
        savemat(root / f"{part}_32x32.mat", {"X": x, "y": y})
    return root


# --- what is refused, in a process of its own, which says how much memory it took

Case = Callable[[Path], dict[str, Any]]


def fifo_photo(root: Path) -> dict[str, Any]:
    os.mkfifo(photos(root) / "a" / "x.png")
    return {"name": str(root), "img_size": 8}


def fifo_streamed(root: Path) -> dict[str, Any]:
    return {**fifo_photo(root), "stream": True}


def fifo_idx(root: Path) -> dict[str, Any]:
    root.mkdir()
    os.mkfifo(root / "train-images-idx3-ubyte")
    (root / "train-labels-idx1-ubyte").write_bytes(idx(1, body=b"\0"))
    return {"name": "fashion-mnist", "data_dir": str(root)}


def fifo_npz(root: Path) -> dict[str, Any]:
    os.mkfifo(root)
    return {"name": f"npz:{root}"}


def fifo_mat(root: Path) -> dict[str, Any]:
    os.mkfifo(svhn(root) / "pipe")
    (root / "pipe").replace(root / "train_32x32.mat")
    return {"name": "svhn", "data_dir": str(root)}


def fifo_cifar(root: Path) -> dict[str, Any]:
    root.mkdir()
    (root / "test_batch.bin").write_bytes(bytes(3073))
    for i in range(1, 6):
        os.mkfifo(root / f"data_batch_{i}.bin")
    return {"name": "cifar10", "data_dir": str(root)}


def label_of_a_billion(root: Path) -> dict[str, Any]:
    return {"name": f"npz:{arrays(root.with_suffix('.npz'), y_train=np.array([0, 1, 10**9] * 2 + [0, 1]))}"}


def label_beyond_all(root: Path) -> dict[str, Any]:
    return {"name": f"npz:{arrays(root.with_suffix('.npz'), y_train=np.array([0, 1, 2**62] * 2 + [0, 1]))}"}


def label_that_wraps(root: Path) -> dict[str, Any]:
    labels = np.array([0, 1, 2**64 - 1] * 2 + [0, 1], np.uint64)
    return {"name": f"npz:{arrays(root.with_suffix('.npz'), y_train=labels)}"}


def huge_npz(root: Path) -> dict[str, Any]:
    npz_of_zeros(root)
    return {"name": f"npz:{root}"}


def huge_gzip(root: Path) -> dict[str, Any]:
    root.mkdir()
    for part in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        zeros(root / f"{part}.gz", 2**32)
    return {"name": "fashion-mnist", "data_dir": str(root)}


def huge_gzip_that_is_idx(root: Path) -> dict[str, Any]:
    root.mkdir()
    zeros(root / "train-images-idx3-ubyte.gz", 2**32, idx(5_478_275, 28, 28))
    zeros(root / "train-labels-idx1-ubyte.gz", 2**24, idx(5_478_275))
    return {"name": "fashion-mnist", "data_dir": str(root)}


def huge_mat(root: Path) -> dict[str, Any]:
    mat_of_zeros(svhn(root) / "train_32x32.mat", 2 * 2**30)
    return {"name": "svhn", "data_dir": str(root)}


def huge_cifar(root: Path) -> dict[str, Any]:
    root.mkdir()
    for name in ("test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        with (root / f"{name}.bin").open("wb") as file:
            file.truncate(3073 * 10**6)  # a file of holes: 3 GB that take no room on the disk
    return {"name": "cifar10", "data_dir": str(root)}


def huge_photo(bits: int, kind: int, samples: int, orientation: int | None = None) -> Case:
    def make(root: Path) -> dict[str, Any]:
        png(photos(root) / "a" / "x.png", 13_300, bits, kind, samples, orientation)
        return {"name": str(root), "img_size": 8}

    return make


def huge_size(root: Path) -> dict[str, Any]:
    return {"name": str(photos(root)), "img_size": 100_000}


HUGE: dict[str, tuple[Case, str]] = {  # what is said; nothing where it is read
    "pipe among photos": (fifo_photo, ""),
    "pipe among streamed photos": (fifo_streamed, ""),
    "pipe for IDX": (fifo_idx, "must be a file"),
    "pipe for npz": (fifo_npz, "must be a file"),
    "pipe for .mat": (fifo_mat, "found no train_32x32.mat"),
    "pipe for CIFAR": (fifo_cifar, "must be a file"),
    "npz label of 10^9": (label_of_a_billion, "found class 1000000000"),
    "npz label of 2^62": (label_beyond_all, f"found class {2**62}"),
    "npz label of 2^64": (label_that_wraps, f"found class {2**64 - 1}"),
    "npz of 2 GB of zeros": (huge_npz, "unpacks to"),
    "gzip of 4 GB of zeros": (huge_gzip, "must be an IDX file"),
    "gzip of an IDX header and zeros": (huge_gzip_that_is_idx, "unpacks to"),
    ".mat of 2 GB of zeros": (huge_mat, "unpacks to"),
    "CIFAR of 3 GB": (huge_cifar, "must be"),
    "PNG of 16-bit gray": (huge_photo(16, 0, 1), ""),
    "PNG with transparency": (huge_photo(8, 6, 4), ""),
    "PNG that is turned": (huge_photo(8, 2, 3, orientation=6), ""),
    "--img-size 100000": (huge_size, "--img-size: found 100000"),
}
CHILD = """
import json, signal, sys
from pathlib import Path
from teacherless.data import load
from teacherless.data.sets import cifar
from teacherless.errors import InputError
for line in sys.stdin:
    settings = {key: Path(value) if key == "data_dir" else value for key, value in json.loads(line).items()}
    signal.alarm(60)  # which ends the process
    try:
        load(**settings)
        said = ""
    except InputError as error:
        said = str(error)
    # not getrusage, which begins with what the process that started this one had
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(json.dumps([said, 1024 * int(peak.split()[1])]), flush=True)
"""


def tried(root: Path) -> dict[str, tuple[str, int]]:
    """What a process of its own said of each, and the most memory it had taken until then."""
    root.mkdir()
    lines = [json.dumps(make(root / str(number))) for number, (make, _) in enumerate(HUGE.values())]
    done = subprocess.run([sys.executable, "-c", CHILD], input="\n".join(lines), capture_output=True, text=True)
    shutil.rmtree(root)
    found = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    assert len(found) == len(HUGE), f"{[*HUGE][len(found)]}: hangs, or ends the process"
    return dict(zip(HUGE, found, strict=True))


@pytest.mark.slow
def test_no_hang_and_no_more_memory_than_there_is(tmp_path: Path) -> None:
    """One test, or each of pytest's workers would make and read all of them."""
    for what, (said, peak) in tried(tmp_path / "huge").items():
        words = HUGE[what][1]
        assert (words in said) if words else said == "", (what, said)
        assert "\n" not in said, what
        assert peak < MEMORY, f"{what}: {peak / 1e9:.2f} GB"


# --- what is refused in one line

SMALL: dict[str, tuple[Case, str]] = {
    "IDX whose product wraps": (
        lambda root: {"name": "fashion-mnist", "data_dir": fashion(root, idx(1, body=b"\0"), idx(2**31, 2**31, 4))},
        "unpacks to",
    ),
    "IDX whose product wraps to nothing": (
        lambda root: {"name": "fashion-mnist", "data_dir": fashion(root, idx(0), idx(2**31, 2**31, 2**31 + 2**30))},
        "unpacks to",
    ),
    "IDX of one class": (
        lambda root: {
            "name": "fashion-mnist",
            "data_dir": fashion(root, idx(20, body=bytes(20)), idx(20, 28, 28, body=bytes(20 * 784))),
        },
        "images of 1 classes and must have 10",
    ),
    "IDX without images": (
        lambda root: {"name": "fashion-mnist", "data_dir": fashion(root, idx(0), idx(0, 28, 28))},
        "must be 28x28",
    ),
    "SVHN labels of text": (
        lambda root: {"name": "svhn", "data_dir": svhn(root, y=np.array([["a"]] * 20, "U1"))},
        "must be X, bytes|found label",
    ),
    "SVHN labels of objects": (
        lambda root: {"name": "svhn", "data_dir": svhn(root, y=np.array([["a"]] * 20, object))},
        "found label",
    ),
    "SVHN labels that are NaN": (
        lambda root: {"name": "svhn", "data_dir": svhn(root, y=np.full((20, 1), np.nan))},
        "found label nan; must be 1 to 10",
    ),
    "SVHN labels that are complex": (
        lambda root: {"name": "svhn", "data_dir": svhn(root, y=np.full((20, 1), 1 + 2j))},
        "found label",
    ),
    "SVHN labels between classes": (
        lambda root: {"name": "svhn", "data_dir": svhn(root, y=np.full((20, 1), 1.5))},
        "found label 1.5; must be 1 to 10",
    ),
    "SVHN labels that are sparse": (
        lambda root: {"name": "svhn", "data_dir": svhn(root, y=csc_array(np.ones((20, 1))))},
        "must be X, bytes",
    ),
    ".mat of noise": (
        lambda root: {"name": "svhn", "data_dir": spoiled(svhn(root), "train_32x32.mat", bytes(range(256)) * 9)},
        "is not a readable MATLAB file",
    ),
    ".mat whose parts are longer than it": (
        lambda root: {"name": "svhn", "data_dir": spoiled(svhn(root), "train_32x32.mat", bytes(128) + b"\xff" * 64)},
        "is not a readable MATLAB file",
    ),
    "npz labels that are NaN": (
        lambda root: {"name": f"npz:{arrays(root.with_suffix('.npz'), y_train=np.full(8, np.nan))}"},
        "must be integers",
    ),
    "npz labels that are complex": (
        lambda root: {"name": f"npz:{arrays(root.with_suffix('.npz'), y_train=np.full(8, 1j))}"},
        "must be integers",
    ),
    "npz with an absurd header": (
        lambda root: {"name": f"npz:{packed(root.with_suffix('.npz'), 'x_train.npy', header((10**12, 8, 8)))}"},
        "is not a readable .npz",
    ),
    "npz with a negative header": (
        lambda root: {"name": f"npz:{packed(root.with_suffix('.npz'), 'x_train.npy', header((-1, 8, 8)))}"},
        "is not a readable .npz",
    ),
    "npz whose members climb out": (
        lambda root: {"name": f"npz:{packed(root.with_suffix('.npz'), '../../x_train.npy', header((1, 8, 8)))}"},
        "unknown array in|is not a readable .npz",
    ),
    "name that is too long": (lambda root: {"name": str(root / ("n" * 300))}, "no such folder|File name too long"),
    "name of no folder that is too long": (lambda root: {"name": "n" * 300}, "unknown data"),
    "--data-dir that is too long": (
        lambda root: {"name": "cifar10", "data_dir": root / ("n" * 300)},
        "found no test_batch.bin|File name too long",
    ),
    "name with a NUL": (lambda root: {"name": "./a\0b"}, "NUL"),
    "link to itself": (lambda root: {"name": str(linked(root))}, "Too many levels of symbolic links|no such folder"),
    "class that is a link to its folder": (
        lambda root: {"name": str(linked(photos(root) / "again", ".").parent)},
        "'again' is a link to a folder that it is in",
    ),
    "class without images": (
        lambda root: {"name": str((photos(root) / "empty").mkdir() or root)},
        "class 'empty' has no images",
    ),
    "class of another folder only": (
        lambda root: {"name": str(photos(root / "val", ("a",)).parent) if photos(root / "train") else ""},
        "val/ lacks class 'b'",
    ),
    "split without images": (
        lambda root: {
            "name": str(root) if photos(root / "train") and (root / "test" / "a").mkdir(parents=True) is None else ""
        },
        "found no images in test/",
    ),
    "fewer images than classes": (
        lambda root: {"name": str(photos(root, tuple("abcdef"))), "train_samples": 3},
        "--train-samples: found 3; .* has 6 classes",
    ),
}


def spoiled(root: Path, name: str, content: bytes) -> Path:
    (root / name).write_bytes(content)
    return root


def header(shape: tuple[int, ...]) -> bytes:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return head.getvalue() + bytes(64)


def packed(path: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(name, content)
    return path


def linked(path: Path, target: str | None = None) -> Path:
    path.symlink_to(target or path.name)
    return path


@pytest.mark.parametrize("what", SMALL)
def test_what_cannot_be_is_refused_in_a_line(tmp_path: Path, what: str) -> None:
    make, words = SMALL[what]
    settings = {"img_size": None, **make(tmp_path / "data")}
    before = set(tmp_path.parent.rglob("*"))
    with warnings.catch_warnings(), pytest.raises(InputError, match=words) as caught:
        warnings.simplefilter("error")
        load(**settings)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    assert set(tmp_path.parent.rglob("*")) == before, "nothing was written, least of all elsewhere"


# --- what is odd, and read


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other names")
def test_names_that_are_odd(tmp_path: Path) -> None:
    """Markup, newlines, escapes, other scripts, bytes that are no text, 255 of them: a class is a folder's name."""
    names = [
        "[bold red]x",
        "a\nb",
        "\x1b[31mred",
        "猫",
        "кошка",
        "n" * 255,
        os.fsdecode(b"\xff\xfe"),
        "a b'\"",
        "$x_$",
    ]
    root = photos(tmp_path / "odd", tuple(names))
    (root / names[0] / f"{'m' * 251}.png").write_bytes((root / names[0] / "0.png").read_bytes())
    (root / names[0] / "loop.png").symlink_to("loop.png")
    source = load(str(root), img_size=8)
    assert sorted(source.classes) == sorted(names)
    assert source.test is not None and source.val is not None
    assert len(source.train) + len(source.val) + len(source.test) == 6 * len(names) + 1, "the loop is left out"


def test_an_archive_whose_members_climb_out(tmp_path: Path) -> None:
    """What is unpacked is asked for by name; what else an archive holds stays in it."""
    release = cifar.CIFAR10
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        for name in (*(f"{release.folder}/{file}" for file in (*release.train, release.names, release.test)),
                     "../escape", "/tmp/escape-teacherless", f"{release.folder}/../../escape"):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"data"))
    (tmp_path / "in").mkdir()
    cifar._unpack(release, tmp_path / "a.tar.gz", tmp_path / "in" / "folder")
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"a.tar.gz", *(f"in/folder/{file}" for file in (*release.train, release.names, release.test))}
    assert not Path("/tmp/escape-teacherless").exists()

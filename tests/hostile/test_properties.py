"""Whatever stands in a file or a word: it is read, or refused in one line. hypothesis looks for what does neither.

What is likely to come far is made here, each target takes bytes (tests/fuzz/targets.py).
"""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from PIL import Image
from targets import STUDENT, TARGETS

from teacherless.data import load
from teacherless.data.sets import cifar
from teacherless.errors import InputError, printable
from teacherless.files import schemas
from teacherless.runs.config import Run

COMMON: dict[str, Any] = {"deadline": 10_000, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("short", max_examples=600, derandomize=True, **COMMON)  # a minute; the same ones every time
settings.register_profile("long", max_examples=10_000, **COMMON)
PROFILES = [pytest.param("short", marks=pytest.mark.slow), pytest.param("long", marks=pytest.mark.exhaustive)]
LITTLE = 100_000_000  # bytes that one value may take

# What files say ------------------------------------------------------------------------------------------------------

leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
typed = [schemas.Summary, schemas.Stored, schemas.Config, schemas.Line, schemas.Finding, schemas.Told, schemas.Recipe]
names = sorted({name for kind in typed for name in kind.__annotations__} | schemas.MEASURED | set(Run.model_fields))
keys = st.sampled_from([*names, "peer0", "train/ce", "num_classes", "in_channels", "params", "dead"]) | st.text(
    max_size=8
)
anything = st.recursive(leaf, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=8))
number = st.floats(0, 100, allow_nan=False) | st.none() | leaf
row = st.fixed_dictionaries({key: number for key in sorted(schemas.MEASURED)}, optional={"params": leaf})
student = st.sampled_from(["peer0", "peer1"]) | st.text(max_size=8)
summary = st.fixed_dictionaries(
    {
        "method": leaf,
        "epochs": st.integers(0, 9) | leaf,
        "students": st.dictionaries(student, row, min_size=1, max_size=3),
        "ensemble": row | st.none(),
        "chosen": student,
        "train_seconds": number,
    },
    optional={key: anything for key in ("left", "doctor", "files", "dead", "unreadable")},
)
stored = st.fixed_dictionaries(
    {"settings": st.dictionaries(keys, anything, max_size=4), "data": anything, "engine": st.just("loop"), "amp": leaf}
)
config = st.fixed_dictionaries(
    {"architecture": st.sampled_from(["small-cnn", "resnet8", "timm/resnet18", "os:system"]) | leaf,
     "arguments": st.dictionaries(st.sampled_from([*STUDENT["arguments"], "depth", "layout"]), leaf, max_size=4)},
    optional={key: anything for key in ("classes", "mean", "std", "channels", "input_size", "fit")},
)  # fmt: skip
line = st.fixed_dictionaries({"epoch": st.integers() | leaf, "seconds": number}, optional={"train/ce": leaf})


def as_json(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    return strategy.map(lambda value: json.dumps(value).encode())


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf").replace("null", "[]")


def idx_head(shape: list[int]) -> bytes:
    return bytes((0, 0, 8, len(shape))) + b"".join(size.to_bytes(4, "big") for size in shape)


sizes = st.lists(st.sampled_from([0, 1, 2, 28, 2**16, 2**31, 2**32 - 1]), max_size=3)
idx = st.tuples(sizes.map(idx_head), st.binary(max_size=16)).map(b"".join)

dtypes = st.sampled_from(["|u1", "<i8", "<f4", "<c8", "|b1", "|S3", "<U2", "|O", "<M8[s]"])
header = st.fixed_dictionaries(
    {"descr": dtypes, "fortran_order": st.booleans(), "shape": st.lists(st.integers(-1, 2**40), max_size=4).map(tuple)}
)


def npy(head: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, head)
    return file.getvalue()


def array(shape: tuple[int, ...], dtype: str) -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(shape, dtype))
    return file.getvalue()


member = st.tuples(header.map(npy), st.binary(max_size=32)).map(b"".join) | st.builds(
    array, st.sampled_from([(4,), (4, 8, 8), (4, 8, 8, 3), (4, 2), (0,), ()]), st.sampled_from(["u1", "i8", "f4", "U2"])
)


def packed(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        for name, content in members.items():
            out.writestr(name, content)
    return file.getvalue()


split = st.sampled_from([f"{axis}_{part}.npy" for part in ("train", "test", "val") for axis in "xy"])
npz = st.dictionaries(split | st.text("abx/._é", min_size=1, max_size=8), member, max_size=5).map(packed)

tensor = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "BF16", "I64", "F8_E4M3"]) | leaf, "shape": st.lists(st.integers(0, 2**40)),
     "data_offsets": st.lists(st.integers(0, 2**40), min_size=2, max_size=2)})  # fmt: skip
tensors = st.dictionaries(st.sampled_from(["__metadata__", "head.weight", "head.bias"]) | st.text(max_size=4), tensor)


def framed(content: bytes) -> bytes:
    return len(content).to_bytes(8, "little") + content


word = st.text(max_size=30) | st.lists(
    st.sampled_from(["resnet8", "*", "2", ",", "=", "lr", "width", "1e9", "nan", "[[", "]", "{", '"', "dml.", "-"])
    | st.sampled_from(["temperature", "variant", "sum", "topology", "[[0,1],[1,0]]", "views"]), max_size=9,
).map("".join)  # fmt: skip

records = st.integers(0, 3).flatmap(
    lambda count: st.integers(-1, 1).map(
        lambda more: bytes(max(0, count * (1 + cifar.PIXELS) + more)) + b"\xff" * (more > 0)
    )
)

LIKELY: dict[str, st.SearchStrategy[bytes]] = {
    "idx": idx | idx.map(gzip.compress) | idx.map(lambda data: gzip.compress(data)[:-5]),
    "cifar": records,
    "cifar-names": st.text(max_size=60).map(str.encode),
    "npz": npz | npz.map(lambda data: data[:-9]) | st.tuples(npz, st.binary(max_size=9)).map(b"".join) | member,
    "safetensors": as_json(tensors | anything).map(framed),
    "config.json": as_json(config | anything),
    "run.json": as_json(stored | anything),
    "summary.json": as_json(summary | anything),
    "metrics.jsonl": st.lists(as_json(line | anything), max_size=4).map(b"\n".join),
    "failed.json": as_json(st.fixed_dictionaries({"failed": leaf}) | anything),
    "recipe": st.dictionaries(st.sampled_from(names), anything, max_size=4).map(
        lambda content: "\n".join(f"{key} = {toml(value)}" for key, value in content.items()).encode(errors="replace")
    ),
    "words": st.lists(word, max_size=3).map(lambda words: "\n".join(words).encode(errors="surrogatepass")),
}


def look_for(strategy: st.SearchStrategy[Any], profile: str, check: Callable[[Any], object]) -> None:
    """Everything a strategy makes passes, each within 10 seconds and the memory."""

    find(st.text(), bool)  # hypothesis asks once what each character is, and takes 200 MB for it
    grown = 0  # at most, while ours ran once: what hypothesis remembers of ten thousand values is more

    @settings(settings.get_profile(profile))
    @given(strategy)
    def found(value: Any) -> None:
        nonlocal grown
        before = peak()
        check(value)
        grown = max(grown, peak() - before)

    found()
    if sys.platform == "linux":  # elsewhere in other units
        assert grown <= LITTLE


def peak() -> int:
    """The most memory that this process has had, bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """hypothesis leaves a folder where it works."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", TARGETS)
def test_it_is_read_or_refused(name: str, profile: str) -> None:
    look_for(LIKELY[name] | st.binary(max_size=200), profile, TARGETS[name])


MEASURED = {"test_ece": 0.0, "test_nll": None, "test_top1": 0.0, "val_top1": 0.0}
SUMMARY = {"method": "", "epochs": 0, "ensemble": None, "chosen": "peer0", "train_seconds": 0.0}
FOUND = {  # here or by fuzz.py: each was once a traceback, or more than one line
    "a key with a newline": ("summary.json", {**SUMMARY, "students": {"a\nb": MEASURED | {"val_top1": ""}}}),
    "no number of parameters": ("summary.json", {**SUMMARY, "students": {"peer0": MEASURED | {"params": None}}}),
    "dead, but no list": ("summary.json", {**SUMMARY, "students": {"peer0": MEASURED}, "dead": 1}),
    "more than why": ("failed.json", {"": None, "failed": ""}),
    "more channels than a tensor can have": (
        "config.json",
        {**STUDENT, "arguments": {**STUDENT["arguments"], "in_channels": 7 * 10**31}},
    ),
    "a word of thousands of characters": ("words", b"resnet8," + b"\xff" * 5000),
    "no images of absurd size": ("idx", idx_head([0, 2**32 - 1, 2**32 - 1])),
}


@pytest.mark.parametrize("what", FOUND)
def test_what_was_found(what: str) -> None:
    name, content = FOUND[what]
    TARGETS[name](content if isinstance(content, bytes) else json.dumps(content).encode())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other names")
@pytest.mark.parametrize("profile", PROFILES)
def test_names_of_folders(profile: str, tmp_path: Path) -> None:
    """A folder may have any name that its system takes; what is printed of it is one line without escapes."""
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(photo := tmp_path / "photo.png")
    name = (st.binary(min_size=1, max_size=255).map(os.fsdecode) | st.text(min_size=1, max_size=60)).filter(
        lambda text: not set(text) & {"/", "\0"} and text not in (".", "..")
    )

    def check(found: list[str]) -> None:
        root = tmp_path / "data"
        shutil.rmtree(root, ignore_errors=True)
        try:
            for text in found:
                (root / text).mkdir(parents=True)
                (root / text / "0.png").hardlink_to(photo)
        except (OSError, UnicodeEncodeError):
            return  # the system does not take it
        said = ""
        try:
            source = load(str(root), img_size=8, quiet=True)
            assert set(source.classes) <= set(found)
            said = str(source) + "".join(map(printable, source.classes))
        except InputError as error:
            said = printable(str(error))
        assert printable(said) == said

    look_for(st.lists(name, min_size=1, max_size=3, unique=True), profile, check)

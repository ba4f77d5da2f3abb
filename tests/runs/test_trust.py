"""Nothing is ever unpickled, and nothing absurd takes memory."""

from __future__ import annotations

import json
import pickle
import re
import resource
import signal
import struct
from pathlib import Path

import pytest
from conftest import tiny
from forked import Forked

import teacherless as tl
from teacherless.errors import InputError
from teacherless.models.files import load_student, load_weights, save_student
from teacherless.training import checkpoint

SRC = Path(tl.__file__).parent


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.target,))


def student(folder: Path) -> Path:
    save_student(folder, tl.create("small-cnn", num_classes=3, in_channels=1, seed=0), {"classes": ["a", "b", "c"]})
    return folder


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_planted_pickle_never_runs_in_a_student(file: str, tmp_path: Path) -> None:
    folder = student(tmp_path / "student")
    (folder / file).write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    with pytest.raises(InputError, match=re.escape(str(folder))):
        load_student(folder)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "SHA256SUMS"])
def test_a_planted_pickle_never_runs_in_a_checkpoint(file: str, tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "c", 1, checkpoint.random_state())
    path = tmp_path / "c" / "0000000001" / file
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    with pytest.raises(InputError):
        checkpoint.read(tmp_path / "c")
    assert not (tmp_path / "boom").exists()


def test_the_package_has_no_unpickling_call() -> None:
    for file in SRC.rglob("*.py"):
        text = file.read_text()
        assert not re.search(
            r"\btorch\.load\(|\bpickle\b(?!s?[ ,.)])|\bnp\.load\([^)]*allow_pickle=True|\bjoblib\.load\(", text
        ), file


def test_a_header_that_claims_a_terabyte_takes_no_memory(tmp_path: Path) -> None:
    folder = student(tmp_path / "student")
    size = 2**40
    header = json.dumps({"head.weight": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="safetensors"):
        load_student(folder)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + header)
    with pytest.raises(InputError, match="safetensors"):
        load_student(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architecture": "os:system"}, "os:system"),
        ({"architecture": 3}, "3"),
        ({"arguments": {"num_classes": 10**12, "in_channels": 1}}, "num_classes|another architecture"),
        ({"arguments": {"num_classes": "many", "in_channels": 1}}, "num_classes"),
        ({"arguments": []}, "config"),
    ],
)
def test_configs_that_say_absurd_things(change: dict[str, object], words: str, tmp_path: Path) -> None:
    folder = student(tmp_path / "student")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=words):
        load_student(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_weights_of_other_shapes_are_refused_before_they_are_read(tmp_path: Path) -> None:
    folder = student(tmp_path / "student")
    with pytest.raises(InputError, match="another architecture"):
        load_weights(tiny(0), folder / "model.safetensors")


def test_a_file_size_limit_while_saving(tmp_path: Path) -> None:
    """A real write that fails half-way: one line, exit code 2, and what was there before still resumes."""

    def before() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    out = tmp_path / "run"
    done = Forked("train", "plain", "--steps", "4", "--checkpoint-every", "2s", "--out", str(out), before=before)
    _, err = done.communicate()
    assert done.returncode == 2
    assert err.count("\n") == 1
    assert "cannot save a checkpoint" in err
    assert "File too large" in err
    assert not list((out / "checkpoints").iterdir()), "nothing half-written is left"

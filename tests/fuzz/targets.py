"""What reads files and words that anybody may have made, each as a function of bytes: hypothesis and atheris feed them.

A target reads its bytes, or refuses them in one line. Whatever else happens is a fault.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save

from teacherless import models
from teacherless.data.contents import Options
from teacherless.data.sets import cifar
from teacherless.data.sets.hub import npz
from teacherless.data.sets.idx import read_idx
from teacherless.errors import InputError
from teacherless.files import schemas
from teacherless.models.files import CONFIG, WEIGHTS, load_student, load_weights
from teacherless.runs import recipes
from teacherless.runs.config import Run, as_given, specs
from teacherless.runs.merge import merge
from teacherless.study import show
from teacherless.study.cells import Cell
from teacherless.training.settings import read

Target = Callable[[bytes], object]

FOLDER = Path(tempfile.mkdtemp(prefix="teacherless-fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
STUDENT = {"architecture": "small-cnn", "arguments": {"num_classes": 2, "in_channels": 1, "width": 2}}
NET = models.create("small-cnn", **STUDENT["arguments"])


def told(read: Callable[[], object]) -> str:
    """What a reader says of what it refuses; empty where it takes it. It is one line, and not a page."""
    try:
        read()
    except InputError as error:
        said = str(error)
        assert said and len(said.splitlines()) == 1 and len(said) < 4000, said
        return said
    return ""


def put(name: str, data: bytes) -> Path:
    """The file, for a reader."""
    path = FOLDER / name
    path.write_bytes(data)
    return path


def idx(data: bytes) -> None:
    path = put("images.idx", data)
    told(lambda: read_idx(path, 1))
    told(lambda: read_idx(path, 3))


def cifar_records(data: bytes) -> None:
    path = put("data_batch_1.bin", data)
    for release in (cifar.CIFAR10, cifar.CIFAR100):
        told(lambda release=release: cifar._records(release, path))


def cifar_names(data: bytes) -> None:
    path = put("batches.meta.txt", data)
    told(lambda: cifar._class_names(cifar.CIFAR10, path))


def npz_arrays(data: bytes) -> None:
    path = put("arrays.npz", data)
    told(lambda: npz(path, Options()))


def weights(data: bytes) -> None:
    path = put(WEIGHTS, data)
    told(lambda: load_weights(NET, path))


def config(data: bytes) -> None:
    """A student's, beside weights that fit what it should say."""
    where = FOLDER / "student"
    if not where.exists():
        where.mkdir()
        (where / WEIGHTS).write_bytes(save(NET.state_dict()))
    (where / CONFIG).write_bytes(data)
    told(lambda: load_student(where))


def run_json(data: bytes) -> None:
    """As `evaluate` takes up a run."""
    put("run.json", data)

    def taken_up() -> None:
        stored = schemas.stored(FOLDER)
        if stored is not None:
            specs(read(Run, {"method": "plain", **as_given(stored["settings"])}))

    told(taken_up)


def summary(data: bytes) -> None:
    """As the end of `train` shows it."""
    put("summary.json", data)

    def shown() -> None:
        found = schemas.summary(FOLDER)
        assert found is not None
        with contextlib.redirect_stdout(io.StringIO()):
            show.summary(found, FOLDER, smoke=False)

    told(shown)


def metrics(data: bytes) -> None:
    put("metrics.jsonl", data)
    told(lambda: schemas.lines(FOLDER))


def cell(data: bytes) -> None:
    """A comparison's cell that failed."""
    where = FOLDER / "cell"
    where.mkdir(exist_ok=True)
    (where / "failed.json").write_bytes(data)
    Cell("plain", Run(method="plain"), where).done()


def recipe(data: bytes) -> None:
    path = put("mine.toml", data)

    def shown() -> None:
        found = recipes.load(str(path))
        recipes.card(found)
        recipes.published_line(found)

    told(shown)


def words(data: bytes) -> None:
    """`--set` and `--student`, a word to a line."""
    lines = data.decode(errors="surrogateescape").splitlines()[:8]
    told(lambda: specs(merge("dml", {"student": lines or None})))
    told(lambda: merge("dml", {"set": lines or None}))


TARGETS: dict[str, Target] = {
    "idx": idx,
    "cifar": cifar_records,
    "cifar-names": cifar_names,
    "npz": npz_arrays,
    "safetensors": weights,
    "config.json": config,
    "run.json": run_json,
    "summary.json": summary,
    "metrics.jsonl": metrics,
    "failed.json": cell,
    "recipe": recipe,
    "words": words,
}
torch.set_num_threads(1)

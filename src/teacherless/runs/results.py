"""The students of a finished run, evaluated again."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from teacherless.data import Files, Loader, Source
from teacherless.data.augment.distort import counter_hash
from teacherless.data.splits import Split
from teacherless.errors import InputError
from teacherless.evaluation.metrics import metrics, predict, predicted
from teacherless.files import disk
from teacherless.losses import log_probs
from teacherless.method import Batch, Wants
from teacherless.methods._parts import MeanProbability
from teacherless.runs.build import load_source
from teacherless.runs.config import Run
from teacherless.runs.stored import StoredRun, read_run
from teacherless.training.lifecycle import Result
from teacherless.training.summary import search_of

MISTAKES = 24  # that are shown by evaluate
SHOWN, THUMB, SAMPLES = 12, 96, 2000  # on a run's page: so many, so large, of so many validation images drawn by hash
MISTAKES_FILE = "mistakes.json"


class Mistake(NamedTuple):
    """An image that the shipped student takes for another class."""

    row: int  # in the split
    file: str | None
    label: str
    taken_for: str
    confidence: float  # in [0, 1]


class Evaluation(NamedTuple):
    """What the students make of one split."""

    data: str
    split: str
    images: int
    classes: list[str]
    metrics: dict[str, dict[str, float]]  # of every student, and of the ensemble of peers
    shipped: str
    confusion: list[list[int]]  # [label][prediction] of the shipped student; none where persons are searched for
    mistakes: list[Mistake]  # the most confident first
    pixels: Tensor | None  # of the mistakes, uint8 [M, H, W, C]

    @property
    def per_class(self) -> list[float | None]:
        """Top-1 of each class's images, percent; None for a class without any."""
        return [100 * row[i] / sum(row) if sum(row) else None for i, row in enumerate(self.confusion)]

    def about(self) -> dict[str, Any]:
        """All but the pixels, for JSON."""
        values = self._asdict() | {"mistakes": [mistake._asdict() for mistake in self.mistakes]}
        del values["pixels"]
        return values | {"per_class": self.per_class}


def evaluate_folder(
    path: Path, *, data: str | None, data_dir: Path | None, split: str, trust_imports: bool = False
) -> Evaluation:
    """Evaluate every student of a run folder (and their ensemble, for peers), or one student's folder.

    The data is what the run was trained on, unless named. Raises: InputError for anything that does not fit together.
    """
    stored = read_run(path, trust_imports=trust_imports)
    source = source_of(path, stored, data, data_dir)
    run, students, shipped = stored
    run = run or Run(method="plain")
    config = next(iter(students.values())).config
    for name, student in students.items():
        if len(student.config["classes"]) != len(source.classes):
            theirs = len(student.config["classes"])
            raise InputError(f"--data: {source.name} has {len(source.classes)} classes; {name} was trained on {theirs}")
    chosen = {"val": source.val, "test": source.test}[split]
    stats = {"mean": config["mean"], "std": config["std"]}
    nets = {name: student.net for name, student in students.items()}
    search = search_of(source, run.workers, **stats)
    if search and source.reid and split == "test":
        queries = len(source.reid[0].split)
        return Evaluation(source.name, split, queries, source.classes, search(nets), shipped, [], [], None)
    if chosen is None:
        raise InputError(f"--split: {source.name} has no {split} split")
    if len(nets) > 1 and run.method == "dml":
        nets["ensemble"] = MeanProbability(list(nets.values()))
    loader = Loader(chosen, batch_size=512, augment=None, wants=Wants(index=True), **stats)
    rows: list[Tensor] = []
    logits, labels = predict(nets, noting(loader.epoch(0), rows))
    measured = {name: dict(metrics(each, labels)) for name, each in logits.items()}
    guess, mistakes = predicted(logits[shipped]), mistakes_of(logits[shipped], labels, torch.cat(rows), chosen, source)
    places, classes = torch.tensor([each.row for each in mistakes], dtype=torch.long), source.classes
    counts, pixels = confusion(guess, labels, len(classes)), chosen.sample(places)
    return Evaluation(source.name, split, len(labels), classes, measured, shipped, counts, mistakes, pixels)


def source_of(path: Path, stored: StoredRun, data: str | None = None, data_dir: Path | None = None) -> Source:
    """What a run was trained on, or the data that is named instead. Raises: InputError where neither is known."""
    run, config = stored.run, next(iter(stored.students.values())).config
    if run is None and data is None:
        raise InputError(f"--data: {path} does not say what it was trained on; name the data")
    if run and data in (None, run.data):
        source = load_source(run.model_copy(update={"data_dir": data_dir or run.data_dir}))
    else:  # nothing of what the run did to its own data, but how the student reads its images
        other = Run(method="plain", data=str(data), data_dir=data_dir, img_size=config["input_size"][0])
        source = load_source(other, reader=config)
    if source.channels != config["channels"]:
        wanted = config["channels"]
        raise InputError(f"--data: the channels of {source.name} are {source.channels}; the student reads {wanted}")
    return source


def confusion(guess: Tensor, labels: Tensor, classes: int) -> list[list[int]]:
    """How often each class is taken for each. `[N], [N] -> [label][prediction]`; no prediction counts nowhere."""
    pairs = (labels * classes + guess)[guess >= 0]
    counts: list[list[int]] = pairs.bincount(minlength=classes**2).view(classes, classes).tolist()
    return counts


def mistakes_of(logits: Tensor, labels: Tensor, rows: Tensor, split: Split, source: Source) -> list[Mistake]:
    """What is taken for another class, the surest first, at most MISTAKES. `[N, C], [N], [N]`: rows of the split."""
    guess, sure = predicted(logits), log_probs(logits).amax(1)
    wrong = ((guess != labels) & (guess >= 0)).nonzero().flatten()
    wrong = wrong[sure[wrong].argsort(descending=True, stable=True)][:MISTAKES]
    mistakes = []
    for i, place in zip(wrong.tolist(), rows[wrong.cpu()].tolist(), strict=True):
        file = split.name(place) if isinstance(split, Files) else None
        names = source.classes[int(labels[i])], source.classes[int(guess[i])]
        mistakes.append(Mistake(place, file, *names, math.exp(sure[i])))
    return mistakes


def write_mistakes(source: Source, done: Result) -> None:
    """mistakes.json in the run's folder: the validation images, of at most SAMPLES, that the student to ship gets wrong
    most confidently, as small PNGs; nothing where there is no validation."""
    if source.val is None or done.out is None:
        return
    name = done.summary["chosen"]
    net = done.method.students()[name]
    device = next(net.parameters()).device
    some = counter_hash(0, torch.arange(len(source.val))).argsort(stable=True)[:SAMPLES]
    stats: dict[str, Any] = {"mean": source.mean, "std": source.std, "device": device}
    loader = Loader(source.val.take(some), batch_size=512, augment=None, wants=Wants(index=True), quiet=True, **stats)
    rows: list[Tensor] = []
    logits, labels = predict({name: net}, noting(loader.epoch(0), rows))
    places = some[torch.cat(rows)]
    mistakes = mistakes_of(logits[name].cpu(), labels.cpu(), places, source.val, source)[:SHOWN]
    pixels = source.val.sample(torch.tensor([each.row for each in mistakes], dtype=torch.long))
    images = [{**each._asdict(), "png": _png(image)} for each, image in zip(mistakes, pixels, strict=True)]
    disk.write_json(done.out / MISTAKES_FILE, {"student": name, "images": images})


def _png(pixels: Tensor) -> str:
    """An image `[H, W, C]`, uint8, of at most THUMB pixels a side, as base64."""
    image = Image.fromarray(pixels.squeeze(-1).numpy())
    image.thumbnail((THUMB, THUMB))
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def noting(batches: Iterator[Batch], rows: list[Tensor]) -> Iterator[Batch]:
    """The batches, each one's rows noted as it passes: images that cannot be read are left out of them."""
    for batch in batches:
        assert batch.index is not None
        rows.append(batch.index.cpu())
        yield batch

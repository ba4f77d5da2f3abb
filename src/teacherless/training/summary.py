"""What a run's networks are worth: its summary.json, and `teacherless evaluate` of what it left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from teacherless.data import Loader, Source
from teacherless.errors import InputError
from teacherless.evaluation.metrics import evaluate
from teacherless.evaluation.reid import look, reid
from teacherless.method import MeanProbability, Method, Wants
from teacherless.runs import config as runs
from teacherless.runs.config import Run
from teacherless.training.record import Recorder

Search = Callable[[Mapping[str, nn.Module]], dict[str, dict[str, float]]]


def search_of(source: Source, workers: int = 0, device: torch.device | str = "cpu", **stats: Any) -> Search | None:
    """For a source of persons, what `evaluation.reid.reid` says of networks: `{name: {"rank1", …, "map", …}}`."""
    parts = source.reid
    if parts is None:
        return None
    make: dict[str, Any] = {"mean": source.mean, "std": source.std, "device": device, "workers": workers, **stats}

    def search(nets: Mapping[str, nn.Module]) -> dict[str, dict[str, float]]:
        query, gallery, multi = (
            part and look(nets, Loader(part.split, batch_size=128, wants=Wants(index=True), **make), part.cameras)
            for part in parts
        )
        assert query and gallery
        return {name: reid(query[name], gallery[name], multi[name] if multi else None) for name in query}

    return search


def summarise(
    method: Method, val: Any, test: Any, head: dict[str, Any], recorder: Recorder, search: Search | None = None
) -> dict[str, Any]:
    """summary.json: validation and test of what is shipped. The test set is read here, once."""
    students = method.students()
    ensemble = method.ensemble()
    predictors = dict(students) | ({"ensemble": ensemble} if ensemble else {})
    on_val = evaluate(predictors, val.epoch(0)) if val else {}
    on_test = evaluate(predictors, test.epoch(0)) if test else {}
    found = search(students) if search else {}

    def row(name: str) -> dict[str, Any]:
        tested = on_test.get(name, {})
        return {"val_top1": on_val.get(name, {}).get("top1"),
                **{f"test_{metric}": tested.get(metric) for metric in ("top1", "nll", "ece")},
                **{f"test_{metric}": value for metric, value in found.get(name, {}).items()}}  # fmt: skip

    best = max(students, key=lambda name: on_val[name]["top1"]) if on_val else next(iter(students))
    return {
        **head,
        "students": {n: {"params": sum(p.numel() for p in s.parameters()), **row(n)} for n, s in students.items()},
        "ensemble": row("ensemble") if ensemble or "ensemble" in found else None,
        "chosen": best,
        "train_seconds": round(recorder.seconds, 3),
        "img_per_s": round(recorder.images / max(recorder.seconds, 1e-9), 1),
    }


def evaluate_folder(
    path: Path, *, data: str | None, data_dir: Path | None, split: str, trust_imports: bool = False
) -> dict[str, dict[str, float]]:
    """Metrics of every student of a run folder (and their ensemble, for peers), or of one student's folder.

    The data is what the run was trained on, unless named. Raises: InputError for anything that does not fit together.
    """
    run, students = runs.read_folder(path, trust_imports=trust_imports)
    if run is None and data is None:
        raise InputError(f"--data: {path} does not say what it was trained on; name the data")
    run = run or Run(method="plain")
    config = next(iter(students.values())).config
    if data is not None:  # the student expects its own input size, whatever the new data's is
        run = run.model_copy(update={"data": data, "img_size": config["input_size"][0]})
    source = runs.load_source(run.model_copy(update={"data_dir": data_dir or run.data_dir}))
    for name, student in students.items():
        if len(student.config["classes"]) != len(source.classes):
            raise InputError(f"--data: {source.name} has {len(source.classes)} classes; {name} was trained on "
                             f"{len(student.config['classes'])}")  # fmt: skip
    chosen = {"val": source.val, "test": source.test}[split]
    stats = {"mean": config["mean"], "std": config["std"]}
    search = search_of(source, run.workers, **stats)
    if search and split == "test":
        return search({name: student.net for name, student in students.items()})
    if chosen is None:
        raise InputError(f"--split: {source.name} has no {split} split")
    predictors = {name: student.net for name, student in students.items()}
    if len(predictors) > 1 and run.method == "dml":
        predictors["ensemble"] = MeanProbability(list(predictors.values()))
    return evaluate(predictors, Loader(chosen, batch_size=512, augment=None, **stats))

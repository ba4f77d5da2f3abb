"""What a run's networks are worth: its summary.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from teacherless.data import Loader, Source
from teacherless.evaluation.metrics import constant, metrics, predict
from teacherless.evaluation.reid import look, reid
from teacherless.files import schemas
from teacherless.method import Wants
from teacherless.training import doctor, predictions
from teacherless.training.loop import Training

Search = Callable[[Mapping[str, nn.Module]], dict[str, dict[str, float]]]


def search_of(source: Source, workers: int = 0, **stats: Any) -> Search | None:
    """For a source of persons, what `evaluation.reid.reid` says of networks: `{name: {"rank1", …, "map", …}}`."""
    parts = source.reid
    if parts is None:
        return None
    make: dict[str, Any] = {"mean": source.mean, "std": source.std, "workers": workers, **stats}
    make |= {"batch_size": 128, "wants": Wants(index=True)}

    def search(nets: Mapping[str, nn.Module]) -> dict[str, dict[str, float]]:
        device = next(p.device for net in nets.values() for p in net.parameters())
        query, gallery, multi = (
            part and look(nets, Loader(part.split, device=device, **make), part.cameras) for part in parts
        )
        assert query and gallery
        return {name: reid(query[name], gallery[name], multi[name] if multi else None) for name in query}

    return search


def summarise(
    training: Training, head: dict[str, Any], search: Search | None = None, classes: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """summary.json: validation and test of what is shipped, and what the doctor finds; and the predictions on test.
    The test set is read here, once.

    A student whose predictions are not finite has left; it is measured no more. Raises: Diverged if that ends the run.
    """
    method, val, test, recorder = training.method, training.val, training.test, training.recorder
    students = {name: net for name, net in training.students.items() if name not in training.left}
    ensemble = method.ensemble()
    predictors = dict(students) | ({"ensemble": ensemble} if ensemble else {})
    predicted = []
    for split, data in (("validation", val), ("test", test)):  # in this order: test waits until nobody leaves
        logits, labels = predict(predictors, data.epoch(0)) if data else ({}, torch.empty(0))
        values = {name: dict(metrics(each, labels)) for name, each in logits.items()}
        bad = [name for name in students if values and not math.isfinite(values[name]["nll"])]
        if bad:
            training.leave(bad, f"predictions of {', '.join(bad)} on {split} are not finite")
            return summarise(training, head, search, classes)  # the ensemble is of the others
        predicted.append((logits, labels, values))
    (logits, labels, on_val), (test_logits, test_labels, on_test) = predicted
    ranks = search(students) if search else {}

    def row(name: str) -> dict[str, Any]:
        measured = {metric: on_test.get(name, {}).get(metric) for metric in ("top1", "balanced", "nll", "ece")}
        tested = {f"test_{metric}": value for metric, value in (measured | ranks.get(name, {})).items()}
        return {"val_top1": on_val.get(name, {}).get("top1"), **tested}

    dead = [name for name in students if on_val and constant(logits[name])]
    alive = [name for name in students if name not in dead] or list(students)
    record = doctor.Record(
        recorder.history,
        list(students),
        logits,
        labels,
        classes,
        listening=doctor.listening(method, students),
        left=schemas.who_left(training.left),
        same_views=training.same_views,
        frozen=doctor.frozen_norms(students),
    )
    best = max(alive, key=lambda name: on_val[name]["top1"]) if on_val else alive[0]
    params = {name: sum(p.numel() for p in net.parameters()) for name, net in training.students.items()}
    seldom = {"left": training.left, "revived": training.revival.times, "dead": dead}  # dead: one answer to all images
    summary = {
        **head,
        "students": {name: {"params": count, **row(name)} for name, count in params.items()},
        "ensemble": row("ensemble") if ensemble or "ensemble" in ranks else None,
        "chosen": best,
        "doctor": doctor.examine(record),
        **{key: each for key, each in seldom.items() if each},
        "train_seconds": round(recorder.seconds, 3),
        "img_per_s": round(recorder.images / max(recorder.seconds, 1e-9), 1),
    }
    own = {name: each for name, each in test_logits.items() if name in students}
    return summary, predictions.of(own, test_labels) if own else {}

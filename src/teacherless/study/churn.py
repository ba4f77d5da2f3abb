"""Churn: how often two networks that were trained alike disagree, and the images that are wrong most often.

Both on validation images, at most SAMPLES of them: the test set is not read for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from teacherless.data import Files, Loader, Source
from teacherless.data.augment.distort import counter_hash
from teacherless.evaluation.metrics import predict, predicted
from teacherless.method import Wants
from teacherless.runs.results import MISTAKES, noting
from teacherless.study.cells import Cell
from teacherless.study.mistakes import sheet
from teacherless.study.outcome import student_of
from teacherless.training.step import pick_device

SAMPLES = 2000  # validation images, drawn by hash


def measure(table: dict[str, Any], cells: Sequence[Cell], source: Source, out: Path) -> None:
    """Add `churn` to every row, and `often_wrong`; draw those images to `out / "often-wrong"`."""
    if source.val is None or not cells:
        return
    some = counter_hash(0, torch.arange(len(source.val))).argsort(stable=True)[:SAMPLES]
    device = pick_device(cells[0].run.device)
    nets = {cell.folder.name: student_of(cell).net.to(device) for cell in cells}
    stats: dict[str, Any] = {"mean": source.mean, "std": source.std, "device": device}
    loader = Loader(source.val.take(some), batch_size=512, augment=None, wants=Wants(index=True), **stats)
    rows: list[Tensor] = []
    logits, labels = predict(nets, noting(loader.epoch(0), rows))
    labels, places = labels.cpu(), some[torch.cat(rows)]
    guesses = {name: predicted(each).cpu() for name, each in logits.items()}
    for row, entry in table["methods"].items():
        entry["churn"] = churn([guesses[cell.folder.name] for cell in cells if cell.row == row])
    table["often_wrong"] = wrong = often_wrong(torch.stack(list(guesses.values())), labels)
    for each in wrong:
        place = each["row"] = int(places[each["row"]])
        each["file"] = source.val.name(place) if isinstance(source.val, Files) else None
        each["label"], each["taken_for"] = (source.classes[each[key]] for key in ("label", "taken_for"))
    if wrong:
        captions = [f"{w['label']}, wrong in {w['wrong']} of {w['of']}\nmostly: {w['taken_for']}" for w in wrong]
        pixels = source.val.sample(torch.tensor([each["row"] for each in wrong]))
        sheet(pixels, captions, "validation images that are wrong most often", out / "often-wrong")


def churn(guesses: Sequence[Tensor]) -> float | None:
    """Percent of the images that two of the networks call differently, the mean over all pairs; None of one network.

    Args:
        guesses: class ids `[N]` of each network.
    """
    pairs = list(combinations(guesses, 2))
    return fmean(100 * float((a != b).double().mean()) for a, b in pairs) if pairs else None


def often_wrong(guesses: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """The images that most of K networks get wrong, at most MISTAKES: `[K, N], [N]`, class ids."""
    wrong = guesses != labels  # [K, N]
    count = wrong.sum(0)
    worst = [i for i in count.argsort(descending=True, stable=True)[:MISTAKES].tolist() if count[i]]
    images = []
    for i in worst:
        mostly = int(guesses[wrong[:, i], i].mode().values)
        image = {"row": i, "label": int(labels[i]), "taken_for": mostly}
        images.append(image | {"wrong": int(count[i]), "of": len(guesses)})
    return images

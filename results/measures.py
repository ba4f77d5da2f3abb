"""What accuracy does not say of the networks that a comparison trained: calibration before and after temperature
scaling, how well their confidence tells images of something else apart, and how flat their minima are."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

WHAT = {  # key: how it is shown, digits
    "ece": ("ECE, %", 2),
    "ece_t": ("ECE at T, %", 2),
    "nll": ("NLL", 3),
    "nll_t": ("NLL at T", 3),
    "auroc": ("AUROC, %", 2),
    "rise": ("rise", 3),
}
LARGEST = 20.0  # T, and its inverse the smallest: of validation images that are all right, the best T is 0
NOISE, DRAWS = 0.3, 3  # std of noise on the weights in RMS of each tensor, as `analyse` has it
OUTLIERS = 1000  # images, drawn by hash


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The T at which softmax(z / T) has the lowest NLL (Guo et al. 2017, section 4.2). `[N, C], [N]`."""
    z, bound = logits.double(), math.log(LARGEST)

    def nll(log_t: float) -> float:
        return float(F.cross_entropy(z / math.exp(log_t), labels))

    best = minimize_scalar(nll, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-6})
    return math.exp(best.x)


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Percent of pairs of an image of the data and an outlier in which a network is surer of the first, by its largest
    probability; as sure of both counts half. `[N, C], [M, C]`."""
    sure = torch.cat([z.double().log_softmax(-1).amax(1) for z in (inside, outside)])
    return 100 * float(roc_auc_score([1] * len(inside) + [0] * len(outside), sure))


def of_logits(val: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], outside: Tensor) -> dict[str, float]:
    """By key of WHAT, and T, which is fitted on validation images: of predictions `[N, C]` with their labels `[N]`, and
    of outliers `[M, C]`."""
    from teacherless.evaluation.metrics import metrics

    t = temperature(*val)
    before, after = (dict(metrics(z, test[1])) for z in (test[0].double(), test[0].double() / t))
    return {
        "T": t,
        **{key: before[key] for key in ("ece", "nll")},
        **{f"{key}_t": after[key] for key in ("ece", "nll")},
        "auroc": auroc(test[0], outside),
    }


def of_run(folder: Path, source: Any, outside: Any) -> dict[str, dict[str, float]]:
    """Of one network of a run, the mean over those like plain's, and of DML's peers together.

    Args:
        folder: of a finished run.
        source: its data.
        outside: a split, the outliers.
    """
    from teacherless.data import Loader
    from teacherless.evaluation.metrics import predict
    from teacherless.files import schemas
    from teacherless.runs.stored import read_run
    from teacherless.study.flatness import flatness
    from teacherless.study.outcome import comparable
    from teacherless.study.tables import mean_probability

    run, students, _ = read_run(folder, trust_imports=True)  # ours: results/nets.py
    summary = schemas.summary(folder)
    assert run and summary
    nets = {name: students[name].net for name in comparable(run, summary)}
    config = next(iter(students.values())).config
    loaders = [
        Loader(split, batch_size=512, mean=config["mean"], std=config["std"])
        for split in (source.val, source.test, outside, source.train)
    ]
    (val, y_val), (test, y_test), (other, _) = (predict(nets, loader.epoch(0)) for loader in loaders[:3])
    each = []
    for name, net in nets.items():
        around = flatness(net, list(loaders[3].epoch(0)), [NOISE], draws=DRAWS)
        rise = math.inf if around["loss"][0] is None else around["loss"][0] - around["start_loss"]
        each.append(of_logits((val[name], y_val), (test[name], y_test), other[name]) | {"rise": rise})
    found = {"one": {key: fmean(one[key] for one in each) for key in each[0]}}
    if run.method == "dml":
        all_val, all_test, all_other = (mean_probability(torch.stack(list(z.values()))) for z in (val, test, other))
        found["together"] = of_logits((all_val, y_val), (all_test, y_test), all_other)
    return found


def measure(comparison: Path, outliers: str) -> dict[str, dict[int, dict[str, float]]]:
    """By row and seed, of the finished cells of a comparison; networks together are a row of their own. `outliers`: a
    name for --data, of which the test images are taken."""
    from teacherless.data import load
    from teacherless.data.augment.distort import counter_hash
    from teacherless.runs.build import load_source
    from teacherless.runs.stored import read_run

    cells = sorted(path for path in (comparison / "cells").iterdir() if (path / "summary.json").exists())
    run = read_run(cells[0], trust_imports=True).run
    assert run
    source, outside = load_source(run, quiet=True), load(outliers, quiet=True).test
    assert outside is not None
    outside = outside.take(counter_hash(0, torch.arange(len(outside))).argsort(stable=True)[:OUTLIERS])
    rows: dict[str, dict[int, dict[str, float]]] = {}
    for cell in cells:
        row, _, seed = cell.name.rpartition("-s")
        for how, values in of_run(cell, source, outside).items():
            rows.setdefault(row if how == "one" else f"{row}, together", {})[int(seed)] = values
    return rows


def table(file: Path) -> str:
    """Plain's means, and every row's difference to plain with its interval over seeds, corrected for the rows; nothing
    where there is no such file."""
    from teacherless.study.statistics import compare

    if not file.exists():
        return ""
    rows = {
        row: {int(seed): values for seed, values in seeds.items()}
        for row, seeds in json.loads(file.read_text("utf-8")).items()
    }
    plain = rows.pop("plain")
    lines = {row: f"| {row} |" for row in ("plain", *rows)}
    for key, (_, digits) in WHAT.items():
        values = {
            row: {seed: each[key] for seed, each in seeds.items()}
            for row, seeds in rows.items()
            if all(math.isfinite(each.get(key, math.inf)) for each in seeds.values())
        }
        own = {seed: each[key] for seed, each in plain.items()}
        differences = compare(own, values)
        lines["plain"] += f" {fmean(own.values()):.{digits}f} |"
        for row in rows:
            lines[row] += f" {shown(differences[row], digits) if row in differences else '-'} |"
    says = (
        "Beside accuracy, differences to plain over seeds. T: the temperature that fits validation images best. "
        "AUROC: of outliers, by confidence. Rise: of the training loss under noise on the weights."
    )
    head = "".join(f" {what} |" for what, _ in WHAT.values())
    return f"\n{says}\n\n| |{head}\n|{'---|' * (len(WHAT) + 1)}\n" + "".join(f"{line}\n" for line in lines.values())


def shown(difference: Any, digits: int) -> str:
    """`+0.12 [-0.30, +0.54]`."""
    interval = difference["corrected"]
    ends = f" [{interval[0]:+.{digits}f}, {interval[1]:+.{digits}f}]" if interval else ""
    return f"{difference['mean']:+.{digits}f}{ends}"

"""What a comparison found: one table, its CSV and its pictures.

What is compared is **one network trained this way**: per seed, the mean over the students that have plain's
architecture. To take the best of K networks on validation, or all K as an ensemble, buys something else: it stands in
a table of its own, beside the best and the ensemble of K plain networks, and no verdict is about it.

K plain networks need no more training. The split is the data's and not the seed's, so any K of plain's seeds are K
independent networks on one split, and the mean over all ways to take K of them is an unbiased estimate of what K plain
networks give. The ways overlap, so there is no interval.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import random
import statistics as stdlib
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from teacherless.data import Loader, Source
from teacherless.data.splits import Split
from teacherless.errors import InputError
from teacherless.evaluation.metrics import flops, metrics, predict
from teacherless.files import disk, schemas
from teacherless.methods import METHODS
from teacherless.models.files import Student, load_student, read_config
from teacherless.runs.config import Run, specs
from teacherless.study import doctor, plots, statistics
from teacherless.study import tables as analysis
from teacherless.study.cells import Cell
from teacherless.study.cost import latencies, training_flops
from teacherless.training import predictions
from teacherless.training.step import pick_device

Table = dict[str, Any]
Results = Mapping[tuple[str, int], Table]  # (row, seed) -> summary.json with "typical_seconds", or {"failed": why}
WAYS = 100  # to take K of the seeds; of more, so many are drawn


def headline(row: Mapping[str, Any]) -> float | None:
    """A student's number that is compared: top-1, or mAP where persons are searched for."""
    value: float | None = row.get("test_map", row.get("test_top1"))
    return value


def comparable(run: Run, summary: Table) -> dict[str, Table]:
    """The students with plain's architecture that have not left: all branches of a network; those like a mixed cohort's
    first."""
    students = schemas.staying(summary)
    kinds = [(spec.name, spec.arguments) for spec in specs(run)]
    if len(kinds) != len(summary["students"]):
        return students
    kind_of = dict(zip(summary["students"], kinds, strict=True))
    return {name: row for name, row in students.items() if kind_of[name] == kinds[0]}


def one_network(run: Run, summary: Table) -> float | None:
    """What one network trained this way is worth on test: the mean over those that can be compared with plain."""
    return _mean([headline(row) for row in comparable(run, summary).values()])


def best_on_validation(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The headline of the best of several students on validation; None where there is nothing to choose by."""
    if len(rows) < 2 or any(row["val_top1"] is None for row in rows):
        return None
    return headline(max(rows, key=lambda row: float(row["val_top1"])))


def relative_costs(results: Results) -> dict[str, float]:
    """Training time relative to plain's of the same seed, the median over seeds."""
    ratios: dict[str, list[float]] = {}
    for (row, seed), done in results.items():
        plain = results.get(("plain", seed), {})
        if "failed" not in done and plain.get("typical_seconds"):
            ratios.setdefault(row, []).append(done["typical_seconds"] / plain["typical_seconds"])
    return {row: stdlib.median(each) for row, each in ratios.items()}


def tabulate(cells: Sequence[Cell], results: Results) -> Table:
    """Everything that follows from the cells' summaries."""
    rows: dict[str, dict[int, tuple[Run, Table]]] = {cell.row: {} for cell in cells}
    for cell in cells:
        if "failed" not in (summary := results[cell.row, cell.run.seed]):
            rows[cell.row][cell.run.seed] = cell.run, summary
    tested = {row: _known({seed: one_network(*cell) for seed, cell in each.items()}) for row, each in rows.items()}
    plain = tested.get("plain", {})
    others = {row: each for row, each in tested.items() if row != "plain" and plain.keys() & each}
    images = _per_image(cells, results)
    differences = statistics.compare(plain, others, images)
    costs = relative_costs(results)
    size = next((len(right) for each in images.values() for right in each.values()), None)
    table: Table = {"caveat": statistics.caveat(size), "metric": "top-1", "test_images": size, "methods": {}}
    for row, each in rows.items():
        own = {seed: list(comparable(*cell).values()) for seed, cell in each.items()}
        if any("test_map" in student for students in own.values() for student in students):
            table["metric"] = "mAP"
        difference = differences.get(row)
        table["methods"][row] = {
            "per_seed": tested[row],
            "student": _summary(tested[row]),
            "networks": max(map(len, own.values()), default=None),
            "best": _summary({seed: best_on_validation(students) for seed, students in own.items()}),
            "ensemble": _summary({seed: headline(s["ensemble"] or {}) for seed, (_, s) in each.items()}),
            **{
                key: _summary({seed: _mean([s[f"test_{key}"] for s in students]) for seed, students in own.items()})
                for key in ("nll", "ece")
            },
            "difference": difference,
            "cost": costs.get(row),
            "train_seconds": stdlib.median(s["typical_seconds"] for _, s in each.values()) if each else None,
            "verdict": statistics.verdict(row, difference, costs.get(row)) if difference else None,
            "left": {seed: schemas.who_left(s["left"]) for seed, (_, s) in each.items() if s.get("left")},
            "doctor": doctor.of_runs([summary for _, summary in each.values()]),
            "failed": {seed: s["failed"] for (name, seed), s in results.items() if name == row and "failed" in s},
        }
    table["doctor"] = doctor.examine(table["methods"])
    sizes = {entry["networks"] or 1 for entry in table["methods"].values()} - {1}
    students = {seed: next(iter(comparable(*cell).values())) for seed, cell in rows.get("plain", {}).items()}
    table["plain_networks"] = []
    for k in sorted(size for size in sizes if size <= len(students)):
        best = _mean([best_on_validation([students[seed] for seed in way]) for way in ways(list(students), k)])
        table["plain_networks"].append({"networks": k, "of": len(students), "ensemble": None, "best": best})
    return table


def _per_image(cells: Sequence[Cell], results: Results) -> dict[str, dict[int, statistics.Images]]:
    """By row and seed, what one network gets of each test image, percent `[N]`. Nothing of cells whose predictions are
    not there, damaged, or of other images."""
    images: dict[str, dict[int, statistics.Images]] = {}
    labels: torch.Tensor | None = None
    for cell in cells:
        summary = results[cell.row, cell.run.seed]
        guesses = None
        with contextlib.suppress(InputError):
            guesses = predictions.read(cell.folder, summary.get("files", {}))
        if guesses is None:
            continue
        truth = guesses[predictions.LABELS]
        labels = truth if labels is None else labels
        if torch.equal(truth, labels):
            right = [guesses[f"student/{name}"] == truth for name in comparable(cell.run, summary)]
            images.setdefault(cell.row, {})[cell.run.seed] = 100 * torch.stack(right).double().mean(0).numpy()
    return images


def ways(seeds: Sequence[int], k: int) -> list[tuple[int, ...]]:
    """Ways to take k of the seeds: all of them, or WAYS that are drawn, always the same."""
    if math.comb(len(seeds), k) <= WAYS:
        return list(combinations(seeds, k))
    draw = random.Random(0)
    return [tuple(draw.sample(seeds, k)) for _ in range(WAYS)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _known(values: Mapping[int, float | None]) -> dict[int, float]:
    return {seed: value for seed, value in values.items() if value is not None}


def _summary(values: Mapping[int, float | None]) -> statistics.Summary | None:
    known = _known(values)
    return statistics.summarise(list(known.values())) if known else None


def measure(table: Table, cells: Sequence[Cell], source: Source | None) -> None:
    """Add what needs the networks themselves: the price of training and of inference, and plain's ensembles."""
    first = {cell.row: cell for cell in reversed(cells)}
    sizes = _inference(first)
    for row, entry in table["methods"].items():
        entry["train_flops"] = training_flops(first[row].run, source) if source and row in first else None
        entry["inference"] = sizes.get(row)
    plain = [cell for cell in cells if cell.row == "plain"]
    if source and source.test is not None and table["plain_networks"]:
        logits, labels = _predictions(plain, source, source.test)
        for entry in table["plain_networks"]:
            each = [
                analysis.mean_probability(torch.stack([logits[i] for i in way]))
                for way in ways(range(len(plain)), entry["networks"])
            ]
            entry["ensemble"] = _mean([dict(metrics(z, labels))["top1"] for z in each])
    table["cohort_size"] = _cohort_sizes(table, cells)


def _predictions(plain: Sequence[Cell], source: Source, test: Split) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What the networks of some cells say of the test images: logits `[N, C]` each, and the labels."""
    device = pick_device(plain[0].run.device)
    nets = {cell.folder.name: student_of(cell).net for cell in plain}
    loader = Loader(test, batch_size=512, mean=source.mean, std=source.std, device=device, augment=None)
    logits, labels = predict({name: net.to(device) for name, net in nets.items()}, loader)
    return [each.cpu() for each in logits.values()], labels.cpu()


def student_of(cell: Cell) -> Student:
    """The first student of a cell. Code is imported only if the comparison's own command names it, not the file.

    Raises: InputError if it cannot be read.
    """
    folder = min((cell.folder / "students").glob("*"), default=cell.folder / "students")
    named = {spec.name for spec in specs(cell.run)}
    return load_student(folder, trust_imports=cell.run.trust_imports or read_config(folder)["architecture"] in named)


def _cohort_sizes(table: Table, cells: Sequence[Cell]) -> list[analysis.CohortRow]:
    """What cohorts of several sizes give, beside as many plain networks; empty where there is one size of each."""
    cohorts = []
    for cell in cells:
        done = cell.done()
        kind = "independent" if cell.row == "plain" else cell.run.method
        if done and (cell.row == "plain" or METHODS[cell.run.method].cohort):
            top1 = [value for row in comparable(cell.run, done).values() if (value := headline(row)) is not None]
            last = analysis.curves(schemas.lines(cell.folder))["train_entropy"][-1]
            ensemble = headline(done["ensemble"] or {})
            cohorts.append(analysis.Cohort(kind=kind, top1=top1, ensemble=ensemble, entropy=None, train_entropy=last))
    rows = analysis.cohort_size(cohort for cohort in cohorts if cohort["top1"])
    if len({row["kind"] for row in rows}) == len(rows):
        return []
    one = next((row for row in rows if row["kind"] == "independent"), None)
    if one:
        rows += [one | {"size": k["networks"], "ensemble": k["ensemble"]} for k in table["plain_networks"]]
    return rows


def _inference(cells: Mapping[str, Cell]) -> dict[str, Table]:
    """By row: parameters, FLOPs and single-image latency (CPU) of one network trained this way.

    Rows with the same architecture are timed as one: there is nothing that could make them differ.
    """
    kinds: dict[str, str] = {}
    nets: dict[str, tuple[torch.nn.Module, torch.Tensor]] = {}
    for row, cell in cells.items():
        net, config = student_of(cell)
        kinds[row] = json.dumps([config[key] for key in ("architecture", "arguments", "channels", "input_size")])
        nets.setdefault(kinds[row], (net, torch.zeros(1, config["channels"], *config["input_size"])))
    priced = latencies(nets)
    for kind, (net, image) in nets.items():
        priced[kind] |= {"params": sum(p.numel() for p in net.parameters()), "flops": flops(net, image)}
    return {row: priced[kind] for row, kind in kinds.items()}


def write_csv(table: Table, path: Path) -> None:
    """One line per row of the table, then one for each number of plain networks."""
    lines = [{"method": row, **_csv_row(each, table["metric"])} for row, each in table["methods"].items()]
    with disk.whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, lines[0])
        out.writeheader()
        out.writerows(lines)
        for networks in table["plain_networks"]:
            k, best, ensemble = networks["networks"], networks["best"], networks["ensemble"]
            name, count = f"{k} plain networks", {"networks": k, "cost": k}
            out.writerow({"method": name, "best_on_validation": best, "ensemble": ensemble, **count})


def _csv_row(row: Table, metric: str) -> Table:
    student, difference, size = row["student"] or {}, row["difference"] or {}, row["inference"] or {}
    low, high = difference.get("corrected") or (None, None)
    low_both, high_both = difference.get("both") or (None, None)
    mean = {key: (row[key] or {}).get("mean") for key in ("nll", "ece", "best", "ensemble")}
    return {
        "seeds": student.get("seeds"),
        f"test_{metric}": student.get("mean"),
        "std": student.get("std"),
        "difference": difference.get("mean"),
        "low": low,
        "high": high,
        "low_both": low_both,
        "high_both": high_both,
        "p_holm": difference.get("p_holm"),
        "nll": mean["nll"],
        "ece": mean["ece"],
        "networks": row["networks"],
        "best_on_validation": mean["best"],
        "ensemble": mean["ensemble"],
        **{key: row[key] for key in ("cost", "train_seconds", "train_flops")},
        **{key: size.get(key) for key in ("params", "flops", "ms", "low_ms", "high_ms")},
        "verdict": row["verdict"],
        **{key: "; ".join(row[key].values()) for key in ("left", "failed")},
    }


def draw(table: Table, cells: Sequence[Cell], out: Path) -> list[Path]:
    """Differences with intervals; accuracy against cost; training curves. Where there is no test set, only curves."""
    methods, pictures = table["methods"], []
    differences = {row: entry["difference"] for row, entry in methods.items() if entry["difference"]}
    if differences:
        per_seed = {row: methods[row]["per_seed"] for row in ("plain", *differences)}
        pictures += plots.accuracy(differences, per_seed, out / "accuracy", metric=table["metric"])
        known = {row: f["student"] for row, f in methods.items() if f["student"] and f["cost"] is not None}
        costs = {row: methods[row]["cost"] for row in known}
        pictures += plots.cost(known, costs, out / "cost", metric=table["metric"])
    curves: dict[str, list[analysis.Curves]] = {}
    for cell in cells:
        if not cell.row.startswith("plain-"):
            curves.setdefault(cell.row, []).append(analysis.curves(schemas.lines(cell.folder)))
    if table["cohort_size"]:
        pictures += plots.cohort_size(table["cohort_size"], out / "cohort-size", metric=table["metric"])
    if curves:
        pictures += plots.training_curves(curves, out / "training-curves")
    return pictures

"""compare: many methods, many seeds, one table with intervals.

A cell is one run folder, `cells/<row>-s<seed>/`; cells.py runs them. Finished cells are never run again and interrupted
ones resume, so the same command goes on where it was stopped. Per seed every method has the same split, sample order
and start of the shared student. The test set is read once per cell and decides nothing: what a cell ships is chosen on
validation.
"""

from __future__ import annotations

import csv
import statistics as stdlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import joblib
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from teacherless import disk, models
from teacherless.errors import InputError, unknown
from teacherless.evaluation.metrics import evaluating
from teacherless.methods import METHODS
from teacherless.models.files import load_student
from teacherless.runs.build import method_options
from teacherless.runs.config import Run, parse_student, specs
from teacherless.study import plots, statistics
from teacherless.study import tables as analysis
from teacherless.study.cells import Cell, run_cells
from teacherless.training.folder import read_json, read_lines
from teacherless.training.step import pick_device

Table = dict[str, Any]


def compare(
    template: Run,
    methods: Sequence[str],
    seeds: int,
    out: Path,
    *,
    equal_compute: bool = False,
    jobs: int | None = None,
    quiet: bool = False,
) -> Table:
    """Run what is missing, then write `compare.json`, `compare.csv` and the pictures.

    Args:
        template: every setting but the method; seeds count up from its seed.
        methods: names of METHODS; plain is always among them.
        seeds: how many.
        out: the folder of the comparison.
        equal_compute: also train plain for as long as each method costs, and a wider network where the student has a
            width.
        jobs: how many runs at a time, each in one thread; by default as many as there are cores, one on a GPU.
        quiet: show nothing.

    Returns: what compare.json holds. Cells that diverged are in it, with the reason.
    Raises: InputError for unknown methods and for cells of other settings; Stopped after a signal.
    """
    rows = list(dict.fromkeys(["plain", *methods]))
    for name in rows:
        if name not in METHODS:
            raise unknown("method", name, METHODS)
    options = _options(template, rows)
    everyone = range(template.seed, template.seed + seeds)
    cells = [_cell(row, _settings(template, row, seed, options[row]), out) for seed in everyone for row in rows]
    jobs = jobs or (joblib.cpu_count() if pick_device(template.device).type == "cpu" else 1)
    results = _run(cells, jobs, quiet)
    if equal_compute:
        more = _equal_compute(template, _costs(results), everyone, out)
        results |= _run(more, jobs, quiet)
        cells += more
    table = tabulate(cells, results, out)
    table["settings"] = {**template.model_dump(mode="json"), "seeds": seeds, "methods": rows}
    disk.write_json(out / "compare.json", table)
    write_csv(table, out / "compare.csv")
    table["pictures"] = [str(path) for path in draw(table, cells, out)]
    return table


# Cells ---------------------------------------------------------------------------------------------------------------


def _options(template: Run, rows: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`--set METHOD.key=value`, per method. Raises: InputError for a key without its method."""
    options: dict[str, dict[str, Any]] = {row: {} for row in rows}
    for key, value in template.set.items():
        method, dot, name = key.partition(".")
        if not dot or method not in options:
            raise InputError(f"--set: found {key!r}; in a comparison say whose it is: METHOD.{key}, METHOD one of "
                             f"{', '.join(rows)}")  # fmt: skip
        options[method][name] = value
    return options


def _cell(row: str, run: Run, out: Path) -> Cell:
    return Cell(row, run, out / "cells" / f"{row}-s{run.seed}")


def _settings(template: Run, method: str, seed: int, options: dict[str, Any]) -> Run:
    """A cell's run. One method trains one student, the first; a cohort trains all, or two (or --peers) of the one."""
    kind = METHODS[method]
    students = specs(template.model_copy(update={"peers": None}))
    change: dict[str, Any] = {"method": method, "seed": seed, "set": options, "peers": None}
    if template.engine == "auto":
        change["engine"] = "loop"  # a cell has one core
    if not kind.cohort:
        head, *rest = template.student[0].split(",")
        change["student"] = (",".join([head.partition("*")[0], *rest]),)
    elif len(students) == 1:
        change["peers"] = template.peers or 2
    reads = kind.teacher_use == "required" or (kind.teacher_use == "optional" and options.get("mode") == "self")
    change["teacher"] = template.teacher if reads else None
    run = template.model_copy(update=change)
    if kind.teacher_use == "required" and run.teacher is None:
        raise InputError(f"--teacher: {method} reads a teacher; give a run folder or a student's folder")
    method_options(kind, method, options)  # a wrong option is found before anything is trained
    return run


def _run(cells: Sequence[Cell], jobs: int, quiet: bool) -> dict[tuple[str, int], Table]:
    """Every cell's summary, or `{"failed": why}`; what is there already is not run again."""
    _check(cells)
    run_cells(cells, jobs, None if quiet else _told)
    results = {}
    for cell in cells:
        done = cell.done()
        assert done is not None
        results[cell.row, cell.run.seed] = (
            done if "failed" in done else {**done, "typical_seconds": _seconds(cell.folder)}
        )
    return results


def _check(cells: Sequence[Cell]) -> None:
    """Raises: InputError if a cell in the folder was run with other settings."""
    for cell in cells:
        found = read_json(cell.folder / "run.json")
        now = cell.run.model_dump(mode="json")
        other = {key: value for key, value in (found or {}).get("settings", now).items() if now.get(key) != value}
        if other:
            key, value = next(iter(other.items()))
            raise InputError(f"--out: {cell.folder} was run with {key} {value!r}, not {now.get(key)!r}; give the "
                             "same settings, or another --out")  # fmt: skip


def _seconds(folder: Path) -> float:
    """What training costs in seconds, the first epoch's warm-up left out: the median epoch, times their number."""
    lines = read_lines(folder / "metrics.jsonl")
    seconds = [float(line["seconds"]) for line in lines]
    return stdlib.median(seconds) * len(seconds)


def _told(summary: Table) -> str:
    if "failed" in summary:
        return f"failed: {summary['failed']}"
    tested = headline(summary["students"][summary["chosen"]])
    return f"{'no test set' if tested is None else f'{tested:.2f} % on test'}, {summary['train_seconds']:.1f} s"


# Equal compute -------------------------------------------------------------------------------------------------------


def _costs(results: dict[tuple[str, int], Table]) -> dict[str, float]:
    """Training time relative to plain's of the same seed, the median over seeds."""
    ratios: dict[str, list[float]] = {}
    for (row, seed), done in results.items():
        plain = results.get(("plain", seed), {})
        if "failed" not in done and plain.get("typical_seconds"):
            ratios.setdefault(row, []).append(done["typical_seconds"] / plain["typical_seconds"])
    return {row: stdlib.median(each) for row, each in ratios.items()}


def _equal_compute(template: Run, costs: dict[str, float], seeds: range, out: Path) -> list[Cell]:
    """Plain for as many epochs as each cost buys, and a network as costly where the student has a width.

    The costs, to a quarter, are measured once and kept in `equal-compute.json`: a continued comparison adds the same
    cells.
    """
    kept = read_json(out / "equal-compute.json")
    if kept is None:
        kept = {row: round(4 * cost) / 4 for row, cost in costs.items() if row != "plain" and cost >= 1.125}
        disk.write_json(out / "equal-compute.json", kept)
    cells = []
    for cost in sorted(set(kept.values())):
        for seed in seeds:
            run = _settings(template, "plain", seed, {})
            longer = {"steps": round(run.steps * cost)} if run.steps else {"epochs": round(run.epochs * cost)}
            cells.append(_cell(f"plain-{cost:g}x-longer", run.model_copy(update=longer), out))
            spec = run.student[0]
            if wide := _wider(spec, cost):
                cells.append(_cell(f"plain-{cost:g}x-wider", run.model_copy(update={"student": (wide,)}), out))
    return cells


def _wider(spec: str, cost: float) -> str | None:
    """The student with the width whose forward costs nearest to `cost` times its own; None if it has no width."""
    parsed = parse_student(spec)
    if "width" not in models.options(parsed.name):
        return None
    default = models.options(parsed.name)["width"].default
    base = parsed.arguments.get("width", default)

    def price(width: int) -> int:
        arguments = {**parsed.arguments, "width": width}
        net = models.create(parsed.name, num_classes=10, in_channels=3, seed=0, **arguments)
        return flops(net, torch.zeros(1, 3, 32, 32))

    aim = cost * price(base)
    width = min(range(base, 4 * base + 1), key=lambda w: abs(price(w) - aim))
    rest = [part for part in spec.split(",")[1:] if not part.startswith("width=")]
    return ",".join([parsed.name, *rest, f"width={width}"])


# The table -----------------------------------------------------------------------------------------------------------


HEADLINES = {"top-1": "test_top1", "mAP": "test_map"}  # what is compared: mAP where persons are searched for


def headline(row: Mapping[str, Any]) -> float | None:
    """A student's number that is compared, from its row of the summary."""
    value: float | None = row.get("test_map", row.get("test_top1"))
    return value


def tabulate(cells: Sequence[Cell], results: dict[tuple[str, int], Table], out: Path) -> Table:
    """Everything the comparison found, per row."""
    rows = list(dict.fromkeys(cell.row for cell in cells))
    metric = (
        "mAP" if any("test_map" in s for r in results.values() for s in r.get("students", {}).values()) else "top-1"
    )
    tested = {row: _column(results, row, HEADLINES[metric]) for row in rows}
    with_test = {row: values for row, values in tested.items() if values}
    plain = with_test.get("plain", {})
    comparable = {row: v for row, v in with_test.items() if row != "plain" and plain.keys() & v.keys()}
    differences = statistics.compare(plain, comparable) if comparable else {}
    costs = _costs(results)
    imports = any(":" in student for cell in cells for student in cell.run.student)  # then these cells imported it too
    table: Table = {"caveat": statistics.CAVEAT, "metric": metric, "methods": {}}
    for row in rows:
        done = {seed: r for (name, seed), r in results.items() if name == row and "failed" not in r}
        difference = differences.get(row)
        table["methods"][row] = {
            "per_seed": tested[row],
            "student": _summary(tested[row]),
            "cohort": _summary({seed: _cohort(r) for seed, r in done.items()}),
            "ensemble": _summary({seed: headline(r["ensemble"] or {}) for seed, r in done.items()}),
            "nll": _summary(_column(results, row, "test_nll")),
            "ece": _summary(_column(results, row, "test_ece")),
            "difference": difference,
            "cost": costs.get(row),
            "train_seconds": stdlib.median(r["typical_seconds"] for r in done.values()) if done else None,
            "inference": _inference(out, row, done, trust_imports=imports),
            "verdict": statistics.verdict(row, difference, costs.get(row)) if difference else None,
            "failed": {seed: r["failed"] for (name, seed), r in results.items() if name == row and "failed" in r},
        }
    return table


def _column(results: dict[tuple[str, int], Table], row: str, metric: str) -> dict[int, float]:
    """The shipped student's metric, by seed."""
    found = {
        seed: done["students"][done["chosen"]][metric]
        for (name, seed), done in results.items()
        if name == row and "failed" not in done
    }
    return {seed: value for seed, value in found.items() if value is not None}


def _cohort(summary: Table) -> float | None:
    found = [headline(student) for student in summary["students"].values()]
    values = [value for value in found if value is not None]
    return sum(values) / len(values) if len(values) == len(found) > 1 else None


def _summary(values: Mapping[int, float | None]) -> statistics.Summary | None:
    known = [value for value in values.values() if value is not None]
    return statistics.summarise(known) if known else None


def _inference(out: Path, row: str, done: dict[int, Table], *, trust_imports: bool) -> Table | None:
    """Parameters, FLOPs and single-image latency (CPU, median of 30) of the student that the first seed ships."""
    if not done:
        return None
    seed, summary = min(done.items())
    folder = out / "cells" / f"{row}-s{seed}" / "students" / summary["chosen"]
    net, config = load_student(folder, trust_imports=trust_imports)
    image = torch.zeros(1, config["channels"], *config["input_size"])
    return {"params": sum(p.numel() for p in net.parameters()), "flops": flops(net, image), "ms": latency(net, image)}


@torch.no_grad()
def flops(net: nn.Module, image: torch.Tensor) -> int:
    """Floating-point operations of one forward, a multiply-add counted as two."""
    with evaluating([net]), FlopCounterMode(display=False) as counter:
        net(image)
    return int(counter.get_total_flops())


@torch.no_grad()
def latency(net: nn.Module, image: torch.Tensor, runs: int = 30) -> float:
    """Milliseconds of one forward, the median."""
    times = []
    with evaluating([net]):
        for _ in range(runs + 3):
            began = time.perf_counter()
            net(image)
            times.append(1000 * (time.perf_counter() - began))
    return stdlib.median(times[3:])


def write_csv(table: Table, path: Path) -> None:
    """One line per row of the table."""
    header = ["method", "seeds", "test_top1", "std", "cohort", "ensemble", "difference", "low", "high", "p_holm", "nll",
              "ece", "cost", "params", "flops", "ms", "verdict", "failed"]  # fmt: skip
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(header)
        for row, found in table["methods"].items():
            student, difference, size = found["student"] or {}, found["difference"] or {}, found["inference"] or {}
            low, high = difference.get("corrected") or (None, None)
            mean = [(found[key] or {}).get("mean") for key in ("cohort", "ensemble")]
            losses = [(found[key] or {}).get("mean") for key in ("nll", "ece")]
            out.writerow([row, student.get("seeds"), student.get("mean"), student.get("std"), *mean,
                          difference.get("mean"), low, high, difference.get("p_holm"), *losses, found["cost"],
                          size.get("params"), size.get("flops"), size.get("ms"), found["verdict"],
                          "; ".join(found["failed"].values())])  # fmt: skip


def draw(table: Table, cells: Sequence[Cell], out: Path) -> list[Path]:
    """Differences with intervals; accuracy against cost; training curves. Where there is no test set, only curves."""
    methods, pictures = table["methods"], []
    differences = {row: found["difference"] for row, found in methods.items() if found["difference"]}
    if differences:
        per_seed = {row: methods[row]["per_seed"] for row in ("plain", *differences)}
        pictures += plots.accuracy(differences, per_seed, out / "accuracy")
        known = {row: f["student"] for row, f in methods.items() if f["student"] and f["cost"] is not None}
        pictures += plots.cost(known, {row: methods[row]["cost"] for row in known}, out / "cost")
    curves: dict[str, list[analysis.Curves]] = {}
    for cell in cells:
        lines = cell.folder / "metrics.jsonl"
        if lines.exists() and cell.row in METHODS and not (cell.folder / "failed.json").exists():
            curves.setdefault(cell.row, []).append(analysis.curves(read_lines(lines)))
    if curves:
        pictures += plots.training_curves(curves, out / "training-curves")
    return pictures

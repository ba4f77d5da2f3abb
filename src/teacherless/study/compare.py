"""compare: many methods, many seeds, one table with intervals.

A cell is one run folder, `cells/<row>-s<seed>/`; cells.py runs them. Finished cells are never run again and interrupted
ones resume, so the same command goes on where it was stopped. Per seed every method has the same split, sample order
and start of the shared student. The test set decides nothing: what a cell ships is chosen on validation. What is
compared is said in `outcome`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import joblib

from teacherless import models
from teacherless.errors import InputError, unknown
from teacherless.files import disk
from teacherless.methods import METHODS
from teacherless.runs.build import load_source, method_options
from teacherless.runs.config import Run, alone, parse_student, specs
from teacherless.runs.widths import scaled
from teacherless.study import churn, outcome, report
from teacherless.study.cells import Cell, dismiss, run_cells
from teacherless.study.cost import training_flops
from teacherless.study.outcome import Table
from teacherless.study.sweep import choose, parse
from teacherless.study.watch import Told
from teacherless.training.lifecycle import UNREADABLE
from teacherless.training.step import pick_device

TOLD = Told("test", lambda cell, summary: outcome.one_network(cell.run, summary))


def compare(
    template: Run,
    methods: Sequence[str],
    seeds: int,
    out: Path,
    *,
    sizes: Sequence[int] = (),
    equal_compute: bool = False,
    sweep: str | None = None,
    jobs: int | None = None,
    quiet: bool = False,
) -> Table:
    """Run what is missing, then write `compare.json`, `compare.csv`, the pictures and `report.html`.

    Args:
        template: every setting but the method; seeds count up from its seed.
        methods: names of METHODS; plain is always among them.
        seeds: how many.
        out: the folder of the comparison.
        sizes: of cohorts: a method that takes any number of networks gets a row for each (plain is the size 1).
        equal_compute: also train plain for as many FLOPs as the dearest method, and a wider network where the student
            has a width.
        sweep: `lr=0.03,0.1,0.3`: each method first chooses among these, on validation.
        jobs: how many runs at a time, each in one thread; by default as many as there are cores, one on a GPU.
        quiet: show nothing.

    Returns: what compare.json holds. Cells that diverged are in it, with the reason.
    Raises: InputError for unknown methods and for cells of other settings; Stopped after a signal.
    """
    names = list(dict.fromkeys(["plain", *methods]))
    for name in names:
        if name not in METHODS:
            raise unknown("method", name, METHODS)
    options = _options(template, names)
    jobs = jobs or (joblib.cpu_count() if pick_device(template.device).type == "cpu" else 1)
    rows = _rows(template, names, sizes)
    each = {row: _settings(sized, method, options[method]) for row, (method, sized) in rows.items()}
    for spec in specs(template):
        models.options(spec.name)  # an unknown network is found before anything is trained
    tried, swept = parse(sweep, template) if sweep else None, None
    if not (out / "compare.json").exists():
        _say_what_it_trains_on(template, out, quiet)
    if tried:
        swept = choose(*tried, each, out, jobs, quiet=quiet)
        own = {row: {swept["setting"]: tuned["chosen"]} for row, tuned in swept["methods"].items()}
        each = {row: run.model_copy(update=own[row]) for row, run in each.items()}
    cells = [
        Cell(row, run.model_copy(update={"seed": seed}), out / "cells" / f"{row}-s{seed}")
        for part in (each, _equal_compute(each) if equal_compute else {})
        for seed in range(template.seed, template.seed + seeds)
        for row, run in part.items()
    ]
    results = _run(cells, jobs, quiet)
    dismiss(jobs)
    table = outcome.tabulate(cells, results)
    whole = [cell for cell in cells if "failed" not in results[cell.row, cell.run.seed]]
    source = load_source(whole[0].run, quiet=True) if whole else None
    outcome.measure(table, whole, source)
    if source:
        churn.measure(table, whole, source, out)
    table["sweep"] = swept
    asked = {"seeds": seeds, "methods": names, "sizes": list(sizes), "equal_compute": equal_compute, "sweep": sweep}
    table["settings"] = template.model_dump(mode="json") | asked
    disk.write_json(out / "compare.json", table)
    outcome.write_csv(table, out / "compare.csv")
    table["pictures"] = [str(path) for path in outcome.draw(table, whole, out)]
    page = report.write_or_say(out)
    table["report"] = page and str(page)
    return table


def _say_what_it_trains_on(template: Run, out: Path, quiet: bool) -> None:
    """Once for all cells, which say nothing of it."""
    source = load_source(template, quiet=quiet)
    if not quiet:
        print(source, flush=True)
    if source.unreadable:
        disk.write(out / UNREADABLE, "".join(f"{line}\n" for line in source.unreadable))


# Cells ---------------------------------------------------------------------------------------------------------------


def _rows(template: Run, names: Sequence[str], sizes: Sequence[int]) -> dict[str, tuple[str, Run]]:
    """Each row's method and settings. Raises: InputError for sizes of what has several students already."""
    if sizes and len(specs(template)) > 1:
        raise InputError(f"--peers: found {sizes[0]}..{sizes[-1]}; give one --student, of which copies are made")
    rows: dict[str, tuple[str, Run]] = {}
    for name in names:
        if sizes and METHODS[name].cohort:
            rows |= {f"{name}-{k}-peers": (name, template.model_copy(update={"peers": k})) for k in sizes if k > 1}
        else:
            rows[name] = name, template
    return rows


def _options(template: Run, rows: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`--set METHOD.key=value`, per method. Raises: InputError for a key without its method."""
    options: dict[str, dict[str, Any]] = {row: {} for row in rows}
    for key, value in template.set.items():
        method, dot, name = key.partition(".")
        if not dot or method not in options:
            raise InputError(
                f"--set: found {key!r}; in a comparison say whose it is: METHOD.{key}, METHOD one of {', '.join(rows)}"
            )
        options[method][name] = value
    return options


def _settings(template: Run, method: str, options: dict[str, Any]) -> Run:
    """A method's run. One method trains one student, the first; a cohort trains all, or two (or --peers) of the one."""
    kind = METHODS[method]
    students = specs(template.model_copy(update={"peers": None}))
    change: dict[str, Any] = {"method": method, "set": options, "peers": None}
    if template.engine == "auto":
        change["engine"] = "loop"  # a cell has one core
    if not kind.cohort:
        template = alone(template)
    elif len(students) == 1 and not template.split_into:
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
    results = {}
    for cell, done in zip(cells, run_cells(cells, jobs, None if quiet else TOLD), strict=True):
        if "failed" not in done:
            try:
                outcome.student_of(cell)
            except InputError as error:
                done = {"failed": str(error)}
        results[cell.row, cell.run.seed] = done
    return results


# Equal compute -------------------------------------------------------------------------------------------------------


def _equal_compute(each: Mapping[str, Run]) -> dict[str, Run]:
    """Plain for as many FLOPs as the dearest row trains, to a quarter of plain's, and a network as costly where the
    student has a width. Counted, not timed: a comparison has the same rows wherever it runs, and however often.

    Raises: InputError for a student in which there is nothing to count.
    """
    source = load_source(each["plain"], quiet=True)
    flops = {row: training_flops(run, source) for row, run in each.items()}
    if not flops["plain"]:
        name = each["plain"].student[0]
        raise InputError(f"--equal-compute: found 0 FLOPs in {name}; convolutions and matrix products are counted")
    cost = round(4 * max(flops.values()) / flops["plain"]) / 4
    if cost <= 1:
        return {}
    plain = each["plain"]
    longer = {"steps": round(plain.steps * cost)} if plain.steps else {"epochs": round(plain.epochs * cost)}
    more = {f"plain-{cost:g}x-longer": plain.model_copy(update=longer)}
    if wide := _wider(plain.student[0], cost):
        more[f"plain-{cost:g}x-wider"] = plain.model_copy(update={"student": (wide,)})
    return more


def _wider(spec: str, cost: float) -> str | None:
    """The student with the width whose forward costs nearest to `cost` times its own; None if it has no width."""
    parsed = parse_student(spec)
    wider = scaled(parsed, cost)
    rest = [part for part in spec.split(",")[1:] if not part.startswith("width=")]
    return wider and ",".join([parsed.name, *rest, f"width={wider[0].arguments['width']}"])

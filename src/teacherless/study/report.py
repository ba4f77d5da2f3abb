"""report.html: what a run or a comparison found, on one page that needs nothing else.

Everything on it is read from the files of the folder: no data and none of its networks is touched, so the test set is
not read again. Who teaches whom is asked of the method itself, on small networks and noise.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teacherless.errors import InputError
from teacherless.files import disk, schemas
from teacherless.methods import METHODS
from teacherless.runs.config import Run, as_given
from teacherless.runs.explain import lessons
from teacherless.runs.merge import command_of
from teacherless.study import show, verdicts
from teacherless.study.charts import COLOURS, Chart, Dot, Row, Series, graph, lines, rows, scatter
from teacherless.study.page import Figure, Page, Table, figure, render
from teacherless.training.settings import read

if TYPE_CHECKING:
    from teacherless.study.cells import Cell

log = logging.getLogger("teacherless.study.report")
NAME = "report.html"
LARGEST = 2_000_000  # bytes of a page; figures that do not fit any more are named instead
PANELS = {
    "train_nll": "cross-entropy on training images, nats",
    "val_nll": "cross-entropy on validation, nats",
    "train_top1": "top-1 on training images, %",
    "val_top1": "top-1 on validation, %",
    "val_entropy": "entropy of predictions on validation, nats",
}
NO_MISTAKES = "its most confident mistakes as images come to this page by teacherless evaluate RUN --split val"
SO_FAR = "settings and command are those of the runs that have begun; the comparison has not ended"


def write(folder: Path) -> Path:
    """Write `report.html` of a run's or a comparison's folder, finished or not; returns its path.

    Raises: InputError if the folder is neither, or its files cannot be read.
    """
    page = _comparison(folder) if (folder / "cells").is_dir() else _run(folder)
    text = render(page)
    while len(text.encode()) > LARGEST and page.figures:
        *kept, left_out = page.figures
        page = page._replace(figures=kept, notes=[*page.notes, f"{left_out.name}: too large for this page"])
        text = render(page)
    disk.write(folder / NAME, text)
    return folder / NAME


def write_or_say(folder: Path) -> Path | None:
    """As `write`, at the end of a run: what goes wrong is a line on stderr, and the run is as good as before."""
    try:
        return write(folder)
    except Exception as error:
        print(f"teacherless: no {NAME}: {' '.join(str(error).split())}", file=sys.stderr)
        return None


# A run ---------------------------------------------------------------------------------------------------------------


def _run(folder: Path) -> Page:
    stored = schemas.stored(folder)
    if stored is None:
        raise InputError(f"{folder}: is neither a run nor a comparison; it has no run.json and no cells/")
    summary = schemas.summary(folder)
    history = schemas.lines(folder) if (folder / "metrics.jsonl").is_file() else []
    settings, data = stored["settings"], dict(stored["data"])
    method = settings.get("method") or (summary or {}).get("method") or "a method of one's own"
    total = stored.get("epochs", settings.get("epochs"))
    failed = None if summary else schemas.read(folder / "failed.json", schemas.FAILED)
    at = f"epoch {len(history)} of {total}"
    state = "finished" if summary else f"failed: {at}" if failed else f"not finished: {at}"
    students = list(summary["students"]) if summary else _students(history)
    shown = (folder / "mistakes.json").is_file() or list(folder.glob("evaluation/*/mistakes.svg"))
    name = data.get("name") or "data given from Python"
    own = {
        who: [{key: [line.get(f"{key.replace('_', '/')}/{who}") for line in history] for key in PANELS}]
        for who in _students(history)
    }
    return Page(
        title=f"{method} on {name}",
        state=f"one run, seed {settings.get('seed')}, {state}",
        verdicts=[
            verdicts.Verdict("FAILED", method, failed["failed"]) if failed else verdicts.of_run(method, summary, data)
        ],
        notes=[*_notes(settings, summary), *([NO_MISTAKES] if summary and not shown else [])],
        findings=[{"who": method, **one} for one in (summary or {}).get("doctor", [])],
        picture=[],
        table=_table_of_run(summary, history),
        curves=_curves(own, {}) + _terms(history),
        lessons=_lessons(
            {method: (_read(settings), len(students))} if "method" in settings and students else {},
            {method: COLOURS[0]},
        ),
        mistakes=_mistakes(folder),
        figures=_figures(folder),
        settings=_shown(settings),
        data=_about_data(dict(stored)),
        command=command_of(["train", settings["method"]], settings) if "method" in settings else "",
    )


def _table_of_run(summary: Mapping[str, Any] | None, history: Sequence[Mapping[str, Any]]) -> Table:
    if summary is None:
        last = history[-1] if history else {}
        keys = ("train/top1", "train/nll", "val/top1", "val/nll")
        cells = [[name, *(_number(last.get(f"{key}/{name}")) for key in keys)] for name in _students(history)]
        return Table(["student, so far", *keys], cells)
    tests, cells = show.networks(summary, " (to ship)")
    return Table(["student", "parameters", "validation top-1 %", *tests], cells)


def _students(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Who has a training accuracy in the log."""
    keys = dict.fromkeys(key for line in history for key in line if key.startswith("train/top1/"))
    return [key.removeprefix("train/top1/") for key in keys]


def _terms(history: Sequence[Mapping[str, Any]]) -> list[Chart]:
    names = dict.fromkeys(key for line in history for key in line if key.count("/") == 1 and key.startswith("train/"))
    each = [Series(key.removeprefix("train/"), [line.get(key) for line in history]) for key in names]
    return [lines("terms of the loss", "epoch", each)] if len(each) > 1 else []


# A comparison ---------------------------------------------------------------------------------------------------------


def _comparison(folder: Path) -> Page:
    from teacherless.study import outcome, statistics, tables
    from teacherless.study.cells import Cell

    runs = {path: schemas.stored(path) for path in (folder / "cells").iterdir()}  # None of one that has not begun
    each = [Cell(path.name.rpartition("-s")[0], _read(run["settings"]), path) for path, run in runs.items() if run]
    begun = sorted(each, key=_order)
    if not begun:
        raise InputError(f"{folder}: no run of this comparison has begun")
    results = {(cell.row, cell.run.seed): done for cell in begun if (done := cell.done())}
    cells = [cell for cell in begun if (cell.row, cell.run.seed) in results]
    stored = _stored_comparison(folder)
    table = outcome.tabulate(cells, results)
    for row, entry in table["methods"].items():
        entry |= {key: stored.get("methods", {}).get(row, {}).get(key) for key in ("train_flops", "inference", "churn")}
    settings = stored.get("settings") or _settings_so_far(begun)
    about: dict[str, Any] = dict(runs[begun[0].folder] or {})
    data = about["data"]
    whole = len(results) == len(begun) and stored.get("settings")
    state = f"{len(results)} runs" if whole else f"not finished: {len(results)} runs done, {len(begun)} begun; so far"
    curves: dict[str, list[Any]] = {}
    for cell in begun:
        if (cell.folder / "metrics.jsonl").is_file() and "failed" not in results.get((cell.row, cell.run.seed), {}):
            curves.setdefault(cell.row, []).append(tables.curves(schemas.lines(cell.folder)))
    notes = [verdicts.MEANING.format(statistics.VISIBLE), *_notes(settings, None), *([] if whole else [SO_FAR])]
    notes.append(f"mean ± std over seeds; {table['caveat']}")
    if data.get("test") and not table["test_images"]:
        notes.append(f"one of the {data['test']} test images is {100 / data['test']:.2f} points")
    doctors = {"comparison": table["doctor"], **{row: each["doctor"] for row, each in table["methods"].items()}}
    taught: dict[str, tuple[Run, int]] = {}  # of each row, a run and how many students it has
    for cell in cells:
        done = results[cell.row, cell.run.seed]
        if not cell.row.startswith("plain") and "failed" not in done:
            taught[cell.row] = cell.run, len(done["students"])
    return Page(
        title=f"Does it help? {data.get('name', settings['data'])}, {' + '.join(settings['student'])}",
        state=state,
        verdicts=verdicts.of_comparison(table),
        notes=notes,
        findings=[{"who": who, **one} for who, each in doctors.items() for one in each],
        picture=_picture(table),
        table=_table(table),
        curves=_curves(curves, _colours(curves)),
        lessons=_lessons(taught, _colours(table["methods"])),
        mistakes=[],
        figures=_figures(folder),
        settings=_shown(settings),
        data=_about_data(about),
        command=command_of(["compare"], settings),
    )


def _settings_so_far(cells: Sequence[Cell]) -> dict[str, Any]:
    """A comparison's settings as far as the runs that have begun tell."""
    methods = dict.fromkeys(cell.run.method for cell in cells)
    seeds = {cell.run.seed for cell in cells}
    run = cells[0].run.model_dump(mode="json") | {"seed": min(seeds), "peers": None}
    return run | {"seeds": len(seeds), "methods": list(methods)}


def _order(cell: Cell) -> tuple[int, str, int]:
    return list(METHODS).index(cell.run.method), cell.row, cell.run.seed


def _stored_comparison(folder: Path) -> dict[str, Any]:
    try:
        stored = json.loads((folder / "compare.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _picture(table: Mapping[str, Any]) -> list[Chart]:
    """Differences with intervals, every seed, and accuracy against cost."""
    methods, metric = table["methods"], table["metric"]
    tone = _colours(methods)
    plain = methods.get("plain", {"per_seed": {}})["per_seed"]
    differences, tested, churn, priced = [], [], [], []
    for row, each in methods.items():
        own, colour = each["per_seed"], tone[row]
        if d := each["difference"]:
            by_seed = [value - plain[seed] for seed, value in own.items() if seed in plain]
            differences.append(Row(row, d["mean"], by_seed, d["interval"], d["corrected"], colour))
        if student := each["student"]:
            tested.append(Row(row, student["mean"], list(own.values()), None, None, colour))
        if student and each["cost"]:
            priced.append(Dot(row, each["cost"], student["mean"], student["std"] or 0.0, colour))
        if each.get("churn") is not None:
            churn.append(Row(row, each["churn"], [], None, None, colour))
    charts = []
    if differences:
        charts.append(rows(f"difference to plain, points of test {metric}", differences, zero=True))
    if tested:
        charts.append(rows(f"test {metric} of each seed, and the mean, %", tested))
    if churn:
        charts.append(rows("churn: validation images on which two retrained networks disagree, %", churn))
    if len(priced) > 1:
        charts.append(scatter(f"test {metric}, %, against training cost, plain = 1", priced))
    return charts


def _table(table: Mapping[str, Any]) -> Table:
    cells = [{"method": row, **_cells(each, table["metric"])} for row, each in table["methods"].items()]
    used = [name for name in cells[0] if name == "seeds" or any(row[name] for row in cells)]
    return Table(used, [[row[name] for name in used] for row in cells])


def _cells(row: Mapping[str, Any], metric: str) -> dict[str, str]:
    """A row of a comparison, by column."""
    student, difference, size = row["student"] or {}, row["difference"] or {}, row["inference"] or {}
    low, high = difference.get("corrected") or (None, None)
    low_both, high_both = difference.get("both") or (None, None)
    nll, ece, best, ensemble = ((row[key] or {}).get("mean") for key in ("nll", "ece", "best", "ensemble"))
    return {
        "seeds": str(student.get("seeds", 0)),
        f"test {metric} %": _number(student.get("mean")),
        "std": _number(student.get("std")),
        "vs plain": _number(difference.get("mean"), "{:+.2f}"),
        "low": _number(low, "{:+.2f}"),
        "high": _number(high, "{:+.2f}"),
        "seeds and images: low": _number(low_both, "{:+.2f}"),
        "seeds and images: high": _number(high_both, "{:+.2f}"),
        "NLL": _number(nll, "{:.3f}"),
        "ECE %": _number(ece),
        "training, plain = 1": _number(row["cost"]),
        "seconds": _number(row["train_seconds"], "{:.1f}"),
        "best on validation": _number(best),
        "ensemble": _number(ensemble),
        "churn %": _number(row.get("churn")),
        "parameters": _number(size.get("params"), "{:,}"),
        "ms an image": _number(size.get("ms")),
        "failed": str(len(row["failed"]) or ""),
    }


# Both -----------------------------------------------------------------------------------------------------------------


def _curves(runs: Mapping[str, Sequence[Any]], tone: Mapping[str, str]) -> list[Chart]:
    """A chart per panel with a line for each name, the mean over its runs: of each what `tables.curves` gives."""
    charts = []
    for key, title in PANELS.items():
        each = []
        for name, own in runs.items():
            values = [run[key] for run in own]
            mean = [
                sum(known) / len(known) if (known := [v for v in column if v is not None]) else None
                for column in zip(*values, strict=False)
            ]
            each.append(Series(name, mean, values if len(values) > 1 else [], tone.get(name, "")))
        if any(value is not None for series in each for value in series.values):
            charts.append(lines(title, "epoch", each))
    return charts


def _read(settings: Mapping[str, Any]) -> Run:
    return read(Run, as_given(settings), where="run.json: ")


def _lessons(runs: Mapping[str, tuple[Run, int]], tone: Mapping[str, str]) -> list[Chart]:
    """Who teaches whom in each method of several networks, or of one that learns from itself."""
    charts = []
    for row, (run, students) in runs.items():
        try:
            seen = lessons(run, students)
        except (InputError, ValueError, RuntimeError) as error:  # a method that small networks do not suit
            log.debug("%s: who teaches whom is not known: %s", row, error)
            continue
        if seen.edges:
            charts.append(graph(f"{row} ({', '.join(seen.terms)})", seen.nodes, seen.edges, tone[row]))
    return charts


def _colours(names: Iterable[str]) -> dict[str, str]:
    """Those of the methods in every picture; what is black there is as the text here."""
    from teacherless.study.drawing import BLACK, colours

    return {name: "var(--ink)" if colour == BLACK else colour for name, colour in colours(names).items()}


def _mistakes(folder: Path) -> list[Figure]:
    """What the student to ship gets wrong, as far as the run has written it down."""
    mistakes = schemas.read(folder / "mistakes.json", schemas.MISTAKES)
    return [
        Figure(
            f"{each['label']}, taken for {each['taken_for']} ({100 * each['confidence']:.0f} %)",
            f"data:image/png;base64,{each['png']}",
        )
        for each in (mistakes["images"] if mistakes else [])
    ]


def _figures(folder: Path) -> list[Figure]:
    """The drawings of `analyse` and `evaluate`, and those of the comparison that the page does not draw itself."""
    own = [folder / f"{name}.svg" for name in ("often-wrong", "cohort-size")]
    paths = [*own, *sorted(folder.glob("evaluation/*/*.svg")), *sorted(folder.glob("analysis/*.svg"))]
    return [figure(path, folder) for path in paths if path.is_file()]


def _notes(settings: Mapping[str, Any], summary: Mapping[str, Any] | None) -> list[str]:
    notes = [show.SMOKE] if settings.get("small") else []
    if summary and summary.get("unreadable"):
        notes.append(f"{summary['unreadable']} images could not be read: unreadable.txt")
    if summary and summary.get("dead"):
        notes.append(f"dead, the same logits for every validation image: {', '.join(summary['dead'])}")
    return notes


def _shown(values: Mapping[str, Any]) -> dict[str, str]:
    given = {key: value for key, value in values.items() if value not in (None, [], {})}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in given.items()}


def _about_data(stored: Mapping[str, Any]) -> dict[str, str]:
    """The data, and with what it was trained."""
    versions = {f"version of {key}": value for key, value in stored.get("versions", {}).items()}
    return _shown({**stored["data"], **versions, **{key: stored.get(key) for key in ("commit", "device", "engine")}})


def _number(value: float | None, form: str = "{:.2f}") -> str:
    return "" if value is None else form.format(value)

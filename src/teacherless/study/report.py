"""report.html: what a run or a comparison found, on one page that needs nothing else.

Everything on it is read from the files of the folder: no data and none of its networks is touched, so the test set is
not read again. Who teaches whom is asked of the method itself, on small networks and noise. The page loads nothing, its
one script is allowed by its hash, and without it all numbers and drawings stay.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from teacherless.errors import InputError
from teacherless.files import disk, schemas
from teacherless.methods import METHODS
from teacherless.runs.config import Run, as_given
from teacherless.runs.explain import lessons
from teacherless.runs.merge import command_of
from teacherless.study import show
from teacherless.study.charts import COLOURS, Chart, Dot, Row, Series, graph, lines, rows, scatter
from teacherless.training.settings import read

if TYPE_CHECKING:
    from teacherless.study.cells import Cell

log = logging.getLogger("teacherless.study.report")
NAME = "report.html"
LARGEST = 2_000_000  # bytes of a page; figures that do not fit any more are named instead
PANELS = (("train/nll", "cross-entropy on training images, nats"), ("val/nll", "cross-entropy on validation, nats"),
          ("train/top1", "top-1 on training images, %"), ("val/top1", "top-1 on validation, %"),
          ("val/entropy", "entropy of predictions on validation, nats"))  # fmt: skip
MEANING = (
    "BEATS: the interval of the difference to plain is above 0. DOES NOT BEAT: it ends at {} points or "
    "below, so there is no gain worth the name. INCONCLUSIVE: neither."
)
NO_MISTAKES = "its most confident mistakes as images come to this page by teacherless evaluate RUN --split val"
SO_FAR = "settings and command are those of the runs that have begun; the comparison has not ended"


class Verdict(NamedTuple):
    """What was found, in words."""

    word: str  # BEATS, DOES NOT BEAT, INCONCLUSIVE, FAILED
    who: str
    says: str


class Finding(NamedTuple):
    """Of the doctor."""

    who: str
    finding: str
    evidence: str
    advice: str


class Table(NamedTuple):
    """Numbers in rows; the first column names them."""

    columns: list[str]
    rows: list[list[str]]


class Figure(NamedTuple):
    """A drawing that stands in the folder, as a data: address."""

    name: str
    address: str


class Page(NamedTuple):
    """All there is on the page."""

    title: str
    state: str
    verdicts: list[Verdict]
    notes: list[str]
    findings: list[Finding]
    picture: list[Chart]
    table: Table
    curves: list[Chart]
    lessons: list[Chart]
    figures: list[Figure]
    settings: dict[str, str]
    data: dict[str, str]
    command: str


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


def render(page: Page) -> str:
    """The page as HTML."""
    from jinja2 import Environment, StrictUndefined

    home = files("teacherless.study")
    script = home.joinpath("report.js").read_text(encoding="utf-8")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    template = environment.from_string(home.joinpath("report.html.jinja").read_text(encoding="utf-8"))
    return template.render(**page._asdict(), script=script, allowed=allowed)


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
    state = "finished" if summary else f"not finished: epoch {len(history)} of {total}"
    students = list(summary["students"]) if summary else _students(history)
    name = data.get("name") or "data given from Python"
    return Page(
        title=f"{method} on {name}",
        state=f"one run, seed {settings.get('seed')}, {state}",
        verdicts=[_verdict_of_run(method, summary, data)],
        notes=[*_notes(settings, summary), *([] if list(folder.glob("evaluation/*/mistakes.svg")) else [NO_MISTAKES])],
        findings=_findings({method: [summary]} if summary else {}),
        picture=[],
        table=_table_of_run(summary, history),
        curves=_curves({student: [history] for student in _students(history)}, single=True) + _terms(history),
        lessons=_lessons(
            {method: (_read(settings), len(students))} if "method" in settings and students else {},
            {method: COLOURS[0]},
        ),
        figures=_figures(folder),
        settings=_shown(settings),
        data=_about_data(dict(stored)),
        command=command_of(["train", settings["method"]], settings) if "method" in settings else "",
    )


def _verdict_of_run(method: str, summary: Mapping[str, Any] | None, data: Mapping[str, Any]) -> Verdict:
    cannot = f"Whether {method} helps, one run cannot say: teacherless compare can."
    if summary is None:
        return Verdict("INCONCLUSIVE", method, f"The run is not finished. {cannot}")
    best = summary["chosen"]
    row = summary["students"][best]
    if row.get("test_map") is not None:
        says = f"{best} has {row['test_map']:.2f} % mAP on test."
    elif row["test_top1"] is None:
        says = f"{best} was chosen; there is no test set."
    else:
        says = f"{best} has {row['test_top1']:.2f} % of the test images right{_of_images(row, data.get('test'))}."
    return Verdict("INCONCLUSIVE", method, f"{says} {cannot}")


def _of_images(row: Mapping[str, Any], images: int | None) -> str:
    """The interval that the choice of test images leaves, and what one image is worth."""
    if not images:
        return ""
    low, high = wilson(row["test_top1"] / 100, images)
    return (
        f" [{100 * low:.1f}, {100 * high:.1f}] (95 %, the choice of test images: {images:,}, one of them is "
        f"{100 / images:.2f} points)"
    )


def wilson(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share of `count` (Wilson 1927)."""
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return middle - half, middle + half


def _table_of_run(summary: Mapping[str, Any] | None, history: Sequence[Mapping[str, Any]]) -> Table:
    if summary is None:
        last = history[-1] if history else {}
        keys = ("train/top1", "train/nll", "val/top1", "val/nll")
        cells = [[name, *(_number(last.get(f"{key}/{name}")) for key in keys)] for name in _students(history)]
        return Table(["student, so far", *keys], cells)
    everyone = summary["students"] | ({"ensemble": summary["ensemble"]} if summary["ensemble"] else {})
    shown = [key for key in show.METRICS if any(row.get(f"test_{key}") is not None for row in everyone.values())]
    cells = [
        [f"{name} (to ship)" if name == summary["chosen"] else name, f"{row['params']:,}" if "params" in row else "",
         show.number("top1", row["val_top1"]), *(show.number(key, row.get(f"test_{key}")) for key in shown)]
        for name, row in everyone.items()
    ]  # fmt: skip
    return Table(
        ["student", "parameters", "validation top-1 %", *(f"test {show.METRICS[key]}" for key in shown)], cells
    )


def _students(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Who has a training accuracy in the log."""
    return list(dict.fromkeys(key.removeprefix("train/top1/") for line in history for key in line
                              if key.startswith("train/top1/")))  # fmt: skip


def _terms(history: Sequence[Mapping[str, Any]]) -> list[Chart]:
    names = dict.fromkeys(key for line in history for key in line if key.count("/") == 1 and key.startswith("train/"))
    each = [Series(key.removeprefix("train/"), [line.get(key) for line in history]) for key in names]
    return [lines("terms of the loss", "epoch", each)] if len(each) > 1 else []


# A comparison ---------------------------------------------------------------------------------------------------------


def _comparison(folder: Path) -> Page:
    from teacherless.study import outcome, statistics

    found = [cell for path in sorted((folder / "cells").iterdir()) if (cell := _cell(path))]
    if not found:
        raise InputError(f"{folder}: no run of this comparison has begun")
    results = {(cell.row, cell.run.seed): done for cell in found if (done := cell.done())}
    cells = sorted((cell for cell in found if (cell.row, cell.run.seed) in results), key=_order)
    stored = _stored_comparison(folder)
    table = outcome.tabulate(cells, results)
    for row, each in table["methods"].items():
        each |= {key: stored.get("methods", {}).get(row, {}).get(key) for key in ("train_flops", "inference", "churn")}
    settings = stored.get("settings") or _settings_so_far(sorted(found, key=_order))
    about: dict[str, Any] = dict(schemas.stored(found[0].folder) or {"data": {}})
    data = about["data"]
    whole = len(results) == len(found) and stored.get("settings")
    state = f"{len(results)} runs" if whole else f"not finished: {len(results)} runs done, {len(found)} begun; so far"
    histories: dict[str, list[Any]] = {}
    for cell in sorted(found, key=_order):
        if (cell.folder / "metrics.jsonl").is_file() and "failed" not in results.get((cell.row, cell.run.seed), {}):
            histories.setdefault(cell.row, []).append(schemas.lines(cell.folder))
    return Page(
        title=f"Does it help? {data.get('name', settings['data'])}, {' + '.join(settings['student'])}",
        state=state,
        verdicts=_verdicts(table),
        notes=[MEANING.format(statistics.VISIBLE), *_notes(settings, None), *([] if whole else [SO_FAR]),
               f"mean ± std over seeds; {table['caveat']}",
               *([f"one of the {data['test']} test images is {100 / data['test']:.2f} points"]
                 if data.get("test") and not table["test_images"] else [])],
        findings=[*(Finding("comparison", **one) for one in table["doctor"]), *_findings({
            row: [done for (name, _), done in results.items() if name == row and "failed" not in done]
            for row in table["methods"]})],
        picture=_picture(table),
        table=_table(table),
        curves=_curves(histories, single=False),
        lessons=_lessons({cell.row: (cell.run, len(results[cell.row, cell.run.seed]["students"])) for cell in cells
                          if not cell.row.startswith("plain") and "failed" not in results[cell.row, cell.run.seed]},
                         _colours(table["methods"])),
        figures=_figures(folder),
        settings=_shown(settings),
        data=_about_data(about),
        command=command_of(["compare"], settings),
    )  # fmt: skip


def _settings_so_far(cells: Sequence[Cell]) -> dict[str, Any]:
    """A comparison's settings as far as the runs that have begun tell."""
    methods = dict.fromkeys(cell.run.method for cell in cells)
    seeds = {cell.run.seed for cell in cells}
    run = cells[0].run.model_dump(mode="json") | {"seed": min(seeds), "peers": None}
    return run | {"seeds": len(seeds), "methods": list(methods)}


def _cell(path: Path) -> Cell | None:
    """A run of a comparison; None of one that has not begun. Code that it names is not imported."""
    from teacherless.study.cells import Cell

    stored = schemas.stored(path)
    if stored is None:
        return None
    return Cell(path.name.rpartition("-s")[0], _read(stored["settings"]), path)


def _order(cell: Cell) -> tuple[int, str, int]:
    return list(METHODS).index(cell.run.method), cell.row, cell.run.seed


def _stored_comparison(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "compare.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def word(interval: Sequence[float] | None) -> str:
    """BEATS, DOES NOT BEAT or INCONCLUSIVE, by an interval of the difference to plain: see MEANING."""
    from teacherless.study.statistics import VISIBLE

    if interval is None:
        return "INCONCLUSIVE"
    if interval[0] > 0:
        return "BEATS"
    return "DOES NOT BEAT" if interval[1] <= VISIBLE else "INCONCLUSIVE"


def _verdicts(table: Mapping[str, Any]) -> list[Verdict]:
    """Of every method, the largest difference first."""
    found = []
    for row, each in table["methods"].items():
        difference = each["difference"]
        if difference:
            budget = f"for {each['cost']:.1f} times plain's training" if each["cost"] else "at a cost that is not known"
            interval = difference["corrected"]
            at = f"[{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else "without an interval"
            many = "1 seed" if difference["seeds"] == 1 else f"{difference['seeds']} seeds"
            says = f"{difference['mean']:+.2f} points of {table['metric']} {at}, {many}, {budget}."
            if both := difference["both"]:
                says += f" With other test images too: [{both[0]:+.2f}, {both[1]:+.2f}], {word(both)}."
            if (found_out := word(interval)) == "INCONCLUSIVE":
                says += f" {_what_it_takes(difference)}"
            found.append((difference["mean"], Verdict(found_out, row, says)))
        for seed, why in each["failed"].items():
            found.append((-math.inf, Verdict("FAILED", row, f"seed {seed}: {why}")))
    return [verdict for _, verdict in sorted(found, key=lambda pair: -pair[0])]


def _what_it_takes(difference: Mapping[str, Any]) -> str:
    """How many seeds could tell."""
    from teacherless.study.statistics import INTERVAL_FROM, VISIBLE

    if difference["needed_range"] is None:
        few = difference["seeds"] < INTERVAL_FROM
        return f"Give at least {INTERVAL_FROM} seeds, better 5." if few else "All seeds say the same, without a spread."
    low, high = difference["needed_range"]
    return f"{low:,} to {high:,} seeds would be needed to see {VISIBLE} points."


def _picture(table: Mapping[str, Any]) -> list[Chart]:
    """Differences with intervals, every seed, and accuracy against cost."""
    methods, metric = table["methods"], table["metric"]
    tone = _colours(methods)
    plain = methods.get("plain", {"per_seed": {}})["per_seed"]
    compared = {row: each for row, each in methods.items() if each["difference"]}
    charts = []
    if compared:
        charts.append(rows(f"difference to plain, points of test {metric}", [
            Row(row, each["difference"]["mean"],
                [value - plain[seed] for seed, value in each["per_seed"].items() if seed in plain],
                each["difference"]["interval"], each["difference"]["corrected"], tone[row])
            for row, each in compared.items()], zero=True))  # fmt: skip
    tested = {row: each for row, each in methods.items() if each["student"]}
    if tested:
        charts.append(rows(f"test {metric} of each seed, and the mean, %", [
            Row(row, each["student"]["mean"], list(each["per_seed"].values()), None, None, tone[row])
            for row, each in tested.items()]))  # fmt: skip
    disagree = {row: each for row, each in methods.items() if each.get("churn") is not None}
    if disagree:
        charts.append(rows("churn: validation images on which two retrained networks disagree, %", [
            Row(row, each["churn"], [], None, None, tone[row]) for row, each in disagree.items()]))  # fmt: skip
    priced = {row: each for row, each in tested.items() if each["cost"]}
    if len(priced) > 1:
        charts.append(scatter(f"test {metric}, %, against training cost, plain = 1", [
            Dot(row, each["cost"], each["student"]["mean"], each["student"]["std"] or 0.0, tone[row])
            for row, each in priced.items()]))  # fmt: skip
    return charts


def _table(table: Mapping[str, Any]) -> Table:
    columns = ["method", "seeds", f"test {table['metric']} %", "std", "vs plain", "low", "high",
               "seeds and images: low", "high", "NLL", "ECE %", "training, plain = 1", "seconds",
               "best on validation", "ensemble", "churn %", "parameters", "ms an image", "failed"]  # fmt: skip
    cells = []
    for row, each in table["methods"].items():
        student, difference, size = each["student"] or {}, each["difference"] or {}, each["inference"] or {}
        intervals = [v for key in ("corrected", "both") for v in difference.get(key) or (None, None)]
        cells.append([
            row, str(student.get("seeds", 0)), _number(student.get("mean")), _number(student.get("std")),
            *(_number(value, "{:+.2f}") for value in (difference.get("mean"), *intervals)),
            _number((each["nll"] or {}).get("mean"), "{:.3f}"), _number((each["ece"] or {}).get("mean")),
            _number(each["cost"]), _number(each["train_seconds"], "{:.1f}"),
            *(_number((each[key] or {}).get("mean")) for key in ("best", "ensemble")),
            _number(each.get("churn")), _number(size.get("params"), "{:,}"), _number(size.get("ms")),
            str(len(each["failed"]) or ""),
        ])  # fmt: skip
    used = [i for i in range(len(columns)) if i < 2 or any(row[i] for row in cells)]
    return Table([columns[i] for i in used], [[row[i] for i in used] for row in cells])


# Both -----------------------------------------------------------------------------------------------------------------


def _curves(histories: Mapping[str, Sequence[Any]], *, single: bool) -> list[Chart]:
    """A chart per panel with a line for each name: of a run its students', of a comparison the mean over the seeds."""
    from teacherless.study.tables import curves

    tone = dict.fromkeys(histories, "") if single else _colours(histories)
    charts = []
    for key, title in PANELS:
        each = []
        for name, runs in histories.items():
            if single:
                values = [[line.get(f"{key}/{name}") for line in history] for history in runs]
            else:
                values = [curves(history)[key.replace("/", "_")] for history in runs]  # type: ignore[literal-required]
            mean = [
                sum(known) / len(known) if (known := [v for v in column if v is not None]) else None
                for column in zip(*values, strict=False)
            ]
            each.append(Series(name, mean, values if len(values) > 1 else [], tone[name]))
        if any(value is not None for series in each for value in series.values):
            charts.append(lines(title, "epoch", each))
    return charts


def _read(settings: Mapping[str, Any]) -> Run:
    return read(Run, as_given(settings), where="run.json: ")


def _lessons(found: Mapping[str, tuple[Run, int]], tone: Mapping[str, str]) -> list[Chart]:
    """Who teaches whom in each method of several networks, or of one that learns from itself."""
    charts = []
    for row, (run, students) in found.items():
        try:
            seen = lessons(run, students)
        except (InputError, ValueError, RuntimeError) as error:  # a method that small networks do not suit
            log.debug("%s: who teaches whom is not known: %s", row, error)
            continue
        if seen.edges:
            charts.append(graph(f"{row} ({', '.join(seen.terms)})", seen.nodes, seen.edges, tone[row]))
    return charts


def _findings(summaries: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Finding]:
    """What the doctor found in the runs of each name, once each."""
    found: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for name, each in summaries.items():
        for summary in each:
            for one in summary.get("doctor", []):
                found.setdefault((name, one["finding"]), []).append(one)
    return [Finding(name if len(summaries[name]) == 1 else f"{name}, {len(each)} of {len(summaries[name])} runs", what,
                    each[0]["evidence"], each[0]["advice"]) for (name, what), each in found.items()]  # fmt: skip


def _colours(names: Iterable[str]) -> dict[str, str]:
    """Those of the methods in every picture; what is black there is as the text here."""
    from teacherless.study.drawing import BLACK, colours

    return {name: "var(--ink)" if colour == BLACK else colour for name, colour in colours(names).items()}


def _figures(folder: Path) -> list[Figure]:
    """The drawings of `analyse` and `evaluate`, and those of the comparison that the page does not draw itself."""
    own = [folder / f"{name}.svg" for name in ("often-wrong", "cohort-size")]
    paths = [*own, *sorted(folder.glob("evaluation/*/*.svg")), *sorted(folder.glob("analysis/*.svg"))]
    return [Figure(path.relative_to(folder).with_suffix("").as_posix(),
                   "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode())
            for path in paths if path.is_file()]  # fmt: skip


def _notes(settings: Mapping[str, Any], summary: Mapping[str, Any] | None) -> list[str]:
    found = [show.SMOKE] if settings.get("small") else []
    if summary and summary.get("unreadable"):
        found.append(f"{summary['unreadable']} images could not be read: unreadable.txt")
    if summary and summary.get("dead"):
        found.append(f"dead, the same logits for every validation image: {', '.join(summary['dead'])}")
    return found


def _shown(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()
            if value not in (None, [], {})}  # fmt: skip


def _about_data(stored: Mapping[str, Any]) -> dict[str, str]:
    """The data, and with what it was trained."""
    found = {f"version of {key}": value for key, value in stored.get("versions", {}).items()}
    return _shown({**stored["data"], **found, **{key: stored.get(key) for key in ("commit", "device", "engine")}})


def _number(value: float | None, form: str = "{:.2f}") -> str:
    return "" if value is None else form.format(value)

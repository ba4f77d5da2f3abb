"""What the command line prints: tables, cards, JSON."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teacherless.errors import printable
from teacherless.files import disk
from teacherless.training.live import duration, fitted

if TYPE_CHECKING:
    from rich.console import Console

    from teacherless.data import Source
    from teacherless.runs.explain import Explanation
    from teacherless.runs.export import Exported
    from teacherless.runs.plan import Plan
    from teacherless.runs.predict import Prediction
    from teacherless.runs.recipes import Recipe
    from teacherless.runs.results import Evaluation

ONE_NETWORK = (
    "Compared is one network: the mean over those trained together. The best of several, or all together, is another "
    "thing to buy:"
)
METRICS = {
    "top1": "top-1 %",
    "balanced": "balanced %",
    "top5": "top-5 %",
    "nll": "NLL",
    "ece": "ECE %",
    "rank1": "rank-1 %",
    "rank5": "rank-5 %",
    "rank10": "rank-10 %",
    "map": "mAP %",
    "mq_rank1": "MQ rank-1 %",
    "mq_map": "MQ mAP %",
}


SMOKE = "smoke run: small networks, a few images; the numbers mean nothing"


def console() -> Console:
    """Where the output goes."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str | None]], *, left: int = 1, text: str = "", title: str = ""
) -> None:
    """A table, whole where it is piped; a terminal that is too narrow loses the last columns. No cell is ever cut.

    Args:
        columns: their names.
        rows: a cell per column.
        left: how many of the columns begin at the left.
        text: the column whose cells may go on in a second line.
        title: above it.
    """
    from rich.box import SIMPLE
    from rich.table import Table

    cells = [[printable(cell or "") for cell in row] for row in rows]
    out = console()
    out.print(fitted(Table(box=SIMPLE, title=title or None), out, columns, cells, left=left, text=text), crop=False)


def as_json(value: Any) -> None:
    """JSON; what is no finite number is null."""
    print(json.dumps(disk.finite(value), indent=1, default=str))


def number(metric: str, value: float | None) -> str:
    """A metric's value as it is shown."""
    if value is None:
        return "-"
    return f"{value:.4f}" if metric == "nll" else f"{value:.2f}"


def summary(result: Mapping[str, Any], folder: Path, *, smoke: bool = False) -> None:
    """A run's summary, a row per student and one for the ensemble; * and the last line name the student to ship.

    Of a smoke run (`--small`) the table says so, and nothing is to be shipped.
    """
    tests, rows = networks(result, " *")
    columns = ["method", "student", "params", "val top-1 %", *tests]
    table(columns, [[result["method"], *row] for row in rows], left=2, title=SMOKE if smoke else "")
    if smoke:
        print(f"every piece ran: {folder}")
        return
    dead, best = result.get("dead", []), result["chosen"]
    if result.get("unreadable"):
        print(f"{result['unreadable']} images could not be read: {folder / 'unreadable.txt'}")
    doctor(result.get("doctor", []))
    if best not in dead:
        tested = result["students"][best]
        top = number("top1", tested.get("test_map", tested["test_top1"]))
        print(f"ship {best} ({top} on test): {folder / 'students' / best}")
    else:
        print("nothing to ship: every student says the same of all images, whatever they show")


def networks(result: Mapping[str, Any], ship: str) -> tuple[list[str], list[list[str]]]:
    """What was measured on test, and a row for each student and the ensemble; `ship` marks the student to ship."""
    each = result["students"] | ({"ensemble": result["ensemble"]} if result["ensemble"] else {})
    shown = [key for key in METRICS if any(row.get(f"test_{key}") is not None for row in each.values())]
    rows = []
    for name, row in each.items():
        mark = ship if name == result["chosen"] else ""
        size = f"{row['params']:,}" if "params" in row else ""
        tested = [number(key, row.get(f"test_{key}")) for key in shown]
        rows.append([name + mark, size, number("top1", row["val_top1"]), *tested])
    return [f"test {METRICS[key]}" for key in shown], rows


def doctor(findings: Sequence[Mapping[str, str]]) -> None:
    """The first three findings, a line each."""
    for finding in findings[:3]:
        print(printable(f"{finding['finding']}: {finding['evidence']}. Try: {finding['advice']}"))


def source(data: Source, sizes: Sequence[tuple[int, int]], json: bool = False) -> None:
    """A data set's classes, with the images of each split; the sizes of its photos; what cannot be read.

    Args:
        data: the set.
        sizes: width and height of the photos as they are, by area; nothing where they are not known.
        json: print JSON.
    """
    splits = {name: part for name in ("train", "val", "test") if (part := getattr(data, name)) is not None}
    counts = {name: part.labels.bincount(minlength=len(data.classes)).tolist() for name, part in splits.items()}
    if json:
        about = {key: getattr(data, key) for key in ("name", "classes", "size", "fit", "unreadable")}
        return as_json({**about, **counts, "photos": sizes})
    rows = zip(data.classes, *(map(str, each) for each in counts.values()), strict=True)
    table(["class", *counts], rows)
    print(data)
    if sizes:
        named = {"smallest": sizes[0], "median": sizes[len(sizes) // 2], "largest": sizes[-1]}
        shown = ", ".join(f"{name} {width}x{height}" for name, (width, height) in named.items())
        print(f"photos are {shown}; read as {data.size[1]}x{data.size[0]} by {data.fit}")
    for failure in data.unreadable:
        print("cannot be read:", printable(failure))


def evaluation(evaluated: Evaluation) -> None:
    """The metrics of every predictor, and class by class what the shipped student makes of it."""
    print(f"{evaluated.data}, {evaluated.split}: {evaluated.images:,} images, {len(evaluated.classes)} classes")
    shown = [key for key in METRICS if key in next(iter(evaluated.metrics.values()))]
    rows = [[name, *(number(key, row[key]) for key in shown)] for name, row in evaluated.metrics.items()]
    table(["student", *(METRICS[key] for key in shown)], rows)
    if not evaluated.confusion:
        return
    whole = len(evaluated.classes) <= 12  # then the matrix itself fits
    print(f"{evaluated.shipped}, class by class" + ("; to the right, how often it is taken for which" if whole else ""))
    per_class = []
    for i, (name, row, right) in enumerate(
        zip(evaluated.classes, evaluated.confusion, evaluated.per_class, strict=True)
    ):
        cells = [str(count or "·") for count in row] if whole else [_taken_for(evaluated.classes, row, i)]
        per_class.append([name, number("top1", right), str(sum(row)), *cells])
    table(["class", "top-1 %", "images", *(evaluated.classes if whole else ["taken for"])], per_class)


def _taken_for(classes: Sequence[str], row: Sequence[int], label: int) -> str:
    """The classes that one is most often taken for: `cat 4, dog 2`."""
    often = sorted((i for i in range(len(row)) if i != label and row[i]), key=lambda i: -row[i])[:3]
    return ", ".join(f"{classes[i]} {row[i]}" for i in often)


def plan(planned: Plan, json: bool = False) -> None:
    """What a run will cost; what needs no measurement comes first."""
    if json:
        known = {
            key: getattr(planned, key) for key in ("students", "helpers", "engine", "precision", "epochs", "per_epoch")
        }
        bill = planned.bill()
        return as_json(known | bill._asdict() | {"ranks": bill.ranks and bill.ranks._asdict()})
    sizes = ", ".join(f"{name} {count:,}" for name, count in planned.students.items())
    print(f"parameters      {sizes}; helpers that are not shipped {planned.helpers:,}")
    print(f"engine          {planned.engine}, {planned.precision}", flush=True)
    bill = planned.bill()
    if mesh := bill.ranks:
        places = " | ".join(", ".join(each) for each in mesh.students)
        print(f"ranks           {mesh.peer} peer x {mesh.data} data: {places}")
        print(f"batch           {planned.run.batch_size} on each data rank, {mesh.batch_size} in all")
        print(
            f"a step sends    {mesh.peer_bytes:,.0f} bytes along peer, {mesh.data_bytes:,} along data, from each rank"
        )
        print("what follows is of the rank with most to do; it does not wait for the others, nor for what they send")
    print(f"peak memory     {'unknown' if bill.peak_bytes is None else f'{bill.peak_bytes / 2**30:.2f} GiB'}")
    epoch = f"{duration(bill.epoch_seconds)} an epoch ({planned.per_epoch} steps of {1000 * bill.step_seconds:.1f} ms)"
    print(f"time            {epoch}; {duration(bill.seconds)} for {planned.epochs} epochs")
    print(f"cost            {bill.relative:.2f} times plain training of the first student")


def comparison(compared: Mapping[str, Any], *, smoke: bool = False) -> None:
    """The table, what several networks give, what inference costs, the verdicts, and what the intervals are about."""
    methods = compared["methods"]
    rows, several = [], []
    plain = methods.get("plain", {"student": None, "cost": None})
    for row in compared["plain_networks"]:
        k, cost = row["networks"], row["networks"] * (plain["cost"] or 1)
        each = ("" if row[key] is None else f"{row[key]:.2f}" for key in ("best", "ensemble"))
        several.append([f"plain, any {k} of {row['of']} seeds", _mean(plain["student"]), *each, f"{cost:.1f}x"])
    sizes: dict[str, list[str]] = {}
    for name, row in methods.items():
        price = f"{row['cost']:.1f}x" if row["cost"] else "-"
        by_image = {"seeds and images": _interval((row["difference"] or {}).get("both"))}
        nll, ece = ("" if row[key] is None else f"{row[key]['mean']:.3f}" for key in ("nll", "ece"))
        cells = {
            "method": name,
            f"test {compared['metric']} %": _mean(row["student"]),
            "vs plain": _difference(row["difference"]),
            **(by_image if compared["test_images"] else {}),
            "NLL": nll,
            "ECE %": ece,
            "train": price,
            "seconds": "" if row["train_seconds"] is None else f"{row['train_seconds']:.1f}",
            "TFLOP": "" if row["train_flops"] is None else f"{row['train_flops'] / 1e12:.3g}",
        }
        rows.append(cells)
        if row["best"] or row["ensemble"]:
            means = (_mean(row[key]) for key in ("student", "best", "ensemble"))
            several.append([f"{name}, {row['networks']}", *means, price])
        if size := row["inference"]:
            spread = f"{size['ms']:.2f} ms ({size['low_ms']:.2f} to {size['high_ms']:.2f})"
            cost = f"{size['params']:,} parameters, {size['flops'] / 1e6:,.1f} MFLOP, {spread}"
            sizes.setdefault(cost, []).append(name)
    table(list(rows[0]), [list(row.values()) for row in rows], left=2, title=SMOKE if smoke else "")
    if several:
        print(ONE_NETWORK)
        table(["networks", "one of them", "best on validation", "all together", "train"], several, left=2)
    for cost, names in sizes.items():
        print(f"one image through one network: {cost}{': ' + ', '.join(names) if len(sizes) > 1 else ''}")
    for name, row in methods.items():
        if row["verdict"]:
            print(row["verdict"])
        for seed, who in row["left"].items():
            print(printable(f"{name}, seed {seed}: {who}; its numbers are the others'"))
        for seed, why in row["failed"].items():
            print(printable(f"{name}, seed {seed} failed: {why}"))
    if not smoke:
        findings = list(compared["doctor"])
        for name, row in methods.items():
            findings += [{**each, "finding": f"{name}: {each['finding']}"} for each in row["doctor"]]
        doctor(findings)
    if compared["sweep"]:
        sweep(compared["sweep"], plain.get("train_seconds"))
    print(f"mean ± std over seeds; {compared['caveat']}.")


def sweep(swept: Mapping[str, Any], plain_seconds: float | None) -> None:
    """What every method chose, among what, and what the choice cost."""
    name, methods = swept["setting"], swept["methods"]
    rows = []
    for method, row in methods.items():
        cost = f"{row['seconds'] / plain_seconds:.1f}x" if plain_seconds else "-"
        rows.append([method, *(number("top1", top1) for top1 in row["tried"].values()), f"{row['chosen']:g}", cost])
    chosen = f"{name} was chosen by top-1 on validation, in %, with {swept['seeds']} other seeds"
    print(f"{chosen}; its cost, in plain trainings, comes on top:")
    tried = next(iter(methods.values()))["tried"]
    table(["method", *(f"{name} {value}" for value in tried), "chosen", "cost"], rows)


def _difference(difference: Mapping[str, Any] | None) -> str:
    """`+0.09 [-0.73, +0.92]`."""
    if difference is None:
        return ""
    return f"{difference['mean']:+.2f} {_interval(difference['corrected'])}".rstrip()


def _interval(bounds: Sequence[float] | None) -> str:
    return f"[{bounds[0]:+.2f}, {bounds[1]:+.2f}]" if bounds else ""


def _mean(over_seeds: Mapping[str, Any] | None) -> str:
    if over_seeds is None:
        return ""
    return f"{over_seeds['mean']:.2f}" + ("" if over_seeds["std"] is None else f" ± {over_seeds['std']:.2f}")


def exported(program: Exported, json: bool) -> None:
    """Where it is, what was compared, how long an image takes."""
    if json:
        as_json({**program._asdict(), "file": str(program.file)})
        return
    *most, last = program.ms
    batches = f"{', '.join(most)} and {last}" if most else last
    print(f"{program.name} is in {program.file}, {program.size / 1e6:.2f} MB")
    print(
        f"read again without teacherless, {program.images} images in batches of {batches}: logits differ by at most "
        f"{program.difference:.2g}, {100 * program.agree:.1f} % get the same class"
    )
    print(
        "an image takes on this CPU", ", ".join(f"{ms:.2f} ms in a batch of {size}" for size, ms in program.ms.items())
    )


def predictions(images: Sequence[Prediction], form: str) -> None:
    """A row for each image: as a table, csv or json."""
    if form == "json":
        as_json([{"path": p.path, "classes": p.probabilities, "error": p.error} for p in images])
    elif form == "csv":
        rows = csv.writer(sys.stdout)
        rows.writerow(["path", "class", "probability"])
        rows.writerows((p.path, name, f"{value:.6f}") for p in images for name, value in p.probabilities.items())
    else:
        table(["image", "classes, most probable first"], map(_ranked, images), left=2)


def _ranked(image: Prediction) -> list[str]:
    ranked = "  ".join(f"{name} {100 * value:.1f} %" for name, value in image.probabilities.items())
    return [str(image.path), f"cannot be read: {image.error}" if image.error else ranked]


def explanation(explained: Explanation, json: bool = False) -> None:
    """Who learns from which term, and how much it weighs."""
    if json:
        return as_json(explained._asdict() | {"terms": [term._asdict() for term in explained.terms]})
    shipped, kept = (
        ", ".join(f"{name} ({size:,})" for name, size in parts.items())
        for parts in (explained.shipped, explained.helpers)
    )
    print(f"parameters shipped: {shipped}" + (f"; left behind: {kept}" if kept else ""))
    rows = []
    for term in explained.terms:
        first, last = f"{term.first:.3g}", f"{term.last:.3g}"
        name = f"{term.phase}: {term.name}" if term.phase else term.name
        size = first if first == last else f"{first} → {last}"
        rows.append([name, "; ".join(term.learns), size, f"{term.ratio:.3g}"])
    table(["term", "who learns", "size", "of CE"], rows, left=2)
    print("sizes: of one batch after a few steps of training, in the first epoch → in the last")
    for warning in filter(None, (term.warning for term in explained.terms)):
        print(f"warning: {warning}")


def finding(name: str, says: str) -> None:
    """What an analysis shows, as soon as it is there."""
    print(f"{name}: {says}", flush=True)


def recipes(known: Iterable[Recipe]) -> None:
    """The recipes, each with its published number."""
    from teacherless.runs.recipes import UNCHECKED, shown

    rows = [
        [each.name, shown(each.published), *(each.published.get(key) for key in ("metric", "what"))] for each in known
    ]
    table(["recipe", "published", "metric", "what"], rows, left=4, text="what")
    print(f"* {UNCHECKED}")


def card(text: str) -> None:
    """A method's card; on a terminal with bold headings."""
    from rich.text import Text

    shown = Text(text)
    shown.highlight_regex(r"(?m)\A[^:]+:|^\S.*:$", "bold")
    console().print(shown, soft_wrap=True)

"""The ledger: studies that anyone can run again, and what follows from them.

python results/ledger.py run STUDY [--jobs 1]    run its commands, then put its numbers into results/STUDY
python results/ledger.py check [STUDY]           one cell, picked at random, again: the same bits?
python results/ledger.py write                   README.md, docs/learnt.md and results/ledger.json from the numbers

A study is a folder with `study.toml`: the question, the bet and the design, written down before it was run, and its
commands. Beside it stand what it gave (compare.json and compare.csv of each comparison), the hashes of every network
that was trained (cells.jsonl), and where it ran (ran.json), with the hash of the design it ran with.

    before = [...]      commands that come first, as one that trains a teacher
    [images.NAME]       a data set with wrong labels, rare classes or another size, made from another: see made.py
    [together]          NAME = "RUN": all students of a run as one network, runs/results/NAME, for --teacher
    [comparisons]       NAME = "compare ...", without --out
    [plain]             NAME = "OTHER": its plain is trained in the comparison OTHER, which stands before it
    [outliers]          NAME = "DATA": what accuracy does not say of the networks of comparison NAME: see measures.py
    contrasts = [["a/dml", "b/plain"], ...]     differences of rows of two comparisons with the same seeds; those
                        that were asked for after the results stand in later.toml
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
import shlex
import shutil
import sys
import tempfile
import textwrap
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean, median
from typing import Any

import made
import measures

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # results.nets:… is a student of some studies
BEGIN, END = "<!-- written by `make readme` -->", "<!-- end of what `make readme` writes -->"
KEPT = ("compare.json", "compare.csv")
SAME = 1.1  # times plain's FLOPs: as good as the same


def studies() -> dict[str, dict[str, Any]]:
    """Every study's design by its name."""
    return {path.parent.name: tomllib.loads(path.read_text("utf-8")) for path in sorted(HERE.glob("*/study.toml"))}


def design_hash(study: str) -> str:
    """Of what was written down before the study ran."""
    return hashlib.sha256((HERE / study / "study.toml").read_bytes()).hexdigest()


# Running --------------------------------------------------------------------------------------------------------------


def run(study: str, *flags: str) -> None:
    """Run a study's commands in runs/results/STUDY, where they go on if they were stopped, and keep its numbers. Flags
    are of all of them and change no number: `--jobs 1`."""
    from bench import machine

    design, work = studies()[study], ROOT / "runs" / "results" / study
    where = {**machine("cpu"), "kind": kind(), "design": design_hash(study)}
    prepare(design)
    for name, command in design["comparisons"].items():
        if name in design.get("plain", {}):
            share_plain(work / design["plain"][name] / "cells", work / name / "cells")
        teacherless([*shlex.split(command), "--out", str(work / name), *flags])
        kept = HERE / study / name
        kept.mkdir(exist_ok=True)
        for file in KEPT:
            shutil.copy(work / name / file, kept / file)
        template = json.loads((kept / "compare.json").read_text("utf-8"))["settings"]
        cells = sorted((work / name / "cells").iterdir())
        lines = [cell_line(folder, template) for folder in cells]
        (kept / "cells.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        (kept / "curves.json").write_text(json.dumps(curves(cells)) + "\n", encoding="utf-8")
        if name in design.get("outliers", {}):
            measured = measures.measure(work / name, design["outliers"][name])
            (kept / "measures.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    (HERE / study / "ran.json").write_text(json.dumps(where, indent=1) + "\n", encoding="utf-8")


def kind() -> str:
    """What decides the last bits on a CPU. Its name does not: two machines said AMD EPYC."""
    import torch

    file = Path("/proc/cpuinfo")
    said = dict(re.findall(r"(?m)^(cpu family|model)\s*: (\d+)", file.read_text("utf-8"))) if file.exists() else {}
    return ", ".join([*(f"{key} {value}" for key, value in said.items()), torch.backends.cpu.get_cpu_capability()])


def prepare(design: dict[str, Any]) -> None:
    """What a study's cells read: images, and networks that were trained before, on one thread as cells are: the number
    of threads decides the last bits."""
    from teacherless.training.engines.threads import one_thread_each

    for name, spec in design.get("images", {}).items():
        made.make(ROOT / "runs" / "results" / "images" / f"{name}.npz", **spec)
    for command in design.get("before", []):
        arguments = shlex.split(command)
        if not (ROOT / arguments[arguments.index("--out") + 1] / "summary.json").exists():
            with one_thread_each():
                teacherless(arguments)
    for name, folder in design.get("together", {}).items():
        made.together(ROOT / "runs" / "results" / name, ROOT / folder)


def share_plain(theirs: Path, ours: Path) -> None:
    """Plain's cells of another comparison; `compare` refuses them if they have other settings."""
    for cell in theirs.glob("plain-s*"):
        if not (ours / cell.name).exists():
            shutil.copytree(cell, ours / cell.name)


def teacherless(arguments: list[str]) -> None:
    """The command line, in this process."""
    from teacherless.cli import main

    print("teacherless", shlex.join(arguments), flush=True)
    if code := main(arguments):
        raise SystemExit(code)


def cell_line(folder: Path, template: dict[str, Any]) -> dict[str, Any]:
    """A cell's own settings, where they are not the comparison's, and the hashes of what it left."""
    settings = json.loads((folder / "run.json").read_text("utf-8"))["settings"]
    own = {key: value for key, value in settings.items() if key not in template or template[key] != value}
    summary = folder / "summary.json"
    return {"cell": folder.name, "settings": own, "files": networks(summary) if summary.exists() else None}


def curves(cells: list[Path]) -> dict[str, list[list[float]]]:
    """By row, after each epoch: the share of training that is done, and top-1 on validation, the mean over students and
    seeds. Of rows whose epochs are those of all their seeds."""
    each: dict[str, list[list[list[float]]]] = {}
    for cell in cells:
        text = (cell / "metrics.jsonl").read_text("utf-8") if (cell / "metrics.jsonl").exists() else ""
        lines = [json.loads(line) for line in text.splitlines()]
        keys = [key for key in (lines[-1] if lines else {}) if key.startswith("val/top1/")]
        points = [[line["step"] / lines[-1]["step"], fmean(line[key] for key in keys)] for line in lines if keys]
        each.setdefault(cell.name.rpartition("-s")[0], []).append(points)
    means = {}
    for row, seeds in each.items():
        if len({len(points) for points in seeds}) == 1 and seeds[0]:
            means[row] = [[at[0][0], round(fmean(value for _, value in at), 3)] for at in zip(*seeds, strict=True)]
    return means


def networks(summary: Path) -> dict[str, str]:
    """SHA-256 of each network that a run left."""
    files = json.loads(summary.read_text("utf-8"))["files"]
    return {name: digest for name, digest in files.items() if name.endswith("model.safetensors")}


def check(study: str | None) -> None:
    """Run one cell again. Raises: SystemExit if its networks have other bits."""
    from teacherless.runs.config import Run, as_given
    from teacherless.study.cells import run_cell

    files = sorted(HERE.glob(f"{study or '*'}/*/cells.jsonl"))
    cells = [(path, json.loads(line)) for path in files for line in path.read_text("utf-8").splitlines()]
    path, cell = random.choice([(path, cell) for path, cell in cells if cell["files"]])
    prepare(studies()[path.parent.parent.name])
    settings = json.loads(path.with_name("compare.json").read_text("utf-8"))["settings"] | cell["settings"]
    given = as_given({key: value for key, value in settings.items() if key in Run.model_fields})
    run = Run.model_validate({**given, "trust_imports": True})  # ours: results/nets.py
    with tempfile.TemporaryDirectory() as out:
        run_cell(run, Path(out) / "cell")
        same = networks(Path(out) / "cell" / "summary.json") == cell["files"]
    ran = json.loads(path.parent.with_name("ran.json").read_text("utf-8")).get("kind", "a machine that was not noted")
    where = "" if ran == kind() else f" (it ran on {ran}, this is {kind()})"
    print(f"{path.parent.relative_to(HERE)} {cell['cell']}: {'the same bits' if same else 'OTHER BITS'}{where}")
    sys.exit(not same)


# Writing --------------------------------------------------------------------------------------------------------------


def table_of(study: str, comparison: str) -> dict[str, Any]:
    """What a comparison gave, by row; nothing of one that was not run."""
    file = HERE / study / comparison / "compare.json"
    return json.loads(file.read_text("utf-8"))["methods"] if file.exists() else {}


def rows() -> Iterator[dict[str, Any]]:
    """One per study, comparison and row against plain, then the study's contrasts: what the cards, the README and
    docs/learnt.md say."""
    for study, design in studies().items():
        tables = {name: table_of(study, name) for name in design["comparisons"]}
        for name, table in tables.items():
            when = reached(study, name)
            for row, found in table.items():
                if found["difference"] and found["difference"]["corrected"]:
                    where = {"study": study, "comparison": name, "row": row, "against": "plain"}
                    of_plain = numbers(found["difference"], found, table["plain"])
                    at = when.get(row)
                    yield where | of_plain | {"reached": at and of_plain["cost"] and at * of_plain["cost"]}
        yield from contrasts(study, design.get("contrasts", []), tables)
        yield from (each | {"later": True} for each in contrasts(study, later(study), tables))


def later(study: str) -> list[list[str]]:
    """Contrasts that were asked for after the results were seen, and say so."""
    file = HERE / study / "later.toml"
    return tomllib.loads(file.read_text("utf-8"))["contrasts"] if file.exists() else []


def contrasts(study: str, asked: list[list[str]], tables: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row minus a row of another comparison, paired by seed; of four, the difference of two such differences.
    Intervals are over seeds, corrected for all contrasts of a study."""
    from teacherless.study.statistics import compare

    differences: dict[str, dict[int, float]] = {}
    sides: dict[str, list[dict[str, Any]]] = {}
    for names in asked:
        each = [tables[name].get(row, {}) for name, _, row in (text.partition("/") for text in names)]
        if all(each):
            key, signs = " ".join(names), (1, -1, -1, 1)
            seeds = set.intersection(*(set(one["per_seed"]) for one in each))
            values = {s: [sign * one["per_seed"][s] for sign, one in zip(signs, each, strict=False)] for s in seeds}
            differences[key] = {int(seed): 50 + sum(parts) / 4 for seed, parts in sorted(values.items())}
            sides[key] = each
    # A quarter of the difference of up to four percentages, and 50 more: none of its interval is cut off at 0 or 100.
    middle = dict.fromkeys({seed for each in differences.values() for seed in each}, 50.0)
    for key, difference in compare(middle, differences).items() if differences else ():
        if difference["corrected"] or difference["mean"] == 0:
            (comparison, _, row), against = key.split(" ")[0].partition("/"), " - ".join(key.split(" ")[1:])
            where = {"study": study, "comparison": comparison, "row": row, "against": against}
            whole = {"mean": 4 * difference["mean"], "corrected": [4 * end for end in difference["corrected"] or []]}
            yield where | numbers({**difference, **whole}, *sides[key][:2])


def reached(study: str, comparison: str) -> dict[str, float | None]:
    """By row, the share of its training after which it was as good on validation as plain at its end; None: never."""
    file = HERE / study / comparison / "curves.json"
    each = json.loads(file.read_text("utf-8")) if file.exists() else {}
    return {
        row: next((share for share, value in points if value >= each["plain"][-1][1]), None)
        for row, points in each.items()
        if "plain" in each
    }


def numbers(difference: Mapping[str, Any], own: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a difference. Costs are FLOPs of training: seconds of a machine that others use are not kept."""
    priced = own["train_flops"] and other["train_flops"]
    return {
        "seeds": difference["seeds"],
        "difference": difference["mean"],
        "interval": difference["corrected"] or [0.0, 0.0],  # of contrasts: the same in every seed
        "both": difference["both"],
        "cost": own["train_flops"] / other["train_flops"] if priced else None,
        "churn": own["churn"],
        "plain_churn": other["churn"],
        "nll": own["nll"] and own["nll"]["mean"],
        "plain_nll": other["nll"] and other["nll"]["mean"],
    }


def write() -> None:
    """Every number that is generated, and the picture."""
    from forest import forest

    found = list(rows())
    (HERE / "ledger.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (ROOT / "docs" / "learnt.svg").write_text(forest(found), encoding="utf-8")
    learnt = follows((HERE / "follows.md").read_text("utf-8"), found) + pages(found)
    for page, text in ((ROOT / "README.md", summary(found)), (ROOT / "docs" / "learnt.md", learnt)):
        before, _, rest = page.read_text("utf-8").partition(BEGIN + "\n")
        _, mark, after = rest.partition(END)
        if not mark:
            raise SystemExit(f"{page.name}: found no block between {BEGIN} and {END}")
        page.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")


def of_methods(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of methods against plain of their own comparison."""
    return [each for each in found if each["against"] == "plain" and not each["row"].startswith("plain")]


def at_equal_compute(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of methods against a plain training that costs as much: their own comparison's, or a longer one."""
    rivals = [each for each in found if " - " not in each["against"] and each["against"].endswith("plain")]
    methods = [each for each in rivals if not each["row"].startswith("plain") and not each.get("later")]
    return [each for each in methods if each["cost"] is not None and each["cost"] <= SAME]


def winners(found: list[dict[str, Any]]) -> list[str]:
    """Methods with an interval above zero at equal compute in at least two studies."""
    better = {(each["row"], each["study"]) for each in at_equal_compute(found) if each["interval"][0] > 0}
    studies_of = Counter(row for row, _ in better)
    return sorted(row for row, count in studies_of.items() if count >= 2)


def summary(found: list[dict[str, Any]]) -> str:
    """What follows, for the README's first screen: whether anything beats plain at equal compute, and how often a
    difference was shown at all."""
    methods = of_methods(found)
    better = sum(each["interval"][0] > 0 for each in methods)
    worse = sum(each["interval"][1] < 0 for each in methods)
    ran, won = len({each["study"] for each in found}), winners(found)
    who = " and ".join(f"`teacherless train {row}`" for row in won) or "No method"
    lost = on_data(found, won, -1)
    worse_on = f", and did worse than it{lost}" if lost else ""
    text = (
        f"**{who} beat plain of equal compute in at least two studies**{on_data(found, won)}, of the {ran} that were "
        f"run ([what we learnt](docs/learnt.md)){worse_on}. Of {len(methods)} rows against plain, cost what they may, "
        f"{better} were better and {worse} worse; in {len(methods) - better - worse} no difference was shown. So "
        f"{100 * (better + worse) / max(len(methods), 1):.0f} % of intervals leave out zero; the median one is "
        f"±{seen(methods):.1f} points wide, and what is smaller it could not have seen."
    )
    return textwrap.fill(text, 120, break_on_hyphens=False) + "\n"


def on_data(found: list[dict[str, Any]], won: list[str], sign: int = 1) -> str:
    """What they won on, since two studies may be of one data set, or with -1 lost on; nothing where nobody did."""
    names: dict[str, set[tuple[float, str]]] = {}
    for each in at_equal_compute(found):
        if each["row"] in won and min(sign * end for end in each["interval"]) > 0:
            file = HERE / each["study"] / each["comparison"] / "compare.json"
            data, count, wrong = images_of(each["study"], json.loads(file.read_text("utf-8"))["settings"])
            many = f"{count:,}" if math.isfinite(count) else "all"
            names.setdefault(data, set()).add((count, many + (f" ({100 * wrong:.0f} % wrongly)" if wrong else "")))
    each_data = (f"{data} with {', '.join(text for _, text in sorted(of))}" for data, of in sorted(names.items()))
    return f", on {' and on '.join(each_data)} labelled images" if names else ""


def images_of(study: str, settings: Mapping[str, Any]) -> tuple[str, float, float]:
    """What a comparison trained on: the data set, how many images of it (all: infinity), the share of wrong labels."""
    made_of = studies()[study].get("images", {}).get(Path(settings["data"]).stem, {})
    count = made_of.get("count", settings["train_samples"])
    return made_of.get("data", settings["data"]), count or math.inf, made_of.get("wrong", 0.0)


def follows(text: str, found: list[dict[str, Any]]) -> str:
    """What a person made of it, with its numbers filled in: {STUDY/COMPARISON/ROW} is a difference to plain, with
    " - OTHER/ROW" a contrast, {one:STUDY/COMPARISON/ROW} and {together:…} are means of one network and of all."""
    known = {}
    for each in found:
        key = f"{each['study']}/{each['comparison']}/{each['row']}"
        low, high = each["interval"]
        key += "" if each["against"] == "plain" else f" - {each['against']}"
        known[key] = f"{each['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"

    def value(match: re.Match[str]) -> str:
        kind, _, where = match[1].rpartition(":")
        if not kind:
            return known[where]
        study, comparison, row = where.split("/")
        entry = table_of(study, comparison)[row]["student" if kind == "one" else "ensemble"]
        return f"{entry['mean']:.2f}"

    return re.sub(r"\{([^{}]+)\}", value, text)


def seen(found: list[dict[str, Any]]) -> float:
    """The median half width of the intervals."""
    return median((each["interval"][1] - each["interval"][0]) / 2 for each in found) if found else math.nan


def pages(found: list[dict[str, Any]]) -> str:
    """Each study: what was asked, bet and designed, what came out, and what it could have seen."""
    parts = []
    for study, design in studies().items():
        own = [each for each in found if each["study"] == study]
        parts.append(
            f"\n### {study}\n\n{design['question']}\n\n**Bet:** {design['bet']}\n\n**Design:** {design['design']}\n"
        )
        if not (HERE / study / "ran.json").exists():
            parts.append("\nNot run yet.\n")
            continue
        ran = json.loads((HERE / study / "ran.json").read_text("utf-8"))
        if ran["design"] != design_hash(study):
            parts.append("\n**The design was changed after these results.**\n")
        methods = of_methods(own)
        shown = sum(each["interval"][0] > 0 or each["interval"][1] < 0 for each in methods)
        parts.append(
            f"\nRan on {ran['cpu']}, torch {ran['torch']}, commit {ran['commit']}, {ran['date']}. Of {len(methods)} "
            f"rows {shown} differ from plain; half of the intervals could have seen {seen(own):.2f}.\n"
        )
        for name in design["comparisons"]:
            lines = [each for each in own if each["comparison"] == name and each["against"] == "plain"]
            parts.append(f"\n{name}: {together(study, name)}\n")
            parts.append(HEAD + "".join(map(table_line, lines)) if lines else "")
            parts.append(sizes(study, name))
            parts.append(swept(study, name))
            parts.append(measures.table(HERE / study / name / "measures.json"))
        for asked, says in ((False, "as designed"), (True, "asked after the results were seen")):
            lines = [each for each in own if each["against"] != "plain" and each.get("later", False) is asked]
            if lines:
                parts.append(f"\nBetween comparisons, over seeds, {says}:\n{HEAD}{''.join(map(table_line, lines))}")
    return "".join(parts)


HEAD = (
    "\n| | difference | seeds and images | could have seen | FLOPs | as good as plain at | churn (plain) "
    "| NLL (plain) |\n"
    "|---|---|---|---|---|---|---|---|\n"
)


def together(study: str, name: str) -> str:
    """Plain's own number, and what several networks give when they are used together."""
    file = HERE / study / name / "compare.json"
    if not file.exists():
        return "not run"
    table = json.loads(file.read_text("utf-8"))
    plain = table["methods"]["plain"]["student"]
    text = f"plain {plain['mean']:.2f} ± {plain['std']:.2f} % {table['metric']}"
    ensembles = [
        f"{row} ({each['networks']}) {each['ensemble']['mean']:.2f}"
        for row, each in table["methods"].items()
        if each["ensemble"]
    ]
    singles = [f"any {each['networks']} plain {each['ensemble']:.2f}" for each in table["plain_networks"]]
    return text + (f". Networks used together: {', '.join(ensembles + singles)}" if ensembles else "")


def sizes(study: str, name: str) -> str:
    """What cohorts of several sizes give, beside as many plain networks; nothing where there is one size."""
    file = HERE / study / name / "compare.json"
    rows = json.loads(file.read_text("utf-8"))["cohort_size"] if file.exists() else []
    head = "\n| networks | how | one of them | all together | entropy in training |\n|---|---|---|---|---|\n"
    lines = [
        f"| {row['size']} | {row['kind']} | {row['single']:.2f} | "
        f"{'-' if row['ensemble'] is None else format(row['ensemble'], '.2f')} | {row['train_entropy']:.3f} |\n"
        for row in sorted(rows, key=lambda row: (row["size"], row["kind"]))
    ]
    return head + "".join(lines) if lines else ""


def swept(study: str, name: str) -> str:
    """What each row chose for itself on validation, by `--sweep`; nothing where there was no choice."""
    file = HERE / study / name / "compare.json"
    sweep = json.loads(file.read_text("utf-8"))["sweep"] if file.exists() else None
    if not sweep:
        return ""
    chosen = ", ".join(f"{row} {each['chosen']:g}" for row, each in sweep["methods"].items())
    tried = ", ".join(next(iter(sweep["methods"].values()))["tried"])
    return (
        f"\nChosen on validation, with {sweep['seeds']} seeds of their own, {sweep['setting']} of {tried}: {chosen}.\n"
    )


def table_line(each: dict[str, Any]) -> str:
    """One row of a comparison."""
    (low, high), both = each["interval"], each["both"]
    images = f"[{both[0]:+.2f}, {both[1]:+.2f}]" if both else "-"
    cost, when, churn, nll = (
        "-" if each.get(key) is None else text
        for key, text in (
            ("cost", f"{each['cost'] or 0:.1f}"),
            ("reached", f"{each.get('reached') or 0:.2f}"),
            ("churn", f"{each['churn'] or 0:.1f} ({each['plain_churn'] or 0:.1f}) %"),
            ("nll", f"{each['nll'] or 0:.3f} ({each['plain_nll'] or 0:.3f})"),
        )
    )
    name = each["row"] if each["against"] == "plain" else f"{each['comparison']}/{each['row']} - {each['against']}"
    return (
        f"| {name} | {each['difference']:+.2f} [{low:+.2f}, {high:+.2f}] | {images} | "
        f"±{(high - low) / 2:.2f} | {cost} | {when} | {churn} | {nll} |\n"
    )


def main() -> None:
    """The command."""
    match sys.argv[1:]:
        case ["run", study, *flags] if study in studies():
            os.chdir(ROOT)
            run(study, *flags)
        case ["check", *study] if len(study) < 2:
            check(*study or [None])
        case ["write"]:
            write()
        case _:
            raise SystemExit(f"{__doc__}\nstudies: {', '.join(studies())}")


if __name__ == "__main__":
    main()

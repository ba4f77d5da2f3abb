"""The ledger: studies that anyone can run again, and what follows from them.

python results/ledger.py run STUDY        run its commands, then put its numbers into results/STUDY
python results/ledger.py check [STUDY]    one cell, picked at random, again: the same bits?
python results/ledger.py write            README.md, docs/learnt.md and results/ledger.json from the numbers

A study is a folder with `study.toml`: the question, the bet and the design, written down before it was run, and its
commands. Beside it stand what it gave (compare.json, compare.csv, report.html of each comparison), the hashes of every
network that was trained (cells.jsonl), and where it ran (ran.json), with the hash of the design it ran with.
"""

from __future__ import annotations

import hashlib
import json
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
BEGIN, END = "<!-- written by `make readme` -->", "<!-- end of what `make readme` writes -->"
KEPT = ("compare.json", "compare.csv", "report.html")


def studies() -> dict[str, dict[str, Any]]:
    """Every study's design by its name."""
    return {path.parent.name: tomllib.loads(path.read_text("utf-8")) for path in sorted(HERE.glob("*/study.toml"))}


def design_hash(study: str) -> str:
    """Of what was written down before the study ran."""
    return hashlib.sha256((HERE / study / "study.toml").read_bytes()).hexdigest()


# Running --------------------------------------------------------------------------------------------------------------


def run(study: str) -> None:
    """Run a study's commands in runs/results/STUDY, where they go on if they were stopped, and keep its numbers."""
    from bench import machine

    design, work = studies()[study], ROOT / "runs" / "results" / study
    where = {**machine("cpu"), "design": design_hash(study)}
    for command in design.get("before", []):
        arguments = shlex.split(command)
        if not (Path(arguments[arguments.index("--out") + 1]) / "summary.json").exists():
            teacherless(arguments)
    for name, command in design["comparisons"].items():
        teacherless([*shlex.split(command), "--out", str(work / name)])
        kept = HERE / study / name
        kept.mkdir(exist_ok=True)
        for file in KEPT:
            shutil.copy(work / name / file, kept / file)
        template = json.loads((kept / "compare.json").read_text("utf-8"))["settings"]
        lines = [cell_line(folder, template) for folder in sorted((work / name / "cells").iterdir())]
        (kept / "cells.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (HERE / study / "ran.json").write_text(json.dumps(where, indent=1) + "\n", encoding="utf-8")


def teacherless(arguments: list[str]) -> None:
    """The command line."""
    print("teacherless", shlex.join(arguments), flush=True)
    subprocess.run([sys.executable, "-m", "teacherless", *arguments], check=True, cwd=ROOT)


def cell_line(folder: Path, template: dict[str, Any]) -> dict[str, Any]:
    """A cell's own settings, where they are not the comparison's, and the hashes of what it left."""
    settings = json.loads((folder / "run.json").read_text("utf-8"))["settings"]
    own = {key: value for key, value in settings.items() if key not in template or template[key] != value}
    summary = folder / "summary.json"
    return {"cell": folder.name, "settings": own, "files": networks(summary) if summary.exists() else None}


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
    settings = json.loads(path.with_name("compare.json").read_text("utf-8"))["settings"] | cell["settings"]
    run = Run.model_validate(as_given({key: value for key, value in settings.items() if key in Run.model_fields}))
    with tempfile.TemporaryDirectory() as out:
        run_cell(run, Path(out) / "cell")
        same = networks(Path(out) / "cell" / "summary.json") == cell["files"]
    print(f"{path.parent.relative_to(HERE)} {cell['cell']}: {'the same bits' if same else 'OTHER BITS'}")
    sys.exit(not same)


# Writing --------------------------------------------------------------------------------------------------------------


def rows() -> Iterator[dict[str, Any]]:
    """One per study, comparison and row against plain: what the cards, the README and docs/learnt.md say."""
    for study, design in studies().items():
        for name in design["comparisons"]:
            file = HERE / study / name / "compare.json"
            table = json.loads(file.read_text("utf-8"))["methods"] if file.exists() else {}
            for row, found in table.items():
                difference = found["difference"]
                if difference and difference["corrected"]:
                    yield {
                        "study": study,
                        "comparison": name,
                        "row": row,
                        "seeds": difference["seeds"],
                        "difference": difference["mean"],
                        "interval": difference["corrected"],
                        "both": difference["both"],
                        "cost": found["cost"],
                        "churn": found["churn"],
                        "plain_churn": table["plain"]["churn"],
                    }


def write() -> None:
    """Every number that is generated."""
    found = list(rows())
    (HERE / "ledger.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for page, text in ((ROOT / "README.md", summary(found)), (ROOT / "docs" / "learnt.md", pages(found))):
        before, _, rest = page.read_text("utf-8").partition(BEGIN + "\n")
        _, mark, after = rest.partition(END)
        if not mark:
            raise SystemExit(f"{page.name}: found no block between {BEGIN} and {END}")
        page.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")


def summary(found: list[dict[str, Any]]) -> str:
    """The share of differences that were shown, in one sentence, and those that were."""
    methods = [each for each in found if not each["row"].startswith("plain")]
    better = [each for each in methods if each["interval"][0] > 0]
    worse = [each for each in methods if each["interval"][1] < 0]
    ran = len({each["study"] for each in found})
    text = (
        f"Studies run so far: {ran} ([what we learnt](docs/learnt.md)). {len(methods)} rows were compared with plain: "
        f"{len(better)} better, {len(worse)} worse, {len(methods) - len(better) - len(worse)} with no difference shown "
        "(intervals over seeds, corrected for the number of rows). Better were:\n\n"
    )
    return text + "".join(f"- {sentence(each)}\n" for each in better)


def sentence(each: dict[str, Any]) -> str:
    """One difference that was shown."""
    low, high = each["interval"]
    return (
        f"{each['study']}/{each['comparison']}, {each['row']}: {each['difference']:+.2f} [{low:+.2f}, {high:+.2f}] "
        f"at {each['cost']:.1f} times plain's cost, {each['seeds']} seeds"
    )


def pages(found: list[dict[str, Any]]) -> str:
    """Each study: what was asked, bet and designed, what came out, and what it could have seen."""
    parts = []
    for study, design in studies().items():
        own = [each for each in found if each["study"] == study]
        parts.append(
            f"\n### {study}\n\n{design['question']}\n\n**Bet:** {design['bet']}\n\n**Design:** {design['design']}\n"
        )
        if not own:
            parts.append("\nNot run yet.\n")
            continue
        ran = json.loads((HERE / study / "ran.json").read_text("utf-8"))
        if ran["design"] != design_hash(study):
            parts.append("\n**The design was changed after these results.**\n")
        parts.append(f"\nRan on {ran['cpu']}, torch {ran['torch']}, commit {ran['commit']}, {ran['date']}.\n")
        for name in design["comparisons"]:
            lines = [each for each in own if each["comparison"] == name]
            parts.append(
                f"\n{name}\n\n| | difference to plain | seeds and images | could have seen | cost | churn (plain) |\n"
            )
            parts.append("|---|---|---|---|---|---|\n" + "".join(map(table_line, lines)))
    return "".join(parts)


def table_line(each: dict[str, Any]) -> str:
    """One row of a comparison."""
    (low, high), both = each["interval"], each["both"]
    images = f"[{both[0]:+.2f}, {both[1]:+.2f}]" if both else "-"
    churn = "-" if each["churn"] is None else f"{each['churn']:.1f} ({each['plain_churn']:.1f}) %"
    return (
        f"| {each['row']} | {each['difference']:+.2f} [{low:+.2f}, {high:+.2f}] | {images} | "
        f"±{(high - low) / 2:.2f} | {each['cost']:.1f} | {churn} |\n"
    )


def main() -> None:
    """The command."""
    match sys.argv[1:]:
        case ["run", study] if study in studies():
            run(study)
        case ["check", *study] if len(study) < 2:
            check(*study or [None])
        case ["write"]:
            write()
        case _:
            raise SystemExit(f"{__doc__}\nstudies: {', '.join(studies())}")


if __name__ == "__main__":
    main()

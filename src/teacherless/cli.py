"""The command line: parse, call, print. Nothing here knows how anything is done.

Exit codes: 0 done; 2 the user must change something (one line on stderr); 4 training diverged; 130 interrupted.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_origin

from cyclopts import App, CycloptsError, Parameter
from pydantic import BaseModel, create_model

import teacherless
from teacherless.errors import Diverged, InputError, Stopped, unknown
from teacherless.runs import shrink
from teacherless.runs.config import Run, as_given, default_out, refuse_code
from teacherless.training.folder import read_json
from teacherless.training.settings import read

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

app = App(
    name="teacherless",
    help="Train better classifiers without a teacher.",
    version=teacherless.__version__,
    help_format="plaintext",
)
_SHORT = {"batch_size": ("--batch-size", "-b"), "workers": ("--workers", "-j")}


def _flags() -> Any:
    """Every field of Run as an optional flag. Text throughout: Run itself checks the types and words the errors."""
    fields: dict[str, Any] = {}
    for name, field in Run.model_fields.items():
        if name == "method":
            continue
        kind: Any = str
        if field.annotation is bool:
            kind = bool
        elif name == "opt_betas":
            kind = tuple[str, str]
        elif name == "set" or get_origin(field.annotation) is tuple:
            kind = list[str]
        note = Parameter(
            name=_SHORT.get(name),
            help=f"{field.description} {_default(field.default)}".strip(),
            negative=None if kind is bool else (),
            consume_multiple=name == "decay_milestones",
        )
        fields[name] = (Annotated[kind | None, note], None)
    return create_model("Flags", **fields)


def _default(value: Any) -> str:
    shown = isinstance(value, (int, float, str)) or (isinstance(value, tuple) and value)
    return f"[{' '.join(map(str, value)) if isinstance(value, tuple) else value}]" if shown else ""


if TYPE_CHECKING:
    Flags = BaseModel
else:
    Flags = _flags()
AllFlags = Annotated[Flags, Parameter(name="*")]


@app.command
def train(
    method: str | None = None,
    /,
    *,
    flags: AllFlags = Flags(),
    out: Path | None = None,
    recipe: Path | None = None,
    resume: Annotated[bool, Parameter(negative=())] = False,
    resume_anyway: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Train METHOD and write a run folder; the last line says which student to ship.

    Parameters
    ----------
    method
        plain, dml, ...: see `teacherless list methods`; a recipe may name it.
    out
        the run folder (default: runs/<time>-<method>-<data>-s<seed>).
    recipe
        one of `teacherless list recipes`, or a TOML file of settings; METHOD and flags beat it.
    resume
        go on with the run in --out, to the same bits; its settings need not be given again.
    resume_anyway
        also where epochs, steps, workers or checkpoints were changed.
    """
    resume |= resume_anyway
    if resume and out is None:
        raise InputError("--resume: needs --out, the run folder to go on with")
    stored = (read_json(out / "run.json") if resume and out else None) or {}
    run = make_run(method, flags, recipe, stored.get("settings"))
    from teacherless.runs.execute import execute
    from teacherless.training.step import tune_allocator

    tune_allocator()
    folder = out or default_out(run)
    result = execute(run, folder, resume=resume, anyway=resume_anyway)
    summary = result.summary
    show_summaries([summary])
    chosen = summary["chosen"]
    row = summary["students"][chosen]
    dead = summary.get("dead", [])
    if dead:
        print(f"dead, the same logits for every validation image: {', '.join(dead)}; try a lower --lr")
    if chosen in dead:
        return
    print(f"ship {chosen} ({_percent(row.get('test_map', row['test_top1']))} on test): {folder / 'students' / chosen}")


@app.command
def plan(
    method: str | None = None,
    /,
    *,
    flags: AllFlags = Flags(),
    recipe: Path | None = None,
) -> None:
    """Say what `train` with the same arguments will cost: a few steps, timed and thrown away.

    Parameters
    ----------
    method
        plain, dml, ...: see `teacherless list methods`; a recipe may name it.
    recipe
        one of `teacherless list recipes`, or a TOML file of settings; METHOD and flags beat it.
    """
    run = make_run(method, flags, recipe)
    from teacherless.runs.plan import Plan
    from teacherless.study.watch import duration
    from teacherless.training.step import tune_allocator

    tune_allocator()
    found = Plan(run)
    sizes = ", ".join(f"{name} {count:,}" for name, count in found.students.items())
    print(f"parameters      {sizes}; helpers that are not shipped {found.helpers:,}")
    print(f"engine          {found.engine}{', bf16' if run.amp else ''}", flush=True)
    bill = found.bill()
    print(f"peak memory     {bill.peak_bytes / 2**30:.2f} GiB")
    print(f"time            {duration(bill.epoch_seconds)} an epoch ({found.per_epoch} steps of "
          f"{1000 * bill.step_seconds:.1f} ms); {duration(bill.seconds)} for {found.epochs} epochs")  # fmt: skip
    print(f"cost            {bill.relative:.2f} times plain training of the first student")


@app.command
def compare(
    *,
    flags: AllFlags = Flags(),
    methods: str = "plain,label-smoothing,dml,one,ddgsd",
    seeds: int = 5,
    equal_compute: Annotated[bool, Parameter(negative=())] = False,
    jobs: int | None = None,
    out: Path | None = None,
    recipe: Path | None = None,
) -> int:
    """Does it help? Train METHODS with several seeds; print one table with intervals, and what it means.

    The same command goes on where it was stopped. Exit code 4 if a run failed.

    Parameters
    ----------
    methods
        names, with commas between.
    seeds
        how many, from --seed up.
    equal_compute
        also train plain for as long as each method costs, and a wider network where the student has a width.
    jobs
        how many runs at a time, each in one thread, which changes no bit (default: one per core; on a GPU one).
    out
        the folder of the comparison (default: runs/compare-<data>).
    recipe
        a TOML file of settings; a flag beats it.
    """
    run = make_run("plain", flags, recipe)
    if seeds < 1:
        raise InputError(f"--seeds: found {seeds}; must be at least 1")
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs: found {jobs}; must be at least 1")
    from teacherless.study.compare import compare as run_comparison

    folder = out or Path("runs") / f"compare-{Path(run.data).name}"
    names = [name.strip() for name in methods.split(",") if name.strip()]
    try:
        table = run_comparison(run, names, seeds, folder, equal_compute=equal_compute, jobs=jobs)
    except Stopped as stop:
        raise Stopped(stop.signal, "stopped, and what was done is saved; the same command goes on") from None
    show_comparison(table)
    print("pictures and tables:", folder)
    return 4 if any(found["failed"] for found in table["methods"].values()) else 0


@app.command
def evaluate(
    path: Path,
    /,
    *,
    data: str | None = None,
    data_dir: Path | None = None,
    split: Literal["val", "test"] = "test",
    trust_imports: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Evaluate a run folder, or one student's folder.

    Parameters
    ----------
    path
        a run folder, or a student's folder in it.
    data
        a data set's name or a folder of images (default: what the run was trained on).
    data_dir
        where the data set's files are.
    split
        val or test.
    trust_imports
        import the code that a config.json names (a student package.module:function).
    """
    from teacherless.runs.results import evaluate_folder

    rows = evaluate_folder(path, data=data, data_dir=data_dir, split=split, trust_imports=trust_imports)
    shown = [key for key in _METRICS if key in next(iter(rows.values()))]
    table = _table("student", *(_METRICS[key] for key in shown))
    for name, row in rows.items():
        table.add_row(name, *(_number(key, row[key]) for key in shown))
    _show(table)


@app.command
def predict(
    student: Path,
    images: list[Path],
    /,
    *,
    format: Literal["table", "csv", "json"] = "table",
    top: int = 5,
    trust_imports: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Classes and probabilities of IMAGES, from a shipped student. Exit code 1 if a file could not be read.

    Parameters
    ----------
    student
        a student's folder, or a run folder: then the student it says to ship.
    images
        image files, or folders of them.
    format
        table, csv or json.
    top
        how many classes of each image.
    trust_imports
        import the code that a config.json names (a student package.module:function).
    """
    from teacherless.runs.predict import find, student_of
    from teacherless.runs.predict import predict as run_predict

    found = list(run_predict(student_of(student, trust_imports=trust_imports), find(images), top))
    if format == "json":
        print(
            json.dumps([{"path": str(p.path), "classes": p.probabilities, "error": p.error} for p in found], indent=1)
        )
    elif format == "csv":
        rows = csv.writer(sys.stdout)
        rows.writerow(["path", "class", "probability"])
        rows.writerows((p.path, name, f"{value:.6f}") for p in found for name, value in p.probabilities.items())
    else:
        table = _table("image", "classes, most probable first")
        for p in found:
            ranked = "  ".join(f"{name} {100 * value:.1f} %" for name, value in p.probabilities.items())
            table.add_row(str(p.path), ranked or f"cannot be read: {p.error}")
        _show(table)
    bad = [p for p in found if p.error]
    if bad:
        more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
        print(f"teacherless: cannot read {bad[0].path}: {bad[0].error}{more}", file=sys.stderr)
    return 1 if bad else 0


@app.command
def analyse(
    paths: list[Path], /, *, out: Path | None = None, trust_imports: Annotated[bool, Parameter(negative=())] = False
) -> None:
    """Why does it help? Entropy, agreement, flat minima, calibration, ... of finished runs: tables and pictures.

    Parameters
    ----------
    paths
        run folders, or folders of a comparison.
    out
        where tables and pictures go (default: analysis/ in the first of PATHS).
    trust_imports
        import the code that a config.json names (a student package.module:function).
    """
    from teacherless.study.read_runs import analyse as run_analysis

    files = run_analysis(paths, out, trust_imports=trust_imports)
    print("pictures and tables:", files[0].parent)


@app.command(name="list")
def list_(
    kind: Literal["methods", "models", "data", "recipes"],
    name: str | None = None,
    /,
    *,
    flags: AllFlags = Flags(),
    show: Path | None = None,
) -> None:
    """Show what there is: methods, models, data or recipes; with NAME, all about one.

    With NAME of a method and any flag of train (--student, --set, ...): who would teach whom, and how strongly.

    Parameters
    ----------
    kind
        methods, models, data or recipes.
    name
        one of them.
    show
        data NAME: write a picture of training images, two views of each side by side (--aug, --img-size: as in train).
    """
    given = [flag.replace("_", "-") for flag, value in flags if value is not None]
    if show is not None and (kind != "data" or name is None):
        raise InputError("--show: is of `teacherless list data NAME`")
    if show is not None and name is not None:
        from teacherless import data

        run = make_run("plain", flags, None)
        data.contact_sheet(data.load(name, data_dir=run.data_dir, img_size=run.img_size, aug=run.aug), show)
        return
    if given and (kind != "methods" or name is None):
        raise InputError(f"--{given[0]}: is of `teacherless list methods NAME` and of --show")
    if given:
        from teacherless.runs import explain

        explain.show(explain.explain(make_run(name, flags, None)), _console().print)
        return
    if kind == "recipes":
        show_recipes(name)
        return
    if kind == "methods":
        from teacherless.methods import METHODS

        cards = {key: sys.modules[value.__module__].__doc__ or "" for key, value in METHODS.items()}
    elif kind == "models":
        from teacherless.models import MODELS, describe
        from teacherless.models.foreign.by_name import is_foreign

        if name and is_foreign(name):
            print(f"{name}: {describe(name)}")
            return
        cards = {key: describe(key) for key in MODELS}
    else:
        from teacherless.data import SOURCES

        cards = {key: (value.__doc__ or "").strip() for key, value in SOURCES.items()}
    if name is None:
        for key, card in cards.items():
            first = card.splitlines()[0]
            print(f"{key:{max(map(len, cards))}}  {first.partition(': ')[2] if kind == 'methods' else first}")
    elif name in cards and kind == "methods":
        show_card(cards[name].strip())
    elif name in cards:
        print(f"{name}: {cards[name]}")
    else:
        raise unknown(kind.rstrip("s") if kind != "data" else "data", name, cards)


def make_run(method: str | None, flags: BaseModel, recipe: Path | None, stored: dict[str, Any] | None = None) -> Run:
    """A flag beats the recipe, the recipe beats what a resumed run was, that beats the default. Raises: InputError."""
    from teacherless.methods import METHODS

    values = as_given(stored or {})
    if recipe:
        from teacherless.runs.recipes import load

        found = load(recipe)
        method = method or found.settings.get("method")
        read(Run, {"method": method or "plain", **found.settings}, where=f"recipe {recipe.name}: ")
        values |= found.settings
        if (
            found.teacher
            and method == found.settings["method"]
            and not any(name == "teacher" and value for name, value in flags)
        ):
            raise InputError(f"--teacher: recipe {recipe} reads one, to be trained first: teacherless train "
                             f"--recipe {found.teacher} --out DIR; then give --teacher DIR")  # fmt: skip
    given = {name: value for name, value in flags if value is not None}
    if given.get("small"):
        values = shrink.settings(values)
    if "set" in given:
        given["set"] = {**values.get("set", {}), **_pairs(given["set"])}
    if "epochs" in given and "steps" not in given:
        values.pop("steps", None)
    elif "steps" in given and "epochs" not in given:
        values.pop("epochs", None)
    method = method or values.get("method")
    if method is None:
        raise InputError("METHOD: is missing; give one of `teacherless list methods`, or a --recipe that names it")
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    run = read(Run, {**values, **given, "method": method})
    if "student" not in given:
        refuse_code(run, f"recipe {recipe}" if recipe else "run.json")
    return run


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"--set: found {text!r}; must be key=value")
        pairs[key] = value
    return pairs


def show_summaries(summaries: Sequence[dict[str, Any]]) -> None:
    """Print one row per student and ensemble of every run; * is the chosen student."""
    every = [row for summary in summaries for row in summary["students"].values()]
    shown = [key for key in _METRICS if any(row.get(f"test_{key}") is not None for row in every)]
    table = _table("method", "student", "params", "val top-1 %", *(f"test {_METRICS[key]}" for key in shown))
    for summary in summaries:
        rows = dict(summary["students"]) | ({"ensemble": summary["ensemble"]} if summary["ensemble"] else {})
        for name, row in rows.items():
            mark = " *" if name == summary["chosen"] else ""
            params, tested = row.get("params"), [_number(key, row.get(f"test_{key}")) for key in shown]
            size = "" if params is None else f"{params:,}"
            table.add_row(summary["method"], name + mark, size, _percent(row["val_top1"]), *tested)
    _show(table)


def show_comparison(table: dict[str, Any]) -> None:
    """Print the table, what several networks give, what inference costs, the verdicts, what intervals are about."""
    methods = table["methods"]
    rows = _table("method", f"test {table['metric']} %", "vs plain", "NLL", "ECE %", "train", "seconds", "TFLOP")
    several = _table("networks", "one of them", "best on validation", "all together", "train")
    plain = methods.get("plain", {"student": None, "cost": None})
    for found in table["plain_networks"]:
        k, cost = found["networks"], found["networks"] * (plain["cost"] or 1)
        each = ("" if found[key] is None else f"{found[key]:.2f}" for key in ("best", "ensemble"))
        several.add_row(f"plain, any {k} of {found['of']} seeds", _mean(plain["student"]), *each, f"{cost:.1f}x")
    sizes: dict[str, list[str]] = {}
    for name, found in methods.items():
        d, size, price = found["difference"], found["inference"], f"{found['cost']:.1f}x" if found["cost"] else "-"
        interval = f" [{d['corrected'][0]:+.2f}, {d['corrected'][1]:+.2f}]" if d and d["corrected"] else ""
        rows.add_row(
            name,
            _mean(found["student"]),
            f"{d['mean']:+.2f}{interval}" if d else "",
            *("" if found[key] is None else f"{found[key]['mean']:.3f}" for key in ("nll", "ece")),
            price,
            "" if found["train_seconds"] is None else f"{found['train_seconds']:.1f}",
            "" if found["train_flops"] is None else f"{found['train_flops'] / 1e12:.3g}",
        )
        if found["best"] or found["ensemble"]:
            means = (_mean(found[key]) for key in ("student", "best", "ensemble"))
            several.add_row(f"{name}, {found['networks']}", *means, price)
        if size:
            cost = f"{size['params']:,} parameters, {size['flops'] / 1e6:,.1f} MFLOP"
            sizes.setdefault(cost, []).append(f"{name} {size['ms']:.2f} ms")
    _show(rows)
    if several.row_count:
        print("Compared is one network: the mean over those trained together. The best of several, or all together, is "
              "another thing to buy:")  # fmt: skip
        _show(several)
    for cost, names in sizes.items():
        print(f"one image through one network: {cost}; {', '.join(names)}")
    for name, found in methods.items():
        if found["verdict"]:
            print(found["verdict"])
        for seed, why in found["failed"].items():
            print(f"{name}, seed {seed} failed: {why}")
    print(f"mean ± std over seeds; {table['caveat']}.")


def _mean(summary: dict[str, Any] | None) -> str:
    if summary is None:
        return ""
    return f"{summary['mean']:.2f}" + ("" if summary["std"] is None else f" ± {summary['std']:.2f}")


def _table(*columns: str) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < 2 and not column.startswith("top") else "right")
    return table


def show_card(card: str) -> None:
    """Print a method's card; on a terminal with bold headings."""
    from rich.text import Text

    text = Text(card)
    text.highlight_regex(r"(?m)\A[^:]+:|^\S.*:$", "bold")
    _console().print(text, soft_wrap=True)


def _show(table: Table) -> None:
    _console().print(table)


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def show_recipes(name: str | None) -> None:
    """All recipes in a table, with the published number and ours; or all about one."""
    from teacherless.runs import recipes as recipe

    if name is not None:
        print(recipe.card(recipe.load(name)))
        return
    table = _table("recipe", "what", "metric", "published", "ours")
    for each in map(recipe.load, recipe.names()):
        published = each.published
        table.add_row(each.name, published.get("what"), published.get("metric"), recipe.shown(published),
                      recipe.shown(each.ours))  # fmt: skip
    _show(table)


_METRICS = {  # in what is shown of a test
    "top1": "top-1 %", "top5": "top-5 %", "nll": "NLL", "ece": "ECE %", "rank1": "rank-1 %", "rank5": "rank-5 %",
    "rank10": "rank-10 %", "map": "mAP %", "mq_rank1": "MQ rank-1 %", "mq_map": "MQ mAP %",
}  # fmt: skip


def _number(key: str, value: float | None) -> str:
    return _percent(value) if key != "nll" or value is None else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    call: Callable[..., Any] = app
    try:
        code = call(argv, exit_on_error=False, print_error=False, result_action="return_value")
    except (InputError, CycloptsError) as error:
        return _complain(error, 2)
    except Diverged as error:
        return _complain(error, 4)
    except Stopped as stop:
        return _complain(stop, 128 + stop.signal)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    return code if isinstance(code, int) else 0


def _complain(error: Exception | str, code: int) -> int:
    print("teacherless:", " ".join(str(error).split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

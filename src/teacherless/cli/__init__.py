"""The command line: parse, call, print. Nothing here knows how anything is done.

Exit codes: 0 done; 2 the user must change something (one line on stderr), also where the system refuses; 3 trained, and
every student is dead; 4 training diverged; 5 a rank was lost; 130 interrupted; 141 nobody reads the output.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

import teacherless
from teacherless.cli.given import examples, merged, number_range
from teacherless.cli.kinds import AllFlags, Count, DataDir, Json, Method, Recipe, Switch, TrustImports
from teacherless.cli.lists import lists
from teacherless.cli.wording import reworded
from teacherless.errors import Diverged, InputError, Lost, Stopped, one_line, short
from teacherless.files import schemas
from teacherless.runs.flags import Flags
from teacherless.study import show
from teacherless.training import torchrun

app = App(
    name="teacherless",
    help="Train better classifiers without a teacher.",
    version=teacherless.__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # else it says nothing
    help_epilogue=examples(
        "compare --data photos --student resnet18    # does it help?",
        "train dml --data photos --out runs/first    # two teach each other",
        "predict runs/first more-photos",
        "COMMAND --help",
    ),
)
app.command(lists)


@app.command(
    help_epilogue=examples(
        "train dml --data photos --student resnet18 --out runs/first",
        "train dml --student resnet8 --student small-cnn,lr=0.05",
        "train one --data cifar10 --student resnet32 --epochs 200 --amp",
        "train --recipe dml/cifar100-resnet32x2 --small",
        "train --out runs/first --resume",
    )
)
def train(
    method: Method = None,
    /,
    *,
    flags: AllFlags = Flags(),
    out: Path | None = None,
    recipe: Recipe = None,
    resume: Switch = False,
    resume_anyway: Switch = False,
    json: Json = False,
) -> int:
    """Train METHOD and write a run folder; the last line says which student to ship. Exit code 3 if each is dead.

    Parameters
    ----------
    out
        the run folder (default: runs/<time>-<method>-<data>-s<seed>).
    resume
        go on with the run in --out, to the same bits; its settings need not be given again.
    resume_anyway
        also where epochs, steps, workers or checkpoints were changed.
    """
    again, may = torchrun.restarts()
    if may and out is None:
        raise InputError("--out: is missing; it is what torchrun --max-restarts goes on with")
    resume |= resume_anyway or again > 0
    if resume and out is None:
        raise InputError("--resume: needs --out, the run folder to go on with")
    stored = schemas.stored(out) if resume and out else None
    if out and resume and not stored and not (method or recipe):
        why = "was stopped before it began" if (out / ".lock").exists() else "is no run folder"
        raise InputError(f"--resume: {out} {why}; give the whole command again")
    run = merged(method, flags, recipe, stored and stored["settings"])
    from teacherless.runs.execute import execute
    from teacherless.runs.results import write_mistakes
    from teacherless.study import report

    try:
        result = execute(run, out, resume=resume, anyway=resume_anyway, quiet=json, then=write_mistakes)
    except (Diverged, Stopped) as error:
        if error.folder and (page := report.write_or_say(error.folder)) and not json:
            print("report:", page)
        raise
    if torchrun.rank():
        return 0
    from teacherless.runs import card

    assert result.out is not None
    page = report.write_or_say(result.out)
    card.write_all(result.out)
    if json:
        show.as_json({**result.summary, "out": result.out})
    else:
        if recipe:
            from teacherless.runs import recipes

            print("published:", recipes.published_line(recipes.load(recipe)))
        if page:
            print("report:", page)
        show.summary(result.summary, result.out, smoke=run.small)
    return 3 if result.summary["chosen"] in result.summary.get("dead", ()) and not run.small else 0


@app.command(help_epilogue=examples("plan dml --data photos --student resnet18 --peers 3 --epochs 100"))
def plan(method: Method = None, /, *, flags: AllFlags = Flags(), recipe: Recipe = None, json: Json = False) -> None:
    """Say what `train` with the same arguments will cost: a few steps, timed and thrown away."""
    run = merged(method, flags, recipe)
    from teacherless.runs.plan import Plan

    show.plan(Plan(run), json)


@app.command(
    help_epilogue=examples(
        "compare --data photos --student resnet18 --seeds 5",
        "compare --methods dml,one --equal-compute --set dml.temperature=2",
    )
)
def compare(
    *,
    flags: AllFlags = Flags(),
    methods: str | None = None,
    seeds: Count = 5,
    equal_compute: Switch = False,
    sweep: str | None = None,
    jobs: Count | None = None,
    backend: Annotated[tuple[Literal["dask", "ray"], str] | None, Parameter(negative=())] = None,
    out: Path | None = None,
    recipe: Path | None = None,
    json: Json = False,
) -> int:
    """Does it help? Train METHODS with several seeds; print one table with intervals, and what it means.

    The same command goes on where it was stopped; started on several machines over one folder, it shares the runs out.
    Exit code 4 if a run failed.

    --peers 1..5 gives a cohort method a row for each number of networks: what more of them bring.

    Parameters
    ----------
    methods
        names, with commas between (default: plain,label-smoothing,dml,one,ddgsd; with --recipe, its method and plain).
    seeds
        how many, from --seed up.
    equal_compute
        also train plain for as many FLOPs as the dearest method, and a network as dear where the student has a width.
    sweep
        lr=0.03,0.1,0.3: every method first chooses one of these on validation, with two seeds of its own.
    jobs
        how many runs at a time, each in one thread, which changes no bit (default: one per core; on a GPU one).
    backend
        dask or ray, and an address: the workers of a cluster, which see the folder, train the runs.
    out
        the folder of the comparison (default: runs/compare-<data>).
    recipe
        a TOML file of settings; a flag beats it.
    """
    from teacherless.runs.merge import merge_comparison

    given = getattr(flags, "peers", None) or ""
    sizes = number_range("--peers", given) if ".." in given else ()
    run, names = merge_comparison(methods, dict(flags) | ({"peers": None} if sizes else {}), recipe)
    if torchrun.size() > 1:
        raise InputError("compare: its runs are side by side by --jobs; start it without torchrun")
    from teacherless.study.cells import on_cluster
    from teacherless.study.compare import compare as run_comparison

    folder = out or Path("runs") / f"compare-{Path(run.data).name}"
    folder = folder.resolve() if backend else folder  # its workers are elsewhere
    cluster = on_cluster(*backend) if backend else contextlib.nullcontext()
    more: dict[str, Any] = {"sizes": sizes, "equal_compute": equal_compute, "sweep": sweep, "jobs": jobs}
    try:
        with cluster, contextlib.redirect_stdout(sys.stderr if json else sys.stdout):
            table = run_comparison(run, names, seeds, folder, **more)
    except Stopped as stop:
        raise Stopped(stop.signal, "stopped, and what was done is saved; the same command goes on") from None
    if json:
        show.as_json(table)
    else:
        show.comparison(table, smoke=run.small)
        print("open:", table["report"] or folder / "compare.csv")
    return 4 if any(row["failed"] for row in table["methods"].values()) else 0


@app.command(help_epilogue=examples("evaluate runs/first", "evaluate runs/first/students/peer0 --data more-photos"))
def evaluate(
    path: Path,
    /,
    *,
    data: str | None = None,
    data_dir: DataDir = None,
    split: Literal["val", "test"] = "test",
    out: Path | None = None,
    trust_imports: TrustImports = False,
    json: Json = False,
) -> None:
    """Evaluate a run folder, or one student's folder: metrics, every class, the most confident mistakes.

    Parameters
    ----------
    path
        a run folder, or a student's folder in it.
    data
        a data set's name or a folder of images (default: what the run was trained on).
    split
        val or test.
    out
        where evaluation.json and the pictures go (default: evaluation/<data>-<split> in the run folder).
    """
    from teacherless.runs.results import evaluate_folder
    from teacherless.study import mistakes

    evaluation = evaluate_folder(path, data=data, data_dir=data_dir, split=split, trust_imports=trust_imports)
    out = out or mistakes.default_out(path, evaluation)
    mistakes.write(evaluation, out)
    if json:
        show.as_json({**evaluation.about(), "out": out})
    else:
        show.evaluation(evaluation)
        print("pictures and tables:", out)
    _report_again(path)


@app.command(help_epilogue=examples("predict runs/first more-photos", "predict runs/first a.jpg b.jpg --json"))
def predict(
    student: Path,
    images: list[Path],
    /,
    *,
    format: Literal["table", "csv", "json"] = "table",
    top: Count = 5,
    trust_imports: TrustImports = False,
    json: Json = False,
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
    """
    from teacherless.runs.predict import find
    from teacherless.runs.predict import predict as run_predict
    from teacherless.runs.stored import shipped

    each = list(run_predict(shipped(student, trust_imports=trust_imports), find(images), top))
    show.predictions(each, "json" if json else format)
    bad = [p for p in each if p.error]
    if bad:
        more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
        print(f"teacherless: cannot read {bad[0].path}: {bad[0].error}{more}", file=sys.stderr)
    return 1 if bad else 0


@app.command(
    help_epilogue=examples(
        "export runs/first --format onnx --dynamic-batch",
        "export runs/first --which ensemble --format torch",
    )
)
def export(
    path: Path,
    /,
    *,
    format: Literal["safetensors", "torch", "onnx"],
    which: str = "best",
    dynamic_batch: Switch = False,
    half: Switch = False,
    with_preprocessing: Switch = False,
    out: Path | None = None,
    data: str | None = None,
    data_dir: DataDir = None,
    trust_imports: TrustImports = False,
    json: Json = False,
) -> None:
    """Write a trained network for other programs, read it again without teacherless, and compare: the same, or nothing.

    Parameters
    ----------
    path
        a run folder, or a student's folder.
    format
        safetensors (weights), torch (a program of torch.export) or onnx.
    which
        a student's name, best (the one to ship) or ensemble.
    dynamic_batch
        a program that takes batches of any size; else one image at a time.
    half
        in half precision.
    with_preprocessing
        a program that reads pixels, uint8 [B, H, W, C].
    out
        the folder (default: export/NAME-FORMAT in the run folder).
    data
        what the images that are compared come from (default: what the run was trained on).
    """
    from teacherless.runs.export import export as run_export

    show.exported(
        run_export(
            path,
            which=which,
            format=format,
            dynamic_batch=dynamic_batch,
            half=half,
            with_preprocessing=with_preprocessing,
            out=out,
            data=data,
            data_dir=data_dir,
            trust_imports=trust_imports,
        ),
        json,
    )


@app.command(help_epilogue=examples("analyse runs/compare-photos", "analyse runs/first runs/second --out analysis"))
def analyse(
    paths: list[Path], /, *, out: Path | None = None, trust_imports: TrustImports = False, json: Json = False
) -> None:
    """Why does it help? Entropy, agreement, flat minima, calibration, ... of finished runs: tables and pictures.

    Parameters
    ----------
    paths
        run folders, or folders of a comparison.
    out
        where tables and pictures go (default: analysis/ in the first of PATHS).
    """
    from teacherless.study.read_runs import analyse as run_analysis

    lines: dict[str, str] = {}
    files = run_analysis(paths, out, trust_imports=trust_imports, say=lines.__setitem__ if json else show.finding)
    _report_again(paths[0])
    if json:
        show.as_json({"findings": lines, "files": files})
    else:
        print("open", files[0])


@app.command(help_epilogue=examples("report runs/compare-photos --open", "report runs/first"))
def report(path: Path, /, *, open: Switch = False) -> None:
    """Write report.html of a run or a comparison, also of one that is not finished: all on one page, for a browser.

    Parameters
    ----------
    path
        a run folder, or the folder of a comparison.
    open
        show it in the browser.
    """
    from teacherless.study import report as pages

    page = pages.write(path)
    print("open:", page)
    if open:
        import webbrowser

        if not webbrowser.open(page.resolve().as_uri()):
            raise InputError("--open: no browser was found; open the page above")


def _report_again(folder: Path) -> None:
    """A page that was written before gets the figures that have come since."""
    from teacherless.study import report

    if (folder / report.NAME).is_file():
        report.write_or_say(folder)


@app.command(name="--install-completion", help_epilogue=examples("--install-completion --shell zsh"))
def install_completion(*, shell: Literal["bash", "zsh", "fish"] | None = None) -> None:
    """Complete commands and flags with TAB in your shell.

    Parameters
    ----------
    shell
        which (default: the one this runs in).
    """
    try:
        path = app.install_completion(shell=shell)
    except Exception as error:
        raise InputError(f"--install-completion: {error}; give --shell bash, zsh or fish") from None
    startup = Path(os.environ.get("ZDOTDIR", Path.home())) / ".zshrc"
    # without it zsh completes nothing
    if path.name.startswith("_") and "compinit" not in startup.read_text(encoding="utf-8"):
        with startup.open("a", encoding="utf-8") as file:
            file.write("autoload -Uz compinit && compinit\n")
    print(f"completion is in {path}; open a new shell")


DEEPEST = 500  # brackets in a word of a command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    _prepare_streams()
    for word in sys.argv[1:] if argv is None else argv:
        if "\0" in word or word.count("[") + word.count("{") > DEEPEST:  # cyclopts reads lists as JSON
            return _complain(f"found {short(word)}; a word must be without NUL, and not nested so deeply", 2)
    try:
        code = app(argv, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError as error:
        return _complain(reworded(error), 2)
    except (InputError, Diverged, Lost, Stopped) as error:
        return _complain(error, error.exit_code)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except OSError as error:
        return _refused(error)
    return code if isinstance(code, int) else 0


def _complain(error: BaseException | str, code: int) -> int:
    if torchrun.rank() == 0:
        print("teacherless:", one_line(error), file=sys.stderr)
    return code


def _prepare_streams() -> None:
    """A stream that was closed before we began is the null device; a letter that its encoding lacks is a number."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, as long as the process lives
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _refused(error: OSError) -> int:
    """What the system refuses is one line; that nobody reads the output any more is none, as of any program."""
    if error.filename is None:  # of a stream: what it still holds would fail again
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return 141  # as a program that SIGPIPE ends
    return _complain(f"{error.filename or 'cannot write the output'}: {error.strerror or error}", 2)


if __name__ == "__main__":
    sys.exit(main())

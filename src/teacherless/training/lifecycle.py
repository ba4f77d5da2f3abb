"""A training from its folder to its summary: opened or taken up again, trained, evaluated, written."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

import teacherless
from teacherless.data import as_loader, as_weights
from teacherless.errors import Diverged, InputError, Stopped, first_line, python_names
from teacherless.files import disk, schemas
from teacherless.method import Method, Wants
from teacherless.methods import METHODS
from teacherless.methods._parts import Frozen
from teacherless.models.files import CONFIG, WEIGHTS, load_weights, save_student, state_hash
from teacherless.training import checkpoint, distributed, folder, predictions
from teacherless.training.distributed import Ranks
from teacherless.training.loop import Training
from teacherless.training.record import Line
from teacherless.training.settings import Settings, SettingsDict, read
from teacherless.training.step import pick_device
from teacherless.training.summary import Search, summarise

UNREADABLE = "unreadable.txt"  # in a run's folder: the files of its data that could not be read


class About(NamedTuple):
    """What a run's files say of its data, and how persons are searched in it; nothing of a user's own loaders."""

    data: dict[str, Any]
    student: dict[str, Any]
    init: str | None = None  # the hash of the weights that the students start from
    search: Search | None = None


NOTHING = About({}, {})


class Result(NamedTuple):
    """What `train` hands back."""

    summary: dict[str, Any]  # as in summary.json
    history: list[Line]  # as in metrics.jsonl
    method: Method
    out: Path | None

    def __repr__(self) -> str:
        rows = self.summary["students"].items()
        tops = ", ".join(f"{name} {row['val_top1' if row['test_top1'] is None else 'test_top1']}" for name, row in rows)
        return f"Result({self.summary['method']}, {len(self.history)} epochs; top-1 {tops}; out={self.out})"


def train(
    method: Method,
    train_data: Iterable[Any],
    val_data: Iterable[Any] | None = None,
    test_data: Iterable[Any] | None = None,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    resume_anyway: bool = False,
    per_student: dict[str, dict[str, float]] | None = None,
    class_weights: Sequence[float] | Tensor | None = None,
    on_epoch: Callable[[Line], bool | None] | None = None,
    quiet: bool = False,
    **settings: Unpack[SettingsDict],
) -> Result:
    """Train `method`; everything it learns is in it. Seeds torch's global generator with `seed`.

    Args:
        method: what is trained.
        train_data: batches `(x, y)`, `((view1, view2), y)`, dicts or `Batch`, read once per epoch; or arrays `(X, y)`.
        val_data: picks `chosen`, and the epoch with `select="best"`; read once per epoch.
        test_data: read once, at the end, never for a choice.
        out: a run folder to write; nothing is written without it.
        resume: go on with what `out` holds, to the same bits; the data must come in the same order again.
        resume_anyway: go on with more epochs or steps than the run was started with.
        per_student: optimizer settings of single students, `{"peer1": {"lr": 0.05}}`.
        class_weights: `[C]`, of each class in every cross-entropy with labels; 1 where classes count as they come.
        on_epoch: called with every epoch's line, as in metrics.jsonl; True ends the training.
        quiet: print nothing.
        settings: the fields of `teacherless.training.settings.Settings`: epochs, lr, opt, sched, seed, select, …

    Raises: InputError for settings and data that cannot be used; Diverged when the loss is not finite; Stopped after
        Ctrl-C or SIGTERM, once the run is saved (without `out` they act as ever).
    """
    if not isinstance(method, Method):
        raise InputError(f"method: found a {type(method).__name__}; must be a method, such as tl.Plain(net)")
    with python_names():
        chosen = read(Settings, settings)
    with python_names(), distributed.opened(chosen) as ranks:
        device = pick_device(chosen.device)
        pairs = ((train_data, method.wants), (val_data, Wants()), (test_data, Wants()))
        dtype = next((p.dtype for p in method.parameters() if p.is_floating_point()), None)
        data = [
            None if each is None else as_loader(each, wants, device, dtype=dtype, train=each is train_data)
            for each, wants in pairs
        ]
        before = method.smoothing, method.class_weights
        method.smoothing, method.class_weights = chosen.smoothing or before[0], as_weights(class_weights, before[1])
        try:
            where = Path(out) if out else None
            ranks.check(method, chosen, [getattr(each, "labels", torch.empty(0)).tolist() for each in data])
            with ranks.together():
                own = per_student or {}
                training = Training(method, data[0], data[1], chosen, own, where, quiet=quiet, ranks=ranks)
            training.on_epoch = None if ranks.rank else on_epoch
            return to_the_end(training, data[2], resume=resume or resume_anyway, anyway=resume_anyway)
        finally:
            method.smoothing, method.class_weights = before


def to_the_end(
    training: Training, test: Any, about: About = NOTHING, *, resume: bool = False, anyway: bool = False
) -> Result:
    """Open the folder, train, evaluate, write. The folder is held while this runs."""
    training.test, ranks, done = test, training.ranks, None
    with contextlib.ExitStack() as held:
        with ranks.together():
            if training.out:
                done = _open(training, training.out, about, held, resume, anyway)
        engine, began, over = ranks.from_first((training.engine.about(), ranks.began, done is not None))
        if ranks.rank:
            training.engine.resume(engine)
            if began:
                training.restore(began)
        if not over:
            done = _run(training, about)
    if ranks.size > 1:
        method = training.method
        told = (done.summary, done.history, method.state_dict() if over else {}) if done else ({}, [], {})
        summary, history, weights = ranks.from_first(told)
        method.load_state_dict(weights or method.state_dict())
        done = Result(summary, history, method, done and done.out)
    assert done
    return done


def _open(
    training: Training, out: Path, about: About, held: contextlib.ExitStack, resume: bool, anyway: bool
) -> Result | None:
    """Hold the folder, and take up what is in it. Returns a result if there is nothing left to do."""
    folder.open_folder(out, resume)
    if resume and (stored := schemas.stored(out)):
        training.engine.resume(stored)
    held.enter_context(folder.locked(out))
    disk.clear(out)
    now = _run_json(training, about)
    if resume and (done := _resume(training, out, now, about, anyway)):
        return done
    disk.write_json(out / "run.json", now)
    (out / "failed.json").unlink(missing_ok=True)  # it is tried again
    _list_unreadable(training, out, about)
    training.recorder.rewrite()
    return None


def _run(training: Training, about: About) -> Result | None:
    """Train, evaluate, write; the first rank has the result."""
    try:
        with training.signals if training.saves else contextlib.nullcontext():
            training.loop()
            if training.ranks.rank:
                return None
            training.ranks = Ranks()  # it has everything now
            return _finish(training, about)
    except (Diverged, Stopped) as error:
        error.folder = out = training.out
        if out and isinstance(error, Diverged):
            checkpoint.go_back(out / "checkpoints", training.sound)
            disk.write_json(out / "failed.json", {"failed": str(error)})
        raise


def _run_json(training: Training, about: About) -> dict[str, Any]:
    teacher = getattr(training.method, "teacher", None)
    versions = {"teacherless": teacherless.__version__, "torch": torch.__version__, "python": platform.python_version()}
    machine = {"device": str(training.device), "threads": torch.get_num_threads(), **training.engine.about()}
    weights: Any = {"teacher": state_hash(teacher.net) if isinstance(teacher, Frozen) else None, "init": about.init}
    weights["class_weights"] = None if (each := training.method.class_weights) is None else each.tolist()
    settings = {"epochs": training.all_epochs, "settings": training.settings.model_dump(mode="json")}
    data = {"data": about.data, "ranks": training.ranks.about()}
    return {"versions": versions, "commit": _commit(), **machine, **data, **weights, **settings}


# Going on -------------------------------------------------------------------------------------------------------------


def _resume(training: Training, out: Path, now: dict[str, Any], about: About, anyway: bool) -> Result | None:
    """Take up what the folder holds. Returns a result if there is nothing left to do."""
    if before := schemas.stored(out):
        folder.compare(before, now, anyway)
        longer = any(before["settings"].get(key) != now["settings"][key] for key in ("epochs", "steps"))
        if longer and len(phases := training.method.phases) > 1:
            raise InputError(f"--resume: found other epochs; a run with phases ({', '.join(phases)}) keeps its own")
    summary = schemas.summary(out)
    if summary and summary["epochs"] >= training.all_epochs and summary.get("steps", 0) >= (training.steps or 0):
        return _as_finished(training, out, summary, about)
    if before and before.get("ranks") != now["ranks"]:
        was, wanted = (
            f"{each['peer']} x {each['data']} ranks" if each else "one process"
            for each in (before.get("ranks"), now["ranks"])
        )
        training.say(f"begun by {was}, goes on by {wanted} (peer x data): the same but for rounding")
    for line in folder.elsewhere(before, now) if before else ():
        training.say(line)
    if (path := _take_up(training, out)) is None:
        training.say(f"{out} has no checkpoint yet: starting from the beginning")
        return None
    if summary:  # more epochs, or steps, were asked for
        (out / "summary.json").rename(out / f"summary-{summary['epochs']}-epochs.json")
    training.say(f"resuming from {path}: epoch {training.epoch + 1}, step {training.step}")
    return None


def _take_up(training: Training, out: Path) -> Path | None:
    """Restore the newest whole checkpoint; returns its folder, or None where there is none. Raises: InputError."""
    newest = checkpoint.read(out / "checkpoints")
    if newest is None:
        return None
    state, path, complaints = newest
    for line in complaints:
        training.say(line)
    schemas.check(state.values, schemas.STATE, path)
    try:
        training.restore(state)
    except Exception as error:  # its checksums are right: whoever made it can have put in anything
        raise InputError(f"{path}: is no checkpoint of this run: {first_line(error)}") from error
    return path


def _as_finished(training: Training, out: Path, summary: dict[str, Any], about: About) -> Result:
    """A finished run again: the method as it was shipped; what the folder lost comes back from the checkpoint.

    Raises: InputError if something is lost that no checkpoint can give back.
    """
    files = [f"students/{name}/{file}" for name in schemas.staying(summary) for file in (WEIGHTS, CONFIG)]
    sums = summary.get("files", {})
    lost = disk.damaged(out, [*files, "metrics.jsonl", *(sums.keys() & {predictions.FILE})], sums)
    if not lost:
        training.say(f"{out} is finished; nothing to resume")
        training.recorder.file = training.recorder.screen = None
    training.ranks = Ranks()  # a checkpoint has everything, and this rank has it
    try:
        path = _take_up(training, out)
    except InputError:
        if lost:
            raise
        path = None
    training.end_at(summary.get("steps", 0))
    if path:
        training.loop()
    elif lost:
        raise InputError(f"{out / lost[0]}: is missing or damaged, and there is no checkpoint to mend it from")
    else:
        for name in schemas.staying(summary):
            load_weights(training.students[name], out / "students" / name / WEIGHTS)
    training.left = summary.get("left", {})
    if lost:
        training.say(f"missing or damaged, and written again from {path}: {', '.join(lost)}")
        staying = {name: training.students[name] for name in schemas.staying(summary)}
        guesses = predictions.again(staying, training.test) if predictions.FILE in sums else {}
        if (written := _write(training, out, about, guesses)) != sums:
            summary = {**summary, "files": written}
            disk.write_json(out / "summary.json", summary)
    return Result(summary, schemas.lines(out), training.method, out)


# What is left ---------------------------------------------------------------------------------------------------------


def _finish(training: Training, about: About) -> Result:
    """Evaluate what is shipped; write students and summary. The summary comes last: it says that all is there."""
    kind = type(training.method)  # by its name on the command line, or a class of the user's own
    method = next((name for name, each in METHODS.items() if each is kind), kind.__name__)
    head = {"method": method, "data": about.data.get("name"), "seed": training.settings.seed}
    head |= {"epochs": training.all_epochs, "steps": training.step}
    summary, guesses = summarise(training, head, about.search, about.student.get("classes", ()))
    if out := training.out:
        if count := _list_unreadable(training, out, about):
            summary["unreadable"] = count
        summary["files"] = _write(training, out, about, guesses)
        disk.write_json(out / "summary.json", summary)
    return Result(summary, training.recorder.history, training.method, out)


def _list_unreadable(training: Training, out: Path, about: About) -> int:
    """Write all files that could not be read so far, one to a line; returns how many."""
    loaders = (training.data, training.val, training.test)
    later = [line for data in loaders for line in getattr(data, "unreadable", [])]
    lines = list(dict.fromkeys([*about.data.get("unreadable", []), *later]))
    if lines:
        disk.write(out / UNREADABLE, "".join(f"{line}\n" for line in lines))
    return len(lines)


def _write(training: Training, out: Path, about: About, guesses: Mapping[str, Tensor]) -> dict[str, str]:
    """Predictions, students that have not left, metrics.jsonl: on the disk when this returns; the SHA-256 of each."""
    sums = predictions.write(out, guesses)
    for name, net in training.students.items():
        if name in training.left:
            continue
        for file, digest in save_student(out / "students" / name, net, about.student).items():
            sums[f"students/{name}/{file}"] = digest
    return {**sums, "metrics.jsonl": training.recorder.rewrite()}


def _commit() -> str | None:
    """The commit of our own checkout; None where the package is installed, in whoever's repository that may be."""
    here = Path(teacherless.__file__).resolve().parent
    command = ["git", "rev-parse", "--show-toplevel", "HEAD"]
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, encoding="utf-8", check=True)
        root, commit = done.stdout.splitlines()
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return commit if Path(root) / "src" / "teacherless" == here else None

"""train(): the loop, on one screen.

No callbacks, no events, no subclasses: who wants another loop copies this one.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor, nn

import teacherless
from teacherless import disk, losses, schemas
from teacherless.data import Loader, as_loader
from teacherless.data.own_loader import Adapted
from teacherless.errors import ADVICE, Diverged, InputError, Stopped, python_names
from teacherless.evaluation.metrics import evaluate, evaluating
from teacherless.method import Batch, Method, Progress, Wants
from teacherless.methods._parts import Frozen
from teacherless.models.files import CONFIG, WEIGHTS, load_weights, save_student
from teacherless.network import call, check_ready
from teacherless.training import checkpoint, folder
from teacherless.training.ema import Average
from teacherless.training.record import Line, Recorder
from teacherless.training.settings import Settings, SettingsDict, read
from teacherless.training.step import NO_BF16, Engine, make_optimizer, pick_device, rate, set_rates
from teacherless.training.summary import Search, summarise

UNREADABLE = "unreadable.txt"  # in a run's folder: the files of its data that could not be read


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
    per_student: dict[str, dict[str, float]] | None = None,
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
        per_student: optimizer settings of single students, `{"peer1": {"lr": 0.05}}`.
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
        device = pick_device(chosen.device)
        pairs = ((train_data, method.wants), (val_data, Wants()), (test_data, Wants()))
        dtype = next((p.dtype for p in method.parameters() if p.is_floating_point()), None)
        data = [None if found is None else as_loader(found, wants, device, dtype=dtype, train=found is train_data)
                for found, wants in pairs]  # fmt: skip
        own = method.smoothing
        method.smoothing = chosen.smoothing or own
        try:
            where = Path(out) if out else None
            training = Training(method, data[0], data[1], chosen, per_student or {}, where, quiet=quiet)
            training.on_epoch = on_epoch
            return training.to_the_end(data[2], {}, {}, resume=resume)
        finally:
            method.smoothing = own


class Training:
    """One run of the loop, and everything that decides its future."""

    def __init__(
        self,
        method: Method,
        data: Any,
        val: Any,
        settings: Settings,
        per_student: dict[str, dict[str, float]],
        out: Path | None,
        *,
        quiet: bool = False,
    ) -> None:
        if int(os.environ.get("WORLD_SIZE") or 1) > 1:
            raise InputError(f"WORLD_SIZE: found {os.environ['WORLD_SIZE']} (torchrun); every process would train a "
                             "copy of its own: start one, or write a loop with DistributedDataParallel around the "
                             "method")  # fmt: skip
        self.method, self.data, self.val, self.settings, self.out = method, data, val, settings, out
        self.test: Any = None
        self.on_epoch: Callable[[Line], bool | None] | None = None
        self.enough = False  # on_epoch said so
        self.device = pick_device(settings.device)
        self.every = checkpoint.Every(settings.checkpoint_every)
        self.per_student = per_student
        self.per_epoch: int | None = len(data) if hasattr(data, "__len__") else None
        self.epochs = method.share(settings.epochs)
        self.steps = settings.steps and method.share(settings.steps)  # of each phase
        if self.steps is not None:
            if self.per_epoch is None:
                raise InputError("--steps: the training data has no length; give epochs instead")
            self.epochs = math.ceil(self.steps / self.per_epoch)
        check_ready(method)
        method.to(self.device)
        self.engine = Engine(method, settings, self.device)
        self.students = method.students()
        self.step = self.epoch = self.batch = self.phase = 0  # batch counts within the epoch
        self.sound = 0  # the last finished epoch's checkpoint has this number, if there is one
        self.best: tuple[float, dict[str, Tensor]] | None = None
        self.recorder = Recorder(list(self.students), self.epochs * len(method.phases), self.per_epoch,
                                 out and out / "metrics.jsonl", quiet=quiet)  # fmt: skip
        torch.manual_seed(settings.seed)
        self.epoch_random = checkpoint.random_state()  # as it was when this epoch's data was first asked for
        self._start_phase()

    def _start_phase(self) -> None:
        """A phase is a training of its own: a new optimizer, rates and epochs from 0."""
        self.method.begin(self.method.phases[self.phase])
        self.optimizer = make_optimizer(self.method.param_groups(), self.settings, self.per_student)
        count = torch.zeros((), dtype=torch.long, device=self.device)
        self.progress = Progress(step=count, epoch=count.clone(), epochs=count + self.epochs)
        self.step = self.epoch = 0
        self.best = None
        self.average = Average(self.method, self.settings.ema) if self.settings.ema else None

    def to_the_end(
        self,
        test: Any,
        data_about: dict[str, Any],
        student_about: dict[str, Any],
        search: Search | None = None,
        *,
        resume: bool = False,
        anyway: bool = False,
    ) -> Result:
        """Open the folder, train, evaluate, write. The folder is held while this runs."""
        self.test = test
        if self.out is None:
            self.loop()
            return self.finish(test, data_about, student_about, search)
        folder.open_folder(self.out, resume)
        stored = schemas.stored(self.out) if resume else None
        if stored:
            self.engine.resume(stored)
        now = {**_environment(self.device), **self.engine.about(), "data": data_about, "teacher": self._teacher_hash(),
               "epochs": self.epochs * len(self.method.phases),
               "settings": self.settings.model_dump(mode="json")}  # fmt: skip
        with checkpoint.locked(self.out):
            disk.clear(self.out)
            if resume and (done := self._resume(now, anyway, student_about)):
                return done
            disk.write_json(self.out / "run.json", now)
            self._list_unreadable(data_about)
            self.recorder.rewrite()
            try:
                with checkpoint.Signals() as signals:
                    self.loop(signals)
                    return self.finish(test, data_about, student_about, search)
            except Diverged:
                checkpoint.go_back(self.out / "checkpoints", self.sound)
                raise

    def loop(self, signals: checkpoint.Signals | None = None) -> None:
        """All phases, all epochs, all batches, from wherever the state stands."""
        if self.engine.refused:
            self._say(f"--amp: {NO_BF16}; --amp-anyway trains in bf16 all the same")
        with self.recorder, self.engine:
            while True:
                while self.epoch < self.epochs and not self.enough:
                    try:
                        self.one_epoch(signals)
                    except checkpoint.Interrupted as stop:
                        self._stop(stop.signal)
                if self.enough or self.phase + 1 == len(self.method.phases):
                    break
                self._take_what_counts()
                self.phase += 1
                self._start_phase()
            self._check()
            if self.out:
                self.save()
            self._take_what_counts()

    def _check(self) -> None:
        """Raises: Diverged if what was recorded since the epoch began, or a student's weights, is not finite."""
        self.recorder.check(self.phase * self.epochs + self.epoch)
        bad = [name for name, net in self.students.items() if not all(map(_is_finite, net.state_dict().values()))]
        if bad:
            raise Diverged(
                f"training diverged at step {self.step}: weights of {', '.join(bad)} are not finite; {ADVICE}"
            )

    def _take_what_counts(self) -> None:
        """At the end of a phase: the method gets its best epoch's weights, or the average, where it was asked for."""
        if self.best:
            self.method.load_state_dict(self.best[1])
        elif self.average:
            self.average.swap()

    def one_epoch(self, signals: checkpoint.Signals | None) -> None:
        """What is left of an epoch, its evaluation, its line."""
        self.method.train()
        self.recorder.start()
        settings, total = self.settings, self.steps or self.epochs * (self.per_epoch or 1)
        left = self.steps and self.steps - self.step
        batches = self._batches()
        if signals and isinstance(self.data, Loader):  # a user's may be drawing from the generators that are saved
            batches = signals.between(batches)
        for batch in itertools.islice(batches, left):
            if self.step == 0:
                outputs = _check_first(self.students, batch)
                for each in (self.data, self.val, self.test):
                    if isinstance(each, Adapted):
                        each.classes = outputs
            place = self.step if self.per_epoch else self.epoch
            set_rates(self.optimizer, rate(settings, place, self.per_epoch or 1, total))
            output = self.engine.step(self.optimizer, batch, self.progress)
            if self.average:
                self.average.update(self.step + 1)
            self.recorder.step(output, batch.labels)
            self.progress.step.add_(1)
            self.step, self.batch = self.step + 1, self.batch + 1
            if signals and signals.asked:
                self._stop(signals.asked)
            if self.out and self.every.due(self.step, None):
                self.save()
        if self.out and self.step == self.steps and self.batch != self.per_epoch:
            self.save()  # a run that is given more steps goes on from here
        self.progress.epoch.add_(1)
        self.recorder.stop()
        with self.average or contextlib.nullcontext():
            at_once = signals.at_once() if signals and isinstance(self.val, Loader) else contextlib.nullcontext()
            with at_once:
                values = evaluate(self.students, self.val.epoch(0)) if self.val else {}
            self._keep_best(values)
        named = {"phase": self.method.phase} if self.method.phase else {}
        lr = float(self.optimizer.param_groups[0]["lr"])
        line = self.recorder.epoch(self.phase * self.epochs + self.epoch, self.step, lr, values, **named)
        self.enough = bool(self.on_epoch and self.on_epoch(line))
        self.epoch, self.batch = self.epoch + 1, 0
        if all(math.isfinite(each["nll"]) for each in values.values()):
            self.sound = self._number()
        self.epoch_random = checkpoint.random_state()
        if signals and signals.asked:
            self._stop(signals.asked)
        if self.out and self.every.due(0, self.epoch):
            self.save()

    def _keep_best(self, values: dict[str, dict[str, float]]) -> None:
        if self.settings.select == "best" and values:
            mean = sum(v["top1"] for v in values.values()) / len(values)
            if self.best is None or mean > self.best[0]:
                self.best = mean, {key: value.clone() for key, value in self.method.state_dict().items()}

    def _batches(self) -> Iterator[Batch]:
        """The epoch's batches from where it stands. A user's loader may draw from the global generators: it is asked
        again from the epoch's first state, and what it gave already is passed over."""
        epoch = self.phase * self.epochs + self.epoch  # a phase does not see what the one before it saw
        if self.batch == 0:
            return iter(self.data.epoch(epoch))
        now = checkpoint.random_state()
        checkpoint.set_random_state(self.epoch_random)
        batches: Iterator[Batch] = iter(self.data.epoch(epoch, self.batch))
        checkpoint.set_random_state(now)
        return batches

    # What is saved --------------------------------------------------------------------------------------------------

    def state(self) -> checkpoint.State:
        """Everything that decides the future."""
        best = self.best or (None, {})
        values = {"step": self.step, "epoch": self.epoch, "batch": self.batch, "phase": self.phase, "best": best[0],
                  "sound": self.sound}  # fmt: skip
        return checkpoint.pack(
            loop=checkpoint.State({}, values),
            method=checkpoint.State(self.method.state_dict(), {}),
            best=checkpoint.State(best[1], {}),
            average=checkpoint.State(self.average.values if self.average else {}, {}),
            optimizer=checkpoint.optimizer_state(self.optimizer),
            recorder=checkpoint.State(*self.recorder.state()),
            random=checkpoint.random_state(),
            epoch_random=self.epoch_random,
        )

    def restore(self, state: checkpoint.State) -> None:
        """The reverse of `state`."""
        values = checkpoint.unpack(state, "loop").values
        self.phase = values["phase"]
        self._start_phase()
        self.step, self.epoch, self.batch = values["step"], values["epoch"], values["batch"]
        self.sound = values["sound"]
        self.progress.step.fill_(self.step)
        self.progress.epoch.fill_(self.epoch)
        self.method.load_state_dict(checkpoint.unpack(state, "method").tensors)
        if values["best"] is not None:
            best = checkpoint.unpack(state, "best").tensors
            self.best = values["best"], {name: value.to(self.device) for name, value in best.items()}
        if self.average:
            self.average.load(checkpoint.unpack(state, "average").tensors)
        checkpoint.load_optimizer(self.optimizer, checkpoint.unpack(state, "optimizer"))
        self.recorder.restore(*checkpoint.unpack(state, "recorder"))
        self.epoch_random = checkpoint.unpack(state, "epoch_random")
        checkpoint.set_random_state(checkpoint.unpack(state, "random"))

    def save(self) -> None:
        """Write a checkpoint. Raises: InputError if it cannot be written; Diverged if it would not be a good one."""
        assert self.out is not None
        self.recorder.stop()
        self._check()
        checkpoint.write(self.out / "checkpoints", self._number(), self.state(), self.sound)
        self.recorder.start()

    def _number(self) -> int:
        return self.phase * 10**9 + self.step

    def _stop(self, signal: int) -> None:
        self.save()
        raise Stopped(signal, f"stopped after step {self.step}, saved; go on with --out {self.out} --resume")

    def _resume(self, now: dict[str, Any], anyway: bool, student_about: dict[str, Any]) -> Result | None:
        """Take up what the folder holds. Returns a result if there is nothing left to do."""
        assert self.out is not None
        before = schemas.stored(self.out)
        if before:
            folder.compare(before, now, anyway)
            longer = any(before["settings"].get(key) != now["settings"][key] for key in ("epochs", "steps"))
            if longer and len(phases := self.method.phases) > 1:
                raise InputError(f"--resume: found other epochs; a run with phases ({', '.join(phases)}) keeps its own")
        summary = schemas.summary(self.out)
        if summary and self._reached(summary):
            return self._as_finished(summary, student_about)
        if (path := self._take_up()) is None:
            self._say(f"{self.out} has no checkpoint yet: starting from the beginning")
            return None
        if summary:  # more epochs, or steps, were asked for
            (self.out / "summary.json").rename(self.out / f"summary-{summary['epochs']}-epochs.json")
        self._say(f"resuming from {path}: epoch {self.epoch + 1}, step {self.step}")
        return None

    def _reached(self, summary: dict[str, Any]) -> bool:
        """Whether a finished run has what is asked for now."""
        epochs, steps = self.epochs * len(self.method.phases), self.steps or 0
        return bool(summary["epochs"] >= epochs and summary.get("steps", 0) >= steps)

    def _take_up(self) -> Path | None:
        """Restore the newest whole checkpoint; returns its folder, or None where there is none. Raises: InputError."""
        assert self.out is not None
        found = checkpoint.read(self.out / "checkpoints")
        if found is None:
            return None
        state, path, complaints = found
        for line in complaints:
            self._say(line)
        self.restore(state)
        return path

    def _as_finished(self, summary: dict[str, Any], student_about: dict[str, Any]) -> Result:
        """A finished run again: the method as it was shipped; what the folder lost comes back from the checkpoint.

        Raises: InputError if something is lost that no checkpoint can give back.
        """
        assert self.out is not None
        files = [f"students/{name}/{file}" for name in self.students for file in (WEIGHTS, CONFIG)]
        lost = disk.damaged(self.out, [*files, "metrics.jsonl"], summary.get("files", {}))
        if not lost:
            self._say(f"{self.out} is finished; nothing to resume")
            self.recorder.file = self.recorder.screen = None
        try:
            path = self._take_up()
        except InputError:
            if lost:
                raise
            path = None
        end, all_steps = summary.get("steps", 0), self.steps or self.epochs * (self.per_epoch or 0)
        if end < all_steps:  # on_epoch ended it
            self.enough, self.on_epoch = self.batch == 0 and self.step >= end, lambda line: line["step"] >= end
        if path:
            self.loop()
        elif lost:
            raise InputError(f"{self.out / lost[0]}: is missing or damaged, and there is no checkpoint to mend it from")
        else:
            for name, net in self.students.items():
                load_weights(net, self.out / "students" / name / WEIGHTS)
        if lost:
            self._say(f"missing or damaged, and written again from {path}: {', '.join(lost)}")
            summary = {**summary, "files": self._write(student_about)}
            disk.write_json(self.out / "summary.json", summary)
        return Result(summary, schemas.lines(self.out), self.method, self.out)

    def _say(self, line: str) -> None:
        if self.recorder.screen:
            print(line, flush=True)

    def _teacher_hash(self) -> str | None:
        teacher = getattr(self.method, "teacher", None)
        if not isinstance(teacher, Frozen):
            return None
        digest = hashlib.sha256()
        for name, value in teacher.net.state_dict().items():
            digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def finish(
        self, test: Any, data_about: dict[str, Any], student_about: dict[str, Any], search: Search | None = None
    ) -> Result:
        """Evaluate what is shipped; write students and summary. The summary comes last: it says that all is there."""
        head = {"method": method_name(self.method), "data": data_about.get("name"), "seed": self.settings.seed,
                "epochs": self.epochs * len(self.method.phases), "steps": self.step}  # fmt: skip
        summary = summarise(self.method, self.val, test, head, self.recorder, search)
        if self.out:
            if count := self._list_unreadable(data_about, self.val, test):
                summary["unreadable"] = count
            summary["files"] = self._write(student_about)
            disk.write_json(self.out / "summary.json", summary)
        return Result(summary, self.recorder.history, self.method, self.out)

    def _list_unreadable(self, data_about: dict[str, Any], *loaders: Any) -> int:
        """Write all files that could not be read so far, one to a line; returns how many."""
        assert self.out is not None
        later = [line for data in (self.data, *loaders) for line in getattr(data, "unreadable", [])]
        lines = list(dict.fromkeys([*data_about.get("unreadable", []), *later]))
        if lines:
            disk.write(self.out / UNREADABLE, "".join(f"{line}\n" for line in lines))
        return len(lines)

    def _write(self, student_about: dict[str, Any]) -> dict[str, str]:
        """Students and metrics.jsonl, on the disk when this returns; the SHA-256 of each file."""
        assert self.out is not None
        sums = {}
        for name, net in self.students.items():
            for file, digest in save_student(self.out / "students" / name, net, student_about).items():
                sums[f"students/{name}/{file}"] = digest
        return {**sums, "metrics.jsonl": self.recorder.rewrite()}


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


@torch.no_grad()
def _check_first(students: dict[str, nn.Module], batch: Batch) -> int:
    """Once, before the first step: every student returns logits, and has an output for every label. Returns how many
    outputs all of them have."""
    ids = losses.class_ids(batch.labels)
    high, low = int(ids.max()), int(ids.min())
    outputs = []
    with evaluating(students.values()):
        for name, net in students.items():
            logits = call(net, batch.inputs[0])
            if len(logits) != len(batch.labels):
                raise InputError(f"{name}: found {list(logits.shape)}; a student must return logits, "
                                 f"[{len(batch.labels)}, classes]")  # fmt: skip
            if high >= logits.shape[1] or low < 0:
                raise InputError(f"data: found class {high if low >= 0 else low}; {name} has {logits.shape[1]} outputs")
            outputs.append(logits.shape[1])
    return min(outputs)


def _environment(device: torch.device) -> dict[str, Any]:
    return {
        "versions": {
            "teacherless": teacherless.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "commit": _commit(),
        "device": str(device),
        "threads": torch.get_num_threads(),
    }


def _commit() -> str | None:
    """The commit of our own checkout; None where the package is installed, in whoever's repository that may be."""
    here = Path(teacherless.__file__).resolve().parent
    command = ["git", "rev-parse", "--show-toplevel", "HEAD"]
    try:
        root, commit = subprocess.run(
            command, cwd=here, capture_output=True, encoding="utf-8", check=True
        ).stdout.splitlines()
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return commit if Path(root) / "src" / "teacherless" == here else None


def method_name(method: Method) -> str:
    """As on the command line, or the class's name for a method of the user's own."""
    from teacherless.methods import METHODS

    return next((name for name, kind in METHODS.items() if type(method) is kind), type(method).__name__)

"""The loop, on one screen: a batch from its loader to the optimizer, an epoch to its line and its checkpoint.

No callbacks, no events, no subclasses: who wants another loop copies this one.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teacherless import losses
from teacherless.data import Loader
from teacherless.data.own_loader import Adapted
from teacherless.errors import ADVICE, Diverged, InputError, Stopped
from teacherless.evaluation.metrics import measured, predict
from teacherless.files import schemas
from teacherless.method import Batch, Method, Progress
from teacherless.network import call, check_ready, evaluating
from teacherless.training import checkpoint, doctor
from teacherless.training.board import Board
from teacherless.training.distributed import Ranks
from teacherless.training.ema import Average
from teacherless.training.precision import NO_BF16
from teacherless.training.record import Line, Recorder
from teacherless.training.revival import Revival, is_whole
from teacherless.training.settings import Settings
from teacherless.training.step import Engine, body, make_optimizer, pick_device, rate, set_rates
from teacherless.training.stop import Interrupted, Signals


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
        ranks: Ranks | None = None,
    ) -> None:
        self.method, self.data, self.val, self.settings = method, data, val, settings
        self.ranks = ranks or Ranks()
        self.saves, self.out = bool(out), out if self.ranks.rank == 0 else None
        self.test: Any = None
        self.signals = Signals(alone=self.ranks.size == 1)  # ask for nothing until they are entered
        self.on_epoch: Callable[[Line], bool | None] | None = None
        self.enough = False  # on_epoch said so
        self.device = pick_device(settings.device)
        self.every = checkpoint.Every(settings.checkpoint_every)
        self.due = False  # a checkpoint is to be saved
        self.per_student = per_student
        check_ready(method)
        method.to(self.device)
        self.ranks.lay_out(method, settings, data)
        self.per_epoch: int | None = len(data) if hasattr(data, "__len__") else None
        self.epochs = method.share(settings.epochs)
        self.steps = settings.steps and method.share(settings.steps)  # of each phase
        if self.steps is not None:
            if self.per_epoch is None:
                raise InputError("--steps: the training data has no length; give epochs instead")
            self.epochs = math.ceil(self.steps / self.per_epoch)
        part, through = self.ranks.part, self.ranks.through
        self.engine = Engine(part, settings, self.device, ranks=self.ranks.size, through=through)
        self.students = method.students()
        self.own = {name: net for i, (name, net) in enumerate(self.students.items()) if i in self.ranks.own}
        self.step = self.epoch = self.batch = self.phase = 0  # batch counts within the epoch
        self.same_views = False  # a first batch held several distortions of each image that were one
        self.sound = 0  # the last finished epoch's checkpoint has this number, if there is one
        self.best: tuple[float, dict[str, Tensor]] | None = None
        self.left: dict[str, int] = {}  # students that are not finite, and after how many steps
        self.revival = Revival(self.students, settings.on_divergence == "revive")
        file = self.out and self.out / "metrics.jsonl"
        batches = self.per_epoch and (self.steps or self.epochs * self.per_epoch) * len(method.phases)
        board = Board(self.out) if settings.log and self.ranks.rank == 0 else None
        quiet |= self.ranks.rank > 0
        more: dict[str, Any] = {"quiet": quiet, "board": board, "totals": self.ranks.totals}
        self.recorder = Recorder(list(self.students), self.all_epochs, batches, file, **more)
        torch.manual_seed(settings.seed + (self.ranks.rank << 40))  # or all ranks would drop the same units
        self.epoch_random = checkpoint.random_state()  # as it was when this epoch's data was first asked for
        self._start_phase()

    def _start_phase(self) -> None:
        """A phase is a training of its own: a new optimizer, rates and epochs from 0."""
        self.method.begin(self.method.phases[self.phase])
        self.optimizer = make_optimizer(self.method.param_groups(), self.settings, self.per_student, body(self.method))
        count = torch.zeros((), dtype=torch.long, device=self.device)
        self.progress = Progress(step=count, epoch=count.clone(), epochs=count + self.epochs)
        self.step = self.epoch = 0
        self.best = None
        self.average = Average(self.method, self.settings.ema) if self.settings.ema else None

    @property
    def all_epochs(self) -> int:
        """Epochs of all phases."""
        return self.epochs * len(self.method.phases)

    def loop(self) -> None:
        """All phases, all epochs, all batches, from wherever the state stands."""
        if self.engine.refused:
            self.say(f"--amp: {NO_BF16}; --amp-anyway trains in bf16 all the same")
        with self.recorder, self.engine:
            try:
                while True:
                    while self.epoch < self.epochs and not self.enough:
                        self._train_epoch()
                        self._end_epoch()
                    if self.enough or self.phase + 1 == len(self.method.phases):
                        break
                    self._take_what_counts()
                    self.phase += 1
                    self._start_phase()
            except Interrupted as stop:
                self._stop(stop.signal)
            self.check()
            if self.saves:
                self.save()
            self._take_what_counts()
            self.ranks.collect(self.method)

    def _train_epoch(self) -> None:
        """The batches that are left of an epoch."""
        self.method.train()
        self.recorder.start()
        total = self.steps or self.epochs * (self.per_epoch or 1)
        for batch in self._batches():
            if self.step == 0:
                with self.ranks.together():
                    self._check_first(batch)
                self.same_views |= doctor.same_views(self.method, batch)
            place = self.step if self.per_epoch else self.epoch
            set_rates(self.optimizer, rate(self.settings, place, self.per_epoch or 1, total))
            output = self.engine.step(self.optimizer, batch, self.progress)
            if self.average:
                self.average.update(self.step + 1)
            self.recorder.step(output, batch.labels)
            self.progress.step.add_(1)
            self.step, self.batch = self.step + 1, self.batch + 1
            self._stop_or_save(None)
        if self.saves and self.step == self.steps and self.batch != self.per_epoch:
            self.save()  # a run that is given more steps goes on from here

    def _end_epoch(self) -> None:
        """An epoch's evaluation, its line, its checkpoint."""
        self.progress.epoch.add_(1)
        self.recorder.stop()
        self._see_who_left()
        self.ranks.settle(self.average)
        values = self._evaluate()
        named = {"phase": self.method.phase, "left": self.left, "revived": dict(self.revival.times)}
        lr = float(self.optimizer.param_groups[0]["lr"])
        line = self.recorder.epoch(self.phase * self.epochs + self.epoch, self.step, lr, values, **named)
        self.enough = bool(*self.ranks.agree(bool(self.on_epoch and self.on_epoch(line))))
        self.epoch, self.batch = self.epoch + 1, 0
        self._end_if_over((), "")
        if not self._over({name for name, each in values.items() if not math.isfinite(each["nll"])}):
            self.sound = self._number()
        self.revival.end_epoch(self.method.left(), values, self.optimizer, self.average, self.say)
        self.epoch_random = checkpoint.random_state()
        self._stop_or_save(self.epoch)

    def _stop_or_save(self, epochs_done: int | None) -> None:
        """After a step, or an epoch: what one rank was asked to do, all do, where students meet the next time."""
        self.due |= self.out is not None and self.every.due(self.step, epochs_done)
        if self.ranks.size > 1 and epochs_done is None and self.step % self.method.exchange_every:
            return
        asked, save = self.ranks.agree(self.signals.asked or 0, self.due)
        self.due = False
        if asked:
            self._stop(asked)
        if save:
            self.save()

    def _batches(self) -> Iterator[Batch]:
        """The epoch's batches from where it stands. A user's loader may draw from the global generators: it is asked
        again from the epoch's first state, and what it gave already is passed over."""
        epoch = self.phase * self.epochs + self.epoch  # a phase does not see what the one before it saw
        now = checkpoint.random_state()
        if self.batch:
            checkpoint.set_random_state(self.epoch_random)
        batches: Iterator[Batch] = iter(self.data.epoch(epoch, self.batch))
        if self.batch:
            checkpoint.set_random_state(now)
        if isinstance(self.data, Loader):  # a user's may be drawing from the generators that are saved
            batches = self.signals.between(batches)
        return itertools.islice(batches, self.steps and self.steps - self.step)

    def _evaluate(self) -> dict[str, dict[str, float]]:
        """Every student's metrics on validation, the averaged weights' where there are any; the best is kept."""
        if self.val is None:
            return {}
        at_once = self.signals.at_once() if isinstance(self.val, Loader) else contextlib.nullcontext()
        with self.average or contextlib.nullcontext():
            with at_once:
                logits, labels = predict(self.own, self.val.epoch(0))
            values = measured(self.ranks.everyones(logits), labels)
            here = [v["top1"] for name, v in values.items() if name not in self.left]
            mean = sum(here) / max(len(here), 1)
            if self.settings.select == "best" and (self.best is None or mean > self.best[0]):
                self.best = mean, {key: value.clone() for key, value in self.method.state_dict().items()}
        return values

    def _take_what_counts(self) -> None:
        """At the end of a phase: the method gets its best epoch's weights, or the average, where it was asked for."""
        if self.best:
            self.method.load_state_dict(self.best[1])
        elif self.average:
            self.average.swap()

    def check(self) -> None:
        """Raises: Diverged if what was recorded since the epoch began, or a student's weights, is not finite."""
        self.recorder.check(self.phase * self.epochs + self.epoch)
        self._see_who_left()
        own = [name for name, net in self.own.items() if not is_whole(net)]
        bad = [name for name in self.students if any(name in each for each in self.ranks.everyone(own))]
        self._end_if_over(bad, f"weights of {', '.join(bad)} are not finite" if bad else "")

    def _who_left(self) -> dict[str, int]:
        flags = self.method.left()
        return {} if flags is None else {n: at for n, at in zip(self.students, flags.tolist(), strict=True) if at >= 0}

    def _see_who_left(self) -> None:
        self.ranks.merge_left()
        if (left := self._who_left()) != self.left:
            self.left, self.best = left, None  # an epoch's mean over all is not compared with that over some

    def _over(self, bad: Collection[str]) -> bool:
        """Whether the run is over if these students, and those that have left, are not finite."""
        isolates = self.settings.on_divergence != "stop" and self.method.left() is not None
        gone = {*bad, *self.left}
        return len(gone) == len(self.students) if isolates else bool(gone)

    def _end_if_over(self, bad: Collection[str], why: str) -> None:
        reasons = schemas.who_left(self.left), why
        if self._over(bad):
            raise Diverged(f"training diverged at step {self.step}: {'; '.join(filter(None, reasons))}; {ADVICE}")

    def leave(self, bad: Collection[str], why: str) -> None:
        """After the last step: these students are not finite either. Raises: Diverged if that ends the run."""
        self._end_if_over(bad, why)
        flags = self.method.left()
        assert flags is not None
        flags[[name in bad for name in self.students]] = self.step
        self._see_who_left()

    @torch.no_grad()
    def _check_first(self, batch: Batch) -> None:
        """Once, before the first step: every student returns logits, and has an output for every label."""
        ids = losses.class_ids(batch.labels)
        high, low = int(ids.max()), int(ids.min())
        outputs = []
        with evaluating(self.own.values()):
            for name, net in self.own.items():
                logits = call(net, batch.inputs[0])
                if len(logits) != len(batch.labels):
                    size = len(batch.labels)
                    raise InputError(f"{name}: found {list(logits.shape)}; must return logits, [{size}, classes]")
                if high >= logits.shape[1] or low < 0:
                    bad = high if low >= 0 else low
                    raise InputError(f"data: found class {bad}; {name} has {logits.shape[1]} outputs")
                outputs.append(logits.shape[1])
        for loader in (self.data, self.val, self.test):
            if isinstance(loader, Adapted):
                loader.classes = min(outputs)

    # What is saved --------------------------------------------------------------------------------------------------

    def state(self) -> checkpoint.State:
        """Everything that decides the future."""
        best = self.best or (None, {})
        values = {"step": self.step, "epoch": self.epoch, "batch": self.batch, "phase": self.phase, "best": best[0]}
        values |= {"sound": self.sound, "same_views": self.same_views}
        return checkpoint.pack(
            loop=checkpoint.State({}, values),
            method=checkpoint.State(self.method.state_dict(), {}),
            best=checkpoint.State(best[1], {}),
            average=checkpoint.State(self.average.values if self.average else {}, {}),
            optimizer=checkpoint.optimizer_state(self.optimizer),
            recorder=checkpoint.State(*self.recorder.state()),
            random=checkpoint.random_state(),
            epoch_random=self.epoch_random,
            revival=self.revival.state(),
        )

    def restore(self, state: checkpoint.State) -> None:
        """The reverse of `state`."""
        state = self.ranks.mine(state)
        values = checkpoint.unpack(state, "loop").values
        self.phase = values["phase"]
        self._start_phase()
        self.step, self.epoch, self.batch = values["step"], values["epoch"], values["batch"]
        self.sound, self.same_views = values["sound"], values.get("same_views", False)
        self.progress.step.fill_(self.step)
        self.progress.epoch.fill_(self.epoch)
        if values["best"] is not None:
            best = checkpoint.unpack(state, "best").tensors
            self.method.load_state_dict(best)  # so that what does not fit is found now
            self.best = values["best"], {name: value.to(self.device) for name, value in best.items()}
        self.method.load_state_dict(checkpoint.unpack(state, "method").tensors)
        self.left = self._who_left()
        if self.average:
            self.average.load(checkpoint.unpack(state, "average").tensors)
        self.revival.restore(state)
        checkpoint.load_optimizer(self.optimizer, checkpoint.unpack(state, "optimizer"))
        self.ranks.forget(self.optimizer)
        self.recorder.restore(*checkpoint.unpack(state, "recorder"))
        self.epoch_random = checkpoint.unpack(state, "epoch_random")
        checkpoint.set_random_state(checkpoint.unpack(state, "random"))

    def save(self) -> None:
        """Write a checkpoint. Raises: InputError if it cannot be written; Diverged if it would not be a good one."""
        self.recorder.stop()
        self.check()
        state = self.ranks.whole(self.state())
        with self.ranks.together():
            if self.out:
                checkpoint.write(self.out / "checkpoints", self._number(), state, self.sound)
        self.recorder.start()

    def end_at(self, step: int) -> None:
        """A finished run is finished where it ended, if `on_epoch` ended it."""
        if step < (self.steps or self.epochs * (self.per_epoch or 0)):
            self.enough, self.on_epoch = self.batch == 0 and self.step >= step, lambda line: line["step"] >= step

    def _number(self) -> int:
        return self.phase * 10**9 + self.step

    def _stop(self, signal: int) -> None:
        self.save()
        raise Stopped(signal, f"stopped after step {self.step}, saved; go on with --out {self.out} --resume")

    def say(self, line: str) -> None:
        """Print a line, unless the run is quiet."""
        if self.recorder.screen:
            print(line, flush=True)

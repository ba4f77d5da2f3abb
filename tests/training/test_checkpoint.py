"""Kill it anywhere; resume to the same bits. In process: every method, at an epoch's end and at a random step."""

from __future__ import annotations

import importlib
import json
import math
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from safetensors.torch import load
from test_all_methods import build, data
from torch import nn

import teacherless as tl
from teacherless import models
from teacherless.data import images
from teacherless.errors import Diverged, InputError, Stopped, extra
from teacherless.files import disk
from teacherless.method import Batch, Method, Output
from teacherless.methods import METHODS
from teacherless.runs.config import Run
from teacherless.runs.execute import execute
from teacherless.training import checkpoint, folder
from teacherless.training.record import Recorder
from teacherless.training.settings import Settings, read
from teacherless.training.stop import Signals

TIMES = {"img_per_s", "seconds", "train_seconds", "files"}  # files: one of the checksums is of a file of times


class Data:
    """Four batches whose order and noise come from the global generators; it can send a signal at a step."""

    def __init__(
        self, method: Method, stop_at: int | None = None, spoil_at: int | None = None, blow_up_at: int | None = None
    ) -> None:
        self.batch, self.stop_at, self.given = data(method), stop_at, 0
        self.last, self.spoil_at, self.blow_up_at = list(method.students().values())[-1], spoil_at, blow_up_at

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(64)
        for rows in order.split(16):
            self.given += 1
            if self.given == self.stop_at:
                signal.raise_signal(signal.SIGTERM)
            if self.given == self.spoil_at:
                next(self.last.parameters()).data.fill_(math.nan)
            if self.given == self.blow_up_at:  # the loss of this step is finite, the weights after it are not
                next(self.last.parameters()).register_hook(lambda grad: grad * math.inf)
            noise = random.random() + float(np.random.rand())  # an augmentation of the user's own
            inputs = tuple(x[rows] + 0.1 * noise for x in self.batch.inputs)
            yield Batch(inputs, self.batch.labels[rows], rows)


def fit(name: str, out: Path, *, resume: bool = False, **settings: Any) -> tl.Method:
    method = build(name)
    at = {key: settings.pop(key, None) for key in ("stop_at", "spoil_at", "blow_up_at")}
    settings = {"epochs": 4, "select": "best", "opt": "sgd", "checkpoint_every": "1e", "quiet": True} | settings
    loader = Data(method, **at)
    val = [(data(method, 5).inputs[0], data(method, 5).labels)]
    random.seed(0)
    np.random.seed(0)
    tl.train(method, loader, val, val, out=out, resume=resume, **settings)
    return method


def contents(out: Path) -> dict[str, Any]:
    """Everything a run leaves, apart from times."""
    found: dict[str, Any] = {}
    for path in sorted((out / "students").rglob("*")):
        if path.is_file():
            found[str(path.relative_to(out))] = path.read_bytes()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found["metrics"] = [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
    found["summary"] = {k: v for k, v in json.loads((out / "summary.json").read_text()).items() if k not in TIMES}
    return found


@pytest.mark.parametrize(
    ("name", "engine", "amp"),
    [*((name, "loop", False) for name in METHODS), ("dml", "threads", False), ("dml", "threads", True)],
)
def test_resume_is_the_same_bits(name: str, engine: str, amp: bool, tmp_path: Path) -> None:
    straight, halves, anywhere = tmp_path / "straight", tmp_path / "halves", tmp_path / "anywhere"
    how = {"engine": engine, "amp_anyway": amp}
    fit(name, straight, **how)
    method = build(name)
    steps = 4 * method.share(4) * len(method.phases)
    draw = random.Random(name)
    for out, stop in ((halves, 9), (anywhere, draw.choice([s for s in range(2, steps) if s != 9]))):
        with pytest.raises(Stopped) as stopped:
            fit(name, out, stop_at=stop, **how)
        assert stopped.value.signal == signal.SIGTERM
        assert not (out / "summary.json").exists()
        torch.manual_seed(12345)  # whatever happened meanwhile
        fit(name, out, resume=True, **how)
        assert contents(out) == contents(straight), (name, stop)


@pytest.mark.parametrize("engine", ["loop", "threads"])
def test_a_peer_that_goes_bad_is_named_and_the_last_good_checkpoint_is_kept(engine: str, tmp_path: Path) -> None:
    """peer1's weights are spoiled before step 7, in the second epoch of four steps."""
    out, how = tmp_path / "run", {"checkpoint_every": "1s", "engine": engine}
    fit("dml", tmp_path / "straight", **how)
    with pytest.raises(
        Diverged, match="at step 7: peer1 not finite since step 6; weights of peer1 are not finite; try a"
    ):
        fit("dml", out, spoil_at=7, on_divergence="stop", **how)
    assert [path.name for path in checkpoint.steps(out / "checkpoints")] == ["0000000004"]
    fit("dml", out, resume=True, on_divergence="stop", **how)
    assert contents(out) == contents(tmp_path / "straight")


def test_weights_that_blow_up_before_a_checkpoint_are_not_saved(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Diverged, match="at step 6: weights of student are not finite"):
        fit("plain", out, blow_up_at=6, checkpoint_every="1s")
    assert [path.name for path in checkpoint.steps(out / "checkpoints")] == ["0000000004"]


def test_time_spent_saving_is_not_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "write", lambda *_: time.sleep(0.5))
    fit("plain", tmp_path / "run", checkpoint_every="1s", epochs=2)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["seconds"] for line in lines) < 2, "eight times half a second were spent saving"


def test_a_sound_checkpoint_is_kept_however_many_follow(tmp_path: Path) -> None:
    for step in range(1, 7):
        checkpoint.write(tmp_path, step, checkpoint.random_state(), sound=2)
    assert [int(path.name) for path in checkpoint.steps(tmp_path)] == [6, 5, 2]


def test_terms_are_summed_in_their_own_order_after_a_resume() -> None:
    """1e16 + 1 - 1e16 is 0 or 1, as you like it."""
    terms = {"z": 1e16, "b": 1.0, "a": -1e16}
    output = Output({name: torch.tensor(x, dtype=torch.double) for name, x in terms.items()}, torch.zeros(1, 4, 2))
    straight, resumed = Recorder(["student"], 1, 1, quiet=True), Recorder(["student"], 1, 1, quiet=True)
    straight.step(output, torch.zeros(4, dtype=torch.long))
    sums, values = straight.state()
    resumed.restore(dict(sorted(sums.items())), json.loads(json.dumps(values)))
    for recorder in (straight, resumed):
        recorder.stop()
    lines = [recorder.epoch(0, 1, 0.1, {}) for recorder in (straight, resumed)]
    assert lines[0]["train/loss"] == lines[1]["train/loss"] == 0.0


@pytest.mark.parametrize("opt", ["adam", "adamw"])
def test_other_optimizers_resume_too(opt: str, tmp_path: Path) -> None:
    fit("dml", tmp_path / "a", opt=opt, lr=1e-3)
    with pytest.raises(Stopped):
        fit("dml", tmp_path / "b", opt=opt, lr=1e-3, stop_at=7)
    fit("dml", tmp_path / "b", opt=opt, lr=1e-3, resume=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_dropout_resumes(tmp_path: Path) -> None:
    def fit_dropout(out: Path, **more: Any) -> None:
        method = tl.Plain(nn.Sequential(tiny(0), nn.Dropout(0.5)))
        random.seed(0)
        np.random.seed(0)
        tl.train(method, Data(method, more.pop("stop_at", None)), epochs=2, out=out, quiet=True, **more)

    fit_dropout(tmp_path / "a")
    with pytest.raises(Stopped):
        fit_dropout(tmp_path / "b", stop_at=3)
    fit_dropout(tmp_path / "b", resume=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_nothing_saved_yet_starts_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit("plain", tmp_path / "a")
    fit("plain", tmp_path / "b", resume=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    with pytest.raises(Stopped):
        fit("plain", tmp_path / "c", stop_at=2)
    shutil.rmtree(tmp_path / "c" / "checkpoints")
    fit("plain", tmp_path / "c", resume=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "c")


def test_a_finished_run_stays_finished(tmp_path: Path) -> None:
    fit("plain", tmp_path / "a")
    before = contents(tmp_path / "a")
    fit("plain", tmp_path / "a", resume=True)
    assert contents(tmp_path / "a") == before


def test_a_run_that_goes_on_elsewhere_says_what_may_round_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Stopped):
        fit("plain", tmp_path / "a", stop_at=3)
    run = json.loads((tmp_path / "a" / "run.json").read_text())
    here = run["threads"]
    (tmp_path / "a" / "run.json").write_text(json.dumps(run | {"threads": here + 2, "versions": {"torch": "2.7.1"}}))
    fit("plain", tmp_path / "a", resume=True, quiet=False)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("begun with")]
    assert said == [
        f"begun with torch 2.7.1, goes on with {torch.__version__}: the same but for rounding",
        f"begun with threads {here + 2}, goes on with {here}: the same but for rounding",
    ]


def test_changed_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        fit("plain", tmp_path / "a", stop_at=3)
    with pytest.raises(InputError, match=r"lr was 0\.1, is 0\.2; seed was 0, is 1$"):
        fit("plain", tmp_path / "a", resume=True, lr=0.2, seed=1)
    with pytest.raises(InputError, match=r"epochs was 4, is 6; resume_anyway goes on with these"):
        fit("plain", tmp_path / "a", resume=True, epochs=6)
    with pytest.raises(InputError, match="unfinished run; go on with resume"):
        fit("plain", tmp_path / "a")
    fit("plain", tmp_path / "a", resume_anyway=True, epochs=6)
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["epochs"] == 6


def saved(tmp_path: Path) -> Path:
    """A stopped run with two checkpoints."""
    with pytest.raises(Stopped):
        fit("dml", tmp_path / "run", stop_at=11)
    assert len(checkpoint.steps(tmp_path / "run" / "checkpoints")) == 2
    return tmp_path / "run"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "SHA256SUMS"])
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(file: str, damage: Any, tmp_path: Path) -> None:
    run = saved(tmp_path)
    newest, before = checkpoint.steps(run / "checkpoints")
    damage(newest / file)
    found = checkpoint.read(run / "checkpoints")
    assert found is not None
    _, used, complaints = found
    assert used == before
    assert len(complaints) == 1
    assert str(newest) in complaints[0]
    assert newest.exists(), "nothing is deleted"
    fit("dml", run, resume=True)
    fit("dml", tmp_path / "straight")
    assert contents(run) == contents(tmp_path / "straight")


@pytest.mark.parametrize("file", ["students/peer1/model.safetensors", "students/peer0/config.json", "metrics.jsonl"])
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, Path.unlink])
def test_what_a_finished_run_lost_comes_back_from_the_checkpoint(
    file: str, damage: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    fit("dml", run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    damage(run / file)
    fit("dml", run, resume=True, quiet=False)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert f"missing or damaged, and written again from {run / 'checkpoints'}" in capsys.readouterr().out
    shutil.rmtree(run / "checkpoints")
    damage(run / file)
    with pytest.raises(InputError, match=f"{file}: is missing or damaged, and there is no checkpoint to mend it from"):
        fit("dml", run, resume=True)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("checkpoints", [True, False])
def test_a_finished_run_hands_back_what_it_shipped(name: str, checkpoints: bool, tmp_path: Path) -> None:
    fit(name, tmp_path / "run")
    if not checkpoints:
        shutil.rmtree(tmp_path / "run" / "checkpoints")
    again = fit(name, tmp_path / "run", resume=True)
    for student, net in again.students().items():
        shipped = load((tmp_path / "run" / "students" / student / "model.safetensors").read_bytes())
        assert all(torch.equal(shipped[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("every", ["1e", "4s", "10m"])
def test_a_run_that_on_epoch_ended_stays_as_it_ended(every: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    method = fit("dml", run, checkpoint_every=every, on_epoch=lambda line: line["epoch"] == 1)
    again = fit("dml", run, checkpoint_every=every, resume=True)
    assert all(map(torch.equal, method.state_dict().values(), again.state_dict().values()))


def test_more_steps_of_the_same_epoch(tmp_path: Path) -> None:
    """20 batches an epoch: 26 steps and 28 both end in the second epoch; it is gone on with where it was cut."""

    def go(out: Path, steps: int, **more: Any) -> None:
        how = {"batch_size": 64, "sched": "constant", "student": ("small-cnn,width=4",), "peers": 2}
        execute(Run(method="dml", steps=steps, **how), out, quiet=True, **more)

    go(tmp_path / "a", 28)
    go(tmp_path / "b", 26)
    with pytest.raises(InputError, match="steps was 26, is 28; --resume-anyway goes on with these"):
        go(tmp_path / "b", 28, resume=True)
    go(tmp_path / "b", 28, resume=True, anyway=True)
    assert json.loads((tmp_path / "b" / "summary.json").read_text())["steps"] == 28
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_no_whole_checkpoint_is_one_clear_line(tmp_path: Path) -> None:
    run = saved(tmp_path)
    for path in checkpoint.steps(run / "checkpoints"):
        flip_a_bit(path / "tensors.safetensors")
    with pytest.raises(InputError, match=r"no whole checkpoint: .*does not have its checksum.*; start again"):
        fit("dml", run, resume=True)
    assert len(checkpoint.steps(run / "checkpoints")) == 2


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    run = saved(tmp_path)
    monkeypatch.undo()
    with pytest.raises(InputError, match="found checkpoint format 99; this version reads 3"):
        fit("dml", run, resume=True)


def test_full_disk_while_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = saved(tmp_path)
    before = {p: p.read_bytes() for p in (run / "checkpoints").rglob("*") if p.is_file()}

    write = disk.write_flushed

    def full(path: Path, content: bytes) -> None:
        if "checkpoints" not in path.parts:
            return write(path, content)
        path.write_bytes(content[: len(content) // 2])
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(disk, "write_flushed", full)
    with pytest.raises(InputError, match=r"cannot save a checkpoint in .*: No space left on device; the last whole"):
        fit("dml", run, resume=True)
    assert before == {p: p.read_bytes() for p in (run / "checkpoints").rglob("*") if p.is_file()}
    monkeypatch.undo()
    fit("dml", run, resume=True)
    fit("dml", tmp_path / "straight")
    assert contents(run) == contents(tmp_path / "straight")


def test_two_processes_on_one_folder(tmp_path: Path) -> None:
    with (
        folder.locked(tmp_path),
        pytest.raises(InputError, match="in use by another process"),
        folder.locked(tmp_path),
    ):
        pass


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with Signals() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.asked == signal.SIGINT
        with pytest.raises(Stopped, match="at once"):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_nothing_takes_a_stop_for_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A network, an image and a package may raise anything, which becomes a line about them; a stop stays one."""

    def stop(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    def asked(what: Callable[[], object]) -> None:
        with Signals() as signals, pytest.raises(Stopped, match="at once"), signals.at_once():
            what()

    monkeypatch.setitem(models.MODELS, "stops", stop)
    monkeypatch.setattr(images, "_regular", stop)
    monkeypatch.setattr(importlib, "import_module", stop)
    asked(lambda: models.create("stops", num_classes=2))
    asked(lambda: images.read(tmp_path / "a.png", (8, 8), 3))
    asked(lambda: extra("timm", "timm/x"))


def test_every() -> None:
    for text in ("10", "0s", "2h", "-1e", "e", "5s\n"):
        with pytest.raises(InputError, match=r"--checkpoint-every: found .*; must be like 10m"):
            read(Settings, {"checkpoint_every": text})
    assert [checkpoint.Every("3s").due(step, None) for step in range(1, 7)] == [False, False, True] * 2
    assert not checkpoint.Every("2e").due(4, None)
    assert checkpoint.Every("2e").due(4, 2)
    assert not checkpoint.Every("500s").due(0, 1), "the end of an epoch is no step"
    every = checkpoint.Every("1m")
    assert not every.due(1, 1)
    every.saved -= 61
    assert every.due(2, None)
    assert not every.due(3, None)


class SignalsOnReading(list[Any]):
    """Validation data; reading it for the n-th time sends a SIGTERM."""

    def __init__(self, items: list[Any], at: int) -> None:
        super().__init__(items)
        self.at, self.read = at, 0

    def __iter__(self) -> Iterator[Any]:
        self.read += 1
        if self.read == self.at:
            signal.raise_signal(signal.SIGTERM)
        return super().__iter__()


def test_a_signal_during_evaluation(tmp_path: Path) -> None:
    """The evaluation is finished and its line is written; the run goes on from the next epoch."""

    def fit_plain(out: Path, at: int = 0, **more: Any) -> None:
        items = [(data(build("plain"), 5).inputs[0], data(build("plain"), 5).labels)]
        random.seed(0)
        np.random.seed(0)
        method = build("plain")
        tl.train(method, Data(method), SignalsOnReading(items, at), epochs=3, out=out, quiet=True, **more)

    fit_plain(tmp_path / "a")
    with pytest.raises(Stopped):
        fit_plain(tmp_path / "b", at=2)
    assert len((tmp_path / "b" / "metrics.jsonl").read_text().splitlines()) == 2
    assert not list((tmp_path / "b").rglob("*.part*"))
    fit_plain(tmp_path / "b", resume=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_run_from_before_a_setting_was_there(tmp_path: Path) -> None:
    """It goes on as it was, and not with another value of that setting."""
    from teacherless.training import folder

    before = {"settings": {"lr": 0.1}, "data": {}, "engine": "loop"}
    folder.compare(before, {**before, "settings": {"lr": 0.1, "exchange_every": 1}}, anyway=False)
    with pytest.raises(InputError, match="exchange_every was 1, is 10"):
        folder.compare(before, {**before, "settings": {"lr": 0.1, "exchange_every": 10}}, anyway=False)

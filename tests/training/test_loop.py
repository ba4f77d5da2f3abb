"""train() in Python: data of every shape, rates, selection, what it writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from conftest import batch, tiny
from torch import nn

import teacherless as tl
from teacherless.method import Output
from teacherless.training.record import Recorder
from teacherless.training.settings import Settings, SettingsDict
from teacherless.training.step import make_optimizer, rate, set_rates, train_step


def pairs(n: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(b.inputs[0], b.labels) for b in map(batch, range(n))]


@pytest.mark.parametrize(
    "shape",
    [
        lambda x, y: (x, y),
        lambda x, y: [x, y],
        lambda x, y: {"image": x, "label": y},
        lambda x, y: {"pixel_values": x, "labels": y.to(torch.int32)},
        lambda x, y: tl.Batch((x,), y),
        lambda x, y: ((x,), y),
        lambda x, y: (x, y, torch.arange(len(y))),
    ],
)
def test_any_loader(shape: Any) -> None:
    method = tl.Plain(tiny(0))
    result = tl.train(method, [shape(*p) for p in pairs()], pairs(1), pairs(1), epochs=2, quiet=True)
    assert len(result.history) == 2
    assert result.summary["students"]["student"]["test_top1"] is not None


def test_writes_nothing_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tl.train(tl.Plain(tiny(0)), pairs(), epochs=1, quiet=True)
    assert not list(tmp_path.iterdir())
    result = tl.train(tl.DML(tiny(0), tiny(1)), pairs(), pairs(1), epochs=2, quiet=True, out=tmp_path / "run")
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {"run.json", "metrics.jsonl", "summary.json", "students"}
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == result.summary
    again = tl.load_student(tmp_path / "run" / "students" / "peer1", net=tiny(5)).net
    x = batch().inputs[0]
    with torch.no_grad():
        assert torch.equal(again.eval()(x), result.method.students()["peer1"].eval()(x))
    with pytest.raises(tl.InputError, match="finished run"):
        tl.train(tl.Plain(tiny(0)), pairs(), epochs=1, quiet=True, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "no batches in epoch 0"),
        ([(1, 2, 3, 4)], "found a tuple of 4; must be"),
        ([{"picture": 1}], "needs one of"),
        ([object()], "found a object"),
    ],
)
def test_data_that_cannot_be_read(data: Any, words: str) -> None:
    with pytest.raises(tl.InputError, match=words):
        tl.train(tl.Plain(tiny(0)), data, epochs=1, quiet=True)


def test_a_generator_is_read_once() -> None:
    def once() -> Iterator[Any]:
        yield from pairs()

    with pytest.raises(tl.InputError, match="generator can be read only once"):
        tl.train(tl.Plain(tiny(0)), once(), epochs=2, quiet=True)


def test_a_loader_that_cannot_give_what_is_wanted() -> None:
    with pytest.raises(tl.InputError, match="wants 2 views"):
        tl.train(tl.DML(tiny(0), views=2), pairs(), epochs=1, quiet=True)


def test_labels_the_network_does_not_have() -> None:
    x, y = pairs(1)[0]
    with pytest.raises(tl.InputError, match="found class 9"):
        tl.train(tl.Plain(tiny(0)), [(x, y + 5)], epochs=1, quiet=True)


@pytest.mark.parametrize("bad", [{"epoch": 3}, {"lr": 0}, {"epochs": 1.5}, {"sched": "cosin"}, {"smoothing": 1.0}])
def test_settings_are_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(tl.InputError):
        tl.train(tl.Plain(tiny(0)), pairs(), quiet=True, **bad)


def test_select_best_ships_the_best_epoch() -> None:
    """Validation has the wrong labels, so the more is learnt, the worse it gets."""
    val = [(x, (y + 1) % 5) for x, y in pairs()]
    result = tl.train(tl.Plain(tiny(3)), pairs(), val, epochs=12, sched="constant", select="best", quiet=True)
    seen = [line["val/top1/student"] for line in result.history]
    assert seen[-1] < max(seen), "the test needs a last epoch that is not the best"
    assert result.summary["students"]["student"]["val_top1"] == max(seen)


def test_steps_stop_in_the_middle_of_an_epoch() -> None:
    result = tl.train(tl.Plain(tiny(0)), pairs(3), steps=4, quiet=True)
    assert [line["step"] for line in result.history] == [3, 4]


def test_rates() -> None:
    def rates(total: int = 12, per_epoch: int = 2, **settings: Any) -> list[float]:
        return [rate(Settings(**settings), step, per_epoch, total) for step in range(total)]

    assert rates(sched="constant") == [1.0] * 12
    cosine = rates(sched="cosine")
    assert cosine[0] == 1
    assert cosine[6] == pytest.approx(0.5)
    assert cosine == sorted(cosine, reverse=True)
    assert rates(sched="step", decay_milestones=(1, 4)) == pytest.approx([1, 1, *[0.1] * 6, *[0.01] * 4])
    assert rates(sched="step", decay_epochs=3, decay_rate=0.5) == pytest.approx([*[1] * 6, *[0.5] * 6])
    assert rates(sched="step", epochs=6) == pytest.approx([*[1] * 4, *[0.1] * 4, *[0.01] * 4])
    assert rates(sched="constant", warmup_epochs=2)[:5] == pytest.approx([0.25, 0.5, 0.75, 1, 1])


def test_each_student_keeps_its_own_rate() -> None:
    groups = tl.DML(tiny(0), tiny(1)).param_groups()
    own = {"peer1": {"lr": 0.02, "weight_decay": 0.0, "momentum": 0.5}}
    optimizer = make_optimizer(groups, Settings(lr=0.1, weight_decay=1e-3), own)
    set_rates(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.01])
    assert [group["momentum"] for group in optimizer.param_groups] == [0.9, 0.5]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-3, 0.0]
    with pytest.raises(tl.InputError, match="peer7"):
        make_optimizer(groups, Settings(), {"peer7": {"lr": 1.0}})
    with pytest.raises(tl.InputError, match="momentum is of sgd"):
        make_optimizer(groups, Settings(opt="adam"), own)


class Two(tl.Method):
    """Two parameters, each with a gradient of its own size."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.a, self.b, self.scale = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3)), scale

    def forward(self, batch: tl.Batch, progress: tl.Progress = tl.Progress()) -> tl.Output:
        return tl.Output({"a": 5 * self.a.sum(), "b": self.scale * self.b.sum()}, torch.zeros(1, 1, 2))

    def param_groups(self) -> list[dict[str, Any]]:
        return [{"name": "a", "params": [self.a]}, {"name": "b", "params": [self.b]}]


def test_clipping_is_per_student() -> None:
    """A peer's step must not depend on how large its peers' gradients are."""
    for scale in (0.1, 1000.0):
        method = Two(scale)
        optimizer = make_optimizer(method.param_groups(), Settings(lr=1, momentum=0, weight_decay=0), {})
        train_step(method, optimizer, batch(), tl.Progress(), clip=1.0)
        assert float(method.a.detach().norm()) == pytest.approx(1, rel=1e-4)
        assert float(method.b.detach().norm()) == pytest.approx(min(1, 0.1 * 3**0.5) if scale < 1 else 1, rel=1e-4)


def test_class_weights(tmp_path: Path) -> None:
    """As in a loop by hand; of this call alone; a run keeps its own."""
    weights = [1.0, 2.0, 0.0, 1.0, 0.5]
    method, other = tl.Plain(tiny(0)), tl.Plain(tiny(0))
    tl.train(method, pairs(), epochs=1, quiet=True, class_weights=weights, out=tmp_path / "run")
    assert method.class_weights is None
    other.class_weights = torch.tensor(weights)
    tl.train(other, pairs(), epochs=1, quiet=True)
    plain = tl.train(tl.Plain(tiny(0)), pairs(), epochs=1, quiet=True).method
    mine, theirs, without = (list(each.state_dict().values()) for each in (method, other, plain))
    assert all(map(torch.equal, mine, theirs)) and not all(map(torch.equal, mine, without))
    again = {"epochs": 2, "quiet": True, "out": tmp_path / "run", "resume_anyway": True}
    with pytest.raises(tl.InputError, match="weight of each class is not the same"):
        tl.train(tl.Plain(tiny(0)), pairs(), **again)
    tl.train(tl.Plain(tiny(0)), pairs(), **again, class_weights=weights)
    for wrong, said in (
        ([1.0, 2.0], "another number of classes"),
        ([1.0] * 7, "another number of classes"),
        ([-1.0] * 5, "0 or more"),
        ([[1.0]], "each class"),
    ):
        with pytest.raises(tl.InputError, match=said):
            tl.train(tl.Plain(tiny(0)), pairs(), epochs=1, quiet=True, class_weights=wrong)  # type: ignore[arg-type]


def test_smoothing_reaches_every_method() -> None:
    data = pairs(1)
    hard = tl.train(tl.Plain(tiny(0)), data, epochs=1, quiet=True)
    soft = tl.train(tl.Plain(tiny(0)), data, epochs=1, smoothing=0.2, quiet=True)
    assert soft.history[0]["train/ce"] != hard.history[0]["train/ce"]
    assert soft.history[0]["train/nll/student"] == hard.history[0]["train/nll/student"]


def test_sums_of_a_checkpoint_follow_the_device() -> None:
    """A checkpoint is read to the CPU; what it holds is added to what a step makes on its own device."""
    recorder = Recorder(["student"], 1, None, quiet=True)
    logits = torch.zeros(1, 4, 3, device="meta")
    saved = {"train/ce": torch.tensor(1.0), "students": torch.ones(4, 1)}
    recorder.restore(
        saved, {"terms": list(saved), "count": 4, "seconds": 0.0, "images": 0, "history": [], "spent": 0.0}
    )
    recorder.step(Output({"ce": logits.sum()}, logits), torch.zeros(4, dtype=torch.long, device="meta"))
    assert {value.device.type for value in recorder.sums.values()} == {"meta"}


class Mute(nn.Module):
    """A network that says the same of every image: its logits do not depend on it."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(x), -1)


def test_a_dead_network_is_not_chosen() -> None:
    easy = [batch()._replace(labels=torch.zeros(6, dtype=torch.long))]  # whoever always says 0 has all of it
    result = tl.train(tl.DML(Mute([0.0] * 5), tiny(1)), [batch(0)], easy, easy, epochs=1, lr=1e-6, quiet=True)
    rows = result.summary["students"]
    assert rows["peer0"]["val_top1"] == 100 > rows["peer1"]["val_top1"]
    assert (result.summary["chosen"], result.summary["dead"]) == ("peer1", ["peer0"])
    assert result.history[-1]["train/top1/peer0"] == pytest.approx(100 * 2 / 6)  # two of six labels are 0
    alone = tl.train(tl.Plain(Mute([0.0] * 5)), [batch(0)], easy, epochs=1, lr=1e-6, quiet=True).summary
    assert (alone["chosen"], alone["dead"]) == ("student", ["student"])
    assert "dead" not in tl.train(tl.Plain(tiny(1)), [batch(0)], easy, epochs=1, quiet=True).summary


# For who calls it from Python -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "words"), [
    (lambda: tl.train(tiny(0), pairs()), r"method: found a Staged; must be a method, such as tl.Plain\(net\)"),
    (lambda: tl.train(tl.Plain(tiny(0)), pairs(), lr=-1), "^lr: found -1"),
    (lambda: tl.train(tl.Plain(tiny(0)), pairs(), clip_grad=0), "^clip_grad: found 0"),
    (lambda: tl.train(tl.Plain(tiny(0)), pairs(), epochs=1, steps=1), "give epochs or steps, not both"),
    (lambda: tl.train(tl.Plain(tiny(0)), pairs(), engine="graph"), "^engine: found graph"),
    (lambda: tl.train(tl.Plain(tiny(0)), iter(pairs()), steps=2), "^steps: the training data has no length"),
    (lambda: tl.train(tl.Plain(tiny(0)), pairs(), device="gpu"), "^device: found gpu"),
    (lambda: tl.train(tl.Plain(tiny(0)), pairs(), device="meta"), "^device: found meta"),
    (lambda: tl.train(tl.DML(tiny(0), tiny(1)), pairs(), per_student={"peer1": {"learning_rate": 0.0}}),
     "unknown per_student setting of peer1 'learning_rate'"),
    (lambda: tl.train(tl.DML(tiny(0, classes=4), tiny(1)), [(batch().inputs[0], torch.arange(6) % 4)]),
     "peers of 4 and 5 classes"),
    (lambda: tl.train(tl.ONE(tiny(0)), [(x[:1], y[:1]) for x, y in pairs()]), "a batch of 1 sample.*drop_last=True"),
    (lambda: tl.train(tl.Plain(tiny(0)), [(x.to(torch.uint8), y) for x, y in pairs()]), r"uint8.*x.float\(\) / 255"),
])  # fmt: skip
def test_errors_name_pythons_arguments(call: Any, words: str) -> None:
    with pytest.raises(tl.InputError, match=words) as caught:
        call()
    assert "--" not in str(caught.value)


def test_arrays_float64_and_mixed_labels() -> None:
    x, y = np.random.default_rng(0).normal(size=(150, 1, 8, 8)), np.arange(150) % 5
    result = tl.train(tl.Plain(tiny(0)), (x, y), (x, y), epochs=2, quiet=True)
    assert result.history[-1]["step"] == 4  # two batches of 64 an epoch
    mixed = [(torch.from_numpy(x[:20]), torch.eye(5)[torch.from_numpy(y[:20])] * 0.7 + 0.06)]
    tl.train(tl.DML(tiny(0), tiny(1)), mixed, epochs=1, quiet=True)
    with pytest.raises(tl.InputError, match="shares of classes; to evaluate, they must be class ids"):
        tl.train(tl.Plain(tiny(0)), mixed, mixed, epochs=1, quiet=True)


def test_on_epoch_sees_every_line_and_ends_the_training(tmp_path: Path) -> None:
    seen: list[Any] = []
    run: dict[str, Any] = {"epochs": 5, "quiet": True, "out": tmp_path / "run"}

    def stop(line: Any) -> bool:
        seen.append(line)
        return len(seen) == 2

    result = tl.train(tl.Plain(tiny(0)), pairs(), pairs(1), on_epoch=stop, **run)
    assert seen == result.history and len(seen) == 2
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_result_is_short() -> None:
    result = tl.train(tl.DML(tiny(0), tiny(1)), pairs(), pairs(1), epochs=2, quiet=True)
    assert re.fullmatch(r"Result\(dml, 2 epochs; top-1 peer0 [\d.]+, peer1 [\d.]+; out=None\)", repr(result))


def test_settings_for_type_checkers_are_the_settings() -> None:
    fields = get_type_hints(Settings)
    assert get_type_hints(SettingsDict) == {name: fields[name] for name in Settings.model_fields}


def test_several_processes_without_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(tl.InputError, match="WORLD_SIZE: found 2, and no RANK; start the ranks with torchrun"):
        tl.train(tl.Plain(tiny(0)), pairs(), epochs=1, quiet=True)


def test_what_was_put_around_a_peer_is_not_shipped(tmp_path: Path) -> None:
    inner = tiny(0)
    inner.stages[1] = torch.compile(inner.stages[1], backend="eager")
    peers = [torch.compile(inner, backend="eager"), nn.DataParallel(tiny(1)), tiny(2)]
    tl.train(tl.DML(*peers), pairs(), epochs=1, quiet=True, out=tmp_path / "run")
    for i, peer in enumerate([inner, peers[1].module, peers[2]]):
        again = tl.load_student(tmp_path / "run" / "students" / f"peer{i}", net=tiny(9)).net
        x = batch().inputs[0]
        with torch.no_grad():
            assert torch.equal(again.eval()(x), peer.eval()(x))

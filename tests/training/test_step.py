"""How steps are computed: each fast way against the plain one, and what is promised about bits."""

from __future__ import annotations

import copy
import ctypes
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import batch, tiny
from torch import Tensor, nn

import teacherless as tl
from teacherless.data import as_loader
from teacherless.evaluation.metrics import flops
from teacherless.method import Batch
from teacherless.methods import METHODS, _mutual
from teacherless.training import checkpoint
from teacherless.training.engines import threads
from teacherless.training.lifecycle import to_the_end
from teacherless.training.loop import Training
from teacherless.training.precision import channels_last, in_fp32, slow_in_bf16, tune_allocator
from teacherless.training.settings import Settings
from teacherless.training.step import Engine, make_optimizer, train_step

CPU = torch.device("cpu")


def weights(method: nn.Module) -> list[Tensor]:
    return [value.clone() for value in method.state_dict().values()]


# Memory ---------------------------------------------------------------------------------------------------------------


def test_the_allocator_is_tuned_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []

    class Libc:
        def __init__(self, _: str) -> None: ...

        def mallopt(self, what: int, value: int) -> int:
            calls.append((what, value))
            return 1

    monkeypatch.setattr(ctypes, "CDLL", Libc)
    assert tune_allocator() and calls == [(-3, 1 << 30), (-1, 2**31 - 1)]
    monkeypatch.setenv("TEACHERLESS_NO_MALLOPT", "1")
    assert not tune_allocator() and len(calls) == 2
    monkeypatch.setenv("TEACHERLESS_NO_MALLOPT", "0")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())  # a C library without mallopt
    assert not tune_allocator()
    code = ("import ctypes; real = ctypes.CDLL\n"
            "def spy(name, *a, **k):\n"
            "    assert name != 'libc.so.6', 'on import'\n"
            "    return real(name, *a, **k)\n"
            "ctypes.CDLL = spy; import teacherless.training.loop")  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("opt", ["sgd", "adam", "adamw"])
def test_channels_last_and_fused_are_the_plain_step(opt: Any) -> None:
    """float64, where only the order of memory differs; saved and loaded half-way, as layouts get lost."""
    plain, ours = tiny(0, dtype=torch.float64), tiny(0, dtype=torch.float64)
    channels_last(ours)
    assert ours.stages[1][0].weight.is_contiguous(memory_format=torch.channels_last)
    settings = Settings(opt=opt, lr=0.01)
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[opt]
    more = {"momentum": 0.9, "nesterov": True} if opt == "sgd" else {}
    reference = kind(plain.parameters(), 0.01, weight_decay=5e-4, foreach=False, **more)
    method = tl.Plain(ours)
    optimizer = make_optimizer(method.param_groups(), settings, {})
    assert optimizer.defaults["fused"]
    for step in range(6):
        data = batch(step, dtype=torch.float64)
        train_step(method, optimizer, data, tl.Progress())
        nn.functional.cross_entropy(plain(data.inputs[0]), data.labels).backward()
        reference.step()
        reference.zero_grad()
        if step == 2:
            saved = checkpoint.optimizer_state(optimizer)
            saved = saved._replace(tensors={name: value.contiguous() for name, value in saved.tensors.items()})
            optimizer = make_optimizer(method.param_groups(), settings, {})
            checkpoint.load_optimizer(optimizer, saved)
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


# Precision ------------------------------------------------------------------------------------------------------------


class Table(nn.Module):
    """A student without convolutions or products: autocast has nothing to do in it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(5, 64, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1).unsqueeze(1) * self.scale).sum(-1)


@pytest.mark.parametrize("name", ["plain", "dml", "label-smoothing", "kd", "ps-kd", "tf-kd", "cs-kd"])
def test_from_the_logits_on_amp_changes_nothing(name: str) -> None:
    results = []
    for amp in (False, True):
        kind = METHODS[name]
        nets = [Table(i) for i in range(2 if kind.cohort or kind.teacher_use == "required" else 1)]
        options = {"num_samples": 6, "num_classes": 5} if name == "ps-kd" else {}
        method = kind(*nets, **options)
        data = batch(views=method.wants.views + method.wants.classmate)
        optimizer = make_optimizer(method.param_groups(), Settings(), {})
        out = [train_step(method, optimizer, data, tl.Progress(), amp=amp).terms for _ in range(3)]
        results.append([*weights(method), *(value for terms in out for value in terms.values())])
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(*results, strict=True))


def test_amp_computes_in_bf16_and_the_rule_keeps_its_layers() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, stride=2, groups=4), nn.Conv2d(4, 4, 1),
                        nn.Conv2d(4, 4, 1, groups=4), nn.Flatten(), nn.LazyLinear(5))  # fmt: skip
    net(batch().inputs[0])
    before, keys = copy.deepcopy(net), list(net.state_dict())
    kept = slow_in_bf16(net, CPU)
    assert list(kept) == ["1"]
    assert slow_in_bf16(net, torch.device("cuda")) == {}
    seen: dict[str, torch.dtype] = {}
    for name, layer in net.named_children():
        layer.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out.dtype))
    with in_fp32(kept), torch.autocast("cpu", torch.bfloat16):
        loss = net(batch().inputs[0]).float().square().sum()
    loss.backward()
    bf16, fp32 = torch.bfloat16, torch.float32
    assert seen == {"0": bf16, "1": fp32, "2": bf16, "3": bf16, "4": bf16, "5": bf16}
    assert all(p.grad is not None and p.grad.dtype == fp32 for p in net.parameters())
    assert "forward" not in vars(net[1]), "undone"
    assert list(net.state_dict()) == keys and torch.equal(net(batch().inputs[0]), before(batch().inputs[0]))


def test_amp_is_written_down_and_trains(tmp_path: Path) -> None:
    method = tl.DML(tiny(0), tiny(1))
    data = [Batch((x,), y) for x, y in ((batch(i).inputs[0], batch(i).labels) for i in range(2))]
    result = tl.train(method, data, epochs=2, out=tmp_path / "run", amp_anyway=True, quiet=True)
    assert result.history[-1]["train/loss"] < 10
    found = json.loads((tmp_path / "run" / "run.json").read_text())
    assert found["amp"] == {"dtype": "bfloat16", "fp32": []}
    assert found["engine"] == "loop"
    assert all(value.dtype != torch.bfloat16 for value in method.state_dict().values())


def test_amp_stays_in_fp32_where_bf16_has_no_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def go(name: str, has: dict[str, bool], **settings: Any) -> dict[str, Any]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
        tl.train(tl.Plain(tiny(0)), [batch(0)], epochs=settings.pop("epochs", 1), out=tmp_path / name, **settings)
        return dict(json.loads((tmp_path / name / "run.json").read_text())["amp"] or {})

    old, new = {"avx512_bf16": False, "avx2": True}, {"avx512_bf16": True}
    assert go("old", old, amp=True)["dtype"] == "float32"
    said = capsys.readouterr().out
    assert said.count("this CPU has no bf16 instructions; --amp-anyway") == 1
    assert go("new", new, amp=True) == go("arm", {"bf16": True}, amp=True) == {"dtype": "bfloat16", "fp32": []}
    assert go("forced", old, amp_anyway=True)["dtype"] == "bfloat16"
    assert go("none", old) == {}
    assert "no bf16" not in capsys.readouterr().out
    tl.train(tl.Plain(tiny(0)), [batch(0)], epochs=1, out=tmp_path / "fp32", quiet=True)
    old_bits, fp32_bits = ((tmp_path / n / "students/student/model.safetensors").read_bytes() for n in ("old", "fp32"))
    assert old_bits == fp32_bits


def test_a_resumed_run_keeps_its_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, other in ((True, False), (False, True)):
        monkeypatch.setattr("teacherless.training.step.fast_in_bf16", lambda _, has=has: has)
        stored = Engine(tl.Plain(tiny(0)), Settings(amp=True), CPU)
        monkeypatch.setattr("teacherless.training.step.fast_in_bf16", lambda _, other=other: other)
        engine = Engine(tl.Plain(tiny(0)), Settings(amp=True), CPU)
        assert engine.amp != stored.amp
        engine.resume(stored.about())
        assert (engine.amp, engine.precision, engine.about()) == (stored.amp, stored.precision, stored.about())


# Threads --------------------------------------------------------------------------------------------------------------

HASH = """
import hashlib, sys
sys.path[:0] = sys.argv[1:]
from test_step import twenty_steps
print(hashlib.sha256(b"".join(v.numpy().tobytes() for v in twenty_steps("threads", 3, True))).hexdigest())
"""


def twenty_steps(engine: str, k: int, amp: bool, **options: Any) -> list[Tensor]:
    """Everything that is learnt in 20 steps of k networks of different width, with batch norm."""
    torch.set_num_threads(1)
    method = tl.DML(*[tiny(i, width=4 + 2 * i) for i in range(k)], **options)
    data = [batch(i, 12, views=method.wants.views) for i in range(5)]
    result = tl.train(method, data, epochs=4, lr=0.05, engine=engine, amp_anyway=amp, clip_grad=1.0, quiet=True)
    seen = [[line[key] for key in line if key.startswith("train/")] for line in result.history]
    return [*weights(method), torch.tensor(seen, dtype=torch.float64)]


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize(
    ("k", "options", "many"),
    [
        (2, {}, 2**20),
        (3, {}, 2**20),
        (3, {}, 0),
        (3, {"views": 2}, 2**20),
        (3, {"reduce": "sum", "weight": 0.5}, 2**20),
    ],
)
def test_threads_are_the_loop_bit_for_bit(
    k: int, options: Any, many: int, amp: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_mutual, "LARGE", many)  # 0: the path of little memory
    loop, apart = (twenty_steps(engine, k, amp, **options) for engine in ("loop", "threads"))
    assert all(torch.equal(a, b) for a, b in zip(loop[:-1], apart[:-1], strict=True))
    torch.testing.assert_close(loop[-1], apart[-1], rtol=1e-6, atol=0)  # sums of terms: in another order


def test_threads_repeat_across_processes() -> None:
    command = [sys.executable, "-c", HASH, str(Path(__file__).parent), str(Path(__file__).parents[1])]
    first, second = (subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(2))
    assert len(first) == 65 and first == second


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_any_number_of_workers_gives_the_same_bits(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = twenty_steps("loop", 5, False)[:-1]
    monkeypatch.setattr(threads, "cores", lambda: workers)
    assert all(torch.equal(a, b) for a, b in zip(expected, twenty_steps("threads", 5, False), strict=False))


def test_deal() -> None:
    assert threads.assign([5, 5], 2) == [[0], [1]]
    assert threads.assign([1, 9, 2, 3, 3], 2) == [[1], [0, 2, 3, 4]]
    assert threads.assign([0, 0, 0, 0], 2) == [[0, 2], [1, 3]]
    assert flops(tiny(0), batch().inputs[0]) > flops(tiny(0, width=2), batch().inputs[0]) > 0


class Failing(nn.Module):
    """A student that breaks after some forwards."""

    def __init__(self, after: int, error: BaseException) -> None:
        super().__init__()
        self.net, self.left, self.error = tiny(7), after, error

    def forward(self, x: Tensor) -> Tensor:
        self.left -= self.training
        if self.left < 0:
            raise self.error
        return self.net(x)


@pytest.mark.parametrize("error", [MemoryError("no more"), KeyboardInterrupt()])
def test_a_worker_that_fails_stops_the_others(error: BaseException) -> None:
    """Its own error is raised, nobody waits for it, and nothing is left behind."""
    method = tl.DML(tiny(0), Failing(3, error), tiny(2))
    torch.set_num_threads(2)
    with pytest.raises(type(error)) as raised:
        tl.train(method, [batch()] * 6, epochs=1, engine="threads", quiet=True)
    assert raised.value is error
    assert torch.get_num_threads() == 2
    assert not [t for t in threading.enumerate() if t.name.startswith("teacherless")]


class Noisy(nn.Module):
    """A student that draws, in a way nobody can see from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.1 * torch.randn_like(x) if self.training else x)


def test_threads_are_refused_where_numbers_are_drawn() -> None:
    dropping = nn.Sequential(tiny(0), nn.Dropout(0.5))
    for method, text in (
        (tl.DML(dropping, tiny(1)), r"peers\.0\.1 draws random numbers"),
        (tl.DML(Noisy(), tiny(1)), "a student's forward draws random numbers"),
        (tl.DML(tiny(0), tiny(1), update="in_turn"), "does not split by students"),
        (tl.DML(tiny(0), tiny(1), tiny(2), topology="ring"), "does not split by students"),
        (tl.Plain(tiny(0)), "does not split by students"),
    ):
        with pytest.raises(tl.InputError, match=f"^engine: found threads, but .*{text}.*; use engine loop"):
            tl.train(method, [batch()], epochs=1, engine="threads", quiet=True)
        tl.train(method, [batch()], epochs=1, quiet=True)
    tl.train(
        tl.DML(nn.Sequential(tiny(0), nn.Dropout(0.0)), tiny(1)), [batch()], epochs=1, engine="threads", quiet=True
    )


def test_auto_is_a_rule_of_nets_their_number_cores_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(cores: int = 2, nets: str = "resnet20 resnet20", amp: bool = True, device: str = "cpu") -> str:
        monkeypatch.setattr(threads, "cores", lambda: cores)
        each = [tl.create(net, num_classes=5, in_channels=1, seed=i) for i, net in enumerate(nets.split())]
        return Engine(tl.DML(*each), Settings(amp_anyway=amp), torch.device(device)).name

    assert chosen() == chosen(nets="resnet20 " * 4) == "threads"
    others = [chosen(amp=False), chosen(cores=1), chosen(cores=4), chosen(device="cuda")]
    others += [chosen(nets=nets) for nets in ("small-cnn small-cnn", "resnet20 resnet32", "resnet20 " * 3)]
    assert set(others) == {"loop"}


def test_a_resumed_run_takes_the_stored_engine(tmp_path: Path) -> None:
    def go(**more: Any) -> None:
        tl.train(
            tl.DML(tiny(0), tiny(1)), [batch()], out=tmp_path, quiet=True, resume=bool(more), **{"epochs": 2} | more
        )

    go()
    stored = json.loads((tmp_path / "run.json").read_text())
    assert stored["engine"] == "loop" and stored["settings"]["engine"] == "auto"
    (tmp_path / "run.json").write_text(json.dumps(stored | {"engine": "threads"}))
    training = Training(tl.DML(tiny(0), tiny(1)), as_loader([batch()], tl.Wants(), CPU), None, Settings(epochs=2), {},
                        tmp_path, quiet=True)  # fmt: skip
    to_the_end(training, None, resume=True)
    assert training.engine.name == "threads"
    with pytest.raises(tl.InputError, match="engine was 'auto', is 'loop'; the engine is not the same"):
        go(engine="loop")

"""The recorded step, as far as a CPU shows it.

A tape stands in for CUDA's graph: it keeps the operations of one step and repeats them on the same memory, so a number
that Python held while recording stays what it was, and a step that asks for one (`.item()`) cannot be recorded. What
only a GPU shows (streams, capture itself) has tests here that are skipped without one.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from conftest import batch, tiny
from test_all_methods import build, data
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import teacherless as tl
from teacherless.errors import InputError
from teacherless.method import Batch, Method, Output, Progress
from teacherless.methods import METHODS
from teacherless.training.engines import graph
from teacherless.training.engines.graph import EAGER, Graph
from teacherless.training.settings import Settings
from teacherless.training.step import Engine, make_optimizer, set_rates, train_step


class Tape(TorchDispatchMode):
    """The operations of one step; `repeat` does them again, in the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.fresh = True  # a real recording computes nothing; this one has computed its step already

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def repeat(self) -> None:
        if self.fresh:
            self.fresh = False
            return
        with torch.no_grad():
            for func, args, kwargs, out in self.calls:
                memory = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
                kept = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
                own = [t.untyped_storage().data_ptr() not in memory for t in kept]
                if kept and not any(own) and not func._schema.is_mutable:
                    continue  # a view
                new = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, Tensor)]
                for place, value, is_own in zip(kept, new, own, strict=True):
                    if is_own:
                        place.copy_(value)


def tape(work: Callable[[], Output]) -> tuple[Callable[[], None], Output]:
    with Tape() as mode:
        output = work()
    return mode.repeat, output


STEPS, SIZE = 12, 16


def steps(method: Method) -> Iterator[tuple[Batch, Progress, float]]:
    """Batches that differ, rates and progress that change, as in `train`."""
    whole = data(method, size=64)
    for step in range(STEPS):
        rows = (torch.arange(SIZE) + SIZE * step) % 64
        batch = Batch(tuple(x[rows] for x in whole.inputs), whole.labels[rows], rows)
        now = Progress(torch.tensor(step), torch.tensor(step // 4), torch.tensor(3))
        yield batch, now, 1 - step / STEPS


def trained(method: Method, recorded: bool, **settings: Any) -> list[Tensor]:
    """State and outputs after some steps of the last phase, by the loop or by a recording."""
    chosen = Settings(**settings)
    method.train().begin(method.phases[-1])
    optimizer = make_optimizer(method.param_groups(), chosen, {})
    one = lambda b, p: train_step(method, optimizer, b, p, chosen.clip_grad, amp=chosen.amp)  # noqa: E731
    graphed = Graph(one, optimizer, record=tape)
    seen = []
    for found, now, factor in steps(method):
        set_rates(optimizer, factor)
        out = graphed.step(found, now) if recorded else one(found, now)
        seen += [value.clone() for value in out.terms.values()] + [out.logits.clone()]
    assert (graphed.replay is not None) is recorded
    return seen + [value.clone() for value in method.state_dict().values()]


DRAWS = {"r-drop", "cosub"}  # whose steps before the recording draw numbers too, so that later ones are others


@pytest.mark.parametrize("name", [name for name in METHODS if name not in DRAWS])
def test_every_methods_step_can_be_recorded(name: str) -> None:
    """Same bits as the loop: nothing in a step is a number that Python held on to."""
    for ours, loops in zip(trained(build(name), True), trained(build(name), False), strict=True):
        assert torch.equal(ours, loops)


@pytest.mark.parametrize(
    "options",
    [{"opt": "adam", "lr": 1e-3}, {"amp": True}, {"clip_grad": 0.1}, {"nesterov": False, "momentum": 0.0}],
    ids=str,
)
def test_settings_can_be_recorded(options: dict[str, Any]) -> None:
    for ours, loops in zip(
        trained(build("dml"), True, **options), trained(build("dml"), False, **options), strict=True
    ):
        torch.testing.assert_close(ours, loops, rtol=0, atol=0)


@pytest.mark.parametrize(
    "options", [{"update": "in_turn"}, {"ramp_epochs": 2}, {"topology": "ring"}, {"target": "general"}], ids=str
)
def test_dialects_of_dml_can_be_recorded(options: dict[str, Any]) -> None:
    methods = [build("dml", **options) for _ in range(2)]
    for ours, loops in zip(trained(methods[0], True), trained(methods[1], False), strict=True):
        assert torch.equal(ours, loops)


def test_a_student_that_draws_is_refused_where_the_recording_fails() -> None:
    method = Asks(tiny(0)).train()
    optimizer = make_optimizer(method.param_groups(), Settings(), {})
    graphed = Graph(partial(train_step, method, optimizer), optimizer, record=tape, draws=True)

    def run() -> None:
        for found, now, _ in steps(method):
            graphed.step(found, now)

    with pytest.raises(InputError, match=r"found graph, but the step cannot be recorded \(.*; use --engine loop"):
        run()


class Asks(tl.METHODS["plain"]):  # type: ignore[misc]
    """A step that waits for a number."""

    def forward(self, batch: Batch, progress: Progress = Progress()) -> Output:
        out = super().forward(batch, progress)
        return out._replace(terms={"ce": out.terms["ce"] * (1 if out.terms["ce"].item() > 0 else 2)})


def test_what_cannot_be_recorded_runs_as_by_the_loop_and_says_so() -> None:
    expected = trained(Asks(tiny(0)), False)
    method = Asks(tiny(0)).train()
    optimizer = make_optimizer(method.param_groups(), Settings(), {})
    graphed = Graph(partial(train_step, method, optimizer), optimizer, record=tape)

    def run() -> None:
        for found, now, factor in steps(method):
            set_rates(optimizer, factor)
            graphed.step(found, now)

    with pytest.warns(
        UserWarning, match=r"cannot be recorded \(RuntimeError: operation not permitted.*; it runs as by loop"
    ) as told:
        run()
    assert len(told) == 1 and graphed.replay is None
    state = method.state_dict()
    for (name, ours), loops in zip(state.items(), expected[-len(state) :], strict=True):
        if "running" not in name and "tracked" not in name:  # the tape had begun to compute, CUDA would not have
            assert torch.equal(ours, loops), name


@pytest.mark.parametrize("sizes", [[16] * (EAGER + 2) + [10] + [16] * 2, [16, 16, 16, 10] * 3], ids=str)
def test_a_batch_of_another_shape_is_computed_as_by_the_loop(sizes: list[int]) -> None:
    def run(recorded: bool) -> list[Tensor]:
        method = build("dml").train()
        optimizer = make_optimizer(method.param_groups(), Settings(), {})
        one = partial(train_step, method, optimizer)
        graphed = Graph(one, optimizer, record=tape)
        for size in sizes:
            found = batch(size, size)
            graphed.step(found, Progress()) if recorded else one(found, Progress())
        assert not recorded or graphed.given[0].shape[0] == 16
        return list(method.state_dict().values())

    for ours, loops in zip(run(True), run(False), strict=True):
        assert torch.equal(ours, loops)


def test_the_whole_of_train_with_phases(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`train` with a recorded engine is `train` with the loop: rates, phases with optimizers of their own, checkpoints
    that hold rates which are tensors."""
    batches = [batch(seed, 8) for seed in range(4)]

    def fit(out: str) -> dict[str, Tensor]:
        method = build("snapshot", cycles=2)
        tl.train(method, batches, epochs=4, out=tmp_path / out, quiet=True, checkpoint_every="1e")
        return {name: value.clone() for name, value in method.state_dict().items()}

    expected = fit("loop")
    recordings = []

    def counted(work: Callable[[], Output]) -> tuple[Callable[[], None], Output]:
        recordings.append(work)
        return tape(work)

    monkeypatch.setattr(Engine, "choose", lambda self, name: setattr(self, "name", "graph"))
    monkeypatch.setattr("teacherless.training.step.Graph", partial(Graph, record=counted))
    found = fit("graph")
    assert len(recordings) == 2, "one for each phase"
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_graph_is_refused_where_there_is_no_gpu() -> None:
    with pytest.raises(InputError, match=r"^engine: found graph, but the device is cpu; it needs"):
        tl.train(build("dml"), [batch()], engine="graph", device="cpu", quiet=True)


def test_students_fork_and_join(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of waits, with streams that only write down who waits for whom."""
    said: list[str] = []

    class Stream:
        def __init__(self, name: str = "") -> None:
            self.name = name or f"lane{sum(line.startswith('new') for line in said)}"
            if not name:
                said.append(f"new {self.name}")

        def wait_stream(self, other: Stream) -> None:
            said.append(f"{self.name} waits for {other.name}")

    main = Stream("main")
    now = [main]

    @contextlib.contextmanager
    def on(stream: Stream) -> Iterator[None]:
        now.append(stream)
        yield
        now.pop()

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: now[-1])
    monkeypatch.setattr(torch.cuda, "stream", on)

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            said.append(f"computed on {now[-1].name}")
            return x

    nets = [Net(), Net()]
    with graph.streams(nets):
        for net in nets:
            net(torch.zeros(1))
    assert said == [
        "new lane0", "new lane1", "lane0 waits for main", "lane1 waits for main", "computed on lane0",
        "computed on lane1", "main waits for lane0", "main waits for lane1",
    ]  # fmt: skip
    assert all("forward" not in vars(net) for net in nets)
    with graph.streams(nets[:1]):
        assert "forward" not in vars(nets[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", METHODS)
def test_on_a_gpu(name: str) -> None:
    """Captured by CUDA itself, the loss follows that of the loop."""

    def run(engine: str) -> list[float]:
        method = build(name)
        whole = data(method)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = tl.train(method, [whole] * 4, epochs=4, engine=engine, device="cuda", quiet=True)
        return [float(line["train/loss"]) for line in result.history]

    assert run("graph") == pytest.approx(run("loop"), rel=1e-2)

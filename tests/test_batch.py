"""In a loop of one's own: whatever a loader yields, any network, and one clear error where training would go wrong."""

from __future__ import annotations

import copy
import gc
from collections import OrderedDict, namedtuple
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, batch, tiny
from ranks import on_ranks
from test_all_methods import build, data, each_phase, every_method, trainable
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import teacherless as tl
from teacherless.batch import as_batch
from teacherless.methods import METHODS

# What is not trained on, by all methods -------------------------------------------------------------------------------


def wrong(name: str) -> dict[str, tuple[tl.Batch, str]]:
    """Batches that would train on nonsense, and what is said of them."""
    good = data(build(name))
    ids, hot = good.labels, torch.eye(CLASSES)[good.labels]
    inputs, needed = good.inputs, len(good.inputs)
    cases = {
        "one too many": (good._replace(inputs=(*inputs, inputs[0])), f"reads {needed} input"),
        "labels [B, 1]": (good._replace(labels=ids[:, None]), r"shape \[64, 1\]; must be \[B\].*squeeze"),
        "targets [B, 1]": (good._replace(labels=ids[:, None].float()), r"shape \[64, 1\]; must be \[B\]"),
        "targets [B]": (good._replace(labels=ids.float()), "float32; must be class ids"),
        "multi-hot ids": (good._replace(labels=hot.long()), "multi-label"),
        "multi-hot shares": (good._replace(labels=hot + hot.flip(0)), r"add up to 2 .*multi-label"),
        "ignored": (good._replace(labels=ids - 1), "class -1; class ids count from 0"),
        "other rows": (good._replace(labels=ids[:32]), "with 32 labels; the first axes must agree"),
    }
    if needed > 1:
        what = "a classmate" if METHODS[name].wants.classmate else f"{needed} views"
        cases["one missing"] = (good._replace(inputs=inputs[:1]), f"wants {what} of each sample; found")
    if METHODS[name].wants.index:
        cases["no index"] = (good._replace(index=None), "wants each sample's index; found none")
    return cases


@every_method
def test_what_would_train_on_nonsense_is_refused(name: str) -> None:
    for case, (bad, words) in wrong(name).items():
        for method in each_phase(name):
            with pytest.raises(tl.InputError, match=words):
                method(bad, tl.Progress(turn=0))
                pytest.fail(case)


@every_method
def test_the_guard_is_before_forward_and_leaves_no_trace(name: str) -> None:
    for bad, _ in wrong(name).values():
        method = each_phase(name)[0]
        before = copy.deepcopy(method.state_dict())
        with pytest.raises(tl.InputError):
            method(bad, tl.Progress(turn=0))
        torch.testing.assert_close(method.state_dict(), before, rtol=0, atol=0)


class NoWaiting(TorchDispatchMode):
    """Refuses what waits for the device: reading a number out of a tensor, counting what is not zero."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


@every_method
def test_after_the_first_batch_nothing_waits_for_the_device(name: str) -> None:
    for method in each_phase(name):
        x, now = data(method), tl.Progress(turn=0)
        method(x, now)
        with NoWaiting():
            method(x, now).loss.backward()


@pytest.mark.parametrize(("name", "options"), [
    ("ps-kd", {}), ("fitnets", {}), ("dml", {"ramp_epochs": 3}), ("one", {"ramp_epochs": 3}),
])  # fmt: skip
def test_a_weight_that_changes_needs_the_progress(name: str, options: dict[str, Any]) -> None:
    method = build(name, **options)
    method.begin(method.phases[0])
    with pytest.raises(tl.InputError, match=r"neither was told.*method\.steps\(batch, progress\)"):
        method(data(method))


def test_turns_and_phases_are_told() -> None:
    in_turn = build("dml", update="in_turn")
    for progress in ((), (tl.progress(epochs=2),)):
        with pytest.raises(tl.InputError, match="takes 2 steps a batch, and nobody said whose turn it is"):
            in_turn(data(in_turn), *progress)
    for name in ("fitnets", "snapshot"):
        method = build(name)
        with pytest.raises(tl.InputError, match=r"trains in phases \(.*\), and none has begun"):
            method(data(method), tl.Progress())


# What every loop may do -----------------------------------------------------------------------------------------------


@every_method
def test_steps_train_all_that_can_be_trained(name: str) -> None:
    """The loop of the README; a method of turns or phases is no exception."""
    options = {"update": "in_turn"} if name == "dml" else {}
    method = build(name, teacher=tiny(7, width=6), **options)
    before = copy.deepcopy(method.state_dict())
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    progress = tl.progress(epochs=6)
    for _ in range(6):
        for out in method.steps(data(method), progress):
            out.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        progress.advance()
    assert (int(progress.step), int(progress.epoch)) == (6, 6)
    assert method.phase == method.phases[-1]
    after = method.state_dict()
    still = {key for key, value in before.items() if torch.equal(value, after[key])}
    assert not {key for key, p in method.named_parameters() if p.requires_grad} & still
    ensemble = method.ensemble()
    if name == "snapshot":  # every copy is of its own time
        weights = [net.head.weight for net in ensemble.nets]
        assert not any(torch.equal(a, b) for a, b in combinations(weights, 2))
    with pytest.raises(tl.InputError, match="all 6 epochs are over"):
        progress.advance()


def test_progress_within_a_phase() -> None:
    method, seen = build("snapshot", cycles=3), []
    method.register_forward_pre_hook(lambda _, args: seen.append((method.phase, *map(int, args[1][1:3]))))
    progress = tl.progress(epochs=7)
    for _ in range(7):
        list(method.steps(data(method), progress))
        progress.advance()
    assert [phase for phase, _, _ in seen] == ["cycle1"] * 3 + ["cycle2"] * 2 + ["cycle3"] * 2
    assert [(epoch, epochs) for _, epoch, epochs in seen] == [(0, 3), (1, 3), (2, 3), (0, 2), (1, 2), (0, 2), (1, 2)]
    with pytest.raises(tl.InputError, match=r"found 2 epochs; 3 phases \(cycle1, cycle2, cycle3\) need 3"):
        list(method.steps(data(method), tl.progress(epochs=2)))
    with pytest.raises(tl.InputError, match="epochs: found 0"):
        tl.progress(epochs=0)


def test_steps_go_through_what_wraps_the_method() -> None:
    method = build("dml", update="in_turn")
    compiled = torch.compile(method, backend="eager")
    x = data(method)
    for plain, through in zip(method.steps(x, tl.progress(1)), method.steps(x, tl.progress(1), compiled), strict=True):
        assert torch.equal(plain.loss, through.loss)

    class Wrapped(nn.Module):  # as DistributedDataParallel is by default
        find_unused_parameters = False

    with pytest.raises(tl.InputError, match="find_unused_parameters=True"):
        next(method.steps(x, tl.progress(1), Wrapped()))


@every_method
def test_called_as_loaders_yield(name: str) -> None:
    method = each_phase(name)[-1]
    good, now = data(method), tl.Progress(turn=0)
    x = good.inputs if len(good.inputs) > 1 else good.inputs[0]

    def loss(*given: Any) -> Tensor:
        torch.manual_seed(0)  # a method may draw
        return copy.deepcopy(method)(*given, now).loss

    losses = [
        loss(*given)
        for given in [(good,), (x, good.labels, good.index), ((x, good.labels, good.index),),
                      ({"image": x, "label": good.labels, "idx": good.index, "path": ["a.png"] * 64},),
                      (tl.Batch(x, good.labels.int(), good.index),)]
    ]  # fmt: skip
    assert all(torch.equal(loss, losses[0]) for loss in losses)


def test_a_tensor_is_one_input() -> None:
    """Its rows are no views."""
    x, y = torch.randn(2, 1, 8, 8), torch.tensor([0, 1])
    method = tl.Plain(tiny(0))
    assert torch.equal(method(tl.Batch(x, y)).loss, method(tl.Batch((x,), y)).loss)
    with pytest.raises(tl.InputError, match="wants 2 views of each sample; found 1"):
        tl.DDGSD(tiny(0))(tl.Batch(x, y))


@pytest.mark.parametrize(("item", "words"), [
    (3, "found a int; must be"),
    (((), torch.zeros(2).long()), "found no input"),
    ({"labels": [0]}, "needs one of"),
    ({"picture": [1]}, "needs one of"),
    ((object(), [0]), "found a object in a batch"),
    ((np.zeros((2, 3)), 0), "a data set of single samples goes into a DataLoader"),
])  # fmt: skip
def test_what_is_no_batch(item: Any, words: str) -> None:
    with pytest.raises(tl.InputError, match=words):
        as_batch(item)


# Any network ----------------------------------------------------------------------------------------------------------


class Named(nn.Module):
    """Reads keywords and returns an object with logits, as transformers' do."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.head = nn.Embedding(10, 6), nn.Linear(6, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        mask = attention_mask[..., None].float()
        hidden = (self.embed(input_ids) * mask).sum(1) / mask.sum(1)
        return OrderedDict(logits=self.head(hidden), hidden_states=hidden)


class Two(nn.Module):
    """Reads two tensors in their order."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.head = nn.Linear(7, CLASSES)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.cat([a, b], 1))


def words(seed: int = 0, size: int = 12) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(10, (size, 5), generator=g), "attention_mask": torch.ones(size, 5).long()}


@pytest.mark.parametrize("kind", [Named, Two])
@pytest.mark.parametrize(
    "name", ["plain", "label-smoothing", "dml", "ddgsd", "kd", "ps-kd", "tf-kd", "cs-kd", "snapshot"]
)
def test_logit_methods_train_networks_of_any_inputs(name: str, kind: Any) -> None:
    """In a loop, in train() and in evaluation; two views of them and a classmate too."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(12) % CLASSES
    views = [words(v) if kind is Named else (torch.randn(12, 3, generator=g), torch.randn(12, 4, generator=g))
             for v in range(2)]  # fmt: skip
    nets: list[nn.Module] = [kind(0)]
    if name in ("dml", "kd"):
        nets.append(kind(1))
    options = {"num_samples": 12, "num_classes": CLASSES} if name == "ps-kd" else {}
    method = METHODS[name](*nets, **({"mmd_weight": 0.0} if name == "ddgsd" else {}), **options)
    needed = method.wants.views + method.wants.classmate
    item = tl.Batch(tuple(views[:needed]), y, torch.arange(12))
    for out in method.steps(item, tl.progress(epochs=5)):
        out.loss.backward()
    assert all(p.grad is not None for p in trainable(method))
    result = tl.train(method, [item], [tl.Batch((views[0],), y)], epochs=5, quiet=True)
    assert result.summary["students"]
    if needed == 1 and kind is Named and not method.wants.index:  # as a tokenizer's collate gives them
        tl.train(method, [{**views[0], "labels": y}], epochs=5, quiet=True)
    assert tl.evaluate(method.students(), [(views[0] if kind is Named else (views[0],), y)]).keys()


def test_dml_in_turn_and_its_ensemble_over_keywords() -> None:
    method = tl.DML(Named(0), Named(1), update="in_turn")
    y = torch.arange(12) % CLASSES
    assert len(list(method.steps(tl.Batch((words(),), y), tl.progress(1)))) == 2
    assert method.ensemble()(**words()).shape == (12, CLASSES)


@pytest.mark.parametrize(("give", "found"), [
    (lambda z: (torch.cat([z, z], 1), z), r"several tensors .*of \[10, 5\] columns; say which: adapt\(net, logits=0\)"),
    (lambda z: namedtuple("Out", "logits aux_logits1")(z, z), "returns aux_logits1 beside its logits"),
    (lambda z: OrderedDict(last_hidden_state=z[:, None], pooler_output=z), "found a OrderedDict as output"),
    (lambda z: None, "found a NoneType as output"),
])  # fmt: skip
def test_outputs_in_doubt_are_refused(give: Any, found: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Any:
            return give(self.layer(x))

    x, y = torch.randn(2, 4), torch.tensor([0, 1])
    with pytest.raises(tl.InputError, match=f"^Net: .*{found}"):
        tl.Plain(Net())(x, y)
    if give(torch.zeros(1, CLASSES)) is not None:
        which: Any = {tuple: 1, OrderedDict: "pooler_output"}.get(type(give(torch.zeros(1, CLASSES))), "logits")
        net = tl.adapt(Net(), logits=which)
        assert torch.equal(tl.Plain(net)(x, y).logits[0], net.net.layer(x))


def test_a_keyword_that_the_network_does_not_know() -> None:
    y = torch.arange(12) % CLASSES
    with pytest.raises(
        tl.InputError, match=r"^Named: cannot be called with input_ids, attention_mask, weight: .*weight"
    ):
        tl.Plain(Named(0))({**words(), "weight": torch.ones(12), "labels": y})


# What torch says in its own words -------------------------------------------------------------------------------------


def test_what_torch_says_is_said_of_the_data() -> None:
    x, y = batch().inputs[0], batch().labels
    cases = [
        (tl.Plain(tiny(0)), (x * 0).to(torch.uint8), y, r"torch.uint8.*x.float\(\) / 255"),
        (tl.Plain(tiny(0)), x.double(), y, r"torch.float64.*x.float\(\)"),
        (tl.ONE(tiny(0)), x[:1], y[:1], "a batch of 1 sample.*drop_last=True"),
        (tl.Plain(tiny(0)), x, y + 4, "found class 8, for which a network has no output"),
        (tl.DML(tiny(0, classes=4), tiny(1)), x, y.clamp(max=3), "peers of 4 and 5 classes"),
    ]
    for method, inputs, labels, words in cases:
        with pytest.raises(tl.InputError, match=words):
            method(inputs, labels)


def test_other_errors_are_not_touched() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("a bug of mine")

    with pytest.raises(RuntimeError, match="a bug of mine"):
        tl.Plain(Broken())(batch())


# More than one process ------------------------------------------------------------------------------------------------


def in_a_group(case: str) -> None:
    torch.distributed.init_process_group("gloo")
    one_case(torch.distributed.get_rank(), case)
    gc.collect()  # what DDP holds of the group goes before the group, and neither rank goes before the other:
    torch.distributed.barrier()  # on a busy machine torch aborts a process that ends in between
    torch.distributed.destroy_process_group()


def one_case(rank: int, case: str) -> None:
    good = data(build("ps-kd"), seed=rank)
    if case == "ps-kd":
        method = build("ps-kd")
        ddp = nn.parallel.DistributedDataParallel(method)
        rows = good.index[rank::2]
        for _ in range(2):
            half = tl.Batch((good.inputs[0][rank::2],), good.labels[rank::2], rows)
            for out in method.steps(half, tl.progress(epochs=2), ddp):
                out.loss.backward()
        assert (method.memory.sum(1) > 0.5).nonzero().flatten().tolist() == rows.tolist()  # its own rows only
    elif case == "dlb":
        method = build("dlb")
        ddp = nn.parallel.DistributedDataParallel(method)
        for step in range(3):
            own = data(method, seed=10 * step + rank)
            for out in method.steps(own, tl.progress(epochs=1), ddp):
                out.loss.backward()
            assert torch.equal(method.last[0], own.inputs[1])  # its own batch only
            assert bool(out.terms["distil"] > 0) == (step > 0)
    else:
        method = build("dml", update="in_turn")
        ddp = nn.parallel.DistributedDataParallel(method, find_unused_parameters=True)
        for out in method.steps(tl.Batch(good.inputs, good.labels), tl.progress(epochs=1), ddp):
            out.loss.backward()
        norms = [p.grad.norm() for p in method.parameters()]
        both = [torch.zeros_like(norm) for norm in norms * 2]
        torch.distributed.all_gather(both[:2], norms[0])
        assert torch.equal(both[0], both[1])


@pytest.mark.parametrize("case", ["ps-kd", "dlb", "dml in turn"])
def test_inside_distributed_data_parallel(case: str) -> None:
    assert on_ranks(2, in_a_group, case) == [None, None]

"""PCL against the paper's equations, over several steps."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import slow
import torch
from conftest import CLASSES, batch, tiny
from torch import Tensor, nn

from teacherless.errors import InputError
from teacherless.method import Batch, Progress
from teacherless.methods.pcl import PCL
from teacherless.models.staged import Staged

# Which children of the method each term's gradient may reach; everything else must get none.
ROUTES = {"ce": {"branched"}, "ce_ensemble": {"branched", "classifier"}, "distil": {"branched"}, "mean": {"branched"}}

F64 = torch.float64


def make(seed: int = 0, **options: Any) -> PCL:
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        return PCL(tiny(seed, dtype=F64), num_classes=CLASSES, **options).double()


def data(method: PCL, seed: int = 0) -> Batch:
    return batch(10 * seed, views=method.wants.views, dtype=F64)


def at(step: int) -> Progress:
    return Progress(step=torch.tensor(step), epoch=torch.tensor(step), epochs=torch.tensor(9))


def learn(method: PCL, now: Batch, step: int) -> dict[str, Tensor]:
    """A step of plain gradient descent, and its terms."""
    out = method(now, at(step))
    out.loss.backward()
    with torch.no_grad():
        for p in method.param_groups()[0]["params"]:
            p -= 0.1 * p.grad
            p.grad = None
    return out.terms


def slow_terms(method: PCL, nets: list[nn.Module], means: list[nn.Module], now: Batch, epoch: int) -> dict[str, float]:
    """The paper's terms, from plain networks and the classifier's weights."""
    m, temperature, labels = len(nets), method.temperature, now.labels
    logits = [net(x) for net, x in zip(nets, now.inputs, strict=True)]
    read = [slow.rows(net.embed(x)) for net, x in zip(nets, now.inputs, strict=True)]
    weight, bias = slow.rows(method.classifier.weight), method.classifier.bias.tolist()
    rows = []
    for b in range(len(labels)):
        h = [value for each in read for value in each[b]]
        rows.append(
            [math.fsum(w * v for w, v in zip(row, h, strict=True)) + c for row, c in zip(weight, bias, strict=True)]
        )
    together = torch.tensor(rows, dtype=F64)
    said = [mean(x) for mean, x in zip(means, now.inputs, strict=True)]
    left = 1 - min(epoch / method.ramp_epochs, 1) if method.ramp_epochs else 0
    rise = math.exp(-5 * left**2) * temperature**2
    ce = [slow.mean_ce(z, labels, method.smoothing) for z in logits]
    distil = [slow.mean_kl(z, together, temperature) for z in logits]
    mean = [
        math.fsum(slow.mean_kl(logits[i], said[j], temperature) for j in range(m) if j != i) / (m - 1) for i in range(m)
    ]
    return {
        "ce": math.fsum(ce),
        "ce_ensemble": slow.mean_ce(together, labels, method.smoothing),
        "distil": method.kl_weight * rise * math.fsum(distil),
        "mean": method.mean_weight * rise * math.fsum(mean),
    }


def plain(branched: nn.Module) -> list[nn.Module]:
    return list(branched.students().values())


OPTIONS = [
    {},
    {"branches": 2, "temperature": 1.0, "kl_weight": 0.5, "mean_weight": 2.0},
    {"branches": 4, "split": 1, "ramp_epochs": 0},
    {"decay": 0.2, "ramp_epochs": 2},
    {"copy_init": True},
]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_three_steps_equal_the_equation(options: dict[str, Any], smoothing: float) -> None:
    method = make(**options)
    method.smoothing = smoothing
    averages = copy.deepcopy(method.branched)
    for step in range(3):
        now, nets = data(method, step), copy.deepcopy(method.branched)
        d = min(method.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for average, weight in zip(averages.parameters(), nets.parameters(), strict=True):
                average.copy_(d * average + (1 - d) * weight)
        expected = slow_terms(method, plain(nets), plain(averages), now, step)
        for name, term in learn(method, now, step).items():
            assert term.item() == slow.exactly(expected[name]), (step, name)
        assert min(expected.values()) > 1e-9


def test_gradient_routing() -> None:
    method = make(ramp_epochs=0)
    learn(method, data(method), 0)
    for parameter in method.averages.parameters():
        parameter.requires_grad_(True)  # so that a gradient would show
    groups: dict[str, nn.Module] = {"trunk": method.branched.trunks, "averages": method.averages}
    groups |= {f"branch{i}": branch for i, branch in enumerate(method.branched.branches)} | {"W": method.classifier}
    peers = {"trunk", "branch0", "branch1", "branch2"}
    assert slow.reached(method(data(method, 1), at(1)).terms, groups) == {
        "ce": peers,
        "ce_ensemble": peers | {"W"},
        "distil": peers,  # the ensemble is a constant there
        "mean": peers,
    }


def test_nobody_learns_from_its_own_average() -> None:
    method = make(branches=2, ramp_epochs=0)
    learn(method, data(method), 0)
    other = copy.deepcopy(method)
    for p in other.averages.branches[0].parameters():
        p.add_(1)
    mean = method(data(method, 1), at(1)).terms["mean"]
    moved = other(data(method, 1), at(1)).terms["mean"]
    branches = method.branched.branches, other.branched.branches
    mine, theirs = (
        [torch.autograd.grad(term, list(each[i].parameters()), retain_graph=True) for i in range(2)]
        for term, each in zip((mean, moved), branches, strict=True)
    )
    assert all(torch.equal(a, b) for a, b in zip(mine[0], theirs[0], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(mine[1], theirs[1], strict=True))


def test_students_share_the_trunk_and_averages_are_none() -> None:
    method = make()
    nets = list(method.students().values())
    assert list(method.students()) == ["branch0", "branch1", "branch2"]
    assert nets[0].stages[1] is nets[1].stages[1] is nets[2].stages[1]
    assert nets[0].stages[2] is not nets[1].stages[2]
    (group,) = method.param_groups()
    trained = {id(p) for p in group["params"]}
    assert len(trained) == len(group["params"])
    assert trained == {id(p) for p in method.parameters()} - {id(p) for p in method.averages.parameters()}
    assert {id(p) for net in nets for p in net.parameters()} < trained


def test_its_ensemble_reads_one_image() -> None:
    method = make().eval()
    x = data(method).inputs[0]
    read = torch.cat([net.embed(x) for net in plain(method.branched)], 1)
    torch.testing.assert_close(method.ensemble()(x), method.classifier(read), rtol=0, atol=0)
    again = copy.deepcopy(method.ensemble())
    with torch.no_grad():
        method.classifier.weight.zero_()
    torch.testing.assert_close(again(x), again.method.classifier(read), rtol=0, atol=0)


def test_evaluation_moves_nothing() -> None:
    method = make()
    learn(method, data(method), 0)
    method.eval()
    before = copy.deepcopy(method.state_dict())
    method(data(method, 1), at(1))
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())


def test_it_goes_on_from_its_state_to_the_same_bits() -> None:
    method, other = make(), make(5)
    learn(method, data(method), 0)
    other.load_state_dict(method.state_dict())
    first, second = (learn(each, data(method, 1), 1) for each in (method, other))
    assert all(torch.equal(first[term], second[term]) for term in first)


def test_defaults() -> None:
    method = make()
    assert (method.temperature, method.kl_weight, method.mean_weight) == (3.0, 1.0, 1.0)
    assert (method.decay, method.ramp_epochs, method.wants.views) == (0.999, 80, 3)


def test_it_splits_its_batches_and_not_its_branches() -> None:
    assert make().shard([0], lambda own: own) is None


@pytest.mark.parametrize(
    "options",
    [{"branches": 1}, {"split": 0}, {"temperature": 0}, {"kl_weight": 0}, {"mean_weight": -1}, {"decay": 1.5}],
)
def test_refuses(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))}: found"):
        make(**options)


def test_refuses_a_student_without_stages() -> None:
    with pytest.raises(InputError, match=r"^pcl: needs a student with stages and found Linear"):
        PCL(nn.Linear(3, 4), num_classes=4)
    with pytest.raises(InputError, match="pcl: found a student of 1 stage"):
        PCL(Staged([nn.Conv2d(1, 2, 3)], [2], nn.Linear(2, 3)), num_classes=3)

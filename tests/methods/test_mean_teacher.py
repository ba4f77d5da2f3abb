"""Mean teacher against the paper's equation, over several steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import slow
import torch
from conftest import batch, tiny
from torch import Tensor

from teacherless.errors import InputError
from teacherless.method import Batch, Progress
from teacherless.methods.mean_teacher import MeanTeacher

# Which children of the method each term's gradient may reach; everything else must get none.
ROUTES = {"ce": {"student"}, "mean": {"student"}}

F64 = torch.float64


def make(**options: Any) -> MeanTeacher:
    return MeanTeacher(tiny(0, dtype=F64), **options)


def data(seed: int = 0) -> Batch:
    return batch(10 * seed, views=2, dtype=F64)


def learn(method: MeanTeacher, now: Batch, step: int) -> dict[str, Tensor]:
    """A step of plain gradient descent, and its terms."""
    out = method(now, Progress(step=torch.tensor(step), epoch=torch.tensor(step), epochs=torch.tensor(9)))
    out.loss.backward()
    with torch.no_grad():
        for p in method.student.parameters():
            p -= 0.1 * p.grad
            p.grad = None
    return out.terms


@pytest.mark.parametrize(
    "options",
    [{}, {"decay": 0.2}, {"temperature": 3.0, "weight": 0.4}, {"match": "mse", "weight": 7.0}, {"ramp_epochs": 4}],
    ids=str,
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_four_steps_equal_the_equation(options: dict[str, Any], smoothing: float) -> None:
    method = make(**options)
    method.smoothing = smoothing
    mean = copy.deepcopy(method.student)
    for step in range(4):
        now, net = data(step), copy.deepcopy(method.student)
        d = min(method.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for average, weight in zip(mean.parameters(), net.parameters(), strict=True):
                average.copy_(d * average + (1 - d) * weight)
        z, target = net(now.inputs[0]), mean(now.inputs[1])  # batch norm of the batch, in training mode
        if method.match == "kl":
            apart = method.temperature**2 * slow.mean_kl(z, target, method.temperature)
        else:
            apart = slow.mean_square(z.softmax(1), target.softmax(1))
        left = 1 - min(step / method.ramp_epochs, 1) if method.ramp_epochs else 0
        rise = 2.718281828459045 ** (-5 * left**2)
        found = learn(method, now, step)
        assert found["ce"].item() == slow.exactly(slow.mean_ce(z, now.labels, smoothing))
        assert found["mean"].item() == slow.exactly(method.weight * rise * apart)
        assert apart > 1e-6


def test_defaults() -> None:
    method = make()
    assert (method.decay, method.weight, method.temperature, method.match) == (0.999, 1.0, 1.0, "kl")


def test_the_teacher_learns_nothing_and_is_no_student() -> None:
    method = make()
    learn(method, data(), 0)
    mine = {id(p) for p in method.student.parameters()}
    assert {id(p) for group in method.param_groups() for p in group["params"]} == mine
    for parameter in method.teacher.parameters():
        parameter.requires_grad_(True)  # so that a gradient would show
    out = method(data(1), Progress(step=torch.tensor(1)))
    groups = {"stages": method.student.stages, "head": method.student.head, "teacher": method.teacher}
    both = {"stages", "head"}
    assert slow.reached(out.terms, groups) == {"ce": both, "mean": both}
    assert list(method.students()) == ["student"]


def test_evaluation_moves_nothing() -> None:
    method = make()
    learn(method, data(), 0)
    method.eval()
    before = copy.deepcopy(method.state_dict())
    method(data(1), Progress(step=torch.tensor(1)))
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())


def test_it_goes_on_from_its_state_to_the_same_bits() -> None:
    method, other = make(), make()
    learn(method, data(), 0)
    other.load_state_dict(method.state_dict())
    first, second = (learn(each, data(1), 1) for each in (method, other))
    assert all(torch.equal(first[term], second[term]) for term in first)


@pytest.mark.parametrize(
    "options", [{"decay": 1.5}, {"weight": 0}, {"temperature": 0}, {"match": "js"}, {"temperature": 2, "match": "mse"}]
)
def test_refuses(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))}: found"):
        make(**options)

"""KD against Hinton's equation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import slow
import torch
from conftest import batch, tiny
from torch import nn

from teacherless.errors import InputError
from teacherless.method import Batch
from teacherless.methods.kd import KD

# Which children of the method each term's gradient may reach; everything else must get none.
ROUTES = {"ce": {"student"}, "distil": {"student"}}

F64 = torch.float64


def make(**options: Any) -> KD:
    return KD(tiny(0, dtype=F64), tiny(1, width=6, dtype=F64), **options)


def expected(method: KD, data: Batch, ce: float, kd: float, temperature: float, smoothing: float) -> dict[str, float]:
    x = data.inputs[0]
    z, target = method.student(x), tiny(1, width=6, dtype=F64).eval()(x)
    return {
        "ce": ce * slow.mean_ce(z, data.labels, smoothing),
        "distil": kd * temperature**2 * slow.mean_kl(z, target, temperature),
    }


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("options", "ce", "kd", "temperature"),
    [
        ({}, 0.1, 0.9, 4.0),
        ({"ce_weight": 0.5, "kd_weight": 2.0, "temperature": 1.5}, 0.5, 2.0, 1.5),
        (KD.variants["dml"], 1.0, 1.0, 1.0),  # "1 distills 2": CE + KL at T = 1
    ],
)
def test_every_term_equals_the_equation(
    options: dict[str, Any], ce: float, kd: float, temperature: float, smoothing: float
) -> None:
    method, data = make(**options), batch(dtype=F64)
    method.smoothing = smoothing
    found = method(data).terms
    for name, value in expected(method, data, ce, kd, temperature, smoothing).items():
        assert found.pop(name).item() == slow.exactly(value), name
    assert not found


def test_the_teacher_only_speaks() -> None:
    teacher = tiny(1, width=6, dtype=F64)
    method = KD(tiny(0, dtype=F64), teacher)
    before = copy.deepcopy(method.teacher.net.state_dict())
    method.train()
    method(batch(dtype=F64)).loss.backward()
    frozen = method.teacher.net
    assert frozen is not teacher and teacher.training  # what the caller holds is left alone
    assert not any(m.training for m in frozen.modules())
    assert all(p.grad is None and not p.requires_grad for p in frozen.parameters())
    torch.testing.assert_close(frozen.state_dict(), before, rtol=0, atol=0)
    assert all(key.startswith("student.") for key in method.state_dict())
    assert sum(len(group["params"]) for group in method.param_groups()) == len(list(method.student.parameters()))


def test_gradient_routing() -> None:
    method = make()
    groups: dict[str, Any] = {"student": method.student, "gone": [torch.zeros(1, requires_grad=True)]}
    assert slow.reached(method(batch(dtype=F64)).terms, groups) == {"ce": {"student"}, "distil": {"student"}}


def test_without_labels() -> None:
    assert make(ce_weight=0)(batch(dtype=F64)).terms.keys() == {"distil"}


def test_any_modality_will_do() -> None:
    method = KD(nn.Linear(3, 2), nn.Linear(3, 2))
    assert method(Batch((torch.randn(4, 3),), torch.tensor([0, 1, 1, 0]))).loss.isfinite()


@pytest.mark.parametrize("options", [{"temperature": 0}, {"kd_weight": 0}, {"ce_weight": -1}])
def test_refuses(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))}: found"):
        make(**options)


def test_refuses_a_teacher_of_other_classes() -> None:
    method = KD(tiny(0), tiny(1, classes=7))
    with pytest.raises(InputError, match="teacher: it predicts 7 classes and the student 5"):
        method(batch())

"""TF-KD against the paper's equations and the released ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import slow
import torch
from conftest import CLASSES, batch, tiny

from teacherless.errors import InputError
from teacherless.methods.tf_kd import TFKD

# Which children of the method each term's gradient may reach; everything else must get none.
ROUTES = {"ce": {"student"}, "distil": {"student"}}

F64 = torch.float64


def make(teacher: bool = False, **options: Any) -> TFKD:
    return TFKD(tiny(0, dtype=F64), *([tiny(1, dtype=F64)] if teacher else []), **options)


def oracle(label: int, correct: float) -> list[float]:
    return [correct if c == label else (1 - correct) / (CLASSES - 1) for c in range(CLASSES)]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("options", "alpha", "temperature", "correct"),
    [({}, 0.1, 20, 0.99), ({"alpha": 0.9, "temperature": 2.0, "correct": 0.8, "multiplier": 3.0}, 0.9, 2, 0.8)],
)
def test_reg_equals_the_equation(
    options: dict[str, Any], alpha: float, temperature: float, correct: float, smoothing: float
) -> None:
    method, data = make(**options), batch(dtype=F64)
    method.smoothing = smoothing
    z = method.student(data.inputs[0])
    kl = slow.mean(
        slow.kl(row, [math.log(u) for u in oracle(int(y), correct)], temperature)
        for row, y in zip(slow.rows(z), data.labels, strict=True)
    )
    found = method(data).terms
    assert found.keys() == {"ce", "distil"}
    assert found["ce"].item() == slow.exactly((1 - alpha) * slow.mean_ce(z, data.labels, smoothing))
    scale = alpha * options.get("multiplier", 1) * temperature**2
    assert found["distil"].item() == pytest.approx(scale * kl, rel=1e-10)


@pytest.mark.parametrize(("alpha", "temperature"), [(0.95, 6.0), (0.5, 1.0)])
def test_self_equals_the_equation(alpha: float, temperature: float) -> None:
    method, data = make(teacher=True, mode="self", alpha=alpha, temperature=temperature), batch(dtype=F64)
    z, target = method.student(data.inputs[0]), tiny(1, dtype=F64).eval()(data.inputs[0])
    found = method(data).terms
    assert found["ce"].item() == slow.exactly((1 - alpha) * slow.mean_ce(z, data.labels))
    assert found["distil"].item() == slow.exactly(alpha * temperature**2 * slow.mean_kl(z, target, temperature))


def test_variant_released_is_the_released_reg_step() -> None:
    """α 0.1, τ 20, multiplier 100; mean over batch and classes; softmax(u/τ) against an unsoftened student."""
    method, data = make(**TFKD.variants["released"]), batch(dtype=F64)
    z = slow.rows(method.student(data.inputs[0]))
    labels = [int(y) for y in data.labels]
    soft = [slow.softmax([u / 20 for u in oracle(y, 0.99)]) for y in labels]
    total = 0.0
    for row, target in zip(z, soft, strict=True):
        log_p = slow.log_softmax(row)
        total += math.fsum(q * (math.log(q) - lp) for q, lp in zip(target, log_p, strict=True))
    expected = 0.9 * slow.mean(map(slow.ce, z, labels)) + 0.1 * 100 * total / (len(z) * CLASSES)
    assert max(soft[0]) < 1.1 / CLASSES  # almost uniform
    assert method(data).loss.item() == slow.exactly(expected)


def test_variant_released_self_is_the_released_self_step() -> None:
    """α 0.95, τ 6, multiplier 50; T² kept; mean over batch and classes."""
    method, data = make(teacher=True, **TFKD.variants["released-self"]), batch(dtype=F64)
    z, target = method.student(data.inputs[0]), tiny(1, dtype=F64).eval()(data.inputs[0])
    kl = 36 * slow.mean_kl(z, target, 6) / CLASSES
    expected = 0.05 * slow.mean_ce(z, data.labels) + 0.95 * 50 * kl
    assert method(data).loss.item() == slow.exactly(expected)


def test_gradient_routing_and_a_silent_teacher() -> None:
    for method in (make(), make(teacher=True, mode="self")):
        groups = {"stages": method.student.stages, "head": method.student.head}
        both = {"stages", "head"}
        method.train()
        assert slow.reached(method(batch(dtype=F64)).terms, groups) == {"ce": both, "distil": both}
        assert all(key.startswith("student.") for key in method.state_dict())
    assert not method.teacher.net.training
    assert all(not p.requires_grad for p in method.teacher.net.parameters())


@pytest.mark.parametrize(
    ("teacher", "options", "named"),
    [
        (True, {}, "mode 'reg' reads no teacher and one was given"),
        (False, {"mode": "self"}, "mode 'self' needs a teacher"),
        (True, {"mode": "self", "correct": 0.9}, "correct: found 0.9; it has no effect with mode='self'"),
        (True, {"mode": "self", "soften": "probabilities"}, "soften: found 'probabilities'; it has no effect"),
        (False, {"mode": "both"}, "mode: found 'both'"),
        (False, {"alpha": 1.1}, "alpha: found 1.1"),
        (False, {"alpha": 0}, "alpha: found 0"),
        (False, {"correct": 1.0}, "correct: found 1.0"),
        (False, {"temperature": -1}, "temperature: found -1"),
        (False, {"multiplier": 0}, "multiplier: found 0"),
    ],
)
def test_refuses(teacher: bool, options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        make(teacher, **options)

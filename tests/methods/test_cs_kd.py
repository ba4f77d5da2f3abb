"""CS-KD against the paper's equation and the authors' step."""

from __future__ import annotations

from typing import Any

import pytest
import slow
import torch
from conftest import batch, tiny
from torch import nn

from teacherless.errors import InputError
from teacherless.methods.cs_kd import CSKD

# Which children of the method each term's gradient may reach; everything else must get none.
ROUTES = {"ce": {"student"}, "distil": {"student"}}

F64 = torch.float64


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("options", "temperature", "weight"), [({}, 4, 1), ({"temperature": 2, "kd_weight": 3}, 2, 3)])
def test_every_term_equals_the_equation(
    options: dict[str, Any], temperature: float, weight: float, smoothing: float
) -> None:
    method, data = CSKD(tiny(0, dtype=F64), **options), batch(views=2, dtype=F64)
    method.smoothing = smoothing
    z, target = (method.student(x) for x in data.inputs)
    found = method(data).terms
    assert found["ce"].item() == slow.exactly(slow.mean_ce(z, data.labels, smoothing))
    assert found["distil"].item() == slow.exactly(weight * temperature**2 * slow.mean_kl(z, target, temperature))
    assert found.keys() == {"ce", "distil"}


def test_asks_for_a_classmate_as_the_last_input() -> None:
    assert CSKD.wants.classmate and CSKD.wants.views == 1


def test_the_classmate_is_a_constant() -> None:
    method, data = CSKD(tiny(0, dtype=F64)), batch(views=2, dtype=F64)
    params = list(method.student.parameters())
    found = torch.autograd.grad(method(data).terms["distil"], params)
    z, target = method.student(data.inputs[0]), method.student(data.inputs[1]).detach()
    loss = -16 * ((target / 4).softmax(1) * (z / 4).log_softmax(1)).sum(1).mean()
    for ours, theirs in zip(found, torch.autograd.grad(loss, params), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)


def test_gradient_routing() -> None:
    method = CSKD(tiny(0, dtype=F64))
    groups = {"stages": method.student.stages, "head": method.student.head}
    both = {"stages", "head"}
    assert slow.reached(method(batch(views=2, dtype=F64)).terms, groups) == {"ce": both, "distil": both}


def test_one_step_moves_the_network_as_the_released_step_does() -> None:
    """Two forwards in training mode, classmates second: weights and batch-norm statistics after one SGD step."""
    data, ours, theirs = batch(views=2, dtype=F64), tiny(0, dtype=F64), tiny(0, dtype=F64)
    loss = CSKD(ours)(data).loss
    z = theirs(data.inputs[0])
    with torch.no_grad():
        target = theirs(data.inputs[1])
    kl = nn.functional.kl_div((z / 4).log_softmax(1), (target / 4).softmax(1), reduction="sum") * 16 / len(z)
    for net, value in ((ours, loss), (theirs, nn.functional.cross_entropy(z, data.labels) + kl)):
        value.backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.1 * p.grad
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-10, atol=1e-12)


def test_autocast_keeps_the_gradient() -> None:
    """Weights that autocast casts under no_grad would have none; so the classmate comes second."""
    method, data = CSKD(tiny(0)), batch(views=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = method(data).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in method.parameters())


@pytest.mark.parametrize("options", [{"temperature": 0}, {"kd_weight": 0}])
def test_refuses(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))}: found"):
        CSKD(tiny(0), **options)

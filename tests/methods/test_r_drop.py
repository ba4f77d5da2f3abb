"""R-Drop against the paper's equation; the draws are dropout's, made twice with one seed."""

from __future__ import annotations

from typing import Any

import pytest
import slow
import torch
from conftest import batch, tiny
from torch import Tensor, nn
from torch.nn import functional as F

from teacherless.errors import InputError
from teacherless.methods.r_drop import RDrop

# Which children of the method each term's gradient may reach; everything else must get none.
ROUTES = {"ce": {"student"}, "kl": {"student"}}

F64 = torch.float64


def make(**options: Any) -> RDrop:
    return RDrop(tiny(0, dtype=F64), **options)


def drawn(method: RDrop, x: Tensor, rate: float) -> list[Tensor]:
    """Logits of both draws, from what the head reads of the batch twice, and dropout with the seed of `terms`."""
    torch.manual_seed(3)
    z = method.student.head(F.dropout(method.student.embed(torch.cat([x, x])), rate))
    return list(z.chunk(2))


def terms(method: RDrop, data: Any) -> dict[str, Tensor]:
    torch.manual_seed(3)
    return method(data).terms


@pytest.mark.parametrize(("alpha", "rate"), [(0.6, 0.1), (2.0, 0.5)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_terms_equal_the_equation(alpha: float, rate: float, smoothing: float) -> None:
    method, data = make(alpha=alpha, dropout=rate), batch(dtype=F64)
    method.smoothing = smoothing
    a, b = drawn(method, data.inputs[0], rate)
    found = terms(method, data)
    ce = slow.mean_ce(a, data.labels, smoothing) + slow.mean_ce(b, data.labels, smoothing)
    assert found["ce"].item() == slow.exactly(ce)
    assert found["kl"].item() == slow.exactly(alpha / 2 * (slow.mean_kl(a, b) + slow.mean_kl(b, a)))
    assert found["kl"].item() > 1e-6


def test_gradient_moves_both_draws() -> None:
    method, data = make(alpha=1.3), batch(dtype=F64)
    a, b = drawn(method, data.inputs[0], 0.1)
    p, q = a.log_softmax(1), b.log_softmax(1)
    both = (p.exp() * (p - q)).sum(1).mean() + (q.exp() * (q - p)).sum(1).mean()
    params = list(method.parameters())
    expected = torch.autograd.grad(1.3 / 2 * both, params)
    for ours, theirs in zip(torch.autograd.grad(terms(method, data)["kl"], params), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)


def test_gradient_routing() -> None:
    method = make()
    groups = {"stages": method.student.stages, "head": method.student.head}
    both = {"stages", "head"}
    assert slow.reached(method(batch(dtype=F64)).terms, groups) == {"ce": both, "kl": both}


def test_defaults_are_the_papers() -> None:
    assert (make().alpha, make().dropout) == (0.6, 0.1)


def test_a_student_that_draws_is_left_to_its_own_draws() -> None:
    net = nn.Sequential(tiny(0, dtype=F64), nn.Dropout(0.5))
    method, data = RDrop(net), batch(dtype=F64)
    assert method.dropout == 0
    torch.manual_seed(3)
    a, b = net(torch.cat([data.inputs[0]] * 2)).chunk(2)
    assert terms(method, data)["kl"].item() == slow.exactly(0.3 * (slow.mean_kl(a, b) + slow.mean_kl(b, a)))


def test_evaluation_draws_nothing() -> None:
    assert make().eval()(batch(dtype=F64)).terms["kl"].item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("options", [{"alpha": 0}, {"dropout": 0}, {"dropout": 1}])
def test_refuses(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))}: found"):
        make(**options)


def test_refuses_a_network_whose_two_predictions_would_be_equal() -> None:
    with pytest.raises(InputError, match="student: Linear draws nothing in training"):
        RDrop(nn.Linear(4, 2))

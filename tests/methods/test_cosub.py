"""cosub against the paper's equation; the draws are dropout's, made twice with one seed."""

from __future__ import annotations

from typing import Any

import pytest
import slow
import torch
from conftest import CLASSES, batch, tiny
from test_r_drop import drawn, terms
from torch import nn

from teacherless import models
from teacherless.errors import InputError
from teacherless.methods.cosub import Cosub

# Which children of the method each term's gradient may reach; everything else must get none.
ROUTES = {"ce": {"student"}, "soft": {"student"}}

F64 = torch.float64


def make(**options: Any) -> Cosub:
    return Cosub(tiny(0, dtype=F64), **options)


@pytest.mark.parametrize(("weight", "rate"), [(0.5, 0.1), (0.2, 0.4)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_terms_equal_the_equation(weight: float, rate: float, smoothing: float) -> None:
    method, data = make(weight=weight, dropout=rate), batch(dtype=F64)
    method.smoothing = smoothing
    a, b = drawn(method, data.inputs[0], rate)
    found = terms(method, data)
    hard = [slow.mean_ce(z, data.labels, smoothing) for z in (a, b)]
    pairs = [*zip(slow.rows(a), slow.rows(b), strict=True), *zip(slow.rows(b), slow.rows(a), strict=True)]
    soft = slow.mean(slow.soft_ce(own, slow.softmax(other)) for own, other in pairs)
    assert found["ce"].item() == slow.exactly((1 - weight) * slow.mean(hard))
    assert found["soft"].item() == slow.exactly(weight * soft)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_released_is_a_sigmoid_for_each_class(smoothing: float) -> None:
    method, data = make(loss="bce"), batch(dtype=F64)
    method.smoothing = smoothing
    a, b = drawn(method, data.inputs[0], 0.1)
    found = terms(method, data)
    targets = [slow.onehot(int(y), CLASSES, smoothing) for y in data.labels]
    hard = [slow.bce(row, t) / CLASSES for z in (a, b) for row, t in zip(slow.rows(z), targets, strict=True)]
    pairs = [(a, b.sigmoid()), (b, a.sigmoid())]
    soft = [slow.bce(u, v) / CLASSES for z, t in pairs for u, v in zip(slow.rows(z), slow.rows(t), strict=True)]
    assert found["ce"].item() == slow.exactly(slow.mean(hard) / 2)
    assert found["soft"].item() == slow.exactly(slow.mean(soft) / 2)
    method.class_weights = torch.full((CLASSES,), 3.0, dtype=F64)
    again = terms(method, data)
    assert again["ce"].item() == slow.exactly(3 * slow.mean(hard) / 2)
    assert again["soft"].item() == slow.exactly(slow.mean(soft) / 2)


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_the_other_submodel_is_a_constant(loss: str) -> None:
    method, data = make(loss=loss), batch(dtype=F64)
    a, b = drawn(method, data.inputs[0], 0.1)
    p, q = (z.detach().softmax(1) if loss == "ce" else z.detach().sigmoid() for z in (a, b))
    expected = (
        nn.functional.cross_entropy(a, q) + nn.functional.cross_entropy(b, p)
        if loss == "ce"
        else nn.functional.binary_cross_entropy_with_logits(torch.cat([a, b]), torch.cat([q, p])) * 2
    )
    params = list(method.parameters())
    wanted = torch.autograd.grad(expected / 4, params)
    for ours, theirs in zip(torch.autograd.grad(terms(method, data)["soft"], params), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "options"),
    [("vit_tiny_patch16_224", {"img_size": 32, "depth": 2}), ("convnext_atto", {"depths": (1, 1, 1, 1)})],
)
def test_drop_path_of_timm_is_the_only_draw(name: str, options: dict[str, Any], zoo: None) -> None:
    net = models.create(f"timm/{name}", num_classes=CLASSES, seed=0, drop_path_rate=0.5, **options)
    method, x = Cosub(net), torch.randn(8, 3, 32, 32)
    assert method.dropout == 0
    a, b = method.draws(x)
    assert not torch.equal(a, b)
    method((x, torch.arange(8) % CLASSES)).loss.backward()
    method.eval()
    torch.testing.assert_close(*method.draws(x), rtol=1e-4, atol=1e-5)


def test_gradient_routing() -> None:
    method = make()
    groups = {"stages": method.student.stages, "head": method.student.head}
    both = {"stages", "head"}
    assert slow.reached(method(batch(dtype=F64)).terms, groups) == {"ce": both, "soft": both}


def test_defaults() -> None:
    assert (make().weight, make().loss, make().dropout) == (0.5, "ce", 0.1)


@pytest.mark.parametrize(
    ("options", "named"), [({"weight": 0}, "weight"), ({"weight": 1}, "weight"), ({"loss": "mse"}, "loss")]
)
def test_refuses(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=f"{named}: found"):
        make(**options)

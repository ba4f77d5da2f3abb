"""Label smoothing against the equation."""

from __future__ import annotations

import pytest
import slow
import torch
from conftest import batch, tiny

from teacherless.errors import InputError
from teacherless.methods import METHODS
from teacherless.methods.label_smoothing import LabelSmoothing
from teacherless.methods.plain import Plain

# Which children of the method each term's gradient may reach; everything else must get none.
ROUTES = {"ce": {"student"}}

F64 = torch.float64


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_term_equals_the_equation(smoothing: float) -> None:
    net, data = tiny(0, dtype=F64), batch(dtype=F64)
    expected = slow.mean_ce(net(data.inputs[0]), data.labels, smoothing)
    assert LabelSmoothing(net, smoothing=smoothing)(data).terms["ce"].item() == slow.exactly(expected)


def test_default_is_the_papers() -> None:
    net, data = tiny(0, dtype=F64), batch(dtype=F64)
    assert METHODS["label-smoothing"](net)(data).loss == LabelSmoothing(net, smoothing=0.1)(data).loss


def test_is_plain_with_the_smoothing_of_any_method() -> None:
    net, data = tiny(0, dtype=F64), batch(dtype=F64)
    plain = Plain(net)
    plain.smoothing = 0.1
    assert plain(data).loss == LabelSmoothing(net)(data).loss


@pytest.mark.parametrize("smoothing", [0, 1, -0.1, float("nan")])
def test_refuses_what_is_no_smoothing(smoothing: float) -> None:
    with pytest.raises(InputError, match="smoothing: found"):
        LabelSmoothing(tiny(0), smoothing=smoothing)

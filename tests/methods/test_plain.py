"""Plain against the equation."""

from __future__ import annotations

import pytest
import slow
import torch
from conftest import batch, tiny

from teacherless.methods.plain import Plain

# Which children of the method each term's gradient may reach; everything else must get none.
ROUTES = {"ce": {"student"}}

F64 = torch.float64


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_term_equals_the_equation(smoothing: float) -> None:
    method, data = Plain(tiny(0, dtype=F64)), batch(dtype=F64)
    method.smoothing = smoothing
    found = method(data).terms
    assert found.keys() == {"ce"}
    assert found["ce"].item() == slow.exactly(slow.mean_ce(method.student(data.inputs[0]), data.labels, smoothing))


def test_gradient_routing() -> None:
    method = Plain(tiny(0, dtype=F64))
    groups = {"stages": method.student.stages, "head": method.student.head}
    assert slow.reached(method(batch(dtype=F64)).terms, groups) == {"ce": {"stages", "head"}}

"""BYOT against the paper's equations and the released ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import slow
import torch
from conftest import CLASSES, batch, tiny
from torch import Tensor, nn

from teacherless.errors import InputError
from teacherless.method import Batch
from teacherless.methods.byot import BYOT
from teacherless.models.staged import Staged

# Which children of the method each term's gradient may reach; everything else must get none.
ROUTES = {
    "ce": {"student"},
    "ce_exits": {"exits", "student"},
    "distil": {"exits", "student"},
    "hint": {"exits", "student"},
}

F64 = torch.float64


def make(**options: Any) -> BYOT:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return BYOT(tiny(0, dtype=F64), **options).double()


def exits(method: BYOT, x: Tensor) -> tuple[list[tuple[Tensor, Tensor, Tensor]], list[Tensor], Tensor]:
    """Map, embedding and logits of the shallow exits; the student's maps; its logits."""
    maps = method.student.features(x)
    return [leave(f, 2, 2) for leave, f in zip(method.exits, maps, strict=False)], maps, method.student(x)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("options", "alpha", "temperature", "weight"),
    [
        ({}, 0.3, 3.0, 0.03),
        ({"alpha": 0.8, "temperature": 1.0, "hint_weight": 2.0}, 0.8, 1.0, 2.0),
        ({"exits": "separable"}, 0.3, 3.0, 0.03),
    ],
)
def test_every_term_equals_the_equation(
    options: dict[str, Any], alpha: float, temperature: float, weight: float, smoothing: float
) -> None:
    method, data = make(**options), batch(dtype=F64)
    method.smoothing = smoothing
    shallow, maps, z = exits(method, data.inputs[0])
    assert len(shallow) == 2
    expected = {
        "ce": slow.mean_ce(z, data.labels, smoothing),
        "ce_exits": (1 - alpha) * math.fsum(slow.mean_ce(q, data.labels, smoothing) for _, _, q in shallow),
        "distil": alpha * temperature**2 * math.fsum(slow.mean_kl(q, z, temperature) for _, _, q in shallow),
        "hint": weight * math.fsum(slow.mean_square(f, maps[-1]) for f, _, _ in shallow),
    }
    found = method(data).terms
    assert found.keys() == expected.keys()
    for name, term in found.items():
        assert term.item() == slow.exactly(expected[name]), name


def test_variant_released_is_the_released_step() -> None:
    """CE, and per shallow exit 0.7 CE + 0.3 soft CE at T = 3 without T²; 0.03 ‖linear(e_i) - e_C‖ over the batch, not
    for the deepest of them."""
    method, data = make(**BYOT.variants["released"]), batch(dtype=F64)
    shallow, maps, z = exits(method, data.inputs[0])
    expected = slow.mean_ce(z, data.labels)
    soft = [slow.softmax(row, 3) for row in slow.rows(z)]
    for _, _, q in shallow:
        expected += 0.7 * slow.mean_ce(q, data.labels)
        expected += 0.3 * slow.mean(map(lambda a, b: slow.soft_ce(a, b, 3), slow.rows(q), soft))
    goal = method.student.pool(maps[-1])
    (linear,) = method.adapters  # of the shallowest; the other exit has no hint
    adapted = [[math.fsum(w * v for w, v in zip(row, e, strict=True)) + bias.item()
                for row, bias in zip(slow.rows(linear.weight), linear.bias, strict=True)]
               for e in slow.rows(shallow[0][1])]  # fmt: skip
    square = math.fsum((a - b) ** 2 for x, y in zip(adapted, slow.rows(goal), strict=True)
                       for a, b in zip(x, y, strict=True))  # fmt: skip
    expected += 0.03 * math.sqrt(square)
    assert method(data).loss.item() == slow.exactly(expected)


def test_released_exits_are_separable_convolutions_behind_an_attention() -> None:
    leave = make(**BYOT.variants["released"]).exits[0]  # 4 -> 8 -> 12 channels, 8x8 -> 4x4 -> 2x2
    kinds = [type(m).__name__ for m in leave.before]
    assert kinds == ["Attention", "Sequential", "Sequential"]
    convs = [m for m in leave.before.modules() if isinstance(m, nn.Conv2d)]
    assert [c.groups == c.in_channels for c in convs] == [True, False] * 6
    assert leave.before(torch.randn(2, 4, 8, 8, dtype=F64)).shape == (2, 12, 2, 2)
    attention, x = leave.before[0].eval(), torch.randn(1, 4, 8, 8, dtype=F64)
    weight = attention(x) / x
    assert (weight > 0).all() and (weight < 1).all()


def routing(method: BYOT, data: Batch) -> dict[str, set[str]]:
    groups: dict[str, nn.Module] = {f"stage{i}": stage for i, stage in enumerate(method.student.stages)}
    groups |= {"head": method.student.head}
    for i, leave in enumerate(method.exits):
        groups |= {f"exit{i} layers": nn.ModuleList([leave.before, leave.after]), f"exit{i} head": leave.head}
    if method.adapters:
        groups["adapters"] = method.adapters
    return slow.reached(method(data).terms, groups)


def test_gradient_routing() -> None:
    """The deepest exit (the last stage and the head) learns from labels only."""
    lower = {"stage0", "stage1"}
    layers, heads = {"exit0 layers", "exit1 layers"}, {"exit0 head", "exit1 head"}
    expected = {
        "ce": lower | {"stage2", "head"},
        "ce_exits": lower | layers | heads,
        "distil": lower | layers | heads,
        "hint": lower | layers,
    }
    assert routing(make(), batch(dtype=F64)) == expected
    expected["hint"] = {"stage0", "exit0 layers", "adapters"}
    assert routing(make(**BYOT.variants["released"]), batch(dtype=F64)) == expected


@pytest.mark.parametrize("options", [{}, BYOT.variants["released"], {"hint_weight": 0}])
def test_every_parameter_gets_a_gradient(options: dict[str, Any]) -> None:
    method = make(**options)
    (group,) = method.param_groups()
    method(batch(dtype=F64)).loss.backward()
    assert all(p.grad is not None for p in group["params"])
    assert {id(p) for p in group["params"]} == {id(p) for p in method.parameters()}


def test_distillation_takes_the_deepest_exit_as_a_constant() -> None:
    method, data = make(), batch(dtype=F64)
    params = list(method.parameters())
    found = torch.autograd.grad(method(data).terms["distil"], params, allow_unused=True)
    shallow, _, z = exits(method, data.inputs[0])
    target = (z / 3).softmax(1).detach()
    loss = sum(-0.3 * 9 * (target * (q / 3).log_softmax(1)).sum(1).mean() for _, _, q in shallow)
    expected = torch.autograd.grad(loss, params, allow_unused=True)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)


def test_without_the_hint() -> None:
    assert make(hint_weight=0)(batch(dtype=F64)).terms.keys() == {"ce", "ce_exits", "distil"}


def test_ships_the_plain_network_and_the_ensemble_is_the_mean_probability() -> None:
    method, data = make().eval(), batch(dtype=F64)
    assert method.students()["student"].state_dict().keys() == tiny(0).state_dict().keys()
    shallow, _, z = exits(method, data.inputs[0])
    p = torch.stack([q.softmax(1) for q in (*(q for _, _, q in shallow), z)]).mean(0)
    torch.testing.assert_close(method.ensemble()(data.inputs[0]), p.log())
    assert method(data).logits.shape == (1, len(data.labels), CLASSES)


def test_exits_start_from_their_own_draws() -> None:
    method = make()
    heads = [method.student.head.weight, *(leave.head.weight for leave in method.exits)]
    assert not any(torch.equal(a, b) for i, a in enumerate(heads) for b in heads[:i])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"alpha": 1.5}, "alpha: found 1.5"),
        ({"alpha": 0}, "alpha: found 0"),
        ({"temperature": 0}, "temperature: found 0"),
        ({"hint_weight": -1}, "hint_weight: found -1"),
        ({"distil": "mse"}, "distil: found 'mse'"),
        ({"exits": "none"}, "exits: found 'none'"),
        ({"hint_weight": 0, "hint": "distance"}, "hint: found 'distance'; it has no effect with hint_weight=0"),
    ],
)
def test_refuses(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        make(**options)


def test_refuses_a_student_without_an_inside() -> None:
    with pytest.raises(InputError, match=r"^byot: needs a student with stages and found Linear"):
        BYOT(nn.Linear(2, 2))
    with pytest.raises(InputError, match="byot: found a student of 1 stage"):
        BYOT(Staged([nn.Conv2d(1, 2, 3)], [2], nn.Linear(2, 3)))

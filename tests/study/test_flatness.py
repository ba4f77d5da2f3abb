"""Flatness against weights that are moved by hand; the network that is looked at is not changed."""

from __future__ import annotations

import copy
import json
import math

import pytest
import slow
import torch
from conftest import batch, tiny
from torch import nn

from teacherless.study import flatness


def loss(net: nn.Module, batches: list[object]) -> float:
    with torch.no_grad():
        return slow.mean(
            slow.ce(row, int(c))
            for b in batches
            for row, c in zip(slow.rows(net(b.inputs[0])), b.labels, strict=True)  # type: ignore[attr-defined]
        )


@pytest.mark.parametrize("direction", [flatness.relative_noise, flatness.filter_normalised, flatness.unit_length])
def test_flatness_against_moving_the_weights(direction: flatness.Direction) -> None:
    net, batches, scales, draws = tiny(0, dtype=torch.float64), [batch(0), batch(1)], [0.0, 0.1, 0.5], 3
    batches = [b._replace(inputs=(b.inputs[0].double(),)) for b in batches]
    found = flatness.flatness(net, batches, scales, direction=direction, draws=draws, seed=4)
    generator = torch.Generator().manual_seed(4)
    by_hand = torch.zeros(draws, len(scales), dtype=torch.float64)
    for draw in range(draws):
        noise = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in net.parameters()]
        length = math.hypot(*(float(v) for e in noise for v in e.flatten()))
        for i, scale in enumerate(scales):
            moved = copy.deepcopy(net).eval()
            for p, e in zip(moved.parameters(), noise, strict=True):
                if direction is flatness.relative_noise:
                    rms = math.sqrt(slow.mean(float(v) ** 2 for v in p.detach().flatten()))
                    p.data += scale * rms * e
                elif direction is flatness.unit_length:
                    p.data += scale * e / length
                elif p.dim() > 1:
                    for row, step in zip(p.data, e, strict=True):
                        row += scale * step * math.hypot(*row.flatten().tolist()) / math.hypot(*step.flatten().tolist())
            by_hand[draw, i] = loss(moved, batches)
    assert found["loss"] == pytest.approx(by_hand.mean(0).tolist(), rel=1e-10)
    assert found["loss_std"][1:] == pytest.approx(by_hand.std(0).tolist()[1:], rel=1e-8)
    assert found["loss"][0] == pytest.approx(found["start_loss"]) == loss(net.eval(), batches)
    assert found["top1"][0] == found["start_top1"]
    assert json.loads(json.dumps(found)) == found


def test_flatness_touches_nothing() -> None:
    net = tiny(0).train()
    net.stages[0].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    rng = torch.random.get_rng_state()
    first = flatness.flatness(net, [batch()], [0.3], draws=1)
    assert (
        first == flatness.flatness(net, [batch()], [0.3], draws=1) != flatness.flatness(net, [batch()], [0.3], seed=1)
    )
    assert first["loss_std"] == [None]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert modes == [m.training for m in net.modules()]
    assert torch.equal(rng, torch.random.get_rng_state())
    assert flatness.flatness(net, [batch()], [1e30], draws=2)["loss"] == [None]  # not finite: not a number in JSON

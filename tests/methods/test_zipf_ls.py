"""Zipf-LS against the paper's equation, a class and a place at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import slow
import torch
from conftest import CLASSES, batch, tiny
from torch import Tensor, nn
from torch.nn import functional as F

from teacherless.errors import InputError
from teacherless.method import Batch
from teacherless.methods.zipf_ls import ZipfLS, rank
from teacherless.models.staged import Staged

# Which children of the method each term's gradient may reach; everything else must get none.
ROUTES = {"ce": {"student"}, "zipf": {"student"}}

F64 = torch.float64


def make(**options: Any) -> ZipfLS:
    return ZipfLS(tiny(0, dtype=F64), **options)


def scores(method: ZipfLS, x: Tensor) -> list[list[float]]:
    """Votes of every place, or the logits."""
    net = method.student
    if not method.dense:
        return slow.rows(net(x))
    last = net.features(x)[-1]
    if method.upsample > 1:
        size = [method.upsample * side for side in last.shape[2:]]
        last = F.interpolate(last, size, mode="bilinear", align_corners=False)
    found = [[0.0] * CLASSES for _ in x]
    for b, row in enumerate(last):
        for i in range(row.shape[1]):
            for j in range(row.shape[2]):
                found[b][int(net.head(row[:, i, j]).argmax())] += 1
    return found


def divergence(z: list[float], y: int, votes: list[float], power: float) -> float:
    wrong = [c for c in range(len(z)) if c != y]
    fall = {c: (1 + sum(v > votes[c] for v in votes)) ** -power for c in wrong}
    q = [fall[c] / math.fsum(fall.values()) for c in wrong]
    log_p = slow.log_softmax([z[c] for c in wrong])
    return math.fsum(a * (math.log(a) - b) for a, b in zip(q, log_p, strict=True))


@pytest.mark.parametrize(
    "options", [{}, {"upsample": 1}, {"upsample": 3, "power": 2.0}, {"dense": False}, {"weight": 1.5}], ids=str
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_terms_equal_the_equation(options: dict[str, Any], smoothing: float) -> None:
    method, data = make(**options), batch(size=12, dtype=F64)
    method.smoothing = smoothing
    z = method.student(data.inputs[0])
    found = method(data).terms
    assert found["ce"].item() == slow.exactly(slow.mean_ce(z, data.labels, smoothing))
    each = zip(slow.rows(z), data.labels.tolist(), scores(method, data.inputs[0]), strict=True)
    expected = slow.mean(divergence(row, y, votes, method.power) for row, y, votes in each)
    assert found["zipf"].item() == slow.exactly(method.weight * expected)


def test_places_vote_otherwise_than_their_mean() -> None:
    x = batch(size=12, dtype=F64).inputs[0]
    votes = torch.tensor(scores(make(), x))
    assert (votes > 0).sum(1).max() > 1, "or the test above sees no ranking"
    assert votes.sum(1).tolist() == [16] * 12


def test_equal_scores_share_the_best_rank() -> None:
    found = rank(torch.tensor([[3.0, 0, 5, 3, 0], [1, 1, 1, 1, 1]]))
    assert found.tolist() == [[2, 4, 1, 2, 4], [1, 1, 1, 1, 1]]


def test_gradient_is_that_of_a_constant_ranking() -> None:
    """d zipf / dz = p̃ - q for the wrong classes, and 0 for the right one."""
    method, data = make(dense=False, weight=1.0), batch(dtype=F64)

    class Fixed(Staged):
        def look(self, x: Tensor) -> Any:
            return super().look(x)._replace(logits=z)

    z = torch.randn(6, CLASSES, dtype=F64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    method.student.__class__ = Fixed
    (grad,) = torch.autograd.grad(method(data).terms["zipf"], z)
    z = z.detach()
    for b, y in enumerate(data.labels.tolist()):
        wrong = [c for c in range(CLASSES) if c != y]
        ranks = [1 + int((z[b] > z[b, c]).sum()) for c in wrong]
        q = [1 / r / math.fsum(1 / s for s in ranks) for r in ranks]
        p = slow.softmax([float(z[b, c]) for c in wrong])
        assert grad[b, y] == 0
        assert grad[b, wrong].tolist() == pytest.approx([(a - t) / 6 for a, t in zip(p, q, strict=True)], rel=1e-9)


def test_gradient_routing() -> None:
    method = make()
    groups = {"stages": method.student.stages, "head": method.student.head}
    both = {"stages", "head"}
    assert slow.reached(method(batch(dtype=F64)).terms, groups) == {"ce": both, "zipf": both}


def test_the_right_class_of_a_mixed_image_is_its_largest_share() -> None:
    data = batch(dtype=F64)
    shares = 0.7 * F.one_hot(data.labels, CLASSES) + 0.3 * F.one_hot(data.labels.roll(1), CLASSES)
    mixed = make()(Batch(data.inputs, shares.double()))
    assert torch.equal(mixed.terms["zipf"], make()(data).terms["zipf"])


def test_defaults_are_the_authors_for_cifar() -> None:
    method = make()
    assert (method.weight, method.power, method.upsample, method.dense) == (0.1, 1.0, 2, True)


@pytest.mark.parametrize("options", [{"weight": 0}, {"power": -1}, {"upsample": 0}, {"upsample": 3, "dense": False}])
def test_refuses(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))}: found"):
        make(**options)


def test_refuses_a_head_that_does_not_read_the_map() -> None:
    net = tiny(0)
    net.head = nn.Sequential(nn.Linear(12, 7), nn.Linear(7, CLASSES))
    with pytest.raises(InputError, match="zipf-ls: found a head that reads 7 and a last map of 12 channels"):
        ZipfLS(net)
    with pytest.raises(InputError, match="zipf-ls: needs a student with stages"):
        ZipfLS(nn.Linear(4, 2))

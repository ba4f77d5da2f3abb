"""DDGSD against the paper's equations, written as slow loops."""

from __future__ import annotations

import copy
import math
from itertools import combinations, permutations
from typing import Any

import pytest
import slow
import torch
from conftest import CLASSES, batch, tiny
from torch import Tensor, nn

from teacherless.errors import InputError
from teacherless.method import Batch
from teacherless.methods import METHODS
from teacherless.methods.ddgsd import DDGSD
from teacherless.methods.dml import DML
from teacherless.methods.plain import Plain

# Which children of the method each term's gradient may reach; everything else must get none.
ROUTES = {"ce": {"student"}, "kl": {"student"}, "mmd": {"student"}}

F64 = torch.float64


def make(**options: Any) -> DDGSD:
    return DDGSD(tiny(0, dtype=F64), **options)


def grads(term: Tensor, net: nn.Module) -> list[Tensor | None]:
    return list(torch.autograd.grad(term, list(net.parameters()), retain_graph=True, allow_unused=True))


def slow_mmd(a: list[list[float]], b: list[list[float]]) -> float:
    """‖mean_i a_i - mean_i b_i‖², one feature at a time."""
    columns = zip(zip(*a, strict=True), zip(*b, strict=True), strict=True)
    return math.fsum((slow.mean(x) - slow.mean(y)) ** 2 for x, y in columns)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize(("views", "temperature", "smoothing"), [(2, 1.0, 0.0), (2, 4.0, 0.1), (3, 2.0, 0.0)])
def test_every_term_equals_the_equation(views: int, temperature: float, smoothing: float, detach: bool) -> None:
    method = make(views=views, temperature=temperature, detach=detach, kl_weight=0.7, mmd_weight=0.3)
    method.smoothing = smoothing
    data = batch(views=views, dtype=F64)
    h = method.student.embed(torch.cat(data.inputs))  # one forward: batch statistics are shared
    z = [slow.rows(part) for part in method.student.head(h).chunk(views)]
    features = [slow.rows(part) for part in h.chunk(views)]
    size, labels = range(len(data.labels)), [int(y) for y in data.labels]
    expected = {
        "ce": math.fsum(slow.mean(slow.ce(z[v][b], labels[b], smoothing) for b in size) for v in range(views)),
        "kl": 0.7 * temperature**2 / (views - 1) * math.fsum(
            slow.mean(slow.kl(z[v][b], z[other][b], temperature) for b in size)
            for v, other in permutations(range(views), 2)
        ),
        "mmd": 0.3 * math.fsum(slow_mmd(features[v], features[w]) for v, w in combinations(range(views), 2)),
    }  # fmt: skip
    found = method(data).terms
    assert found.keys() == expected.keys()
    for name, term in found.items():
        assert term.item() == slow.exactly(expected[name]), name


def test_defaults_are_the_papers() -> None:
    method = METHODS["ddgsd"](tiny(0))
    assert (method.kl_weight, method.mmd_weight, method.temperature, method.detach) == (1.0, 5e-4, 1.0, True)
    assert method.wants.views == 2


def test_equal_views_cost_exactly_twice_plains_ce() -> None:
    x, labels, index = batch(dtype=F64)
    out = make()(Batch((x[0], x[0]), labels, index))
    plain = Plain(tiny(0, dtype=F64))(Batch(x, labels))
    assert out.loss.item() == pytest.approx(2 * plain.loss.item(), rel=1e-12)
    assert out.terms["kl"].item() == pytest.approx(0, abs=1e-15)
    assert out.terms["mmd"].item() == pytest.approx(0, abs=1e-30)
    torch.testing.assert_close(out.logits, plain.logits)


def test_mmd_of_different_features_is_not_zero() -> None:
    """The ports' mistake: a difference of global scalar means is zero for quite different features."""
    method, data = make(mmd_weight=1.0), batch(views=2, dtype=F64)
    a, b = method.student.embed(torch.cat(data.inputs)).chunk(2)
    found = method(data).terms["mmd"].item()
    assert found == slow.exactly(slow_mmd(slow.rows(a), slow.rows(b)))
    assert found > 100 * (a.mean() - b.mean()).square().item()


def test_gradient_routing() -> None:
    method = make()
    groups = {"stages": method.student.stages, "head": method.student.head}
    both = {"stages", "head"}
    assert slow.reached(method(batch(views=2, dtype=F64)).terms, groups) == {"ce": both, "kl": both, "mmd": {"stages"}}


@pytest.mark.parametrize("detach", [True, False])
def test_the_other_view_is_a_target_only_where_detach_says_so(detach: bool) -> None:
    """Moving the first view's logits changes KL through its own prediction; as a target only without detach."""
    method, data = make(mmd_weight=0, detach=detach), batch(views=2, dtype=F64)
    z = method.student(torch.cat(data.inputs))
    found = torch.autograd.grad(method(data).terms["kl"], list(method.student.parameters()))
    p, q = (part.softmax(1) for part in z.chunk(2))
    # Σ q log(q/p) + Σ p log(p/q): with constants in the place of the targets, or with none.
    a, b = (p.detach(), q.detach()) if detach else (p, q)
    loss = (b * (b / p).log() + a * (a / q).log()).sum(1).mean()
    for ours, theirs in zip(found, torch.autograd.grad(loss, list(method.student.parameters())), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)


def test_detach_changes_the_gradient_but_not_the_number() -> None:
    data = batch(views=2, dtype=F64)
    one_way, both_ways = make(), make(detach=False)
    first, second = one_way(data).terms["kl"], both_ways(data).terms["kl"]
    assert first == second
    assert not torch.allclose(grads(first, one_way.student)[0], grads(second, both_ways.student)[0])


def test_three_views_learn_from_the_mean_of_the_others() -> None:
    method, data = make(views=3, mmd_weight=0), batch(views=3, dtype=F64)
    z = method.student(torch.cat(data.inputs)).chunk(3)
    p = [part.softmax(1).detach() for part in z]
    loss = sum(-((p[(v + 1) % 3] + p[(v + 2) % 3]) / 2 * z[v].log_softmax(1)).sum(1).mean() for v in range(3))
    found = torch.autograd.grad(method(data).terms["kl"], list(method.student.parameters()))
    for ours, theirs in zip(found, torch.autograd.grad(loss, list(method.student.parameters())), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("views", [2, 3])
def test_kl_part_is_dml_of_one_peer_with_views(views: int) -> None:
    data = batch(views=views, dtype=F64)
    ours = make(views=views, mmd_weight=0, temperature=2.0)
    theirs = DML(tiny(0, dtype=F64), views=views, temperature=2.0)
    a, b = ours(data), theirs(data)
    assert a.terms["ce"].item() == slow.exactly(b.terms["ce"].item())
    assert a.terms["kl"].item() == slow.exactly(b.terms["mimicry"].item())
    a.loss.backward()
    b.loss.backward()
    for p, q in zip(ours.student.parameters(), theirs.peers[0].parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-13)


def test_ablation_rows_leave_terms_out() -> None:
    data = batch(views=2, dtype=F64)
    full = make()(data).terms
    for options, names in (
        ({"kl_weight": 0}, {"ce", "mmd"}),
        ({"mmd_weight": 0}, {"ce", "kl"}),
        ({"kl_weight": 0, "mmd_weight": 0}, {"ce"}),
    ):
        terms = make(**options)(data).terms
        assert terms.keys() == names
        assert all(terms[name].item() == slow.exactly(full[name].item()) for name in names)


def test_views_share_batch_statistics_unless_told_otherwise() -> None:
    data = batch(views=2, dtype=F64)
    joint, apart = make(), make(joint=False)
    joint(data)
    apart(data)
    expected = tiny(0, dtype=F64)
    expected(torch.cat(data.inputs))
    torch.testing.assert_close(joint.student.state_dict(), expected.state_dict())
    expected = tiny(0, dtype=F64)
    for x in data.inputs:
        expected(x)
    torch.testing.assert_close(apart.student.state_dict(), expected.state_dict())


@pytest.mark.parametrize("joint", [True, False])
def test_training_accuracy_is_the_first_views(joint: bool) -> None:
    method, data = make(joint=joint), batch(views=2, dtype=F64)
    first = method.student(torch.cat(data.inputs)).chunk(2)[0] if joint else method.student(data.inputs[0])
    torch.testing.assert_close(method(data).logits, first.detach()[None])


def test_variant_mse_logits_is_the_ports_step() -> None:
    """One step written from the port's description: two forwards, KL / C at T = 3 without T², MSE of logits."""
    data, net = batch(views=2, dtype=F64), tiny(0, dtype=F64)
    expected_net = copy.deepcopy(net)
    method = DDGSD(net, **DDGSD.variants["mse-logits"])
    out = method(data)
    z_a, z_b = (expected_net(x) for x in data.inputs)
    a, b, labels = slow.rows(z_a), slow.rows(z_b), [int(y) for y in data.labels]
    samples = range(len(labels))
    expected = {
        "ce": slow.mean(slow.ce(a[i], labels[i]) + slow.ce(b[i], labels[i]) for i in samples),
        "kl": slow.mean((slow.kl(a[i], b[i], 3) + slow.kl(b[i], a[i], 3)) / CLASSES for i in samples),
        "mse": 5e-4 * slow.mean_square(z_a, z_b),
    }
    assert out.terms.keys() == expected.keys()
    for name, term in out.terms.items():
        assert term.item() == slow.exactly(expected[name]), name
    p, q = (z_a / 3).softmax(1), (z_b / 3).softmax(1)  # and its gradient: nothing is a constant
    loss = nn.functional.cross_entropy(z_a, data.labels) + nn.functional.cross_entropy(z_b, data.labels)
    loss = loss + (q * (q / p).log() + p * (p / q).log()).mean() + 5e-4 * (z_a - z_b).square().mean()
    loss.backward()
    out.loss.backward()
    for ours, theirs in zip(net.parameters(), expected_net.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-13)


def test_any_network_will_do_without_mmd() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))
    assert DDGSD(net, mmd_weight=0)(batch(views=2)).terms.keys() == {"ce", "kl"}
    with pytest.raises(InputError, match=r"^ddgsd: MMD needs a student with stages.*found Sequential.*mmd_weight=0"):
        DDGSD(net)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"views": 1}, "views: found 1"),
        ({"temperature": 0}, "temperature: found 0"),
        ({"kl_weight": -1}, "kl_weight: found -1"),
        ({"mmd_weight": math.inf}, "mmd_weight: found inf"),
        ({"match": "maps"}, "match: found 'maps'"),
        ({"kl_weight": 0, "temperature": 3.0}, "temperature: found 3.0; it has no effect with kl_weight=0"),
        ({"kl_weight": 0, "detach": False}, "detach: found False; it has no effect with kl_weight=0"),
        ({"mmd_weight": 0, "match": "logits"}, "match: found 'logits'; it has no effect with mmd_weight=0"),
    ],
)
def test_refuses(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        DDGSD(tiny(0), **options)

"""FRSKD against the paper's equations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import slow
import torch
from conftest import CLASSES, batch, tiny
from torch import Tensor, nn

from teacherless.errors import InputError
from teacherless.methods._parts import resize
from teacherless.methods.frskd import FRSKD, Mix, shrink_by_maximum
from teacherless.models import create
from teacherless.models.staged import Staged

# Which children of the method each term's gradient may reach; everything else must get none.
ROUTES = {"ce": {"student"}, "ce_refined": {"refiner", "student"}, "distil": {"student"}, "attention": {"student"}}

F64 = torch.float64


def make(**options: Any) -> FRSKD:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return FRSKD(tiny(0, dtype=F64), **options).double()


def look(sample: Tensor) -> list[float]:
    """Squares, averaged over channels, scaled to unit length."""
    places = [slow.mean(v.item() ** 2 for v in channels) for channels in sample.flatten(1).t()]
    length = math.sqrt(math.fsum(v * v for v in places))
    return [v / length for v in places]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("options", "temperature", "kd", "attention"),
    [({}, 4, 2, 100), ({"temperature": 1.5, "kd_weight": 0.5, "attention_weight": 7}, 1.5, 0.5, 7)],
)
def test_every_term_equals_the_equation(
    options: dict[str, Any], temperature: float, kd: float, attention: float, smoothing: float
) -> None:
    method, data = make(**options), batch(dtype=F64)
    method.smoothing = smoothing
    maps, z = method.student.features(data.inputs[0]), method.student(data.inputs[0])
    refined, target = method.refiner(maps)
    misses = [
        slow.mean((a - b) ** 2 for f, t in zip(own, other, strict=True) for a, b in zip(look(f), look(t), strict=True))
        for own, other in zip(maps, refined, strict=True)
    ]
    expected = {
        "ce": slow.mean_ce(z, data.labels, smoothing),
        "ce_refined": slow.mean_ce(target, data.labels, smoothing),
        "distil": kd * temperature**2 * slow.mean_kl(z, target, temperature),
        "attention": attention * math.fsum(misses),
    }
    found = method(data).terms
    assert found.keys() == expected.keys()
    for name, term in found.items():
        assert term.item() == slow.exactly(expected[name]), name


def test_the_refiner_goes_down_and_up_again() -> None:
    """The deepest map reaches the shallowest refined one, and the shallowest map the deepest refined one."""
    method = make().eval()
    maps = [torch.randn(2, c, s, s, dtype=F64, requires_grad=True) for c, s in ((4, 8), (8, 4), (12, 2))]
    refined, logits = method.refiner(maps)
    assert [t.shape for t in refined] == [f.shape for f in maps]
    assert logits.shape == (2, CLASSES)
    for t in (*refined, logits):
        assert all(g.abs().max() > 0 for g in torch.autograd.grad(t.sum(), maps, retain_graph=True))


def test_the_refiner_mixes_each_map_with_its_neighbours() -> None:
    net = make().eval().refiner
    maps = [torch.randn(2, c, s, s, dtype=F64) for c, s in ((4, 8), (8, 4), (12, 2))]
    own = [enter(f) for enter, f in zip(net.enter, maps, strict=True)]
    middle = net.down[1](own[2], own[1])
    first = net.down[0](middle, own[0])
    second = net.up[0](first, own[1], middle)
    third = net.up[1](second, own[2])
    refined, logits = net(maps)
    for found, expected in zip((*refined, logits), (first, second, third, net.head(net.pool(third))), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_mix_is_a_learned_average() -> None:
    mix = Mix(3, 5, inputs=3, depth=1, pyramid="light").eval()
    with torch.no_grad():
        mix.weight.copy_(torch.tensor([1.0, 3.0, -2.0]))  # negative weights count as 0
    below, a, b = torch.randn(2, 5, 8, 8), torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    average = 0.25 * mix.fit(resize(below, 4, 4)) + 0.75 * a
    torch.testing.assert_close(mix(below, a, b), mix.conv(average), rtol=1e-4, atol=1e-5)


def test_resize_averages_down_and_repeats_up() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert resize(x, 4, 4) is x
    assert resize(x, 2, 2).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    assert resize(x, 8, 8)[0, 0, :2, :2].tolist() == [[0, 0], [0, 0]]
    torch.testing.assert_close(resize(resize(x, 8, 8), 4, 4), x)
    assert resize(x, 3, 3).shape == (1, 1, 3, 3)  # sizes that do not divide
    torch.testing.assert_close(resize(torch.ones(1, 1, 7, 7), 4, 4), torch.ones(1, 1, 4, 4))


@pytest.mark.parametrize(
    ("student", "released", "light"), [("resnet18", 6_375_794, 1_193_010), ("wrn-16-2", 411_885, 84_685)]
)
def test_the_released_refiner_is_as_large_as_the_authors(student: str, released: int, light: int) -> None:
    net = create(student, num_classes=100)
    for options, expected in ((FRSKD.variants["released"], released), ({}, light)):
        assert sum(p.numel() for p in FRSKD(net, **options).refiner.parameters()) == expected


def test_the_released_refiner_enters_twice_and_activates() -> None:
    net = make(**FRSKD.variants["released"]).eval().refiner
    maps = [torch.randn(2, c, s, s, dtype=F64) for c, s in ((4, 8), (8, 4), (12, 2))]
    active = [f.relu() for f in maps]
    own = [enter(f) for enter, f in zip(net.enter, active, strict=True)]
    again = [again(f) for again, f in zip(net.again, active[1:], strict=True)]
    assert all(f.min() == 0 for f in (*own, *again))
    middle = net.down[1](own[2], own[1])
    first = net.down[0](middle, own[0])
    second = net.up[0](first, again[0], middle)
    third = net.up[1](second, again[1])
    refined, logits = net(maps)
    assert [t.shape for t in refined] == [(2, 8, 8, 8), (2, 16, 4, 4), (2, 24, 2, 2)]
    for found, expected in zip((*refined, logits), (first, second, third, net.head(net.pool(third))), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_shrink_by_maximum_starts_at_the_top_left() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert shrink_by_maximum(x, 4, 4) is x
    assert shrink_by_maximum(x, 2, 2).tolist() == [[[[10, 11], [14, 15]]]]
    assert shrink_by_maximum(x, 3, 3).shape == (1, 1, 3, 3)


def test_gradient_routing() -> None:
    """Predictions and maps of the self-teacher are constants where the network learns from them."""
    method = make()
    groups = {"stages": method.student.stages, "head": method.student.head, "refiner": method.refiner}
    assert slow.reached(method(batch(dtype=F64)).terms, groups) == {
        "ce": {"stages", "head"},
        "ce_refined": {"stages", "refiner"},
        "distil": {"stages", "head"},
        "attention": {"stages"},
    }


def test_the_self_teacher_is_a_constant_target() -> None:
    method, data = make(), batch(dtype=F64)
    params = list(method.student.parameters())
    terms = method(data).terms
    maps, z = method.student.features(data.inputs[0]), method.student(data.inputs[0])
    refined, target = method.refiner(maps)
    p = (target / 4).softmax(1).detach()
    distil = -2 * 16 * (p * (z / 4).log_softmax(1)).sum(1).mean()
    attention = 0.0
    for f, t in zip(maps, refined, strict=True):
        a, b = f.pow(2).mean(1).flatten(1), t.detach().pow(2).mean(1).flatten(1)
        attention = attention + 100 * (a / a.norm(dim=1, keepdim=True) - b / b.norm(dim=1, keepdim=True)).pow(2).mean()
    for name, loss in (("distil", distil), ("attention", attention)):
        found = torch.autograd.grad(terms[name], params, retain_graph=True, allow_unused=True)
        expected = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)


def test_every_parameter_gets_a_gradient_also_in_the_refiner() -> None:
    method = make()
    method(batch(dtype=F64)).terms["ce_refined"].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in method.refiner.parameters())


def test_two_stages_are_enough_and_the_student_is_plain() -> None:
    net = tiny(0)
    two = Staged(net.stages[:2], net.channels[:2], nn.Linear(8, CLASSES))
    method = FRSKD(two, attention_weight=0)
    out = method(batch())
    assert out.terms.keys() == {"ce", "ce_refined", "distil"}
    out.loss.backward()
    assert all(p.grad is not None for p in method.parameters())
    assert method.students() == {"student": two}


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0}, {"kd_weight": 0}, {"attention_weight": -1}, {"width": 0}, {"depth": 0}, {"pyramid": "flat"}],
)
def test_refuses(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))}: found"):
        make(**options)


def test_a_wider_refiner_asks_for_a_linear_head() -> None:
    net = tiny(0)
    net.head = nn.Sequential(nn.Linear(12, CLASSES))
    FRSKD(net)
    with pytest.raises(InputError, match=r"^width: found 2; above 1, the student's head must be nn.Linear"):
        FRSKD(net, width=2)


def test_refuses_a_student_without_stages() -> None:
    with pytest.raises(InputError, match=r"^frskd: needs a student with stages and found Linear"):
        FRSKD(nn.Linear(2, 2))

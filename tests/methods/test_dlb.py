"""DLB against the paper's equation, over several steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import slow
import torch
from conftest import CLASSES, batch, tiny
from torch import Tensor, nn

from teacherless.errors import InputError
from teacherless.method import Batch
from teacherless.methods.dlb import DLB
from teacherless.methods.plain import Plain

# Which children of the method each term's gradient may reach; everything else must get none.
ROUTES = {"ce": {"student"}, "distil": {"student"}}

F64 = torch.float64


def make(dtype: torch.dtype = F64, **options: Any) -> DLB:
    return DLB(tiny(0, dtype=dtype), **options)


def data(seed: int = 0, size: int = 6, dtype: torch.dtype = F64) -> Batch:
    """Two distortions of each image, and labels that differ from batch to batch."""
    found = batch(10 * seed, size, views=2, dtype=dtype)
    return found._replace(labels=(found.labels + seed) % CLASSES)


def learn(method: DLB, now: Batch) -> dict[str, Tensor]:
    """A step of plain gradient descent, and its terms."""
    out = method(now)
    out.loss.backward()
    with torch.no_grad():
        for p in method.parameters():
            p -= 0.1 * p.grad
            p.grad = None
    return out.terms


@pytest.mark.parametrize(("alpha", "temperature"), [(1.0, 3.0), (0.4, 1.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_four_steps_equal_the_equation(smoothing: float, alpha: float, temperature: float) -> None:
    """The second distortions of a step ago, with their labels, under the weights of now; the third batch is smaller."""
    method = make(alpha=alpha, temperature=temperature)
    method.smoothing = smoothing
    old: tuple[Batch, list[list[float]]] | None = None
    for step, size in enumerate((6, 6, 4, 6)):
        now, net = data(step, size), copy.deepcopy(method.student)
        z = slow.rows(net(now.inputs[0]))
        ce = [slow.ce(row, int(y), smoothing) for row, y in zip(z, now.labels, strict=True)]
        distil = 0.0
        if old:
            last, said = old
            again = slow.rows(net(last.inputs[1]))
            ce += [slow.ce(row, int(y), smoothing) for row, y in zip(again, last.labels, strict=True)]
            kl = slow.mean(slow.kl(row, q, temperature) for row, q in zip(again, said, strict=True))
            distil = alpha * temperature**2 * kl
            assert distil > 1e-4
        found = learn(method, now)
        assert found["ce"].item() == slow.exactly(slow.mean(ce))
        assert found["distil"].item() == slow.exactly(distil)
        old = now, z


def test_defaults_are_the_papers() -> None:
    assert (make().alpha, make().temperature) == (1.0, 3.0)


def test_first_step_is_plain() -> None:
    theirs = Plain(tiny(0, dtype=F64))(data()._replace(inputs=data().inputs[:1]))
    assert make()(data()).loss.item() == slow.exactly(theirs.loss.item())


def test_labels_that_are_shares_are_kept_too() -> None:
    ids, shares = make(), make()
    for step in range(3):
        now = data(step)
        mixed = now._replace(labels=torch.eye(CLASSES, dtype=F64)[now.labels]) if step != 1 else now
        ours, theirs = learn(shares, mixed), learn(ids, now)
        assert {k: v.item() for k, v in ours.items()} == pytest.approx({k: v.item() for k, v in theirs.items()})


def test_gradient_routing_and_a_constant_past() -> None:
    method = make()
    learn(method, data())
    groups = {"stages": method.student.stages, "head": method.student.head}
    both = {"stages", "head"}
    assert slow.reached(method(data(1)).terms, groups) == {"ce": both, "distil": both}
    assert not any(x.requires_grad for x in method.last)


def test_gradient_is_that_of_the_equation() -> None:
    """Central differences of the loss in weights of every layer, while what was said stays as it was."""
    method = make(alpha=0.7)
    learn(method, data())
    kept = method.state_dict()

    def loss() -> Tensor:
        method.load_state_dict({**kept, **{k: v for k, v in method.state_dict().items() if "last" not in k}})
        return method(data(1)).loss

    params = list(method.parameters())
    for p, g in zip(params, torch.autograd.grad(loss(), params), strict=True):
        place, step = p.data.view(-1), 1e-6
        at = int(g.abs().flatten().argmax())
        before = place[at].item()
        sides = []
        for side in (step, -step):
            place[at] = before + side
            sides.append(loss().item())
        place[at] = before
        assert g.flatten()[at].item() == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-5)


def test_evaluation_keeps_nothing() -> None:
    method = make().eval()
    method(data())
    assert method.last == []


def test_the_last_batch_is_kept_in_its_place() -> None:
    """A recorded step reads and writes at fixed addresses; and a loader may write over what it gave."""
    method = make()
    learn(method, data())
    places = [x.data_ptr() for x in method.last]
    now = data(1)
    expected = [now.inputs[1].clone(), now.labels.clone(), method.student(now.inputs[0]).detach()]
    learn(method, now)
    now.inputs[1].zero_()
    assert [x.data_ptr() for x in method.last] == places
    for x, y in zip(method.last, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)


def test_it_goes_on_from_its_state_to_the_same_bits() -> None:
    method, again, third = make(), make(), make()
    learn(again, data(7, 3))  # what a method kept before gives way
    learn(method, data())
    state = {key: value.clone() for key, value in method.state_dict().items()}
    for other in (again, third):
        other.load_state_dict(state)
        first, second = (learn(each, data(1)) for each in (copy.deepcopy(method), other))
        assert all(torch.equal(first[term], second[term]) for term in first)
    assert torch.equal(state["last.0"], data().inputs[1]), "a state is not written to"
    method.load_state_dict(make().state_dict())
    assert method.last == []
    assert not any(key.startswith("last") for key in method.students()["student"].state_dict())


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = tiny(0, dtype=F64)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        out: Tensor = self.net(a - 2 * b)
        return out


@pytest.mark.parametrize("kind", [tuple, lambda pair: dict(zip("ab", pair, strict=True))])
def test_inputs_of_several_tensors(kind: Any) -> None:
    ours, theirs = DLB(TwoInputs()), make()
    for step in range(3):
        now, other = data(step), data(step + 5)
        pairs = tuple(kind(pair) for pair in zip(now.inputs, other.inputs, strict=True))
        one = tuple(a - 2 * b for a, b in zip(now.inputs, other.inputs, strict=True))
        found, expected = learn(ours, now._replace(inputs=pairs)), learn(theirs, now._replace(inputs=one))
        assert {k: v.item() for k, v in found.items()} == pytest.approx({k: v.item() for k, v in expected.items()})


def test_what_is_kept_moves_with_the_network() -> None:
    method = make()
    learn(method, data())
    method.to(torch.float32)
    assert [x.dtype for x in method.last] == [torch.float32, torch.int64, torch.float32]
    assert all(value.dtype == torch.float32 for value in learn(method, data(1, dtype=torch.float32)).values())


@pytest.mark.parametrize("options", [{"alpha": 0}, {"alpha": -1}, {"temperature": 0}])
def test_refuses(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))}: found"):
        make(**options)


def test_refuses_one_view() -> None:
    with pytest.raises(InputError, match="the method wants 2 views of each sample; found 1"):
        make()(batch(dtype=F64))

"""The targets of a cohort against their equations, a sample at a time."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import slow
import torch
from conftest import CLASSES, batch, tiny
from scipy.optimize import minimize
from torch import Tensor

from teacherless.errors import InputError
from teacherless.method import Batch, Progress
from teacherless.methods import DML
from teacherless.methods import _targets as targets

F64 = torch.float64
KDCL = ["naive", "linear", "min-logit", "general"]
ALL = ["selective", *KDCL]


def make(target: str, peers: int = 3, **options: Any) -> DML:
    return DML(*[tiny(i, dtype=F64) for i in range(peers)], target=target, **options)  # type: ignore[arg-type]


def logits(method: DML, data: Batch) -> list[list[list[float]]]:
    """Of every peer, `[K][B][C]`."""
    return [slow.rows(peer(data.inputs[0])) for peer in method.peers]


def best_mixture(z: Any, labels: list[int]) -> list[float]:
    """Weights on the simplex with the lowest cross-entropy, by a solver of scipy."""

    def cost(a: Any) -> float:
        mixed = [[float(v) for v in row] for row in np.tensordot(a, np.array(z), 1)]
        return slow.mean(slow.ce(row, y) for row, y in zip(mixed, labels, strict=True))

    one = {"type": "eq", "fun": lambda a: a.sum() - 1}
    start = np.full(len(z), 1 / len(z))
    found = minimize(cost, start, bounds=[(0, 1)] * len(z), constraints=one, method="SLSQP", options={"ftol": 1e-14})
    return [float(v) for v in found.x]


def least_error(p: Any, labels: list[int]) -> list[float]:
    """C⁻¹1 / 1ᵀC⁻¹1 of everyone, then without those below 0, until nobody is. `[K][B][C] -> [K]`."""
    e = [[v - (c == y) for row, y in zip(own, labels, strict=True) for c, v in enumerate(row)] for own in p]
    here = list(range(len(p)))
    while True:
        c = [[math.fsum(a * b for a, b in zip(e[i], e[j], strict=True)) / len(labels) for j in here] for i in here]
        found = np.linalg.solve(np.array(c), np.ones(len(here)))
        if found.min() > 0:
            return [float(found[here.index(k)] / found.sum()) if k in here else 0.0 for k in range(len(p))]
        here = [k for k, w in zip(here, found, strict=True) if w > 0]


def expected(name: str, z: Any, labels: list[int], temperature: float, listens: Any) -> float:
    """Σ_k of the mean over the batch of T² KL(target ‖ peer)."""
    peers, size, total = len(z), len(labels), []
    p = [[slow.softmax(row, temperature) for row in own] for own in z]
    mixture = best_mixture(z, labels) if name == "linear" else []
    general = least_error(p, labels)
    for b, y in enumerate(labels):
        own = [z[k][b] for k in range(peers)]
        ce = [slow.ce(row, y) for row in own]
        for k in range(peers):
            if name == "selective":
                better = [j for j in range(peers) if listens[k][j] > 0 and ce[j] < ce[k]]
                weights = math.fsum(listens[k][j] for j in better)
                total += [listens[k][j] / weights * slow.kl(own[k], own[j], temperature) for j in better]
                continue
            if name == "naive":
                target = own[ce.index(min(ce))]
            elif name == "linear":
                target = [math.fsum(a * row[c] for a, row in zip(mixture, own, strict=True)) for c in range(CLASSES)]
            elif name == "general":
                mean = [math.fsum(w * q[b][c] for w, q in zip(general, p, strict=True)) for c in range(CLASSES)]
                target = [temperature * math.log(v) for v in mean]
            else:
                target = [min(row[c] - row[y] for row in own) for c in range(CLASSES)]
            total.append(slow.kl(own[k], target, temperature))
    return temperature**2 * math.fsum(total) / size


@pytest.mark.parametrize("peers", [2, 3])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", ALL)
def test_mimicry_equals_the_equation(name: str, temperature: float, peers: int) -> None:
    method, data = make(name, peers, temperature=temperature, weight=0.7), batch(size=15, dtype=F64)
    z = logits(method, data)
    equal = [[float(j != k) for j in range(peers)] for k in range(peers)]
    wanted = 0.7 * expected(name, z, data.labels.tolist(), temperature, equal)
    found = method(data).terms
    near = {"linear": 2e-2, "general": 1e-6}.get(name, 1e-10)  # two searches; a little on a diagonal
    assert found["mimicry"].item() == pytest.approx(wanted, rel=near)
    assert found["mimicry"].item() > 1e-4
    ce = [slow.mean(slow.ce(row, int(y)) for row, y in zip(own, data.labels, strict=True)) for own in z]
    assert found["ce"].item() == slow.exactly(math.fsum(ce))


def test_selective_with_one_way_edges() -> None:
    """The strongest teaches and is never taught; weights among those that know better are the topology's."""
    rows = ((0.0, 0.25, 0.75), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0))
    method, data = make("selective", topology=rows), batch(size=15, dtype=F64)
    wanted = expected("selective", logits(method, data), data.labels.tolist(), 1.0, rows)
    out = method(data)
    assert out.terms["mimicry"].item() == pytest.approx(wanted, rel=1e-10)
    out.terms["mimicry"].backward()
    assert not any(p.grad is not None and p.grad.any() for p in method.peers[2].parameters())


@pytest.mark.parametrize("name", ALL)
def test_targets_are_constants(name: str) -> None:
    """The gradient in the weights is that of the divergence from a target that does not move."""
    method, data = make(name, temperature=2.0), batch(size=10, dtype=F64)
    z = torch.stack([peer(data.inputs[0]) for peer in method.peers])
    gone, rows = torch.zeros(3, dtype=torch.bool), method.listening
    log_p = (z / 2).log_softmax(-1)
    voices = targets.Voices(log_p.detach(), 2.0, data.labels, rows, slice(None), gone, lambda x: x)
    q, _ = targets.of(name, voices)
    params = list(method.parameters())
    wanted = torch.autograd.grad(-4 * (q * log_p).sum() / 10, params)
    for ours, theirs in zip(torch.autograd.grad(method(data).terms["mimicry"], params), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


def test_the_mixture_has_the_lowest_cross_entropy() -> None:
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (40,), generator=g)
    for peers in (2, 3, 5):
        z = 2 * torch.randn(peers, 40, CLASSES, generator=g, dtype=F64)
        z[:, torch.arange(40), labels] += torch.linspace(0, 1.5, peers)[:, None]
        here = torch.zeros(peers, dtype=torch.bool)
        found = targets.simplex(z, labels, here)
        wanted = best_mixture([slow.rows(own) for own in z], labels.tolist())

        def cost(a: Any, z: Tensor = z) -> float:
            mixed = (torch.as_tensor(a, dtype=F64)[:, None, None] * z).sum(0)
            return slow.mean_ce(mixed, labels)

        assert found.sum().item() == pytest.approx(1) and (found >= 0).all()
        assert cost(found) - cost(wanted) < 1e-2
        assert cost(found) < min(cost(row) for row in torch.eye(peers)) + 1e-2
        shares = 3 * torch.eye(CLASSES, dtype=F64)[labels]  # as class weights make them
        torch.testing.assert_close(targets.simplex(z, shares, here), found)


def predictions(peers: int, seed: int) -> tuple[Tensor, Tensor]:
    """Probabilities of peers that have more or less in common, `[K, 30, C]`, and labels."""
    g = torch.Generator().manual_seed(seed)
    common, own = torch.randn(30, CLASSES, generator=g), torch.randn(peers, 30, CLASSES, generator=g)
    z = seed % 5 * common + torch.linspace(0.5, 1, peers)[:, None, None] * own
    return z.double().softmax(-1), torch.randint(CLASSES, (30,), generator=g)


@pytest.mark.parametrize("peers", [2, 3, 5])
def test_weights_of_the_least_error(peers: int) -> None:
    """The closed form, and hardly more error than of the best set of peers."""
    below = 0
    for seed in range(40):
        p, labels = predictions(peers, seed)
        errors = p - torch.eye(CLASSES, dtype=F64)[labels]
        found = targets.least_error(errors, torch.zeros(peers, dtype=torch.bool))
        wanted = least_error([slow.rows(own) for own in p], labels.tolist())
        assert found.tolist() == pytest.approx(wanted, abs=1e-6)
        c = (errors.flatten(1) @ errors.flatten(1).t()).numpy()
        sets = [list(s) for n in range(peers) for s in itertools.combinations(range(peers), n + 1)]
        each = [(c[np.ix_(s, s)], np.linalg.solve(c[np.ix_(s, s)], np.ones(len(s)))) for s in sets]
        least = min(w @ part @ w / w.sum() ** 2 for part, w in each if w.min() > 0)
        assert found.numpy() @ c @ found.numpy() == pytest.approx(least, rel=1e-2)
        below += wanted.count(0)
    assert 0 < below < 40 * (peers - 1)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_equal_peers_weigh_the_same(dtype: torch.dtype) -> None:
    everyone = torch.zeros(4, dtype=torch.bool)
    for errors in (predictions(1, 0)[0].expand(4, -1, -1), torch.zeros(4, 30, CLASSES)):
        found = targets.least_error(errors.to(dtype), everyone)
        torch.testing.assert_close(found, torch.full_like(found, 1 / 4), rtol=0, atol=1e-2)


@pytest.mark.parametrize("name", ["linear", "general"])
def test_a_mixture_is_of_the_whole_batch(name: str) -> None:
    data, method = batch(size=10, dtype=F64), make(name)
    log_p = torch.stack([peer(data.inputs[0]).log_softmax(1) for peer in method.peers]).detach()

    def whole(part: Tensor) -> Tensor:
        return log_p.transpose(0, 1) if part.dim() == 3 else data.labels

    gone = torch.zeros(3, dtype=torch.bool)
    all_of_it = targets.Voices(log_p, 1.0, data.labels, method.listening, slice(None), gone, whole)
    half = all_of_it._replace(log_p=log_p[:, :5], labels=data.labels[:5])
    assert torch.equal(targets.of(name, half)[0], targets.of(name, all_of_it)[0][:, :5])


@pytest.mark.parametrize("name", ALL)
def test_who_has_left_teaches_nobody(name: str) -> None:
    """As if the other two were alone; and the terms are finite."""
    method, data = make(name), batch(size=10, dtype=F64)
    alone = DML(*copy.deepcopy(list(method.peers[:2])), target=name)  # type: ignore[arg-type]
    with torch.no_grad():
        next(method.peers[2].parameters()).fill_(float("nan"))
    found, wanted = method(data).terms, alone(data).terms
    assert method.left_at.tolist() == [-1, -1, 0]
    for term, value in wanted.items():
        assert found[term].item() == pytest.approx(value.item(), rel=1e-9), term


@pytest.mark.parametrize("name", ALL)
def test_shards_that_gather_are_the_whole_to_the_bit(name: str) -> None:
    data, whole = batch(), DML(*(tiny(i) for i in range(3)), target=name)  # type: ignore[arg-type]
    everyone = torch.stack([peer(data.inputs[0]).log_softmax(1) for peer in whole.peers]).detach()
    whole(data).loss.backward()
    for k, net in enumerate(copy.deepcopy(peer) for peer in whole.peers):
        net.zero_grad()
        alone = DML(*(net if i == k else tiny(i) for i in range(3)), target=name)  # type: ignore[arg-type]
        part = alone.shard([k], lambda own: own, lambda own, k=k: (everyone, [k]))
        assert part is not None
        part(data).loss.backward()
        assert all(
            torch.equal(a.grad, b.grad) for a, b in zip(net.parameters(), whole.peers[k].parameters(), strict=True)
        )
    assert whole.shard([0], lambda own: own) is None


@pytest.mark.parametrize("name", ALL)
def test_labels_that_are_shares(name: str) -> None:
    data = batch(size=10, dtype=F64)
    shares = data._replace(labels=torch.eye(CLASSES, dtype=F64)[data.labels])
    for options in ({}, {"update": "in_turn"}):
        method = make(name, **options)
        ids, mixed = (copy.deepcopy(method)(x, Progress(turn=0)).terms for x in (data, shares))
        assert {k: v.item() for k, v in ids.items()} == pytest.approx({k: v.item() for k, v in mixed.items()}, rel=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_several_views_are_several_voices(name: str) -> None:
    data = batch(views=2, dtype=F64)
    method = make(name, 1, views=2)
    both = method.peers[0](torch.cat(data.inputs)).chunk(2)
    wanted = expected(name, [slow.rows(z) for z in both], data.labels.tolist(), 1.0, [[0, 1], [1, 0]])
    assert method(data).terms["mimicry"].item() == pytest.approx(wanted, rel=2e-2)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("options", [{"mimicry": "dml_e"}, {"reduce": "sum"}, {"topology": "ring"}], ids=str)
def test_options_without_effect_are_refused(name: str, options: dict[str, Any]) -> None:
    if name == "selective" and "topology" in options:
        assert make(name, **options)(batch(dtype=F64)).loss.isfinite()
        return
    with pytest.raises(InputError, match=f"it has no effect with target='{name}'"):
        make(name, **options)
    with pytest.raises(InputError, match="target: found 'best'; must be 'peers' or 'selective' or 'naive'"):
        make("best")

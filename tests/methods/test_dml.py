"""DML against the paper's equations, written as slow loops."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import slow
import torch
from conftest import CLASSES, batch, tiny
from torch import Tensor, nn

from teacherless.errors import InputError
from teacherless.method import Batch, Progress
from teacherless.methods import DML, _mutual

# Which children of the method each term's gradient may reach; everything else must get none.
ROUTES = {"ce": {"peers"}, "mimicry": {"peers"}}

F64 = torch.float64


def slow_kl(p: Tensor, q: Tensor) -> float:
    """KL(p ‖ q), one class at a time."""
    return sum(float(a) * (float(a.log()) - float(b.log())) for a, b in zip(p.detach(), q.detach(), strict=True))


def pairwise(peers: list[nn.Module], data: Batch, temperature: float = 1.0) -> list[Tensor]:
    """L_k of the paper, differentiable, one pair at a time; peers as constants."""
    logits = [peer(data.inputs[0]) for peer in peers]
    total = []
    for k, own in enumerate(logits):
        loss = nn.functional.cross_entropy(own, data.labels)
        for j, other in enumerate(logits):
            if j != k:
                p_l = (other.detach() / temperature).softmax(1)
                log_ratio = (other.detach() / temperature).log_softmax(1) - (own / temperature).log_softmax(1)
                loss = loss + temperature**2 * (p_l * log_ratio).sum(1).mean() / (len(peers) - 1)
        total.append(loss)
    return total


@pytest.mark.parametrize("k", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_closed_form_equals_the_pairwise_definition(k: int, temperature: float) -> None:
    peers = [tiny(i, width=3 + i % 3, dtype=F64) for i in range(k)]  # mixed architectures
    data = batch(dtype=F64)
    method = DML(*copy.deepcopy(peers), temperature=temperature)
    out = method(data)
    out.loss.backward()
    losses = pairwise(peers, data, temperature)
    sum(losses).backward()
    assert out.loss.item() == pytest.approx(sum(losses).item(), rel=1e-12)
    for ours, theirs in zip(method.peers.parameters(), (p for peer in peers for p in peer.parameters()), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"reduce": "sum"}, {"temperature": 3.0}, {"mimicry": "dml_e"}, {"topology": "ring"}]
)
def test_many_classes_take_the_path_of_little_memory(
    options: dict[str, Any], shares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, results = batch(dtype=F64), []
    if shares:
        data = data._replace(labels=torch.eye(CLASSES, dtype=F64)[data.labels])
    for many in (0, 2**20):
        monkeypatch.setattr(_mutual, "LARGE", many)
        method = DML(*[tiny(i, dtype=F64) for i in range(3)], **options)
        method.smoothing = 0.1
        out = method(data)
        out.loss.backward()
        results.append([*out.terms.values(), *(p.grad for p in method.parameters())])
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ce_is_every_peers_own_and_never_softened(smoothing: float, temperature: float) -> None:
    peers, data = [tiny(i, dtype=F64) for i in range(3)], batch(dtype=F64)
    method = DML(*peers, temperature=temperature)
    method.smoothing = smoothing
    each = [slow.mean_ce(peer(data.inputs[0]), data.labels, smoothing) for peer in peers]
    assert method(data).terms["ce"].item() == slow.exactly(sum(each))


def test_in_turn_counts_the_learner_only() -> None:
    """So that the turns of a batch, added up, are the terms of Σ_k L_k."""
    peers, data = [tiny(i, dtype=F64) for i in range(3)], batch(dtype=F64)
    method = DML(*peers, update="in_turn")
    each = [method(data, Progress(turn=turn)).terms for turn in range(3)]
    for turn, peer in enumerate(peers):
        assert each[turn]["ce"].item() == slow.exactly(slow.mean_ce(peer(data.inputs[0]), data.labels))
    for name, value in DML(*peers)(data).terms.items():
        assert sum(terms[name].item() for terms in each) == slow.exactly(value.item())


def test_logged_mimicry_is_the_papers_number() -> None:
    peers = [tiny(i, dtype=F64) for i in range(3)]
    data = batch(dtype=F64)
    p = [peer(data.inputs[0]).softmax(1).detach() for peer in peers]
    size = len(data.labels)
    expected = sum(
        slow_kl(p[j][b], p[k][b]) / 2 / size for b in range(size) for k in range(3) for j in range(3) if j != k
    )
    assert DML(*peers)(data).terms["mimicry"].item() == pytest.approx(expected, rel=1e-12)


def test_dml_e_has_the_same_gradient_and_another_value() -> None:
    peers = [tiny(i, dtype=F64) for i in range(4)]
    data = batch(dtype=F64)
    logits = torch.stack([peer(data.inputs[0]).detach() for peer in peers]).requires_grad_()
    p = logits.detach().softmax(-1)

    def mean_kl(k: int) -> Tensor:
        own = logits[k].log_softmax(-1)
        return sum((p[j] * (p[j].log() - own)).sum(-1).mean() for j in range(4) if j != k) / 3

    def kl_mean(k: int) -> Tensor:
        average = sum(p[j] for j in range(4) if j != k) / 3
        return (average * (average.log() - logits[k].log_softmax(-1))).sum(-1).mean()

    dml, dml_e = sum(mean_kl(k) for k in range(4)), sum(kl_mean(k) for k in range(4))
    (a,), (b,) = torch.autograd.grad(dml, logits), torch.autograd.grad(dml_e, logits)
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)
    assert dml.item() > dml_e.item() + 1e-3


def test_groups_in_one_optimizer_are_k_optimizers() -> None:
    peers = [tiny(i, width=3 + i) for i in range(3)]
    method = DML(*copy.deepcopy(peers))
    rates = [0.1, 0.05, 0.02]
    one = torch.optim.SGD(
        [g | {"lr": r} for g, r in zip(method.param_groups(), rates, strict=True)], momentum=0.9, weight_decay=1e-3
    )
    each = [torch.optim.SGD(p.parameters(), r, 0.9, weight_decay=1e-3) for p, r in zip(peers, rates, strict=True)]
    for step in range(5):
        data = batch(step)
        method(data).loss.backward()
        one.step()
        one.zero_grad()
        sum(pairwise(peers, data)).backward()
        for optimizer in each:
            optimizer.step()
            optimizer.zero_grad()
    for ours, theirs in zip(method.peers.parameters(), (p for peer in peers for p in peer.parameters()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_in_turn_is_algorithm_1_bit_for_bit() -> None:
    """Predict, step one, predict again, step the next; idle peers neither learn nor move their buffers."""
    ours, theirs = [tiny(i) for i in range(3)], [tiny(i) for i in range(3)]
    method = DML(*ours, update="in_turn")
    one = torch.optim.SGD(method.param_groups(), 0.1, 0.9, weight_decay=1e-3)
    each = [torch.optim.SGD(p.parameters(), 0.1, 0.9, weight_decay=1e-3) for p in theirs]
    assert method.turns == 3
    for step in range(3):
        data = batch(step)
        for turn in range(3):
            method(data, Progress(turn=turn)).loss.backward()
            one.step()
            one.zero_grad(set_to_none=True)
        for turn, optimizer in enumerate(each):
            logits = []
            for k, peer in enumerate(theirs):
                if k == turn:
                    logits.append(peer(data.inputs[0]))
                else:  # a prediction in training mode by a copy, so that its side effects are lost
                    logits.append(copy.deepcopy(peer)(data.inputs[0]).detach())
            log_p = torch.stack(logits).log_softmax(-1)
            p = log_p.detach().exp()
            entropy = (p * log_p.detach()).sum(-1)
            others = [k for k in range(3) if k != turn]
            total, neg = p[0] + p[1] + p[2], entropy[0] + entropy[1] + entropy[2]
            assert len(others) == 2
            target, constant = (total - p[turn]) / 2, (neg - entropy[turn]) / 2
            loss = (
                nn.functional.nll_loss(log_p[turn], data.labels)  # one log-softmax for both terms
                + (constant - (target * log_p[turn]).sum(-1)).mean()
            )
            loss.backward()
            optimizer.step()
            for opt in each:
                opt.zero_grad(set_to_none=True)
    for a, b in zip(ours, theirs, strict=True):
        for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
            assert torch.equal(x, y), name


def test_in_turn_moves_only_the_learner() -> None:
    method = DML(*[tiny(i) for i in range(3)], update="in_turn")
    method(batch(9), Progress(turn=0)).loss.backward()  # momentum of peer 0 is not zero after this step
    optimizer = torch.optim.SGD(method.param_groups(), 0.1, 0.9, weight_decay=1e-2)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    before = [copy.deepcopy(peer.state_dict()) for peer in method.peers]
    method(batch(), Progress(turn=1)).loss.backward()
    optimizer.step()
    for k, (peer, old) in enumerate(zip(method.peers, before, strict=True)):
        moved = [name for name, value in peer.state_dict().items() if not torch.equal(value, old[name])]
        assert bool(moved) == (k == 1), (k, moved)
        assert all((p.grad is None) == (k != 1) for p in peer.parameters())


def test_targets_get_no_gradient() -> None:
    peers = [tiny(i) for i in range(2)]
    method = DML(*peers)
    x, labels = batch().inputs[0], batch().labels
    logits = [peer(x) for peer in peers]
    out = method(Batch((x,), labels))
    # peer 0's part of the mimicry must not reach peer 1: with peer 1 fixed the same gradient comes out
    out.terms["mimicry"].backward()
    own = (logits[1].detach().softmax(1) * (logits[1].detach().log_softmax(1) - logits[0].log_softmax(1))).sum(1).mean()
    grads = torch.autograd.grad(own, list(peers[0].parameters()))
    for p, g in zip(peers[0].parameters(), grads, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-4, atol=1e-7)


def test_views_contain_dml_and_the_kl_of_ddgsd() -> None:
    a, b = tiny(0, dtype=F64), tiny(1, dtype=F64)
    data = batch(views=2, dtype=F64)
    one_view = Batch(data.inputs[:1], data.labels)
    plain = DML(copy.deepcopy(a), copy.deepcopy(b))(one_view)
    with_views = DML(copy.deepcopy(a), copy.deepcopy(b), views=1)(one_view)
    assert {k: v.item() for k, v in plain.terms.items()} == {k: v.item() for k, v in with_views.terms.items()}

    single = copy.deepcopy(a)
    za, zb = single(torch.cat(data.inputs)).chunk(2)
    both = sum(
        (p.softmax(1).detach() * (p.log_softmax(1).detach() - q.log_softmax(1))).sum(1).mean()
        for p, q in ((za, zb), (zb, za))
    )
    out = DML(copy.deepcopy(a), views=2)(data)
    assert out.terms["mimicry"].item() == pytest.approx(both.item(), rel=1e-12)
    ces = nn.functional.cross_entropy(za, data.labels) + nn.functional.cross_entropy(zb, data.labels)
    assert out.terms["ce"].item() == pytest.approx(ces.item(), rel=1e-12)


def test_every_view_of_every_peer_learns_from_all_the_others() -> None:
    peers = [tiny(i, dtype=F64) for i in range(2)]
    data = batch(views=3, dtype=F64)
    method = DML(*copy.deepcopy(peers), views=3)
    voices = [v for peer in peers for v in peer(torch.cat(data.inputs)).chunk(3)]
    expected = 0.0
    for k, own in enumerate(voices):
        for j, other in enumerate(voices):
            if j != k:
                expected += (
                    sum(slow_kl(p, q) for p, q in zip(other.softmax(1), own.softmax(1), strict=True)) / 5 / len(own)
                )
    out = method(data)
    assert out.terms["mimicry"].item() == pytest.approx(expected, rel=1e-12)
    assert out.logits.shape == (2, 6, 5)
    torch.testing.assert_close(out.logits[1], voices[3])


def test_peers_that_start_equal_are_refused() -> None:
    net = tiny(0)
    with pytest.raises(InputError, match="start with equal weights"):
        DML(net, copy.deepcopy(net))
    with pytest.raises(InputError, match="one and the same network"):
        DML(net, net)
    DML(nn.Sequential(net, nn.Dropout(0.5)), nn.Sequential(copy.deepcopy(net), nn.Dropout(0.5)))
    with pytest.raises(InputError, match="needs two peers or two views"):
        DML(net)
    with pytest.raises(InputError, match="must be 'simultaneous' or 'in_turn'"):
        DML(net, tiny(1), update="sometimes")  # type: ignore[arg-type]


def test_the_ensemble_is_the_mean_probability() -> None:
    peers = [tiny(i).eval() for i in range(3)]
    x = batch().inputs[0]
    mean = sum(peer(x).softmax(1) for peer in peers) / 3
    ensemble = DML(*peers).ensemble()
    assert ensemble is not None
    torch.testing.assert_close(ensemble(x).exp(), mean)


@pytest.mark.parametrize("options", [{"topology": "ring"}, {"topology": "star"}, {"mimicry": "symmetric"}], ids=str)
def test_shards_that_gather_are_the_whole_to_the_bit(options: dict[str, Any]) -> None:
    """Each of three shards has one peer, and is told what all predict."""
    data, whole = batch(), DML(*(tiny(i) for i in range(3)), **options)
    everyone = torch.stack([peer(data.inputs[0]).log_softmax(1) for peer in whole.peers]).detach()
    whole(data).loss.backward()
    for k, net in enumerate(copy.deepcopy(peer) for peer in whole.peers):
        net.zero_grad()
        alone = DML(*(net if i == k else tiny(i) for i in range(3)), **options)
        part = alone.shard([k], lambda own: own, lambda own, k=k: (everyone, [k]))
        assert part is not None
        part(data).loss.backward()
        assert all(
            torch.equal(a.grad, b.grad) for a, b in zip(net.parameters(), whole.peers[k].parameters(), strict=True)
        )
    assert whole.shard([0], lambda own: own) is None

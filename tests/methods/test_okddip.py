"""OKDDip against the paper's equations, written as slow loops."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import slow
import torch
from conftest import batch, tiny
from torch import Tensor, nn

from teacherless.errors import InputError
from teacherless.method import Batch, Progress
from teacherless.methods.okddip import OKDDip

# Which children of the method each term's gradient may reach; everything else must get none.
ROUTES = {
    "ce": {"branched"},
    "distil": {"branched", "query", "key"},
    "lead": {"branched"},
}

F64 = torch.float64


def make(seed: int = 0, **options: Any) -> OKDDip:
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        return OKDDip(tiny(seed, dtype=F64), **options).double()


def at(epoch: int) -> Progress:
    return Progress(epoch=torch.tensor(epoch), epochs=torch.tensor(12))


def slow_attention(method: OKDDip, read: list[list[list[float]]], b: int) -> list[list[float]]:
    """α of one image: softmax over whom to listen to. `[m-1, m-1]`."""
    query, key = slow.rows(method.query.weight), slow.rows(method.key.weight)

    def mapped(weight: list[list[float]], h: list[float]) -> list[float]:
        return [math.fsum(w * v for w, v in zip(row, h, strict=True)) for row in weight]

    told = [mapped(key, h[b]) for h in read]
    return [
        slow.softmax([math.fsum(x * y for x, y in zip(mapped(query, h[b]), other, strict=True)) for other in told])
        for h in read
    ]


def slow_terms(method: OKDDip, now: Batch, epoch: int) -> dict[str, float]:
    """The paper's terms, from the plain networks that are shipped."""
    t, labels, x = method.temperature, [int(y) for y in now.labels], now.inputs[0]
    leader, *peers = [slow.rows(net(x)) for net in method.students().values()]
    read = [slow.rows(net.embed(x)) for net in list(method.students().values())[1:]]

    def target(shares: list[float], b: int) -> list[float]:
        """Logits of the mixture, times T."""
        if method.mix == "logits":
            return [math.fsum(s * z[b][c] for s, z in zip(shares, peers, strict=True)) for c in range(len(leader[0]))]
        soft = [slow.softmax(z[b], t) for z in peers]
        return [
            t * math.log(math.fsum(s * p[c] for s, p in zip(shares, soft, strict=True))) for c in range(len(soft[0]))
        ]

    samples = range(len(labels))
    left = 1 - min(epoch / method.ramp_epochs, 1) if method.ramp_epochs else 0
    weight = method.kl_weight * math.exp(-5 * left**2) * t**2
    shares = [slow_attention(method, read, b) for b in samples]
    uniform = [1 / len(peers)] * len(peers)
    return {
        "ce": math.fsum(
            slow.mean(slow.ce(z[b], labels[b], method.smoothing) for b in samples) for z in [leader, *peers]
        ),
        "distil": weight
        * math.fsum(slow.mean(slow.kl(z[b], target(shares[b][a], b), t) for b in samples) for a, z in enumerate(peers)),
        "lead": weight * slow.mean(slow.kl(leader[b], target(uniform, b), t) for b in samples),
    }


OPTIONS: list[dict[str, Any]] = [
    {},
    {"branches": 3, "temperature": 1.0, "kl_weight": 0.5},
    {"branches": 5, "split": 1, "factor": 2},
    {"mix": "logits", "ramp_epochs": 8},
    {"variant": "released"},
    {"copy_init": True, "factor": 100},
]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_term_equals_the_equation(options: dict[str, Any], smoothing: float) -> None:
    method, now = make(**(OKDDip.variants["released"] if "variant" in options else options)), batch(dtype=F64)
    method.smoothing = smoothing
    expected = slow_terms(method, now, 3)
    for name, term in method(now, at(3)).terms.items():
        assert term.item() == slow.exactly(expected[name]), name
    assert min(expected.values()) > 1e-9


def test_attention_is_of_each_image_and_not_the_same_both_ways() -> None:
    method = make()
    read = torch.randn(3, 6, method.students()["leader"].dim, dtype=F64, generator=torch.Generator().manual_seed(0))
    share = method.attend(read).exp()  # [a, b, B]
    torch.testing.assert_close(share.sum(1), torch.ones(3, 6, dtype=F64))
    assert (share - share.transpose(0, 1)).abs().min(2).values.fill_diagonal_(1).min() > 1e-6
    assert share.std(2).min() > 1e-6


def groups(method: OKDDip) -> dict[str, nn.Module]:
    named: dict[str, nn.Module] = {"trunk": method.branched.trunks, "L": method.query, "E": method.key}
    return named | dict(zip(method.students(), method.branched.branches, strict=True))


def test_gradient_routing() -> None:
    method, peers = make(), {"trunk", "peer0", "peer1", "peer2"}
    assert slow.reached(method(batch(dtype=F64)).terms, groups(method)) == {
        "ce": peers | {"leader"},
        "distil": peers | {"L", "E"},
        "lead": {"trunk", "leader"},  # the peers' mean is a constant there
    }
    released = make(constant=False)
    assert slow.reached(released(batch(dtype=F64)).terms, groups(released)) == {
        "ce": peers | {"leader"},
        "distil": peers | {"L", "E"},
        "lead": peers | {"leader"},
    }


def gradient_of_peer(method: OKDDip, peer: int) -> Tensor:
    """Of the distillation, in the weights of a peer's own stage and head."""
    own = list(method.branched.branches[1 + peer].parameters())
    terms = method(batch(dtype=F64)).terms
    return torch.cat([g.flatten() for g in torch.autograd.grad(terms["distil"], own)])


@pytest.mark.parametrize("mix", ["probabilities", "logits"])
def test_a_peer_learns_from_its_mixture_as_a_constant(mix: str) -> None:
    method, x = make(mix=mix), batch(dtype=F64).inputs[0]
    net = method.students()["peer1"]
    others = [other(x).detach() for name, other in method.students().items() if name != "leader"]
    read = torch.stack([other.embed(x).detach() for name, other in method.students().items() if name != "leader"])
    share = method.attend(read).exp()[1].detach()  # [b, B]
    if mix == "logits":
        target = (sum(s[:, None] * z for s, z in zip(share, others, strict=True)) / 3).softmax(1)
    else:
        target = sum(s[:, None] * (z / 3).softmax(1) for s, z in zip(share, others, strict=True))
    loss = -9 * (target * (net(x) / 3).log_softmax(1)).sum(1).mean()
    own = [*net.stages[2].parameters(), *net.head.parameters()]
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, own)])
    torch.testing.assert_close(gradient_of_peer(method, 1), expected, rtol=1e-10, atol=1e-14)
    assert not torch.allclose(gradient_of_peer(make(mix=mix, constant=False), 1), expected, rtol=1e-3)


def test_the_leader_is_the_student_and_no_peer_listens_to_it() -> None:
    student = tiny(0, dtype=F64)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        method = OKDDip(student).double()
    assert list(method.students()) == ["leader", "peer0", "peer1", "peer2"]
    assert method.students()["leader"] is student
    other = copy.deepcopy(method)
    with torch.no_grad():
        for p in other.branched.branches[0].parameters():
            p.add_(torch.randn(p.shape, dtype=F64, generator=torch.Generator().manual_seed(0)))
    mine, theirs = method(batch(dtype=F64)).terms, other(batch(dtype=F64)).terms
    assert torch.equal(mine["distil"], theirs["distil"]) and not torch.equal(mine["lead"], theirs["lead"])


def test_its_ensemble_is_the_peers_mean() -> None:
    method, x = make().eval(), batch().inputs[0]
    nets = list(method.float().students().values())[1:]
    mean = torch.stack([net(x).softmax(1) for net in nets]).mean(0)
    torch.testing.assert_close(method.ensemble()(x).softmax(1), mean)


def test_students_are_the_training_graphs_branches() -> None:
    method, now = make(), batch(dtype=F64)
    method(now).loss.backward()  # moves the batch-norm statistics
    method.eval()
    out = method(now)
    for z, net in zip(out.logits, method.students().values(), strict=True):
        torch.testing.assert_close(net(now.inputs[0]), z, rtol=0, atol=0)
    assert not any(m.training for net in method.students().values() for m in net.modules())


def test_half_precision_autocast_attends_and_mixes_in_float32() -> None:
    method = make().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        share = method.attend(
            torch.randn(3, 6, method.students()["leader"].dim, generator=torch.Generator().manual_seed(0))
        )
        out = method(batch())
    assert share.dtype == out.loss.dtype == torch.float32 and out.loss.isfinite()


def test_defaults() -> None:
    method = make()
    assert (len(method.students()), method.temperature, method.kl_weight, method.mix) == (4, 3.0, 1.0, "probabilities")
    assert (method.constant, method.ramp_epochs, method.wants.views) == (True, 0, 1)
    assert method.query.weight.shape == method.key.weight.shape == (1, 12)  # 12 numbers, by a factor of 8


@pytest.mark.parametrize(
    "options",
    [
        {"branches": 2},
        {"split": 0},
        {"temperature": 0},
        {"kl_weight": 0},
        {"factor": 0},
        {"mix": "x"},
        {"ramp_epochs": -1},
    ],
)
def test_refuses(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))}: found"):
        make(**options)


def test_refuses_a_student_without_stages() -> None:
    with pytest.raises(InputError, match=r"^okddip: needs a student with stages and found Linear"):
        OKDDip(nn.Linear(3, 4))

"""DML whose peers each learn from images of their own, against one image at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CLASSES, batch, tiny
from torch import Tensor, nn

from teacherless.cli import main
from teacherless.errors import InputError
from teacherless.method import Batch, Progress
from teacherless.methods import DML

F64 = torch.float64
START = Progress(step=torch.tensor(0))


def cohort() -> list[nn.Module]:
    return [tiny(i, width=3 + i % 3, dtype=F64) for i in range(3)]


def owner_of(row: int) -> int:
    """Knuth's multiplicative hash: the upper half of 32 bits, which depends on all of the lower ones."""
    return ((row * 2654435761) % 2**32 // 2**16) % 3


def data(views: int = 1) -> Batch:
    inputs, labels, _ = batch(size=12, views=views, dtype=F64)
    return Batch(inputs, labels, torch.arange(40, 52))


def slow(logits: Tensor, given: Batch, views: int, temperature: float) -> dict[str, Tensor]:
    """`[K, V, B, C]`: an image's owner learns from it, from each of the other predictions; times K, over all images."""
    ce, mimicry = torch.zeros((), dtype=F64), torch.zeros((), dtype=F64)
    soft = (logits / temperature).log_softmax(-1)
    assert given.index is not None
    for i, row in enumerate(given.index.tolist()):
        k = owner_of(row)
        for v in range(views):
            ce = ce - logits[k, v, i].log_softmax(0)[given.labels[i]]
            others = [soft[m, w, i].detach() for m in range(3) for w in range(views) if (m, w) != (k, v)]
            kls = [(log_p.exp() * (log_p - soft[k, v, i])).sum() for log_p in others]
            mimicry = mimicry + temperature**2 * torch.stack(kls).mean()
    scale = 3 / len(given.labels)
    return {"ce": scale * ce, "mimicry": scale * mimicry}


@pytest.mark.parametrize(
    ("options", "temperature"),
    [({}, 1.0), ({"temperature": 2.0}, 2.0), ({"views": 2}, 1.0), ({"exchange_every": 5}, 1.0)],
    ids=str,
)
def test_terms_and_gradients_are_those_of_the_slow_loop(options: dict[str, Any], temperature: float) -> None:
    views = options.get("views", 1)
    method, given = DML(*cohort(), disjoint=True, **options), data(views)
    out = method(given, START)
    joined = torch.cat(given.inputs)
    others = cohort()
    logits = torch.stack([peer(joined).view(views, 12, CLASSES) for peer in others])
    expected = slow(logits, given, views, temperature)
    for name, value in expected.items():
        assert out.terms[name].item() == pytest.approx(value.item(), rel=1e-10), name
    out.loss.backward()
    sum(expected.values()).backward()  # type: ignore[union-attr]
    for ours, theirs in zip(method.peers, others, strict=True):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-12)


def test_gradients_come_from_ones_own_images_only() -> None:
    """Without batch norm, which reads the whole batch: what another's image shows and is moves nothing."""

    def peer(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)).double()

    method, given = DML(peer(0), peer(1), peer(2), disjoint=True), data()
    assert given.index is not None
    owners = torch.tensor([owner_of(row) for row in given.index.tolist()])
    assert set(owners.tolist()) == {0, 1, 2}
    grads = []
    for changed in (False, True):
        x, y = given.inputs[0].clone(), given.labels.clone()
        if changed:
            x[owners != 1] += 1
            y[owners != 1] = (y[owners != 1] + 1) % CLASSES
        method.zero_grad()
        method(Batch((x,), y, given.index), START).loss.backward()
        grads.append([p.grad.clone() for p in method.peers.parameters() if p.grad is not None])
    same = [torch.equal(a, b) for a, b in zip(*grads, strict=True)]
    assert same == [False] * 2 + [True] * 2 + [False] * 2


@pytest.mark.parametrize("peers", [2, 3, 4])
def test_shares_are_even_also_where_images_go_round_the_classes(peers: int) -> None:
    owners = DML(*(tiny(i) for i in range(peers)), disjoint=True)._owner(torch.arange(5000))
    for start in range(10):  # each class of a data set that goes 0, 1, ..., 9, 0, 1, ...
        counts = torch.bincount(owners[start::10], minlength=peers)
        assert len(counts) == peers
        assert (counts / 500 * peers - 1).abs().max() < 0.2


def test_the_index_must_be_there() -> None:
    x, y, _ = data()
    with pytest.raises(InputError, match="wants each sample's index; found none"):
        DML(*cohort(), disjoint=True)(x[0], y)


def test_from_the_command_line(tmp_path: Path) -> None:
    words = "--data digits --train-samples 96 --batch-size 32 --student small-cnn,width=4 --steps 2"
    assert main(["train", "dml", *words.split(), "--set", "disjoint=true", "--out", str(tmp_path / "run")]) == 0

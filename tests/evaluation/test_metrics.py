"""Metrics against slow loops and against scikit-learn."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import batch, tiny
from sklearn.metrics import log_loss, top_k_accuracy_score
from torch import nn

from teacherless.evaluation.metrics import BINS, evaluate, evaluating, metrics


def slow_ece(probs: torch.Tensor, labels: torch.Tensor) -> float:
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for p, y in zip(probs, labels, strict=True):
        confidence = float(p.max())
        where = next(b for b in range(BINS) if confidence <= (b + 1) / BINS)
        bins[where].append((confidence, int(p.argmax()) == int(y)))
    n = len(labels)
    return sum(abs(sum(right for _, right in b) - sum(c for c, _ in b)) / n for b in bins if b)


def test_metrics() -> None:
    g = torch.Generator().manual_seed(0)
    logits, labels = 3 * torch.randn(500, 10, generator=g, dtype=torch.float64), torch.randint(10, (500,), generator=g)
    found = dict(metrics(logits, labels))
    probs = logits.softmax(1)
    assert found["top1"] == pytest.approx(100 * top_k_accuracy_score(labels, probs, k=1))
    assert found["top5"] == pytest.approx(100 * top_k_accuracy_score(labels, probs, k=5))
    assert found["nll"] == pytest.approx(log_loss(labels, probs, labels=range(10)))
    assert found["ece"] == pytest.approx(100 * slow_ece(probs, labels))
    assert found["entropy"] == pytest.approx(-float((probs * probs.log()).sum(1).mean()))


def test_nan_is_never_right() -> None:
    found = dict(metrics(torch.full((4, 3), math.nan), torch.zeros(4, dtype=torch.long)))
    assert found["top1"] == 0
    assert math.isnan(found["nll"])


def test_evaluation_leaves_the_network_as_it_was() -> None:
    net = nn.Sequential(tiny(0), nn.Identity())
    net.train()
    net[1].eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    evaluate({"a": net, "b": net[0]}, [batch(0), batch(1)])
    assert [m.training for m in net] == [True, False]
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    with pytest.raises(RuntimeError, match="stop"), evaluating([net]):
        assert not net.training
        raise RuntimeError("stop")
    assert net.training


def test_several_predictors_share_one_reading() -> None:
    reads = iter([batch(0), batch(1)])
    found = evaluate({"a": tiny(0), "b": tiny(1)}, reads)
    assert found.keys() == {"a", "b"}
    assert found["a"] != found["b"]
    assert list(reads) == []

"""Metrics against slow loops and against scikit-learn."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import batch, tiny
from sklearn.metrics import balanced_accuracy_score, log_loss, top_k_accuracy_score
from torch import nn

from teacherless.evaluation.metrics import BINS, NO_CLASS, constant, evaluate, metrics, predicted
from teacherless.network import evaluating


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
    assert found["top1"] == found["top5"] == 0
    assert math.isnan(found["nll"])


def test_of_equal_logits_the_first_class_is_the_prediction() -> None:
    labels = torch.arange(8)
    found = dict(metrics(torch.zeros(8, 8, dtype=torch.float64), labels))
    assert (found["top1"], found["top5"]) == (100 / 8, 500 / 8)
    assert found["ece"] == pytest.approx(0)  # 1/8 sure of class 0, and right for 1/8
    some = torch.tensor([[0.0, 2, 2], [2, 0, 2], [2, 2, 0]])
    assert predicted(some).tolist() == [1, 0, 0]
    assert dict(metrics(some, torch.tensor([2, 0, 1])))["top1"] == pytest.approx(100 / 3)


def test_what_is_not_finite_is_no_prediction() -> None:
    nan, inf = math.nan, math.inf
    logits = torch.tensor([[inf, 0, 0], [0, nan, 0], [-inf, -inf, -inf], [-inf, 1, 0]])
    assert predicted(logits).tolist() == [NO_CLASS, NO_CLASS, NO_CLASS, 1]  # a class can be ruled out with -inf
    assert dict(metrics(logits, torch.tensor([0, 1, 0, 1])))["top1"] == 25


def test_a_dead_network() -> None:
    alive = torch.eye(3)
    assert not constant(alive)
    assert constant(torch.ones(4, 3)) and constant(torch.full((4, 3), math.nan))
    assert not constant(alive[:1])  # one sample tells nothing


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


def test_balanced_accuracy_is_the_mean_recall() -> None:
    """As scikit-learn counts it: classes without samples do not count, classes that are never guessed do."""
    g = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 80 + [1] * 15 + [3] * 5)
    logits = torch.randn(100, 5, generator=g) + torch.nn.functional.one_hot(labels, 5)
    found = dict(metrics(logits, labels))
    assert found["balanced"] == pytest.approx(100 * balanced_accuracy_score(labels, logits.argmax(1)))
    always = torch.zeros(100, 5)
    always[:, 0] = 1
    assert dict(metrics(always, labels))["balanced"] == pytest.approx(100 / 3)
    assert dict(metrics(always, labels))["top1"] == pytest.approx(80)

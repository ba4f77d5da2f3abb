"""Every analysis against a slow reference on a small case; and nothing that is looked at is changed."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import slow
import torch
from conftest import CLASSES
from sklearn.decomposition import PCA
from torch import Tensor, nn

from teacherless.errors import InputError
from teacherless.evaluation.metrics import calibration_error, metrics
from teacherless.method import Output
from teacherless.study import tables as analysis
from teacherless.training.record import Recorder

N = 12
close = slow.exactly


def random(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(n: int = N, classes: int = CLASSES) -> Tensor:
    return (torch.arange(n) * 7) % classes


def probs(logits: Tensor) -> list[list[float]]:
    return [slow.softmax(row) for row in slow.rows(logits)]


def slow_entropy(p: list[float]) -> float:
    return -math.fsum(v * math.log(v) for v in p if v > 0)


def slow_mean(rows: list[list[float]]) -> list[float]:
    return [slow.mean(column) for column in zip(*rows, strict=True)]


def guess(logits: Tensor) -> list[int]:
    return [row.index(max(row)) for row in slow.rows(logits)]


def test_posterior() -> None:
    z = random(N, 7)
    found = analysis.posterior(z)
    assert found["entropy"] == close(slow.mean(slow_entropy(p) for p in probs(z)))
    ranked = [sorted(p, reverse=True)[:5] for p in probs(z)]
    assert found["top5"] == pytest.approx(slow_mean(ranked), rel=1e-11)
    assert len(analysis.posterior(z[:, :3])["top5"]) == 3
    sure = analysis.posterior(torch.tensor([[1e4, 0.0, -1e4]]))
    assert sure == {"entropy": 0.0, "top5": [1.0, 0.0, 0.0]}
    assert analysis.posterior(torch.zeros(2, 8))["entropy"] == close(math.log(8))


def test_peers() -> None:
    y = labels()
    z = random(3, N, CLASSES) + nn.functional.one_hot(y, CLASSES)  # sometimes right, sometimes wrong
    found = analysis.peers({"a": z[0], "b": z[1], "c": z[2]}, y)
    wrong = [[float(g != int(c)) for g, c in zip(guess(logits), y, strict=True)] for logits in z]
    for i in range(3):
        assert found["top1"][i] == close(100 * (1 - slow.mean(wrong[i])))
        for j in range(3):
            same = slow.mean(float(a == b) for a, b in zip(guess(z[i]), guess(z[j]), strict=True))
            assert found["agreement"][i][j] == close(100 * same)
            assert found["error_correlation"][i][j] == pytest.approx(statistics.correlation(wrong[i], wrong[j]))
    mean = [slow_mean(list(rows)) for rows in zip(*(probs(logits) for logits in z), strict=True)]
    right = slow.mean(float(p.index(max(p)) == int(c)) for p, c in zip(mean, y, strict=True))
    assert found["ensemble"] == close(100 * right)
    assert found["gain"] == close(100 * right - slow.mean(found["top1"]))


def test_a_peer_that_never_errs_has_no_error_correlation() -> None:
    y = labels()
    perfect = nn.functional.one_hot(y, CLASSES).double()
    found = analysis.peers({"a": perfect, "b": random(N, CLASSES)}, y)
    assert found["error_correlation"][0] == [None, None]
    assert found["top1"][0] == 100


def test_variance() -> None:
    z = random(3, N, CLASSES)
    each = [probs(logits) for logits in z]
    by_hand = slow.mean(
        math.fsum(statistics.variance([each[k][i][c] for k in range(3)]) for c in range(CLASSES)) for i in range(N)
    )
    found = analysis.variance(z)
    assert found.keys() == {"networks", "variance", "distance"} and found["networks"] == 3
    assert found["variance"] == close(by_hand)
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    distance = slow.mean(
        math.fsum((a - b) ** 2 for a, b in zip(each[i][n], each[j][n], strict=True)) for i, j in pairs for n in range(N)
    )
    assert by_hand == close(distance / 2)
    apart = [math.dist(each[i][n], each[j][n]) for i, j in pairs for n in range(N)]
    assert found["distance"] == close(slow.mean(apart))
    with pytest.raises(InputError, match="found 1 network; needs at least 2"):
        analysis.variance(z[:1])


def test_gates() -> None:
    weights, y = random(N, 3).softmax(1), labels(classes=4)
    found = analysis.gates(weights, y, 5)
    w = slow.rows(weights)
    assert found["mean"] == pytest.approx(slow_mean(w))
    assert found["entropy"] == close(slow.mean(map(slow_entropy, w)))
    for c in range(4):
        mine = [row for row, label in zip(w, y, strict=True) if int(label) == c]
        assert found["per_class"][c] == pytest.approx(slow_mean(mine))
    assert found["per_class"][4] == [None] * 3  # a class without samples
    for i in range(3):
        assert found["quantiles"][i] == pytest.approx(np.quantile([row[i] for row in w], analysis.QUANTILES).tolist())
    assert analysis.gates(torch.full((4, 3), 1 / 3), y[:4], 2)["entropy"] == pytest.approx(math.log(3))


def test_consistency() -> None:
    a, b, f, g = random(N, CLASSES), random(N, CLASSES, seed=1), random(N, 6, seed=2), random(N, 6, seed=3)
    found = analysis.consistency(a, b, f, g)
    assert found["agreement"] == close(100 * slow.mean(float(x == y) for x, y in zip(guess(a), guess(b), strict=True)))
    assert found["kl"] == close((slow.mean_kl(a, b) + slow.mean_kl(b, a)) / 2)
    dot = [math.sumprod(x, y) if hasattr(math, "sumprod") else sum(p * q for p, q in zip(x, y, strict=True))
           for x, y in zip(slow.rows(f), slow.rows(g), strict=True)]  # fmt: skip
    norms = [math.hypot(*x) * math.hypot(*y) for x, y in zip(slow.rows(f), slow.rows(g), strict=True)]
    assert found["cosine"] == close(slow.mean(d / n for d, n in zip(dot, norms, strict=True)))
    square = [[math.dist(x, y) ** 2 for y in slow.rows(g)] for x in slow.rows(f)]
    same = slow.mean(square[i][i] for i in range(N))
    other = slow.mean(square[i][j] for i in range(N) for j in range(N) if i != j)
    assert found["distance"] == close(same / other)
    equal = analysis.consistency(a, a, f, f)
    assert equal == {"agreement": 100, "kl": 0, "cosine": close(1.0), "distance": pytest.approx(0, abs=1e-12)}
    assert analysis.consistency(a, b)["distance"] is None


def slow_cka(a: list[list[float]], b: list[list[float]]) -> float:
    """HSIC of the centred Gram matrices, one number at a time."""

    def gram(x: list[list[float]]) -> list[list[float]]:
        mean = slow_mean(x)
        x = [[v - m for v, m in zip(row, mean, strict=True)] for row in x]
        return [[math.fsum(p * q for p, q in zip(r, s, strict=True)) for s in x] for r in x]

    def inner(k: list[list[float]], h: list[list[float]]) -> float:
        return math.fsum(p * q for r, s in zip(k, h, strict=True) for p, q in zip(r, s, strict=True))

    k, h = gram(a), gram(b)
    return inner(k, h) / math.sqrt(inner(k, k) * inner(h, h))


def test_cka() -> None:
    a, b = random(N, 4), random(N, 6, seed=1)
    assert analysis.cka(a, b) == close(slow_cka(slow.rows(a), slow.rows(b)))
    rotation = torch.linalg.qr(random(4, 4, seed=2))[0]
    assert analysis.cka(a, 3 * a @ rotation + 1) == close(1.0)
    assert analysis.cka(a, torch.ones(N, 3)) is None
    maps = random(N, 2, 2, 2, seed=3)
    table = analysis.similarity({"a": a, "b": b, "maps": maps})
    assert table["names"] == ["a", "b", "maps"]
    assert table["cka"][0][1] == close(table["cka"][1][0]) == analysis.cka(a, b)
    assert table["cka"][2][0] == analysis.cka(maps.flatten(1), a)


@pytest.mark.parametrize("shape", [(N, 6), (5, 9), (N, 2), (N, 1)])
def test_pca(shape: tuple[int, int]) -> None:
    x = random(*shape) * torch.arange(1, shape[1] + 1)
    found = analysis.pca(x, labels(shape[0]))
    components = min(2, shape[1])
    reference = PCA(components, svd_solver="full").fit(x.numpy())
    points = torch.tensor(found["points"])[:, :components]
    assert points.abs() == pytest.approx(np.abs(reference.transform(x.numpy())), rel=1e-6, abs=1e-9)
    assert found["explained"] is not None
    assert found["explained"][:components] == pytest.approx(reference.explained_variance_ratio_.tolist())
    assert len(found["points"][0]) == len(found["explained"]) == 2
    flipped = analysis.pca(-x, labels(shape[0]))
    assert np.array(flipped["points"]) == pytest.approx(-np.array(found["points"]))  # the sign is not the solver's
    assert analysis.pca(torch.ones(4, 3), labels(4))["explained"] == [0.0, 0.0]


def test_tsne_separates_and_repeats() -> None:
    y = torch.arange(30) % 3
    x = random(30, 8, scale=0.1) + 5 * nn.functional.one_hot(y, 8)
    before = torch.random.get_rng_state()
    found = analysis.tsne(x, y)
    assert found == analysis.tsne(x, y)
    assert torch.equal(before, torch.random.get_rng_state())
    points = torch.tensor(found["points"])
    distance = torch.cdist(points, points).fill_diagonal_(math.inf)
    assert (y[distance.argmin(1)] == y).all()
    assert len(analysis.tsne(random(5, 1), labels(5))["points"]) == 5


def test_reliability() -> None:
    z, y = random(200, CLASSES, scale=1.5).float(), labels(200)
    table = analysis.reliability(z, y)
    n = sum(b["count"] for b in table)
    assert n == 200
    gaps = [b["count"] / n * abs(b["accuracy"] - b["confidence"]) for b in table
            if b["accuracy"] is not None and b["confidence"] is not None]  # fmt: skip
    assert sum(gaps) == close(calibration_error(z, y))
    for b in table:
        inside = [
            (max(p), float(p.index(max(p)) == int(c)))
            for p, c in zip(probs(z), y, strict=True)
            if b["low"] < max(p) <= b["high"]
        ]
        assert b["count"] == len(inside)
        if inside:
            assert b["confidence"] == pytest.approx(slow.mean(c for c, _ in inside), rel=1e-6)
            assert b["accuracy"] == close(slow.mean(r for _, r in inside))
        else:
            assert b["confidence"] is b["accuracy"] is None


def test_class_accuracy_and_gain() -> None:
    y = labels(classes=4)
    accuracies = []
    for seed in range(4):
        z = random(N, CLASSES, seed=seed)
        found = analysis.class_accuracy(z, y)
        for c in range(4):
            assert found[c] == close(
                100 * slow.mean(float(g == c) for g, label in zip(guess(z), y, strict=True) if int(label) == c)
            )
        assert found[4] is None
        accuracies.append(found)
    gain = analysis.class_gain(accuracies[:2], accuracies[2:])
    for c in range(4):
        each = [float(a[c] or 0) - float(b[c] or 0) for a, b in zip(accuracies[:2], accuracies[2:], strict=True)]
        assert gain["gain"][c] == close(slow.mean(each))
        assert gain["std"][c] == close(statistics.stdev(each))
    assert gain["gain"][4] is gain["std"][4] is None
    assert analysis.class_gain(accuracies[:1], accuracies[2:3])["std"] == [None] * 5


def test_cohort_size() -> None:
    def cohort(kind: str, top1: list[float], ensemble: float | None, entropy: float | None) -> analysis.Cohort:
        return {"kind": kind, "top1": top1, "ensemble": ensemble, "entropy": entropy, "train_entropy": 0.1}

    table = analysis.cohort_size([
        cohort("independent", [90.0], None, 0.1),
        cohort("dml", [91.0, 92.0], 93.0, 0.2),
        cohort("dml", [93.0, 92.0], 95.0, 0.4),
        cohort("dml", [91.0, 92.0, 93.0], 94.0, None),
    ])  # fmt: skip
    assert [(row["kind"], row["size"], row["cohorts"]) for row in table] == [
        ("dml", 2, 2), ("dml", 3, 1), ("independent", 1, 1)]  # fmt: skip
    two, three, one = table
    assert two["single"] == 92 and two["single_std"] == close(statistics.stdev([91, 92, 93, 92]))
    assert two["ensemble"] == 94 and two["ensemble_std"] == close(statistics.stdev([93, 95]))
    assert (
        two["entropy"] == close(0.3)
        and two["train_entropy"] == close(0.1)
        and three["entropy"] is None
        and three["ensemble_std"] is None
    )
    assert one["single_std"] is one["ensemble"] is None


def test_dml_against_dml_e() -> None:
    z, y = random(4, N, CLASSES), labels()
    found = analysis.dml_targets(z, y)
    assert found["gradient_difference"] < 1e-12
    p = [probs(logits) for logits in z]
    target = [[slow_mean([p[j][n] for j in range(4) if j != k]) for n in range(N)] for k in range(4)]
    ce = slow.mean(slow.mean_ce(logits, y) for logits in z)
    pairs = slow.mean(slow.mean(slow.mean_kl(z[k], z[j]) for j in range(4) if j != k) for k in range(4))
    mean = slow.mean(
        math.fsum(
            q * (math.log(q) - log) for q, log in zip(target[k][n], slow.log_softmax(slow.rows(z[k])[n]), strict=True)
        )
        for k in range(4)
        for n in range(N)
    )
    assert found["loss_dml"] == close(ce + pairs)
    assert found["loss_dml_e"] == close(ce + mean)
    assert found["gap"] == close(pairs - mean)
    assert found["peer_entropy"] == close(slow.mean(slow_entropy(row) for logits in p for row in logits))
    assert found["target_entropy"] == close(slow.mean(slow_entropy(row) for rows in target for row in rows))
    assert found["target_true"] == close(
        slow.mean(row[int(c)] for rows in target for row, c in zip(rows, y, strict=True))
    )
    assert found["target_entropy"] > found["peer_entropy"]  # averaging probabilities never peaks a target
    assert all(math.isfinite(v) for v in analysis.dml_targets(500 * z, y).values())  # type: ignore[misc, arg-type]
    with pytest.raises(InputError, match="at least 2"):
        analysis.dml_targets(z[:1], y)


def test_average() -> None:
    tables = [
        {"a": 1.0, "b": [2, 3.0], "c": "PCA", "d": None, "e": 4.0},
        {"a": 3.0, "b": [4, 5.0], "c": "PCA", "d": 1.0, "e": None},
    ]
    assert analysis.average(tables) == {"a": 2.0, "b": [3.0, 4.0], "c": "PCA", "d": None, "e": None}
    assert analysis.average(tables[:1]) == tables[0]


def test_curves() -> None:
    lines = [
        {"epoch": 0, "train/loss": 9.0, "train/nll/a": 1.0, "train/nll/b": 3.0, "val/top1/a": 50.0},
        {"epoch": 1, "train/loss": 8.0, "train/nll/a": 0.5, "train/nll/b": 0.7, "val/top1/a": None},
    ]
    found = analysis.curves(lines)
    assert found["epoch"] == [1, 2]
    assert found["train_nll"] == [2.0, close(0.6)]
    assert found["val_top1"] == [50.0, None]
    assert found["val_nll"] == found["train_entropy"] == [None, None]


@pytest.mark.parametrize("what", ["ties", "nan", "inf"])
def test_accuracy_is_counted_as_evaluation_counts_it(what: str) -> None:
    logits = torch.randint(3, (60, 4), generator=torch.Generator().manual_seed(0)).double()
    if what != "ties":
        logits[::3, 1] = float(what)
    labels = torch.arange(60) % 4
    top1 = dict(metrics(logits, labels))["top1"]
    assert statistics.fmean(v or 0 for v in analysis.class_accuracy(logits, labels)) == pytest.approx(top1)
    assert analysis.peers({"a": logits, "b": logits}, labels)["top1"] == pytest.approx([top1, top1])
    right = sum(b["count"] * (b["accuracy"] or 0) for b in analysis.reliability(logits, labels))
    assert 100 * right / 60 == pytest.approx(top1)
    recorder = Recorder(["a"], 1, 1, quiet=True)
    recorder.step(Output({}, logits[None]), labels)
    recorder.stop()
    assert recorder.means["train/top1/a"] == pytest.approx(top1)

"""Why it helps: pure functions from predictions, features and weights to tables.

A table is a `TypedDict` of numbers and lists that JSON can hold (None where a number does not exist), and `plots` has a
figure for each. Logits are `[N, C]`, the same N samples in the same order for every network. Everything is computed in
float64; whatever is random takes a seed and leaves torch's generator alone.

    N samples   C classes   K networks (peers, branches, independent ones)   D features
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from teacherless import losses
from teacherless.errors import InputError
from teacherless.evaluation.metrics import BINS, predicted, which_bin
from teacherless.files.disk import finite


def probabilities(logits: Tensor) -> Tensor:
    """softmax, in float64. `[..., C] -> [..., C]`."""
    return losses.log_probs(logits.double()).exp()


def mean_probability(logits: Tensor) -> Tensor:
    """The ensemble that averages probabilities, as logits. `[K, N, C] -> [N, C]`."""
    return losses.log_probs(logits.double()).logsumexp(0) - math.log(len(logits))


def entropy(probs: Tensor) -> Tensor:
    """-Σ_c p_c log p_c, in nats. `[..., C] -> [...]`."""
    nats: Tensor = torch.special.entr(probs).sum(-1)
    return nats


class Posterior(TypedDict):
    """How sure a network is (Zhang et al. 2018, Figure 3c and section 4.6)."""

    entropy: float  # nats, mean over samples
    top5: list[float]  # mean posterior of the class ranked 1st, 2nd, …


def posterior(logits: Tensor) -> Posterior:
    """Mean entropy, and the mean posterior of the five best-ranked classes (of all, where there are fewer)."""
    p = probabilities(logits)
    top = p.topk(min(5, p.shape[-1])).values
    return {"entropy": float(entropy(p).mean()), "top5": top.mean(0).tolist()}


class Peers(TypedDict):
    """How alike networks are, and what their ensemble gains from being different."""

    names: list[str]
    agreement: list[list[float]]  # [K][K], percent of samples with the same prediction, right or wrong
    error_correlation: list[list[float | None]]  # [K][K], Pearson, of being wrong; None where one errs never or always
    top1: list[float]  # [K], percent
    ensemble: float  # top-1 of the mean probability, percent
    gain: float  # the ensemble's top-1 minus the mean of the networks', points


def peers(logits: Mapping[str, Tensor], labels: Tensor) -> Peers:
    """Agreement, error correlation and ensemble gain of networks that predict the same samples."""
    each = torch.stack([z.double() for z in logits.values()])  # [K, N, C]
    guess = predicted(each)  # [K, N]
    wrong = (guess != labels).double()
    top1 = (100 * (1 - wrong.mean(1))).tolist()
    ensemble = 100 * float((predicted(mean_probability(each)) == labels).double().mean())
    return {
        "names": list(logits),
        "agreement": (100 * (guess[:, None] == guess).double().mean(-1)).tolist(),
        "error_correlation": finite(torch.corrcoef(wrong).tolist()),  # NaN where one errs never or always
        "top1": top1,
        "ensemble": ensemble,
        "gain": ensemble - sum(top1) / len(top1),
    }


class Variance(TypedDict):
    """How much networks' predictions vary around their mean (Lan et al. 2018, section 4.6)."""

    networks: int
    variance: float  # Σ_c Var_k(p_kc), unbiased, mean over samples: half the mean squared distance of two networks
    distance: float  # ‖p_k - p_l‖, mean over pairs and samples: the diversity of Chen et al. 2020 (OKDDip)


def variance(logits: Tensor) -> Variance:
    """Of K networks or branches, `[K, N, C]`. Raises: InputError for fewer than two."""
    _at_least_two("variance", logits)
    each = probabilities(logits)
    distance = torch.stack([(a - b).norm(dim=-1).mean() for a, b in combinations(each, 2)]).mean()
    return {"networks": len(each), "variance": float(each.var(0).sum(-1).mean()), "distance": float(distance)}


class Gates(TypedDict):
    """Whom ONE's gate listens to."""

    mean: list[float]  # [m], over samples
    quantiles: list[list[float]]  # [m][5]: 5, 25, 50, 75, 95 % of the samples
    per_class: list[list[float | None]]  # [C][m], mean over the samples of a class; None for a class without any
    entropy: float  # nats, mean; log m where all branches always count alike


QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def gates(weights: Tensor, labels: Tensor, classes: int) -> Gates:
    """Of gate weights `[N, m]`, each row a distribution, and the samples' labels `[N]`."""
    w = weights.double()
    at = torch.tensor(QUANTILES, dtype=torch.float64, device=w.device)
    return {
        "mean": w.mean(0).tolist(),
        "quantiles": w.quantile(at, dim=0).T.tolist(),
        "per_class": finite([w[labels == c].mean(0).tolist() for c in range(classes)]),
        "entropy": float(entropy(w).mean()),
    }


class Consistency(TypedDict):
    """How much alike a network treats two distortions of an image (Xu & Liu 2019)."""

    agreement: float  # percent of images with the same prediction
    kl: float  # nats: mean of both directions
    cosine: float | None  # of the features, mean
    distance: float | None  # squared, of the features of two views, over that of two different images


def consistency(
    a: Tensor, b: Tensor, features_a: Tensor | None = None, features_b: Tensor | None = None
) -> Consistency:
    """Of the logits `[N, C]`, and where given the features `[N, D]`, of two views of the same N >= 2 images."""
    both = (losses.kl(a.double(), b.double()) + losses.kl(b.double(), a.double())) / 2
    measured: Consistency = {
        "agreement": 100 * float((predicted(a) == predicted(b)).double().mean()),
        "kl": float(both.mean()),
        "cosine": None,
        "distance": None,
    }
    if features_a is not None and features_b is not None:
        f, g = features_a.double().flatten(1), features_b.double().flatten(1)
        n, same = len(f), (f - g).square().sum(1).mean()
        # Over all pairs (i, j), E‖f_i - g_j‖² = E‖f‖² + E‖g‖² - 2 <mean f, mean g>; the n pairs i = j are taken out.
        pairs = f.square().sum(1).mean() + g.square().sum(1).mean() - 2 * f.mean(0) @ g.mean(0)
        measured["cosine"] = finite(float(nn.functional.cosine_similarity(f, g).mean()))
        measured["distance"] = finite(float(same / ((n * pairs - same) / (n - 1))))
    return measured


def cka(a: Tensor, b: Tensor) -> float | None:
    """Linear centred kernel alignment (Kornblith et al. 2019, eq. 3): 1 for features alike up to rotation and scale.

    Args:
        a, b: `[N, D]`, of the same samples; the two D may differ.

    Returns: in [0, 1]; None where one of them is constant.
    """
    a, b = (x.double().flatten(1) - x.double().flatten(1).mean(0) for x in (a, b))
    scale = (a.T @ a).norm() * (b.T @ b).norm()
    return float((a.T @ b).square().sum() / scale) if scale > 0 else None


class Similarity(TypedDict):
    """CKA of every pair of networks: how alike their features are."""

    names: list[str]
    cka: list[list[float | None]]  # [K][K]


def similarity(features: Mapping[str, Tensor]) -> Similarity:
    """Of features `[N, D]`, the same samples for every network."""
    return {"names": list(features), "cka": [[cka(a, b) for b in features.values()] for a in features.values()]}


class Picture(TypedDict):
    """Features in the plane."""

    kind: Literal["PCA", "t-SNE"]
    points: list[list[float]]  # [N][2]
    labels: list[int]  # [N]
    explained: list[float] | None  # PCA: the share of the variance on each axis


def pca(features: Tensor, labels: Tensor) -> Picture:
    """The two principal components of `[N, D]`; of one feature the second is 0."""
    from sklearn.decomposition import PCA

    x = features.double().flatten(1)
    columns = nn.functional.pad(x, (0, max(0, 2 - x.shape[1]))).cpu().numpy()
    axes = PCA(2, svd_solver="full")
    with np.errstate(invalid="ignore"):  # constant features have no variance to explain
        points = axes.fit_transform(columns)
    explained = np.nan_to_num(axes.explained_variance_ratio_)
    return {"kind": "PCA", "points": points.tolist(), "labels": labels.tolist(), "explained": explained.tolist()}


def tsne(features: Tensor, labels: Tensor, *, seed: int = 0) -> Picture:
    """t-SNE (van der Maaten & Hinton 2008) of `[N, D]`, N >= 4; perplexity 30, or less where there are few samples."""
    from sklearn.manifold import TSNE

    x = features.double().flatten(1).cpu().numpy()
    perplexity = min(30.0, (len(x) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca" if x.shape[1] > 1 else "random", random_state=seed).fit_transform(x)
    return {"kind": "t-SNE", "points": points.tolist(), "labels": labels.tolist(), "explained": None}


class Bin(TypedDict):
    """One bar of a reliability diagram."""

    low: float  # confidence, exclusive
    high: float  # inclusive
    count: int
    confidence: float | None  # mean in the bin; None where it is empty
    accuracy: float | None  # in [0, 1]


def reliability(logits: Tensor, labels: Tensor, bins: int = BINS) -> list[Bin]:
    """Accuracy against confidence. Σ count/N |accuracy - confidence| is `evaluate.calibration_error`."""
    confidence = losses.log_probs(logits).double().exp().amax(1)  # as evaluation does, so that no edge differs
    where, right = which_bin(confidence, bins), (predicted(logits) == labels).double()
    table: list[Bin] = []
    for i in range(bins):
        inside = where == i
        sure, accurate = (finite(float(values[inside].mean())) for values in (confidence, right))
        count = int(inside.sum())
        table.append(Bin(low=i / bins, high=(i + 1) / bins, count=count, confidence=sure, accuracy=accurate))
    return table


def class_accuracy(logits: Tensor, labels: Tensor) -> list[float | None]:
    """Top-1 of each class's samples, percent; None for a class without any. `[N, C], [N] -> [C]`."""
    right = (predicted(logits) == labels).double()
    return [finite(100 * float(right[labels == c].mean())) for c in range(logits.shape[-1])]


class ClassGain(TypedDict):
    """Which classes a method helps."""

    gain: list[float | None]  # [C], points of the class's accuracy over plain's, mean over seeds
    std: list[float | None]  # over seeds, ddof 1; None at one seed


def class_gain(method: Sequence[Sequence[float | None]], plain: Sequence[Sequence[float | None]]) -> ClassGain:
    """Of `class_accuracy` of one network per seed, the method's and plain's, paired by seed: `[seeds][C]` each."""
    ours, theirs = (np.array(rows, dtype=np.float64) for rows in (method, plain))  # None becomes NaN
    difference = torch.from_numpy(ours - theirs)
    std = difference.std(0) if len(difference) > 1 else torch.full_like(difference[0], math.nan)
    return {"gain": finite(difference.mean(0).tolist()), "std": finite(std.tolist())}


class Cohort(TypedDict):
    """K networks trained together, or K independent ones."""

    kind: str  # "dml", "independent", …
    top1: list[float]  # [K], percent
    ensemble: float | None  # top-1 of their ensemble, percent
    entropy: float | None  # nats, of one network's predictions on test, mean over the networks
    train_entropy: float | None  # the same on training samples


class CohortRow(TypedDict):
    """Cohorts of one kind and size (Zhang et al. 2018, Figure 2)."""

    kind: str
    size: int
    cohorts: int
    single: float  # percent, mean over all networks of all cohorts
    single_std: float | None  # over those networks, ddof 1
    ensemble: float | None  # percent, mean over cohorts
    ensemble_std: float | None
    entropy: float | None  # nats, of one network on test
    train_entropy: float | None


def cohort_size(cohorts: Iterable[Cohort]) -> list[CohortRow]:
    """One row per kind and K, in that order."""
    groups: dict[tuple[str, int], list[Cohort]] = {}
    for cohort in cohorts:
        groups.setdefault((cohort["kind"], len(cohort["top1"])), []).append(cohort)
    rows: list[CohortRow] = []
    for (kind, size), group in sorted(groups.items()):
        single, single_std = _moments([value for cohort in group for value in cohort["top1"]])
        assert single is not None
        ensemble, ensemble_std = _moments([c["ensemble"] for c in group if c["ensemble"] is not None])
        unsure = [
            _moments([v for v in (c[key] for c in group) if v is not None])[0] for key in ("entropy", "train_entropy")
        ]
        rows.append(
            CohortRow(
                kind=kind,
                size=size,
                cohorts=len(group),
                single=single,
                single_std=single_std,
                ensemble=ensemble,
                ensemble_std=ensemble_std,
                entropy=unsure[0],
                train_entropy=unsure[1],
            )
        )
    return rows


class Targets(TypedDict):
    """DML against DML_e on one cohort's predictions (Zhang et al. 2018, eq. of DML_e and Figure 4)."""

    gradient_difference: float  # largest, of the loss with respect to the logits; relative to the largest gradient
    loss_dml: float  # CE + mean KL from each other peer, mean over peers and samples, nats
    loss_dml_e: float  # CE + KL from the mean of the others
    gap: float  # the mean of KL(p_l ‖ mean of the others): what the two losses differ by, and no student can change
    peer_entropy: float  # nats: of a single peer's prediction, DML's targets one by one
    target_entropy: float  # nats: of the mean of the others, DML_e's target. Never below `peer_entropy`
    target_true: float  # the target's mean posterior of the true class, the same for both


def dml_targets(logits: Tensor, labels: Tensor) -> Targets:
    """Targets and gradients of peers' logits `[K, N, C]`, peers held constant, straight from the definitions.

    Raises: InputError for fewer than two peers.
    """
    _at_least_two("DML against DML_e", logits)
    own = logits.double().detach().requires_grad_()
    p = probabilities(own.detach())
    others = [[j for j in range(len(p)) if j != k] for k in range(len(p))]
    target = torch.stack([p[rest].mean(0) for rest in others])  # [K, N, C]
    ce = losses.ce(own, labels)  # [K, N]
    each = torch.stack([losses.kl(own[k], own.detach()[rest]).mean(0) for k, rest in enumerate(others)])
    one = losses.kl(own, torch.stack([mean_probability(own.detach()[rest]) for rest in others]))
    dml, dml_e = (ce + each).mean(), (ce + one).mean()
    g, g_e = (torch.autograd.grad(loss, own, retain_graph=True)[0] for loss in (dml, dml_e))
    return {
        "gradient_difference": float((g - g_e).abs().max() / g.abs().max().clamp_min(torch.finfo(g.dtype).tiny)),
        "loss_dml": dml.item(),
        "loss_dml_e": dml_e.item(),
        "gap": float((entropy(target) - torch.stack([entropy(p[rest]).mean(0) for rest in others])).mean()),
        "peer_entropy": float(entropy(p).mean()),
        "target_entropy": float(entropy(target).mean()),
        "target_true": float(target[:, torch.arange(len(labels)), labels].mean()),
    }


class Curves(TypedDict):
    """One run's epochs, each the mean over its students; None where the run did not log it."""

    epoch: list[int]  # 1, 2, …
    train_nll: list[float | None]  # nats, of the labels, whatever the method's other terms are
    val_nll: list[float | None]
    train_top1: list[float | None]  # percent
    val_top1: list[float | None]
    train_entropy: list[float | None]  # nats
    val_entropy: list[float | None]


def average(tables: Sequence[Any]) -> Any:
    """Tables of one kind as one: numbers are averaged (None where one of them is), texts are the first's."""
    first = tables[0]
    if isinstance(first, dict):
        return {key: average([table[key] for table in tables]) for key in first}
    if isinstance(first, list):
        return [average(each) for each in zip(*tables, strict=True)]
    if isinstance(first, str):
        return first
    return None if None in tables else sum(tables) / len(tables)


def curves(history: Sequence[Mapping[str, Any]]) -> Curves:
    """From the lines of metrics.jsonl."""

    def column(kind: str) -> list[float | None]:
        each = [[v for key, v in line.items() if key.startswith(f"{kind}/") and v is not None] for line in history]
        return [finite(sum(values) / len(values)) if values else None for values in each]

    return {
        "epoch": list(range(1, len(history) + 1)),  # of all phases
        "train_nll": column("train/nll"),
        "val_nll": column("val/nll"),
        "train_top1": column("train/top1"),
        "val_top1": column("val/top1"),
        "train_entropy": column("train/entropy"),
        "val_entropy": column("val/entropy"),
    }


def _at_least_two(what: str, logits: Tensor) -> None:
    if len(logits) < 2:
        raise InputError(f"{what}: found {len(logits)} network; needs at least 2")


def _moments(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean, and standard deviation with ddof 1; None where there are too few values."""
    x = torch.tensor(values, dtype=torch.float64)
    return finite(float(x.mean())), finite(float(x.std())) if len(x) > 1 else None

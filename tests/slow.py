"""The equations, one number at a time: what the tests compare the library with. Nothing here is vectorised."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

Vector = Sequence[float]


def rows(x: Tensor) -> list[list[float]]:
    """`[B, C]` as lists of floats."""
    return [[float(v) for v in row] for row in x.detach()]


def softmax(z: Vector, temperature: float = 1.0) -> list[float]:
    """p_c = exp(z_c / T) / Σ_j exp(z_j / T)."""
    top = max(z)
    e = [math.exp((v - top) / temperature) for v in z]
    total = math.fsum(e)
    return [v / total for v in e]


def log_softmax(z: Vector, temperature: float = 1.0) -> list[float]:
    """log p_c = z_c / T - log Σ_j exp(z_j / T)."""
    top = max(z)
    log_total = math.log(math.fsum(math.exp((v - top) / temperature) for v in z))
    return [(v - top) / temperature - log_total for v in z]


def soft_ce(z: Vector, target: Vector, temperature: float = 1.0) -> float:
    """-Σ_c q_c log p_c."""
    return -math.fsum(q * lp for q, lp in zip(target, log_softmax(z, temperature), strict=True))


def bce(z: Vector, target: Vector) -> float:
    """-Σ_c (t_c log σ(z_c) + (1 - t_c) log(1 - σ(z_c)))."""
    log_sigmoid = [-math.log1p(math.exp(-v)) for v in z], [-math.log1p(math.exp(v)) for v in z]
    return -math.fsum(t * a + (1 - t) * b for t, a, b in zip(target, *log_sigmoid, strict=True))


def ce(z: Vector, label: int, smoothing: float = 0.0) -> float:
    """-log p_y, or with the target (1 - ε)·onehot + ε/C."""
    return soft_ce(z, onehot(label, len(z), smoothing))


def onehot(label: int, classes: int, smoothing: float = 0.0) -> list[float]:
    """(1 - ε)·onehot + ε/C."""
    return [(1 - smoothing) * (c == label) + smoothing / classes for c in range(classes)]


def kl(z: Vector, target: Vector, temperature: float = 1.0) -> float:
    """Σ_c q_c (log q_c - log p_c), both softened by T: **without** T²."""
    log_p, log_q = log_softmax(z, temperature), log_softmax(target, temperature)
    return math.fsum(math.exp(q) * (q - p) for p, q in zip(log_p, log_q, strict=True))


def mean_ce(z: Tensor, labels: Tensor, smoothing: float = 0.0) -> float:
    """The mean of `ce` over a batch."""
    return mean(ce(row, int(y), smoothing) for row, y in zip(rows(z), labels, strict=True))


def mean_kl(z: Tensor, target: Tensor, temperature: float = 1.0) -> float:
    """The mean of `kl` over a batch: **without** T²."""
    return mean(kl(row, q, temperature) for row, q in zip(rows(z), rows(target), strict=True))


def mean(values: Iterable[float]) -> float:
    """The mean, summed exactly."""
    values = list(values)
    return math.fsum(values) / len(values)


def mean_square(a: Tensor, b: Tensor) -> float:
    """The mean over all entries of (a - b)²."""
    return mean((float(x) - float(y)) ** 2 for x, y in zip(a.detach().flatten(), b.detach().flatten(), strict=True))


def exactly(value: float) -> object:
    """Equal up to the rounding of float64 sums."""
    return pytest.approx(value, rel=1e-11, abs=1e-14)


def reached(terms: Mapping[str, Tensor], groups: Mapping[str, nn.Module | Iterable[Tensor]]) -> dict[str, set[str]]:
    """The gradient-routing table: the groups of parameters each term moves."""
    table: dict[str, set[str]] = {}
    for name, term in terms.items():
        table[name] = set()
        for group, owner in groups.items():
            params = list(owner.parameters()) if isinstance(owner, nn.Module) else list(owner)
            grads = torch.autograd.grad(term, params, retain_graph=True, allow_unused=True)
            if any(g is not None and g.abs().max() > 0 for g in grads):
                table[name].add(group)
    return table

"""Who teaches whom in a cohort, and what.

Every target has one form. For peer k and sample b it is a distribution q (or 0, where nobody teaches) and a number h;
mimicry is h - Σ_c q_c log p_c. That is KL(q ‖ p) where h is Σ_c q_c log q_c, and the mean of the divergences from
several teachers where h is the mean of theirs.

    K predictions of everyone   k of ours   B samples   C classes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from teacherless import losses

STEPS = 50  # of the search for a mixture's weights


class Voices(NamedTuple):
    """A cohort's predictions, and who listens to whom."""

    log_p: Tensor  # [K, B, C], softened; 0 for who has left
    temperature: float
    labels: Tensor  # [B] or [B, C]
    rows: Tensor  # [k, K], what each of ours takes from each of all
    mine: Sequence[int] | slice  # which of all are ours
    gone: Tensor  # [K], who has left
    whole_batch: Callable[[Tensor], Tensor]

    def nll(self) -> Tensor:
        """Cross-entropy of everyone's prediction, not softened. `[K, B]`."""
        return losses.nll(losses.log_probs(self.temperature * self.log_p), self.labels)

    def of_all_parts(self) -> tuple[Tensor, Tensor]:
        """Everyone's predictions, softened, and the labels, of the whole batch. `[K, D·B, C], [D·B(, C)]`."""
        log_p = self.whole_batch(self.log_p.transpose(0, 1)).transpose(0, 1)
        return log_p, self.whole_batch(self.labels)


Target = tuple[Tensor, Tensor]  # q [k, B, C], and h [k, B]


def of(name: str, voices: Voices) -> Target:
    """A target by its name."""
    if name == "peers":
        return _mean(voices, voices.rows)
    if name == "selective":
        return _mean(voices, _better(voices))
    log_q = {"naive": _best, "linear": _mixture, "min-logit": _lowest, "general": _general}[name](voices)  # [B, C]
    q = log_q.exp()
    h = (q * log_q).sum(-1)
    return q.expand(len(voices.rows), -1, -1), h.expand(len(voices.rows), -1)


def _mean(voices: Voices, rows: Tensor) -> Target:
    """The mean of several teachers, and of their divergences. `[k, K]`, or `[k, K, B]` by sample."""
    p = voices.log_p.exp()
    return mix(rows, p), mix(rows, (p * voices.log_p).sum(-1))


def _better(voices: Voices) -> Tensor:
    """Of those a peer listens to, who knows the sample better than itself. `[k, K, B]`, summing to 1 or 0."""
    nll = voices.nll()
    rows = voices.rows[:, :, None] * (nll < nll[voices.mine][:, None])
    return rows / rows.sum(1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)


def _best(voices: Voices) -> Tensor:
    """Whoever knows the sample best. `[B, C]`."""
    best = voices.nll().masked_fill(voices.gone[:, None], torch.inf).argmin(0)
    return voices.log_p.gather(0, best[None, :, None].expand(1, *voices.log_p.shape[1:]))[0]


def _lowest(voices: Voices) -> Tensor:
    """Of every class the lowest logit of anyone, less that of the label. `[B, C]`."""
    right = losses.class_ids(voices.labels)[None, :, None].expand(len(voices.log_p), -1, 1)
    below = voices.log_p - voices.log_p.gather(-1, right)
    return losses.log_probs(below.masked_fill(voices.gone[:, None, None], torch.inf).amin(0))


def _mixture(voices: Voices) -> Tensor:
    """The mixture of logits with the lowest cross-entropy on the batch. `[B, C]`."""
    log_p, labels = voices.of_all_parts()
    weights = simplex(voices.temperature * log_p, labels, voices.gone)
    return losses.log_probs((weights[:, None, None] * voices.log_p).sum(0))


def _general(voices: Voices) -> Tensor:
    """The mixture of probabilities, not of logits, with the least error on the batch. `[B, C]`."""
    log_p, labels = voices.of_all_parts()
    errors = log_p.exp() - losses.virtual_teacher(labels, log_p[0], correct=1)
    return (least_error(errors, voices.gone).log()[:, None, None] + voices.log_p).logsumexp(0)  # p itself may underflow


def least_error(errors: Tensor, gone: Tensor) -> Tensor:
    """Weights w = C⁻¹1 / 1ᵀC⁻¹1, where C_ij = Σ e_i e_j over samples and classes; 0 for who has left.

    That is the least wᵀCw of weights that sum to 1 (Perrone and Cooper 1993). Whoever gets one below 0 is left out, and
    the others' are found again. Of equal errors C is singular: a little on its diagonal makes their weights equal.
    `[K, B, C], [K] -> [K]`.
    """
    e = errors.masked_fill(gone[:, None, None], 0).flatten(1)
    c = e @ e.t()
    numbers, one = torch.finfo(c.dtype), torch.eye(len(c), dtype=c.dtype, device=c.device)
    c = c / c.diagonal().amax().clamp_min(numbers.tiny) + numbers.eps**0.5 * one
    here = ~gone
    for _ in range(len(gone)):
        # whoever is left out has a row of the identity, so 0; solve() would wait for the device to say how it went
        w: Tensor = torch.linalg.solve_ex(torch.where(here[:, None] & here, c, one), here.to(c)).result
        w = w / w.sum()
        here = here & (w > 0)
    return w


def simplex(z: Tensor, labels: Tensor, gone: Tensor) -> Tensor:
    """Weights a >= 0, summing to 1, 0 for who has left, that minimise the mean CE(Σ_l a_l z_l, y), which is convex.

    By exponentiated gradient. A step is as long as the curvature along the most uncertain of the z allows.
    `[K, B, C], [B(, C)], [K] -> [K]`.
    """
    hard = -losses.nll(z, labels)  # [K, B]: the label's logit
    if labels.dim() == 2:
        hard = hard / labels.sum(-1)  # of weighted classes, too
    log_a = torch.zeros_like(z[:, 0, 0]).masked_fill(gone, -torch.inf)
    for _ in range(STEPS):
        p = losses.log_probs((log_a.softmax(0)[:, None, None] * z).sum(0)).exp()  # [B, C]
        mean = (p * z).sum(-1)  # [K, B]
        curvature = ((p * z.square()).sum(-1) - mean.square()).mean(1).amax()
        log_a = log_a - (mean - hard).mean(1) / curvature.clamp_min(torch.finfo(z.dtype).eps)
    return log_a.softmax(0)


def shares(listening: Tensor, gone: Tensor, how: str) -> Tensor:
    """What each takes from those that are left: as much as from all; with "sum", from each what it took. `[k, K]`."""
    rows = listening.masked_fill(gone, 0)
    if how == "sum":
        return rows * (listening > 0).sum(1, keepdim=True)
    return rows * (listening.sum(1) / rows.sum(1).clamp_min(torch.finfo(rows.dtype).tiny))[:, None]


def mix(rows: Tensor, values: Tensor) -> Tensor:
    """Σ_l rows[k, l] values[l], summed in peer order, so that every engine gives the same bits.

    `[k, K]`, or `[k, K, B]` by sample, and `[K, B]` or `[K, B, C]`.
    """
    shape = (*rows[:, 0].shape, *[1] * (values.dim() - rows.dim() + 1))
    return reduce(torch.add, [rows[:, j].reshape(shape) * value for j, value in enumerate(values.unbind(0))])


def neg_entropy(probs: Tensor) -> Tensor:
    """Σ_c q log q; a mean that rounding took below 0 counts as 0. `[..., C] -> [...]`."""
    q = probs.clamp_min(0)
    return torch.xlogy(q, q).sum(-1)


def informed(log_p: Tensor) -> Tensor:
    """Σ_c p log p. `[..., C] -> [...]`."""
    return (log_p.exp() * log_p).sum(-1)

"""The losses, as pure functions of tensors.

A loss returns one number per sample, `[..., B]`, and never reduces: the caller writes `.mean()`, so the reduction is
visible where it matters. The one batch statistic (`mmd`) returns a single number and says so.

    B samples   C classes   D features   ... any leading axes (peers, branches, views); they broadcast

Everything is computed in at least float32 (float64 stays float64), in log space, and sums over classes. Temperature
softens both sides and is paid back by its square (Hinton et al. 2015, section 2), always.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def full(x: Tensor) -> Tensor:
    """`x` in at least float32: what comes after a network's logits is never computed in half precision."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def log_probs(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(z / T) over the last axis, in at least float32. `[..., C] -> [..., C]`."""
    return F.log_softmax(full(logits) / temperature, dim=-1)


def ce(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with class labels; with smoothing ε the target is (1 - ε)·onehot + ε/C.

    Args:
        logits: `[..., B, C]`.
        labels: `[B]` class ids, or `[B, C]` shares of classes (of mixed images).
        smoothing: ε in [0, 1] (Szegedy et al. 2016, section 7).

    Returns: `[..., B]`, in nats.
    Raises: ValueError if the shapes do not match.
    """
    if labels.shape not in (logits.shape[-2:-1], logits.shape[-2:]):
        need = f"logits {list(logits.shape)} need [B] = {list(logits.shape[-2:-1])}"
        raise ValueError(f"labels: found shape {list(labels.shape)}; {need}")
    return nll(log_probs(logits), labels, smoothing)


def nll(log_p: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """`ce` from log-probabilities that are there already. `[..., B, C], [B] or [B, C] -> [..., B]`."""
    whole: Tensor | int = 1
    if labels.dim() == 2:
        hard = -(full(labels) * log_p).sum(-1)
        whole = labels.sum(-1)  # of weighted classes, the weight
    else:
        hard = -log_p.gather(-1, labels.expand(log_p.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    return hard if smoothing == 0 else (1 - smoothing) * hard - smoothing * whole * log_p.mean(-1)


def entropy(logits: Tensor) -> Tensor:
    """How unsure a prediction is: -Σ_c p_c log p_c. `[..., B, C] -> [..., B]`, in nats."""
    log_p = log_probs(logits)
    return -(log_p.exp() * log_p).sum(-1)


def class_ids(labels: Tensor) -> Tensor:
    """The class of each sample, of mixed images the one with the largest share. `[B] or [B, C] -> [B]`."""
    return labels if labels.dim() == 1 else labels.argmax(-1)


def soft_ce(logits: Tensor, probs: Tensor) -> Tensor:
    """Cross-entropy with soft targets, -Σ_c q_c log p_c.

    Args:
        logits: `[..., B, C]`.
        probs: `[..., B, C]`, each row a distribution.

    Returns: `[..., B]`, in nats.
    Raises: ValueError if the last two axes differ.
    """
    _same_tail("probs", probs, logits)
    return -(full(probs) * log_probs(logits)).sum(-1)


def bce(logits: Tensor, shares: Tensor, whole: Tensor | float = 1.0) -> Tensor:
    """Cross-entropy of a sigmoid for each class, Σ_c -(t_c log σ(z_c) + (w - t_c) log(1 - σ(z_c))).

    Args:
        logits: `[..., B, C]`.
        shares: t, `[..., B, C]`, each in [0, w].
        whole: w, `[..., B, 1]`: above 1 for samples that weigh more.

    Returns: `[..., B]`, in nats.
    Raises: ValueError if the last two axes differ.
    """
    _same_tail("shares", shares, logits)
    return (whole * F.softplus(full(logits)) - shares * full(logits)).sum(-1)


def kl(logits: Tensor, target_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T² · KL(target ‖ student), both softened by T: the student moves towards the target.

    Nothing is detached here: who may learn from this term is the method's decision.

    Args:
        logits: the student's, `[..., B, C]`.
        target_logits: the target's, `[..., B, C]`; leading axes broadcast.
        temperature: T > 0.

    Returns: `[..., B]`, in nats (times T²).
    Raises: ValueError if the last two axes differ.
    """
    _same_tail("target_logits", target_logits, logits)
    log_p, log_q = log_probs(logits, temperature), log_probs(target_logits, temperature)
    return temperature**2 * (log_q.exp() * (log_q - log_p)).sum(-1)


def virtual_teacher(labels: Tensor, like: Tensor, correct: float) -> Tensor:
    """What a teacher that is always right would say: `correct` for the true class, the rest shared by the others.

    Args:
        labels: `[B]` class ids, or `[B, C]` shares of classes.
        like: `[B, C]`, of which the result takes shape, dtype and device.
        correct: in (0, 1) (Yuan et al. 2020, section 4).

    Returns: `[B, C]` probabilities.
    """
    rest = (1 - correct) / (like.shape[-1] - 1)
    if labels.dim() == 2:
        shares = labels.to(like)
        return rest + (correct - rest) * shares / shares.sum(-1, keepdim=True)  # of weighted classes, too
    return torch.full_like(like, rest, requires_grad=False).scatter(-1, labels.unsqueeze(-1), correct)


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of a sample's entries: 1/N Σ_n (a_n - b_n)², N entries per sample.

    Divided by N, so that a weight means the same for maps of any size.

    Args:
        a, b: `[B, ...]` logits, features or maps.

    Returns: `[B]`.
    Raises: ValueError if the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"mse: found shapes {list(a.shape)} and {list(b.shape)}; both must be one [B, ...]")
    return (full(a) - full(b)).square().flatten(1).mean(1)


def attention(a: Tensor, b: Tensor) -> Tensor:
    """How far two maps look at different places: 1/P Σ_p (A(a)_p - A(b)_p)², P places.

    A is the attention map of Zagoruyko & Komodakis 2017: the squares' mean over channels, scaled to unit length.

    Args:
        a: `[B, C, H, W]`.
        b: `[B, C', H, W]`; channels may differ.

    Returns: `[B]`.
    Raises: ValueError if samples or places differ.
    """
    if a.shape[0] != b.shape[0] or a.shape[2:] != b.shape[2:]:
        raise ValueError(f"attention: found shapes {list(a.shape)} and {list(b.shape)}; only channels may differ")
    looks = [F.normalize(full(x).square().mean(1).flatten(1), dim=1) for x in (a, b)]  # [B, P]
    return (looks[0] - looks[1]).square().mean(1)


def mmd(a: Tensor, b: Tensor, *, unbiased: bool = False) -> Tensor:
    """Squared maximum mean discrepancy with a linear kernel: ‖mean_i a_i - mean_i b_i‖².

    A statistic of two batches, **one number**, not one per sample (DDGSD, Xu & Liu 2019, eq. of MMD_emp): the squared
    L2 distance of the batch means, summed over features.

    Even where the two distributions are one, its expectation is the variance of a_i - b_i divided by B, which at small
    batches is most of it.

    Args:
        a, b: `[B, D]` features, in pairs.
        unbiased: without that share (Gretton et al. 2012, lemma 6): may be below 0, and needs two samples.

    Returns: a scalar.
    Raises: ValueError if the shapes differ or are not `[B, D]`.
    """
    if a.shape != b.shape or a.dim() != 2:
        raise ValueError(f"mmd: found shapes {list(a.shape)} and {list(b.shape)}; both must be one [B, D]")
    distance = (full(a).mean(0) - full(b).mean(0)).square().sum()
    return distance - (full(a) - full(b)).var(0).sum() / len(a) if unbiased else distance


def _same_tail(name: str, target: Tensor, logits: Tensor) -> None:
    if target.shape[-2:] != logits.shape[-2:]:
        need = f"the last two axes must be those of logits, {list(logits.shape)}"
        raise ValueError(f"{name}: found shape {list(target.shape)}; {need}")

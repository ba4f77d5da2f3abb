"""DML's two terms at T = 1 from one softmax, with the gradient written out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from teacherless import losses

LARGE = 2**20  # numbers in one student's logits from which memory decides: see `mutual`
CACHE = 2**17  # numbers that stay in a core's cache from one operation to the next


def mutual(
    logits: Tensor, labels: Tensor, exchange: Callable[[Tensor], Tensor], smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and mimicry of the others' mean at T = 1, from one softmax, with its gradient written out.

    The same numbers as `nll` and the closed form on DML's card. Where one student has more than `LARGE` logits,
    rows go through in slices and only the others' mean is kept: probabilities are made again for the gradient, and all
    of it takes 2.5 times the logits in memory beside them, gradient included.

    Args:
        logits: `[k, B, C]`.
        labels: `[B]` class ids.
        exchange: `[k, B, C+1]`, probabilities and their Σ p log p, to the mean over the others.
        smoothing: of the labels.

    Returns: ce and mimicry, each `[k, B]`, in nats.
    """
    k, size, classes = logits.shape
    z = logits.detach().flatten(0, 1)  # [N, C], N = k·B
    if size * classes <= LARGE:
        p, log_p = F.softmax(losses.full(z), -1), losses.log_probs(z)  # faster than an exponential
        messages = torch.cat([p, (p * log_p).sum(-1, keepdim=True)], -1)
        kept: tuple[Tensor | None, Tensor | None] = p, log_p
    else:
        kept = None, None
        messages = z.new_empty(len(z), classes + 1, dtype=torch.promote_types(z.dtype, torch.float32))
        for rows in _slices(z):
            part = F.softmax(losses.full(z[rows]), -1)
            messages[rows, :-1] = part
            messages[rows, -1] = part.mul_(losses.log_probs(z[rows])).sum(-1)
    others = exchange(messages.view(k, size, classes + 1)).flatten(0, 1)
    del messages
    both = _Mutual.apply(logits.flatten(0, 1), labels.expand(k, -1).flatten(), others, smoothing, *kept)  # type: ignore[no-untyped-call]
    return both[0].view(k, size), both[1].view(k, size)


class _Mutual(torch.autograd.Function):
    """d ce / dz = p - y and d mimicry / dz = p Σq - q, with q the others' mean; Σq is 1, or 0 where a
    peer listens to nobody.

    Logits `[N, C]`, labels `[N]`, others `[N, C+1]`; p and log p `[N, C]`, or None to make them a slice at a time.
    """

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        z, y, others, ctx.smoothing, p, _ = inputs
        ctx.save_for_backward(z, y, others, p)

    @staticmethod
    def forward(
        z: Tensor, y: Tensor, others: Tensor, smoothing: float, p: Tensor | None, log_p: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ce, mimicry = [], []
        for rows in _slices(z) if log_p is None else [slice(None)]:
            here = losses.log_probs(z[rows]) if log_p is None else log_p
            ce.append(losses.nll(here, y[rows], smoothing))
            mimicry.append(others[rows, -1] - here.mul_(others[rows, :-1]).sum(-1))
        return torch.cat(ce), torch.cat(mimicry)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, y, others, p = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient's own gradient is wanted, which what was kept does not have
            p = F.softmax(losses.full(z), -1)
        by_ce, by_mimicry = (g.unsqueeze(-1) for g in grads)  # [N, 1]
        grad = torch.empty_like(z, dtype=others.dtype) if p is None else z
        for rows in _slices(z) if p is None else [slice(None)]:
            here, q = F.softmax(losses.full(z[rows]), -1) if p is None else p, others[rows, :-1]
            g = here * (by_ce[rows] + by_mimicry[rows] * q.sum(-1, keepdim=True))
            g.addcmul_(q, by_mimicry[rows], value=-1)
            if ctx.smoothing:
                g.sub_(by_ce[rows] * (ctx.smoothing / g.shape[-1]))
            g.scatter_add_(-1, y[rows, None], by_ce[rows] * (ctx.smoothing - 1))
            if p is None:
                grad[rows] = g
            else:
                grad = g
        return grad.to(z.dtype), None, None, None, None, None


def _slices(z: Tensor) -> Iterator[slice]:
    """The rows of `z`, a cacheful at a time."""
    step = max(1, CACHE // z.shape[-1])
    return (slice(i, i + step) for i in range(0, len(z), step))

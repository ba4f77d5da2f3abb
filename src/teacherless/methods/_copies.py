"""Peers that only predict, and copies of their weights: what a cohort learns from that meets every N steps only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from teacherless.batch import Input
from teacherless.network import arguments, read_logits


@torch.no_grad()
def idle(peer: nn.Module, x: Input, weights: Tensor | None = None) -> Tensor:
    """The logits `[B, C]` of a peer that only predicts, with other weights if they are given: its batch-norm buffers do
    not move, no gradient is made."""
    state = {name: buffer.clone() for name, buffer in peer.named_buffers()}
    if weights is not None:  # [P], or longer
        names, own = zip(*peer.named_parameters(), strict=True)
        sizes = [p.numel() for p in own]
        parts = torch.split(weights[: sum(sizes)], sizes)
        state |= {name: part.view(p.shape) for name, p, part in zip(names, own, parts, strict=True)}
    return read_logits(functional_call(peer, state, *arguments(x)), type(peer).__name__)


def flat(peers: Iterable[nn.Module], most: int) -> Tensor:
    """Every peer's parameters, one after the other, and 0 up to `most`. `[k, P]`."""
    rows = [torch.cat([p.detach().flatten() for p in peer.parameters()]) for peer in peers]
    return torch.stack([F.pad(row, (0, most - len(row))) for row in rows])


def who_hears(listening: Tensor, views: int, ours: Sequence[int] | slice) -> tuple[list[int], list[int]]:
    """Which of all predictions are those of `ours`, and which peers one of them listens to. `listening [K·V, K·V]`."""
    mine = torch.arange(len(listening)).view(-1, views)[ours].flatten()
    heard = listening[mine].any(0).view(-1, views).any(1)
    return mine.tolist(), heard.nonzero().flatten().tolist()

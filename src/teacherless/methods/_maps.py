"""Feature maps of different sizes, made comparable."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def resize(x: Tensor, height: int, width: int) -> Tensor:
    """Average down, repeat up. `[B, C, H, W] -> [B, C, height, width]`."""
    h, w = x.shape[-2:]
    if (h, w) == (height, width):
        return x
    if h % height == 0 and w % width == 0:  # as below, but its gradient is deterministic on a GPU
        return F.avg_pool2d(x, (h // height, w // width))
    return (
        F.interpolate(x, (height, width)) if h <= height and w <= width else F.adaptive_avg_pool2d(x, (height, width))
    )

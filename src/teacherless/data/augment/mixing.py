"""What is done to normalised images: parts erased (0 is the training set's mean colour), two images mixed.

Every draw is the counter hash of (seed, epoch, row, view, draw), as for crops.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from teacherless.data.augment.distort import Augment, counter_hash

ERASE_DRAW, CUTOUT_DRAW, MIX_DRAW = 40, 50, 60  # the first draw of each
STEPS = 4096  # values that a share of Beta(α, α) can take


def erased(x: Tensor, rows: Tensor, augment: Augment, *, seed: int, epoch: int, view: int) -> Tensor:
    """Random erasing and cutout, as `augment` says. `[B, C, H, W] -> [B, C, H, W]`.

    Erasing (Zhong et al. 2020, arXiv:1708.04896): with its probability, a rectangle of 2 to 40 % of the area, 0.3 to
    1/0.3 as tall as wide, inside the image. Cutout (DeVries & Taylor 2017, arXiv:1708.04552): a square whose centre is
    anywhere, so part of it may be outside. Both are filled with the mean colour, where Zhong et al. also try noise.
    """
    height, width = x.shape[2:]

    def draw(number: int) -> Tensor:
        return uniform(seed, epoch, rows, view, number).to(x.device)

    if augment.erase:
        chance, area, shape, top, left = (draw(ERASE_DRAW + i) for i in range(5))
        pixels = (0.02 + 0.38 * area) * height * width
        ratio = torch.exp((2 * shape - 1) * math.log(1 / 0.3))
        tall, wide = (pixels * ratio).sqrt().clamp(max=height), (pixels / ratio).sqrt().clamp(max=width)
        tall = torch.where(chance < augment.erase, tall, 0.0)
        x = x.masked_fill(_box(x, top * (height - tall), left * (width - wide), tall, wide), 0.0)
    if augment.cutout:
        top, left = draw(CUTOUT_DRAW), draw(CUTOUT_DRAW + 1)
        half, side = augment.cutout / 2, torch.full_like(top, augment.cutout)
        x = x.masked_fill(_box(x, top * height - half, left * width - half, side, side), 0.0)
    return x


class Mixer:
    """mixup (Zhang et al. 2018, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899).

    Each image is mixed with the next one of its batch, whose order is random; its own share is drawn from Beta(α, α).
    All views of a sample have the same partner and the same share, so that they have the same label.
    """

    def __init__(self, augment: Augment, classes: int, seed: int, device: torch.device) -> None:
        from scipy.special import betaincinv

        self.cut, self.classes, self.seed = bool(augment.cutmix), classes, seed
        alpha = augment.cutmix or augment.mixup
        at = (torch.arange(STEPS, dtype=torch.float64) + 0.5) / STEPS
        self.shares = torch.from_numpy(betaincinv(alpha, alpha, at.numpy())).float().to(device)  # Beta's quantiles

    def __call__(
        self, inputs: tuple[Tensor, ...], labels: Tensor, rows: Tensor, epoch: int
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Views `[B, C, H, W]` and labels `[B]` to mixed views and probabilities `[B, C]`."""
        own = self.shares[counter_hash(self.seed, epoch, rows, 0, MIX_DRAW) % STEPS]  # [B]
        box = None
        if self.cut:
            height, width = inputs[0].shape[2:]
            side = (1 - own).sqrt()
            top, left = (uniform(self.seed, epoch, rows, 0, MIX_DRAW + i) for i in (1, 2))
            tall, wide = height * side, width * side
            box = _box(inputs[0], top * height - tall / 2, left * width - wide / 2, tall, wide)  # [B, 1, H, W]
            own = 1 - box.float().mean((1, 2, 3))  # what is really left: the box may reach over the border
        share = own[:, None, None, None]
        pairs = [(x, x.roll(-1, 0)) for x in inputs]
        mixed = tuple(torch.lerp(y, x, share) if box is None else torch.where(box, y, x) for x, y in pairs)
        each = F.one_hot(labels, self.classes).float()
        return mixed, torch.lerp(each.roll(-1, 0), each, own[:, None])


def uniform(*keys: int | Tensor) -> Tensor:
    """The counter hash as float32 in [0, 1)."""
    return (counter_hash(*keys) >> 8).float() / 2**24


def _box(x: Tensor, top: Tensor, left: Tensor, tall: Tensor, wide: Tensor) -> Tensor:
    """Where a rectangle is: bool `[B, 1, H, W]`."""
    y, z = (torch.arange(side, device=x.device) for side in x.shape[2:])
    first, start = top.round()[:, None], left.round()[:, None]
    inside = (y >= first) & (y < first + tall.round()[:, None])  # [B, H]
    across = (z >= start) & (z < start + wide.round()[:, None])  # [B, W]
    return (inside[:, :, None] & across[:, None, :])[:, None]

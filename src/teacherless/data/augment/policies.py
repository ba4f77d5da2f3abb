"""RandAugment and TrivialAugment on a batch, each image with its own operations, drawn by the counter hash.

RandAugment (Cubuk et al. 2020, arXiv:1909.13719): N operations one after the other, all of magnitude M of 30.
TrivialAugment (Müller & Hutter 2021, arXiv:2103.10158, the wide space): one operation of random magnitude.
Both draw each image's operations evenly from the same fourteen. What the operations do to pixels is kornia's; which
image gets which is ours: kornia's policies draw one sequence for a whole batch, from torch's global generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from teacherless.data.augment.distort import Augment, counter_hash
from teacherless.errors import extra

LEVELS = 30  # of magnitude
DRAW = 20  # the first draw of policies; each layer takes three
RANGES: dict[str, dict[str, Any]] = {  # `pixels` of translation: None is 0.45 of the side; `bits` are how many fewer
    "randaug": {"shear": 0.3, "degrees": 30, "pixels": None, "enhance": 0.9, "bits": 4},
    "trivialaug": {"shear": 0.99, "degrees": 135, "pixels": 32, "enhance": 0.99, "bits": 6},
}


def distorted(images: Tensor, rows: Tensor, augment: Augment, *, seed: int, epoch: int, view: int) -> Tensor:
    """The policy's operations on some images. uint8 `[B, H, W, C] -> [B, H, W, C]`, on any device.

    Args:
        images: after crop and flip.
        rows: `[B]`, rows in the training set: the keys of the draws.
        augment: policy, layers and magnitude.
        seed, epoch, view: the other keys.

    Raises: InputError if kornia is missing.
    """
    operations = _operations(**RANGES[augment.policy])
    layers = 1 if augment.policy == "trivialaug" else augment.layers
    x = images.permute(0, 3, 1, 2).float() / 255
    for layer in range(layers):
        first = DRAW + 3 * layer
        draws = (counter_hash(seed, epoch, rows, view, draw) for draw in range(first, first + 3))
        which, level, sign = (draw.to(x.device) for draw in draws)
        share = (level % (LEVELS + 1)).float() / LEVELS  # [B]
        if augment.policy == "randaug":
            share = torch.full_like(share, augment.magnitude / LEVELS)
        share = torch.where(sign % 2 == 0, share, -share)
        chosen = which % len(operations)
        for number, operation in enumerate(operations):
            mine = (chosen == number).nonzero().flatten()
            if len(mine):
                x = x.index_copy(0, mine, operation(x[mine], share[mine]).clamp(0, 1))
    return (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


Operation = Callable[[Tensor, Tensor], Tensor]  # images [B, C, H, W] in [0, 1], signed shares of the range [B]


def _operations(*, shear: float, degrees: float, pixels: float | None, enhance: float, bits: int) -> list[Operation]:
    """The fourteen operations, of which the first leaves an image as it is."""
    look = extra("kornia", "--aug randaug, trivialaug", name="aug")

    def moved(x: Tensor, share: Tensor) -> Tensor:
        return share * (0.45 * x.shape[3] if pixels is None else pixels)

    return [
        lambda x, share: x,
        lambda x, share: _stretched(x),
        lambda x, share: look.enhance.equalize(x.contiguous()),
        lambda x, share: _warp(look, x, {"angle": math.radians(degrees) * share}),
        lambda x, share: torch.where(x < 1 - share.abs()[:, None, None, None], x, 1 - x),  # solarize
        lambda x, share: look.enhance.posterize(x.contiguous(), (8 - bits * share.abs()).round().int()),
        lambda x, share: _blend(x, _gray(x), enhance * share),  # colour
        lambda x, share: _blend(x, _gray(x).mean((1, 2, 3), keepdim=True), enhance * share),  # contrast
        lambda x, share: _blend(x, torch.zeros_like(x), enhance * share),  # brightness
        lambda x, share: look.enhance.sharpness(x.contiguous(), 1 + enhance * share),
        lambda x, share: _warp(look, x, {"shear_x": shear * share}),
        lambda x, share: _warp(look, x, {"shear_y": shear * share}),
        lambda x, share: _warp(look, x, {"x": moved(x, share)}),
        lambda x, share: _warp(look, x, {"y": moved(x, share)}),
    ]


def _warp(look: Any, x: Tensor, by: dict[str, Tensor]) -> Tensor:
    """Rotate, shear or shift about the centre; what comes in from outside is black."""
    n, _, height, width = x.shape
    zero = torch.zeros(n, device=x.device)
    angle = by.get("angle", zero)
    across, down = by.get("shear_x", zero), by.get("shear_y", zero)
    turn = torch.stack([angle.cos(), angle.sin() + across, -angle.sin() + down, angle.cos()], 1).view(n, 2, 2)
    centre = torch.tensor([(width - 1) / 2, (height - 1) / 2], device=x.device)
    shift = torch.stack([by.get("x", zero), by.get("y", zero)], 1)
    matrix = torch.cat([turn, (centre - turn @ centre + shift)[:, :, None]], 2)  # [B, 2, 3]
    moved: Tensor = look.geometry.transform.warp_affine(x, matrix, (height, width), mode="nearest")
    return moved


def _gray(x: Tensor) -> Tensor:
    """`[B, C, H, W] -> [B, 1, H, W]` (ITU-R 601, as Pillow)."""
    if x.shape[1] == 1:
        return x
    weights = torch.tensor([0.299, 0.587, 0.114], device=x.device)
    return (x * weights[:, None, None]).sum(1, keepdim=True)


def _blend(x: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Away from `other` (share above 0) or towards it."""
    return other + (1 + share)[:, None, None, None] * (x - other)


def _stretched(x: Tensor) -> Tensor:
    """Autocontrast: each channel from 0 to 1, a flat one as it is."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).clamp(min=1e-6), x)

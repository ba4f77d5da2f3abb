"""Distortions act on the batch, on the device, per sample, and are a function of counters.

Every draw is `counter_hash(seed, epoch, row, view, draw)`: the same on any device, for any batch size and any number of
workers, and nothing has to be stored to resume.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from teacherless.errors import InputError, short, unknown

MASK = 0xFFFFFFFF
ROTATE_DRAW = 10
GOLDEN = 0x9E3779B9  # 2³² / golden ratio: keys 0, 1, 2, … land far from each other, and 0 does not stay 0


class Augment(NamedTuple):
    """What training images go through."""

    pad: int = 0  # pixels on every side, then a random crop of the original size
    mode: str = "zero"  # of the padding: black; or "reflect"
    flip: bool = False  # horizontally, every other time
    crop: bool = False  # files only: a random part of the photo, resized ("rrc")
    rotate: float = 0.0  # degrees, by up to so much to either side
    policy: str = ""  # "randaug" or "trivialaug", see `teacherless.data.augment.policies`
    layers: int = 2  # of randaug: operations one after the other
    magnitude: int = 9  # of randaug, 0 to 30
    erase: float = 0.0  # probability that a rectangle is erased
    cutout: int = 0  # pixels: side of the square that is cut out
    mixup: float = 0.0  # α of Beta(α, α), from which shares are drawn
    cutmix: float = 0.0

    @property
    def mixes(self) -> bool:
        """Whether an image may be of two classes."""
        return bool(self.mixup or self.cutmix)


GRAMMAR: dict[str, str] = {  # what `--aug` reads, joined by "+"; names as in timm where it has them
    "none": r"none",
    "default": r"default",
    "pad4-reflect-flip": r"pad(?P<pad>\d+)(-(?P<mode>zero|reflect))?(?P<flip>-flip)?",
    "flip": r"(?P<flip>flip)",
    "rrc-flip": r"(?P<crop>rrc)(?P<flip>-flip)?",
    "rotate=15": r"rotate(=(?P<rotate>[\d.]+))?",
    "randaug-n2-m9": r"(?P<policy>randaug)(-n(?P<layers>\d+))?(-m(?P<magnitude>\d+))?",
    "trivialaug": r"(?P<policy>trivialaug)",
    "erase=0.5": r"erase(=(?P<erase>[\d.]+))?",
    "cutout=16": r"cutout(=(?P<cutout>\d+))?",
    "mixup=0.2": r"mixup(=(?P<mixup>[\d.]+))?",
    "cutmix=1.0": r"cutmix(=(?P<cutmix>[\d.]+))?",
}
PAPERS: dict[str, dict[str, Any]] = {  # what a bare name means: the papers' values
    "rotate=15": {"rotate": 15.0},  # Yuan et al. 2020 (TF-KD), CIFAR-100
    "erase=0.5": {"erase": 0.5},  # Zhong et al. 2020
    "cutout=16": {"cutout": 16},  # DeVries & Taylor 2017, CIFAR-10
    "mixup=0.2": {"mixup": 0.2},  # Zhang et al. 2018, ImageNet
    "cutmix=1.0": {"cutmix": 1.0},  # Yun et al. 2019
}
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("pad", "cutout"), (1, 1024)),
    **dict.fromkeys(("mixup", "cutmix"), (1e-3, 100)),
    **{"rotate": (0.1, 180), "layers": (1, 10), "magnitude": (0, 30), "erase": (0, 1)},
}


def parse_augment(text: str, default: Augment = Augment()) -> Augment:
    """`--aug`: parts joined by "+", as in "pad4-reflect-flip+cutout=8"; "default+cutout" adds to what the source does.

    The order of the parts does not matter: crop and flip come first, then rotation, the policy, erase and cutout, last
    the mixing of two images.

    Raises: InputError for a part that is unknown, out of range, or given twice, and for what excludes each other.
    """
    chosen: dict[str, Any] = {}
    for part in text.split("+"):
        values = _parsed(part)
        if part == "default":
            values = {key: value for key, value in default._asdict().items() if value != Augment._field_defaults[key]}
        if part == "none" and text != "none":
            raise InputError(f"--aug: found {short(text)}; none stands alone")
        if twice := (values.keys() & chosen.keys()) - {"flip"}:
            raise InputError(f"--aug: found {short(text)}; it says {min(twice)} twice")
        chosen |= values
    if chosen.get("crop") and chosen.get("pad"):
        raise InputError(f"--aug: found {short(text)}; must be either rrc or a padded crop")
    if chosen.get("mixup") and chosen.get("cutmix"):
        raise InputError(f"--aug: found {short(text)}; must be either mixup or cutmix")
    return Augment(**chosen)


def _parsed(part: str) -> dict[str, Any]:
    """One part, as values of `Augment`. Raises: InputError for one that is unknown."""
    for name, form in GRAMMAR.items():
        if match := re.fullmatch(form, part):
            return PAPERS.get(name, {}) | _values(part, match.groupdict())
    head, *_ = re.split(r"[=\d-]", part)
    for name in GRAMMAR:
        if head and re.split(r"[=\d-]", name)[0] == head:
            raise InputError(f"--aug: found {short(part)}; must be like {name!r}")
    raise unknown("--aug", part, GRAMMAR)


def _values(part: str, groups: dict[str, str | None]) -> dict[str, Any]:
    """The groups of a match, as values of `Augment`. Raises: InputError for a number out of range."""
    values: dict[str, Any] = {}
    for key, text in groups.items():
        if text is None:
            continue
        if key in RANGES:
            low, high = RANGES[key]
            kind = type(Augment._field_defaults[key])
            try:
                values[key] = kind(text)
            except ValueError:
                raise InputError(f"--aug: found {short(part)}; {short(text)} is not a number") from None
            if not low <= values[key] <= high:
                raise InputError(f"--aug: found {short(part)}; {key} must be from {low:g} to {high:g}")
        else:
            values[key] = text if key in ("mode", "policy") else True
    return values


def counter_hash(*keys: int | Tensor) -> Tensor:
    """A 32-bit hash of integer counters (each modulo 2³²), as int64 in [0, 2³²); tensors broadcast.

    The same bits on every device. With all other keys fixed it is a bijection of the last one: rows never tie.
    """
    h: int | Tensor = GOLDEN
    for key in keys:
        mixed = _mix((key.long() + GOLDEN) & MASK) if isinstance(key, Tensor) else _mix((key + GOLDEN) & MASK)
        h = _mix(h ^ mixed)  # plain integers stay plain: no small tensors, no copies to the device
    return torch.as_tensor(h)


def _mix(h: Any) -> Any:
    """A bijection of 32-bit integers, plain or in a tensor, in which every output bit depends on every input bit."""
    # both factors are below 2³¹, so no product leaves int64
    h = ((h ^ (h >> 16)) * 0x21F0AAAD) & MASK
    h = ((h ^ (h >> 15)) * 0x735A2D97) & MASK
    return h ^ (h >> 15)


def padded(images: Tensor, augment: Augment) -> Tensor:
    """The images with their border. uint8 `[N, H, W, C] -> [N, H+2p, W+2p, C]`."""
    p = augment.pad
    if p == 0:
        return images
    if augment.mode == "zero":
        return torch.nn.functional.pad(images, (0, 0, p, p, p, p))
    rows, columns = (_reflect(images.shape[axis], p, images.device) for axis in (1, 2))
    return images[:, rows][:, :, columns].contiguous()


def _reflect(size: int, pad: int, device: torch.device) -> Tensor:
    """Indices of an axis with its border mirrored, the edge itself not repeated. `[size + 2 pad]`."""
    at = torch.arange(-pad, size + pad, device=device).abs()
    return torch.where(at >= size, 2 * (size - 1) - at, at)


def distort(
    images: Tensor, take: Tensor, rows: Tensor, augment: Augment, *, seed: int, epoch: int, view: int
) -> Tensor:
    """Random crops and flips of some images: one gather, with crop and flip inside the index; then rotations.

    Args:
        images: uint8 `[N, H+2p, W+2p, C]`, padded.
        take: `[B]`, which of `images`.
        rows: `[B]`, rows in the training set: the keys of the draws.
        augment: what to draw.
        seed, epoch, view: the other keys.

    Returns: uint8 `[B, H, W, C]`.
    """
    n, tall, wide, channels = images.shape
    height, width, choices = tall - 2 * augment.pad, wide - 2 * augment.pad, 2 * augment.pad + 1
    dy, dx, flip = (counter_hash(seed, epoch, rows, view, draw) for draw in range(3))  # [B] each
    y = torch.arange(height, device=images.device) + (dy % choices)[:, None]  # [B, H]
    x = torch.arange(width, device=images.device).expand(len(rows), -1)
    if augment.flip:
        x = torch.where((flip & 1).bool()[:, None], width - 1 - x, x)
    x = x + (dx % choices)[:, None]  # [B, W]
    index = ((take[:, None] * tall + y) * wide)[:, :, None] + x[:, None, :]  # [B, H, W]
    pixels = images.reshape(n * tall * wide, channels).index_select(0, index.flatten())
    images = pixels.view(len(rows), height, width, channels)
    return _rotated(images, counter_hash(seed, epoch, rows, view, ROTATE_DRAW), augment) if augment.rotate else images


def _rotated(images: Tensor, draw: Tensor, augment: Augment) -> Tensor:
    """Images turned about their centre, nearest pixel; what comes in from outside is black. uint8 `[B, H, W, C]`."""
    batch, height, width, channels = images.shape
    angle = ((draw.double() / 2**31 - 1) * math.radians(augment.rotate))[:, None, None]  # [B, 1, 1]
    y = torch.arange(height, device=images.device)[:, None] + 0.5 - height / 2
    x = torch.arange(width, device=images.device) + 0.5 - width / 2
    from_y = (angle.cos() * y + angle.sin() * x + height / 2).floor().long()  # [B, H, W]
    from_x = (angle.cos() * x - angle.sin() * y + width / 2).floor().long()
    inside = (from_y >= 0) & (from_y < height) & (from_x >= 0) & (from_x < width)
    index = (from_y.clamp(0, height - 1) * width + from_x.clamp(0, width - 1)).view(batch, -1, 1)
    turned = images.flatten(1, 2).gather(1, index.expand(-1, -1, channels)).view_as(images)
    return turned * inside[..., None]


def normalise(images: Tensor, mean: Tensor | Sequence[float], std: Tensor | Sequence[float]) -> Tensor:
    """`(x/255 - mean) / std`: uint8 `[B, H, W, C]` to float32 `[B, C, H, W]` in channels-last memory, same device.

    `mean` and `std` are per channel, for pixels in [0, 1].
    """
    levels = (torch.as_tensor(value, dtype=torch.float32, device=images.device) for value in (mean, std))
    middle, spread = (255 * level for level in levels)  # [C]
    return images.float().sub_(middle).div_(spread).permute(0, 3, 1, 2)

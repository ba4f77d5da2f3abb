"""What the papers' networks share. Convolutions before a batch norm have no bias: the norm would remove it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

from torch import nn

from teacherless.errors import InputError

Stem = Literal["cifar", "imagenet"]
Block = Callable[[int, int, int], nn.Module]  # inputs, outputs, stride


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution, padded to keep the size at stride 1, and batch norm."""
    return [conv(inputs, outputs, kernel, stride, groups), nn.BatchNorm2d(outputs)]


def conv_bn_relu(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution, batch norm, ReLU."""
    return [*conv_bn(inputs, outputs, kernel, stride, groups), nn.ReLU(inplace=True)]


def bn_relu(channels: int) -> list[nn.Module]:
    """Batch norm, ReLU: what pre-activation networks put before a convolution."""
    return [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded to keep the size at stride 1."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def halve() -> nn.Module:
    """Max pooling 3x3 with stride 2, padded: side n becomes ceil(n / 2)."""
    return nn.MaxPool2d(3, stride=2, padding=1)


def dropout(rate: float) -> nn.Module:
    """Dropout; a layer in either case, so that a network's keys do not depend on the rate.

    Raises: InputError for a rate outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise InputError(f"dropout: found {rate}; must be at least 0 and less than 1")
    return nn.Dropout(rate) if rate else nn.Identity()


def stack(
    block: Block, stem: Iterable[nn.Module], inputs: int, channels: list[int], repeats: list[int]
) -> list[nn.Sequential]:
    """Stages of equal blocks. The stem is in the first one; every other one begins with a block of stride 2."""
    stages: list[nn.Sequential] = []
    for outputs, count in zip(channels, repeats, strict=True):
        layers = [] if stages else list(stem)
        for i in range(count):
            layers.append(block(inputs, outputs, 2 if stages and i == 0 else 1))
            inputs = outputs
        stages.append(nn.Sequential(*layers))
    return stages

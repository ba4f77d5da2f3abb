"""Residual networks in their CIFAR and ImageNet forms, with squeeze and excitation, and ResNeXt.

He et al. 2016 (arXiv:1512.03385), Hu et al. 2018 (arXiv:1709.01507), Xie et al. 2017 (arXiv:1611.05431).

A block is `relu(body(x) + shortcut(x))`. Where the shape changes, shortcut "B" is a 1x1 convolution with batch norm and
"A" subsamples and appends zero channels, without parameters (He et al., section 3.3). He's CIFAR networks use "A"; DML
does not say, and the code of ONE uses "B".
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from teacherless.models.layers import Block, Stem, conv_bn, conv_bn_relu, halve, stack
from teacherless.models.staged import Staged

Shortcut = Literal["A", "B"]


class Residual(nn.Module):
    """relu(body(x) + shortcut(x))."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W] -> [B, C', H/stride, W/stride]`."""
        return F.relu(self.body(x) + self.shortcut(x), inplace=True)


class ZeroPad(nn.Module):
    """Shortcut "A": every `stride`-th pixel, and zeros for the new channels."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels = new_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W] -> [B, C + new_channels, H/stride, W/stride]`."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class SqueezeExcite(nn.Module):
    """Channels scaled by a gate that reads their means (Hu et al. 2018, section 3), with reduction 16."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 16)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),  # on 1x1 maps: the paper's fully connected layers
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W] -> [B, C, H, W]`."""
        scaled: Tensor = x * self.gate(x)
        return scaled


def basic(inputs: int, outputs: int, stride: int, *, shortcut: Shortcut = "B", squeeze: bool = False) -> Residual:
    """Two 3x3 convolutions (He et al. 2016, figure 5 left)."""
    body = [*conv_bn_relu(inputs, outputs, 3, stride), *conv_bn(outputs, outputs, 3)]
    if squeeze:
        body.append(SqueezeExcite(outputs))
    return Residual(nn.Sequential(*body), _shortcut(inputs, outputs, stride, shortcut))


def bottleneck(
    inputs: int, outputs: int, stride: int, *, shortcut: Shortcut = "B", groups: int = 1, base_width: int = 64
) -> Residual:
    """1x1, 3x3 and 1x1 convolutions; the 3x3 one has the stride, `groups`, and `base_width` channels per group in a
    block that outputs 256 (Xie et al. 2017, table 1); one group of 64 is He's block."""
    width = groups * base_width * outputs // 256
    body = [
        *conv_bn_relu(inputs, width, 1),
        *conv_bn_relu(width, width, 3, stride, groups),
        *conv_bn(width, outputs, 1),
    ]
    return Residual(nn.Sequential(*body), _shortcut(inputs, outputs, stride, shortcut))


def resnet_cifar(
    *, num_classes: int, in_channels: int, depth: int, shortcut: Shortcut = "B", width: int = 16
) -> Staged:
    """Depth 6n + 2: three stages of n basic blocks, width·(1, 2, 4) channels (He et al. 2016, section 4.2).

    `[B, in_channels, H, W] -> [B, num_classes]`; total stride 4.
    """
    return _cifar(partial(basic, shortcut=shortcut), [width, 2 * width, 4 * width], depth, in_channels, num_classes)


def se_resnet_cifar(*, num_classes: int, in_channels: int, depth: int, shortcut: Shortcut = "B") -> Staged:
    """`resnet_cifar` with squeeze and excitation in every block (Hu et al. 2018, section 6.2). Total stride 4."""
    return _cifar(partial(basic, shortcut=shortcut, squeeze=True), [16, 32, 64], depth, in_channels, num_classes)


def resnet_cifar_bottleneck(
    *, num_classes: int, in_channels: int, depth: int, shortcut: Shortcut = "B", base_width: int = 64
) -> Staged:
    """What the script of ONE trains as ResNet-110: (depth - 2) / 6 = 18 *bottleneck* blocks per stage, so 164 layers.

    Stages of 64, 128 and 256 channels; the authors' released code, models/cifar/resnet.py. Total stride 4. With depth
    14 and `base_width` 512 it is what the code of DLB calls wide_resnet20_8.
    """
    block = partial(bottleneck, shortcut=shortcut, base_width=base_width)
    return _cifar(block, [64, 128, 256], depth, in_channels, num_classes)


def resnext29(*, num_classes: int, in_channels: int, base_width: int = 64) -> Staged:
    """ResNeXt-29, 8x64d: three stages of three blocks, 256, 512 and 1024 channels (Xie et al. 2017, section 5.3).

    `base_width`: channels per group of the first stage's 3x3 convolutions.
    `[B, in_channels, H, W] -> [B, num_classes]`; total stride 4.
    """
    channels = [256, 512, 1024]
    stem = conv_bn_relu(in_channels, 64, 3)
    stages = stack(partial(bottleneck, groups=8, base_width=base_width), stem, 64, channels, [3, 3, 3])
    return Staged(stages, channels, nn.Linear(channels[-1], num_classes))


def resnet(*, num_classes: int, in_channels: int, depth: int, stem: Stem = "cifar") -> Staged:
    """ResNet-18, -34 and -50 (He et al. 2016, table 1), with the stride of a bottleneck on its 3x3 convolution.

    `[B, in_channels, H, W] -> [B, num_classes]`. Stem "imagenet": a 7x7 convolution and pooling, total stride 32;
    "cifar": one 3x3 convolution, total stride 8.
    """
    block, width, repeats = _IMAGENET[depth]
    return _imagenet(block, width, repeats, stem, in_channels, num_classes)


def resnext50(*, num_classes: int, in_channels: int, base_width: int = 4, stem: Stem = "cifar") -> Staged:
    """ResNeXt-50, 32x4d: `resnet` of depth 50 with 32 groups (Xie et al. 2017, table 1). Strides as there."""
    block = partial(bottleneck, groups=32, base_width=base_width)
    return _imagenet(block, 256, [3, 4, 6, 3], stem, in_channels, num_classes)


def se_resnet(*, num_classes: int, in_channels: int, depth: int, stem: Stem = "cifar") -> Staged:
    """`resnet` of basic blocks with squeeze and excitation (Hu et al. 2018, section 4). Strides as there."""
    _, width, repeats = _IMAGENET[depth]
    return _imagenet(partial(basic, squeeze=True), width, repeats, stem, in_channels, num_classes)


_IMAGENET: dict[int, tuple[Block, int, list[int]]] = {  # depth -> block, channels of the first stage, blocks per stage
    18: (basic, 64, [2, 2, 2, 2]),
    34: (basic, 64, [3, 4, 6, 3]),
    50: (bottleneck, 256, [3, 4, 6, 3]),
}


def _cifar(block: Block, channels: list[int], depth: int, in_channels: int, num_classes: int) -> Staged:
    assert depth % 6 == 2
    stages = stack(block, conv_bn_relu(in_channels, 16, 3), 16, channels, [(depth - 2) // 6] * 3)
    return Staged(stages, channels, nn.Linear(channels[-1], num_classes))


def _imagenet(block: Block, width: int, repeats: list[int], stem: Stem, in_channels: int, num_classes: int) -> Staged:
    small = conv_bn_relu(in_channels, 64, 3)
    large = [*conv_bn_relu(in_channels, 64, 7, stride=2), halve()]
    channels = [width, 2 * width, 4 * width, 8 * width]
    stages = stack(block, small if stem == "cifar" else large, 64, channels, repeats)
    return Staged(stages, channels, nn.Linear(channels[-1], num_classes))


def _shortcut(inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if shortcut == "A":
        return ZeroPad(outputs - inputs, stride)
    return nn.Sequential(*conv_bn(inputs, outputs, 1, stride))

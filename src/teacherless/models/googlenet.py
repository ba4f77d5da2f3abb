"""GoogLeNet, InceptionV1 with batch norm: Szegedy et al. 2015 (arXiv:1409.4842)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from teacherless.models.layers import Stem, conv_bn_relu, halve
from teacherless.models.staged import Staged


class Inception(nn.Module):
    """Four branches over one input, concatenated: 1x1; 1x1 and 3x3; 1x1 and 3x3; pooling and 1x1 (figure 2b)."""

    def __init__(self, inputs: int, one: int, three: tuple[int, int], five: tuple[int, int], pool: int) -> None:
        super().__init__()
        branches = (
            conv_bn_relu(inputs, one, 1),
            [*conv_bn_relu(inputs, three[0], 1), *conv_bn_relu(*three, 3)],
            [*conv_bn_relu(inputs, five[0], 1), *conv_bn_relu(*five, 3)],  # the paper has 5x5, see below
            [nn.MaxPool2d(3, stride=1, padding=1), *conv_bn_relu(inputs, pool, 1)],
        )
        self.branches = nn.ModuleList(nn.Sequential(*layers) for layers in branches)
        self.channels = one + three[1] + five[1] + pool

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W] -> [B, channels, H, W]`."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def googlenet(*, num_classes: int, in_channels: int, stem: Stem = "cifar") -> Staged:
    """Nine Inception modules in three stages (table 1), without auxiliary heads and dropout.

    It has batch norm, 3x3 where the paper has 5x5, and 2x2 pooling before the last stage, because the network that the
    authors of DML trained (slim's) has; 5.7M parameters at 100 classes where DML's table says 7.8M (an auxiliary head
    would give 8.0M). Theirs also drops 20 % of what the head reads.
    `[B, in_channels, H, W] -> [B, num_classes]`. Stem "imagenet" has the paper's strides, in all 32; "cifar" is ours:
    the same convolutions with 3x3 for 7x7, no stride and no pooling, in all 4.
    """
    rest = [*conv_bn_relu(64, 64, 1), *conv_bn_relu(64, 192, 3)]
    small = [*conv_bn_relu(in_channels, 64, 3), *rest]
    large = [*conv_bn_relu(in_channels, 64, 7, stride=2), halve(), *rest, halve()]
    begin: list[list[nn.Module]] = [small if stem == "cifar" else large, [halve()], [nn.MaxPool2d(2, ceil_mode=True)]]
    inputs = 192
    stages: list[nn.Module] = []
    channels = []
    for layers, modules in zip(begin, _MODULES, strict=True):
        for one, three, five, pool in modules:
            module = Inception(inputs, one, three, five, pool)
            layers.append(module)
            inputs = module.channels
        stages.append(nn.Sequential(*layers))
        channels.append(inputs)
    return Staged(stages, channels, nn.Linear(inputs, num_classes))


_MODULES = [  # table 1: 1x1, (3x3 reduce, 3x3), (5x5 reduce, 5x5), pool proj
    [(64, (96, 128), (16, 32), 32), (128, (128, 192), (32, 96), 64)],
    [
        (192, (96, 208), (16, 48), 64),
        (160, (112, 224), (24, 64), 64),
        (128, (128, 256), (24, 64), 64),
        (112, (144, 288), (32, 64), 64),
        (256, (160, 320), (32, 128), 128),
    ],
    [(256, (160, 320), (32, 128), 128), (384, (192, 384), (48, 128), 128)],
]

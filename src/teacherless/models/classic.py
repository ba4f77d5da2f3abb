"""Networks without shortcuts, in the forms used on CIFAR: one linear layer instead of three as the head.

VGG: Simonyan & Zisserman 2015 (arXiv:1409.1556). AlexNet: Krizhevsky et al. 2012.
"""

from __future__ import annotations

from torch import nn

from teacherless.models.layers import conv_bn_relu
from teacherless.models.staged import Staged


def vgg16_bn(*, num_classes: int, in_channels: int) -> Staged:
    """Thirteen 3x3 convolutions with batch norm in five stages (configuration D), without dropout.

    `[B, in_channels, H, W] -> [B, num_classes]`; total stride 32, so 32x32 is the smallest image. The last pooling
    belongs to `pool`, so the last stage of a 32x32 image is 2x2.
    """
    channels = [64, 128, 256, 512, 512]
    stages: list[nn.Module] = []
    inputs = in_channels
    for outputs, convolutions in zip(channels, [2, 2, 3, 3, 3], strict=True):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if stages else []
        for _ in range(convolutions):
            layers += conv_bn_relu(inputs, outputs, 3)
            inputs = outputs
        stages.append(nn.Sequential(*layers))
    return Staged(stages, channels, nn.Linear(inputs, num_classes), _pool())


def alexnet(*, num_classes: int, in_channels: int) -> Staged:
    """Five convolutions in three stages, without batch norm, local response norm and dropout.

    DDGSD trains an AlexNet on CIFAR and does not say which; this is the one common there: 11x11 with stride 4 (padded
    to keep a 32x32 image at 8x8), 5x5, three 3x3.
    `[B, in_channels, H, W] -> [B, num_classes]`; total stride 32. The last pooling belongs to `pool`.
    """
    stages = [
        _conv_relu(in_channels, 64, 11, stride=4),
        [nn.MaxPool2d(2), *_conv_relu(64, 192, 5)],
        [nn.MaxPool2d(2), *_conv_relu(192, 384, 3), *_conv_relu(384, 256, 3), *_conv_relu(256, 256, 3)],
    ]
    channels = [64, 192, 256]
    return Staged([nn.Sequential(*layers) for layers in stages], channels, nn.Linear(256, num_classes), _pool())


def _conv_relu(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2), nn.ReLU(inplace=True)]


def _pool() -> nn.Module:
    return nn.Sequential(nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())

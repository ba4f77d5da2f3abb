"""MobileNet, version 1: Howard et al. 2017 (arXiv:1704.04861)."""

from __future__ import annotations

from torch import nn

from teacherless.models.layers import Stem, conv_bn_relu, stack
from teacherless.models.staged import Staged


def mobilenet(*, num_classes: int, in_channels: int, stem: Stem = "cifar") -> Staged:
    """Width 1.0: a 3x3 convolution and thirteen depthwise separable ones, in four stages (table 1).

    `[B, in_channels, H, W] -> [B, num_classes]`. Stem "imagenet" has the paper's strides, in all 32. DML trains it on
    32x32 images and does not say with which strides; stem "cifar" is our choice, the one of third-party reruns: the
    first two strides (of the stem and at 64 -> 128 channels) are dropped, three stay, in all 8, so the pool reads 4x4.
    Activations are ReLU, as in the paper; the authors of DML used a version with ReLU6.
    """
    first = 1 if stem == "cifar" else 2
    stem_layers = [*conv_bn_relu(in_channels, 32, 3, first), _separable(32, 64, 1), _separable(64, 128, first)]
    channels = [128, 256, 512, 1024]
    stages = stack(_separable, stem_layers, 128, channels, [1, 2, 6, 2])
    return Staged(stages, channels, nn.Linear(channels[-1], num_classes))


def _separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """3x3 within each channel, then 1x1 across them, each with batch norm and ReLU (figure 3 right)."""
    return nn.Sequential(*conv_bn_relu(inputs, inputs, 3, stride, groups=inputs), *conv_bn_relu(inputs, outputs, 1))

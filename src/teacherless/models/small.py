"""A network of ours that learns in seconds on a CPU, for small images and for trying things out."""

from __future__ import annotations

from torch import nn

from teacherless.models.layers import conv_bn_relu
from teacherless.models.staged import Staged


def small_cnn(*, num_classes: int, in_channels: int, width: int = 32) -> Staged:
    """Three stages of one 3x3 convolution each, strides 1, 2, 2, channels width·(1, 2, 4).

    `[B, in_channels, H, W] -> [B, num_classes]`.
    """
    channels = [width, 2 * width, 4 * width]
    stages = [
        nn.Sequential(*conv_bn_relu(inputs, outputs, kernel=3, stride=stride))
        for inputs, outputs, stride in zip([in_channels, *channels], channels, [1, 2, 2], strict=False)
    ]
    return Staged(stages, channels, nn.Linear(channels[-1], num_classes))

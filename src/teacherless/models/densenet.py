"""Densely connected networks, their CIFAR form: Huang et al. 2017 (arXiv:1608.06993)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from teacherless.models.layers import bn_relu, conv, dropout
from teacherless.models.staged import Staged


class Dense(nn.Module):
    """A layer that appends `growth` channels to what it reads."""

    def __init__(self, inputs: int, growth: int, bottleneck: bool, rate: float) -> None:
        super().__init__()
        squeeze = [*bn_relu(inputs), conv(inputs, 4 * growth, 1), dropout(rate)] if bottleneck else []
        width = 4 * growth if bottleneck else inputs
        self.body = nn.Sequential(*squeeze, *bn_relu(width), conv(width, growth, 3), dropout(rate))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W] -> [B, C + growth, H, W]`."""
        return torch.cat([x, self.body(x)], dim=1)


def densenet(
    *, num_classes: int, in_channels: int, depth: int, growth: int, bottleneck: bool, dropout: float = 0.0
) -> Staged:
    """DenseNet(depth, growth): three dense blocks, a transition at the start of the second and third (section 4.2).

    With `bottleneck` it is DenseNet-BC: 1x1 convolutions to 4 growth, transitions that halve the channels, and a stem
    of 2 growth instead of 16. Stages end before an activation but for the last: the pool reads the last batch norm and
    ReLU. `dropout` is after every convolution but the stem; the paper has 0.2 where it does not augment.
    `[B, in_channels, H, W] -> [B, num_classes]`; total stride 4. Raises: InputError for dropout outside [0, 1).
    """
    layers, left = divmod(depth - 4, 6 if bottleneck else 3)
    assert left == 0
    width = 2 * growth if bottleneck else 16
    stages: list[nn.Sequential] = []
    channels: list[int] = []
    for _ in range(3):
        if stages:
            inputs, width = width, width // 2 if bottleneck else width
            stage = nn.Sequential(*_transition(inputs, width, dropout))
        else:
            stage = nn.Sequential(conv(in_channels, width, 3))
        for _ in range(layers):
            stage.append(Dense(width, growth, bottleneck, dropout))
            width += growth
        stages.append(stage)
        channels.append(width)
    stages[-1].extend(bn_relu(width))
    return Staged(stages, channels, nn.Linear(width, num_classes))


def _transition(inputs: int, outputs: int, rate: float) -> list[nn.Module]:
    return [*bn_relu(inputs), conv(inputs, outputs, 1), dropout(rate), nn.AvgPool2d(2)]

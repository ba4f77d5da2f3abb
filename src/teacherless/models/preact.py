"""Residual networks that activate before they convolve: He et al. 2016 (arXiv:1603.05027), and wide ones, Zagoruyko &
Komodakis 2016 (arXiv:1605.07146)."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from teacherless.models.layers import bn_relu, conv, dropout, stack
from teacherless.models.staged import Staged


class PreActivated(nn.Module):
    """x + body(activated x); where the shape changes, the shortcut is a 1x1 convolution of the activated x."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, rate: float = 0.0) -> None:
        super().__init__()
        self.activate = nn.Sequential(*bn_relu(inputs))
        self.body = nn.Sequential(
            conv(inputs, outputs, 3, stride), *bn_relu(outputs), dropout(rate), conv(outputs, outputs, 3)
        )
        self.shortcut = None if inputs == outputs and stride == 1 else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W] -> [B, C', H/stride, W/stride]`, not activated."""
        active = self.activate(x)
        out: Tensor = self.body(active) + (x if self.shortcut is None else self.shortcut(active))
        return out


def wrn(*, num_classes: int, in_channels: int, depth: int, width: int, dropout: float = 0.0) -> Staged:
    """WRN-depth-width, depth 6n + 4: three stages of n blocks, width times 16, 32, 64 channels (table 1).

    Stages one and two end before an activation; the last batch norm and ReLU belong to the third, so the pool reads
    them. `dropout` is between a block's convolutions (section 2.4); DML does not say whether it used any.
    `[B, in_channels, H, W] -> [B, num_classes]`; total stride 4. Raises: InputError for dropout outside [0, 1).
    """
    assert depth % 6 == 4
    channels = [16 * width, 32 * width, 64 * width]
    block = partial(PreActivated, rate=dropout)
    stages = stack(block, [conv(in_channels, 16, 3)], 16, channels, [(depth - 4) // 6] * 3)
    stages[-1].extend(bn_relu(channels[-1]))
    return Staged(stages, channels, nn.Linear(channels[-1], num_classes))


def preact_resnet18(*, num_classes: int, in_channels: int) -> Staged:
    """ResNet-18 with its activations moved (He et al. 2016, arXiv:1603.05027, figure 4e), in the CIFAR form.

    Four stages of two blocks, 64 to 512 channels. The last batch norm and ReLU belong to the last stage.
    `[B, in_channels, H, W] -> [B, num_classes]`; total stride 8.
    """
    channels = [64, 128, 256, 512]
    stages = stack(PreActivated, [conv(in_channels, 64, 3)], 64, channels, [2, 2, 2, 2])
    stages[-1].extend(bn_relu(channels[-1]))
    return Staged(stages, channels, nn.Linear(channels[-1], num_classes))

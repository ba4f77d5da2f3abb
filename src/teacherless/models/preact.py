"""Residual networks that activate before they convolve: He et al. 2016 (arXiv:1603.05027), and wide ones, Zagoruyko &
Komodakis 2016 (arXiv:1605.07146)."""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import Tensor, nn

from teacherless.models.layers import bn_relu, conv, dropout, stack
from teacherless.models.staged import Staged

Layout = Literal["he", "released"]


class PreActivated(nn.Module):
    """x + body(activated x); where the shape changes, the shortcut is a 1x1 convolution of the activated x.

    With `carry_active`, the shortcut is the activated x where the shape stays, too.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, *, rate: float = 0.0, carry_active: bool = False
    ) -> None:
        super().__init__()
        self.carry_active = carry_active
        self.activate = nn.Sequential(*bn_relu(inputs))
        self.body = nn.Sequential(
            conv(inputs, outputs, 3, stride), *bn_relu(outputs), dropout(rate), conv(outputs, outputs, 3)
        )
        self.shortcut = None if inputs == outputs and stride == 1 else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W] -> [B, C', H/stride, W/stride]`, not activated."""
        active = self.activate(x)
        carried = active if self.carry_active else x
        if self.shortcut is not None:
            carried = self.shortcut(active)
        out: Tensor = self.body(active) + carried
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


def preact_resnet18(*, num_classes: int, in_channels: int, layout: Layout = "he") -> Staged:
    """ResNet-18 with its activations moved (He et al. 2016, arXiv:1603.05027, figure 4e), in the CIFAR form.

    Four stages of two blocks, 64 to 512 channels. The last batch norm and ReLU belong to the last stage. Layout
    "released" is what CS-KD and PS-KD trained: batch norm and ReLU after the stem instead of after the last block, and
    shortcuts that carry the activated input.
    `[B, in_channels, H, W] -> [B, num_classes]`; total stride 8.
    """
    channels, he = [64, 128, 256, 512], layout == "he"
    stem = [conv(in_channels, 64, 3), *([] if he else bn_relu(64))]
    stages = stack(partial(PreActivated, carry_active=not he), stem, 64, channels, [2, 2, 2, 2])
    stages[-1].extend(bn_relu(channels[-1]) if he else [])
    return Staged(stages, channels, nn.Linear(channels[-1], num_classes))

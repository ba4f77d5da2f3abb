"""Students and teachers of some studies, named `results.nets:NAME`."""

from __future__ import annotations

from torch import Tensor, nn

from teacherless.methods._parts import MeanProbability
from teacherless.models.small import small_cnn


class FrozenAfterOne(nn.Module):
    """A network whose batch norm trains in the first batch only, as where `model.eval()` was said after it and
    `model.train()` never again: from then on it uses, and keeps, the averages of that one batch."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W] -> [B, classes]`."""
        for layer in self.net.modules():
            if isinstance(layer, nn.BatchNorm2d) and layer.num_batches_tracked:
                layer.eval()
        return self.net(x)  # type: ignore[no-any-return]


def frozen_small_cnn(num_classes: int, in_channels: int) -> FrozenAfterOne:
    """small-cnn, frozen after one batch."""
    return FrozenAfterOne(small_cnn(num_classes=num_classes, in_channels=in_channels))


def several_small_cnns(num_classes: int, in_channels: int, copies: int, width: int = 32) -> MeanProbability:
    """The mean of their probabilities."""
    each = {"num_classes": num_classes, "in_channels": in_channels, "width": width}
    return MeanProbability(small_cnn(**each) for _ in range(copies))

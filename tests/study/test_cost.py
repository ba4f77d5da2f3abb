"""What inference costs: timed by turns, with its spread."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from teacherless.study.cost import WARM, latencies


class Net(nn.Module):
    """Takes a known time, and notes its turn."""

    def __init__(self, name: str, seconds: float, turns: list[str]) -> None:
        super().__init__()
        self.name, self.seconds, self.turns = name, seconds, turns

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        self.turns.append(self.name)
        time.sleep(self.seconds)
        return x


def test_networks_are_timed_by_turns_with_their_spread() -> None:
    turns: list[str] = []
    image = torch.zeros(1, 1, 8, 8)
    found = latencies({"a": (Net("a", 0.001, turns), image), "b": (Net("b", 0.003, turns), image)}, rounds=20)
    assert turns == ["a", "b"] * (WARM + 20)
    for name, least in (("a", 1), ("b", 3)):
        assert least <= found[name]["low_ms"] <= found[name]["ms"] <= found[name]["high_ms"]
    assert found["a"]["ms"] < found["b"]["ms"]

"""What the pages beside this file train: two networks on handwritten digits that teach each other."""

from __future__ import annotations

import os

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import teacherless as tl

ACCUMULATE, EPOCHS = int(os.environ.get("ACCUMULATE", "1")), 10
BATCH = 64 // ACCUMULATE  # so many batches make a step of 64 samples

x, y = load_digits(return_X_y=True)
x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
train_x, train_y, test_x, test_y = x[:1472], y[:1472], x[1472:], y[1472:]

torch.manual_seed(0)
net_a, net_b = (nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)) for _ in range(2))
samples: TensorDataset = TensorDataset(train_x, train_y)
loader: DataLoader[object] = DataLoader(samples, BATCH)  # in one order, so that loops can be compared to the bit


def sgd(method: tl.Method) -> torch.optim.Optimizer:
    """A group of parameters for each network, so that each may have a rate of its own; fused, as `tl.train` does."""
    return torch.optim.SGD(method.param_groups(), lr=0.05, momentum=0.9, fused=True)


@torch.no_grad()
def accuracy(net: nn.Module) -> float:
    """Percent of the test digits."""
    return 100 * (net(test_x).argmax(1) == test_y).float().mean().item()

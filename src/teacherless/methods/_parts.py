"""What several methods are made of: a ramp, a frozen teacher, an ensemble, maps of one size."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teacherless.batch import Input, leaves
from teacherless.method import Progress
from teacherless.network import call, packed

Net = TypeVar("Net", bound=nn.Module)


def ramp(progress: Progress, epochs: int, dtype: torch.dtype) -> Tensor:
    """exp(-5 (1 - t/epochs)²) for t < epochs, then 1 (Laine & Aila 2017). A 0-d tensor."""
    if epochs == 0:
        return torch.ones_like(progress.epoch, dtype=dtype)
    left = 1 - progress.epoch.to(dtype).clamp(max=epochs) / epochs
    return torch.exp(-5 * left.square())


def newest(decay: float, steps: int | Tensor) -> Tensor:
    """The share of the newest weights in a moving average, after so many steps: 1 - min(decay, (1 + n) / (10 + n)).

    At first it forgets fast, or a short run would keep its random start. A 0-d tensor, float64.
    """
    n = torch.as_tensor(steps, dtype=torch.float64)
    return 1 - ((1 + n) / (10 + n)).clamp(max=decay)


def still(net: Net) -> Net:
    """A copy that does not learn; as a submodule its weights are of the state that goes on."""
    with torch.no_grad():  # a scripted module's copy would have a gradient, and it has no requires_grad_
        other = copy.deepcopy(net)
    for parameter in other.parameters():
        parameter.requires_grad_(False)
    return other


class Frozen:
    """A network that is only read (a teacher). Not an `nn.Module`, on purpose: in no optimizer, no checkpoint, no
    `.train()` call and no DDP bucket. It follows its input's device, and its dtype where that is a float."""

    def __init__(self, net: nn.Module) -> None:
        self.net = still(net).eval()

    @torch.no_grad()
    def __call__(self, x: Input) -> Tensor:
        """The teacher's logits for `x`."""
        return call(self.at(x), x)

    def at(self, x: Input) -> Any:
        """The teacher where `x` is (call its `features` under `torch.no_grad()`)."""
        here = next(leaves(x))
        floating = [p for p in self.net.parameters() if p.is_floating_point()]
        own: Tensor = floating[0] if floating else here
        dtype = here.dtype if here.is_floating_point() else own.dtype
        if own.device != here.device or own.dtype != dtype:
            self.net.to(here.device, dtype)
        return self.net


class MeanProbability(nn.Module):
    """An ensemble of networks by the mean of their probabilities; returns log-probabilities, which are logits."""

    def __init__(self, nets: Iterable[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """log mean_k softmax(z_k). What the networks read -> `[B, C]`."""
        x = packed(args, kwargs)
        each = torch.stack([call(net, x).float().log_softmax(-1) for net in self.nets])  # [K, B, C]
        mean: Tensor = each.logsumexp(0) - math.log(len(self.nets))
        return mean


class Predictor(nn.Module):
    """A method's own ensemble as a network: `predict`, a bound method of `method`, gives its logits `[B, C]`."""

    def __init__(self, method: nn.Module, predict: Callable[[Input], Tensor]) -> None:
        super().__init__()
        self.method, self.predict = method, predict

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """What the student reads -> `[B, C]`."""
        return self.predict(packed(args, kwargs))


def resize(x: Tensor, height: int, width: int) -> Tensor:
    """Average down, repeat up. `[B, C, H, W] -> [B, C, height, width]`."""
    h, w = x.shape[-2:]
    if (h, w) == (height, width):
        return x
    if h % height == 0 and w % width == 0:  # as below, but its gradient is deterministic on a GPU
        return F.avg_pool2d(x, (h // height, w // width))
    grows = h <= height and w <= width
    return F.interpolate(x, (height, width)) if grows else F.adaptive_avg_pool2d(x, (height, width))

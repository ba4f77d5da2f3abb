"""Averaged weights: what `--ema` evaluates and ships in place of the last step's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from teacherless.method import Method
from teacherless.methods._parts import newest


class Average:
    """An exponential moving average of everything a method trains, and of its batch-norm statistics.

    After step n the average moves towards the weights by `newest(decay, n)`. What else a method remembers (past
    predictions) is not averaged.
    As a context, it is in the method's place: the averaged weights are in the networks, the trained ones wait here.
    """

    def __init__(self, method: Method, decay: float) -> None:
        self.decay = decay
        parameters = {name: parameter.detach() for name, parameter in method.named_parameters()}
        self.live = parameters | norm_buffers(method)  # the same memory, no gradients
        self.values = {name: tensor.clone() for name, tensor in self.live.items()}

    def update(self, steps: int) -> None:
        """Take in the weights after so many steps."""
        share = float(newest(self.decay, steps))
        torch._foreach_lerp_(list(self.values.values()), list(self.live.values()), share)

    def swap(self) -> None:
        """Exchange the average and the method's weights."""
        for name, live in self.live.items():
            waiting = live.clone()
            live.copy_(self.values[name])
            self.values[name].copy_(waiting)

    def __enter__(self) -> Average:
        self.swap()
        return self

    def __exit__(self, *_: object) -> None:
        self.swap()

    def load(self, values: dict[str, Tensor]) -> None:
        """Go on from a checkpoint's `values`."""
        for name, value in values.items():
            self.values[name].copy_(value)


def norm_buffers(method: Method) -> dict[str, Tensor]:
    """Every running mean and variance."""
    tensors: dict[str, Tensor] = {}
    for path, module in method.named_modules():
        if isinstance(module, _NormBase):
            buffers = dict(module.named_buffers(prefix=path))
            tensors |= {name: buffer for name, buffer in buffers.items() if buffer.is_floating_point()}
    return tensors

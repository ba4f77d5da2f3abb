"""How flat a minimum is: loss and accuracy of a network whose weights are moved a little."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.func import functional_call

from teacherless import losses
from teacherless.evaluation.metrics import metrics
from teacherless.files.disk import finite
from teacherless.method import Batch
from teacherless.network import evaluating

Weights = Mapping[str, Tensor]
Direction = Callable[[Weights, Weights], Weights]  # (weights, standard normal noise) -> the step at scale 1


def relative_noise(weights: Weights, noise: Weights) -> Weights:
    """Gaussian noise with the RMS of each tensor as its standard deviation: scale 0.1 is a tenth of a typical weight.

    Zhang et al. 2018, Figure 3b, adds noise of std 0.1 to 1 to every weight without saying in which unit; it cannot be
    absolute, since 1.0 would leave nothing of a network.
    """
    return {name: noise[name] * w.square().mean().sqrt() for name, w in weights.items()}


def filter_normalised(weights: Weights, noise: Weights) -> Weights:
    """A random direction in which every filter (row) is as long as the weight's; none for vectors (Li et al. 2018).

    Biases and batch-norm parameters stay as they are, as in section 4 there.
    """

    def step(weight: Tensor, noise: Tensor) -> Tensor:
        if weight.dim() < 2:
            return torch.zeros_like(weight)
        axes = tuple(range(1, weight.dim()))
        ours, its = (torch.linalg.vector_norm(x, dim=axes, keepdim=True) for x in (weight, noise))
        scaled: Tensor = noise * ours / its
        return scaled

    return {name: step(w, noise[name]) for name, w in weights.items()}


def unit_length(weights: Weights, noise: Weights) -> Weights:
    """A random direction of length 1 over all parameters together (Lan et al. 2018, section 4.6, distances 0 to 5)."""
    length = torch.stack([each.norm() for each in noise.values()]).norm()
    return {name: each / length for name, each in noise.items()}


class Flatness(TypedDict):
    """Loss and accuracy around a minimum."""

    scale: list[float]  # of the step
    loss: list[float | None]  # nats, mean over draws; None where it is not finite
    loss_std: list[float | None]  # over draws, ddof 1; None at one draw
    top1: list[float]  # percent, mean over draws
    top1_std: list[float | None]
    start_loss: float  # unperturbed
    start_top1: float


@torch.no_grad()
def flatness(
    net: nn.Module,
    batches: Sequence[Batch],
    scales: Sequence[float],
    *,
    direction: Direction = relative_noise,
    draws: int = 5,
    seed: int = 0,
) -> Flatness:
    """Loss and accuracy where every parameter is moved by `scale · direction`, averaged over draws.

    The network is not touched: moved parameters go through `functional_call`, in evaluation mode, so that batch-norm
    statistics stay too. Each draw is one noise at all scales, and the same noise for networks of one architecture.
    """
    generator = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    weights = dict(net.named_parameters())
    loss, top1 = torch.empty(2, draws, len(scales), dtype=torch.float64).unbind(0)
    with evaluating([net]):
        start_loss, start_top1 = _at(net, weights, batches)
        for draw in range(draws):
            noise = {name: normal(w.shape).to(w) for name, w in weights.items()}
            step = direction(weights, noise)
            for i, scale in enumerate(scales):
                moved = {name: w + scale * step[name] for name, w in weights.items()}
                loss[draw, i], top1[draw, i] = _at(net, moved, batches)
    spread = [x.std(0) if draws > 1 else torch.full_like(x[0], math.nan) for x in (loss, top1)]
    return {
        "scale": list(scales),
        "loss": finite(loss.mean(0).tolist()),
        "loss_std": finite(spread[0].tolist()),
        "top1": top1.mean(0).tolist(),
        "top1_std": finite(spread[1].tolist()),
        "start_loss": start_loss,
        "start_top1": start_top1,
    }


def _at(net: nn.Module, weights: Mapping[str, Tensor], batches: Sequence[Batch]) -> tuple[float, float]:
    """Cross-entropy (nats) and top-1 (percent) of `net` with these weights."""
    logits = torch.cat([functional_call(net, dict(weights), (batch.inputs[0],)) for batch in batches])
    values = dict(metrics(losses.full(logits), torch.cat([batch.labels for batch in batches])))
    return values["nll"], values["top1"]

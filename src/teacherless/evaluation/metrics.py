"""Predictors in, numbers out.

A predictor is any module that returns logits. Nothing here waits for the device before the last batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from teacherless import losses
from teacherless.batch import Input, as_batch, mapped
from teacherless.errors import InputError
from teacherless.network import call, evaluating

BINS = 15  # of the expected calibration error: equal width, right-closed, over confidence in (0, 1]


def evaluate(predictors: Mapping[str, nn.Module], batches: Iterable[Any]) -> dict[str, dict[str, float]]:
    """Every predictor's metrics over the batches, `(x, y)` or any other shape that `train` takes, each read once.

    Returns: `{name: {"top1", "top5", "nll", "balanced", "ece", "entropy"}}`; accuracies in percent, NLL and
        the mean entropy of the predictions in nats, ECE in percent with 15 bins. Of several predictors also
        "agreement": percent of the samples that another one takes for the same class, the mean over the others.
    """
    return measured(*predict(predictors, batches))


def measured(logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, dict[str, float]]:
    """`evaluate`, of predictions that are there: `[N, C]` of each predictor, `[N]`."""
    together = agreement(logits)
    return {name: dict(metrics(each, labels)) | together.get(name, {}) for name, each in logits.items()}


@torch.no_grad()
def predict(predictors: Mapping[str, nn.Module], batches: Iterable[Any]) -> tuple[dict[str, Tensor], Tensor]:
    """Every predictor's logits `[N, C]`, at least float32, in evaluation mode, and the labels `[N]`."""
    logits: dict[str, list[Tensor]] = {name: [] for name in predictors}
    labels = []
    with evaluating(predictors.values()):
        for batch in map(as_batch, batches):
            labels.append(batch.labels)
            for name, net in predictors.items():
                like = next(net.parameters(), batch.labels)
                x = mapped(lambda part, like=like: part.to(like.device), batch.inputs[0])
                logits[name].append(losses.full(call(net, x)).to(batch.labels.device))
    if not labels or labels[0].dim() != 1:
        what = "labels that are shares of classes; to evaluate, they must be class ids" if labels else "no batches"
        raise InputError(f"data: found {what}")
    return {name: torch.cat(each) for name, each in logits.items()}, torch.cat(labels)


NO_CLASS = -1  # the prediction of a sample whose logits are no distribution


def predicted(logits: Tensor) -> Tensor:
    """The class with the largest logit; of equal ones the first. NO_CLASS where the largest is NaN or infinite: softmax
    gives no probabilities there. Every accuracy in the package is counted from this. `[..., C] -> [...]`."""
    return logits.argmax(-1).where(logits.amax(-1).isfinite(), NO_CLASS)


def constant(logits: Tensor) -> bool:
    """Whether a network is dead: it gives every sample the same logits, or none a class. `[N, C]`."""
    return len(logits) > 1 and bool((logits == logits[:1]).all() or (predicted(logits) == NO_CLASS).all())


def metrics(logits: Tensor, labels: Tensor) -> Iterator[tuple[str, float]]:
    """top1 and top5 (percent), nll (nats), balanced accuracy and ece (percent), entropy (nats). `[N, C], [N]`."""
    guess = predicted(logits)
    own = logits.gather(1, labels[:, None])
    first = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    place = ((logits > own) | ((logits == own) & first)).sum(1)  # classes before the right one, by the same rule
    yield "top1", 100 * float((guess == labels).double().mean())
    yield "top5", 100 * float(((place < 5) & (guess != NO_CLASS)).double().mean())
    yield "nll", float(losses.ce(logits, labels).double().mean())
    yield "balanced", 100 * balanced_accuracy(guess, labels)
    yield "ece", 100 * calibration_error(logits, labels)
    yield "entropy", float(losses.entropy(logits).double().mean())


def agreement(logits: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """`{name: {"agreement": percent}}` of predictors `[N, C]` that give classes, where there are several of them."""
    guesses = {name: predicted(each) for name, each in logits.items()}
    guesses = {name: guess for name, guess in guesses.items() if (guess != NO_CLASS).any()}
    if len(guesses) < 2:
        return {}
    all_guesses = torch.stack(list(guesses.values()))  # [S, N]
    same = {name: float((all_guesses == own).double().mean(1).sum()) - 1 for name, own in guesses.items()}
    return {name: {"agreement": 100 * value / (len(guesses) - 1)} for name, value in same.items()}


def balanced_accuracy(guess: Tensor, labels: Tensor) -> float:
    """The mean over classes of the share of their samples that is right, in [0, 1]; of classes that have samples.
    `[N], [N]`."""
    sizes, right = labels.bincount().double(), labels[guess == labels].bincount(minlength=int(labels.max()) + 1)
    return float((right / sizes)[sizes > 0].mean())


def calibration_error(logits: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Expected calibration error, Σ_b n_b/N |accuracy_b - confidence_b| (Guo et al. 2017, eq. 3), in [0, 1].

    Bins are of equal width over the confidence, (0, 1/bins], …, (1 - 1/bins, 1]. `[N, C], [N]`.
    """
    confidence = losses.log_probs(logits).double().exp().amax(1)
    gap = (predicted(logits) == labels).double() - confidence
    total = torch.zeros(bins, dtype=torch.float64, device=gap.device).index_add(0, which_bin(confidence, bins), gap)
    return float(total.abs().sum()) / len(labels)


def which_bin(confidence: Tensor, bins: int = BINS) -> Tensor:
    """The calibration bin of each confidence: 0 for (0, 1/bins], … . `[N] -> [N]`."""
    return (confidence * bins).ceil().long().clamp(1, bins) - 1


@torch.no_grad()
def flops(net: nn.Module, x: Input) -> int:
    """Floating-point operations of one forward, a multiply-add counted as two."""
    with evaluating([net]), FlopCounterMode(display=False) as counter:
        call(net, x)
    return int(counter.get_total_flops())

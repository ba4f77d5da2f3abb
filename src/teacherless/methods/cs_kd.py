"""CS-KD: one network gives images of one class the same prediction.

What:
    Class-wise self-knowledge distillation. Each image comes with another one of its class. Whose prediction is the
    soft target? My classmate's.

Formula:
    L = CE(z(x), y) + kd_weight T² KL(p^T(x') ‖ p^T(x)),  x' another image of the class of x, its prediction constant

Paper:
    Yun, Park, Lee, Shin: Regularizing Class-wise Predictions via Self-knowledge Distillation, CVPR 2020
    (arXiv:2003.13964), section 2.

Defaults: temperature 4 and kd_weight 1, the authors' for CIFAR-100 and TinyImageNet (3 for fine-grained sets).

Where we differ from the paper, and from the authors' code:
    As in train.py of alinlab/cs-kd the classmate is predicted second, without gradient but in training mode: it is
    normalised by its own batch's statistics and moves the running ones, which thus see both. Their batch of 128 is 128
    labelled images and as many classmates, so --batch-size 128 is theirs. Their sampler may draw an image as its own
    classmate (one time in 500 on CIFAR-100); ours never does. It also keeps an epoch's last, smaller batch.

Ships: `student`, the network itself.
Cost: Two forwards and one backward per batch, and twice the images.
Results: In points of accuracy, of the studies in results/ (docs/learnt.md).
"""

from __future__ import annotations

import torch
from torch import nn

from teacherless import losses
from teacherless.method import Batch, Method, Output, Progress, Wants
from teacherless.methods import _checks as checks
from teacherless.network import call


class CSKD(Method):
    """One network, each image with a classmate.

    Args:
        student: a network that maps a tensor to logits `[B, C]`.
        temperature: softens both sides, paid back by its square.
        kd_weight: of the classmate.

    Raises: InputError for numbers out of range.
    """

    wants = Wants(classmate=True)

    def __init__(self, student: nn.Module, *, temperature: float = 4.0, kd_weight: float = 1.0) -> None:
        super().__init__()
        checks.positive(temperature=temperature, kd_weight=kd_weight)
        self.student, self.temperature, self.kd_weight = student, temperature, kd_weight

    def forward(self, batch: Batch, progress: Progress = Progress()) -> Output:
        """`ce`: the student learns from the labels. `distil`: from its prediction for a classmate."""
        # [B, C]; first, so that autocast caches weights that have a gradient
        logits = call(self.student, batch.inputs[0])
        with torch.no_grad():
            target = call(self.student, batch.inputs[-1])
        terms = {
            "ce": losses.ce(logits, batch.labels, self.smoothing).mean(),
            "distil": self.kd_weight * losses.kl(logits, target, self.temperature).mean(),
        }
        return Output(terms, logits.detach()[None])

"""Mean teacher: one network learns from the average of its own past weights.

What:
    Beside the student goes a copy whose weights are the moving average of the student's. Each image comes in two
    distortions; the student sees the first, the average the second. Whose prediction is the soft target? My averaged
    self's.

Formula:
    L = CE(z, y) + w(t) weight T² KL(p̄^T ‖ p^T),  p̄ of the second distortion, by the averaged weights θ̄, constant
    θ̄ ← d θ̄ + (1 - d) θ after every step,  d = min(decay, (1 + n) / (10 + n)) after n steps, as for `--ema`
    w(t) = exp(-5 (1 - t / ramp_epochs)²) up to epoch ramp_epochs, 1 after it and where there is no ramp
    match "mse": mean_c (p̄_c - p_c)² in the place of T² KL

Paper:
    Tarvainen, Valpola: Mean Teachers Are Better Role Models, NeurIPS 2017 (arXiv:1703.01780), section 2. There for
    labels that are few; here, as self-distillation, every image has one.

Defaults:
    decay 0.999, the paper's. Ours: match "kl", temperature 1, weight 1, ramp_epochs 0 (no ramp).

Where we differ from the paper, and from the authors' code:
    Images without labels are not taken. The paper's distance is "mse". Its teacher is in training mode, and so is ours:
    its batch norm sees its own batches and keeps its own averages. Its decay begins as 1 - 1/n; ours as written above.
    Variant `released` is the loss of cifar10_test.py of CuriousAI/mean-teacher (PyTorch), with decay 0.99 there, and a
    second head; run beside it for four steps (float64): weights 1e-16 apart once the decay begins as there.

Ships: `student`, the network itself. The averaged weights are what `--ema` ships, of this method or of any other.
Cost: Two forwards and one backward per batch, and the network's weights once more.
Results: In points of accuracy, of the studies in results/ (docs/learnt.md).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from teacherless import losses
from teacherless.method import Batch, Method, Output, Progress, Variants, Wants
from teacherless.methods import _checks as checks
from teacherless.methods._parts import newest, ramp, still
from teacherless.network import call, check_ready


class MeanTeacher(Method):
    """One network, and the moving average of its weights as its teacher.

    Args:
        student: a network that maps a tensor to logits `[B, C]`.
        decay: of the average, in [0, 1).
        weight: of what is learnt from the average.
        temperature: T, of both sides of the KL.
        match: "kl", or "mse" of the probabilities.
        ramp_epochs: epochs over which the weight rises; 0 for none.

    Raises: InputError for numbers out of range, options that have no effect, and a batch of one view.
    """

    wants = Wants(views=2)
    variants: ClassVar[Variants] = {"released": {"match": "mse", "weight": 100.0, "ramp_epochs": 5}}

    def __init__(
        self,
        student: nn.Module,
        *,
        decay: float = 0.999,
        weight: float = 1.0,
        temperature: float = 1.0,
        match: Literal["kl", "mse"] = "kl",
        ramp_epochs: int = 0,
    ) -> None:
        super().__init__()
        checks.share(decay=decay)
        checks.positive(weight=weight, temperature=temperature)
        checks.not_negative(ramp_epochs=ramp_epochs)
        checks.choices(MeanTeacher, match=match)
        if match == "mse":
            checks.no_effect(MeanTeacher, "match='mse'", temperature=temperature)
        check_ready(student)
        self.student, self.teacher = student, still(student)
        self.decay, self.weight, self.temperature, self.match = decay, weight, temperature, match
        self.ramp_epochs, self.needs_progress = ramp_epochs, ramp_epochs > 0

    def forward(self, batch: Batch, progress: Progress = Progress()) -> Output:
        """`ce`: the student learns from the labels. `mean`: from the average of its weights, which moves first."""
        logits = call(self.student, batch.inputs[0])  # [B, C]
        with torch.no_grad():
            if self.training:
                follow(self.teacher, self.student, self.decay, progress.step)
            target = call(self.teacher, batch.inputs[1])
        if self.match == "kl":
            apart = losses.kl(logits, target, self.temperature)
        else:
            apart = losses.mse(losses.log_probs(logits).exp(), losses.log_probs(target).exp())
        rise = ramp(progress, self.ramp_epochs, apart.dtype)
        ce = losses.ce(logits, batch.labels, self.smoothing).mean()
        return Output({"ce": ce, "mean": self.weight * rise * apart.mean()}, logits.detach()[None])


def follow(average: nn.Module, net: nn.Module, decay: float, steps: Tensor) -> None:
    """The average takes in the weights as they are after so many steps: nobody read it since the last one."""
    share = newest(decay, steps)
    for mean, weight in zip(average.parameters(), net.parameters(), strict=True):
        mean.lerp_(weight, share.to(mean.dtype))

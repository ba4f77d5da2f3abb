"""TF-KD: a virtual teacher that is always right, or the network's own earlier self.

What:
    Teacher-free knowledge distillation. In mode "reg" the teacher is a formula: almost all of its belief on the true
    class, the rest spread evenly. In mode "self" it is the same architecture trained earlier. Whose prediction is the
    soft target? A virtual oracle's, or my finished self's.

Formula:
    u(c) = correct for the true class, (1 - correct)/(C - 1) for the others
    reg:  L = (1 - alpha) CE(z, y) + alpha T² KL(u^T ‖ p^T),  u^T = softmax(log u / T)
    self: L = (1 - alpha) CE(z, y) + alpha T² KL(p_t^T ‖ p^T),  p_t constant

Paper:
    Yuan, Tay, Li, Wang, Feng: Revisiting Knowledge Distillation via Label Smoothing Regularization, CVPR 2020
    (arXiv:1909.11723), section 4.

Defaults:
    mode reg; correct 0.99, alpha 0.1 and temperature 20 are the authors' for ResNet-18 on CIFAR-100 (reg). For self
    they use alpha 0.95 with temperature 6 or 20: set both. multiplier 1, class_mean False and soften "both" are the
    paper's formula.

Where we differ from the paper, and from the authors' code:
    T² is paid back, as everywhere here; the paper does not write it, their code has it in self only.
    Variants `released` and `released-self` reproduce my_loss_function.py of yuanli2333/Teacher-free-Knowledge-
    Distillation with the ResNet-18 settings of its experiments folder. There the KL is averaged over classes too
    (class_mean), repaired by a multiplier (100 in reg, 50 in self); in reg the virtual teacher is softened as if its
    probabilities were logits, softmax(u / T), which leaves it almost uniform, the student is not softened at all, and
    there is no T² (soften "probabilities").

Ships: `student`, the network itself.
Cost: reg: as plain. self: one more forward per batch, and the first training.
Results: In points of accuracy, of the studies in results/ (docs/learnt.md).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn

from teacherless import losses
from teacherless.errors import InputError
from teacherless.method import Batch, Method, Output, Progress, Variants
from teacherless.methods import _checks as checks
from teacherless.methods._parts import Frozen
from teacherless.network import call


class TFKD(Method):
    """Labels and a virtual teacher, or the earlier self.

    Args:
        student: a network that maps a tensor to logits `[B, C]`.
        teacher: for mode "self": the same architecture, trained; copied, only read.
        mode: "reg" (the virtual teacher) or "self".
        alpha: weight of the teacher; the labels get 1 - alpha.
        temperature: softens both sides, paid back by its square.
        correct: reg: what the virtual teacher believes of the true class.
        soften: reg: "both" sides in log space, or "probabilities" of the teacher alone, without T².
        class_mean: average the KL over classes.
        multiplier: of the KL.

    Raises: InputError for a teacher in reg, none in self, numbers out of range, and options that have no effect.
    """

    teacher_use = "optional"
    variants: ClassVar[Variants] = {
        "released": dict(soften="probabilities", class_mean=True, multiplier=100.0),
        "released-self": dict(mode="self", alpha=0.95, temperature=6.0, class_mean=True, multiplier=50.0),
    }

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        *,
        mode: Literal["reg", "self"] = "reg",
        alpha: float = 0.1,
        temperature: float = 20.0,
        correct: float = 0.99,
        soften: Literal["both", "probabilities"] = "both",
        class_mean: bool = False,
        multiplier: float = 1.0,
    ) -> None:
        super().__init__()
        checks.choices(TFKD, mode=mode, soften=soften)
        checks.share(alpha=alpha)
        checks.positive(alpha=alpha, temperature=temperature, multiplier=multiplier)
        if not 0 < correct < 1:
            raise InputError(f"correct: found {correct}; must be above 0 and below 1")
        if mode == "self":
            checks.no_effect(TFKD, "mode='self'", correct=correct, soften=soften)
            if teacher is None:
                raise InputError("tf-kd: mode 'self' needs a teacher, the same network trained before; none was given")
        elif teacher is not None:
            raise InputError("tf-kd: mode 'reg' reads no teacher and one was given; leave it out, or say mode 'self'")
        self.student = student
        self.teacher = None if teacher is None else Frozen(teacher)
        self.alpha, self.temperature, self.correct = alpha, temperature, correct
        self.soften, self.class_mean, self.multiplier = soften, class_mean, multiplier

    def forward(self, batch: Batch, progress: Progress = Progress()) -> Output:
        """`ce`: the student learns from the labels. `distil`: from the virtual teacher, or its earlier self."""
        logits = call(self.student, batch.inputs[0])  # [B, C]
        distil = self._distil(logits, batch)
        if self.class_mean:
            distil = distil / logits.shape[-1]
        terms = {
            "ce": (1 - self.alpha) * losses.ce(logits, batch.labels, self.smoothing).mean(),
            "distil": self.alpha * self.multiplier * distil.mean(),
        }
        return Output(terms, logits.detach()[None])

    def _distil(self, logits: Tensor, batch: Batch) -> Tensor:
        if self.teacher is not None:
            target = self.teacher(batch.inputs[0])
            checks.same_classes(target, logits)
            return losses.kl(logits, target, self.temperature)
        oracle = losses.virtual_teacher(batch.labels, losses.full(logits), self.correct)  # [B, C]
        if self.soften == "probabilities":
            return losses.kl(logits, oracle / self.temperature)
        return losses.kl(logits, oracle.log(), self.temperature)

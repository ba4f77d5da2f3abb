"""KD: a frozen teacher's softened predictions are the soft target.

What:
    Knowledge distillation, the method the others do without. A trained teacher is only read. Whose prediction is the
    soft target? The teacher's.

Formula: L = ce_weight CE(z, y) + kd_weight T² KL(p_t^T ‖ p^T),  p_t the teacher's prediction, constant
Paper: Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015 (arXiv:1503.02531), section 2.

Defaults:
    ce_weight 0.1 and kd_weight 0.9: the paper asks for a weighted average with considerably less weight on the labels;
    the numbers, and temperature 4, are the usual ones for CIFAR (megvii-research/mdistiller, engine/cfg.py).
    Variant `dml` is the rival "1 distills 2" of the DML paper's Table 4: its own loss with a fixed posterior, so
    CE + KL at T = 1 with weights 1 (the paper does not print them).

Where we differ from the paper, and from the authors' code:
    KL where the paper writes cross-entropy with the soft targets: they differ by the teacher's entropy, a constant. The
    teacher is in evaluation mode and sees the same distorted image as the student.

Ships: `student`, the network itself. The teacher is neither trained nor stored.
Cost: One forward and backward of the student and one forward of the teacher per batch; before that, a trained teacher.
Results: In points of accuracy, of the studies in results/ (docs/learnt.md).
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from teacherless import losses
from teacherless.method import Batch, Method, Output, Progress, Variants
from teacherless.methods import _checks as checks
from teacherless.methods._parts import Frozen
from teacherless.network import call


class KD(Method):
    """Labels and a frozen teacher.

    Args:
        student: a network that maps a tensor to logits `[B, C]`.
        teacher: a trained network of the same classes; copied, only read.
        temperature: softens both sides, paid back by its square.
        ce_weight: of the labels; 0 leaves them out.
        kd_weight: of the teacher.

    Raises: InputError for numbers out of range, and at the first step for a teacher of other classes.
    """

    teacher_use = "required"
    variants: ClassVar[Variants] = {"dml": {"temperature": 1.0, "ce_weight": 1.0, "kd_weight": 1.0}}

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        temperature: float = 4.0,
        ce_weight: float = 0.1,
        kd_weight: float = 0.9,
    ) -> None:
        super().__init__()
        checks.positive(temperature=temperature, kd_weight=kd_weight)
        checks.not_negative(ce_weight=ce_weight)
        self.student, self.teacher = student, Frozen(teacher)
        self.temperature, self.ce_weight, self.kd_weight = temperature, ce_weight, kd_weight

    def forward(self, batch: Batch, progress: Progress = Progress()) -> Output:
        """`ce`: the student learns from the labels. `distil`: from the teacher."""
        x = batch.inputs[0]
        logits, target = call(self.student, x), self.teacher(x)  # [B, C]
        checks.same_classes(target, logits)
        terms = {}
        if self.ce_weight:
            terms["ce"] = self.ce_weight * losses.ce(logits, batch.labels, self.smoothing).mean()
        terms["distil"] = self.kd_weight * losses.kl(logits, target, self.temperature).mean()
        return Output(terms, logits.detach()[None])

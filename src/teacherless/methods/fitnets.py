"""FitNets: a teacher's middle layer is a hint for the student's lower half; then the teacher's predictions.

What:
    Two trainings after each other. First the student's lower half learns to predict, through a small regressor, the
    feature map of a stage of the teacher. Then the whole student learns from labels and teacher, the teacher's weight
    falling as it goes. Whose prediction is the soft target? A frozen teacher's, features first.

Formula:
    phase "hint": L = hint_weight mean (u(x) - r(v(x)))²,  u the teacher's stage `hint`, v the student's stage `guided`,
                  r the regressor
    phase "kd":   L = CE(z, y) + λ(t) T² KL(p_t^T ‖ p^T),  λ linear in the epoch, from kd_weight_start in the first
                  epoch to kd_weight_end in the last
    one_stage:    L = CE(z, y) + hint_weight mean (u(x) - r(v(x)))², one training

Paper:
    Romero, Ballas, Kahou, Chassang, Gatta, Bengio: FitNets: Hints for Thin Deep Nets, ICLR 2015 (arXiv:1412.6550),
    section 2.

Defaults:
    temperature 3, kd_weight_start 4, kd_weight_end 1 and hint_weight 1/2 are the paper's. guided -2 and hint -2, the
    last stage but one, so the middle one of three: the paper takes middle layers. regressor "linear".

Where we differ from the paper, and from the authors' code:
    The hint's squared error is divided by the number of entries, so that one learning rate fits maps of any size. T² is
    paid back, as everywhere here. The regressor is a 1x1 convolution, which is the paper's where both maps have one
    size (the smallest kernel that makes them fit); otherwise the larger map is averaged down. It is "linear", because a
    stage need not end in a rectifier; "relu" adds batch norm and ReLU.
    One call of `train` runs both phases, each with an optimizer, rates and epochs of its own. During "hint" the upper
    half is run for the accuracy that is logged: its weights do not move, its batch-norm statistics do.
    Variant `one-stage` reproduces distillers/FitNet.py with ConvReg of megvii-research/mdistiller for maps of one size:
    both losses at once, weights 1 and 100, and the "relu" regressor; no KD.

Ships: `student`, the network itself. The regressor and the teacher stay behind.

Cost:
    hint: one forward of the student, one backward of its lower half, the teacher's lower half forwards. kd: as KD.
    With one_stage, as KD with half the teacher. Before that, a trained teacher.

Results: In points of accuracy, of the studies in results/ (docs/learnt.md).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from teacherless import losses
from teacherless.batch import Input
from teacherless.method import Batch, Method, Output, Progress, Variants
from teacherless.methods import _checks as checks
from teacherless.methods._parts import Frozen, resize
from teacherless.models.staged import Insides


class FitNets(Method):
    """Hints from a teacher's stage, then its predictions.

    Args:
        student: a network with stages.
        teacher: a trained network with stages, of the same classes; copied, only read.
        guided: the student's stage that learns from the hint; negative counts from the end.
        hint: the teacher's stage that gives it.
        regressor: from the student's channels to the teacher's: "linear" (a 1x1 convolution) or "relu".
        hint_weight: of the mean squared error between the maps.
        temperature: softens both sides of the distillation, paid back by its square.
        kd_weight_start: λ in the first epoch.
        kd_weight_end: λ in the last epoch.
        one_stage: labels and hint at once, in one training, without distillation.

    Raises: InputError for networks without stages, stages that are not there, numbers out of range, options that have
        no effect, and at the first step of "kd" for a teacher of other classes.
    """

    student: Insides
    teacher_use = "required"
    phases: tuple[str, ...] = ("hint", "kd")
    variants: ClassVar[Variants] = {"one-stage": {"one_stage": True, "hint_weight": 100.0, "regressor": "relu"}}

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        guided: int = -2,
        hint: int = -2,
        regressor: Literal["linear", "relu"] = "linear",
        hint_weight: float = 0.5,
        temperature: float = 3.0,
        kd_weight_start: float = 4.0,
        kd_weight_end: float = 1.0,
        one_stage: bool = False,
    ) -> None:
        super().__init__()
        student, teacher = checks.staged("fitnets", student), checks.staged("fitnets", teacher, "teacher")
        self.guided = checks.stage_index(student, guided=guided)
        self.hint = checks.stage_index(teacher, "teacher", hint=hint)
        checks.choices(FitNets, regressor=regressor)
        checks.positive(hint_weight=hint_weight, temperature=temperature)
        checks.not_negative(kd_weight_start=kd_weight_start, kd_weight_end=kd_weight_end)
        if one_stage:
            weights = {"kd_weight_start": kd_weight_start, "kd_weight_end": kd_weight_end}
            checks.no_effect(FitNets, "one_stage", temperature=temperature, **weights)
            self.phases = ("",)
        self.needs_progress = not one_stage and kd_weight_start != kd_weight_end
        self.student, self.teacher = student, Frozen(teacher)
        conv = nn.Conv2d(student.channels[self.guided], teacher.channels[self.hint], 1)
        relu = [nn.BatchNorm2d(conv.out_channels), nn.ReLU()]
        self.regressor = conv if regressor == "linear" else nn.Sequential(conv, *relu)
        self.hint_weight, self.temperature = hint_weight, temperature
        self.kd_weight_start, self.kd_weight_end, self.one_stage = kd_weight_start, kd_weight_end, one_stage

    def forward(self, batch: Batch, progress: Progress = Progress()) -> Output:
        """`hint`: the lower half learns from the teacher's stage. Then `ce`: labels, `distil`: predictions."""
        x = batch.inputs[0]
        maps, _, logits = self.student.look(x)
        terms = {}
        if self.phase != "kd":
            terms["hint"] = self.hint_weight * self._miss(maps[self.guided], x).mean()
        if self.phase != "hint":
            terms["ce"] = losses.ce(logits, batch.labels, self.smoothing).mean()
        if self.phase == "kd":
            target = self.teacher(x)
            checks.same_classes(target, logits)
            kl = losses.kl(logits, target, self.temperature)  # [B]
            done = progress.epoch.to(kl.dtype) / (progress.epochs - 1).clamp(min=1)
            weight = self.kd_weight_start + (self.kd_weight_end - self.kd_weight_start) * done  # λ, a 0-d tensor
            terms["distil"] = (weight * kl).mean()
        return Output(terms, logits.detach()[None])

    def _miss(self, guided: Tensor, x: Input) -> Tensor:
        """How far the regressed map is from the hint, per sample. `[B, C, H, W] -> [B]`."""
        with torch.no_grad():
            hint: Tensor = self.teacher.at(x).reach(x, self.hint)
        guess = self.regressor(guided)
        height, width = (min(a, b) for a, b in zip(guess.shape[-2:], hint.shape[-2:], strict=True))
        return losses.mse(resize(guess, height, width), resize(hint, height, width))

    def param_groups(self) -> list[dict[str, Any]]:
        """What this phase trains: the lower half and the regressor, then the student."""
        lower = [*self.student.lower(self.guided), *self.regressor.parameters()]
        phase = {"hint": lower, "kd": list(self.student.parameters()), "": list(self.parameters())}
        return [{"name": "student", "params": phase[self.phase]}]

"""DDGSD: one network agrees with itself under distortion.

What:
    Data-Distortion Guided Self-Distillation. Each image is distorted twice, both views go through the network in one
    batch, and each learns from the labels and from the other. Whose prediction is the soft target? My other view's.

Formula:
    L = CE(z_a, y) + CE(z_b, y) + kl_weight T² (KL(p_b ‖ p_a) + KL(p_a ‖ p_b))
        + mmd_weight ‖ mean_i h(x_a,i) - mean_i h(x_b,i) ‖²,   h the features that the head reads
    With V views (ours), p_v learns from each of the others: Σ_v CE_v + kl_weight T² Σ_v 1/(V-1) Σ_{l≠v} KL(p_l ‖ p_v),
    which has the gradient of learning from the mean of the others; and MMD sums over pairs of views.

Paper:
    Xu, Liu: Data-Distortion Guided Self-Distillation for Deep Neural Networks, AAAI 2019, the equations of the total
    loss and of MMD_emp.

Defaults:
    views 2; kl_weight 1 and mmd_weight 5e-4 from the paper (it gives 1e-4 to 5e-4, not which network gets which).
    Ours, where the paper is silent: temperature 1, and detach True: the other view is a constant. With detach False
    each view is also moved as a target. joint True: one forward of all views, batch statistics shared, the paper's.
    Its ablation rows: mmd_weight 0 (which needs no stages: any network will do), kl_weight 0, or both.
    match "features" and class_mean False are the paper's; see the variant for "logits" and True.

Where we differ from the paper, and from the authors' code:
    No code of the authors was found. MMD is the squared distance of two mean *vectors*, summed over features. Neither
    of the two ports found computes that: one takes the difference of two scalar means, about zero, one compares logits.
    As in the paper it is the biased estimate, so what is logged is mostly sampling noise at small batches: once 0.126
    for B = 12, where the unbiased one (`losses.mmd(a, b, unbiased=True)`) was 0.022.
    Variant `mse-logits` reproduces src/trainer.py with src/utils.py of youngerous/ddgsd-pytorch: the squared difference
    of each sample's logits, averaged over classes; KL averaged over classes instead of summed, so C times smaller;
    T = 3 without T²; no detach; one forward for each view. (Its views, flip only and crop only, are the data's affair.)

Ships: `student`, the network itself.
Cost: V forwards and backwards of one network per batch (two, unless views says more). No extra parameters.
Results: In points of accuracy, of the studies in results/ (docs/learnt.md).
"""

from __future__ import annotations

from itertools import combinations
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from teacherless import losses
from teacherless.batch import Input, joined
from teacherless.errors import InputError
from teacherless.method import Batch, Method, Output, Progress, Variants, Wants
from teacherless.methods import _checks as checks
from teacherless.models.staged import Insides
from teacherless.network import call


class DDGSD(Method):
    """One network, several distortions of each image, agreement between them.

    Args:
        student: a network that maps a tensor to logits `[B, C]`; one with stages unless mmd_weight is 0.
        views: V, distortions of each image, at least 2.
        kl_weight: of the KL divergences between views; 0 leaves them out.
        mmd_weight: of the distance between views; 0 leaves it out.
        temperature: softens both sides of the KL, paid back by its square (not with class_mean).
        detach: the other view is a constant.
        match: what the distance compares: "features" (MMD), or "logits", per sample.
        joint: one forward of all views together; False: one for each.
        class_mean: average the KL over classes and forget T².

    Raises: InputError for fewer than two views, numbers out of range, options that have no effect, and features of a
        network without stages.
    """

    variants: ClassVar[Variants] = {
        "mse-logits": {"temperature": 3.0, "detach": False, "match": "logits", "joint": False, "class_mean": True}
    }

    def __init__(
        self,
        student: nn.Module,
        *,
        views: int = 2,
        kl_weight: float = 1.0,
        mmd_weight: float = 5e-4,
        temperature: float = 1.0,
        detach: bool = True,
        match: Literal["features", "logits"] = "features",
        joint: bool = True,
        class_mean: bool = False,
    ) -> None:
        super().__init__()
        checks.positive(temperature=temperature)
        checks.not_negative(kl_weight=kl_weight, mmd_weight=mmd_weight)
        checks.choices(DDGSD, match=match)
        if views < 2:
            raise InputError(f"views: found {views}; must be at least 2, to have something to agree on")
        if not kl_weight:
            checks.no_effect(DDGSD, "kl_weight=0", temperature=temperature, detach=detach, class_mean=class_mean)
        if not mmd_weight:
            checks.no_effect(DDGSD, "mmd_weight=0", match=match)
        elif match == "features" and not isinstance(student, Insides):
            needs = f"MMD needs a student with stages, to read its features, and found {type(student).__name__}"
            hint = "wrap it in teacherless.adapt(net), or leave the term out: mmd_weight=0"
            raise InputError(f"ddgsd: {needs}; {hint}")
        self.student = student
        self.kl_weight, self.mmd_weight, self.temperature = kl_weight, mmd_weight, temperature
        self.detach, self.match, self.joint, self.class_mean = detach, match, joint, class_mean
        self.wants = Wants(views=views)

    def forward(self, batch: Batch, progress: Progress = Progress()) -> Output:
        """`ce`: each view learns from the labels. `kl`: from the other views. `mmd` (or `mse`): both move closer."""
        count = self.wants.views
        x = [joined(batch.inputs)] if self.joint else batch.inputs
        parts = [self._predict(part) for part in x]  # of [V·B, C] and [V·B, D], or V of [B, C] and [B, D]
        z = torch.cat([logits for logits, _ in parts]).reshape(count, len(batch.labels), -1)  # [V, B, C]
        terms = {"ce": losses.ce(z, batch.labels, self.smoothing).mean(1).sum()}
        if self.kl_weight:
            target = z.detach() if self.detach else z
            pairs = losses.kl(z[:, None], target[None], self.temperature)  # [V, V, B]: row learns from column
            if self.class_mean:
                pairs = pairs / (z.shape[-1] * self.temperature**2)
            terms["kl"] = self.kl_weight * (pairs.mean(2).sum() / (count - 1))  # the diagonal is 0
        if self.mmd_weight and self.match == "features":
            h = torch.cat([features for _, features in parts]).reshape(count, len(batch.labels), -1)  # [V, B, D]
            own = h.detach().mean(1)  # [V, D]
            h = h + (self.whole_batch(own[None]).mean(0) - own)[:, None]  # a batch in parts has one mean
            terms["mmd"] = self.mmd_weight * torch.stack([losses.mmd(a, b) for a, b in combinations(h, 2)]).sum()
        elif self.mmd_weight:
            terms["mse"] = self.mmd_weight * torch.stack([losses.mse(a, b).mean() for a, b in combinations(z, 2)]).sum()
        return Output(terms, z[:1].detach())

    def _predict(self, x: Input) -> tuple[Tensor, Tensor]:
        """Logits and, where features are compared, what the head read."""
        if self.mmd_weight and self.match == "features":
            assert isinstance(self.student, Insides)
            _, features, logits = self.student.look(x)
            return logits, features
        logits = call(self.student, x)
        return logits, logits

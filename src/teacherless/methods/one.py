"""ONE: one network with several branches; their gated ensemble teaches each of them.

What:
    On-the-fly Native Ensemble. The lower stages are shared; the upper ones and the head exist several times. A gate
    that reads the shared features mixes the branches' logits, per sample, into an ensemble that learns from the labels.
    Whose prediction is the soft target? The gated ensemble's.

Formula:
    z_e = Σ_i g_i z_i,  g = softmax over branches of the gate
    L = Σ_i CE(z_i, y) + CE(z_e, y) + w(t) kl_weight T² Σ_i KL(p_e^T ‖ p_i^T),  p_e constant
    w(t) = exp(-5 (1 - t / ramp_epochs)²) up to epoch ramp_epochs, 1 after it and where there is no ramp
    So the gate learns from CE(z_e, y) only.

Paper: Lan, Zhu, Gong: Knowledge Distillation by On-the-Fly Native Ensemble, NeurIPS 2018 (arXiv:1806.04606), section 3.

Defaults:
    branches 3, temperature 3, and split -1 (branches start at the last stage) are the paper's. kl_weight 1.
    ramp_epochs 0: no ramp, as in the paper's loss; the variant `ramp` has the 80 epochs of the authors' code.
    New branches are freshly initialised; with copy_init (the default for a pretrained student) they copy its stages,
    and only their heads are new, because equal branches would stay equal. Which stages the paper's wider networks split
    at is not known; split takes any.
    The rows of the paper's component table: distil False (no distillation), share False (no sharing), gate False (the
    ensemble is the mean of the logits).

Where we differ from the paper, and from the authors' code:
    The paper does not say that the target is constant; the authors' code detaches it, and so do we. Their code adds
    1e-7 to the target and ramps by default; we do neither. The gate is theirs (pool, linear, batch norm, ReLU,
    softmax), but for the linear layer's bias, which a batch norm would remove. With share False there are no shared
    features: the gate reads those of the first network at the same stage. One branch (branches 1, from Python only) is
    plain training: no gate, no ensemble, nothing to distil.
    Variant `ramp` reproduces cifar_one.py with utils/ramps.py of Lan1991Xu/ONE_NeurIPS2018, up to that 1e-7.

Ships:
    `branch0` … `branch{m-1}`, each a plain network with its own copy of the shared stages; `branch0` is the paper's
    ONE. The ensemble is ONE-E, the gated logits of all branches.

Cost:
    The shared stages once, the rest m times: for a CIFAR ResNet with three branches about 1.7 forwards (2.28 against
    1.38 · 10⁸ FLOPs for ResNet-32) and 2.5 times its weights.

Results: In points of accuracy, of the studies in results/ (docs/learnt.md).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from teacherless import losses
from teacherless.batch import Input
from teacherless.errors import InputError
from teacherless.method import Batch, Method, Output, Progress, Variants
from teacherless.methods import _checks as checks
from teacherless.methods._parts import Predictor, ramp
from teacherless.models.staged import Insides


class ONE(Method):
    """Branches on a shared trunk, taught by their gated ensemble.

    Args:
        student: a network with stages; it becomes branch 0.
        branches: m, at least 1; 1 is plain training.
        split: the stage where branches start, at least one after the first; negative counts from the end.
        temperature: softens both sides of the distillation, paid back by its square.
        kl_weight: of the distillation.
        distil: False: branches learn from labels only.
        share: False: m whole networks.
        gate: False: the ensemble is the mean of the branches' logits.
        ramp_epochs: epochs over which the distillation's weight grows; 0 for none.
        copy_init: new branches copy the student's stages instead of starting afresh (default: if it is pretrained).

    Raises: InputError for a student without stages, a split that shares nothing, numbers out of range, and options that
        have no effect.
    """

    variants: ClassVar[Variants] = {"ramp": {"ramp_epochs": 80}}

    def __init__(
        self,
        student: nn.Module,
        *,
        branches: Annotated[int, Field(ge=2)] = 3,
        split: int = -1,
        temperature: float = 3.0,
        kl_weight: float = 1.0,
        distil: bool = True,
        share: bool = True,
        gate: bool = True,
        ramp_epochs: int = 0,
        copy_init: bool | None = None,
    ) -> None:
        super().__init__()
        student = checks.staged("one", student, at_least=2, maps=False)
        checks.positive(branches=branches, temperature=temperature, kl_weight=kl_weight)
        checks.not_negative(ramp_epochs=ramp_epochs)
        if not distil:
            numbers = {"temperature": temperature, "kl_weight": kl_weight, "ramp_epochs": ramp_epochs}
            checks.no_effect(ONE, "distil=False", **numbers)
        start = checks.stage_index(student, split=split)
        if start == 0:
            raise InputError(f"split: found {split}; branches must start after the first stage (or set share=False)")
        self.temperature, self.kl_weight, self.distil, self.ramp_epochs = temperature, kl_weight, distil, ramp_epochs
        copied = student.pretrained if copy_init is None else copy_init
        others = [student.new_branch(start if share else 0, copy_init=copied) for _ in range(branches - 1)]
        nets: list[Insides] = [student, *others]
        self.trunks = nn.ModuleList(net.trunk(start) for net in (nets[:1] if share else nets))
        self.branches = nn.ModuleList(net.branch(start) for net in nets)
        self.gate: nn.Module | None = None  # the split's map -> [B, m], before the softmax
        if gate and branches > 1:
            linear = nn.Linear(student.channels[start - 1], branches, bias=False)
            self.gate = nn.Sequential(Mean(), nn.Flatten(), linear, nn.BatchNorm1d(branches), nn.ReLU())
        self.needs_progress = distil and ramp_epochs > 0
        self.nets = tuple(nets)  # views of the trunks and branches as plain networks; a tuple, so not registered twice

    def forward(self, batch: Batch, progress: Progress = Progress()) -> Output:
        """`ce`, `ce_ensemble`: branches and ensemble learn from the labels. `distil`: branches from the ensemble."""
        each, mixed = self.predict(batch.inputs[0])  # [m, B, C], [B, C]
        terms = {"ce": losses.ce(each, batch.labels, self.smoothing).mean(1).sum()}
        if len(each) > 1:
            terms["ce_ensemble"] = losses.ce(mixed, batch.labels, self.smoothing).mean()
        if len(each) > 1 and self.distil:
            kl = losses.kl(each, mixed.detach(), self.temperature)  # [m, B]
            terms["distil"] = self.kl_weight * (ramp(progress, self.ramp_epochs, kl.dtype) * kl).mean(1).sum()
        return Output(terms, each.detach())

    def predict(self, x: Input) -> tuple[Tensor, Tensor]:
        """Logits of each branch and of the ensemble. `[B, ...] -> [m, B, C], [B, C]`."""
        maps = [trunk(x) for trunk in self.trunks]  # of the one trunk, or of m
        shared = maps * (len(self.branches) // len(maps))
        each = torch.stack([losses.full(branch(f)) for branch, f in zip(self.branches, shared, strict=True)])
        if self.gate is None:
            return each, each.mean(0)
        # Multiplied and summed, not a matrix product: autocast would compute that in half precision.
        weights = losses.full(self.gate(self.nets[0].split_map(maps[0]))).softmax(1)  # [B, m]
        return each, (weights.t().unsqueeze(-1) * each).sum(0)

    def students(self) -> dict[str, nn.Module]:
        """The branches, each over the shared trunk."""
        return {f"branch{i}": net for i, net in enumerate(self.nets)}

    def ensemble(self) -> nn.Module | None:
        """ONE-E: the gated logits."""
        return Predictor(self, self._gated) if len(self.branches) > 1 else None

    def _gated(self, x: Input) -> Tensor:
        """Σ_i g_i z_i. `[B, ...] -> [B, C]`."""
        return self.predict(x)[1]

    def train(self, mode: bool = True) -> Self:
        """As every module; the students, which are views and not registered, follow."""
        for net in self.nets:
            net.train(mode)
        return super().train(mode)


class Mean(nn.Module):
    """The mean over places. `[B, C, H, W] -> [B, C, 1, 1]`; tokens `[B, N, C]` and vectors `[B, C]` -> `[B, C]`."""

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        if x.dim() == 4:
            return F.adaptive_avg_pool2d(x, 1)
        return x.mean(1) if x.dim() == 3 else x

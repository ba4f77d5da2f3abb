"""PCL: branches that see distortions of their own learn from one classifier over them all, and from each other's past.

What:
    Peer Collaborative Learning. The lower stages are shared; the upper ones and the head exist several times, and each
    such peer sees its own distortion of an image. One more classifier reads what all the peers' heads read: it is the
    ensemble. Each peer has a copy whose weights are the moving average of its own. Whose prediction is the soft target?
    The ensemble's, and my peers' averaged selves'.

Formula:
    z_e = W [h_1(x_1), …, h_m(x_m)] + b,  x_i distortion i of the image, h_i what the head of peer i reads
    L = Σ_i CE(z_i, y) + CE(z_e, y)
        + w(t) T² Σ_i (kl_weight KL(p_e^T ‖ p_i^T) + mean_weight 1/(m-1) Σ_{l≠i} KL(p̄_l^T ‖ p_i^T))
    p_e and p̄ constant; p̄_l of x_l by averaged weights, θ̄ ← d θ̄ + (1 - d) θ after every step,  d as on mean-teacher's
    card; w(t) = exp(-5 (1 - t / ramp_epochs)²) up to epoch ramp_epochs, 1 after it and where there is no ramp

Paper:
    Wu, Gong: Peer Collaborative Learning for Online Knowledge Distillation, AAAI 2021 (arXiv:2006.04147), section 3.

Defaults:
    branches 3, temperature 3, decay 0.999, ramp_epochs 80, kl_weight and mean_weight 1: as in the reproduction named
    below, which follows the paper; the paper itself was read only in part. In a run of fewer epochs than the ramp,
    targets never weigh all they should. split -1 (branches start at the last stage) and copy_init as on ONE's card.

Where we differ from the paper, and from the authors' code:
    No code of the authors was found, and a reproduction was read: Peer-Collaborative-Learning-for-Online-Knowledge-
    Distillation of shaoeric. There averaged peers see their own peer's distortion, in training mode; so do ours. Its
    decay begins as 1 - 1/n; ours as written. Its ramp divides the epoch by the weight, not by 80: 0.0067 at epoch 0, 1
    at epoch 1, then e^-5 and less up to epoch 80. It ships the averaged peers, picked by their test accuracy; here
    `--ema` ships averages, of any method. What the ensemble sees at a test is not known; ours sees the image once.

Ships:
    `branch0` … `branch{m-1}`, each a plain network with its own copy of the shared stages. The ensemble is the
    classifier over all of them, PCL-E.

Cost:
    m forwards and backwards and m forwards more per batch: the trunk is shared, but every peer's image is another. The
    network's branches, and all of it once more for the averages.

Results: In points of accuracy, of the studies in results/ (docs/learnt.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from teacherless import losses
from teacherless.batch import Input
from teacherless.errors import InputError
from teacherless.method import Batch, Method, Output, Progress, Wants
from teacherless.methods import _checks as checks
from teacherless.methods._parts import Predictor, ramp, still
from teacherless.methods.mean_teacher import follow
from teacherless.methods.one import ONE
from teacherless.network import call


class PCL(Method):
    """Branches on a shared trunk, taught by a classifier over all of them and by the moving averages of the others.

    Args:
        student: a network with stages; it becomes branch 0.
        num_classes: C.
        branches: m, at least 2.
        split: the stage where branches start, at least one after the first; negative counts from the end.
        temperature: T, of both sides of each KL.
        kl_weight: of what is learnt from the ensemble.
        mean_weight: of what is learnt from the others' averages.
        decay: of the averages, in [0, 1].
        ramp_epochs: epochs over which both weights rise; 0 for none.
        copy_init: new branches copy the student's stages instead of starting afresh (default: if it is pretrained).

    Raises: InputError for a student without stages, a split that shares nothing, and numbers out of range.
    """

    needs = ("num_classes",)

    def __init__(
        self,
        student: nn.Module,
        *,
        num_classes: int,
        branches: Annotated[int, Field(ge=2)] = 3,
        split: int = -1,
        temperature: float = 3.0,
        kl_weight: float = 1.0,
        mean_weight: float = 1.0,
        decay: float = 0.999,
        ramp_epochs: int = 80,
        copy_init: bool | None = None,
    ) -> None:
        super().__init__()
        checks.positive(num_classes=num_classes, temperature=temperature, kl_weight=kl_weight, mean_weight=mean_weight)
        checks.not_negative(ramp_epochs=ramp_epochs)
        checks.share(decay=decay)
        if branches < 2:
            raise InputError(f"branches: found {branches}; must be at least 2, for somebody to learn from")
        checks.staged("pcl", student, at_least=2, maps=False)
        self.branched = ONE(student, branches=branches, split=split, gate=False, copy_init=copy_init)
        self.averages = still(self.branched)
        self.classifier = nn.Linear(sum(net.dim for net in self.branched.nets), num_classes)
        self.temperature, self.kl_weight, self.mean_weight = temperature, kl_weight, mean_weight
        self.decay, self.ramp_epochs, self.needs_progress = decay, ramp_epochs, ramp_epochs > 0
        self.wants = Wants(views=branches)

    def forward(self, batch: Batch, progress: Progress = Progress()) -> Output:
        """`ce`, `ce_ensemble`: peers and ensemble learn from the labels. `distil`, `mean`: peers from the ensemble, and
        from the others' averages, which move first."""
        each, together = self.predict(batch.inputs)  # [m, B, C], [B, C]
        with torch.no_grad():
            if self.training:
                follow(self.averages, self.branched, self.decay, progress.step)
            means = [call(net, x) for net, x in zip(self.averages.nets, batch.inputs, strict=True)]
        others = [torch.stack(means[:i] + means[i + 1 :]) for i in range(len(means))]  # [m-1, B, C] each
        rise = ramp(progress, self.ramp_epochs, each.dtype)
        mean = [losses.kl(z, theirs, self.temperature).mean() for z, theirs in zip(each, others, strict=True)]
        terms = {
            "ce": losses.ce(each, batch.labels, self.smoothing).mean(1).sum(),
            "ce_ensemble": losses.ce(together, batch.labels, self.smoothing).mean(),
            "distil": self.kl_weight * rise * losses.kl(each, together.detach(), self.temperature).mean(1).sum(),
            "mean": self.mean_weight * rise * torch.stack(mean).sum(),
        }
        return Output(terms, each.detach())

    def predict(self, inputs: Sequence[Input]) -> tuple[Tensor, Tensor]:
        """Logits of each peer, of its own input, and of the ensemble. `m of [B, ...] -> [m, B, C], [B, C]`."""
        looks = [net.look(x) for net, x in zip(self.branched.nets, inputs, strict=True)]
        together = self.classifier(torch.cat([look.embedding for look in looks], 1))
        return torch.stack([losses.full(look.logits) for look in looks]), losses.full(together)

    def students(self) -> dict[str, nn.Module]:
        """The peers, each over the shared trunk."""
        return self.branched.students()

    def ensemble(self) -> nn.Module:
        """PCL-E: the classifier over all peers."""
        return Predictor(self, self._together)

    def _together(self, x: Input) -> Tensor:
        """z_e where all peers see one image. `[B, ...] -> [B, C]`."""
        return self.predict([x] * self.wants.views)[1]

"""cosub: two submodels of one network, drawn for the same image, teach each other.

What:
    Submodel co-training. Stochastic depth leaves out other layers each time, so that two forwards of an image are by
    two submodels of the network; each learns from the label and from the other. Whose prediction is the soft target? My
    other submodel's, a constant.

Formula: L = (1 - weight)/2 Σ_i CE(z_i, y) + weight/2 Σ_i CE(z_i, p_j),  j the other of the two, p_j constant

Paper:
    Touvron, Cord, Oquab, Bojanowski, Verbeek, Jégou: Co-training 2^L Submodels for Visual Recognition, CVPR 2023
    (arXiv:2212.04884), section 3.

Defaults:
    weight 0.5, that of the authors' code (four terms of a quarter each). loss "ce", softmax cross-entropy, the
    paper's. dropout 0.1 (ours): the draw of a network that has none itself, on what its head reads. With timm's ViTs,
    Swins and ConvNeXts say drop_path_rate=0.1 (more for larger ones), and only that draws.

Where we differ from the paper, and from the authors' code:
    As in both, the two forwards are one batch of twice the size. The paper's faster stochastic depth, which computes
    only the images that keep a layer, is the network's affair, and timm's masks instead.
    Variant `released` reproduces engine.py of facebookresearch/deit: a sigmoid for each class (loss "bce"), averaged
    over classes, and the other's sigmoids as target. Run beside it on the same logits (64 x 100, float64): 2e-16
    of the value apart.

Ships: `student`, the network itself, all layers.
Cost: Two forwards and two backwards of one network per batch. No extra parameters.
Results: In points of accuracy, of the studies in results/ (docs/learnt.md).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import nn

from teacherless import losses
from teacherless.errors import InputError
from teacherless.method import Batch, Output, Progress, Variants
from teacherless.methods import _checks as checks
from teacherless.methods.r_drop import RDrop


class Cosub(RDrop):
    """One network, two submodels of it for each image.

    Args:
        student: a network that maps a tensor to logits `[B, C]` and draws random numbers in training, or one of ours.
        weight: share of what is learnt from the other submodel, in (0, 1).
        loss: "ce" over a softmax, or "bce", a sigmoid for each class.
        dropout: of what the head reads, where the student itself draws nothing.

    Raises: InputError for numbers out of range, and for a network whose two predictions would be equal.
    """

    variants: ClassVar[Variants] = {"released": {"loss": "bce"}}

    def __init__(
        self, student: nn.Module, *, weight: float = 0.5, loss: Literal["ce", "bce"] = "ce", dropout: float = 0.1
    ) -> None:
        super().__init__(student, dropout=dropout)
        if not 0 < weight < 1:
            raise InputError(f"weight: found {weight}; must be above 0 and below 1")
        checks.choices(Cosub, loss=loss)
        self.weight, self.loss = weight, loss

    def forward(self, batch: Batch, progress: Progress = Progress()) -> Output:
        """`ce`: both submodels learn from the labels. `soft`: each from the other."""
        z = losses.full(self.draws(batch.inputs[0]))  # [2, B, C]
        others = z.detach().flip(0)
        if self.loss == "ce":
            hard = losses.ce(z, batch.labels, self.smoothing)
            soft = losses.soft_ce(z, losses.log_probs(others).exp())
        else:
            ids = batch.labels
            labels = ids if ids.dim() == 2 else torch.zeros_like(others[0]).scatter(1, ids[:, None], 1)
            whole = labels.sum(-1, keepdim=True)  # 1, or the weight of the classes
            smooth = (1 - self.smoothing) * labels + self.smoothing * whole / z.shape[-1]
            hard = losses.bce(z, smooth, whole) / z.shape[-1]
            soft = losses.bce(z, others.sigmoid()) / z.shape[-1]
        return Output({"ce": (1 - self.weight) * hard.mean(), "soft": self.weight * soft.mean()}, z[:1].detach())

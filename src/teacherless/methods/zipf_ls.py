"""Zipf-LS: one network, whose wrong classes are to fall off as Zipf's law says, in the order that its own map votes.

What:
    Zipf's label smoothing. The head reads every place of the last map, each place votes for a class, and the wrong
    classes are ranked by their votes; the target of the wrong classes falls with the rank. Whose prediction is the soft
    target? My own map's, as a ranking; how steeply it falls is Zipf's law.

Formula:
    L = CE(z, y) + weight · KL(q ‖ p̃),  p̃ the softmax over all classes but y
    q_c ∝ 1 / rank_c^power, c ≠ y;  rank_c = 1 + how many classes, y too, have more votes than c;  q constant

Paper:
    Liang, Li, Bi, Zhao, Li, Wang: Efficient One Pass Self-distillation with Zipf's Label Smoothing, ECCV 2022
    (arXiv:2207.12980), section 3.

Defaults:
    weight 0.1, power 1 and upsample 2, those of the authors' code for CIFAR-100 (weight 1 for Tiny-ImageNet). The map
    is enlarged that many times, bilinearly, before it votes. dense True; False ranks by the logits themselves.

Where we differ from the paper, and from the authors' code:
    Ties, and that y counts in the ranks, are as in pytorch_zipfls/losses.py of megvii-research/zipfls, the paper's own
    code; run beside it on the same logits and votes (64 x 100, float64): 1e-10 of the value apart, since its target is
    float32. That code can also train exits of earlier stages (deeplayer), which its commands do not ask for.
    Of mixed images (ours), y is the class with the largest share. A map whose channels are not what the head reads is
    refused; where a network has more than a mean between map and head, places skip that.

Ships: `student`, the network itself.
Cost: As plain, and the head once more for every place of the map, without gradients.
Results: In points of accuracy, of the studies in results/ (docs/learnt.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teacherless import losses
from teacherless.errors import InputError
from teacherless.method import Batch, Method, Output, Progress
from teacherless.methods import _checks as checks
from teacherless.models.staged import Insides


class ZipfLS(Method):
    """One network and the ranking that its last map votes for.

    Args:
        student: a convolutional network with stages.
        weight: of the divergence over the wrong classes.
        power: how steeply the target falls with the rank.
        upsample: how many times the map is enlarged before it votes.
        dense: places of the map vote; False: the logits rank.

    Raises: InputError for a student without stages, one whose head does not read its last map's channels, and for
        numbers out of range.
    """

    student: Insides

    def __init__(
        self, student: nn.Module, *, weight: float = 0.1, power: float = 1.0, upsample: int = 2, dense: bool = True
    ) -> None:
        super().__init__()
        net = checks.staged("zipf-ls", student)
        checks.positive(weight=weight, power=power, upsample=upsample)
        if not dense:
            checks.no_effect(ZipfLS, "dense=False", upsample=upsample)
        linear = [layer for layer in student.modules() if isinstance(layer, nn.Linear)]
        if not linear or linear[-1].in_features != net.channels[-1]:
            reads = f"a head that reads {linear[-1].in_features}" if linear else "no linear head"
            raise InputError(f"zipf-ls: found {reads} and a last map of {net.channels[-1]} channels; must agree")
        self.student, self.weight, self.power, self.upsample, self.dense = net, weight, power, upsample, dense
        self._head = (linear[-1],)  # a tuple, so not registered twice

    def forward(self, batch: Batch, progress: Progress = Progress()) -> Output:
        """`ce`: the student learns from the labels. `zipf`: its wrong classes from the ranking."""
        maps, _, logits = self.student.look(batch.inputs[0])
        ce = losses.ce(logits, batch.labels, self.smoothing).mean()
        ids = losses.class_ids(batch.labels)[:, None]
        right = torch.zeros_like(logits, dtype=torch.bool).scatter(1, ids, True)
        scores = self.votes(maps[-1], logits.shape[-1]) if self.dense else logits.detach()
        fall = losses.full(rank(scores).to(logits.dtype)).pow(-self.power).masked_fill(right, 0)
        q = fall / fall.sum(-1, keepdim=True)
        log_p = losses.log_probs(logits.masked_fill(right, -torch.inf)).masked_fill(right, 0)
        kl = (torch.xlogy(q, q) - q * log_p).sum(-1)  # [B]
        return Output({"ce": ce, "zipf": self.weight * kl.mean()}, logits.detach()[None])

    @torch.no_grad()
    def votes(self, last: Tensor, classes: int) -> Tensor:
        """How many places of the last map are for each class. `[B, D, H, W] -> [B, C]`."""
        if self.upsample > 1:
            last = F.interpolate(last, scale_factor=float(self.upsample), mode="bilinear")
        chosen: Tensor = self._head[0](last.flatten(2).mT).argmax(-1)  # [B, H·W]
        return chosen.new_zeros(len(last), classes).scatter_add(1, chosen, torch.ones_like(chosen))


def rank(scores: Tensor) -> Tensor:
    """1 for the highest score; equal ones share the best rank any of them could have. `[B, C] -> [B, C]`."""
    ascending = scores.sort(-1).values
    return scores.shape[-1] - torch.searchsorted(ascending, scores.contiguous(), right=True) + 1

"""BYOT: a network with exits along its depth; the deepest teaches the others.

What:
    Be Your Own Teacher. Every stage but the last gets an exit: a few layers and a head of its own. All exits learn from
    the labels; the shallow ones also from the deepest, its predictions and its features. Whose prediction is the soft
    target? My deepest exit's.

Formula:
    deepest exit C: L_C = CE(z_C, y)
    each other i:   L_i = (1 - alpha) CE(z_i, y) + alpha T² KL(p_C^T ‖ p_i^T) + hint_weight mean (F_i - F_C)²
    L = L_C + Σ_i L_i,  p_C and F_C constant, F_i the exit's map after its layers, of the shape of F_C

Paper: Zhang, Song, Gao, Chen, Bao, Ma: Be Your Own Teacher, ICCV 2019 (arXiv:1905.08094), section 3.

Defaults:
    The paper gives no numbers; alpha 0.3, temperature 3 and hint_weight 0.03 are those of the authors' later code.
    distil "kl", hint "maps" and exits "bottleneck" are the paper's.

Where we differ from the paper, and from the authors' code:
    The hint is divided by the number of entries of the map. A bottleneck exit is a 1x1 convolution to a quarter of the
    last stage's channels, averaging down to the size of the deepest map, a 3x3 and a 1x1 convolution, then the pooling
    and a fresh copy of the student's head.
    Variant `released` reproduces train.py with resnet.py of ArchipLab-LinfengZhang/pytorch-self-distillation-final:
    the shallow exits learn by cross-entropy with the deepest one's softened prediction, without T² (distil "soft-ce");
    the hint is the plain, not squared, distance of two whole batches of pooled features, through a linear layer per
    exit, and skips the deepest of the shallow exits, where a comment there says the shallowest (hint "distance"); exits
    are stride-2 separable convolutions behind a sigmoid attention (exits "separable"). Its data recipe is not part of
    it. It averages the exits' logits for the ensemble, we their probabilities.

Ships: `student`, the deepest exit: the plain network. The ensemble is the mean probability of all exits.
Cost: One forward and backward of the student, and the exits, which are small.
Results: In points of accuracy, of the studies in results/ (docs/learnt.md).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teacherless import losses
from teacherless.batch import Input
from teacherless.method import Batch, Method, Output, Progress, Variants
from teacherless.methods import _checks as checks
from teacherless.methods._parts import Predictor, resize
from teacherless.models.layers import conv, conv_bn, conv_bn_relu
from teacherless.models.staged import Insides, fresh


class BYOT(Method):
    """A network that teaches its own shallow exits.

    Args:
        student: a network of two stages or more.
        alpha: of a shallow exit's loss, the share that comes from the deepest exit's prediction.
        temperature: softens both sides of the distillation, paid back by its square (not with "soft-ce").
        hint_weight: of the distance between features; 0 leaves it out.
        distil: "kl", or "soft-ce" (cross-entropy with the softened prediction, without T²).
        hint: "maps" (mean squared error), or "distance" (of pooled features, through a linear layer).
        exits: "bottleneck" or "separable".

    Raises: InputError for a student without stages, numbers out of range, and options that have no effect.
    """

    student: Insides
    variants: ClassVar[Variants] = {"released": {"distil": "soft-ce", "hint": "distance", "exits": "separable"}}

    def __init__(
        self,
        student: nn.Module,
        *,
        alpha: float = 0.3,
        temperature: float = 3.0,
        hint_weight: float = 0.03,
        distil: Literal["kl", "soft-ce"] = "kl",
        hint: Literal["maps", "distance"] = "maps",
        exits: Literal["bottleneck", "separable"] = "bottleneck",
    ) -> None:
        super().__init__()
        student = checks.staged("byot", student, at_least=2)
        checks.share(alpha=alpha)
        checks.positive(alpha=alpha, temperature=temperature)
        checks.not_negative(hint_weight=hint_weight)
        checks.choices(BYOT, distil=distil, hint=hint, exits=exits)
        if not hint_weight:
            checks.no_effect(BYOT, "hint_weight=0", hint=hint)
        self.student = student
        shallow = [Exit(student, i, exits) for i in range(len(student.channels) - 1)]
        self.exits = nn.ModuleList(shallow)
        adapted = len(shallow) - 1 if hint == "distance" else 0  # all but the deepest of the shallow exits
        self.adapters = nn.ModuleList(nn.Linear(exit.dim, student.dim) for exit in shallow[:adapted])
        self.alpha, self.temperature, self.hint_weight = alpha, temperature, hint_weight
        self.distil, self.hint = distil, hint

    def forward(self, batch: Batch, progress: Progress = Progress()) -> Output:
        """`ce`, `ce_exits`: all learn from the labels. `distil`, `hint`: the shallow exits from the deepest."""
        maps, embedding, logits = self.student.look(batch.inputs[0])
        features, embeddings, shallow = zip(*self._shallow(maps), strict=True)
        each = torch.stack([losses.full(z) for z in shallow])  # [E, B, C]
        terms = {
            "ce": losses.ce(logits, batch.labels, self.smoothing).mean(),
            "ce_exits": (1 - self.alpha) * losses.ce(each, batch.labels, self.smoothing).mean(1).sum(),
            "distil": self.alpha * self._distil(each, logits.detach()).mean(1).sum(),
        }
        if self.hint_weight and self.hint == "maps":
            misses = [losses.mse(f, maps[-1].detach()).mean() for f in features]
            terms["hint"] = self.hint_weight * torch.stack(misses).sum()
        elif self.hint_weight and self.adapters:
            goal = losses.full(embedding.detach())
            adapted = [adapt(e) for adapt, e in zip(self.adapters, embeddings[: len(self.adapters)], strict=True)]
            misses = [torch.dist(losses.full(e), goal) for e in adapted]
            terms["hint"] = self.hint_weight * torch.stack(misses).sum()
        return Output(terms, logits.detach()[None])

    def _shallow(self, maps: list[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Map, embedding and logits of every other exit."""
        height, width = maps[-1].shape[-2:]
        return [exit(f, height, width) for exit, f in zip(self.exits, maps[: len(self.exits)], strict=True)]

    def _distil(self, each: Tensor, target: Tensor) -> Tensor:
        if self.distil == "kl":
            return losses.kl(each, target, self.temperature)  # [E, B]
        return losses.soft_ce(each / self.temperature, losses.log_probs(target, self.temperature).exp())

    def ensemble(self) -> nn.Module:
        """The mean of all exits' probabilities."""
        return Predictor(self, self.mean_probability)

    def mean_probability(self, x: Input) -> Tensor:
        """log of the mean over all exits. `[B, ...] -> [B, C]`."""
        maps, _, logits = self.student.look(x)
        shallow = [z for _, _, z in self._shallow(maps)]
        each = torch.stack([losses.log_probs(z) for z in (*shallow, logits)])
        return each.logsumexp(0) - math.log(len(each))


class Exit(nn.Module):
    """From the map of stage i to a map like the deepest one, an embedding and logits."""

    def __init__(self, student: Insides, i: int, kind: str) -> None:
        super().__init__()
        widths = student.channels[i:]
        narrow = max(widths[-1] // 4, 1)
        if kind == "bottleneck":
            before: list[nn.Module] = conv_bn_relu(widths[0], narrow, kernel=1)
            after = [*conv_bn_relu(narrow, narrow, kernel=3), *conv_bn(narrow, widths[-1], kernel=1)]
        else:
            steps = (nn.Sequential(*separable(a, b)) for a, b in pairwise(widths))
            before, after = [Attention(widths[0]), *steps], []
        self.before, self.after = nn.Sequential(*before), nn.Sequential(*after)
        fresh(self)
        self.pool, self.head = student.exit()
        self.dim = int(getattr(self.head, "in_features", widths[-1]))

    def forward(self, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """`[B, C_i, H_i, W_i] -> [B, C, height, width], [B, dim], [B, classes]`."""
        feature = self.after(resize(self.before(x), height, width))
        embedding = self.pool(feature)
        return feature, embedding, self.head(embedding)


class Attention(nn.Module):
    """A map times a weight for each of its entries, from a coarser look at it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.look = nn.Sequential(*separable(channels, channels), nn.BatchNorm2d(channels), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W] -> [B, C, H, W]`."""
        weight = F.interpolate(self.look(x), x.shape[-2:], mode="bilinear", align_corners=False)
        return weight.sigmoid() * x


def separable(inputs: int, outputs: int) -> list[nn.Module]:
    """Two depthwise separable 3x3 convolutions, the first with stride 2."""
    return [
        conv(inputs, inputs, kernel=3, stride=2, groups=inputs),
        *conv_bn_relu(inputs, inputs, kernel=1),
        conv(inputs, inputs, kernel=3, groups=inputs),
        *conv_bn_relu(inputs, outputs, kernel=1),
    ]

"""FRSKD: a small net refines the network's own features; what it makes of them teaches the network.

What:
    Feature Refinement via Self-Knowledge Distillation. A pyramid on top of the network mixes the maps of all its
    stages, downwards and up again, and predicts the classes from the result: the self-teacher. The network learns from
    its predictions and from where its refined maps look. Whose prediction is the soft target? My refined self's.

Formula:
    L = CE(z, y) + CE(z_T, y) + kd_weight T² KL(p_T^T ‖ p^T) + attention_weight Σ_l mean (A(F_l) - A(T_l))²
    F_l the map of stage l, T_l its refined map, z_T the self-teacher's logits; p_T and T_l constant in the last two.
    A(F): the squares of a map, averaged over channels, scaled to unit length.

Paper:
    Ji, Shin, Hwang, Park, Moon: Refine Myself by Teaching Myself: Feature Refinement via Self-Knowledge Distillation,
    CVPR 2021 (arXiv:2103.08273), section 3.

Defaults:
    kd_weight 2, attention_weight 100 and temperature 4 are the authors' for CIFAR (MingiJi/FRSKD, classification).

Where we differ from the paper, and from the authors' code:
    The refiner is a bidirectional pyramid after theirs (models/bifpnc.py), once through: 1x1 convolutions, mixing with
    learned weights that are at least 0 and add up to 1, depthwise separable convolutions. Ours is light: as many
    channels as the stage has (width 1), one separable convolution after each mix (depth 1), one 1x1 per stage for both
    ways, not activated, and averages where a map shrinks. Variant `released` is theirs: width 2, depth 2, a second 1x1
    per stage for the way up, ReLU after every 1x1, maximum pooling. It is five times as large: 6,375,794 parameters for
    ResNet-18 (ours 1,193,010), 411,885 for WRN-16-2 (ours 84,685), at 100 classes.
    As there, the network's maps are not detached: the self-teacher's cross-entropy trains it too. Their WRN has one
    batch norm and ReLU per stage, before its map is read; ours is the WRN paper's, whose stages end before both.

Ships: `student`, the network itself; the refiner stays behind.

Cost:
    One forward and backward of the student and the refiner. The refiner grows with channels, not with depth: it adds
    5 % to the weights of a CIFAR ResNet-32, but 80 % to small-cnn, whose step takes about five times as long with it.
    Variant `released` costs several times more.

Results: In points of accuracy, of the studies in results/ (docs/learnt.md).
"""

from __future__ import annotations

from functools import partial, reduce
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teacherless import losses
from teacherless.errors import InputError
from teacherless.method import Batch, Method, Output, Progress, Variants
from teacherless.methods import _checks as checks
from teacherless.methods._parts import resize
from teacherless.models.layers import conv, conv_bn, conv_bn_relu
from teacherless.models.staged import Insides, fresh

Pyramid = Literal["light", "released"]


class FRSKD(Method):
    """A network and the refiner of its features.

    Args:
        student: a network of two stages or more.
        temperature: softens both sides of the distillation, paid back by its square.
        kd_weight: of the self-teacher's predictions.
        attention_weight: of where its maps look; 0 leaves it out.
        width: channels of the refined maps, as a multiple of their stage's.
        depth: separable convolutions after each mix.
        pyramid: "light", or "released": a second 1x1 per stage for the way up, ReLU after every 1x1, maximum pooling.

    Raises: InputError for a student without stages and numbers out of range.
    """

    student: Insides
    variants: ClassVar[Variants] = {"released": {"width": 2, "depth": 2, "pyramid": "released"}}

    def __init__(
        self,
        student: nn.Module,
        *,
        temperature: float = 4.0,
        kd_weight: float = 2.0,
        attention_weight: float = 100.0,
        width: int = 1,
        depth: int = 1,
        pyramid: Pyramid = "light",
    ) -> None:
        super().__init__()
        student = checks.staged("frskd", student, at_least=2)
        checks.positive(temperature=temperature, kd_weight=kd_weight, width=width, depth=depth)
        checks.not_negative(attention_weight=attention_weight)
        checks.choices(FRSKD, pyramid=pyramid)
        self.student, self.refiner = student, Refiner(student, width, depth, pyramid)
        self.temperature, self.kd_weight, self.attention_weight = temperature, kd_weight, attention_weight

    def forward(self, batch: Batch, progress: Progress = Progress()) -> Output:
        """`ce`, `ce_refined`: both learn from the labels. `distil`, `attention`: the network from the refiner."""
        maps, _, logits = self.student.look(batch.inputs[0])
        refined, target = self.refiner(maps)
        terms = {
            "ce": losses.ce(logits, batch.labels, self.smoothing).mean(),
            "ce_refined": losses.ce(target, batch.labels, self.smoothing).mean(),
            "distil": self.kd_weight * losses.kl(logits, target.detach(), self.temperature).mean(),
        }
        if self.attention_weight:
            misses = [losses.attention(f, t.detach()) for f, t in zip(maps, refined, strict=True)]  # L of [B]
            terms["attention"] = self.attention_weight * torch.stack(misses).mean(1).sum()
        return Output(terms, logits.detach()[None])


class Refiner(nn.Module):
    """The self-teacher: a pyramid from the deepest map to the shallowest and back, and a head like the student's."""

    def __init__(self, student: Insides, width: int = 1, depth: int = 1, pyramid: Pyramid = "light") -> None:
        super().__init__()
        widths = [width * c for c in student.channels]
        lateral = conv_bn if pyramid == "light" else conv_bn_relu
        mix = partial(Mix, depth=depth, pyramid=pyramid)
        pairs = list(pairwise(widths))  # of a stage and the next deeper one
        into = list(zip(student.channels, widths, strict=True))
        self.enter = nn.ModuleList(nn.Sequential(*lateral(c, wide, kernel=1)) for c, wide in into)
        self.down = nn.ModuleList(mix(shallow, deep, inputs=2) for shallow, deep in pairs)
        self.up = nn.ModuleList(mix(deep, shallow, inputs=3) for shallow, deep in pairs[:-1])
        self.up.append(mix(widths[-1], widths[-2], inputs=2))  # the deepest has no map from above
        again = [] if pyramid == "light" else into[1:]
        self.again = nn.ModuleList(nn.Sequential(*lateral(c, wide, kernel=1)) for c, wide in again)
        fresh(self)
        self.pool, self.head = student.exit()
        if width > 1:
            if not isinstance(self.head, nn.Linear):
                needs = f"above 1, the student's head must be nn.Linear, not {type(self.head).__name__}"
                raise InputError(f"width: found {width}; {needs}")
            inputs, outputs = width * self.head.in_features, self.head.out_features
            self.head = nn.Linear(inputs, outputs, bias=self.head.bias is not None)

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """The refined maps, `width` times as many channels as their stage, and logits `[B, C]`."""
        if self.again:  # released: what enters is activated, also where the network's stage is not
            maps = [f.relu() for f in maps]
        entered = [enter(f) for enter, f in zip(self.enter, maps, strict=True)]
        last = len(entered) - 1
        halfway = entered[:]
        for i in reversed(range(last)):
            halfway[i] = self.down[i](halfway[i + 1], entered[i])
        if self.again:
            entered[1:] = [again(f) for again, f in zip(self.again, maps[1:], strict=True)]
        refined = halfway[:1]
        for i in range(1, last + 1):
            own = (entered[i], halfway[i]) if i < last else (entered[i],)  # at the deepest, both are one
            refined.append(self.up[i - 1](refined[-1], *own))
        return refined, self.head(self.pool(refined[-1]))


class Mix(nn.Module):
    """A neighbouring stage's map, made to fit, and this stage's own: a learned average, then `depth` convolutions."""

    def __init__(self, channels: int, neighbour: int, inputs: int, depth: int, pyramid: Pyramid) -> None:
        super().__init__()
        light = pyramid == "light"
        self.shrink = resize if light else shrink_by_maximum
        self.fit = nn.Sequential(*(conv_bn if light else conv_bn_relu)(neighbour, channels, kernel=1))
        self.weight = nn.Parameter(torch.ones(inputs))
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [conv(channels, channels, kernel=3, groups=channels), *conv_bn_relu(channels, channels, kernel=1)]
        self.conv = nn.Sequential(*layers)

    def forward(self, neighbour: Tensor, *own: Tensor) -> Tensor:
        """`[B, C', H', W']` and one or two `[B, C, H, W]` -> `[B, C, H, W]`."""
        height, width = own[0].shape[-2:]
        weight = self.weight.relu()
        weight = weight / (weight.sum() + 1e-6)  # all may be 0
        # A larger neighbour shrinks before its convolution, a smaller one grows after it: less work, the same reach.
        small = self.shrink(neighbour, min(height, neighbour.shape[-2]), min(width, neighbour.shape[-1]))
        maps = [resize(self.fit(small), height, width), *own]
        out: Tensor = self.conv(reduce(torch.add, [w * f for w, f in zip(weight, maps, strict=True)]))
        return out


def shrink_by_maximum(x: Tensor, height: int, width: int) -> Tensor:
    """Half the side by 3x3 windows from the top left corner on, as released; another side by what fits."""
    if x.shape[-2:] == (height, width):
        return x
    if x.shape[-2:] == (2 * height, 2 * width):
        return F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 3, 2)  # padded by 0: x is not negative
    return F.adaptive_max_pool2d(x, (height, width))

"""Label smoothing: one network, softened labels. The cheapest rival there is.

What:
    Cross-entropy with labels that give a little of their weight to every class. Whose prediction is the soft target?
    Nobody's: the uniform distribution's.

Formula: L = CE(z, (1 - ε)·onehot(y) + ε/C)

Paper:
    Szegedy, Vanhoucke, Ioffe, Shlens, Wojna: Rethinking the Inception Architecture for Computer Vision, CVPR 2016
    (arXiv:1512.00567), section 7.

Defaults: smoothing ε = 0.1, the paper's. `--smoothing` is the same number, and softens the labels of any other method.

Where we differ from the paper, and from the authors' code:
    Nowhere. Some ports spread ε over the C - 1 wrong classes only; here, as in the paper, the true class gets ε/C too.

Ships: `student`, the network itself.
Cost: As plain: one forward and one backward per batch.

Results:
    In the one repository that ran both it beats eight of ten self-distillation methods (single runs, ResNet-18 on
    CIFAR-100: 76.24 -> 78.72). Ours, in points of accuracy, of the studies in results/ (docs/learnt.md):
"""

from __future__ import annotations

from torch import nn

from teacherless.errors import InputError
from teacherless.methods.plain import Plain


class LabelSmoothing(Plain):
    """Plain, with softened labels.

    Args:
        student: a network that maps a tensor to logits `[B, C]`.
        smoothing: ε, the share of the label that goes to all classes alike.

    Raises: InputError for an ε outside (0, 1).
    """

    def __init__(self, student: nn.Module, *, smoothing: float = 0.1) -> None:
        super().__init__(student)
        if not 0 < smoothing < 1:
            raise InputError(f"smoothing: found {smoothing}; must be above 0 and below 1 (0 is the method plain)")
        self.smoothing = smoothing

"""R-Drop: two draws of dropout for the same image, and what the network says must not depend on the draw.

What:
    Regularized Dropout. Each image goes through the network twice in one batch, with other random draws (dropout,
    stochastic depth), and the two predictions are pulled together. Whose prediction is the soft target? My other
    draw's; both move.

Formula: L = CE(z_1, y) + CE(z_2, y) + alpha/2 (KL(p_1 ‖ p_2) + KL(p_2 ‖ p_1)),  nothing is constant

Paper:
    Liang, Wu, Li, Wang, Meng, Qin, Chen, Zhang, Liu: R-Drop: Regularized Dropout for Neural Networks, NeurIPS 2021
    (arXiv:2106.14448), section 2.

Defaults:
    alpha 0.6, the paper's for ViT (noted, not checked: 5 for translation). dropout 0.1 (ViT's): the draw of a network
    that has none itself (ours), on what its head reads; where the student draws, only its own draws count.

Where we differ from the paper, and from the authors' code:
    Both forwards are one batch of twice the size, so batch norm sees both; that code has two forwards. In vit_src of
    dropreg/R-Drop the KL is summed over the batch and CE is its mean: with B images the KL weighs B times ours, and
    alpha 0.3 there, of the sum of both directions, is 0.6 here. Run beside it on the same logits (64 x 100, float64):
    the same number once the KL is given that B.

Ships: `student`, the network itself.
Cost: Two forwards and two backwards of one network per batch. No extra parameters.
Results: In points of accuracy, of the studies in results/ (docs/learnt.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teacherless import losses
from teacherless.batch import Input, joined
from teacherless.errors import InputError
from teacherless.method import Batch, Method, Output, Progress
from teacherless.methods import _checks as checks
from teacherless.models.staged import Staged
from teacherless.network import call, drawing_layer


class RDrop(Method):
    """One network, two random draws of it for each image.

    Args:
        student: a network that maps a tensor to logits `[B, C]` and draws random numbers in training, or one of ours.
        alpha: of the KL divergences between the draws.
        dropout: of what the head reads, where the student itself draws nothing.

    Raises: InputError for numbers out of range, and for a network whose two predictions would be equal.
    """

    def __init__(self, student: nn.Module, *, alpha: float = 0.6, dropout: float = 0.1) -> None:
        super().__init__()
        checks.positive(alpha=alpha)
        draws = drawing_layer(student)
        if not draws and not 0 < dropout < 1:
            why = "the student draws nothing itself, and two equal predictions teach nothing"
            raise InputError(f"dropout: found {dropout}; must be above 0 and below 1: {why}")
        if not draws and not isinstance(student, Staged):
            why = "draws nothing in training; give it dropout or drop path (timm/NAME,drop_path_rate=0.1)"
            raise InputError(f"student: {type(student).__name__} {why}")
        self.student, self.alpha, self.dropout = student, alpha, 0.0 if draws else dropout

    def forward(self, batch: Batch, progress: Progress = Progress()) -> Output:
        """`ce`: both draws learn from the labels. `kl`: each from the other."""
        z = self.draws(batch.inputs[0])
        ce = losses.ce(z, batch.labels, self.smoothing).mean(1).sum()
        kl = losses.kl(z, z.flip(0)).mean()  # over two directions and B samples
        return Output({"ce": ce, "kl": self.alpha * kl}, z[:1].detach())

    def draws(self, x: Input) -> Tensor:
        """Logits of two draws, `[2, B, C]`."""
        twice = joined((x, x))
        if self.dropout:
            assert isinstance(self.student, Staged)
            read = F.dropout(self.student.embed(twice), self.dropout, self.training)
            logits: Tensor = self.student.head(read)
        else:
            logits = call(self.student, twice)
        return torch.stack(logits.chunk(2))

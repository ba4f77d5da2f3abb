"""PS-KD: one network learns from what it said of the same image an epoch ago.

What:
    Progressive self-knowledge distillation. The labels are softened by the network's own past predictions, more so as
    it learns. Whose prediction is the soft target? My past's.

Formula:
    L = (1 - α_t) CE(z, y) + α_t CE(z, p_{t-1}(x)),  α_t = alpha · t / epochs,  t = 1 … epochs
    p_{t-1}(x): the probabilities of the epoch before, kept in a table. No temperature.

Paper:
    Kim, Ji, Yoon, Hwang: Self-Knowledge Distillation with Progressive Refinement of Targets, ICCV 2021
    (arXiv:2006.12000), section 3.

Defaults: alpha 0.8, the paper's.

Where we differ from the paper, and from the authors' code:
    The first epoch has no past and a row that was never seen has none later (the last, partial batch of an epoch is
    dropped): there the label takes the past's place (unseen "label"). A row that is missed once keeps its older
    prediction. The past is of another distortion of the image, as in the authors' code.
    The table is in the network's dtype, and is part of the method's state: what resume needs.
    Variant `released` reproduces main.py with loss/pskd_loss.py of lgcnsai/PS-KD-Pytorch: α_t and the reduction (sum
    over classes, mean over samples) are the same; there a row unseen in the first epoch counts as zeros from then on
    (unseen "zero"), so its target adds up to 1 - α_t only. The table there is always float32, updated row by row.

Ships: `student`, the network itself; the table stays behind.

Cost:
    One forward and backward per batch, as plain, and a table of N·C numbers (N training images, C classes): 20 MB for
    CIFAR-100, 5 GB for ImageNet, in float32.

Results: In points of accuracy, of the studies in results/ (docs/learnt.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from teacherless import losses
from teacherless.method import Batch, Method, Output, Progress, Variants, Wants
from teacherless.methods import _checks as checks
from teacherless.network import call, check_ready


class PSKD(Method):
    """One network and the memory of its predictions.

    Args:
        student: a network that maps a tensor to logits `[B, C]`.
        num_samples: N, rows of the training set.
        num_classes: C.
        alpha: weight of the past in the last epoch.
        unseen: what stands in for the past of a row that has none: its "label", or "zero" after the first epoch.

    Raises: InputError for numbers out of range, and for a batch without `index`.
    """

    wants = Wants(index=True)
    needs_progress = True
    variants: ClassVar[Variants] = {"released": {"unseen": "zero"}}
    needs = ("num_samples", "num_classes")

    def __init__(
        self,
        student: nn.Module,
        *,
        num_samples: int,
        num_classes: int,
        alpha: float = 0.8,
        unseen: Literal["label", "zero"] = "label",
    ) -> None:
        super().__init__()
        checks.positive(num_samples=num_samples, num_classes=num_classes, alpha=alpha)
        checks.share(alpha=alpha)
        checks.choices(PSKD, unseen=unseen)
        self.student, self.alpha, self.unseen = student, alpha, unseen
        check_ready(student)
        like = next(student.parameters(), torch.empty(0))
        self.memory = like.new_zeros(num_samples, num_classes).requires_grad_(False)

    def forward(self, batch: Batch, progress: Progress = Progress()) -> Output:
        """`ce`: the student learns from the labels. `past`: from what it said an epoch ago. Remembers what it says."""
        assert batch.index is not None
        logits = call(self.student, batch.inputs[0])  # [B, C]
        ce = losses.ce(logits, batch.labels, self.smoothing)
        past = self.memory[batch.index]  # [B, C]
        no_past = past.sum(1) < 0.5  # a row of probabilities adds up to 1
        if self.unseen == "zero":
            no_past = no_past & (progress.epoch == 0)
        soft = torch.where(no_past, ce, losses.soft_ce(logits, past))  # [B]
        alpha = self.alpha * (progress.epoch.to(ce.dtype) + 1) / progress.epochs
        if self.training:
            probs = losses.log_probs(logits.detach()).exp().to(self.memory.dtype)
            self.memory[self.whole_batch(batch.index)] = self.whole_batch(probs)
        return Output({"ce": ((1 - alpha) * ce).mean(), "past": (alpha * soft).mean()}, logits.detach()[None])

    # The memory is no buffer: DistributedDataParallel would give every rank the first one's. As extra state it is in
    # `state_dict`, and it moves as buffers do.

    def get_extra_state(self) -> Tensor:
        """The memory."""
        return self.memory

    def set_extra_state(self, state: Tensor) -> None:
        """The memory, from a `state_dict`."""
        self.memory.copy_(state)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.memory = fn(self.memory)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

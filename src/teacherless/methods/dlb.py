"""DLB: one network learns from what it said of the last mini-batch, a step ago.

What:
    Self-distillation from the last mini-batch. Each step meets the images of the step before again, in another
    distortion, and is to say of them what was said then. Whose prediction is the soft target? My own, a step ago.

Formula:
    L = 1/2n Σ_2n CE(z, y) + alpha · T²/n Σ_n KL(p_{t-1} ‖ p_t),  both softened by T = temperature
    2n: the n new images, and the n that were new a step ago. KL over the latter; p_{t-1} is what was said of them then.

Paper:
    Shen, Xu, Yang, Li, Guo: Self-Distillation from the Last Mini-Batch for Consistency Regularization, CVPR 2022
    (arXiv:2203.16172), section 3.

Defaults: alpha 1, temperature 3, the paper's for CIFAR.

Where we differ from the paper, and from the authors' code:
    The paper's sampler draws half of every batch again. Here, as in dlb.py of Meta-knowledge-Lab/DLB, the method keeps
    the last batch: a loader's batch of n is the paper's of 2n. Each image comes in two distortions, the first for now
    and the second for the next step, and the new images are evaluated first, the old ones in a forward of their own.
    The first step has no past: there `distil` is 0 and CE is of the new images. A batch may be smaller than the last.
    What is kept is part of the method's state: what resume needs. In a step recorded by `--engine graph`, a batch of
    another size than the first is not the past of the one after it.

Ships: `student`, the network itself; the last batch stays behind.
Cost: Two forwards and two backwards per new image, where plain has one, and the memory of a batch.
Results: In points of accuracy, of the studies in results/ (docs/learnt.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from teacherless import losses
from teacherless.batch import leaves, mapped
from teacherless.method import Batch, Method, Output, Progress, Wants
from teacherless.methods import _checks as checks
from teacherless.network import call


class DLB(Method):
    """One network, and the batch before this one.

    Args:
        student: a network that maps a tensor to logits `[B, C]`.
        alpha: weight of what was said of the last batch.
        temperature: T, of both sides.

    Raises: InputError for numbers out of range.
    """

    wants = Wants(views=2)

    def __init__(self, student: nn.Module, *, alpha: float = 1.0, temperature: float = 3.0) -> None:
        super().__init__()
        checks.positive(alpha=alpha, temperature=temperature)
        self.student, self.alpha, self.temperature = student, alpha, temperature
        self.last: list[Tensor] = []  # the last batch: its second inputs' tensors, its labels, its logits

    def forward(self, batch: Batch, progress: Progress = Progress()) -> Output:
        """`ce`: the student learns from both batches' labels. `distil`: from what it said of the last batch."""
        now, later = batch.inputs
        logits = call(self.student, now)  # [B, C]
        ce = losses.ce(logits, batch.labels, self.smoothing)
        distil = ce.new_zeros(())
        if self.last:
            *old, labels, target = (place.clone() for place in self.last)  # the places are written over before backward
            parts = iter(old)
            again = call(self.student, mapped(lambda _: next(parts), later))
            ce = torch.cat([losses.ce(again, labels, self.smoothing), ce])
            distil = self.alpha * losses.kl(again, target, self.temperature).mean()
        if self.training:
            self._keep([*leaves(later), batch.labels, logits])
        return Output({"ce": ce.mean(), "distil": distil}, logits.detach()[None])

    def _keep(self, tensors: list[Tensor]) -> None:
        """In the places there are, which a recorded step needs; in new ones if the batch is of another kind."""
        if [(x.shape, x.dtype) for x in tensors] != [(x.shape, x.dtype) for x in self.last]:
            self.last = [torch.empty_like(x, requires_grad=False) for x in tensors]
        for place, x in zip(self.last, tensors, strict=True):
            place.copy_(x.detach())

    # The last batch is no buffer: its shapes are known once there is one, and every rank of DistributedDataParallel has
    # its own. It is in `state_dict`, and moves as buffers do.

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({f"{prefix}last.{i}": x for i, x in enumerate(self.last)})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        device = next(self.student.parameters(), torch.empty(0)).device
        self.last = []
        while (key := f"{prefix}last.{len(self.last)}") in state_dict:
            self.last.append(state_dict.pop(key).to(device, copy=True))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.last = [fn(x) for x in self.last]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

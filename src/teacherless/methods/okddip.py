"""OKDDip: branches each learn from a mixture of their own, chosen by attention; their mean teaches one branch more.

What:
    Online Knowledge Distillation with Diverse Peers. The lower stages are shared; the upper ones and the head exist
    several times. All branches but one are peers: what their heads read says, image by image, how much each listens to
    each, itself included. The last is the leader, to whom no peer listens. Whose prediction is the soft target? A
    peer's own mixture of the peers', and for the leader the mean of all peers'.

Formula:
    α_ab = softmax over b of (L h_a)ᵀ (E h_b),  h_a what the head of peer a reads, m - 1 peers
    u_a = Σ_b α_ab p_b^T,  u = 1/(m-1) Σ_b p_b^T
    L = CE(z_0, y) + Σ_a CE(z_a, y) + w(t) kl_weight T² (Σ_a KL(u_a ‖ p_a^T) + KL(u ‖ p_0^T)),  z_0 the leader's
    predictions p_b in u_a and u, and h, constant: L and E alone learn from what the mixtures are
    w(t) = exp(-5 (1 - t / ramp_epochs)²) up to epoch ramp_epochs, 1 after it and where there is no ramp
    mix "logits": u_a = softmax(Σ_b α_ab z_b / T), and u from the mean of the logits

Paper:
    Chen, Mei, Wang, Feng, Chen: Online Knowledge Distillation with Diverse Peers, AAAI 2020 (arXiv:1912.00350), section
    3. There also of whole networks, which share no stages; here branches.

Defaults:
    branches 4 (three peers and the leader), temperature 3, factor 8 (L and E map D numbers to D / factor) and kl_weight
    1 are those of the authors' code. mix "probabilities" is the paper's as noted, not checked; constant True and
    ramp_epochs 0 are ours. split -1 (branches start at the last stage) and copy_init as on ONE's card.

Where we differ from the paper, and from the authors' code:
    The leader is the student itself; theirs is the last branch. With constant False a branch also learns from being a
    target, by what it says and by what it reads: so it is in the authors' code; whether in the paper is not known.
    Their code adds 1e-7 to each target's probabilities; we do not. Variant `released` is train_GL.py of
    DefangChen/OKDDip up to that 1e-7: mix "logits", constant False, a ramp of 80 epochs.
    Its measure of diversity, the mean distance of two peers' probabilities, is what `analyse` says of all runs of
    several networks, on test images.

Ships: `leader`, and `peer0` … `peer{m-2}`, each a plain network. The ensemble is the mean of the peers' probabilities.

Cost:
    The shared stages once, the rest m times: for a CIFAR ResNet with four branches about two forwards. The branches and
    the two small matrices in memory.

Results: In points of accuracy, of the studies in results/ (docs/learnt.md).
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from teacherless import losses
from teacherless.errors import InputError
from teacherless.method import Batch, Method, Output, Progress, Variants
from teacherless.methods import _checks as checks
from teacherless.methods._parts import MeanProbability, ramp
from teacherless.methods.one import ONE


class OKDDip(Method):
    """Branches on a shared trunk: peers that attend to each other, and a leader whom their mean teaches.

    Args:
        student: a network with stages; it becomes the leader.
        branches: m, the leader's among them, at least 3.
        split: the stage where branches start, at least one after the first; negative counts from the end.
        temperature: T, of both sides of each KL.
        kl_weight: of both distillations.
        factor: attention compares D / factor numbers.
        mix: what is mixed, "probabilities" or "logits".
        constant: targets and what attention reads are constants.
        ramp_epochs: epochs over which the distillations' weight rises; 0 for none.
        copy_init: new branches copy the student's stages instead of starting afresh (default: if it is pretrained).

    Raises: InputError for a student without stages, a split that shares nothing, and numbers out of range.
    """

    variants: ClassVar[Variants] = {"released": {"mix": "logits", "constant": False, "ramp_epochs": 80}}

    def __init__(
        self,
        student: nn.Module,
        *,
        branches: Annotated[int, Field(ge=3)] = 4,
        split: int = -1,
        temperature: float = 3.0,
        kl_weight: float = 1.0,
        factor: int = 8,
        mix: Literal["probabilities", "logits"] = "probabilities",
        constant: bool = True,
        ramp_epochs: int = 0,
        copy_init: bool | None = None,
    ) -> None:
        super().__init__()
        checks.positive(temperature=temperature, kl_weight=kl_weight, factor=factor)
        checks.not_negative(ramp_epochs=ramp_epochs)
        checks.choices(OKDDip, mix=mix)
        if branches < 3:
            raise InputError(f"branches: found {branches}; must be at least 3: two peers, and the leader")
        width = checks.staged("okddip", student, at_least=2, maps=False).dim
        self.branched = ONE(student, branches=branches, split=split, gate=False, copy_init=copy_init)
        self.query, self.key = (nn.Linear(width, max(1, width // factor), bias=False) for _ in range(2))
        self.temperature, self.kl_weight, self.mix, self.constant = temperature, kl_weight, mix, constant
        self.ramp_epochs, self.needs_progress = ramp_epochs, ramp_epochs > 0

    def forward(self, batch: Batch, progress: Progress = Progress()) -> Output:
        """`ce`: all learn from the labels. `distil`: each peer from its mixture. `lead`: the leader from their mean."""
        maps, branches = self.branched.trunks[0](batch.inputs[0]), self.branched.branches
        looks = [net.read(branch, maps) for net, branch in zip(self.branched.nets, branches, strict=True)]
        each = torch.stack([losses.full(logits) for _, logits in looks])  # [m, B, C]
        read = torch.stack([losses.full(embedding) for embedding, _ in looks[1:]])  # [m-1, B, D]
        leader, peers = each[0], each[1:]
        told = peers.detach() if self.constant else peers
        target = self._mixed(self.attend(read.detach() if self.constant else read), told)  # [m-1, B, C]
        mean = self._mixed(told.new_full((1, len(told), 1), -math.log(len(told))), told)[0]  # [B, C]
        weight = self.kl_weight * ramp(progress, self.ramp_epochs, each.dtype)
        terms = {
            "ce": losses.ce(each, batch.labels, self.smoothing).mean(1).sum(),
            "distil": weight * losses.kl(peers, target, self.temperature).mean(1).sum(),
            "lead": weight * losses.kl(leader, mean, self.temperature).mean(),
        }
        return Output(terms, each.detach())

    def attend(self, read: Tensor) -> Tensor:
        """log α: how much peer a listens to peer b. `[m-1, B, D] -> [m-1, m-1, B]`."""
        ours, theirs = losses.full(self.query(read)), losses.full(self.key(read))
        # Multiplied and summed, not a matrix product: autocast would compute that in half precision.
        return (ours[:, None] * theirs[None]).sum(-1).log_softmax(1)

    def _mixed(self, log_share: Tensor, told: Tensor) -> Tensor:
        """Logits whose softened probabilities are the mixtures. `[k, m-1, B], [m-1, B, C] -> [k, B, C]`."""
        share = log_share[..., None]
        if self.mix == "logits":
            return (share.exp() * told).sum(1)
        return self.temperature * (share + losses.log_probs(told, self.temperature)).logsumexp(1)

    def students(self) -> dict[str, nn.Module]:
        """The leader and the peers, each over the shared trunk."""
        leader, *peers = self.branched.nets
        return {"leader": leader, **{f"peer{i}": net for i, net in enumerate(peers)}}

    def ensemble(self) -> nn.Module:
        """The mean of the peers' probabilities."""
        return MeanProbability(self.branched.nets[1:])

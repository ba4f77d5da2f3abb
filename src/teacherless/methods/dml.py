"""DML: K networks train together, and each takes the mean of its peers' predictions as a soft target.

What:
    Deep Mutual Learning. Peers may have any architecture; each starts from its own random weights, sees the same batch,
    and learns from the labels and from the others. Whose prediction is the soft target? The mean of my peers'.

Formula:
    L_k = CE(z_k, y) + 1/(K-1) Σ_{l≠k} KL(p_l ‖ p_k),  peers constant;  the loss is Σ_k L_k.
    Computed in closed form. With q_k = 1/(K-1) Σ_{l≠k} p_l, the mean of the other peers' probabilities,
        1/(K-1) Σ_{l≠k} KL(p_l ‖ p_k) = 1/(K-1) Σ_{l≠k} Σ_c p_l log p_l  -  Σ_c q_k log p_k
    so work grows as K, not K², and across machines one all-reduce of B×(C+1) numbers carries everything. The first part
    is a constant for peer k, kept so that the number logged is the paper's.

Paper:
    Zhang, Xiang, Hospedales, Lu: Deep Mutual Learning, CVPR 2018 (arXiv:1706.00384), equations for L_Θk; Algorithm 1.

Defaults:
    temperature 1 (the paper has none). update "simultaneous": all peers predict once, all are updated. "in_turn" is the
    paper's Algorithm 1: one peer is updated, everyone predicts again, the next is updated (K steps per batch).
    weight 1 and ramp_epochs 0 (no ramp; otherwise the weight rises as exp(-5 (1 - t)²) over that many epochs) and
    reduce "mean" are the paper's. mimicry "pairwise" is the paper's DML; "dml_e" is its DML_e, KL(q_k ‖ p_k);
    "symmetric" is the mean of both directions of the KL, which the paper mentions and calls Jensen-Shannon.
    topology "complete" (ours to change): whom a peer listens to. "ring": the peer before. "star": everyone to peer 0,
    peer 0 to everyone. "weak-to-strong": to the mean of the stronger ones, strength being the order of the students,
    the strongest last; it listens to nobody. Or a matrix, row k the weights of peer k's targets, summing to 1 or 0.
    A peer whose prediction is not finite leaves (ours): from that step on it is in nobody's mean and in no
    term, the mean is over the others that remain, and `left()` has the step. When all have left, the terms are NaN.
    `--on-divergence revive` brings a peer back at the epoch's end, with the weights of the last epoch's end at which it
    was whole and an optimizer that remembers nothing, twice at most.
    target "peers": the mean of those it listens to. Others give every sample a target of its own, from everyone's
    predictions; temperature softens them. "selective" (after Roth et al., ICLR 2024, arXiv:2310.17653): the mean of
    those it listens to that give this sample's label more probability than it does itself; where nobody does, nothing.
    The others are KDCL's (Guo et al., CVPR 2020, section 3.2), one target for all, with T = 2 there (noted, not
    checked). "naive": whoever has the lowest cross-entropy on the sample. "linear": the logits' mixture Σ_l a_l z_l, a
    on the simplex, with the lowest cross-entropy on the batch. "min-logit": of each class the lowest z_c - z_y.
    "general": the probabilities' mixture Σ_l w_l p_l, w = C⁻¹1 / 1ᵀC⁻¹1, where C_ij is Σ_c e_ic e_jc averaged over the
    batch and e = p - onehot(y); whoever would weigh less than 0 is left out, and the others' w are found again.
    exchange_every 1: they meet at every step. With N > 1 (after Anil et al., ICLR 2018, arXiv:1804.03235) they exchange
    weights every N steps, and learn from copies of each other that are up to N - 1 steps old, read the batch of the
    moment in training mode, and get no gradient. A peer that goes bad teaches by its copy until the next exchange.
    disjoint False. True (after Anil et al.): each training image is one peer's; the others predict it to teach its
    owner, and learn nothing from it, but their batch norm sees it. Terms are means over the peer's own images.
    views 1. With views V > 1 (ours) each peer sees V distortions and each of the K·V predictions learns from the mean
    of all the others; V = 1 is DML, and K = 1 with V = 2 is the KL part of DDGSD.

Where we differ from the paper, and from the authors' code:
    Simultaneous updates are the default, as in nearly every port, and as ranks can do; Algorithm 1 is "in_turn". The
    paper prints Algorithm 1's update with the wrong sign; we descend. The authors' code sums over peers without
    1/(K-1), draws a fresh batch for each peer, and adds 1e-8 inside the logarithm; we do none of these.
    Variant `sum` reproduces train_models.py of YingZhangDUT/Deep-Mutual-Learning in its loss: Σ without 1/(K-1), so
    with five peers mimicry weighs four times the paper's; that alone would explain the paper's DML against DML_e.
    DML and DML_e are the same method. DML_e's target is the mean q_k; since
        1/(K-1) Σ_l KL(p_l ‖ p_k) = KL(q_k ‖ p_k) + 1/(K-1) Σ_l KL(p_l ‖ q_k)
    and the last part does not depend on peer k, both have the same gradient. The paper reports different results for
    them (its Figure 4); with peers as constants that cannot come from the method. A test proves the identity.
    KDCL also shows every student a distortion of its own, and finds the weights of "general" on held-out images after
    each epoch, which a method does not have; here on the whole batch, before the update, so whoever knows it by heart
    weighs much. √eps of C's largest is added to its diagonal: equal peers weigh the same. No code of its authors was
    found: how they solve "linear", and what they do with weights below 0, is not known; "linear" here is 50 steps of
    exponentiated gradient, within 1e-2 nats of the least cross-entropy.
    Roth et al. transfer between pretrained networks, and keep what a student knows by its own earlier prediction; here
    nobody teaches such a sample. train_bi_kd.py of Syd-J/Bi-KD (Jain et al., arXiv:2510.22208) has our loss for two,
    number for number, but its teachers get a gradient; without it, so are the gradients.

Ships: `peer0` … `peerK-1`, each a plain network. The ensemble is the mean of the peers' probabilities.

Cost:
    K forwards and K backwards per batch (times V views); in turn, K² forwards. Memory: K networks and their
    activations. Each prediction costs a softmax and a log-softmax. Other topologies and "symmetric" need everyone's
    predictions, not their mean: K² sums instead of K, and K times the traffic. With exchange_every > 1: a forward of
    every copy that is listened to, on every rank, and K copies of the weights; across machines all weights every N
    steps, not predictions at each: fewer meetings, and fewer bytes only where N is large.

Results: In points of accuracy, of the studies in results/ (docs/learnt.md).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from teacherless import losses
from teacherless.batch import Input, joined
from teacherless.errors import InputError
from teacherless.method import Batch, Exchange, Gather, Method, Output, Progress, Variants, Wants
from teacherless.methods import _checks as checks
from teacherless.methods import _targets as targets
from teacherless.methods._copies import flat, idle, who_hears
from teacherless.methods._mutual import mutual
from teacherless.methods._parts import MeanProbability, ramp
from teacherless.methods._targets import informed, mix, neg_entropy, shares
from teacherless.methods._topology import listening
from teacherless.network import call, check_ready, drawing_layer


def mean_of_others(own: Tensor) -> Tensor:
    """The local exchange: for each prediction, the mean of all the other ones, summed in peer order. `[k, B, C+1]`.

    It takes the place of `own`: to stay small is to stay in the cache.
    """
    rest = len(own) - 1
    total = reduce(Tensor.add_, own[1:].unbind(0), own[0].clone()).div_(rest)
    if _transformed(own):
        return torch.sub(total, own, alpha=1 / rest)  # vmap knows no out=
    return torch.sub(total, own, alpha=1 / rest, out=own)


def _transformed(x: Tensor) -> bool:
    """Whether this is inside torch.func."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(x)


def gather_local(own: Tensor) -> tuple[Tensor, slice]:
    """The local gather: all predictions are ours. `[k, B, C] -> all [K, B, C], and which rows of it are ours`."""
    return own, slice(None)


class DML(Method):
    """K peers that teach each other.

    Args:
        peers: K networks that map a tensor to logits `[B, C]`.
        temperature: softens both sides of the mimicry term, paid back by its square.
        update: "simultaneous", or "in_turn" (the paper's Algorithm 1).
        weight: of the mimicry term.
        ramp_epochs: epochs over which the weight rises; 0 for none.
        mimicry: "pairwise", "dml_e" or "symmetric".
        reduce: "mean" over the targets, or "sum".
        topology: who listens to whom; a name or a matrix.
        views: distortions of each image per peer.
        target: what a peer learns from: "peers", "selective", "naive", "linear", "min-logit" or "general".
        exchange_every: steps between two exchanges of weights; 1 exchanges predictions, at every step.
        disjoint: each image is in the terms of one peer only; the batch needs its index.
        exchange: `own [k, B, C+1] -> mean over the others [k, B, C+1]`; other ranks and threads come in here.
        gather: `own [k, B, C] -> (all [K, B, C], our rows)`, where the mean of the others is not enough; weights go
            through it as `[k, 1, P]`.

    Raises: InputError for fewer than two predictions to compare, for peers that start equal, for a bad topology, for
        options that cannot be together.
    """

    cohort = True
    listening: Tensor
    left_at: Tensor
    copies: Tensor  # [K, P], every peer's parameters as they were at the last exchange
    rows: Sequence[int] | slice = slice(None)  # which of all peers are ours: a shard has some
    variants: ClassVar[Variants] = {"sum": {"reduce": "sum"}}

    def __init__(
        self,
        *peers: nn.Module,
        temperature: float = 1.0,
        update: Literal["simultaneous", "in_turn"] = "simultaneous",
        weight: float = 1.0,
        ramp_epochs: int = 0,
        mimicry: Literal["pairwise", "dml_e", "symmetric"] = "pairwise",
        reduce: Literal["mean", "sum"] = "mean",
        topology: Literal["complete", "ring", "star", "weak-to-strong"] | tuple[tuple[float, ...], ...] = "complete",
        views: int = 1,
        target: Literal["peers", "selective", "naive", "linear", "min-logit", "general"] = "peers",
        exchange_every: int = 1,
        disjoint: bool = False,
        exchange: Exchange = mean_of_others,
        gather: Gather = gather_local,
    ) -> None:
        super().__init__()
        if len(peers) * views < 2:
            needs = "mutual learning needs two peers or two views"
            raise InputError(f"dml: found {len(peers)} peer and views={views}; {needs}")
        checks.choices(DML, update=update, mimicry=mimicry, reduce=reduce, target=target)
        checks.positive(temperature=temperature)
        checks.not_negative(weight=weight, ramp_epochs=ramp_epochs)
        if views > 1 and topology != "complete":
            raise InputError(f"topology: found {topology!r} with views={views}; several views need 'complete'")
        if target != "peers":
            whom = {} if target == "selective" else {"topology": topology}
            checks.no_effect(DML, f"target={target!r}", mimicry=mimicry, reduce=reduce, **whom)
        if views == 1:
            _refuse_equal(peers)
        if exchange_every < 1:
            raise InputError(f"exchange_every: found {exchange_every}; must be at least 1")
        if exchange_every > 1:
            checks.no_effect(DML, f"exchange_every={exchange_every}", update=update)
            if target != "peers":
                raise InputError(f"target: found {target!r} with exchange_every={exchange_every}; must be 'peers'")
        scripted = any(isinstance(part, torch.jit.ScriptModule) for peer in peers for part in peer.modules())
        for name, value, else_ in (("update", update, "simultaneous"), ("exchange_every", exchange_every, 1)):
            if scripted and value != else_:
                why = "a scripted peer, whose buffers would move while it only predicts"
                raise InputError(f"{name}: found {value!r} with {why}; give its module, or {name}={else_!r}")
        self.peers = nn.ModuleList(peers)
        self.temperature, self.update, self.views = temperature, update, views
        self.weight, self.ramp_epochs, self.mimicry, self.reduce = weight, ramp_epochs, mimicry, reduce
        self.target, self.exchange, self.gather = target, exchange, gather
        alike = (topology, target, exchange_every) == ("complete", "peers", 1)
        self.complete = alike and mimicry != "symmetric"  # then the mean of the others is enough
        rows = listening(topology, len(peers) * views)  # several views are complete
        self.register_buffer("listening", rows, persistent=False)
        self.register_buffer("left_at", torch.full((len(peers),), -1))
        self.exchange_every, self.all_peers = exchange_every, peers
        self.mine, self.heard = who_hears(self.listening, self.views, self.rows)
        if exchange_every > 1:
            most = max(sum(p.numel() for p in peer.parameters()) for peer in peers)
            self.register_buffer("copies", next(peers[0].parameters()).new_zeros(len(peers), most))
        self.turns = len(peers) if update == "in_turn" else 1
        self.needs_progress = ramp_epochs > 0 or exchange_every > 1
        self.disjoint, self.wants = disjoint, Wants(views=views, index=disjoint)

    def forward(self, batch: Batch, progress: Progress = Progress()) -> Output:
        """`ce`: each peer learns from the labels. `mimicry`: each peer learns from the others, which are constants."""
        x = joined(batch.inputs)  # [V·B, ...]
        learning = range(len(self.peers)) if self.update == "simultaneous" else [progress.turn]
        each = [(call if i in learning else idle)(peer, x) for i, peer in enumerate(self.peers)]  # K times [V·B, C]
        checks.one_width(each)
        own = torch.cat(each).reshape(-1, len(batch.labels), each[0].shape[-1])  # [K·V, B, C]
        ce, mimicry = self._scores(own, batch.labels, progress.step, x)  # [K·V, B]
        if self.disjoint:
            assert batch.index is not None
            peers = torch.arange(len(self.all_peers), device=ce.device)[self.rows].repeat_interleave(self.views)
            others = peers[:, None] != self._owner(batch.index)  # [K·V, B]
            ce, mimicry = (len(self.all_peers) * term.masked_fill(others, 0) for term in (ce, mimicry))
        if self.update == "in_turn":
            assert progress.turn is not None
            learner = slice(progress.turn * self.views, (progress.turn + 1) * self.views)
            ce, mimicry = ce[learner], mimicry[learner]
        weight = self.weight * self.temperature**2
        terms = {"ce": ce.mean(1).sum(), "mimicry": weight * mimicry.mean(1).sum()}
        if self.ramp_epochs:
            terms["mimicry"] = terms["mimicry"] * ramp(progress, self.ramp_epochs, terms["mimicry"].dtype)
        return Output(terms, own.detach()[:: self.views])

    def _scores(self, own: Tensor, labels: Tensor, step: Tensor, x: Input) -> tuple[Tensor, Tensor]:
        """Cross-entropy and mimicry of each prediction, 0 for who has left. `[k, B, C], [B(, C)] -> [k, B], [k, B]`."""
        closed = self.complete and self.mimicry == "pairwise" and self.temperature == 1
        if closed and self.update == "simultaneous" and labels.dim() == 1:
            ce, mimicry = mutual(own, labels, partial(self._mean_of_others, step=step), self.smoothing)
        else:
            log_p = losses.log_probs(own, self.temperature)
            mimicry = self._from_mean(log_p, step) if self.complete else self._from_all(log_p, labels, step, x)
            shared = log_p if self.temperature == 1 else losses.log_probs(own)
            ce = losses.nll(shared, labels, self.smoothing)
        if self.complete:
            mimicry = mimicry * (len(self.listening) - 1) if self.reduce == "sum" else mimicry / self._present(mimicry)
        silent = self._gone(self.rows) & (self.left_at < 0).any()  # were all silent, the loss would be 0
        return torch.where(silent[:, None], 0, ce), torch.where(silent[:, None], 0, mimicry)  # NaN times 0 is NaN

    def _owner(self, index: Tensor) -> Tensor:
        """Whose each image is, scrambled: images are often in the order of their classes. `[B] -> [B]`."""
        return (index * 2654435761 % 2**32 >> 16) % len(self.all_peers)

    def left(self) -> Tensor:
        """The step at which each peer left the others' mean, -1 for one that is in it."""
        return self.left_at

    def _gone(self, peers: Sequence[int] | slice) -> Tensor:
        """Which of these peers' predictions are of some that have left, `[k·V]`."""
        return (self.left_at[peers] >= 0)[:, None].expand(-1, self.views).reshape(-1)

    def _leave(self, neg_entropy: Tensor, step: Tensor, peers: Sequence[int] | slice) -> Tensor:
        """A peer whose Σ p log p is NaN leaves; not inside torch.func, where nothing can be written.

        Returns: which of the predictions are of peers that have left. `[k·V, B] -> [k·V]`.
        """
        if not _transformed(neg_entropy):
            left = self.left_at[peers]
            self.left_at[peers] = torch.where(self._bad(neg_entropy) & (left < 0), step, left)
        return self._gone(peers)

    def _bad(self, neg_entropy: Tensor) -> Tensor:
        """Whose Σ p log p is NaN anywhere in the batch; it is never infinite. `[k·V, B] -> [k]`."""
        sums = neg_entropy.reshape(-1, self.views * neg_entropy.shape[1]).sum(1)
        return self.whole_batch(sums[None]).isnan().any(0)

    def _mean_of_others(self, own: Tensor, step: Tensor) -> Tensor:
        """The exchange, with 0 for who has left: `_present` times the mean of the others that remain. `[k, B, C+1]`."""
        return self.exchange(own.masked_fill_(self._leave(own[..., -1], step, self.rows)[:, None, None], 0))

    def _present(self, like: Tensor) -> Tensor:
        """The share of the other predictions that are in the mean, known after the exchange; 1 if nobody has left."""
        others = (self.left_at < 0).sum() * self.views - 1
        return others.clamp_min(1).to(like) / (len(self.listening) - 1)

    def _from_mean(self, log_p: Tensor, step: Tensor) -> Tensor:
        """Mimicry of the mean of all the others. `[k, B, C] -> [k, B]`."""
        constants = log_p.detach()
        p = constants.exp()
        message = torch.cat([p, (p * constants).sum(-1, keepdim=True)], -1)  # [k, B, C+1]: Σ p log p travels beside p
        others = self._mean_of_others(message, step)
        target, constant = others[..., :-1], others[..., -1]
        if self.mimicry == "dml_e":
            share = self._present(target)
            constant = share * neg_entropy(target / share)
        return constant - (target * log_p).sum(-1)

    def _from_all(self, log_p: Tensor, labels: Tensor, step: Tensor, x: Input) -> Tensor:
        """Mimicry of whom each peer learns from. `[k, B, C], [B(, C)] -> [k, B]`."""
        if self.exchange_every == 1:
            all_log_p, mine = self.gather(log_p.detach())  # [K, B, C]
            gone = self._leave(informed(all_log_p), step, slice(None))  # [K]
        else:
            self._leave(informed(log_p.detach()), step, self.rows)
            all_log_p, mine = self._copies_say(x, step, log_p.detach()), self.mine
            gone = self._bad(informed(all_log_p))[:, None].expand(-1, self.views).reshape(-1)
        all_log_p = all_log_p.masked_fill(gone[:, None, None], 0)
        rows = shares(self.listening[mine].to(log_p), gone, self.reduce)  # [k, K]
        voices = targets.Voices(all_log_p, self.temperature, labels, rows, mine, gone, self.whole_batch)
        target, constant = targets.of(self.target, voices)  # [k, B, C], [k, B]
        if self.mimicry == "dml_e":
            constant = neg_entropy(target)
        forward = constant - (target * log_p).sum(-1)
        if self.mimicry != "symmetric":
            return forward
        own = log_p.exp()
        backward = rows.sum(1)[:, None] * (own * log_p).sum(-1) - (own * mix(rows, all_log_p)).sum(-1)
        return (forward + backward) / 2

    @torch.no_grad()
    def _copies_say(self, x: Input, step: Tensor, like: Tensor) -> Tensor:
        """log p of every copy, exchanged first if due; 0 for whom nobody hears. `like [k·V, B, C] -> [K·V, B, C]`."""
        if self.training and int(step) % self.exchange_every == 0:
            everyone, _ = self.gather(flat(self.peers, self.copies.shape[1])[:, None])
            self.copies.copy_(everyone[:, 0])
        log_p = like.new_zeros(len(self.all_peers), self.views, *like.shape[1:])  # [K, V, B, C]
        for i in self.heard:
            logits = idle(self.all_peers[i], x, self.copies[i])
            log_p[i] = losses.log_probs(logits.view_as(log_p[i]), self.temperature)
        return log_p.flatten(0, 1)

    def students(self) -> dict[str, nn.Module]:
        """The peers."""
        return {f"peer{i}": peer for i, peer in enumerate(self.peers)}

    def ensemble(self) -> nn.Module | None:
        """The mean of the peers' probabilities, of those that have not left."""
        here = [peer for peer, left in zip(self.peers, self.left_at.tolist(), strict=True) if left < 0]
        return MeanProbability(here) if len(here) > 1 else None

    def shard(self, students: Sequence[int], exchange: Exchange, gather: Gather | None = None) -> DML | None:
        """A DML over some of the peers, the same modules; None where peers are updated in turn, and where one needs
        more than the mean of the others and there is no `gather`."""
        if self.update == "in_turn" or not (self.complete or gather):
            return None
        part = copy.copy(self)
        part._modules = {"peers": nn.ModuleList(self.peers[i] for i in students)}
        part.exchange, part.gather, part.rows = exchange, gather or self.gather, list(students)
        part.mine, part.heard = who_hears(self.listening, self.views, part.rows)
        return part

    def param_groups(self) -> list[dict[str, Any]]:
        """One group per peer: the gradient of the summed loss is block-diagonal, so this *is* K optimizers."""
        return [{"name": f"peer{i}", "params": list(peer.parameters())} for i, peer in enumerate(self.peers)]


def _refuse_equal(peers: Sequence[nn.Module]) -> None:
    """Peers with equal weights predict the same and teach each other nothing, unless dropout sets them apart."""
    for i, a in enumerate(peers):
        check_ready(a)
        for j, b in enumerate(peers[:i]):
            if a is b:
                raise InputError(f"dml: peers {j} and {i} are one and the same network; give each peer its own")
            if drawing_layer(a) is None and _equal(a, b):
                why = "start with equal weights, so they would stay equal and learn nothing from each other"
                hint = "start each from its own seed, or break the symmetry by dropout or views=2"
                raise InputError(f"dml: peers {j} and {i} {why}; {hint}")


def _equal(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    return ours.keys() == theirs.keys() and all(torch.equal(p, theirs[name]) for name, p in ours.items())

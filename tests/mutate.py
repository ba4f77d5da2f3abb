"""Are the tests any good? Break the losses and methods in the ways ports of them are broken, and see who notices.

Each mutant replaces a text that must be in its file exactly once, in a copy of the package, never in the working tree;
then the tests of that file run. A mutant that survives is a missing test: the exit code is 1. `make mutate` runs all,
`python tests/mutate.py dml one` those whose file or name holds one of the words.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "teacherless"
AT_ONCE = 2


class Mutant(NamedTuple):
    """One way to be wrong."""

    name: str
    file: str  # of the package
    old: str
    new: str


class Verdict(NamedTuple):
    """What became of it."""

    killer: str  # "" if it lives
    seconds: float


LOSSES, DML, ONE, METHOD = "losses.py", "methods/dml.py", "methods/one.py", "method.py"
MUTUAL, PARTS, COPIES = "methods/_mutual.py", "methods/_parts.py", "methods/_copies.py"
TARGETS, TOPOLOGY = "methods/_targets.py", "methods/_topology.py"
DDGSD, KD, FITNETS, BYOT = "methods/ddgsd.py", "methods/kd.py", "methods/fitnets.py", "methods/byot.py"
FRSKD, PSKD, TFKD, CSKD = "methods/frskd.py", "methods/ps_kd.py", "methods/tf_kd.py", "methods/cs_kd.py"
PLAIN, SMOOTHING, SNAPSHOT = "methods/plain.py", "methods/label_smoothing.py", "methods/snapshot.py"
ZIPF, MEAN = "methods/zipf_ls.py", "methods/mean_teacher.py"
PCL, OKDDIP = "methods/pcl.py", "methods/okddip.py"
DLB, RDROP, COSUB = "methods/dlb.py", "methods/r_drop.py", "methods/cosub.py"

MUTANTS = [
    Mutant("KL direction flipped", LOSSES, "(log_q.exp() * (log_q - log_p))", "(log_p.exp() * (log_p - log_q))"),
    Mutant("KL: T² dropped", LOSSES, "return temperature**2 * (log_q", "return (log_q"),
    Mutant("KL: T instead of T²", LOSSES, "return temperature**2 * (log_q", "return temperature * (log_q"),
    Mutant("KL: mean over classes", LOSSES, "(log_q - log_p)).sum(-1)", "(log_q - log_p)).mean(-1)"),
    Mutant("KL: only the target softened", LOSSES, "log_probs(logits, temperature), log_probs(target",
           "log_probs(logits), log_probs(target"),
    Mutant("temperature ignored", LOSSES, "full(logits) / temperature", "full(logits)"),
    Mutant("temperature in the wrong place", LOSSES, "F.log_softmax(full(logits) / temperature, dim=-1)",
           "F.log_softmax(full(logits), dim=-1) / temperature"),
    Mutant("half precision stays half", LOSSES, "return x.float() if", "return x if"),
    Mutant("CE: smoothing ignored", LOSSES, "return hard if smoothing == 0 else", "return hard if True else"),
    Mutant("CE: smoothing over the wrong classes only", LOSSES, "- smoothing * whole * log_p.mean(-1)",
           "- smoothing * whole * (log_p.sum(-1) + hard) / (log_p.shape[-1] - 1)"),
    Mutant("CE: smoothing without the weights", LOSSES, "smoothing * whole * log_p", "smoothing * log_p"),
    Mutant("soft CE: mean over classes", LOSSES, "* log_probs(logits)).sum(-1)", "* log_probs(logits)).mean(-1)"),
    Mutant("CE: the likeliest class of a mixed image only", LOSSES, "hard = -(full(labels) * log_p).sum(-1)",
           "hard = -(full(labels) * log_p).amax(-1)"),
    Mutant("mutual: gradient of who listens to nobody", MUTUAL, "by_mimicry[rows] * q.sum(-1, keepdim=True)",
           "by_mimicry[rows]"),
    Mutant("mutual: smoothing has no gradient", MUTUAL, "if ctx.smoothing:", "if False:"),
    Mutant("mutual: target's gradient flipped", MUTUAL, "by_mimicry[rows], value=-1)", "by_mimicry[rows], value=1)"),
    Mutant("mutual: what was kept is spoilt for a second gradient", MUTUAL, "g = here * (by_ce", "g = here.mul_(by_ce"),
    Mutant("mutual: no second derivative", MUTUAL, "if torch.is_grad_enabled():", "if False:"),
    Mutant("entropy: sign", LOSSES, "return -(log_p.exp() * log_p)", "return (log_p.exp() * log_p)"),
    Mutant("virtual teacher: rest over all classes", LOSSES, "(like.shape[-1] - 1)", "like.shape[-1]"),
    Mutant("MMD per sample", LOSSES, "(full(a).mean(0) - full(b).mean(0)).square().sum()",
           "(full(a) - full(b)).square().sum(1).mean()"),
    Mutant("MMD: mean over features", LOSSES, "full(b).mean(0)).square().sum()", "full(b).mean(0)).square().mean()"),
    Mutant("MMD of scalar means", LOSSES, "(full(a).mean(0) - full(b).mean(0))", "(full(a).mean() - full(b).mean())"),
    Mutant("MMD: unbiased without its share", LOSSES, ".var(0).sum() / len(a)", ".var(0).sum()"),
    Mutant("MSE: sum over entries", LOSSES, ".square().flatten(1).mean(1)", ".square().flatten(1).sum(1)"),
    Mutant("attention not scaled", LOSSES, "F.normalize(full(x).square().mean(1).flatten(1), dim=1)",
           "full(x).square().mean(1).flatten(1)"),
    Mutant("attention: signed mean over channels", LOSSES, "full(x).square().mean(1)", "full(x).mean(1)"),
    #
    Mutant("terms averaged, not added", METHOD, "torch.stack(list(self.terms.values())).sum()",
           "torch.stack(list(self.terms.values())).mean()"),
    Mutant("teacher in train mode", PARTS, "still(net).eval()", "still(net).train()"),
    Mutant("teacher not copied", PARTS, "still(net).eval()", "net.eval()"),
    Mutant("teacher learns", PARTS, ".requires_grad_(False)", ".requires_grad_(True)"),
    Mutant("ensemble: mean of logits", PARTS, "call(net, x).float().log_softmax(-1)", "call(net, x).float()"),
    #
    Mutant("plain: smoothing ignored", PLAIN, "batch.labels, self.smoothing", "batch.labels"),
    Mutant("label smoothing: never set", SMOOTHING, "self.smoothing = smoothing", "pass"),
    Mutant("snapshot: the cycles do not share the epochs", SNAPSHOT, "return -(-amount // len(self.phases))",
           "return amount"),
    Mutant("snapshot: shares rounded down", SNAPSHOT, "return -(-amount // len(self.phases))",
           "return max(1, amount // len(self.phases))"),
    Mutant("snapshot: all in one place", SNAPSHOT, "self.snapshots[done - 1].load", "self.snapshots[0].load"),
    Mutant("snapshot: the last cycle left out", SNAPSHOT, "[*self.snapshots, self.student]", "[*self.snapshots]"),
    #
    Mutant("DML: own prediction kept in the mean of others", DML,
           "return torch.sub(total, own, alpha=1 / rest, out=own)", "return own.copy_(total.expand_as(own))"),
    Mutant("DML: mean over K, not K-1", DML, "rest = len(own) - 1", "rest = len(own)"),
    Mutant("DML: 1/(K-1) dropped", DML, "rest = len(own) - 1", "rest = 1"),
    Mutant("DML: peers not constant", DML, "constants = log_p.detach()", "constants = log_p"),
    Mutant("DML: gathered predictions not constant", DML, "self.gather(log_p.detach())", "self.gather(log_p)"),
    Mutant("DML: T² dropped", DML, "self.weight * self.temperature**2", "self.weight"),
    Mutant("DML: symmetric, backwards only", DML, "return (forward + backward) / 2", "return backward"),
    Mutant("DML: symmetric, forwards only", DML, "return (forward + backward) / 2", "return forward"),
    Mutant("DML: symmetric, not halved", DML, "return (forward + backward) / 2", "return forward + backward"),
    Mutant("DML: topology transposed", DML, "self.listening[mine].to", "self.listening.t()[mine].to"),
    Mutant("DML: ring the other way", TOPOLOGY, "[(k - 1) % peers]", "[(k + 1) % peers]"),
    Mutant("DML: strong to weak", TOPOLOGY, '"weak-to-strong": [*range(k + 1, peers)]',
           '"weak-to-strong": [*range(k)]'),
    Mutant("DML: variant sum multiplies by K", DML, "mimicry * (len(self.listening) - 1)",
           "mimicry * len(self.listening)"),
    Mutant("DML_e is DML", DML, "constant = share * neg_entropy(target / share)", "pass"),
    Mutant("DML: weight ignored", DML, "self.weight * self.temperature**2", "self.temperature**2"),
    Mutant("DML: ramp ignored", DML, "        if self.ramp_epochs:\n", "        if False:\n"),
    Mutant("DML: smoothing ignored", DML, "losses.nll(shared, labels, self.smoothing)", "losses.nll(shared, labels)"),
    Mutant("DML: CE softened too", DML, "shared = log_p if self.temperature == 1 else", "shared = log_p if True else"),
    Mutant("DML: smoothing ignored in the closed form", DML, "step=step), self.smoothing)", "step=step))"),
    Mutant("DML: any temperature is the closed form", DML, '"pairwise" and self.temperature == 1', '"pairwise"'),
    Mutant("DML: shares as labels are the closed form", DML, " and labels.dim() == 1", ""),
    Mutant("DML: views, not peers, in the log", DML, "own.detach()[:: self.views]", "own.detach()[: len(self.peers)]"),
    Mutant("DML in turn: idle peers' buffers move", COPIES, "functional_call(peer, state, *arguments(x))",
           "peer(*arguments(x))"),
    Mutant("stale copies: today's weights", COPIES, "if weights is not None:", "if False:"),
    Mutant("stale copies: new at every step", DML, "int(step) % self.exchange_every == 0", "True"),
    Mutant("disjoint: another's images", DML, "peers[:, None] != self._owner", "peers[:, None] == self._owner"),
    Mutant("disjoint: means over the whole batch", DML, "(len(self.all_peers) * term.masked_fill", "(term.masked_fill"),
    Mutant("disjoint: dealt in their order", DML, "(index * 2654435761 % 2**32 >> 16)", "index"),
    Mutant("DML in turn: all learn in every turn", DML, "ce, mimicry = ce[learner], mimicry[learner]", "pass"),
    Mutant("DML in turn: one turn only", DML, 'len(peers) if update == "in_turn" else 1', "1"),
    Mutant("DML: one group for all peers", DML, 'return [{"name": f"peer{i}", "params": list(peer.parameters())} '
           "for i, peer in enumerate(self.peers)]", 'return [{"name": "peer0", "params": list(self.parameters())}]'),
    #
    Mutant("selective: who knows it worse", TARGETS, "(nll < nll[voices.mine][:, None])",
           "(nll > nll[voices.mine][:, None])"),
    Mutant("selective: everyone", TARGETS, "(nll < nll[voices.mine][:, None])", "(nll < torch.inf)"),
    Mutant("selective: added up", TARGETS, "return rows / rows.sum(1, keepdim=True).clamp_min(", "return rows; ("),
    Mutant("selective: whom it does not listen to", TARGETS, "voices.rows[:, :, None] * (nll",
           "torch.ones_like(voices.rows)[:, :, None] * (nll"),
    Mutant("targets: knows better after softening", TARGETS, "losses.log_probs(self.temperature * self.log_p)",
           "self.log_p"),
    Mutant("naive: the worst", TARGETS, "torch.inf).argmin(0)", "-torch.inf).argmax(0)"),
    Mutant("naive: who has left", TARGETS, ".masked_fill(voices.gone[:, None], torch.inf).argmin", ".argmin"),
    Mutant("min-logit: the label's logit kept", TARGETS, "voices.log_p - voices.log_p.gather(-1, right)",
           "voices.log_p"),
    Mutant("min-logit: the highest", TARGETS, "torch.inf).amin(0)", "-torch.inf).amax(0)"),
    Mutant("linear: no search", TARGETS, "for _ in range(STEPS):", "for _ in range(0):"),
    Mutant("linear: uphill", TARGETS, "log_a = log_a - (mean", "log_a = log_a + (mean"),
    Mutant("linear: found at another temperature", TARGETS, "simplex(voices.temperature * log_p", "simplex(log_p"),
    Mutant("linear, general: of our part of the batch", TARGETS, "return log_p, self.whole_batch(self.labels)",
           "return self.log_p, self.labels"),
    Mutant("general: all weigh the same", TARGETS, "w = w / w.sum()", "w = here / here.sum()"),
    Mutant("general: weights do not add up to 1", TARGETS, "w = w / w.sum()", "pass"),
    Mutant("general: below 0", TARGETS, "here = here & (w > 0)", "pass"),
    Mutant("general: left out only once", TARGETS, "for _ in range(len(gone)):", "for _ in range(2):"),
    Mutant("general: who has left", TARGETS, "here = ~gone", "here = torch.ones_like(gone)"),
    Mutant("general: who has left sets the scale", TARGETS, "errors.masked_fill(gone[:, None, None], 0)", "errors"),
    Mutant("general: predictions, not errors", TARGETS, " - losses.virtual_teacher(labels, log_p[0], correct=1)", ""),
    Mutant("general: each error by itself", TARGETS, "e @ e.t()", "(e @ e.t()) * torch.eye(len(e))"),
    Mutant("general: nothing on the diagonal", TARGETS, "numbers.eps**0.5 * one", "0 * one"),
    Mutant("general: a mixture of logits", TARGETS, ".log()[:, None, None] + voices.log_p).logsumexp(0)",
           "[:, None, None] * voices.log_p).sum(0).log_softmax(-1)"),
    Mutant("targets: entropy of the target dropped", TARGETS, "h = (q * log_q).sum(-1)", "h = 0 * log_q.sum(-1)"),
    #
    Mutant("ONE: the gate's axis swapped", ONE, ".softmax(1)  # [B, m]", ".softmax(0)  # [B, m]"),
    Mutant("ONE: ensemble not constant", ONE, "losses.kl(each, mixed.detach(), self.temperature)",
           "losses.kl(each, mixed, self.temperature)"),
    Mutant("ONE: branches teach the ensemble", ONE, "losses.kl(each, mixed.detach(), self.temperature)",
           "losses.kl(mixed, each.detach(), self.temperature)"),
    Mutant("ONE: mean over branches", ONE, "* kl).mean(1).sum()", "* kl).mean(1).mean()"),
    Mutant("ONE: kl_weight ignored", ONE, "self.kl_weight * (ramp(", "(ramp("),
    Mutant("ramp off by one", PARTS,
           "left = 1 - progress.epoch.to(dtype)", "left = 1 - (progress.epoch.to(dtype) + 1)"),
    Mutant("ramp goes on rising", PARTS, ".clamp(max=epochs)", ""),
    Mutant("ONE: ensemble's smoothing ignored", ONE, "losses.ce(mixed, batch.labels, self.smoothing)",
           "losses.ce(mixed, batch.labels)"),
    Mutant("ONE: new branches are copies", ONE, "student.pretrained if copy_init is None else copy_init", "True"),
    Mutant("ONE: ensemble by mean where there is a gate", ONE, "if self.gate is None:\n            return",
           "if True:\n            return"),
    #
    Mutant("DDGSD: other view not constant", DDGSD, "z.detach() if self.detach else z", "z"),
    Mutant("DDGSD: always constant", DDGSD, "z.detach() if self.detach else z", "z.detach()"),
    Mutant("DDGSD: the target learns", DDGSD, "losses.kl(z[:, None], target[None]",
           "losses.kl(target[:, None], z[None]"),
    Mutant("DDGSD: 1/V instead of 1/(V-1)", DDGSD, "/ (count - 1))", "/ count)"),
    Mutant("DDGSD: first view's labels only", DDGSD, "losses.ce(z, batch.labels, self.smoothing).mean(1).sum()",
           "losses.ce(z, batch.labels, self.smoothing).mean(1)[0]"),
    Mutant("DDGSD: views' order in the log", DDGSD, "Output(terms, z[:1].detach())", "Output(terms, z[-1:].detach())"),
    Mutant("DDGSD: views and samples mixed up", DDGSD,
           "torch.cat([logits for logits, _ in parts]).reshape(count, len(batch.labels), -1)",
           "torch.cat([logits for logits, _ in parts]).reshape(len(batch.labels), count, -1).transpose(0, 1)"),
    Mutant("DDGSD: class mean with T²", DDGSD, "(z.shape[-1] * self.temperature**2)", "z.shape[-1]"),
    Mutant("DDGSD: never joint", DDGSD, "if self.joint else", "if False else"),
    #
    Mutant("KD: teacher and student swapped", KD, "losses.kl(logits, target, self.temperature)",
           "losses.kl(target, logits, self.temperature)"),
    Mutant("KD: ce_weight ignored", KD, "self.ce_weight * losses", "losses"),
    Mutant("KD: temperature ignored", KD, "losses.kl(logits, target, self.temperature)", "losses.kl(logits, target)"),
    #
    Mutant("FitNets: weight falls the wrong way", FITNETS,
           "self.kd_weight_start + (self.kd_weight_end - self.kd_weight_start) * done",
           "self.kd_weight_end + (self.kd_weight_start - self.kd_weight_end) * done"),
    Mutant("FitNets: weight off by one epoch", FITNETS, "(progress.epochs - 1)", "progress.epochs"),
    Mutant("FitNets: the hint trains everything", FITNETS, '"hint": lower', '"hint": list(self.parameters())'),
    Mutant("FitNets: another stage guided", FITNETS, "self._miss(maps[self.guided], x)", "self._miss(maps[1], x)"),
    Mutant("FitNets: phases the wrong way round", FITNETS, '= ("hint", "kd")', '= ("kd", "hint")'),
    Mutant("FitNets: hint_weight ignored", FITNETS, "self.hint_weight * self._miss", "self._miss"),
    #
    Mutant("BYOT: deepest exit distilled", BYOT, "each = torch.stack([losses.full(z) for z in shallow])",
           "each = torch.stack([*(losses.full(z) for z in shallow), logits])"),
    Mutant("BYOT: deepest exit not constant", BYOT, "self._distil(each, logits.detach())",
           "self._distil(each, logits)"),
    Mutant("BYOT: deepest map not constant", BYOT, "losses.mse(f, maps[-1].detach())", "losses.mse(f, maps[-1])"),
    Mutant("BYOT: alpha the wrong way round", BYOT, "(1 - self.alpha) * losses.ce(each", "self.alpha * losses.ce(each"),
    Mutant("BYOT: released with T²", BYOT, "losses.log_probs(target, self.temperature).exp())",
           "losses.log_probs(target, self.temperature).exp()) * self.temperature**2"),
    Mutant("BYOT: released hint for every exit", BYOT, 'len(shallow) - 1 if hint == "distance"',
           'len(shallow) if hint == "distance"'),
    #
    Mutant("FRSKD: refined prediction not constant", FRSKD, "losses.kl(logits, target.detach()",
           "losses.kl(logits, target"),
    Mutant("FRSKD: refined maps not constant", FRSKD, "losses.attention(f, t.detach())", "losses.attention(f, t)"),
    Mutant("FRSKD: the refiner learns from the network", FRSKD, "losses.kl(logits, target.detach()",
           "losses.kl(target, logits.detach()"),
    Mutant("FRSKD: mean over stages", FRSKD, "torch.stack(misses).mean(1).sum()", "torch.stack(misses).mean()"),
    Mutant("FRSKD: released, one 1x1 for both ways", FRSKD, "if self.again:\n            entered",
           "if False:\n            entered"),
    Mutant("FRSKD: mixing weights not normalised", FRSKD, "weight = weight / (weight.sum() + 1e-6)", "pass"),
    #
    Mutant("PS-KD: memory read after write", PSKD, "past = self.memory[batch.index]",
           "self.memory[batch.index] = losses.log_probs(logits.detach()).exp().to(self.memory.dtype)\n"
           "        past = self.memory[batch.index]"),
    Mutant("PS-KD: alpha off by one", PSKD, "(progress.epoch.to(ce.dtype) + 1)", "progress.epoch.to(ce.dtype)"),
    Mutant("PS-KD: evaluation is remembered", PSKD, "if self.training:", "if True:"),
    Mutant("PS-KD: rows mixed up", PSKD, "self.memory[self.whole_batch(batch.index)] =",
           "self.memory[: len(batch.index)] ="),
    Mutant("PS-KD: logits remembered", PSKD, "losses.log_probs(logits.detach()).exp()", "logits.detach()"),
    Mutant("PS-KD: no past counts as zeros", PSKD, "torch.where(no_past, ce, losses.soft_ce(logits, past))",
           "losses.soft_ce(logits, past)"),
    #
    Mutant("DLB: the same distortion again", DLB, "self._keep([*leaves(later)", "self._keep([*leaves(now)"),
    Mutant("DLB: the past learns", DLB, "place.copy_(x.detach())", "place.copy_(x)"),
    Mutant("DLB: past and present swapped", DLB, "losses.kl(again, target,", "losses.kl(target, again,"),
    Mutant("DLB: labels of the new images only", DLB, "ce = torch.cat([losses.ce(again, labels, self.smoothing), ce])",
           "pass"),
    Mutant("DLB: evaluation is remembered", DLB, "if self.training:", "if True:"),
    Mutant("DLB: no fixed place", DLB, "!= [(x.shape, x.dtype) for x in self.last]", "!= []"),
    Mutant("DLB: lost by resume", DLB, "enumerate(self.last)})", "enumerate([])})"),
    Mutant("DLB: a loaded state is written to", DLB, ".to(device, copy=True)", ".to(device)"),
    #
    Mutant("R-Drop: one draw is a constant", RDROP, "losses.kl(z, z.flip(0))", "losses.kl(z, z.detach().flip(0))"),
    Mutant("R-Drop: both draws are one", RDROP, "logits.chunk(2)",
           "[logits[: len(logits) // 2]] * 2"),
    Mutant("R-Drop: directions added up", RDROP, "losses.kl(z, z.flip(0)).mean()",
           "losses.kl(z, z.flip(0)).mean(1).sum()"),
    Mutant("R-Drop: CE of both averaged", RDROP, "self.smoothing).mean(1).sum()", "self.smoothing).mean()"),
    Mutant("R-Drop: dropout in evaluation", RDROP, "self.dropout, self.training)", "self.dropout, True)"),
    Mutant("R-Drop: dropout beside the student's own", RDROP, "0.0 if draws else dropout", "dropout"),
    Mutant("cosub: the other submodel learns as a target", COSUB, "z.detach().flip(0)", "z.flip(0)"),
    Mutant("cosub: its own teacher", COSUB, "z.detach().flip(0)", "z.detach()"),
    Mutant("cosub: weights swapped", COSUB, "(1 - self.weight) * hard", "self.weight * hard"),
    Mutant("cosub: sigmoids summed over classes", COSUB, "losses.bce(z, others.sigmoid()) / z.shape[-1]",
           "losses.bce(z, others.sigmoid())"),
    Mutant("cosub: softmax as a sigmoid's target", COSUB, "others.sigmoid()", "others.softmax(-1)"),
    Mutant("Zipf: the right class is in the softmax", ZIPF, "logits.masked_fill(right, -torch.inf)", "logits"),
    Mutant("Zipf: the right class has a target", ZIPF, ".pow(-self.power).masked_fill(right, 0)", ".pow(-self.power)"),
    Mutant("Zipf: equal scores share the worst rank", ZIPF, "right=True) + 1", "right=False)"),
    Mutant("Zipf: the lowest score is first", ZIPF, "self.votes(maps[-1]", "-self.votes(maps[-1]"),
    Mutant("Zipf: rises with the rank", ZIPF, ".pow(-self.power)", ".pow(self.power)"),
    Mutant("Zipf: an earlier map votes", ZIPF, "losses.full(rank(scores)", "losses.full(rank(logits.detach())"),
    Mutant("Zipf: map not enlarged", ZIPF, "if self.upsample > 1:", "if False:"),
    Mutant("Zipf: entropy of the target dropped", ZIPF, "(torch.xlogy(q, q) - q * log_p)", "(-q * log_p)"),
    Mutant("Zipf: weight ignored", ZIPF, "self.weight * kl.mean()", "kl.mean()"),
    Mutant("mean teacher: the average stands still", MEAN, "if self.training:", "if False:"),
    Mutant("mean teacher: evaluation moves it", MEAN, "if self.training:", "if True:"),
    Mutant("mean teacher: it sees the student's distortion", MEAN, "call(self.teacher, batch.inputs[1])",
           "call(self.teacher, batch.inputs[0])"),
    Mutant("mean teacher: the student is its own teacher", MEAN, "call(self.teacher, batch.inputs[1])",
           "call(self.student, batch.inputs[1])"),
    Mutant("mean teacher: the average learns", MEAN, "losses.kl(logits, target,", "losses.kl(target, logits,"),
    Mutant("mean teacher: ramp ignored", MEAN, "self.weight * rise * apart", "self.weight * apart"),
    Mutant("mean teacher: weight ignored", MEAN, "self.weight * rise * apart", "rise * apart"),
    Mutant("mean teacher: logits, not probabilities", MEAN, "losses.log_probs(target).exp())", "target)"),
    Mutant("PCL: everyone sees one distortion", PCL, "zip(self.branched.nets, inputs, strict=True)",
           "zip(self.branched.nets, inputs[:1] * len(inputs), strict=True)"),
    Mutant("PCL: averages see another distortion", PCL, "zip(self.averages.nets, batch.inputs, strict=True)",
           "zip(self.averages.nets, batch.inputs[::-1], strict=True)"),
    Mutant("PCL: peers are their own averages", PCL, "(self.averages.nets, batch", "(self.branched.nets, batch"),
    Mutant("PCL: its own average among the others", PCL, "means[:i] + means[i + 1 :]", "means"),
    Mutant("PCL: the averages stand still", PCL, "if self.training:", "if False:"),
    Mutant("PCL: evaluation moves them", PCL, "if self.training:", "if True:"),
    Mutant("PCL: the ensemble learns from the peers", PCL, "together.detach(), self", "together, self"),
    Mutant("PCL: the ensemble learns no labels", PCL, "losses.ce(together, ", "losses.ce(together.detach(), "),
    Mutant("PCL: sum over the averages", PCL, "losses.kl(z, theirs, self.temperature).mean()",
           "losses.kl(z, theirs, self.temperature).mean(1).sum()"),
    Mutant("PCL: mean over the peers", PCL, "torch.stack(mean).sum()", "torch.stack(mean).mean()"),
    Mutant("PCL: weights exchanged", PCL, '"distil": self.kl_weight * rise', '"distil": self.mean_weight * rise'),
    Mutant("PCL: no ramp", PCL, '"mean": self.mean_weight * rise *', '"mean": self.mean_weight *'),
    Mutant("PCL: the averages learn", PCL, "still(self.branched)", "still(self.branched).requires_grad_(True)"),
    Mutant("OKDDip: whom is told, not who listens", OKDDIP, ".log_softmax(1)", ".log_softmax(0)"),
    Mutant("OKDDip: keys are queries", OKDDIP, "full(self.key(read))", "full(self.query(read))"),
    Mutant("OKDDip: the leader is listened to", OKDDIP, "embedding, _ in looks[1:]", "embedding, _ in looks[:-1]"),
    Mutant("OKDDip: the leader is a peer", OKDDIP, "each[0], each[1:]", "each[0], each[:-1]"),
    Mutant("OKDDip: the mean learns from the leader", OKDDIP, "told = peers.detach() if self.constant else peers",
           "told = peers"),
    Mutant("OKDDip: attention moves what it reads", OKDDIP, "read.detach() if self.constant else read", "read"),
    Mutant("OKDDip: never anything but constants", OKDDIP, "told = peers.detach() if self.constant else peers",
           "told = peers.detach()"),
    Mutant("OKDDip: sum, not mean, of all peers", OKDDIP, "-math.log(len(told))", "0.0"),
    Mutant("OKDDip: one mix is the other", OKDDIP, 'if self.mix == "logits":', 'if self.mix != "logits":'),
    Mutant("OKDDip: the mixture is not softened", OKDDIP, "log_probs(told, self.temperature)", "log_probs(told)"),
    Mutant("OKDDip: T dropped", OKDDIP, "return self.temperature * (share", "return 1.0 * (share"),
    Mutant("OKDDip: no ramp", OKDDIP, "self.kl_weight * ramp(progress, self.ramp_epochs, ",
           "self.kl_weight * ramp(progress, 0, "),
    Mutant("OKDDip: the leader is in the ensemble", OKDDIP, "Probability(self.branched.nets[1:])",
           "Probability(self.branched.nets)"),
    Mutant("moving average: no fast start", PARTS, "((1 + n) / (10 + n)).clamp(max=decay)", "decay + 0 * n"),
    Mutant("BCE: weight ignored", LOSSES, "whole * F.softplus", "F.softplus"),
    #
    Mutant("TF-KD: virtual teacher's probabilities as logits", TFKD, "oracle.log()", "oracle"),
    Mutant("TF-KD: alpha the wrong way round", TFKD, "(1 - self.alpha)", "self.alpha"),
    Mutant("TF-KD: multiplier ignored", TFKD, "self.alpha * self.multiplier * distil", "self.alpha * distil"),
    Mutant("TF-KD: class mean ignored", TFKD, "if self.class_mean:", "if False:"),
    #
    Mutant("CS-KD: partner with gradient", CSKD, "with torch.no_grad():", "with torch.enable_grad():"),
    Mutant("CS-KD: its own partner", CSKD, "call(self.student, batch.inputs[-1])",
           "call(self.student, batch.inputs[0])"),
    Mutant("CS-KD: the partner learns", CSKD, "losses.kl(logits, target,", "losses.kl(target, logits,"),
]  # fmt: skip


def suites(file: str) -> list[list[str]]:
    """The tests of a file of the package, the quickest first."""
    if file == LOSSES:
        return [["tests/test_losses.py"]]
    matrix = "tests/test_all_methods.py"
    if file == MUTUAL:
        return [["tests/test_losses.py"], ["tests/methods/test_dml.py"]]
    if file in (TARGETS, TOPOLOGY, COPIES):
        first = "tests/methods/test_dml_copies.py" if file == COPIES else "tests/methods/test_targets.py"
        return [[first], ["tests/methods/test_dml.py", "tests/methods/test_dml_full.py"]]
    if file in (METHOD, PARTS):
        quick = [f"tests/methods/test_{name}.py" for name in ("kd", "dml", "one", "mean_teacher")]
        return [quick, [matrix]]
    stem = Path(file).stem
    own = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "methods").glob(f"test_{stem}*.py"))
    return [*([own] if own else []), [matrix, "-k", f"[{stem.replace('_', '-')}]"]]


def copy_package(folder: Path) -> Path:
    """The package, in a folder that goes first on the path."""
    shutil.copytree(PACKAGE, folder / "teacherless", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of this Python that imports the package from `where`."""
    environment = {**os.environ, "PYTHONPATH": str(where), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


def pytest(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(where, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no", *arguments)


def mutate(text: str, mutant: Mutant) -> str:
    """The broken text. Raises: SystemExit if there is not exactly one place to break."""
    count = text.count(mutant.old)
    if count != 1:
        raise SystemExit(
            f"mutate: {mutant.name!r}: {mutant.file} holds its text {count} times, not once: {mutant.old!r}"
        )
    broken = text.replace(mutant.old, mutant.new)
    compile(broken, mutant.file, "exec")
    return broken


def judge(mutant: Mutant) -> Verdict:
    """Who kills it."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        where = copy_package(Path(name))
        file = where / "teacherless" / mutant.file
        file.write_text(mutate(file.read_text(), mutant))
        for suite in suites(mutant.file):
            done = pytest(where, "-x", *suite)
            found = re.search(r"^FAILED (.*?)( - .*)?$", done.stdout, re.MULTILINE)
            if found:
                return Verdict(found[1], time.perf_counter() - began)
            if done.returncode != 0:  # neither passed nor failed: then it says nothing
                raise SystemExit(f"mutate: {mutant.name!r}: {' '.join(suite)} did not run:\n{done.stdout}{done.stderr}")
    return Verdict("", time.perf_counter() - began)


def check_killers(killers: Sequence[str]) -> None:
    """What killed a mutant must pass on the package as it is. Raises: SystemExit."""
    with tempfile.TemporaryDirectory() as name:
        where = copy_package(Path(name))
        told = run(where, "-c", "import teacherless; print(teacherless.__file__)").stdout
        if not told.startswith(str(where)):
            raise SystemExit(f"mutate: the copy in {where} is not what is imported, but {told}")
        done = pytest(where, *sorted({killer.partition("[")[0] for killer in killers}))
    if killers and done.returncode != 0:
        raise SystemExit(f"mutate: these fail without a mutant:\n{done.stdout}")


def main(words: Sequence[str]) -> int:
    chosen = [m for m in MUTANTS if not words or any(word.lower() in f"{m.name} {m.file}".lower() for word in words)]
    for mutant in chosen:
        mutate((PACKAGE / mutant.file).read_text(), mutant)
    width = max(len(mutant.name) for mutant in chosen)
    killers, survivors = [], []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for mutant, verdict in zip(chosen, pool.map(judge, chosen), strict=True):
            (killers if verdict.killer else survivors).append(verdict.killer or mutant.name)
            print(f"{mutant.name:{width}}  {verdict.seconds:4.0f} s  {verdict.killer or 'SURVIVED'}", flush=True)
    check_killers(killers)
    print(f"{len(killers)} of {len(chosen)} killed" + "".join(f"\nsurvived: {name}" for name in survivors))
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

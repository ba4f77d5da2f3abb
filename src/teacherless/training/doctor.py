"""What a run's own numbers say is wrong with it: findings, each with its evidence and what to try.

Pure functions of what a run recorded. They look at training and validation, never at test; what cannot be told from few
epochs or few images is not said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from teacherless import losses
from teacherless.evaluation.metrics import constant, predicted
from teacherless.files import schemas
from teacherless.files.schemas import Finding
from teacherless.method import Batch, Method

FAR = 100  # times larger or smaller than cross-entropy
ALIKE = 0.001  # mean difference of two peers' probabilities: half the sum over classes
SAME_ERRORS = 0.95  # share of what either of two peers gets wrong, to which both give one answer
ERRORS = 20  # that are enough to say so
GAP = 5.0  # points of validation accuracy between a strong and a weak peer
FEW = 5  # validation images of a class, with fewer nothing is said of it
COARSE = 10.0  # points: a validation set that shows no smaller difference chooses by chance
SPREADS = 2.8  # standard errors: what a test at 5 % sees four times in five, 1.96 + 0.84
Findings = Iterator[tuple[str, str, str]]
LOWER_RATE = "a lower --lr, some --warmup-epochs, or --clip-grad 1"


class Record(NamedTuple):
    """What a run recorded."""

    lines: Sequence[Mapping[str, Any]]  # of metrics.jsonl
    students: Sequence[str]
    logits: Mapping[str, Tensor]  # on validation, [N, C]: of the students, and the "ensemble"; empty without validation
    labels: Tensor  # of validation, [N]
    classes: Sequence[str] = ()  # their names, where they are known
    listening: Tensor | None = None  # [K, K], row k the weights of whom student k listens to; None for other methods
    left: str = ""  # who is not finite, and since when
    same_views: bool = False  # of the first batch
    frozen: Sequence[str] = ()  # students whose batch norm was in evaluation mode

    def top1(self, name: str) -> float:
        """On validation, percent."""
        return 100 * float((predicted(self.logits[name]) == self.labels).double().mean())

    def column(self, key: str) -> list[float]:
        """`train/nll` or another metric of every epoch, the mean over students; of epochs that have it."""
        keys = [f"{key}/{name}" for name in self.students]
        each = [[line[k] for k in keys if line.get(k) is not None] for line in self.lines]
        return [sum(values) / len(values) for values in each if values]


def examine(run: Record) -> list[Finding]:
    """All findings, what spoils most first."""
    findings = [finding for check in CHECKS for finding in check(run)]
    return [{"finding": what, "evidence": evidence, "advice": advice} for what, evidence, advice in findings]


def listening(method: Method, students: Collection[str]) -> Tensor | None:
    """Which of these students learns from which, of a method that says so. `[k, k]`."""
    rows = getattr(method, "listening", None)
    known = rows is not None and len(rows) == len(method.students()) and float(getattr(method, "weight", 1.0)) > 0
    here = [name in students for name in method.students()]
    return rows[here][:, here] if rows is not None and known else None


def frozen_norms(students: Mapping[str, nn.Module]) -> list[str]:
    """The students with a batch norm that is in evaluation mode."""
    kind = nn.modules.batchnorm._BatchNorm
    norms = {name: [each for each in net.modules() if isinstance(each, kind)] for name, net in students.items()}
    return [name for name, layers in norms.items() if not all(layer.training for layer in layers)]


def same_views(method: Method, batch: Batch) -> bool:
    """Whether a batch that should hold several distortions of each image holds one several times."""
    first, *others = batch.inputs[: method.wants.views]
    if not others or not isinstance(first, Tensor) or len(first) < FEW:
        return False
    return all(isinstance(view, Tensor) and torch.equal(first, view) for view in others)


# The checks: what is wrong, how that is known, what to try ----------------------------------------------------------


def exploded(run: Record) -> Findings:
    """Cross-entropy far above chance, or that rises again, or a network that says one thing of all images."""
    dead = [name for name in run.students if run.logits and constant(run.logits[name])]
    if dead:
        yield "a network is dead", f"{', '.join(dead)}: the same logits for every validation image", LOWER_RATE
        return
    classes = max((z.shape[1] for z in run.logits.values()), default=None)
    for name in run.students:
        nll = [line[key] for line in run.lines if line.get(key := f"train/nll/{name}") is not None]
        for epoch, value in enumerate(nll):
            least = min(nll[:epoch], default=math.inf)
            if (classes and value > 2 * math.log(classes)) or value > max(3 * least, 0.5):
                before = "" if math.isinf(least) else f", after {least:.2f}"
                evidence = f"{name}'s cross-entropy in training was {value:.2f} in epoch {epoch + 1}{before}"
                yield "training broke down", evidence, LOWER_RATE
                break


def left(run: Record) -> Findings:
    """Peers that are not finite."""
    if run.left:
        evidence = f"{run.left}: not in their mean, not shipped"
        yield "the others went on without a peer", evidence, "a lower --lr, or --clip-grad 1"


def frozen(run: Record) -> Findings:
    """Batch norm in evaluation mode."""
    if run.frozen:
        evidence = f"{', '.join(run.frozen)}: batch norm was in evaluation mode while the run trained"
        yield "batch norm did not train", evidence, "call train() on the whole method, unless it is frozen on purpose"


def identical_views(run: Record) -> Findings:
    """There is nothing to agree on."""
    if run.same_views:
        evidence = "in the first batch all views of every image are equal"
        yield "the views are identical", evidence, "draw the distortion of each view anew"


def size_of_mimicry(run: Record) -> Findings:
    """What is not cross-entropy, beside cross-entropy, over the whole training."""
    labels = taught = 0.0
    names: set[str] = set()
    for line in run.lines:
        ce, others = schemas.terms(line)
        if ce:  # not in a phase without labels
            names.update(others)
            labels += sum(ce.values())
            taught += sum(others.values())
    if not names or not labels or 1 / FAR <= (ratio := abs(taught / labels)) <= FAR:
        return
    if ratio > FAR:
        verdict, size, weight = "drowns the labels", f"{ratio:,.0f} times larger", "smaller"
    else:
        smaller = f"{1 / ratio:,.0f} times smaller" if ratio else "0: smaller"
        verdict, size, weight = "hardly counts", smaller, "larger"
    evidence = f"over the whole training it was {size} than cross-entropy"
    yield f"{' + '.join(sorted(names))} {verdict}", evidence, f"a {weight} weight (--set), and `teacherless explain`"


def collapsed(run: Record) -> Findings:
    """Peers that say the same teach each other nothing."""
    for a, b in combinations([name for name in run.students if name in run.logits], 2):
        z = torch.stack([run.logits[a], run.logits[b]])
        p, q = losses.log_probs(z).exp()
        distance = float((p - q).abs().sum(1).mean()) / 2
        guess = predicted(z)
        wrong = (guess != run.labels).any(0)
        errors, same = int(wrong.sum()), int((guess[0] == guess[1])[wrong].sum())
        if distance < ALIKE:
            evidence = f"on validation the probabilities of {a} and {b} differ by {distance:.1g} in the mean"
        elif errors >= ERRORS and same >= SAME_ERRORS * errors:
            evidence = f"of {errors} validation images that {a} or {b} gets wrong, both take {same} for the same class"
        else:
            continue
        advice = "let them start apart, see other views (--set views=2), or mimic less"
        yield "peers have collapsed into each other", evidence, advice
        return


def weak_peer(run: Record) -> Findings:
    """A strong student that learns from a much weaker one."""
    if run.listening is None or not run.logits:
        return
    top1 = [run.top1(name) for name in run.students]
    for strong, weak in run.listening.nonzero().tolist():
        spread = math.sqrt(sum(_variance(top1[i], len(run.labels)) for i in (strong, weak)))
        if top1[strong] - top1[weak] > max(GAP, 3 * spread) and 100 - top1[weak] > 2 * (100 - top1[strong]):
            learner = f"{run.students[strong]} ({top1[strong]:.1f} % on validation)"
            evidence = f"{learner} learns from {run.students[weak]} ({top1[weak]:.1f} %)"
            advice = "--set topology=weak-to-strong, the strongest last; or peers alike"
            yield "a weak peer drags a strong one", evidence, advice
            return


def unlearned_classes(run: Record) -> Findings:
    """Classes that nobody gets right, and classes that only the ensemble does."""
    top1 = max((run.top1(name) for name in run.students if run.logits), default=0.0)
    images = run.labels.long().bincount()
    if top1 * len(images) < 200:  # twice chance: less is no sign of a class
        return
    right = {name: run.labels[predicted(z) == run.labels] for name, z in run.logits.items()}
    percent = {name: 100 * each.bincount(minlength=len(images)) / images for name, each in right.items()}
    best = torch.stack([percent[name] for name in run.students]).amax(0)
    ensemble = percent.get("ensemble", best).maximum(best)
    for kind, those, advice in (
        ("no student learns", ensemble <= 0.1 * top1, "list data (its images, its labels), or --balanced-sampler"),
        ("only the ensemble learns", (ensemble >= 40) & (best <= ensemble / 2), "ship the ensemble, or more epochs"),
    ):
        classes = (those & (images >= FEW)).nonzero().flatten().tolist()
        if classes:
            first, *others = classes
            more = f" (and {len(others)} more)" if others else ""
            name = run.classes[first] if run.classes else first
            one, all_ = (f"{float(share[first]):.0f} %" for share in (best, ensemble))
            scores = f"the best student gets {one} right, all together {all_}"
            yield f"{kind} class {name}{more}", f"of {int(images[first])} validation images, {scores}", advice


def small_validation(run: Record) -> Findings:
    """Too few images to choose a student, an epoch or a setting by."""
    if run.logits and (least := visible(max(run.top1(name) for name in run.students), len(run.labels))) > COARSE:
        evidence = f"on {len(run.labels)} images a difference under {least:.0f} points is chance"
        advice = "a larger --val-fraction, or compare over several seeds"
        yield "the validation set is too small to choose by", evidence, advice


def wrong_length(run: Record) -> Findings:
    """Validation accuracy in the last fifth of the epochs: against the fifth before, and against the best one."""
    top1, nll, fifth = run.column("val/top1"), run.column("val/nll"), len(run.lines) // 5
    if not fifth or len(top1) != len(run.lines):
        return
    means = [sum(top1[i : i + fifth]) / fifth for i in range(len(top1) - fifth + 1)]
    then, last, best = means[-1 - fifth], means[-1], max(means)
    noise = 2 * math.sqrt(_variance(last, len(run.labels)) / len(run.students))
    if last - then > max(1.0, noise) and nll[-1] < 1.02 * min(nll):
        evidence = f"validation accuracy rose from {then:.1f} to {last:.1f} % in the last {fifth} of {len(top1)} epochs"
        yield "training ended too early", evidence, "more --epochs, before any other change: plain gains from them too"
    elif best - last > max(1.0, noise):
        evidence = f"validation accuracy fell from {best:.1f} to {last:.1f} % after epoch {means.index(best) + fifth}"
        yield "training went on too long", evidence, "fewer --epochs: what is learnt last may be wrong labels"


CHECKS: tuple[Callable[[Record], Findings], ...] = (
    left,
    exploded,
    frozen,
    identical_views,
    size_of_mimicry,
    collapsed,
    weak_peer,
    unlearned_classes,
    wrong_length,
    small_validation,
)


def visible(top1: float, images: int) -> float:
    """The smallest difference of two networks, in points, that so many images show four times in five at 5 %.

    Each is right on `top1` percent (at least one image is taken to be wrong), and they err half on the same images.
    """
    return SPREADS * math.sqrt(_variance(top1, images))


def _variance(top1: float, images: int) -> float:
    """Of an accuracy in percent that was measured on so many images; as if at least one of them was wrong."""
    share = min(max(top1 / 100, 0.0), 1 - 1 / max(images, 2))
    return 1e4 * share * (1 - share) / max(images, 1)

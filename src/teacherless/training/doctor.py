"""What a run's own numbers say is wrong with it: findings, each with its evidence and what to try.

Pure functions of what a run recorded. They look at training and validation, never at test; what cannot be told from few
epochs or few images is not said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
        each = [[line[f"{key}/{name}"] for name in self.students if line.get(f"{key}/{name}") is not None]
                for line in self.lines]  # fmt: skip
        return [sum(values) / len(values) for values in each if values]


def examine(run: Record) -> list[Finding]:
    """All findings, what spoils most first."""
    return [found for check in CHECKS for found in check(run)]


def listening(method: Method, students: Collection[str]) -> Tensor | None:
    """Which of these students learns from which, of a method that says so. `[k, k]`."""
    rows = getattr(method, "listening", None)
    known = rows is not None and len(rows) == len(method.students()) and float(getattr(method, "weight", 1.0)) > 0
    here = [name in students for name in method.students()]
    return rows[here][:, here] if rows is not None and known else None


def frozen_norms(students: Mapping[str, nn.Module]) -> list[str]:
    """The students with a batch norm that is in evaluation mode."""
    kind = nn.modules.batchnorm._BatchNorm
    return [name for name, net in students.items()
            if any(isinstance(layer, kind) and not layer.training for layer in net.modules())]  # fmt: skip


def same_views(method: Method, batch: Batch) -> bool:
    """Whether a batch that should hold several distortions of each image holds one several times."""
    first, *others = batch.inputs[: method.wants.views]
    if not others or not isinstance(first, Tensor) or len(first) < FEW:
        return False
    return all(isinstance(view, Tensor) and torch.equal(first, view) for view in others)


# The checks ----------------------------------------------------------------------------------------------------------


def exploded(run: Record) -> Iterator[Finding]:
    """Cross-entropy far above chance, or that rises again, or a network that says one thing of all images."""
    advice = "a lower --lr, some --warmup-epochs, or --clip-grad 1"
    dead = [name for name in run.students if run.logits and constant(run.logits[name])]
    if dead:
        evidence = f"{', '.join(dead)}: the same logits for every validation image"
        yield {"finding": "a network is dead", "evidence": evidence, "advice": advice}
        return
    classes = max((z.shape[1] for z in run.logits.values()), default=None)
    for name in run.students:
        nll = [line[key] for line in run.lines if line.get(key := f"train/nll/{name}") is not None]
        for epoch, value in enumerate(nll):
            least = min(nll[:epoch], default=math.inf)
            if (classes and value > 2 * math.log(classes)) or value > max(3 * least, 0.5):
                before = "" if math.isinf(least) else f", after {least:.2f}"
                evidence = f"{name}'s cross-entropy in training was {value:.2f} in epoch {epoch + 1}{before}"
                yield {"finding": "training broke down", "evidence": evidence, "advice": advice}
                break


def left(run: Record) -> Iterator[Finding]:
    """Peers that are not finite."""
    if run.left:
        yield {"finding": "the others went on without a peer",
               "evidence": f"{run.left}: not in their mean, not shipped",
               "advice": "a lower --lr, or --clip-grad 1"}  # fmt: skip


def frozen(run: Record) -> Iterator[Finding]:
    """Batch norm in evaluation mode."""
    if run.frozen:
        yield {"finding": "batch norm did not train",
               "evidence": f"{', '.join(run.frozen)}: batch norm was in evaluation mode while the run trained",
               "advice": "call train() on the whole method, unless it is frozen on purpose"}  # fmt: skip


def identical_views(run: Record) -> Iterator[Finding]:
    """There is nothing to agree on."""
    if run.same_views:
        yield {"finding": "the views are identical",
               "evidence": "in the first batch all views of every image are equal",
               "advice": "draw the distortion of each view anew"}  # fmt: skip


def size_of_mimicry(run: Record) -> Iterator[Finding]:
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
    large = ratio > FAR
    size = f"{ratio:,.0f} times larger" if large else f"{1 / ratio:,.0f} times smaller" if ratio else "0: smaller"
    yield {"finding": f"{' + '.join(sorted(names))} {'drowns the labels' if large else 'hardly counts'}",
           "evidence": f"over the whole training it was {size} than cross-entropy",
           "advice": f"a {'smaller' if large else 'larger'} weight (--set), and `teacherless explain`"}  # fmt: skip


def collapsed(run: Record) -> Iterator[Finding]:
    """Peers that say the same teach each other nothing."""
    for a, b in combinations([name for name in run.students if name in run.logits], 2):
        z = torch.stack([run.logits[a], run.logits[b]])
        apart = float((losses.log_probs(z[0]).exp() - losses.log_probs(z[1]).exp()).abs().sum(1).mean()) / 2
        guess = predicted(z)
        wrong = (guess != run.labels).any(0)
        errors, same = int(wrong.sum()), int((guess[0] == guess[1])[wrong].sum())
        if apart < ALIKE:
            evidence = f"on validation the probabilities of {a} and {b} differ by {apart:.1g} in the mean"
        elif errors >= ERRORS and same >= SAME_ERRORS * errors:
            evidence = f"of {errors} validation images that {a} or {b} gets wrong, both take {same} for the same class"
        else:
            continue
        yield {"finding": "peers have collapsed into each other", "evidence": evidence,
               "advice": "let them start apart, see other views (--set views=2), or mimic less"}  # fmt: skip
        return


def weak_peer(run: Record) -> Iterator[Finding]:
    """A strong student that learns from a much weaker one."""
    if run.listening is None or not run.logits:
        return
    top1 = [run.top1(name) for name in run.students]
    for strong, weak in run.listening.nonzero().tolist():
        spread = math.sqrt(sum(_variance(top1[i], len(run.labels)) for i in (strong, weak)))
        if top1[strong] - top1[weak] > max(GAP, 3 * spread) and 100 - top1[weak] > 2 * (100 - top1[strong]):
            yield {"finding": "a weak peer drags a strong one",
                   "evidence": f"{run.students[strong]} ({top1[strong]:.1f} % on validation) learns from "
                               f"{run.students[weak]} ({top1[weak]:.1f} %)",
                   "advice": "--set topology=weak-to-strong, the strongest last; or peers alike"}  # fmt: skip
            return


def unlearned_classes(run: Record) -> Iterator[Finding]:
    """Classes that nobody gets right, and classes that only the ensemble does."""
    usual = max((run.top1(name) for name in run.students if run.logits), default=0.0)
    images = run.labels.long().bincount()
    if usual * len(images) < 200:  # twice chance: less is no sign of a class
        return
    right = {name: 100 * run.labels[predicted(z) == run.labels].bincount(minlength=len(images)) / images
             for name, z in run.logits.items()}  # fmt: skip
    best = torch.stack([right[name] for name in run.students]).amax(0)
    together = right.get("ensemble", best).maximum(best)
    for kind, those, advice in (
        ("no student learns", together <= 0.1 * usual, "list data (its images, its labels), or --balanced-sampler"),
        ("only the ensemble learns", (together >= 40) & (best <= together / 2), "ship the ensemble, or more epochs"),
    ):
        classes = (those & (images >= FEW)).nonzero().flatten().tolist()
        if classes:
            more = f" (and {len(classes) - 1} more)" if classes[1:] else ""
            first = classes[0]
            evidence = (f"of {int(images[first])} validation images, the best student gets {float(best[first]):.0f} % "
                        f"right, all together {float(together[first]):.0f} %")  # fmt: skip
            name = run.classes[first] if run.classes else first
            yield {"finding": f"{kind} class {name}{more}", "evidence": evidence, "advice": advice}


def small_validation(run: Record) -> Iterator[Finding]:
    """Too few images to choose a student, an epoch or a setting by."""
    if run.logits and (least := visible(max(run.top1(name) for name in run.students), len(run.labels))) > COARSE:
        yield {"finding": "the validation set is too small to choose by",
               "evidence": f"on {len(run.labels)} images a difference under {least:.0f} points is chance",
               "advice": "a larger --val-fraction, or compare over several seeds"}  # fmt: skip


def undertrained(run: Record) -> Iterator[Finding]:
    """Still improving when it ended: validation accuracy in the last fifth of the epochs against the fifth before."""
    top1, nll, fifth = run.column("val/top1"), run.column("val/nll"), len(run.lines) // 5
    if not fifth or len(top1) != len(run.lines):
        return
    before, last = (sum(part) / fifth for part in (top1[-2 * fifth : -fifth], top1[-fifth:]))
    noise = 2 * math.sqrt(_variance(last, len(run.labels)) / len(run.students))
    if last - before > max(1.0, noise) and nll[-1] < 1.02 * min(nll):
        yield {"finding": "training ended too early",
               "evidence": f"validation accuracy rose from {before:.1f} to {last:.1f} % in the last {fifth} of "
                           f"{len(top1)} epochs",
               "advice": "more --epochs, before any other change: plain gains from them too"}  # fmt: skip


CHECKS: tuple[Callable[[Record], Iterable[Finding]], ...] = (
    left, exploded, frozen, identical_views, size_of_mimicry, collapsed, weak_peer, unlearned_classes, undertrained,
    small_validation,
)  # fmt: skip


def visible(top1: float, images: int) -> float:
    """The smallest difference of two networks, in points, that so many images show four times in five at 5 %.

    Each is right on `top1` percent (at least one image is taken to be wrong), and they err half on the same images.
    """
    return SPREADS * math.sqrt(_variance(top1, images))


def _variance(top1: float, images: int) -> float:
    """Of an accuracy in percent that was measured on so many images; as if at least one of them was wrong."""
    share = min(max(top1 / 100, 0.0), 1 - 1 / max(images, 2))
    return 1e4 * share * (1 - share) / max(images, 1)

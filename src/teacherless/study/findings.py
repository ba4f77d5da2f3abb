"""Every analysis of finished runs that applies to them: a table, a figure, and one line on what it shows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from teacherless import losses
from teacherless.data import Loader, Source
from teacherless.data.augment.distort import Augment
from teacherless.errors import InputError, first_line
from teacherless.files import schemas
from teacherless.method import Batch
from teacherless.methods import METHODS
from teacherless.methods.one import ONE
from teacherless.models.staged import Insides
from teacherless.network import evaluating
from teacherless.runs.build import build_method
from teacherless.runs.config import Run
from teacherless.study import plots, statistics
from teacherless.study import plots_of_networks as of_networks
from teacherless.study import tables as analysis
from teacherless.study.flatness import filter_normalised, flatness, relative_noise, unit_length
from teacherless.study.outcome import headline
from teacherless.training import checkpoint

NOISE = (0.1, 0.2, 0.3, 0.4, 0.5)  # std, in RMS of each tensor
DISTANCE = (0.2, 0.4, 0.6, 0.8, 1.0)  # in filter norms
LENGTH = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)  # of a step in weight space
DRAWS = 3  # of noise and of directions
FLAT_SEEDS = 3  # flatness looks at the networks of this many seeds,
FLAT_BATCHES = 2  # and at this many batches of 256 training images: it evaluates each network 51 times
SHOWN = 500  # samples in a feature map


class Predictions(NamedTuple):
    """What a network makes of N images."""

    logits: Tensor  # [N, C]
    features: Tensor | None  # [N, D], what the head reads; None for a network whose insides have no names
    labels: Tensor  # [N]


class AnalysedRun(NamedTuple):
    """One run, and what its students make of the data.

    Where one network must stand for a run, it is the first with plain's architecture: what validation prefers is
    another question (see `outcome`).
    """

    label: str
    kind: str  # its label without how many students it has
    run: Run
    folder: Path
    nets: dict[str, nn.Module]
    like_plain: list[str]  # the students with plain's architecture
    summary: dict[str, Any]  # summary.json
    train: Loader  # undistorted, at most SAMPLES
    views: Loader  # two distortions of test images, at most SAMPLES
    test: Loader  # validation images where there are no test images; photos of others where persons are searched for
    on_train: dict[str, Tensor]  # logits [N, C] of every student
    on_test: dict[str, Tensor]
    features: dict[str, Tensor]  # [at most SAMPLES, D] on test, of students whose insides have names
    train_labels: Tensor  # [N]
    test_labels: Tensor  # [N]; of others, no classes
    feature_labels: Tensor

    @property
    def first(self) -> str:
        """The student that stands for the run."""
        return self.like_plain[0]

    @property
    def net(self) -> nn.Module:
        """Its network."""
        return self.nets[self.first]

    @property
    def accuracy(self) -> float:
        """Of one network trained this way, percent: on test, or on validation where there is no test."""
        return fmean(_headline(self.summary["students"][name]) for name in self.like_plain)


Groups = dict[str, list[AnalysedRun]]  # label -> its runs, by seed; in the order of METHODS, so plain first


class Finding(NamedTuple):
    """One analysis: the files' name, the table, its figure, and what it shows."""

    name: str
    table: Any
    draw: Callable[[Path], list[Path]]
    says: str


@torch.no_grad()
def look(net: nn.Module, batches: Iterable[Batch], view: int = 0) -> Predictions:
    """What a network makes of some images, on the CPU."""
    logits, features, labels = [], [], []
    with evaluating([net]):
        for batch in batches:
            x = batch.inputs[view]
            if isinstance(net, Insides):
                _, embedding, z = net.look(x)
                features.append(losses.full(embedding).flatten(1).cpu())
            else:
                z = net(x)
            logits.append(losses.full(z).cpu())
            labels.append(batch.labels.cpu())
    return Predictions(torch.cat(logits), torch.cat(features) if features else None, torch.cat(labels))


# What it shows -------------------------------------------------------------------------------------------------------


def learning(groups: Groups, source: Source) -> Iterator[Finding]:
    """How training went, method against plain."""
    curves = {label: [analysis.curves(schemas.lines(s.folder)) for s in group] for label, group in groups.items()}
    for name, key, what, draw in (
        ("training-curves", "train_nll", "training cross-entropy", plots.training_curves),
        ("entropy-per-epoch", "train_entropy", "entropy while training", plots.entropy_per_epoch),
    ):
        last: dict[str, float | None] = {
            label: analysis.average([table[key][-1] for table in tables])  # type: ignore[literal-required]
            for label, tables in curves.items()
        }
        if any(value is not None for value in last.values()):
            says = f"{what} of the last epoch: {_each(last, '{:.4f}')} nats"
            yield Finding(name, curves, partial(draw, curves), says)


def certainty(groups: Groups, source: Source) -> Iterator[Finding]:
    """How sure the students are, on what they have learnt and on what they have not seen."""
    table = {
        split: {
            label: analysis.average([analysis.posterior(z) for s in group for z in which(s).values()])
            for label, group in groups.items()
        }
        for split, which in (("train", attrgetter("on_train")), ("test", attrgetter("on_test")))
    }
    entropy = [_each({k: t["entropy"] for k, t in tables.items()}, "{:.4f}") for tables in table.values()]
    says = f"mean entropy in nats on train: {entropy[0]}; on test: {entropy[1]}"
    yield Finding("posteriors", table, partial(of_networks.top5, table), says)


def calibration(groups: Groups, source: Source) -> Iterator[Finding]:
    """Is a student as right as it is sure? The students of all seeds together."""
    if source.reid:
        return
    table = {}
    for label, group in groups.items():
        each = [(s.on_test[name], s.test_labels) for s in group for name in s.like_plain]
        logits, labels = (torch.cat(parts) for parts in zip(*each, strict=True))
        table[label] = analysis.reliability(logits, labels)
    over = {}
    for label, bins in table.items():
        n = sum(b["count"] for b in bins)
        over[label] = 100 * sum(b["count"] / n * ((b["confidence"] or 0) - (b["accuracy"] or 0)) for b in bins)
    says = f"confidence minus accuracy, points: {_each(over, '{:+.2f}')}"
    yield Finding("reliability", table, partial(of_networks.reliability, table), says)


def help_(groups: Groups, source: Source) -> Iterator[Finding]:
    """Does it help, and which classes? Against plain, and DML against KD from a frozen network, seed by seed."""
    dml = {label: group for label, group in groups.items() if group[0].run.method == "dml"}
    for name, baseline, rivals in (("accuracy", "plain", groups), ("dml-against-kd", "kd", dml)):
        base = {s.run.seed: s for s in groups.get(baseline, [])}
        paired = {label: [s for s in group if s.run.seed in base] for label, group in rivals.items()}
        others = {label: group for label, group in paired.items() if group and label != baseline}
        if not others:
            continue
        per_seed = {label: {s.run.seed: s.accuracy for s in groups[label]} for label in (baseline, *others)}
        differences = statistics.compare(per_seed[baseline], {label: per_seed[label] for label in others})
        verdicts = [statistics.verdict(label, difference) for label, difference in differences.items()]
        table = {"baseline": baseline, "per_seed": per_seed, "differences": differences, "verdicts": verdicts}
        table["caveat"] = statistics.CAVEAT
        metric = "mAP" if source.reid else "top-1"
        draw = partial(plots.accuracy, differences, per_seed, baseline=baseline, metric=metric)
        yield Finding(name, table, draw, f"against {baseline}: {'; '.join(verdicts)}")
        if baseline == "plain" and not source.reid:
            yield _class_gain(others, base, source.classes)


def _class_gain(others: Groups, plain: Mapping[int, AnalysedRun], classes: Sequence[str]) -> Finding:
    gains = {
        label: analysis.class_gain([_per_class(s) for s in group], [_per_class(plain[s.run.seed]) for s in group])
        for label, group in others.items()
    }
    helped = {label: sum((v or 0) > 0 for v in gain["gain"]) for label, gain in gains.items()}
    says = f"classes that gain, of {len(classes)}: {_each(helped, '{}')}"
    return Finding("class-gain", gains, partial(of_networks.class_gain, gains, classes), says)


def flat(groups: Groups, source: Source) -> Iterator[Finding]:
    """How flat the minima are, on training images: Gaussian noise on the weights, and random directions, in filter
    norms and (Lan et al. 2018, Figure 4) in absolute units."""
    for name, scales, direction, scale, unit in (
        ("weight-noise", NOISE, relative_noise, "noise std / RMS of the tensor", "RMS of noise on every tensor"),
        ("random-direction", DISTANCE, filter_normalised, "distance, in filter norms", "filter norms away"),
        ("unit-direction", LENGTH, unit_length, "distance in weight space", "away in a random unit direction"),
    ):
        moved = partial(flatness, scales=scales, direction=direction, draws=DRAWS)
        table = {
            label: analysis.average([moved(s.net, list(islice(s.train, FLAT_BATCHES))) for s in group[:FLAT_SEEDS]])
            for label, group in groups.items()
        }
        middle = len(scales) // 2
        rise = {k: None if t["loss"][middle] is None else t["loss"][middle] - t["start_loss"] for k, t in table.items()}
        says = f"rise of the loss, {scales[middle]} {unit}: {_each(rise, '{:.4f}')} nats"
        yield Finding(name, table, partial(of_networks.flatness, table, scale=scale), says)


def together(groups: Groups, source: Source) -> Iterator[Finding]:
    """How alike networks are that learnt together, and how alike independent ones: the first run of each label."""
    spread: dict[str, analysis.Variance] = {}
    for label, group in groups.items():
        one_each = len(group[0].nets) == 1
        if one_each and len(group) < 2:
            continue
        cohorts = [_independent(group)] if one_each else [(s.on_test, s.features) for s in group]
        name = f"{label} (independent)" if one_each else label
        logits, features = cohorts[0]
        each = [analysis.variance(torch.stack(list(z.values()))) for z, _ in cohorts]
        spread[name] = analysis.average(each) | {"networks": len(logits)}
        file = re.sub(r"[^\w.]+", "-", label)
        if not source.reid:
            table = analysis.peers(logits, group[0].test_labels)
            alike, errors = (_off_diagonal(table[key]) for key in ("agreement", "error_correlation"))
            same, gain = f"the same prediction for {alike:.2f} %", f"their mean gains {table['gain']:+.2f} points"
            says = f"{name}, {len(logits)} networks: {same}, errors correlate {errors:.2f}, {gain}"
            yield Finding(f"agreement-{file}", table, partial(of_networks.agreement, table, name), says)
        if len(features) == len(logits):
            similar = analysis.similarity(features)
            says = f"{name}: mean CKA of the features {_off_diagonal(similar['cka']):.3f}"
            yield Finding(f"similarity-{file}", similar, partial(of_networks.similarity, similar, name), says)
    if spread:
        says = "variance of the predictions, and distance of two networks': "
        says += _each({k: (v["variance"], v["distance"]) for k, v in spread.items()}, "{0[0]:.5f} and {0[1]:.4f}")
        yield Finding("variance", spread, partial(of_networks.variance, spread), says)


def sizes(groups: Groups, source: Source) -> Iterator[Finding]:
    """What more networks bring: cohorts of K, against K independent networks and their ensemble."""
    cohorts = [
        _cohort(s.kind, [s], s.summary["ensemble"] and _headline(s.summary["ensemble"]))
        for group in groups.values()
        for s in group
        if METHODS[s.run.method].cohort and len(s.like_plain) == len(s.nets) > 1
    ]
    if not cohorts:
        return
    plain = groups.get("plain", [])
    for k in sorted({1, *(len(cohort["top1"]) for cohort in cohorts)}):
        for first in range(0, len(plain) - k + 1, k):
            some = plain[first : first + k]
            logits = {str(i): s.on_test[s.first] for i, s in enumerate(some)}
            together = None if k == 1 or source.reid else analysis.peers(logits, some[0].test_labels)["ensemble"]
            cohorts.append(_cohort("independent", some, together))
    rows = analysis.cohort_size(cohorts)
    says = "; ".join(
        f"{row['kind']} K={row['size']}: one network {row['single']:.2f} %"
        + (f", ensemble {row['ensemble']:.2f} %" if row["ensemble"] is not None else "")
        for row in rows
    )
    metric = "mAP" if source.reid else "top-1"
    yield Finding("cohort-size", rows, partial(plots.cohort_size, rows, metric=metric), says)


def targets(groups: Groups, source: Source) -> Iterator[Finding]:
    """DML against DML_e: with two peers they are the same by definition, so only for larger cohorts."""
    large = [s for group in groups.values() for s in group if s.run.method == "dml" and len(s.nets) > 2]
    if large:
        s = large[0]
        table = analysis.dml_targets(torch.stack(list(s.on_train.values())), s.train_labels)
        entropies = f"{table['target_entropy']:.4f}, {table['peer_entropy']:.4f} nats"
        gradients = f"gradients differ by {table['gradient_difference']:.0e}"
        says = f"{gradients}; entropy of the others' mean, of one peer: {entropies}"
        yield Finding("dml-targets", table, partial(of_networks.dml_targets, table), says)


def gate(groups: Groups, source: Source) -> Iterator[Finding]:
    """Whom ONE's gate listens to, in the first run whose checkpoint still has it."""
    for s in (s for group in groups.values() for s in group if s.run.method == "one" and not source.reid):
        weights = gate_weights(s, source)
        if weights is not None:
            table = analysis.gates(weights, s.test_labels, len(source.classes))
            says = ", ".join(f"branch{i} {w:.3f}" for i, w in enumerate(table["mean"]))
            draw = partial(of_networks.gates, table, source.classes)
            yield Finding("gates", table, draw, f"mean gate weights: {says}")
            return


@torch.no_grad()
def gate_weights(run: AnalysedRun, source: Source) -> Tensor | None:
    """The gate's softmax on test, `[N, m]`. The gate is not shipped: it is read from the run's last checkpoint."""
    newest = checkpoint.read(run.folder / "checkpoints")
    method, _ = build_method(run.run, source)
    if newest is None or not isinstance(method, ONE) or method.gate is None:
        return None
    try:
        method.load_state_dict(checkpoint.unpack(newest[0], "method").tensors)
    except Exception as error:  # its checksums are right: whoever made it can have put in anything
        raise InputError(f"{newest[1]}: is no checkpoint of this run: {first_line(error)}") from error
    said: list[Tensor] = []
    hook = method.gate.register_forward_hook(lambda gate, inputs, out: said.append(losses.full(out).softmax(1).cpu()))
    with evaluating([method]):
        for batch in run.test:
            method.to(batch.inputs[0].device).predict(batch.inputs[0])
    hook.remove()
    return torch.cat(said)


def consistency(groups: Groups, source: Source) -> Iterator[Finding]:
    """Does a student see the same in two distortions of one test image?"""
    if source.augment == Augment():
        return
    table = {}
    for label, group in groups.items():
        each = []
        for s in group:
            a, b = (look(s.net, s.views.epoch(0), view) for view in (0, 1))
            each.append(analysis.consistency(a.logits, b.logits, a.features, b.features))
        table[label] = analysis.average(each)
    says = f"KL between the views: {_each({k: t['kl'] for k, t in table.items()}, '{:.5f}')} nats"
    yield Finding("consistency", table, partial(of_networks.consistency, table), says)


def maps(groups: Groups, source: Source) -> Iterator[Finding]:
    """One student's features in the plane, first seed each."""
    labels = next(iter(groups.values()))[0].feature_labels[:SHOWN]
    first = {label: group[0].features.get(group[0].first) for label, group in groups.items()}
    features = {label: f[:SHOWN] for label, f in first.items() if f is not None and len(f) >= 4}
    if not features or source.reid:
        return
    flat = {label: analysis.pca(f, labels) for label, f in features.items()}
    share = {label: 100 * sum(picture["explained"] or []) for label, picture in flat.items()}
    says = f"two components hold, % of the variance: {_each(share, '{:.0f}')}"
    yield Finding("features-pca", flat, partial(of_networks.feature_map, flat, source.classes), says)
    near = {label: analysis.tsne(f, labels) for label, f in features.items()}
    says = "who is near whom; distances between clusters mean nothing"
    yield Finding("features-tsne", near, partial(of_networks.feature_map, near, source.classes), says)


KINDS = (learning, certainty, calibration, help_, flat, together, sizes, targets, gate, consistency, maps)


# Small things --------------------------------------------------------------------------------------------------------


def _independent(group: Sequence[AnalysedRun]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Logits and features of one network per seed."""
    logits = {f"seed {s.run.seed}": s.on_test[s.first] for s in group}
    return logits, {f"seed {s.run.seed}": s.features[s.first] for s in group if s.first in s.features}


def _cohort(kind: str, runs: Sequence[AnalysedRun], ensemble: float | None) -> analysis.Cohort:
    """The networks of one run, or one each of several."""
    each = [(s, name) for s in runs for name in (s.nets if len(runs) == 1 else [s.first])]
    unsure = [
        fmean(float(losses.entropy(which(s)[name].double()).mean()) for s, name in each)
        for which in (attrgetter("on_test"), attrgetter("on_train"))
    ]
    top1 = [_headline(s.summary["students"][name]) for s, name in each]
    return analysis.Cohort(kind=kind, top1=top1, ensemble=ensemble, entropy=unsure[0], train_entropy=unsure[1])


def _headline(row: Mapping[str, Any]) -> float:
    tested = headline(row)
    return float(row["val_top1"]) if tested is None else tested


def _per_class(run: AnalysedRun) -> list[float | None]:
    each = [analysis.class_accuracy(run.on_test[name], run.test_labels) for name in run.like_plain]
    mean: list[float | None] = analysis.average(each)
    return mean


def _off_diagonal(matrix: Sequence[Sequence[float | None]]) -> float:
    """The mean of what exists off the diagonal; NaN where nothing does."""
    known = [v for i, row in enumerate(matrix) for j, v in enumerate(row) if i != j and v is not None]
    return sum(known) / len(known) if known else float("nan")


def _each(values: Mapping[str, Any], text: str) -> str:
    """`plain 0.1, dml 0.2`."""
    return ", ".join(f"{name} {'-' if v is None else text.format(v)}" for name, v in values.items())

"""One function per figure, from the tables of `statistics` and `analysis`.

Every function writes `path` with the endings `.png` and `.svg` and returns the two files. Drawn on `Figure` objects,
not through pyplot, so nothing global changes. The same table gives the same bytes. A method has its own colour and
marker in every figure: plain is black, the rest are those of Okabe and Ito (2008) and of Tol (2021), which people with
any colour vision can tell apart; several runs of one method are shades of it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator

from teacherless.files import disk
from teacherless.study.statistics import CAVEAT

if TYPE_CHECKING:
    from torch import Tensor

    from teacherless.study.statistics import Difference, Summary
    from teacherless.study.tables import (
        Bin,
        ClassGain,
        CohortRow,
        Consistency,
        Curves,
        Flatness,
        Gates,
        Peers,
        Picture,
        Posterior,
        Similarity,
        Targets,
        Variance,
    )

Axes = Any  # matplotlib has no types that mypy --strict accepts
BLACK, GRAY = "#000000", "#999999"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#882255", "#332288", "#999933", "#AA4499", "#661100",
           "#44AA99", "#B15928")  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
PALETTE = dict(zip(("dml", "one", "ddgsd", "label-smoothing", "kd", "ps-kd", "tf-kd", "fitnets", "byot", "frskd",
                    "cs-kd", "snapshot"), COLOURS, strict=True))  # fmt: skip
SHADES = (0.0, 0.45, 0.65, 0.25)  # how much white is in the colour of a method's first, second, ... runs
NUMBERED_CLASSES = 20  # of a confusion matrix with its numbers
NAMED_CLASSES = 40  # more are drawn without their names
COLOURED_CLASSES = 20


def accuracy(
    differences: Mapping[str, Difference],
    per_seed: Mapping[str, Mapping[int, float]],
    path: Path,
    *,
    baseline: str = "plain",
    metric: str = "top-1",
) -> list[Path]:
    """Does it help? Left the differences to the baseline with their intervals, right each seed's accuracy.

    Args:
        differences: of `statistics.compare`.
        per_seed: accuracy in percent by seed, of the baseline and of every method.
        path: of the files, without an ending.
        baseline: what the differences are to.
        metric: what was measured on test.
    """
    plain, names = per_seed[baseline], list(differences)
    all_names = [*names, baseline]
    figure, (left, right) = _figure(1, 2, width=10, height=1.6 + 0.45 * (len(names) + 1), ratios=(3, 2))
    look = _look(all_names)
    for y, name in enumerate(names):
        d, (colour, _) = differences[name], look[name]
        for interval, width in ((d["corrected"], 1.2), (d["interval"], 4)):
            if interval:
                left.plot(interval, (y, y), color=colour, lw=width, solid_capstyle="butt", zorder=2)
        seeds = sorted(plain.keys() & per_seed[name].keys())
        left.plot([per_seed[name][s] - plain[s] for s in seeds], [y + 0.22] * len(seeds), ".", color=GRAY, zorder=1)
        left.plot(d["mean"], y, "D", color="white", mec=colour, mew=1.5, ms=7, zorder=3)
    left.axvline(0, color=BLACK, lw=1)
    left.plot(0, len(names), "D", color="white", mec=look[baseline][0], mew=1.5, ms=7, zorder=3)
    left.set(title=f"difference to {baseline}", xlabel=f"test {metric}, percent points")
    keys = [Line2D([], [], color=BLACK, lw=4, label="95 %, this method alone"),
            Line2D([], [], color=BLACK, lw=1.2, label="widened for all methods (Holm)"),
            Line2D([], [], color=GRAY, lw=0, marker=".", label="one seed")]  # fmt: skip
    for y, name in enumerate(all_names):
        values = list(per_seed[name].values())
        right.plot(values, [y] * len(values), ".", color=GRAY, zorder=1)
        right.plot(sum(values) / len(values), y, "D", color="white", mec=look[name][0], mew=1.5, ms=7, zorder=2)
    for ax in (left, right):
        _rows(ax, all_names)
    right.set(title="each seed, and the mean", xlabel=f"test {metric}, %", xlim=_possible(right.get_xlim()))
    figure.legend(handles=keys, loc="outside lower left", ncols=3, frameon=False, fontsize=8)
    figure.text(0.995, 0.01, CAVEAT, ha="right", fontsize=8, color="#555555")
    return _save(figure, path)


def training_curves(curves: Mapping[str, Sequence[Curves]], path: Path) -> list[Path]:
    """Cross-entropy with the labels and accuracy per epoch, method against plain: `{method: one table per seed}`."""
    figure, axes = _figure(2, 2, width=9, height=6.2)
    panels = [(f"{split}_{key}", f"{title}: {label}") for key, label in
              (("nll", "cross-entropy, nats"), ("top1", "top-1, %"))
              for split, title in (("train", "training"), ("val", "validation"))]  # fmt: skip
    for ax, (key, title) in zip(axes, panels, strict=True):
        _epochs(ax, curves, key)
        ax.set(title=title)
        if key.endswith("nll") and ax.lines:
            ax.set_yscale("log", subs=[])
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
    return _save(_legend(figure, axes[0]), path)


def entropy_per_epoch(curves: Mapping[str, Sequence[Curves]], path: Path) -> list[Path]:
    """Mean posterior entropy while training: `{method: one table per seed}`."""
    figure, axes = _figure(1, 2, width=9, height=3.4)
    for ax, (key, title) in zip(axes, (("train_entropy", "training"), ("val_entropy", "validation")), strict=True):
        _epochs(ax, curves, key)
        ax.set(title=title, ylabel="mean posterior entropy, nats")
        ax.set_ylim(bottom=0)
    return _save(_legend(figure, axes[0]), path)


def top5(posteriors: Mapping[str, Mapping[str, Posterior]], path: Path) -> list[Path]:
    """Mean posterior of the best-ranked classes, `{"train" or "test": {method: table}}`; the first on its own scale."""
    figure, axes = _figure(len(posteriors), 2, width=10, height=0.6 + 2.9 * len(posteriors), ratios=(1, 3))
    for (first, rest), (split, tables) in zip(zip(axes[::2], axes[1::2], strict=True), posteriors.items(), strict=True):
        look, width = _look(tables), 0.8 / len(tables)
        for i, (name, table) in enumerate(tables.items()):
            shift = (i - (len(tables) - 1) / 2) * width
            style = {"width": width * 0.92, "color": look[name][0], "label": f"{name} ({table['entropy']:.3f} nats)"}
            first.bar([1 + shift], table["top5"][:1], **style)
            rest.bar([rank + shift for rank in range(2, len(table["top5"]) + 1)], table["top5"][1:], **style)
        first.set(title=f"{split}: rank 1", ylabel="mean posterior", ylim=(0, 1), xticks=[1], xlabel="rank")
        rest.set(title=f"{split}: the next ranks, on a scale of their own", xlabel="rank", xticks=range(2, 6))
        rest.legend(title="mean entropy", loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8,
                    title_fontsize=8)  # fmt: skip
    return _save(figure, path)


def cohort_size(rows: Sequence[CohortRow], path: Path, *, metric: str = "top-1") -> list[Path]:
    """What more networks bring: one network (± std over networks), their ensemble, and their entropy, against K."""
    figure, (left, right) = _figure(1, 2, width=9.5, height=4.2)
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    look = _look(kinds)
    for kind in kinds:
        colour, marker = look[kind]
        mine = [row for row in rows if row["kind"] == kind]
        size = [row["size"] for row in mine]
        std = [row["single_std"] or 0.0 for row in mine]
        left.errorbar(size, [row["single"] for row in mine], std, color=colour, marker=marker, capsize=3,
                      label=f"{kind}: one network ± std")  # fmt: skip
        both = [row for row in mine if row["ensemble"] is not None and row["size"] > 1]
        left.plot([row["size"] for row in both], [row["ensemble"] for row in both], "--", color=colour, marker=marker,
                  mfc="white", label=f"{kind}: ensemble")  # fmt: skip
        for key, split, style in (("entropy", "test", "-"), ("train_entropy", "training", ":")):
            known = [row for row in mine if row[key] is not None]  # type: ignore[literal-required]
            right.plot([row["size"] for row in known], [row[key] for row in known], style,  # type: ignore[literal-required]
                       color=colour, marker=marker, label=f"{kind}: {split}" if known else None)  # fmt: skip
    left.set(title="accuracy", xlabel="networks K", ylabel=f"test {metric}, %", ylim=_possible(left.get_ylim()))
    right.set(title="how sure one network is", xlabel="networks K", ylabel="mean posterior entropy, nats")
    right.margins(y=0.1)
    right.set_ylim(bottom=0)
    if all(row["entropy"] is None and row["train_entropy"] is None for row in rows):
        _not_logged(right)
    for ax in (left, right):
        ax.set_xticks(sorted({row["size"] for row in rows}))
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False, fontsize=8)
    return _save(figure, path)


def weight_noise(tables: Mapping[str, Flatness], path: Path) -> list[Path]:
    """How flat the minimum is: Gaussian noise on every weight, `{method: table}` of `analysis.relative_noise`."""
    return _flatness(tables, path, "noise std / RMS of the tensor")


def random_direction(tables: Mapping[str, Flatness], path: Path) -> list[Path]:
    """How flat the minimum is: along random directions, `{method: table}` of `analysis.filter_normalised`."""
    return _flatness(tables, path, "distance, in filter norms")


def unit_direction(tables: Mapping[str, Flatness], path: Path) -> list[Path]:
    """How flat the minimum is: along random directions of length 1, `{method: table}` of `analysis.unit_length`."""
    return _flatness(tables, path, "distance in weight space")


def _flatness(tables: Mapping[str, Flatness], path: Path, label: str) -> list[Path]:
    figure, (left, right) = _figure(1, 2, width=9, height=3.6)
    for name, (colour, marker) in _look(tables).items():
        t = tables[name]
        rise = [None if v is None else v - t["start_loss"] for v in t["loss"]]
        for ax, middle, std in ((left, rise, t["loss_std"]), (right, t["top1"], t["top1_std"])):
            known = [(x, m, s or 0.0) for x, m, s in zip(t["scale"], middle, std, strict=True) if m is not None]
            if not known:
                continue
            x, mean, spread = zip(*known, strict=True)
            ax.plot(x, mean, color=colour, marker=marker, ms=4, label=name)
            low, high = zip(*((m - s, m + s) for m, s in zip(mean, spread, strict=True)), strict=True)
            ax.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    left.set(title="rise of the loss", xlabel=label, ylabel="cross-entropy over the start's, nats")
    right.set(title="accuracy", xlabel=label, ylabel="top-1, %", ylim=_possible(right.get_ylim()))
    left.text(0.02, 0.97, "band: ± std over draws", transform=left.transAxes, va="top", fontsize=8, color="#555555")
    return _save(_legend(figure, left), path)


def agreement(table: Peers, name: str, path: Path) -> list[Path]:
    """How alike the networks of `name` predict, and whether they err together."""
    n = len(table["names"])
    figure, (left, right) = _figure(1, 2, width=4 + 1.5 * n, height=2.1 + 0.65 * n, grid=False)
    _heatmap(left, table["names"], table["names"], _off_diagonal(table["agreement"]), "{:.1f}", 100)
    left.set(title="same prediction, % of samples")
    _heatmap(right, table["names"], table["names"], _off_diagonal(table["error_correlation"]), "{:.2f}", 1)
    right.set(title="correlation of errors")
    figure.suptitle(
        f"{name}: ensemble {table['ensemble']:.2f} %, {table['gain']:+.2f} points over one network", fontsize=10
    )
    return _save(figure, path)


def similarity(table: Similarity, name: str, path: Path) -> list[Path]:
    """How alike the features of the networks of `name` are."""
    n = len(table["names"])
    figure, (ax,) = _figure(1, 1, width=2.6 + 0.75 * n, height=1.7 + 0.65 * n, grid=False)
    _heatmap(ax, table["names"], table["names"], _off_diagonal(table["cka"]), "{:.2f}", 1)
    ax.set(title=f"{name}:\nlinear CKA of the features")
    return _save(figure, path)


def reliability(tables: Mapping[str, Sequence[Bin]], path: Path) -> list[Path]:
    """Is 90 % sure right 90 % of the time? One diagram per method: accuracy per bin, over the share of samples."""
    columns = min(len(tables), 4)
    rows = math.ceil(len(tables) / columns)
    figure, axes = _figure(rows, columns, width=0.8 + 2.5 * columns, height=0.6 + 2.6 * rows)
    look = _look(tables)
    for ax, (name, bins) in zip(axes, tables.items(), strict=False):
        n = sum(b["count"] for b in bins) or 1
        seen = [b for b in bins if b["accuracy"] is not None and b["confidence"] is not None]
        gap = sum(b["count"] / n * abs(_known(b["accuracy"]) - _known(b["confidence"])) for b in seen)
        centres = [(b["low"] + b["high"]) / 2 for b in bins]
        ax.bar(
            centres, [b["count"] / n for b in bins], width=0.9 / len(bins), color="#DDDDDD", label="share of samples"
        )
        ax.plot([0, 1], [0, 1], color=GRAY, lw=1, ls=":")
        x, y = [b["confidence"] for b in seen], [b["accuracy"] for b in seen]
        ax.plot(x, y, color=look[name][0], lw=1.2)
        ax.scatter(x, y, [12 + 80 * b["count"] / n for b in seen], color=look[name][0], clip_on=False, zorder=3,
                   label="accuracy (larger: more samples)")  # fmt: skip
        ax.set(title=f"{name}\nECE {100 * gap:.2f} %", xlim=(0, 1), ylim=(0, 1), xlabel="confidence", aspect="equal")
    _legend(figure, axes[0])
    for ax in axes[len(tables) :]:
        ax.set_axis_off()
    return _save(figure, path)


def class_gain(tables: Mapping[str, ClassGain], classes: Sequence[str], path: Path) -> list[Path]:
    """Which classes a method helps: points over plain, classes from most to least helped; `{method: table}`.

    Of more classes than can be named only the distribution is drawn: each method's gains in their own order.
    """

    def middle(c: int) -> float:
        known = [g for g in (table["gain"][c] for table in tables.values()) if g is not None]
        return sum(known) / len(known) if known else 0.0

    order = sorted(range(len(classes)), key=middle, reverse=True)
    named = len(classes) <= NAMED_CLASSES
    height = 1.6 + (0.16 + 0.1 * len(tables)) * len(classes) if named else 8.0
    figure, (ax,) = _figure(1, 1, width=6.5, height=height)
    for i, (name, (colour, marker)) in enumerate(_look(tables).items()):
        shift = 0.6 * ((i + 0.5) / len(tables) - 0.5)
        gain, std = ([tables[name][key][c] for c in order] for key in ("gain", "std"))
        if not named:
            gain = [*sorted((v for v in gain if v is not None), reverse=True)]
        y = [row + shift * named for row in range(len(gain))]
        ax.plot(
            [math.nan if v is None else v for v in gain], y, marker, color=colour, ms=4 if named else 2.5, label=name
        )
        for v, spread, row in zip(gain, std, y, strict=True) if named else ():
            if v is not None and spread is not None:
                ax.plot((v - spread, v + spread), (row, row), color=colour, lw=0.8)
    ax.axvline(0, color=BLACK, lw=1)
    _rows(ax, [classes[c] for c in order] if named else [""] * len(order))
    several = named and any(s is not None for table in tables.values() for s in table["std"])
    ax.set(title="gain of each class over plain", xlabel=f"test top-1, percent points{' (± std)' * several}",
           ylabel="class" if named else f"{len(classes)} classes, each method's most helped first")  # fmt: skip
    if not named:
        ax.set_yticks([])
    return _save(_legend(figure, ax), path)


def feature_map(pictures: Mapping[str, Picture], classes: Sequence[str], path: Path) -> list[Path]:
    """Features in the plane, one panel per network, coloured by class; `{network: table}`."""
    columns = min(len(pictures), 3)
    rows = math.ceil(len(pictures) / columns)
    figure, axes = _figure(rows, columns, width=1.2 + 3.2 * columns, height=0.4 + 3.2 * rows, grid=False)
    for ax, (name, picture) in zip(axes, pictures.items(), strict=False):
        rest = [p for p, c in zip(picture["points"], picture["labels"], strict=True) if c >= COLOURED_CLASSES]
        ax.scatter(*_columns(rest), s=5, color="#DDDDDD", label="other classes" if rest else None, linewidths=0)
        for c, label in enumerate(classes[:COLOURED_CLASSES]):
            mine = [p for p, found in zip(picture["points"], picture["labels"], strict=True) if found == c]
            palette = (*COLOURS, BLACK, GRAY)
            ax.scatter(*_columns(mine), s=12, color=palette[c % len(palette)], marker=MARKERS[c % len(MARKERS)],
                       label=label, alpha=0.8, linewidths=0)  # fmt: skip
        share = picture["explained"]
        names = [f" ({100 * s:.0f} % of the variance)" for s in share] if share else ["", ""]
        ax.set(title=name, xticks=[], yticks=[], xlabel=f"{picture['kind']} 1{names[0]}",
               ylabel=f"{picture['kind']} 2{names[1]}")  # fmt: skip
    for ax in axes[len(pictures) :]:
        ax.set_axis_off()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", title="class", frameon=False,
                  fontsize=8, title_fontsize=8)  # fmt: skip
    return _save(figure, path)


def gates(table: Gates, classes: Sequence[str], path: Path) -> list[Path]:
    """Whom ONE's gate listens to: each branch's weight over the samples, and its mean for each class."""
    m, named = len(table["mean"]), len(classes) <= NAMED_CLASSES
    height = max(3.4, 1.2 + 0.25 * min(len(classes), NAMED_CLASSES))
    figure, (left, right) = _figure(1, 2, width=8.5, height=height)
    colour = PALETTE["one"]
    for i, (low, first, middle, third, high) in enumerate(table["quantiles"]):
        left.plot((i, i), (low, high), color=colour, lw=1.2)
        left.plot((i, i), (first, third), color=colour, lw=9, solid_capstyle="butt", alpha=0.6)
        left.plot(i, middle, "_", color=BLACK, ms=14, mew=2)
        left.plot(i, table["mean"][i], "D", color="white", mec=BLACK, ms=5)
    left.axhline(1 / m, color=GRAY, lw=1, ls=":")
    left.set(title="gate weight over the samples", ylabel="weight: 5, 25, 50, 75, 95 % and mean", ylim=(0, 1),
             xlim=(-0.6, m - 0.4))  # fmt: skip
    branches = [f"branch{i}" for i in range(m)]
    left.set_xticks(range(m), branches)
    left.text(-0.55, 1 / m, "equal", fontsize=8, color="#555555", va="bottom")
    _heatmap(right, list(classes) if named else [], branches, table["per_class"], "{:.2f}" if named else "", 1)
    right.grid(False)
    right.set(title="mean weight for each class", ylabel="class" if named else f"{len(classes)} classes")
    return _save(figure, path)


def variance(tables: Mapping[str, Variance], path: Path) -> list[Path]:
    """How much predictions vary: independent networks, peers, branches; `{name: table}`."""
    figure, (ax,) = _figure(1, 1, width=6.5, height=1.3 + 0.45 * len(tables))
    names = [f"{name}, {table['networks']} networks" for name, table in tables.items()]
    values, look = [table["variance"] for table in tables.values()], _look(tables)
    ax.barh(range(len(names)), values, height=0.6, color=[colour for colour, _ in look.values()])
    _values(ax, values, "{:.2g}")
    _rows(ax, names)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.set(title="variance of the networks' predictions", xlabel="sum over classes, mean over test images",
           xlim=(0, 1.2 * max(values)))  # fmt: skip
    return _save(figure, path)


def consistency(tables: Mapping[str, Consistency], path: Path) -> list[Path]:
    """How differently a network treats two distortions of one image; shorter bars are more consistent."""
    figure, axes = _figure(1, 3, width=10, height=1.5 + 0.42 * len(tables))
    look = _look(tables)
    each: list[tuple[str, str, list[float]]] = [
        ("predictions that differ", "% of images", [100 - t["agreement"] for t in tables.values()]),
        ("posteriors", "KL, mean of both directions, nats", [t["kl"] for t in tables.values()]),
        ("features", "squared distance / that of two images", [t["distance"] or 0.0 for t in tables.values()]),
    ]
    for i, (ax, (title, label, values)) in enumerate(zip(axes, each, strict=True)):
        ax.barh(range(len(tables)), values, height=0.6, color=[colour for colour, _ in look.values()])
        _values(ax, values, "{:.3g}")
        _rows(ax, list(tables) if i == 0 else [""] * len(tables))
        ax.xaxis.set_major_locator(MaxNLocator(3))
        ax.set(title=title, xlabel=label, xlim=(0, 1.25 * (max(values) or 1)))
    return _save(figure, path)


def dml_targets(table: Targets, path: Path) -> list[Path]:
    """DML and DML_e on one cohort: whose target is softer, by how much the losses differ, and that gradients do not."""
    figure, (left, right) = _figure(1, 2, width=8.5, height=2.6)
    for ax, names, values in (
        (left, ("one peer (DML)", "mean of the others (DML_e)"), (table["peer_entropy"], table["target_entropy"])),
        (right, ("DML", "DML_e"), (table["loss_dml"], table["loss_dml_e"])),
    ):
        ax.barh((0, 1), values, height=0.55, color=[colour for colour, _ in _look(("dml", "dml_e")).values()])
        _values(ax, values, "{:.4f}")
        _rows(ax, names)
        ax.set(xlim=(0, 1.25 * max(values)))
    left.set(title="entropy of the targets", xlabel="nats")
    right.set(title="loss: they differ by a constant", xlabel="nats")
    figure.suptitle(f"largest relative difference of the gradients: {table['gradient_difference']:.0e}", fontsize=10)
    return _save(figure, path)


def cost(
    summaries: Mapping[str, Summary], costs: Mapping[str, float], path: Path, *, metric: str = "top-1"
) -> list[Path]:
    """At what price: test accuracy (± std over seeds) against training cost relative to plain."""
    figure, (ax,) = _figure(1, 1, width=6.5, height=4)
    look = _look(summaries)
    for i, name in enumerate(sorted(summaries, key=lambda name: costs[name])):
        s, (colour, marker) = summaries[name], look[name]
        ax.errorbar(
            costs[name], s["mean"], s["std"], color=colour, marker=marker, ms=7, capsize=3, lw=0, elinewidth=1.2
        )
        ax.annotate(name, (costs[name], s["mean"]), (7, -13 if i % 2 else 6), textcoords="offset points",
                    color=colour, fontsize=9)  # fmt: skip
    ax.margins(x=0.18, y=0.12)
    ax.set(title="accuracy against cost", xlabel="training cost, plain = 1",
           ylabel=f"test {metric}, % (± std over seeds)", ylim=_possible(ax.get_ylim()))  # fmt: skip
    return _save(figure, path)


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str], name: str, path: Path) -> list[Path]:
    """How many images of each class (down) are taken for each (across), coloured by their share of the class."""
    n = len(classes)
    named, numbers = n <= NAMED_CLASSES, n <= NUMBERED_CLASSES
    side = 2.2 + (0.42 * n if numbers else 0.22 * min(n, NAMED_CLASSES))
    figure, (ax,) = _figure(1, 1, width=side + 0.6, height=side, grid=False)
    shares = [[100 * count / max(1, sum(row)) for count in row] for row in counts]
    labels = list(classes) if named else []
    _heatmap(ax, labels, labels, shares, "", 100)
    if numbers:
        for y, row in enumerate(counts):
            for x, count in enumerate(row):
                ax.text(x, y, count or "", ha="center", va="center", fontsize=8,
                        color="white" if shares[y][x] < 50 else BLACK)  # fmt: skip
    ax.set(title=f"{name}: images of a class, and what they are taken for", xlabel="taken for", ylabel="class")
    return _save(figure, path)


def sheet(pixels: Tensor, captions: Sequence[str], title: str, path: Path) -> list[Path]:
    """Images, uint8 `[M, H, W, C]`, with a caption each."""
    columns = min(6, len(captions))
    rows = -(-len(captions) // columns)
    _, height, width = pixels.shape[:3]
    wide, high = 1.15, 1.15 * height / width + 0.35  # of an image with its room, an image's width being 1
    figure, (ax,) = _figure(1, 1, width=1.6 * columns, height=0.5 + 1.39 * high * rows, grid=False)
    for i, (image, caption) in enumerate(zip(pixels, captions, strict=True)):
        left, top = wide * (i % columns), high * (i // columns)
        extent = (left, left + 1, top + height / width, top)
        ax.imshow(image.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255, extent=extent)
        ax.text(left + 0.5, top - 0.04, caption, fontsize=8, ha="center", va="bottom")
    ax.set(xlim=(0, wide * columns), ylim=(high * rows - 0.35, -0.35))
    ax.axis("off")
    figure.suptitle(title, fontsize=10)
    return _save(figure, path)


def _figure(
    rows: int, columns: int, *, width: float, height: float, ratios: Sequence[float] | None = None, grid: bool = True
) -> tuple[Figure, Sequence[Axes]]:
    """A figure of `width` x `height` inches, and its axes, row by row."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, width_ratios=ratios).flatten().tolist()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.title.set_fontsize(10)
        ax.tick_params(labelsize=9)
        ax.set_axisbelow(True)
        if grid:
            ax.grid(color="#E5E5E5", lw=0.7)
    return figure, axes


def _save(figure: Figure, path: Path) -> list[Path]:
    """Write both files. The salt and the missing date make equal figures equal files."""
    files = [path.parent / f"{path.name}.{kind}" for kind in ("png", "svg")]
    salt = matplotlib.rc_context({"svg.hashsalt": "teacherless"})
    with salt, disk.whole(files[0]) as png, disk.whole(files[1]) as svg:
        figure.savefig(png, dpi=150, metadata={"Software": None})
        figure.set_layout_engine("none")  # the second file is laid out as the first
        figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return files


def _look(names: Iterable[str]) -> dict[str, tuple[Any, str]]:
    """Each name's colour and marker: those of its method; several of one method are told apart by shade and marker, the
    method itself first, in whatever order they come."""
    names = list(names)
    look: dict[str, tuple[Any, str]] = {}
    seen: dict[str, int] = {}
    for name in sorted(names, key=lambda name: name not in ("plain", *PALETTE)):
        known = [each for each in ("plain", *PALETTE) if name.startswith(each)]
        method = "plain" if name == "independent" else max(known, key=len, default=name)
        again = seen[method] = seen.get(method, -1) + 1
        number = list(PALETTE).index(method) if method in PALETTE else zlib.crc32(method.encode()) % len(COLOURS)
        white = SHADES[again % len(SHADES)]
        colour = BLACK if method == "plain" else COLOURS[number]
        marker = MARKERS[(again if method == "plain" else 1 + number + again) % len(MARKERS)]
        look[name] = tuple(white + (1 - white) * part for part in to_rgb(colour)), marker
    return {name: look[name] for name in names}


def colours(names: Iterable[str]) -> dict[str, str]:
    """Each name's colour, `#rrggbb`."""
    return {name: to_hex(colour) for name, (colour, _) in _look(names).items()}


def _possible(limits: tuple[float, float]) -> tuple[float, float]:
    """The limits of an axis of percentages, with room for a marker at 0 or 100."""
    low, high = limits
    room = 0.03 * (min(high, 100) - max(low, 0))
    return max(low, -room), min(high, 100 + room)


def _legend(figure: Figure, ax: Axes) -> Figure:
    """One legend for all panels, above them, in as many columns as there is room for."""
    handles, labels = ax.get_legend_handles_labels()
    if len(handles) > 1:
        inches = 0.6 + 0.08 * max(map(len, labels))  # of a column
        columns = min(len(handles), max(1, int(figure.get_figwidth() / inches)))
        figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)
    return figure


def _epochs(ax: Axes, curves: Mapping[str, Sequence[Curves]], key: str) -> None:
    """Each method's mean over seeds, and every seed faintly; what was not logged is left out."""
    for name, (colour, _) in _look(curves).items():
        each = [table[key] for table in curves[name]]  # type: ignore[literal-required]
        epochs = [epoch for epoch, *values in zip(curves[name][0]["epoch"], *each, strict=False) if None not in values]
        kept = [values for values in zip(*each, strict=False) if None not in values]
        if not kept:
            continue
        if len(each) > 1:
            for values in zip(*kept, strict=True):
                ax.plot(epochs, values, color=colour, lw=0.7, alpha=0.3)
        ax.plot(epochs, [sum(values) / len(values) for values in kept], color=colour, lw=1.8, label=name,
                marker="o" if len(epochs) == 1 else None)  # fmt: skip
    ax.set(xlabel="epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not ax.lines:
        _not_logged(ax)


def _not_logged(ax: Axes) -> None:
    ax.text(0.5, 0.5, "not logged", transform=ax.transAxes, ha="center", color="#555555")


def _heatmap(
    ax: Axes,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    text: str,
    most: float,
) -> None:
    """A matrix with its numbers, coloured from 0 to `most`; what does not exist is a dash on white."""
    shown = [[math.nan if v is None else v for v in row] for row in values]
    ax.imshow(shown, cmap="cividis", vmin=0, vmax=most, aspect="auto")
    long = max(map(len, columns), default=0) > 10
    ax.set_xticks(range(len(columns)), columns, rotation=30 if long else 0, ha="right" if long else "center")
    ax.set_yticks(range(len(rows)), rows)
    ax.spines[:].set_visible(False)
    if text:
        for y, row in enumerate(shown):
            for x, v in enumerate(row):
                dark = math.isfinite(v) and v < most / 2
                ax.text(x, y, text.format(v) if math.isfinite(v) else "–", ha="center", va="center", fontsize=8,
                        color="white" if dark else BLACK)  # fmt: skip


def _off_diagonal(matrix: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    """Without what a network has to do with itself, which would take the whole colour scale."""
    return [[None if i == j else v for j, v in enumerate(row)] for i, row in enumerate(matrix)]


def _rows(ax: Axes, names: Sequence[str]) -> None:
    """Names down the y axis, the first on top."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(False, axis="y")


def _values(ax: Axes, values: Sequence[float], text: str) -> None:
    """The number at the end of each horizontal bar."""
    for y, v in enumerate(values):
        ax.annotate(text.format(v), (v, y), (3, 0), textcoords="offset points", va="center", fontsize=8)


def _columns(points: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    return [p[0] for p in points], [p[1] for p in points]


def _known(value: float | None) -> float:
    assert value is not None
    return value

"""One function per figure of what networks are like: sure, flat, alike, right where. From `tables` and `flatness`.

Every function writes `path` with the endings `.png` and `.svg` and returns the two files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from teacherless.study.drawing import (
    BLACK,
    COLOURS,
    GRAY,
    MARKERS,
    NAMED_CLASSES,
    PALETTE,
    bars,
    heatmap,
    legend,
    looks,
    name_rows,
    off_diagonal,
    panels,
    possible,
    save,
)

if TYPE_CHECKING:
    from teacherless.study import tables as analysis
    from teacherless.study.flatness import Flatness

COLOURED_CLASSES = 20


def top5(posteriors: Mapping[str, Mapping[str, analysis.Posterior]], path: Path) -> list[Path]:
    """Mean posterior of the best-ranked classes, `{"train" or "test": {method: table}}`; the first on its own scale."""
    figure, axes = panels(len(posteriors), 2, width=10, height=0.6 + 2.9 * len(posteriors), ratios=(1, 3))
    for (first, rest), (split, tables) in zip(zip(axes[::2], axes[1::2], strict=True), posteriors.items(), strict=True):
        look, width = looks(tables), 0.8 / len(tables)
        for i, (name, table) in enumerate(tables.items()):
            shift = (i - (len(tables) - 1) / 2) * width
            style = {"width": width * 0.92, "color": look[name][0], "label": f"{name} ({table['entropy']:.3f} nats)"}
            first.bar([1 + shift], table["top5"][:1], **style)
            rest.bar([rank + shift for rank in range(2, len(table["top5"]) + 1)], table["top5"][1:], **style)
        first.set(title=f"{split}: rank 1", ylabel="mean posterior", ylim=(0, 1), xticks=[1], xlabel="rank")
        rest.set(title=f"{split}: the next ranks, on a scale of their own", xlabel="rank", xticks=range(2, 6))
        rest.legend(
            title="mean entropy", loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8, title_fontsize=8
        )
    return save(figure, path)


def flatness(tables: Mapping[str, Flatness], path: Path, *, scale: str) -> list[Path]:
    """How flat the minimum is, `{method: table}` of `flatness.flatness`; `scale` says what a step is counted in."""
    figure, (left, right) = panels(1, 2, width=9, height=3.6)
    for name, (colour, marker) in looks(tables).items():
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
    left.set(title="rise of the loss", xlabel=scale, ylabel="cross-entropy over the start's, nats")
    right.set(title="accuracy", xlabel=scale, ylabel="top-1, %", ylim=possible(right.get_ylim()))
    left.text(0.02, 0.97, "band: ± std over draws", transform=left.transAxes, va="top", fontsize=8, color="#555555")
    return save(legend(figure, left), path)


def agreement(table: analysis.Peers, name: str, path: Path) -> list[Path]:
    """How alike the networks of `name` predict, and whether they err together."""
    n = len(table["names"])
    figure, (left, right) = panels(1, 2, width=4 + 1.5 * n, height=2.1 + 0.65 * n, grid=False)
    heatmap(left, table["names"], table["names"], off_diagonal(table["agreement"]), "{:.1f}", 100)
    left.set(title="same prediction, % of samples")
    heatmap(right, table["names"], table["names"], off_diagonal(table["error_correlation"]), "{:.2f}", 1)
    right.set(title="correlation of errors")
    figure.suptitle(
        f"{name}: ensemble {table['ensemble']:.2f} %, {table['gain']:+.2f} points over one network", fontsize=10
    )
    return save(figure, path)


def similarity(table: analysis.Similarity, name: str, path: Path) -> list[Path]:
    """How alike the features of the networks of `name` are."""
    n = len(table["names"])
    figure, (ax,) = panels(1, 1, width=2.6 + 0.75 * n, height=1.7 + 0.65 * n, grid=False)
    heatmap(ax, table["names"], table["names"], off_diagonal(table["cka"]), "{:.2f}", 1)
    ax.set(title=f"{name}:\nlinear CKA of the features")
    return save(figure, path)


def reliability(tables: Mapping[str, Sequence[analysis.Bin]], path: Path) -> list[Path]:
    """Is 90 % sure right 90 % of the time? One diagram per method: accuracy per bin, over the share of samples."""
    columns = min(len(tables), 4)
    rows = math.ceil(len(tables) / columns)
    figure, axes = panels(rows, columns, width=0.8 + 2.5 * columns, height=0.6 + 2.6 * rows)
    look = looks(tables)
    for ax, (name, bins) in zip(axes, tables.items(), strict=False):
        n = sum(b["count"] for b in bins) or 1
        seen = [b for b in bins if b["accuracy"] is not None and b["confidence"] is not None]
        gap = sum(b["count"] / n * abs((b["accuracy"] or 0) - (b["confidence"] or 0)) for b in seen)
        centres = [(b["low"] + b["high"]) / 2 for b in bins]
        ax.bar(
            centres, [b["count"] / n for b in bins], width=0.9 / len(bins), color="#DDDDDD", label="share of samples"
        )
        ax.plot([0, 1], [0, 1], color=GRAY, lw=1, ls=":")
        x, y = [b["confidence"] for b in seen], [b["accuracy"] for b in seen]
        ax.plot(x, y, color=look[name][0], lw=1.2)
        area, label = [12 + 80 * b["count"] / n for b in seen], "accuracy (larger: more samples)"
        ax.scatter(x, y, area, color=look[name][0], clip_on=False, zorder=3, label=label)
        ax.set(title=f"{name}\nECE {100 * gap:.2f} %", xlim=(0, 1), ylim=(0, 1), xlabel="confidence", aspect="equal")
    legend(figure, axes[0])
    for ax in axes[len(tables) :]:
        ax.set_axis_off()
    return save(figure, path)


def class_gain(tables: Mapping[str, analysis.ClassGain], classes: Sequence[str], path: Path) -> list[Path]:
    """Which classes a method helps: points over plain, classes from most to least helped; `{method: table}`.

    Of more classes than can be named only the distribution is drawn: each method's gains in their own order.
    """

    def middle(c: int) -> float:
        known = [g for g in (table["gain"][c] for table in tables.values()) if g is not None]
        return sum(known) / len(known) if known else 0.0

    order = sorted(range(len(classes)), key=middle, reverse=True)
    named = len(classes) <= NAMED_CLASSES
    height = 1.6 + (0.16 + 0.1 * len(tables)) * len(classes) if named else 8.0
    figure, (ax,) = panels(1, 1, width=6.5, height=height)
    for i, (name, (colour, marker)) in enumerate(looks(tables).items()):
        shift = 0.6 * ((i + 0.5) / len(tables) - 0.5)
        gain, std = ([tables[name][key][c] for c in order] for key in ("gain", "std"))
        if not named:
            gain = [*sorted((v for v in gain if v is not None), reverse=True)]
        y = [row + shift * named for row in range(len(gain))]
        ax.plot(gain, y, marker, color=colour, ms=4 if named else 2.5, label=name)
        for v, spread, row in zip(gain, std, y, strict=True) if named else ():
            if v is not None and spread is not None:
                ax.plot((v - spread, v + spread), (row, row), color=colour, lw=0.8)
    ax.axvline(0, color=BLACK, lw=1)
    name_rows(ax, [classes[c] for c in order] if named else [""] * len(order))
    several = named and any(s is not None for table in tables.values() for s in table["std"])
    down = "class" if named else f"{len(classes)} classes, each method's most helped first"
    std_too = " (± std)" if several else ""
    ax.set(title="gain of each class over plain", xlabel=f"test top-1, percent points{std_too}", ylabel=down)
    if not named:
        ax.set_yticks([])
    return save(legend(figure, ax), path)


def feature_map(pictures: Mapping[str, analysis.Picture], classes: Sequence[str], path: Path) -> list[Path]:
    """Features in the plane, one panel per network, coloured by class; `{network: table}`."""
    columns = min(len(pictures), 3)
    rows = math.ceil(len(pictures) / columns)
    figure, axes = panels(rows, columns, width=1.2 + 3.2 * columns, height=0.4 + 3.2 * rows, grid=False)
    for ax, (name, picture) in zip(axes, pictures.items(), strict=False):
        points, own = np.array(picture["points"]), np.array(picture["labels"])
        rest = points[own >= COLOURED_CLASSES]
        ax.scatter(*rest.T, s=5, color="#DDDDDD", label="other classes" if len(rest) else None, linewidths=0)
        for c, label in enumerate(classes[:COLOURED_CLASSES]):
            palette = (*COLOURS, BLACK, GRAY)
            colour, marker = palette[c % len(palette)], MARKERS[c % len(MARKERS)]
            ax.scatter(*points[own == c].T, s=12, color=colour, marker=marker, label=label, alpha=0.8, linewidths=0)
        share = picture["explained"]
        names = [f" ({100 * s:.0f} % of the variance)" for s in share] if share else ["", ""]
        across, up = (f"{picture['kind']} {axis}{share}" for axis, share in enumerate(names, 1))
        ax.set(title=name, xticks=[], yticks=[], xlabel=across, ylabel=up)
    for ax in axes[len(pictures) :]:
        ax.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    small = {"frameon": False, "fontsize": 8, "title_fontsize": 8}
    figure.legend(handles, labels, loc="outside right upper", title="class", **small)
    return save(figure, path)


def gates(table: analysis.Gates, classes: Sequence[str], path: Path) -> list[Path]:
    """Whom ONE's gate listens to: each branch's weight over the samples, and its mean for each class."""
    m, named = len(table["mean"]), len(classes) <= NAMED_CLASSES
    height = max(3.4, 1.2 + 0.25 * min(len(classes), NAMED_CLASSES))
    figure, (left, right) = panels(1, 2, width=8.5, height=height)
    colour = PALETTE["one"]
    for i, (low, first, middle, third, high) in enumerate(table["quantiles"]):
        left.plot((i, i), (low, high), color=colour, lw=1.2)
        left.plot((i, i), (first, third), color=colour, lw=9, solid_capstyle="butt", alpha=0.6)
        left.plot(i, middle, "_", color=BLACK, ms=14, mew=2)
        left.plot(i, table["mean"][i], "D", color="white", mec=BLACK, ms=5)
    left.axhline(1 / m, color=GRAY, lw=1, ls=":")
    left.set(title="gate weight over the samples", ylabel="weight: 5, 25, 50, 75, 95 % and mean")
    left.set(xlim=(-0.6, m - 0.4), ylim=(0, 1))
    branches = [f"branch{i}" for i in range(m)]
    left.set_xticks(range(m), branches)
    left.text(-0.55, 1 / m, "equal", fontsize=8, color="#555555", va="bottom")
    heatmap(right, list(classes) if named else [], branches, table["per_class"], "{:.2f}" if named else "", 1)
    right.grid(False)
    right.set(title="mean weight for each class", ylabel="class" if named else f"{len(classes)} classes")
    return save(figure, path)


def variance(tables: Mapping[str, analysis.Variance], path: Path) -> list[Path]:
    """How much predictions vary: independent networks, peers, branches; `{name: table}`."""
    figure, (ax,) = panels(1, 1, width=6.5, height=1.3 + 0.45 * len(tables))
    names = [f"{name}, {table['networks']} networks" for name, table in tables.items()]
    bars(ax, names, tables, [table["variance"] for table in tables.values()], "{:.2g}")
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.set(title="variance of the networks' predictions", xlabel="sum over classes, mean over test images")
    return save(figure, path)


def consistency(tables: Mapping[str, analysis.Consistency], path: Path) -> list[Path]:
    """How differently a network treats two distortions of one image; shorter bars are more consistent."""
    figure, axes = panels(1, 3, width=10, height=1.5 + 0.42 * len(tables))
    each: list[tuple[str, str, list[float]]] = [
        ("predictions that differ", "% of images", [100 - t["agreement"] for t in tables.values()]),
        ("posteriors", "KL, mean of both directions, nats", [t["kl"] for t in tables.values()]),
        ("features", "squared distance / that of two images", [t["distance"] or 0.0 for t in tables.values()]),
    ]
    for i, (ax, (title, label, values)) in enumerate(zip(axes, each, strict=True)):
        bars(ax, list(tables) if i == 0 else [""] * len(tables), tables, values, "{:.3g}")
        ax.xaxis.set_major_locator(MaxNLocator(3))
        ax.set(title=title, xlabel=label)
    return save(figure, path)


def dml_targets(table: analysis.Targets, path: Path) -> list[Path]:
    """DML and DML_e on one cohort: whose target is softer, by how much the losses differ, and that gradients do not."""
    figure, (left, right) = panels(1, 2, width=8.5, height=2.6)
    for ax, names, values in (
        (left, ("one peer (DML)", "mean of the others (DML_e)"), (table["peer_entropy"], table["target_entropy"])),
        (right, ("DML", "DML_e"), (table["loss_dml"], table["loss_dml_e"])),
    ):
        bars(ax, names, ("dml", "dml_e"), values, "{:.4f}")
    left.set(title="entropy of the targets", xlabel="nats")
    right.set(title="loss: they differ by a constant", xlabel="nats")
    figure.suptitle(f"largest relative difference of the gradients: {table['gradient_difference']:.0e}", fontsize=10)
    return save(figure, path)

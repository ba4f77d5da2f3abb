"""One function per figure of what training gives: accuracy, cost, size, curves. From `statistics` and `tables`.

Every function writes `path` with the endings `.png` and `.svg` and returns the two files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import LogLocator, MaxNLocator

from teacherless.study.drawing import BLACK, GRAY, Axes, legend, looks, name_rows, panels, possible, save
from teacherless.study.statistics import CAVEAT

if TYPE_CHECKING:
    from teacherless.study.statistics import Difference, Summary
    from teacherless.study.tables import CohortRow, Curves


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
    figure, (left, right) = panels(1, 2, width=10, height=1.6 + 0.45 * (len(names) + 1), ratios=(3, 2))
    look = looks(all_names)
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
    keys = [
        Line2D([], [], color=BLACK, lw=4, label="95 %, this method alone"),
        Line2D([], [], color=BLACK, lw=1.2, label="widened for all methods (Holm)"),
        Line2D([], [], color=GRAY, lw=0, marker=".", label="one seed"),
    ]
    for y, name in enumerate(all_names):
        values = list(per_seed[name].values())
        right.plot(values, [y] * len(values), ".", color=GRAY, zorder=1)
        right.plot(sum(values) / len(values), y, "D", color="white", mec=look[name][0], mew=1.5, ms=7, zorder=2)
    for ax in (left, right):
        name_rows(ax, all_names)
    right.set(title="each seed, and the mean", xlabel=f"test {metric}, %", xlim=possible(right.get_xlim()))
    figure.legend(handles=keys, loc="outside lower left", ncols=3, frameon=False, fontsize=8)
    figure.text(0.995, 0.01, CAVEAT, ha="right", fontsize=8, color="#555555")
    return save(figure, path)


def training_curves(curves: Mapping[str, Sequence[Curves]], path: Path) -> list[Path]:
    """Cross-entropy with the labels and accuracy per epoch, method against plain: `{method: one table per seed}`."""
    figure, axes = panels(2, 2, width=9, height=6.2)
    titles = {
        "train_nll": "training: cross-entropy, nats",
        "val_nll": "validation: cross-entropy, nats",
        "train_top1": "training: top-1, %",
        "val_top1": "validation: top-1, %",
    }
    for ax, (key, title) in zip(axes, titles.items(), strict=True):
        _epochs(ax, curves, key)
        ax.set(title=title)
        if key.endswith("nll") and ax.lines:
            ax.set_yscale("log", subs=[])
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
    return save(legend(figure, axes[0]), path)


def entropy_per_epoch(curves: Mapping[str, Sequence[Curves]], path: Path) -> list[Path]:
    """Mean posterior entropy while training: `{method: one table per seed}`."""
    figure, axes = panels(1, 2, width=9, height=3.4)
    for ax, (key, title) in zip(axes, (("train_entropy", "training"), ("val_entropy", "validation")), strict=True):
        _epochs(ax, curves, key)
        ax.set(title=title, ylabel="mean posterior entropy, nats")
        ax.set_ylim(bottom=0)
    return save(legend(figure, axes[0]), path)


def cohort_size(rows: Sequence[CohortRow], path: Path, *, metric: str = "top-1") -> list[Path]:
    """What more networks bring: one network (± std over networks), their ensemble, and their entropy, against K."""
    figure, (left, right) = panels(1, 2, width=9.5, height=4.2)
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    look = looks(kinds)
    for kind in kinds:
        colour, marker = look[kind]
        mine = [row for row in rows if row["kind"] == kind]
        size = [row["size"] for row in mine]
        std = [row["single_std"] or 0.0 for row in mine]
        style = {"color": colour, "marker": marker}
        one, label = [row["single"] for row in mine], f"{kind}: one network ± std"
        left.errorbar(size, one, std, capsize=3, label=label, **style)
        both = [row for row in mine if row["ensemble"] is not None and row["size"] > 1]
        size, all_of_them = [row["size"] for row in both], [row["ensemble"] for row in both]
        left.plot(size, all_of_them, "--", mfc="white", label=f"{kind}: ensemble", **style)
        for key, split, line in (("entropy", "test", "-"), ("train_entropy", "training", ":")):
            known = [row for row in mine if row[key] is not None]  # type: ignore[literal-required]
            values = [row[key] for row in known]  # type: ignore[literal-required]
            label = f"{kind}: {split}" if known else ""
            right.plot([row["size"] for row in known], values, line, label=label, **style)
    left.set(title="accuracy", xlabel="networks K", ylabel=f"test {metric}, %", ylim=possible(left.get_ylim()))
    right.set(title="how sure one network is", xlabel="networks K", ylabel="mean posterior entropy, nats")
    right.margins(y=0.1)
    right.set_ylim(bottom=0)
    if all(row["entropy"] is None and row["train_entropy"] is None for row in rows):
        _not_logged(right)
    for ax in (left, right):
        ax.set_xticks(sorted({row["size"] for row in rows}))
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False, fontsize=8)
    return save(figure, path)


def cost(
    summaries: Mapping[str, Summary], costs: Mapping[str, float], path: Path, *, metric: str = "top-1"
) -> list[Path]:
    """At what price: test accuracy (± std over seeds) against training cost relative to plain."""
    figure, (ax,) = panels(1, 1, width=6.5, height=4)
    look = looks(summaries)
    for i, name in enumerate(sorted(summaries, key=lambda name: costs[name])):
        s, (colour, marker) = summaries[name], look[name]
        style = {"color": colour, "marker": marker, "ms": 7, "capsize": 3, "lw": 0, "elinewidth": 1.2}
        ax.errorbar(costs[name], s["mean"], s["std"], **style)
        at, shift = (costs[name], s["mean"]), (7, -13 if i % 2 else 6)
        ax.annotate(name, at, shift, textcoords="offset points", color=colour, fontsize=9)
    ax.margins(x=0.18, y=0.12)
    ax.set(title="accuracy against cost", xlabel="training cost, plain = 1")
    ax.set(ylabel=f"test {metric}, % (± std over seeds)", ylim=possible(ax.get_ylim()))
    figure.draw_without_rendering()  # from now on it is known what the names cover
    for text in ax.texts:
        if isinstance(text, Annotation) and text.get_window_extent().x1 > ax.bbox.x1:
            text.set_horizontalalignment("right")
            text.set_position((-7, text.get_position()[1]))
    return save(figure, path)


def _epochs(ax: Axes, curves: Mapping[str, Sequence[Curves]], key: str) -> None:
    """Each method's mean over seeds, and every seed faintly; what was not logged is left out."""
    for name, (colour, _) in looks(curves).items():
        each = [table[key] for table in curves[name]]  # type: ignore[literal-required]
        epochs = [epoch for epoch, *values in zip(curves[name][0]["epoch"], *each, strict=False) if None not in values]
        kept = [values for values in zip(*each, strict=False) if None not in values]
        if not kept:
            continue
        if len(each) > 1:
            ax.plot(epochs, kept, color=colour, lw=0.7, alpha=0.3)
        mean, marker = [sum(values) / len(values) for values in kept], "o" if len(epochs) == 1 else None
        ax.plot(epochs, mean, color=colour, lw=1.8, label=name, marker=marker)
    ax.set(xlabel="epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not ax.lines:
        _not_logged(ax)


def _not_logged(ax: Axes) -> None:
    ax.text(0.5, 0.5, "not logged", transform=ax.transAxes, ha="center", color="#555555")

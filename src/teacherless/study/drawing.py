"""What the figures share: panels, a method's colour and marker, legends, matrices, and the two files of each.

Drawn on `Figure` objects, not through pyplot, so nothing global changes. The same table gives the same bytes. A method
has its own colour and marker in every figure: plain is black, the rest are those of Okabe and Ito (2008) and of Tol
(2021), which people with any colour vision can tell from each other; several runs of one method are shades of it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from teacherless.files import disk

Axes = Any  # matplotlib has no types that mypy --strict accepts
BLACK, GRAY = "#000000", "#999999"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
PALETTE = {
    "dml": "#0072B2",
    "one": "#D55E00",
    "ddgsd": "#009E73",
    "label-smoothing": "#CC79A7",
    "kd": "#E69F00",
    "ps-kd": "#882255",
    "tf-kd": "#332288",
    "fitnets": "#999933",
    "byot": "#AA4499",
    "frskd": "#661100",
    "cs-kd": "#44AA99",
    "snapshot": "#B15928",
}
COLOURS = tuple(PALETTE.values())
SHADES = (0.0, 0.45, 0.65, 0.25)  # how much white is in the colour of a method's first, second, ... runs
NAMED_CLASSES = 40  # more are drawn without their names


def panels(
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


def save(figure: Figure, path: Path) -> list[Path]:
    """Write both files. The salt and the missing date make equal figures equal files."""
    files = [path.parent / f"{path.name}.{kind}" for kind in ("png", "svg")]
    salt = matplotlib.rc_context({"svg.hashsalt": "teacherless"})
    with salt, disk.whole(files[0]) as png, disk.whole(files[1]) as svg:
        figure.savefig(png, dpi=150, metadata={"Software": None})
        figure.set_layout_engine("none")  # the second file is laid out as the first
        figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return files


def looks(names: Iterable[str]) -> dict[str, tuple[Any, str]]:
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
    return {name: to_hex(colour) for name, (colour, _) in looks(names).items()}


def possible(limits: tuple[float, float]) -> tuple[float, float]:
    """The limits of an axis of percentages, with room for a marker at 0 or 100."""
    low, high = limits
    room = 0.03 * (min(high, 100) - max(low, 0))
    return max(low, -room), min(high, 100 + room)


def legend(figure: Figure, ax: Axes) -> Figure:
    """One legend for all panels, above them, in as many columns as there is room for."""
    handles, labels = ax.get_legend_handles_labels()
    if len(handles) > 1:
        inches = 0.6 + 0.08 * max(map(len, labels))  # of a column
        columns = min(len(handles), max(1, int(figure.get_figwidth() / inches)))
        figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)
    return figure


def heatmap(
    ax: Axes,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    text: str,
    most: float,
    numbers: Sequence[Sequence[float | str | None]] | None = None,
) -> None:
    """A matrix, coloured from 0 to `most`, with its numbers, or others; what does not exist is a dash on white."""
    shown = [[math.nan if v is None else v for v in row] for row in values]
    ax.imshow(shown, cmap="cividis", vmin=0, vmax=most, aspect="auto")
    long = max(map(len, columns), default=0) > 10
    ax.set_xticks(range(len(columns)), columns, rotation=30 if long else 0, ha="right" if long else "center")
    ax.set_yticks(range(len(rows)), rows)
    ax.spines[:].set_visible(False)
    for y, row in enumerate(numbers or values) if text else ():
        for x, v in enumerate(row):
            said, readable = "–" if v is None else text.format(v), "white" if shown[y][x] < most / 2 else BLACK
            ax.text(x, y, said, ha="center", va="center", fontsize=8, color=readable)


def off_diagonal(matrix: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    """Without what a network has to do with itself, which would take the whole colour scale."""
    return [[None if i == j else v for j, v in enumerate(row)] for i, row in enumerate(matrix)]


def name_rows(ax: Axes, names: Sequence[str]) -> None:
    """Names down the y axis, the first on top."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(False, axis="y")


def bars(ax: Axes, names: Sequence[str], methods: Iterable[str], values: Sequence[float], text: str) -> None:
    """Horizontal bars in the methods' colours, the first on top, each with its number at its end."""
    drawn = ax.barh(range(len(names)), values, height=0.6, color=[colour for colour, _ in looks(methods).values()])
    ax.bar_label(drawn, fmt=text, padding=3, fontsize=8)
    name_rows(ax, names)
    ax.set_xlim(0, 1.25 * (max(values) or 1))

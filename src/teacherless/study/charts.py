"""The drawings of report.html: from numbers to the places of lines and dots in a box of WIDTH units.

Nothing here writes SVG: the template does, and escapes every name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

WIDTH, HEIGHT = 420, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 34  # margins
LONGEST = 200  # points of a line; of more, every second, third, ... is drawn
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#882255", "#44AA99", "#999933")


class Row(NamedTuple):
    """A line of a chart of rows."""

    name: str
    mean: float
    each: list[float]  # one of each seed
    interval: tuple[float, float] | None
    wide: tuple[float, float] | None
    colour: str


class Dot(NamedTuple):
    """A point with a spread upwards and downwards."""

    name: str
    x: float
    y: float
    std: float
    colour: str


class Series(NamedTuple):
    """A value for each epoch, and faintly those that it is the mean of."""

    name: str
    values: Sequence[float | None]
    faint: Sequence[Sequence[float | None]] = ()
    colour: str = ""


class Mark(NamedTuple):
    """A dot, a line of several points, or a word; what is not used is empty."""

    kind: str  # line, faint, thick, thin, seed, dot, word, end (a word that ends there), arrow, head
    points: list[tuple[float, float]]
    colour: str
    text: str = ""


class Chart(NamedTuple):
    """Everything the template needs."""

    title: str
    height: float
    marks: list[Mark]
    x: Sequence[tuple[float, str]] = ()  # ticks: where, and what they say
    y: Sequence[tuple[float, str]] = ()
    names: Sequence[tuple[str, str]] = ()  # the legend: name, colour
    axis: str = ""
    zero: float | None = None  # where a vertical line stands
    # What the script reads out under the pointer: the epochs' places and numbers, and the values of each series.
    reads: dict[str, Any] | None = None


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from `low` to `high`."""
    rough = (high - low) / about or 1.0
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next((unit * times for times in (1, 2, 5) if unit * times >= rough), 10 * unit)
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _range(values: Sequence[float], room: float = 0.05) -> tuple[float, float]:
    low, high = min(values), max(values)
    spare = room * (high - low) or max(abs(high) * room, 0.5)
    return low - spare, high + spare


def _across(low: float, high: float, value: float, left: float = LEFT) -> float:
    return round(left + (WIDTH - RIGHT - left) * (value - low) / (high - low), 1)


def _up(low: float, high: float, value: float) -> float:
    return round(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (value - low) / (high - low), 1)


def _labelled(values: Sequence[float], place: Callable[[float], float]) -> list[tuple[float, str]]:
    return [(place(value), f"{value:.10g}") for value in values]


def rows(title: str, each: Sequence[Row], *, zero: bool = False) -> Chart:
    """Names down the page, each with its mean, its seeds and its intervals."""
    values = [v for row in each for v in (row.mean, *row.each, *(row.interval or ()), *(row.wide or ()))]
    low, high = _range([*values, *([0.0] if zero else [])])
    left, step = 10, 34
    at = partial(_across, low, high, left=left)
    height = TOP + step * len(each) + BOTTOM
    marks = []
    for i, row in enumerate(each):
        y = TOP + step * i + 24
        marks.append(Mark("word", [(left, y - 10)], row.colour, row.name))
        for kind, ends in (("thin", row.wide), ("thick", row.interval)):
            if ends:
                marks.append(Mark(kind, [(at(v), y) for v in ends], row.colour))
        marks += [Mark("seed", [(at(v), y + 7)], row.colour, f"{v:.2f}") for v in row.each]
        marks.append(Mark("dot", [(at(row.mean), y)], row.colour, f"{row.name}: {row.mean:.2f}"))
    return Chart(title, height, marks, _labelled(ticks(low, high), at), zero=at(0.0) if zero else None)


def scatter(title: str, dots: Sequence[Dot]) -> Chart:
    """Dots with their names."""
    across = _range([dot.x for dot in dots], 0.15)
    up = _range([v for dot in dots for v in (dot.y - dot.std, dot.y + dot.std)], 0.12)
    marks = []
    lowest = {"word": 0.0, "end": 0.0}  # of the names so far to the right of their dots, and to the left
    for dot in sorted(dots, key=lambda dot: -dot.y):
        x, y = _across(*across, dot.x), _up(*up, dot.y)
        if dot.std:
            marks.append(Mark("thin", [(x, _up(*up, dot.y - dot.std)), (x, _up(*up, dot.y + dot.std))], dot.colour))
        marks.append(Mark("dot", [(x, y)], dot.colour, f"{dot.name}: {dot.y:.2f} at {dot.x:.2f}"))
        side, shift = ("word", 8) if x < WIDTH / 2 else ("end", -8)
        lowest[side] = max(y + 4, lowest[side] + 14)
        marks.append(Mark(side, [(x + shift, lowest[side])], dot.colour, dot.name))
    right, top = _labelled(ticks(*across), partial(_across, *across)), _labelled(ticks(*up), partial(_up, *up))
    return Chart(title, HEIGHT, marks, right, top, axis="± std over seeds")


def lines(title: str, axis: str, every_series: Sequence[Series]) -> Chart:
    """A line per series over the epochs, from 1; what was not measured is a gap."""
    epochs = max(len(series.values) for series in every_series)
    every = -(-epochs // LONGEST)
    kept = sorted({*range(0, epochs, every), epochs - 1})
    known = [v for series in every_series for each in (series.values, *series.faint) for v in each if v is not None]
    known = [v for v in known if math.isfinite(v)] or [0.0]
    up, across = _range(known), (1.0, max(float(epochs), 2.0))
    places = [_across(*across, i + 1) for i in kept]
    marks: list[Mark] = []
    coloured = [(series, series.colour or COLOURS[i % len(COLOURS)]) for i, series in enumerate(every_series)]
    for series, colour in coloured:
        for kind, values in (*(("faint", each) for each in series.faint), ("line", series.values)):
            marks += [Mark(kind, part, colour) for part in _parts(values, kept, places, up)]
    said = {s.name: [_short(s.values[i]) if i < len(s.values) else None for i in kept] for s in every_series}
    x = [v for v in ticks(*across) if v >= 1 and v == int(v)] or [1.0]
    return Chart(
        title,
        HEIGHT,
        marks,
        _labelled(x, partial(_across, *across)),
        _labelled(ticks(*up), partial(_up, *up)),
        [(series.name, colour) for series, colour in coloured],
        axis,
        reads={"places": places, "epochs": [i + 1 for i in kept], "reads": said},
    )


def graph(title: str, nodes: Sequence[str], edges: Sequence[tuple[str, str]], colour: str) -> Chart:
    """Who teaches whom: names on a circle, an arrow from each teacher to each learner."""
    middle, height = (WIDTH / 2, 105.0), 210
    at = {node: middle for node in nodes}
    for i, node in enumerate(nodes if len(nodes) > 1 else ()):
        angle = 2 * math.pi * i / len(nodes) + math.pi / 2
        at[node] = middle[0] + 150 * math.sin(angle), middle[1] - 75 * math.cos(angle)
    marks = []
    for teacher, learner in edges:
        if teacher == learner:
            x, y = at[learner]
            way = [(x + 34 * math.sin(a), y - 34 + 26 * math.cos(a)) for a in map(math.radians, range(35, 326, 10))]
        else:
            (x, y), (u, v) = at[teacher], at[learner]
            far = math.hypot(u - x, v - y)
            way = [(x + (u - x) * t, y + (v - y) * t) for t in (16 / far, 1 - 16 / far)]
        (x, y), (u, v) = way[-2:]
        angle = math.atan2(v - y, u - x)
        sides = [(u - 9 * math.cos(angle + s), v - 9 * math.sin(angle + s)) for s in (0.4, -0.4)]
        marks += [Mark("arrow", _round(way), colour), Mark("head", _round([way[-1], *sides]), colour)]
    for node, (x, y) in at.items():
        marks.append(Mark("dot", _round([(x, y)]), colour, node))
        marks.append(Mark("middle", _round([(x, y + (22 if y >= middle[1] - 1 else -12))]), "var(--ink)", node))
    return Chart(title, height, marks)


def _round(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(round(x, 1), round(y, 1)) for x, y in points]


def _parts(
    values: Sequence[float | None], kept: Sequence[int], places: Sequence[float], up: tuple[float, float]
) -> list[list[tuple[float, float]]]:
    """The line's pieces between its gaps."""
    parts: list[list[tuple[float, float]]] = [[]]
    for i, x in zip(kept, places, strict=True):
        value = values[i] if i < len(values) else None
        if value is None:
            parts.append([])
        else:
            parts[-1].append((x, _up(*up, value)))
    return [part for part in parts if part]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")

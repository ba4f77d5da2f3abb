"""The drawings of report.html: from numbers to the places of lines and dots in a box of WIDTH units.

Nothing here writes SVG: the template does, and escapes every name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

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
    x: list[tuple[float, str]]  # ticks: where, and what they say
    y: list[tuple[float, str]]
    names: list[tuple[str, str]]  # the legend: name, colour
    axis: str = ""
    zero: float | None = None  # where a vertical line stands
    # What the script reads out under the pointer: the epochs' places and numbers, and the values of each series.
    reads: dict[str, list[float | None]] | None = None
    places: Sequence[float] = ()
    epochs: Sequence[int] = ()


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


def _labelled(values: Sequence[float], places: Sequence[float]) -> list[tuple[float, str]]:
    return [(place, f"{value:.10g}") for place, value in zip(places, values, strict=True)]


def rows(title: str, found: Sequence[Row], *, zero: bool = False) -> Chart:
    """Names down the page, each with its mean, its seeds and its intervals."""
    values = [v for row in found for v in (row.mean, *row.each, *(row.interval or ()), *(row.wide or ()))]
    low, high = _range([*values, *([0.0] if zero else [])])
    left, step = 10, 34
    height = TOP + step * len(found) + BOTTOM
    marks = []
    for i, row in enumerate(found):
        y = TOP + step * i + 24
        place = [(_across(low, high, v, left), y + 7) for v in row.each]
        marks.append(Mark("word", [(left, y - 10)], row.colour, row.name))
        for kind, ends in (("thin", row.wide), ("thick", row.interval)):
            if ends:
                marks.append(Mark(kind, [(_across(low, high, v, left), y) for v in ends], row.colour))
        marks += [Mark("seed", [at], row.colour, f"{v:.2f}") for at, v in zip(place, row.each, strict=True)]
        marks.append(Mark("dot", [(_across(low, high, row.mean, left), y)], row.colour, f"{row.name}: {row.mean:.2f}"))
    shown = ticks(low, high)
    return Chart(title, height, marks, _labelled(shown, [_across(low, high, v, left) for v in shown]), [], [],
                 zero=_across(low, high, 0.0, left) if zero else None)  # fmt: skip


def scatter(title: str, found: Sequence[Dot]) -> Chart:
    """Dots with their names."""
    across = _range([dot.x for dot in found], 0.15)
    up = _range([v for dot in found for v in (dot.y - dot.std, dot.y + dot.std)], 0.12)
    marks = []
    lowest = {"word": 0.0, "end": 0.0}  # of the names so far to the right of their dots, and to the left
    for dot in sorted(found, key=lambda dot: -dot.y):
        x, y = _across(*across, dot.x), _up(*up, dot.y)
        if dot.std:
            marks.append(Mark("thin", [(x, _up(*up, dot.y - dot.std)), (x, _up(*up, dot.y + dot.std))], dot.colour))
        marks.append(Mark("dot", [(x, y)], dot.colour, f"{dot.name}: {dot.y:.2f} at {dot.x:.2f}"))
        side, shift = ("word", 8) if x < WIDTH / 2 else ("end", -8)
        lowest[side] = max(y + 4, lowest[side] + 14)
        marks.append(Mark(side, [(x + shift, lowest[side])], dot.colour, dot.name))
    places, heights = ticks(*across), ticks(*up)
    return Chart(title, HEIGHT, marks, _labelled(places, [_across(*across, v) for v in places]),
                 _labelled(heights, [_up(*up, v) for v in heights]), [], "± std over seeds")  # fmt: skip


def lines(title: str, axis: str, found: Sequence[Series]) -> Chart:
    """A line per series over the epochs, from 1; what was not measured is a gap."""
    epochs = max(len(series.values) for series in found)
    every = -(-epochs // LONGEST)
    kept = sorted({*range(0, epochs, every), epochs - 1})
    known = [v for series in found for each in (series.values, *series.faint) for v in each if v is not None]
    known = [v for v in known if math.isfinite(v)] or [0.0]
    up, across = _range(known), (1.0, max(float(epochs), 2.0))
    places = [_across(*across, i + 1) for i in kept]
    marks: list[Mark] = []
    for i, series in enumerate(found):
        colour = series.colour or COLOURS[i % len(COLOURS)]
        for kind, values in (*(("faint", each) for each in series.faint), ("line", series.values)):
            marks += [Mark(kind, part, colour) for part in _parts(values, kept, places, up)]
    x = [v for v in ticks(*across) if v >= 1 and v == int(v)] or [1.0]
    y = ticks(*up)
    return Chart(
        title, HEIGHT, marks, _labelled(x, [_across(*across, v) for v in x]), _labelled(y, [_up(*up, v) for v in y]),
        [(series.name, series.colour or COLOURS[i % len(COLOURS)]) for i, series in enumerate(found)], axis,
        reads={s.name: [_short(s.values[i]) if i < len(s.values) else None for i in kept] for s in found},
        places=places, epochs=[i + 1 for i in kept],
    )  # fmt: skip


def graph(title: str, nodes: Sequence[str], edges: Sequence[tuple[str, str]], colour: str) -> Chart:
    """Who teaches whom: names on a circle, an arrow from each teacher to each learner."""
    middle, height = (WIDTH / 2, 105.0), 210
    turn = 2 * math.pi / max(len(nodes), 1)
    at = {node: middle if len(nodes) == 1 else
          (middle[0] + 150 * math.sin(i * turn + math.pi / 2), middle[1] - 75 * math.cos(i * turn + math.pi / 2))
          for i, node in enumerate(nodes)}  # fmt: skip
    marks = []
    for teacher, learner in edges:
        if teacher == learner:
            x, y = at[learner]
            around = [
                (x + 34 * math.sin(a), y - 34 + 26 * math.cos(a))
                for a in (math.radians(degree) for degree in range(35, 326, 10))
            ]
            marks += [Mark("arrow", [_round(*p) for p in around], colour), _head(around[-2], around[-1], colour)]
        else:
            (x, y), (u, v) = at[teacher], at[learner]
            far = math.hypot(u - x, v - y)
            start, end = ((x + (u - x) * t, y + (v - y) * t) for t in (16 / far, 1 - 16 / far))
            marks += [Mark("arrow", [_round(*start), _round(*end)], colour), _head(start, end, colour)]
    for node, (x, y) in at.items():
        marks.append(Mark("dot", [_round(x, y)], colour, node))
        marks.append(Mark("middle", [_round(x, y + (22 if y >= middle[1] - 1 else -12))], "var(--ink)", node))
    return Chart(title, height, marks, [], [], [])


def _head(start: tuple[float, float], end: tuple[float, float], colour: str) -> Mark:
    """The head of an arrow that ends at `end`."""
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    sides = [(end[0] - 9 * math.cos(angle + s), end[1] - 9 * math.sin(angle + s)) for s in (0.4, -0.4)]
    return Mark("head", [_round(*end), *(_round(*side) for side in sides)], colour)


def _round(x: float, y: float) -> tuple[float, float]:
    return round(x, 1), round(y, 1)


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

"""The picture of docs/learnt.md: every interval of the ledger."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

LEFT, WIDTH, RIGHT, LINE, TOP = 150, 420, 250, 11, 34
SPAN = 5.0  # points to each side; what goes on beyond is cut off there


def forest(found: Sequence[Mapping[str, Any]]) -> str:
    """Differences to plain of the same comparison with their intervals, by method, as SVG in the page's own colour."""
    lines = [each for each in found if each["against"] == "plain" and not each["row"].startswith("plain")]
    names = list(dict.fromkeys(each["row"] for each in lines))
    marks, y = [], TOP
    for name in sorted(names):
        own = [each for each in lines if each["row"] == name]
        y += LINE // 2
        marks.append(text(LEFT - 8, y + LINE, name, "end", 'font-weight="bold"'))
        for each in own:
            y += LINE
            marks += interval(each, y - 4)
            marks.append(text(LEFT + WIDTH + 8, y, f"{each['study']}/{each['comparison']}", "start"))
    ticks = [
        f'<path d="M{place(t):.1f} {TOP - 6}V{y + 4}" stroke="currentColor" stroke-width="{1 if t == 0 else 0.2}"/>'
        + text(place(t), TOP - 10, f"{t:+d}" if t else "0", "middle")
        for t in range(-int(SPAN), int(SPAN) + 1)
    ]
    title = text(
        LEFT + WIDTH / 2, 12, "difference to plain in points of accuracy, intervals corrected for the rows", "middle"
    )
    body = "\n".join([title, *ticks, *marks])
    size = f"{LEFT + WIDTH + RIGHT} {y + 10}"
    said = "Differences to plain of every method in every study, with their intervals; most hold zero."
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="sans-serif" font-size="10" '
        f'fill="currentColor" role="img" aria-label="{said}">\n{body}\n</svg>\n'
    )


def interval(each: Mapping[str, Any], y: float) -> list[str]:
    """A line and a dot; thick where the interval leaves out zero."""
    low, high = each["interval"]
    shown = low > 0 or high < 0
    look = 'stroke-width="2.4"' if shown else 'stroke-width="1" opacity="0.55"'
    line = f'<path d="M{place(low):.1f} {y}H{place(high):.1f}" stroke="currentColor" {look}/>'
    radius = 3 if shown else 2
    return [line, f'<circle cx="{place(each["difference"]):.1f}" cy="{y}" r="{radius}"/>']


def place(points: float) -> float:
    """Where a difference is, from the left."""
    return LEFT + WIDTH * (min(max(points, -SPAN), SPAN) / SPAN + 1) / 2


def text(x: float, y: float, words: str, anchor: str, more: str = "") -> str:
    """A word of the picture."""
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" {more}>{html.escape(words)}</text>'

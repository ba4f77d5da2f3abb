"""What a run or a comparison says, in words: BEATS, DOES NOT BEAT, INCONCLUSIVE, FAILED."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

MEANING = (
    "BEATS: the interval of the difference to plain is above 0. DOES NOT BEAT: it ends at {} points or "
    "below, so there is no gain worth the name. INCONCLUSIVE: neither."
)


class Verdict(NamedTuple):
    """What was found, in words."""

    word: str  # BEATS, DOES NOT BEAT, INCONCLUSIVE, FAILED
    who: str
    says: str


def of_run(method: str, summary: Mapping[str, Any] | None, data: Mapping[str, Any]) -> Verdict:
    """Of one run: what its network to ship is worth, and that one run says no more."""
    cannot = f"Whether {method} helps, one run cannot say: teacherless compare can."
    if summary is None:
        return Verdict("INCONCLUSIVE", method, f"The run is not finished. {cannot}")
    best = summary["chosen"]
    row = summary["students"][best]
    if row.get("test_map") is not None:
        says = f"{best} has {row['test_map']:.2f} % mAP on test."
    elif row["test_top1"] is None:
        says = f"{best} was chosen; there is no test set."
    else:
        says = f"{best} has {row['test_top1']:.2f} % of the test images right{_of_images(row, data.get('test'))}."
    return Verdict("INCONCLUSIVE", method, f"{says} {cannot}")


def _of_images(row: Mapping[str, Any], images: int | None) -> str:
    """The interval that the choice of test images leaves, and what one image is worth."""
    if not images:
        return ""
    low, high = wilson(row["test_top1"] / 100, images)
    choice = f"95 %, the choice of test images: {images:,}, one of them is {100 / images:.2f} points"
    return f" [{100 * low:.1f}, {100 * high:.1f}] ({choice})"


def wilson(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share of `count` (Wilson 1927)."""
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return middle - half, middle + half


def word(interval: Sequence[float] | None) -> str:
    """BEATS, DOES NOT BEAT or INCONCLUSIVE, by an interval of the difference to plain: see MEANING."""
    from teacherless.study.statistics import VISIBLE

    if interval is None:
        return "INCONCLUSIVE"
    if interval[0] > 0:
        return "BEATS"
    return "DOES NOT BEAT" if interval[1] <= VISIBLE else "INCONCLUSIVE"


def of_comparison(table: Mapping[str, Any]) -> list[Verdict]:
    """Of every method, the largest difference first."""
    verdicts = []
    for row, each in table["methods"].items():
        difference = each["difference"]
        if difference:
            budget = f"for {each['cost']:.1f} times plain's training" if each["cost"] else "at a cost that is not known"
            interval = difference["corrected"]
            at = f"[{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else "without an interval"
            many = "1 seed" if difference["seeds"] == 1 else f"{difference['seeds']} seeds"
            says = f"{difference['mean']:+.2f} points of {table['metric']} {at}, {many}, {budget}."
            if both := difference["both"]:
                says += f" With other test images too: [{both[0]:+.2f}, {both[1]:+.2f}], {word(both)}."
            if word(interval) == "INCONCLUSIVE":
                says += f" {_what_it_takes(difference)}"
            verdicts.append((difference["mean"], Verdict(word(interval), row, says)))
        for seed, why in each["failed"].items():
            verdicts.append((-math.inf, Verdict("FAILED", row, f"seed {seed}: {why}")))
    return [verdict for _, verdict in sorted(verdicts, key=lambda pair: -pair[0])]


def _what_it_takes(difference: Mapping[str, Any]) -> str:
    """How many seeds could tell."""
    from teacherless.study.statistics import INTERVAL_FROM, VISIBLE

    if difference["needed_range"] is None:
        few = difference["seeds"] < INTERVAL_FROM
        return f"Give at least {INTERVAL_FROM} seeds, better 5." if few else "All seeds say the same, without a spread."
    low, high = difference["needed_range"]
    return f"{low:,} to {high:,} seeds would be needed to see {VISIBLE} points."

"""What a comparison's numbers say is wrong with it, and what its runs' doctors found, once each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from teacherless.files.schemas import Finding


def of_runs(summaries: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """The findings of one method's runs, each with the evidence of the first run that has it, and how many have."""
    findings: dict[str, list[Finding]] = {}
    for summary in summaries:
        for one in summary.get("doctor", []):
            findings.setdefault(one["finding"], []).append(one)
    return [
        {**each[0], "finding": f"{name}, in {len(each)} of {len(summaries)} runs"} for name, each in findings.items()
    ]


def examine(methods: Mapping[str, Any]) -> list[Finding]:
    """Of a comparison, from the rows of its table."""
    rows = {row: each["difference"] for row, each in methods.items() if each["difference"]}
    return [*_few_images(rows), *_longer(rows)]


def _few_images(rows: Mapping[str, Any]) -> Iterator[Finding]:
    """A difference that is shown for these test images, and not for others."""
    for row, d in rows.items():
        if d["sign"] != "=" and d["sign_both"] == "=":
            low, high = d["both"]
            yield {
                "finding": f"the test set is too small for {row}'s difference",
                "evidence": f"{d['mean']:+.2f} on these {d['images']:,} images, of which one is "
                f"{100 / d['images']:.2g}; on others [{low:+.2f}, {high:+.2f}]",
                "advice": "more test images; more seeds do not help",
            }
            return


def _longer(rows: Mapping[str, Any]) -> Iterator[Finding]:
    """Plain gains as much where it may train for as long as the dearest method."""
    others = {row: d["mean"] for row, d in rows.items() if not row.startswith("plain-")}
    for row, d in rows.items():
        if row.startswith("plain-") and row.endswith("-longer") and others and d["sign"] == "+":
            best = max(others, key=lambda name: others[name])
            if d["mean"] >= others[best]:
                yield {
                    "finding": "plain gains more from more epochs than from any method",
                    "evidence": f"{row} {d['mean']:+.2f}, {best} {others[best]:+.2f}",
                    "advice": "more --epochs for all, then compare again",
                }

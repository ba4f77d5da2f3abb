"""What a comparison's doctor says, and when it says nothing."""

from __future__ import annotations

from typing import Any

from teacherless.study.doctor import examine, of_runs


def row(mean: float, sign: str = "+", sign_both: str | None = "+") -> dict[str, Any]:
    return {"difference": {"mean": mean, "sign": sign, "sign_both": sign_both, "both": (-0.5, 1.5), "images": 360}}


def words(**rows: Any) -> list[str]:
    return [found["finding"] for found in examine({"plain": {"difference": None}, **rows})]


def test_a_test_set_too_small_for_what_is_asked() -> None:
    (found,) = examine({"dml": row(0.5, sign_both="=")})
    assert found["finding"] == "the test set is too small for dml's difference"
    assert found["evidence"] == "+0.50 on these 360 images, of which one is 0.28; on others [-0.50, +1.50]"
    assert words(dml=row(0.5)) == words(dml=row(0.5, "=", "=")) == words(dml=row(0.5, "+", None)) == []


def test_plain_that_gains_more_from_more_epochs() -> None:
    said = ["plain gains more from more epochs than from any method"]
    assert words(dml=row(0.5), **{"plain-2x-longer": row(0.6)}) == said
    assert words(dml=row(0.7), **{"plain-2x-longer": row(0.6)}) == []
    assert words(dml=row(0.5), **{"plain-2x-longer": row(0.6, "=", "=")}) == [], "not shown"
    assert words(dml=row(0.5), **{"plain-2x-wider": row(0.6)}) == [], "another network"


def test_findings_of_runs_are_said_once() -> None:
    a = {"finding": "x", "evidence": "first", "advice": "z"}
    found = of_runs([{"doctor": [a]}, {}, {"doctor": [{**a, "evidence": "second"}]}])
    assert found == [{"finding": "x, in 2 of 3 runs", "evidence": "first", "advice": "z"}]

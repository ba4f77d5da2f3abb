"""A method's card: the docstring of its file, and under `Results:` what the studies of results/ measured of it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from teacherless.methods import METHODS


def card(name: str) -> str:
    """All about one of METHODS, its results last."""
    text = (sys.modules[METHODS[name].__module__].__doc__ or "").strip()
    lines = [_line(row) for row in _ledger() if _is_of(name, row["row"])]
    return "\n".join([text, *(f"    {line}" for line in lines or ["None yet."])])


def _ledger() -> list[dict[str, Any]]:
    """The rows that `make readme` writes: in the package, or beside `src/` in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "results" / "ledger.json"
    file = inside if inside.is_file() else package.parents[1] / "results" / "ledger.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return rows


def _is_of(name: str, row: str) -> bool:
    """Whether a row of a comparison is a method's: its name, with a number of peers, or plain for longer."""
    return row == name or bool(re.fullmatch(rf"{name}-\d+-peers|(?=plain){name}-.*", row))


def _line(row: Mapping[str, Any]) -> str:
    """One difference, with its interval over seeds."""
    low, high = row["interval"]
    what = f"{row['study']}/{row['comparison']}" + ("" if row["row"] in METHODS else f", {row['row']}")
    cost = "" if row["cost"] is None else f" at {row['cost']:.1f} times its FLOPs"
    points = f"{row['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
    return f"{what}: {points} against {row['against']}{cost}, {row['seeds']} seeds"

"""The page report.html: what stands on it, and its HTML.

It loads nothing, its one script is allowed by its hash, and without it all numbers and drawings stay.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from teacherless.study.charts import Chart
from teacherless.study.verdicts import Verdict


class Table(NamedTuple):
    """Numbers in rows; the first column names them."""

    columns: list[str]
    rows: list[list[str]]


class Figure(NamedTuple):
    """A drawing that stands in the folder, as a data: address."""

    name: str
    address: str


def figure(svg: Path, folder: Path) -> Figure:
    """A drawing below a folder, under its name there."""
    name = svg.relative_to(folder).with_suffix("").as_posix()
    return Figure(name, "data:image/svg+xml;base64," + base64.b64encode(svg.read_bytes()).decode())


class Page(NamedTuple):
    """All there is on the page."""

    title: str
    state: str
    verdicts: list[Verdict]
    notes: list[str]
    findings: list[dict[str, str]]  # of the doctor: who, and what schemas.Finding has
    picture: list[Chart]
    table: Table
    curves: list[Chart]
    lessons: list[Chart]
    mistakes: list[Figure]
    figures: list[Figure]
    settings: dict[str, str]
    data: dict[str, str]
    command: str


def render(page: Page) -> str:
    """The page as HTML."""
    from jinja2 import Environment, StrictUndefined

    home = files("teacherless.study")
    script = home.joinpath("report.js").read_text(encoding="utf-8")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    template = environment.from_string(home.joinpath("report.html.jinja").read_text(encoding="utf-8"))
    return template.render(**page._asdict(), script=script, allowed=allowed)

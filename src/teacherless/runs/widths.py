"""Networks as much dearer or cheaper as they should be, by their width."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import torch

from teacherless import models
from teacherless.errors import InputError
from teacherless.evaluation.metrics import flops
from teacherless.runs.config import Spec

MOST = 4  # times its own width


def scaled(spec: Spec, times: float) -> tuple[Spec, float] | None:
    """The network with the width whose forward costs nearest to `times` its own, and how many times it does cost.

    Counted at 32x32, whatever the data. None if the network has no width.
    """
    options = models.options(spec.name)
    if "width" not in options:
        return None
    base = spec.arguments.get("width", options["width"].default)

    def price(width: int) -> int:
        with torch.device("meta"):  # shapes are enough
            net = models.create(spec.name, num_classes=10, in_channels=3, **{**spec.arguments, "width": width})
            return flops(net, torch.zeros(1, 3, 32, 32))

    own = price(base)
    widths = range(1, MOST * base + 1)
    above = bisect.bisect_left(widths, times * own, key=price)
    width = min(widths[max(0, above - 1) : above + 1], key=lambda w: abs(price(w) - times * own))
    return spec._replace(arguments={**spec.arguments, "width": width}), price(width) / own


def split(students: Sequence[Spec], into: int) -> tuple[list[Spec], str]:
    """One network as `into` peers, each with that share of its cost, and a line that says so.

    Raises: InputError for a network that has no width.
    """
    (whole,) = students
    narrower = scaled(whole, 1 / into)
    if narrower is None:
        known = ", ".join(name for name in models.MODELS if "width" in models.options(name))
        raise InputError(f"--split-into: {whole.name} has no width; those that have one: {known}")
    each, share = narrower
    width = each.arguments["width"]
    return [each] * into, f"{whole.name} split into {into} of width {width}, each {share:.1%} of its FLOPs"

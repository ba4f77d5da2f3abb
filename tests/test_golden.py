"""Golden loss curves: every term of every method, step by step, as it was when someone last looked.

float64, rate 0.01, one thread, 50 steps. The other tests say that a step is right; this one says that nobody changed
what training does. Weights and data come from Python's own generator, whose `random()` is the same in every version,
and not from torch's: what is compared is our arithmetic. `make golden` rewrites the files; nothing else does.
"""

from __future__ import annotations

import json
import math
import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import CLASSES, tiny
from test_all_methods import build
from torch import Tensor, nn

from teacherless.method import Batch, Method, Progress
from teacherless.methods import METHODS
from teacherless.training.settings import Settings
from teacherless.training.step import make_optimizer, train_step

GOLDEN = Path(__file__).parent / "golden"
STEPS, SAMPLES, SIZE = 50, 20, 10
F64 = torch.float64
Curves = dict[str, list[float]]
TARGETS = ("selective", "naive", "linear", "min-logit", "general")

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in METHODS},
    **{f"{name}-{v}": (name, options) for name, kind in METHODS.items() for v, options in kind.variants.items()},
    "dml-in-turn": ("dml", {"update": "in_turn"}),
    "dml-e": ("dml", {"mimicry": "dml_e", "temperature": 2.0}),
    "dml-symmetric-star": ("dml", {"mimicry": "symmetric", "topology": "star", "weight": 0.5, "ramp_epochs": 10}),
    "dml-views": ("dml", {"views": 2}),
    **{f"dml-{target}": ("dml", {"target": target, "temperature": 2.0}) for target in TARGETS},
    "one-not-shared": ("one", {"share": False, "gate": False}),
    "ddgsd-three-views": ("ddgsd", {"views": 3, "temperature": 2.0, "mmd_weight": 0.1}),
}


def draw(seed: int, *shape: int) -> Tensor:
    """Uniform in (-√3, √3): variance 1."""
    g = random.Random(seed)
    values = [math.sqrt(12) * (g.random() - 0.5) for _ in range(math.prod(shape))]
    return torch.tensor(values, dtype=F64).reshape(shape)


def reset(net: nn.Module, seed: int) -> nn.Module:
    """Weights drawn by name, biases 0; scales, which start as 1, stay."""
    net.double()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if p.dim() > 1:
                p.copy_(draw(seed + zlib.crc32(name.encode()), *p.shape) / math.sqrt(p[0].numel()))
            elif name.endswith("bias"):
                p.zero_()
    return net


def make(case: str, **change: Any) -> Method:
    name, options = CASES[case]
    method = build(name, teacher=reset(tiny(0, width=6), 7), **options, **change)
    reset(method, 1)
    return method


def batches(method: Method) -> Iterator[Batch]:
    """The same 20 samples again and again, two batches an epoch; every view has noise of its own."""
    rows = torch.arange(SAMPLES)
    clean = draw(2, CLASSES, 1, 8, 8)[rows % CLASSES]
    for step in range(STEPS):
        here = rows[step * SIZE % SAMPLES :][:SIZE]
        views = [clean[here] + draw(1000 * step + v, SIZE, 1, 8, 8) for v in range(method.wants.views)]
        if method.wants.classmate:
            views.append(clean[here] + draw(1000 * step + 999, SIZE, 1, 8, 8))
        yield Batch(tuple(views), here % CLASSES, here)


class Drawn:
    """Dropout that draws from Python's generator too."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor, p: float, training: bool) -> Tensor:
        self.calls += 1
        keep = draw(10**6 + self.calls, *x.shape) > (2 * p - 1) * math.sqrt(3)
        return x * keep / (1 - p) if training else x


def curves(method: Method) -> Curves:
    """Every term of every step; a phase's name goes before its terms'."""
    with mock.patch("torch.nn.functional.dropout", Drawn()):
        return _curves(method)


def _curves(method: Method) -> Curves:
    found: Curves = {}
    for phase in method.phases:
        method.begin(phase)
        optimizer = make_optimizer(method.param_groups(), Settings(lr=0.01), {})
        epochs = torch.tensor(STEPS * SIZE // SAMPLES)
        for step, batch in enumerate(batches(method)):
            now = Progress(torch.tensor(step), torch.tensor(step * SIZE // SAMPLES), epochs)
            for term, value in train_step(method, optimizer, batch, now).terms.items():
                found.setdefault(f"{phase}/{term}" if phase else term, []).append(value.item())
    return found


def differences(found: Curves, golden: Curves) -> list[str]:
    """What is not as it was, to a millionth: one line per term, with the first step where it shows."""
    if found.keys() != golden.keys():
        return [f"terms were {sorted(golden)}, are {sorted(found)}"]
    lines = []
    for term, before in golden.items():
        for step, (a, b) in enumerate(zip(found[term], before, strict=True)):
            if not math.isclose(a, b, rel_tol=1e-6):
                lines.append(f"{term}: step {step} was {b:.10g}, is {a:.10g}")
                break
    return lines


def stored(case: str) -> Curves:
    found: Curves = json.loads((GOLDEN / f"{case}.json").read_text())
    return found


@pytest.mark.parametrize("case", CASES)
def test_loss_curves_are_as_they_were(case: str) -> None:
    changed = differences(curves(make(case)), stored(case))
    assert not changed, "; ".join(changed) + " (if that is wanted: make golden, and say why in the commit)"


@pytest.mark.parametrize(
    ("case", "weight", "term"),
    [
        ("dml", "weight", "mimicry"),
        ("one", "kl_weight", "distil"),
        ("ddgsd", "mmd_weight", "mmd"),
        ("kd", "kd_weight", "distil"),
        ("fitnets", "kd_weight_end", "kd/distil"),
        ("byot", "hint_weight", "hint"),
        ("frskd", "attention_weight", "attention"),
        ("cs-kd", "kd_weight", "distil"),
        ("tf-kd", "multiplier", "distil"),
        ("ps-kd", "alpha", "past"),
        ("dlb", "alpha", "distil"),
        ("r-drop", "alpha", "kl"),
        ("cosub", "weight", "soft"),
        ("zipf-ls", "weight", "zipf"),
        ("mean-teacher", "weight", "mean"),
        ("pcl", "mean_weight", "mean"),
        ("okddip", "kl_weight", "lead"),
    ],
)
def test_a_weight_changed_by_a_hundred_thousandth_is_seen(case: str, weight: str, term: str) -> None:
    changed = differences(curves(make(case, **{weight: getattr(make(case), weight) * (1 + 1e-5)})), stored(case))
    assert any(line.startswith(term) for line in changed), changed


@pytest.mark.parametrize("case", CASES)
def test_any_term_changed_by_a_hundred_thousandth_at_any_step_is_seen(case: str) -> None:
    golden = stored(case)
    for term, values in golden.items():
        assert all(values[1:]), term  # a relative tolerance says nothing about 0
        for step in (0 if values[0] else 1, STEPS // 2, STEPS - 1):  # 0 at first, where there is no past yet
            bent = [*values[:step], values[step] * (1 + 1e-5), *values[step + 1 :]]
            assert differences(golden | {term: bent}, golden)[0].startswith(f"{term}: step {step} ")


def test_there_is_no_curve_without_a_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == CASES.keys()


def rewrite() -> None:
    """Write every curve, and say which changed."""
    torch.set_num_threads(1)
    GOLDEN.mkdir(exist_ok=True)
    for path in GOLDEN.glob("*.json"):
        if path.stem not in CASES:
            path.unlink()
            print(f"{path.stem}: removed")
    for case in CASES:
        found = curves(make(case))
        changed = differences(found, stored(case)) if (GOLDEN / f"{case}.json").exists() else ["new"]
        if changed:  # a file that is still right keeps its last digits
            rounded = {term: [float(f"{value:.10g}") for value in values] for term, values in found.items()}
            lines = ",\n".join(f" {json.dumps(term)}: {json.dumps(values)}" for term, values in rounded.items())
            (GOLDEN / f"{case}.json").write_text(f"{{\n{lines}\n}}\n")
        print(f"{case}: {'; '.join(changed) or 'as it was'}")


if __name__ == "__main__":
    rewrite()

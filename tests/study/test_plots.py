"""Every figure is drawn from plausible tables, and from the awkward ones; equal tables give equal files."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from teacherless.study import drawing, mistakes, plots, statistics
from teacherless.study import plots_of_networks as of_networks
from teacherless.study import tables as analysis
from teacherless.study.flatness import Flatness

METHODS = ["plain", "label-smoothing", "dml", "one", "ddgsd"]
DIGITS = [str(i) for i in range(10)]
g = np.random.default_rng(0)


def logits(seed: int, sure: float = 4.0, n: int = 360, classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions that are mostly right."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    noise = torch.randn(n, classes, generator=generator) + 0.8 * torch.randn(
        n, classes, generator=torch.Generator().manual_seed(99)
    )
    return noise + sure * torch.nn.functional.one_hot(y, classes), y


def per_seed() -> dict[str, dict[int, float]]:
    gain = dict(zip(METHODS, (0, 0.1, 0.9, 0.5, -0.4), strict=True))
    shared = g.normal(0, 0.4, 5)
    return {m: {s: 70 + gain[m] + shared[s] + g.normal(0, 0.15) for s in range(5)} for m in METHODS}


def flat(width: float) -> Flatness:
    scale = [0.1 * i for i in range(1, 11)]
    loss = [0.05 + (s / width) ** 2 for s in scale]
    return {
        "scale": scale,
        "loss": [*loss[:-1], None] if width < 0.9 else list(loss),
        "loss_std": [0.1 * v for v in loss],
        "top1": [99 * math.exp(-v / 3) for v in loss],
        "top1_std": [2 * s for s in scale],
        "start_loss": 0.05,
        "start_top1": 99.0,
    }


def curves(speed: float, seed: int, *, entropy: bool = True) -> analysis.Curves:
    noise = 1 + 0.02 * np.random.default_rng(seed).normal(size=(6, 30))
    e = np.arange(30)
    nll = 2.2 * np.exp(-e / speed) + 0.02
    rows = [nll, nll + 0.08, 100 * np.exp(-nll / 2), 100 * np.exp(-(nll + 0.1) / 2), 1.8 * np.exp(-e / speed) + 0.1]
    train_nll, val_nll, train_top1, val_top1, certain = (
        (r * n).clip(0, 100).tolist() for r, n in zip(rows, noise, strict=False)
    )
    known = certain if entropy else [None] * 30
    return {"epoch": (e + 1).tolist(), "train_nll": train_nll, "val_nll": val_nll, "train_top1": train_top1,
            "val_top1": val_top1, "train_entropy": known, "val_entropy": known}  # fmt: skip


def cohorts() -> list[analysis.CohortRow]:
    found: list[analysis.Cohort] = []
    for k in range(1, 6):
        for _ in range(3):
            for kind, base in (("independent", 70.0), ("dml", 70 + 2 * math.log(k))):
                top1 = (base + g.normal(0, 0.4, k)).tolist()
                ensemble = base + 1.5 * math.log(k) if k > 1 else None
                found.append({"kind": kind, "top1": top1, "ensemble": ensemble,
                              "entropy": 0.3 + (0.1 * math.log(k) if kind == "dml" else 0),
                              "train_entropy": 0.1 + (0.12 * math.log(k) if kind == "dml" else 0)})  # fmt: skip
    return analysis.cohort_size(found)


def pictures() -> dict[str, analysis.Picture]:
    y = torch.arange(300) % 10
    centres = 4 * torch.randn(10, 16, generator=torch.Generator().manual_seed(0))
    x = centres[y] + torch.randn(300, 16, generator=torch.Generator().manual_seed(1))
    return {"plain, PCA": analysis.pca(x, y), "dml, PCA": analysis.pca(1.5 * x + x.roll(1, 0), y),
            "plain, t-SNE": analysis.tsne(x, y)}  # fmt: skip


def gains(classes: int) -> dict[str, analysis.ClassGain]:
    return {
        m: {"gain": g.normal(0.5, 1.5, classes).tolist(), "std": np.abs(g.normal(0, 0.6, classes)).tolist()}
        for m in METHODS[1:]
    }


def all_figures() -> dict[str, Callable[[Path], list[Path]]]:
    z = {f"peer{i}": logits(i)[0] for i in range(4)}
    y = logits(0)[1]
    sure = dict(zip(METHODS, (6.0, 3.5, 4.5, 5.0, 4.0), strict=True))
    cells = per_seed()
    differences = statistics.compare(cells["plain"], {m: v for m, v in cells.items() if m != "plain"})
    history = {m: [curves(3 + i, 10 * i + s) for s in range(3)] for i, m in enumerate(METHODS)}
    posteriors = {
        split: {m: analysis.posterior(logits(i, sure[m] + extra)[0]) for i, m in enumerate(METHODS)}
        for split, extra in (("train", 1.5), ("test", 0.0))
    }
    weights = torch.softmax(
        torch.randn(360, 3, generator=torch.Generator().manual_seed(2)) + torch.tensor([0.5, 0, 0]), 1
    )
    views: dict[str, analysis.Consistency] = {
        m: analysis.consistency(
            *(logits(i)[0] + 0.3 * i * logits(j)[0] for j in (50, 51)), logits(i)[0], logits(i + 1)[0]
        )
        for i, m in enumerate(METHODS, start=1)
    }
    spread = {name: analysis.variance(torch.stack([logits(i, s)[0] for i in range(3)]))
              for name, s in (("plain (independent)", 3.0), ("dml", 4.0), ("one", 6.0))}  # fmt: skip
    features = {f"peer{i}": torch.randn(50, 8, generator=torch.Generator().manual_seed(i)) for i in range(4)}
    summaries = {m: statistics.summarise(list(v.values())) for m, v in cells.items()}
    costs = dict(zip(METHODS, (1.0, 1.02, 2.1, 1.7, 2.0), strict=True))
    flats = {m: flat(0.6 + 0.2 * i) for i, m in enumerate(METHODS)}
    return {
        "accuracy": lambda p: plots.accuracy(differences, cells, p),
        "training_curves": lambda p: plots.training_curves(history, p),
        "entropy_per_epoch": lambda p: plots.entropy_per_epoch(history, p),
        "top5": lambda p: of_networks.top5(posteriors, p),
        "cohort_size": lambda p: plots.cohort_size(cohorts(), p),
        "flatness": lambda p: of_networks.flatness(flats, p, scale="steps"),
        "agreement": lambda p: of_networks.agreement(analysis.peers(z, y), "dml", p),
        "similarity": lambda p: of_networks.similarity(analysis.similarity(features), "dml", p),
        "reliability": lambda p: of_networks.reliability(
            {m: analysis.reliability(logits(i, sure[m])[0], y) for i, m in enumerate(METHODS)}, p
        ),
        "class_gain": lambda p: of_networks.class_gain(gains(10), DIGITS, p),
        "class_gain_100": lambda p: of_networks.class_gain(gains(100), [f"class {i}" for i in range(100)], p),
        "feature_map": lambda p: of_networks.feature_map(pictures(), DIGITS, p),
        "gates": lambda p: of_networks.gates(analysis.gates(weights, y, 10), DIGITS, p),
        "variance": lambda p: of_networks.variance(spread, p),
        "consistency": lambda p: of_networks.consistency(views, p),
        "dml_targets": lambda p: of_networks.dml_targets(analysis.dml_targets(torch.stack(list(z.values())), y), p),
        "cost": lambda p: plots.cost(summaries, costs, p),
        "confusion": lambda p: mistakes.confusion([[9, 1, 0], [0, 7, 3], [0, 0, 0]], DIGITS[:3], "dml", p),
        "confusion_100": lambda p: mistakes.confusion([[1] * 100] * 100, [f"class {i}" for i in range(100)], "dml", p),
        "sheet": lambda p: mistakes.sheet(
            (32 * torch.arange(8)).byte().expand(2, 8, 8)[..., None], ["4, not 9", "7, not 1"], "mistakes", p
        ),
    }


FIGURES = all_figures()


@pytest.mark.parametrize("name", FIGURES)
def test_figure(name: str, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    files = FIGURES[name](tmp_path / name)
    assert [f.name for f in files] == [f"{name}.png", f"{name}.svg"]
    with Image.open(files[0]) as image:
        assert min(image.size) > 250
        assert image.convert("L").getextrema() == (0, 255) or image.convert("L").getextrema()[0] < 60
    root = ElementTree.parse(files[1]).getroot()
    assert root.tag.endswith("svg")
    assert dict(matplotlib.rcParams) == before


def test_names_beside_dots_stay_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whoever costs most too."""
    seen = []

    def look(figure: Figure, path: Path) -> list[Path]:
        figure.canvas.draw()
        texts = figure.axes[0].texts
        seen.extend((text.get_window_extent(), figure.axes[0].bbox) for text in texts)
        return [path]

    monkeypatch.setattr(plots, "save", look)
    names = ["plain", "label-smoothing", "plain-12.25x-longer-than-all"]
    found = {name: statistics.summarise([90.0 + i, 91.0 + i]) for i, name in enumerate(names)}
    plots.cost(found, {"plain": 1.0, "label-smoothing": 1.02, names[2]: 12.25}, tmp_path / "cost")
    assert len(seen) == 3 and all(axes.x0 <= text.x0 and text.x1 <= axes.x1 for text, axes in seen)


def test_a_method_has_one_look_in_every_figure() -> None:
    alone, among = drawing.looks(["dml"]), drawing.looks(["plain", "one", "dml", "dml peers=3", "dml weight=0"])
    assert alone["dml"] == among["dml"]
    assert len(set(among.values())) == 5, "and runs of one method can be told apart"
    assert (
        drawing.looks(["independent"])["independent"]
        == among["plain"]
        == drawing.looks(["plain (independent)"]).popitem()[1]
    )
    assert len(set(drawing.looks([*drawing.PALETTE, "plain"]).values())) == len(drawing.PALETTE) + 1
    assert drawing.looks(["mine"]) == drawing.looks(["mine"])


def test_axes_end_where_accuracies_end() -> None:
    low, high = drawing.possible((-300.0, 300.0))
    assert -5 < low <= 0 and 100 <= high < 105
    assert drawing.possible((20.0, 80.0)) == (20.0, 80.0)


@pytest.mark.parametrize("name", ["accuracy", "agreement"])
def test_equal_tables_give_equal_files(name: str, tmp_path: Path) -> None:
    first, again = (FIGURES[name](tmp_path / f"{i}" / name) for i in range(2))
    assert [f.read_bytes() for f in first] == [f.read_bytes() for f in again]
    assert b"<dc:date>" not in first[1].read_bytes()


def test_every_public_figure_is_tested() -> None:
    public = {
        name
        for module in (plots, of_networks)
        for name, value in vars(module).items()
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    }
    assert public | {"confusion", "sheet"} == {name.removesuffix("_100") for name in FIGURES}


def test_a_method_keeps_its_colour_whatever_comes_before_it() -> None:
    names = ["plain-2x-longer", "dml", "plain-2x-wider", "plain"]
    assert drawing.colours(names)["plain"] == drawing.colours(["plain"])["plain"]
    assert list(drawing.colours(names)) == names

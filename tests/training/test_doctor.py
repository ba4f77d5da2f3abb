"""Each finding fires on a run that provokes it, and on nothing else; a healthy run of any method has none (see
test_every_method_on_digits)."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import batch, images, tiny
from torch import Tensor, nn

import teacherless as tl
from teacherless.cli import main
from teacherless.training import doctor
from teacherless.training.doctor import Record, examine, visible


def learnable(seed: int, size: int = 60) -> tuple[Tensor, Tensor]:
    """Images whose class shows: noise over a brightness."""
    x, y = images(seed, size)
    return x + 2 * y[:, None, None, None], y


def logits_of(guess: Tensor, sure: float = 4.0, classes: int = 5, seed: int = 0) -> Tensor:
    """Networks that guess so, none like another in how sure it is."""
    g = torch.Generator().manual_seed(seed)
    return sure * nn.functional.one_hot(guess, classes) + torch.rand(len(guess), classes, generator=g)


def lines(epochs: int = 10, **columns: Any) -> list[dict[str, Any]]:
    """metrics.jsonl, each column a number or a list of one per epoch."""
    return [{"epoch": e, **{key.replace("__", "/"): v if isinstance(v, float) else v[e] for key, v in columns.items()}}
            for e in range(epochs)]  # fmt: skip


LABELS = torch.arange(400) % 5
CURVE = [1.0, 0.8, 0.6, 0.5, 0.4, 0.35, 0.3, 0.28, 0.26, 0.25]
HEALTHY = lines(**{"train__ce": 1.0, "train__mimicry": 0.2, "train__nll__a": CURVE, "train__nll__b": CURVE})


def guesses(wrong: float, seed: int) -> Tensor:
    """The labels, so many of them replaced at random."""
    g = torch.Generator().manual_seed(seed)
    return torch.where(torch.rand(len(LABELS), generator=g) < wrong, (LABELS + 1 + torch.randint(
        0, 4, LABELS.shape, generator=g)) % 5, LABELS)  # fmt: skip


def record(**changes: Any) -> Record:
    """A healthy run of two peers, but for the changes."""
    logits = {name: logits_of(guesses(0.1, seed), seed=seed) for seed, name in enumerate("ab")}
    both = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    return Record(HEALTHY, ["a", "b"], logits, LABELS, listening=both)._replace(**changes)


def words(run: Record) -> list[str]:
    return [found["finding"] for found in examine(run)]


def test_nothing_on_a_healthy_run() -> None:
    assert examine(record()) == []
    assert examine(Record([], ["a"], {}, torch.empty(0))) == [], "nothing is known"


@pytest.mark.parametrize(("factor", "says"), [(300.0, "mimicry drowns the labels"), (0.001, "mimicry hardly counts"),
                                              (0.0, "mimicry hardly counts"), (50.0, None), (0.02, None)])  # fmt: skip
def test_mimicry_100_times_too_small_or_large(factor: float, says: str | None) -> None:
    found = words(record(lines=lines(train__ce=0.5, train__mimicry=0.5 * factor, train__loss=1.0)))
    assert found == ([says] if says else [])


def test_a_phase_without_labels_is_no_mimicry_without_end() -> None:
    mixed = [*lines(5, train__hint=500.0), *lines(5, train__ce=1.0, train__hint=1.0)]
    assert words(record(lines=mixed)) == []


def test_peers_collapsed() -> None:
    same = {name: logits_of(guesses(0.1, 0)) for name in "ab"}
    assert words(record(logits=same)) == ["peers have collapsed into each other"]
    one = guesses(0.3, 0)  # as sure as they like, but all errors are the same
    errors = {name: logits_of(one, seed=seed) for seed, name in enumerate("ab")}
    (found,) = examine(record(logits=errors))
    assert found["finding"] == "peers have collapsed into each other"
    wrong = int((one != LABELS).sum())
    assert f"of {wrong} validation images that a or b gets wrong, both take {wrong}" in found["evidence"]


def test_a_weak_peer() -> None:
    uneven = {"a": logits_of(guesses(0.05, 0)), "b": logits_of(guesses(0.5, 1), seed=1)}
    (found,) = examine(record(logits=uneven))
    assert found["finding"] == "a weak peer drags a strong one" and "a (95" in found["evidence"]
    assert words(record(logits=uneven, listening=torch.tensor([[0.0, 0.0], [1.0, 0.0]]))) == [], "a listens to nobody"
    assert words(record(logits=uneven, listening=None)) == [], "not a cohort"


def test_classes_nobody_learns_and_classes_only_the_ensemble_learns() -> None:
    blind = {name: logits_of(guesses(0.1, seed).where(LABELS != 2, (LABELS + 1 + seed) % 5), seed=seed)
             for seed, name in enumerate("ab")}  # fmt: skip
    (found,) = examine(record(logits=blind))
    assert found["finding"] == "no student learns class 2"
    assert found["evidence"].startswith("of 80 validation images, the best student gets 0 % right")
    assert words(record(logits=blind, classes=["v", "w", "x", "y", "z"])) == ["no student learns class x"]
    together = blind | {"ensemble": logits_of(guesses(0.05, 5))}
    assert words(record(logits=together)) == ["only the ensemble learns class 2"]


def test_rates_that_explode() -> None:
    rises = [1.0, 0.5, 0.2, 0.9, *[0.3] * 6]
    (found,) = examine(record(lines=lines(train__nll__a=rises, train__nll__b=CURVE)))
    assert found["finding"] == "training broke down"
    assert found["evidence"] == "a's cross-entropy in training was 0.90 in epoch 4, after 0.20"
    assert words(record(lines=lines(train__nll__b=[30.0, *[1.6] * 9]))) == ["training broke down"]
    dead = {"a": torch.ones(400, 5), "b": logits_of(guesses(0.1, 1))}
    assert words(record(logits=dead))[0] == "a network is dead"


def test_a_validation_set_too_small() -> None:
    few = {name: logits_of(guesses(0.2, seed), seed=seed)[:25] for seed, name in enumerate("ab")}
    (found,) = examine(record(logits=few, labels=LABELS[:25]))
    assert found["finding"] == "the validation set is too small to choose by"
    assert "on 25 images a difference under " in found["evidence"]


def test_the_smallest_visible_difference_is_seen_four_times_in_five() -> None:
    """Two networks of 90 and 90 + d %, that err half on the same images, by a paired test."""
    n, top1 = 2000, 0.9
    d = visible(100 * top1, n) / 100
    g = np.random.default_rng(0)
    lost, won = 0.05 - d / 2, 0.05 + d / 2  # right only by the one, only by the other
    found = g.multinomial(n, [lost, won, 1 - lost - won], 4000)
    z = (found[:, 1] - found[:, 0]) / np.sqrt(found[:, 0] + found[:, 1])
    assert 0.75 < (z > 1.96).mean() < 0.85
    assert math.isfinite(visible(100.0, 1)) and visible(0.0, 0) == 0


def test_training_that_ends_too_early() -> None:
    rising = [50.0 + 4 * e for e in range(10)]
    nll = [1.0 - 0.05 * e for e in range(10)]
    (found,) = examine(record(lines=lines(val__top1__a=rising, val__nll__a=nll)))
    assert found["finding"] == "training ended too early" and "from 76.0 to 84.0 %" in found["evidence"]
    assert words(record(lines=lines(val__top1__a=[min(v, 76.0) for v in rising], val__nll__a=nll))) == []
    assert words(record(lines=lines(val__top1__a=rising, val__nll__a=[*nll[:5], *[0.9] * 5]))) == [], "it overfits"


def test_training_that_goes_on_too_long() -> None:
    """As with wrong labels: the best five epochs are the fifth to the ninth of 25, and what follows is far below."""
    peak = [50.0, 60, 70, 80, 86, 87, 88, 87, 86]
    falling = [85.0 - 1.2 * e for e in range(16)]
    (found,) = examine(record(lines=lines(25, val__top1__a=peak + falling, val__nll__a=[1.0] * 25)))
    assert found["finding"] == "training went on too long"
    assert found["evidence"] == "validation accuracy fell from 86.8 to 69.4 % after epoch 9"
    assert words(record(lines=lines(25, val__top1__a=peak + [86.0] * 16, val__nll__a=[1.0] * 25))) == [], (
        "it stays there"
    )


# In real runs --------------------------------------------------------------------------------------------------------


class Asleep(tl.Plain):
    """Whose network trains in evaluation mode."""

    def train(self, mode: bool = True) -> Asleep:
        return super().train(False)


def test_batch_norm_in_evaluation_mode() -> None:
    for kind, expected in ((Asleep, ["batch norm did not train"]), (tl.Plain, [])):
        found = tl.train(kind(tiny(0)), [learnable(0)] * 5, epochs=2, lr=0.01, quiet=True).summary["doctor"]
        assert [each["finding"] for each in found] == expected


def test_a_peer_that_left() -> None:
    data = [learnable(0)] * 4
    nan = {"peer1": {"lr": 1e9}}
    found = tl.train(tl.DML(tiny(0), tiny(1), tiny(2)), data, epochs=2, lr=0.01, per_student=nan, quiet=True)
    first = found.summary["doctor"][0]
    assert first["finding"] == "the others went on without a peer"
    assert first["evidence"].startswith("peer1 not finite since step ")


def test_identical_views() -> None:
    (x, y), (other, _) = images(0, 10), images(1, 10)
    for views, expected in (((x, x), True), ((x, other), False), ((x, x[:4]), False)):
        assert doctor.same_views(tl.DDGSD(tiny(0)), batch()._replace(inputs=views, labels=y)) is expected
    assert not doctor.same_views(tl.CSKD(tiny(0)), batch()._replace(inputs=(x, x), labels=y)), "a classmate is no view"
    found = tl.train(tl.DDGSD(tiny(0)), [((x, x), y)], epochs=1, lr=0.01, quiet=True).summary["doctor"]
    assert "the views are identical" in [each["finding"] for each in found]


def test_identical_views_are_remembered_by_a_resumed_run(tmp_path: Path) -> None:
    x, y = images(0, 10)
    tl.train(tl.DDGSD(tiny(0)), [((x, x), y)], epochs=1, out=tmp_path, quiet=True)
    longer = tl.train(tl.DDGSD(tiny(0)), [((x, x), y)], epochs=2, out=tmp_path, resume_anyway=True, quiet=True)
    assert "the views are identical" in [each["finding"] for each in longer.summary["doctor"]]


def test_peers_that_start_nearly_equal_collapse() -> None:
    net = tiny(0)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.head.bias.add_(1e-6)
    data = [learnable(0)] * 3
    found = tl.train(tl.DML(net, twin), data, [learnable(1, 200)], epochs=2, lr=0.01, quiet=True).summary["doctor"]
    assert "peers have collapsed into each other" in [each["finding"] for each in found]


def test_at_most_three_lines_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["train", "dml", "--student", "small-cnn,width=4", "--epochs", "1", "--set", "weight=0", "--lr", "3"]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 0
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["doctor"]
    assert "mimicry hardly counts" in [each["finding"] for each in found]
    printed = capsys.readouterr().out.splitlines()
    assert sum(". Try: " in line for line in printed) == min(3, len(found))

"""The ledger of results/: designs that can be run, numbers that nobody wrote by hand."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "results"))
import ledger  # noqa: E402
import made  # noqa: E402
import measures  # noqa: E402
import nets  # noqa: E402

from teacherless.cli import cards, main  # noqa: E402
from teacherless.data import load  # noqa: E402
from teacherless.methods import METHODS  # noqa: E402
from teacherless.models.files import load_student  # noqa: E402


@pytest.mark.parametrize("study", ledger.studies())
def test_a_design_says_all_before_it_is_run(study: str) -> None:
    design = ledger.studies()[study]
    assert all(len(design[key]) > 40 for key in ("question", "bet", "design"))
    for command in design["comparisons"].values():
        arguments = shlex.split(command)
        assert arguments[0] == "compare" and "--out" not in arguments
        methods = arguments[arguments.index("--methods") + 1].split(",")
        assert set(methods) <= set(METHODS)
    for pair in design.get("contrasts", []):
        assert len(pair) in (2, 4)
        for comparison, row in (each.split("/") for each in pair):
            assert row == "plain" or row in design["comparisons"][comparison]


def test_what_is_written_is_what_the_numbers_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No number of the README, the page and the cards is edited by hand."""
    (tmp_path / "docs").mkdir()
    written = ["README.md", "docs/learnt.md", "docs/learnt.svg", "results/ledger.json"]
    shutil.copytree(ROOT / "results", tmp_path / "results")
    for file in written:
        shutil.copy(ROOT / file, tmp_path / file)
    monkeypatch.setattr(ledger, "ROOT", tmp_path)
    monkeypatch.setattr(ledger, "HERE", tmp_path / "results")
    ledger.write()
    for file in written:
        assert (tmp_path / file).read_text("utf-8") == (ROOT / file).read_text("utf-8"), f"{file}: run `make readme`"


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ledger with one study of four tiny comparisons, which has been run."""
    monkeypatch.setattr(ledger, "ROOT", tmp_path)
    monkeypatch.setattr(ledger, "HERE", tmp_path / "results")
    monkeypatch.setattr(ledger, "teacherless", lambda arguments: main(arguments) and pytest.fail("the command failed"))
    study = tmp_path / "results" / "tiny"
    study.mkdir(parents=True)
    tiny = "compare --data digits --student small-cnn,width=2 --steps 2 --seeds 3 --methods label-smoothing --jobs 1"
    (study / "study.toml").write_text(
        f'question = "q"\nbet = "b"\ndesign = "d"\n'
        'contrasts = [["a/label-smoothing", "c/plain"], ["c/plain", "a/plain"], ["b/plain", "d/plain"]]\n'
        f'[comparisons]\na = "{tiny}"\nb = "{tiny} --seed 7"\nc = "{tiny.replace("label-smoothing", "plain")}"\n'
        f'd = "{tiny.replace("--steps 2", "--steps 3")} --seed 7"\n[plain]\nc = "a"\n[outliers]\nd = "digits"\n',
        encoding="utf-8",
    )
    ledger.run("tiny")
    return study


@pytest.mark.slow
def test_a_study_is_run_kept_and_checked(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {path.name for path in (small / "b").iterdir()} == {*ledger.KEPT, "cells.jsonl", "curves.json"}
    page = ledger.pages(list(ledger.rows()))
    assert "| plain |" in page and "changed after" not in page and (small / "d" / "measures.json").exists()
    found = list(ledger.rows())
    assert [(each["comparison"], each["row"], each["against"], each["seeds"]) for each in found] == [
        ("a", "label-smoothing", "plain", 3),
        ("b", "label-smoothing", "plain", 3),
        ("d", "label-smoothing", "plain", 3),
        ("a", "label-smoothing", "c/plain", 3),
        ("c", "plain", "a/plain", 3),
        ("b", "plain", "d/plain", 3),
    ]
    assert found[3]["difference"] == pytest.approx(found[0]["difference"])  # c's plain is a's
    assert found[4]["difference"] == 0 and found[5]["cost"] == pytest.approx(2 / 3)
    with pytest.raises(SystemExit) as done:
        ledger.check("tiny")
    assert not done.value.code and "the same bits" in capsys.readouterr().out

    cells = small / "a" / "cells.jsonl"
    lines: list[dict[str, Any]] = [json.loads(line) for line in cells.read_text("utf-8").splitlines()]
    lines[0]["files"] = dict.fromkeys(lines[0]["files"], "0" * 64)
    cells.write_text(json.dumps(lines[0]) + "\n", encoding="utf-8")
    for other in "bcd":
        (small / other / "cells.jsonl").unlink()
    with pytest.raises(SystemExit) as done:
        ledger.check("tiny")
    assert done.value.code and "OTHER BITS" in capsys.readouterr().out

    file = small / "study.toml"
    file.write_text(file.read_text("utf-8").replace('"b"', '"another bet"', 1), encoding="utf-8")
    assert "The design was changed after these results" in ledger.pages(list(ledger.rows()))


def test_what_wins_is_what_beats_plain_of_equal_compute_in_two_studies() -> None:
    def row(study: str, against: str, cost: float, low: float) -> dict[str, Any]:
        return {"study": study, "row": "dml", "against": against, "cost": cost, "interval": [low, 2.0]}

    one = [row("x", "plain", 1.0, 0.1), row("x", "2x/plain", 1.0, 0.1)]
    assert ledger.winners(one) == []
    assert ledger.winners([*one, row("y", "plain", 2.0, 0.1)]) == []  # dearer than plain
    assert ledger.winners([*one, row("y", "2x/plain", 1.0, -0.1)]) == []
    assert ledger.winners([*one, row("y", "a/plain - b/dml", 1.0, 0.1)]) == []  # a difference of differences
    assert ledger.winners([*one, row("y", "2x/plain", 1.0, 0.1)]) == ["dml"]


def test_what_was_won_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"data": "digits", "count": 300, "wrong": 0.2}
    monkeypatch.setattr(ledger, "studies", lambda: {"s": {"images": {"made": spec}}})
    for settings, expected in (
        ({"data": "digits", "train_samples": 100}, ("digits", 100, 0)),
        ({"data": "digits", "train_samples": None}, ("digits", math.inf, 0)),
        ({"data": "npz:runs/results/images/made.npz", "train_samples": None}, ("digits", 300, 0.2)),
    ):
        assert ledger.images_of("s", settings) == expected


def test_a_contrast_of_a_network_that_fell_apart_is_not_cut_off() -> None:
    """Of percentages, so up to 100 points apart, and of two such differences up to 200."""

    def row(*top1: float) -> dict[str, Any]:
        return {"per_seed": dict(enumerate(top1)), "train_flops": 1, "churn": None, "nll": None}

    tables = {
        "a": {"plain": row(5, 9, 7), "dml": row(10, 11, 9)},
        "b": {"plain": row(95, 95, 96), "dml": row(20, 22, 21)},
    }
    pairs = [["a/plain", "b/plain"], ["a/dml", "a/plain", "b/dml", "b/plain"]]
    one, two = ledger.contrasts("s", pairs, tables)
    assert one["difference"] == pytest.approx(np.mean([-90, -86, -89]))
    assert two["difference"] == pytest.approx(np.mean([80, 75, 77]))
    for each in (one, two):
        low, high = each["interval"]
        assert low < each["difference"] < high
        assert high - each["difference"] == pytest.approx(each["difference"] - low)  # as it is cut nowhere


def test_images_are_made_always_the_same(tmp_path: Path) -> None:
    for name in ("a", "b"):
        made.make(tmp_path / f"{name}.npz", "digits", 200, wrong=0.25, rarest=0.2)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    made.make(tmp_path / "right.npz", "digits", 200, rarest=0.2)
    wrong, right = (np.load(tmp_path / f"{name}.npz") for name in ("a", "right"))
    assert np.array_equal(wrong["x_train"], right["x_train"]) and np.array_equal(wrong["y_test"], right["y_test"])
    share = (wrong["y_train"] != right["y_train"]).mean()
    assert share == pytest.approx(0.25, abs=0.01)
    counts = np.bincount(right["y_train"])
    assert counts[0] == 20 and counts[9] == 4 and all(np.diff(counts) <= 0)


def test_images_of_another_size_and_several_networks_as_one_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "ROOT", tmp_path)
    monkeypatch.setattr(ledger, "teacherless", lambda arguments: main(arguments) and pytest.fail("the command failed"))
    run, file = tmp_path / "two", tmp_path / "runs" / "results" / "images" / "large.npz"
    data = f"--data npz:{file} --batch-size 10 --student small-cnn,width=2 --steps 2"
    design = {
        "images": {"large": {"data": "digits", "count": 20, "size": 12}},
        "before": [f"train dml {data} --set weight=0 --out {run}"],
        "together": {"teacher": str(run)},
    }
    for _ in range(2):  # what is there is not made again
        ledger.prepare(design)
    assert np.load(file)["x_test"].shape[1:] == (12, 12, 1)
    teacher = tmp_path / "runs" / "results" / "teacher"
    net = load_student(teacher, trust_imports=True).net.eval()
    peers = [load_student(run / "students" / f"peer{i}").net.eval() for i in (0, 1)]
    x = torch.randn(3, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    mean = (peers[0](x).softmax(1) + peers[1](x).softmax(1)) / 2
    assert torch.allclose(net(x).exp(), mean, atol=1e-6)
    ledger.teacherless(shlex.split(f"train kd {data} --teacher {teacher} --trust-imports --out {tmp_path / 'kd'}"))


def test_temperature_outliers_and_their_table_by_hand(tmp_path: Path) -> None:
    right, labels = torch.tensor([0.75, 0.25]).log().repeat(4, 1), torch.tensor([0, 0, 0, 1])
    assert measures.temperature(right, labels) == pytest.approx(1, abs=1e-3)  # three of four are of class 0
    assert measures.temperature(3 * right, labels) == pytest.approx(3, abs=1e-3)
    assert measures.temperature(right, labels * 0) == pytest.approx(1 / measures.LARGEST, rel=1e-3)  # as sure as may be
    inside, outside = (torch.tensor([[p, 1 - p] for p in each]).log() for each in ((0.9, 0.6), (0.6, 0.5)))
    assert measures.auroc(inside, outside) == 87.5  # of four pairs three and a tie
    found = measures.of_logits((3 * right, labels), (3 * right, labels), 3 * right[:2])
    before = -(3 * math.log(27 / 28) + math.log(1 / 28)) / 4  # 0.75 cubed against 0.25 cubed is 27 against 1
    after = -(3 * math.log(3 / 4) + math.log(1 / 4)) / 4
    assert [found[key] for key in ("nll", "nll_t", "auroc")] == pytest.approx([before, after, 50])
    assert [found[key] for key in ("ece", "ece_t")] == pytest.approx([100 * (27 / 28 - 3 / 4), 0], abs=1e-2)

    same = dict.fromkeys(measures.WHAT, 2.0)
    together = {key: value for key, value in same.items() if key != "rise"}
    rows = {
        "plain": dict.fromkeys((1, 2, 3), same),
        "dml": {seed: same | {"ece": 2.0 + seed} for seed in (1, 2, 3)},
        "dml, together": dict.fromkeys((1, 2, 3), together),
    }
    file = tmp_path / "measures.json"
    assert measures.table(file) == ""
    file.write_text(json.dumps(rows), encoding="utf-8")
    lines = measures.table(file).splitlines()
    assert lines[-3].startswith("| plain | 2.00 | 2.00 | 2.000 ")
    assert lines[-2].startswith("| dml | +2.00 [-1.58, +5.58] | +0.00 | ")  # 6.2 / √3, at 0.025 for two rows
    assert lines[-1].endswith("| - |")


def test_measures_are_of_the_networks_that_were_trained(tmp_path: Path) -> None:
    run = tmp_path / "two"
    assert (
        main(shlex.split(f"train dml --train-samples 30 --student small-cnn,width=2 -b 10 --steps 2 --out {run}")) == 0
    )
    source = load("digits", train_samples=30)
    found = measures.of_run(run, source, source.test)
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    of_peers = [each["test_nll"] for each in summary["students"].values()]
    assert found["one"]["nll"] == pytest.approx(sum(of_peers) / 2, abs=1e-5)
    assert found["together"]["nll"] == pytest.approx(summary["ensemble"]["test_nll"], abs=1e-5)
    assert found["one"]["auroc"] == found["together"]["auroc"] == 50  # the outliers are the test images
    assert math.isfinite(found["one"]["rise"]) and "rise" not in found["together"]


def test_what_was_chosen_on_validation_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "HERE", tmp_path)
    assert ledger.swept("s", "c") == ""
    file = tmp_path / "s" / "c" / "compare.json"
    file.parent.mkdir(parents=True)
    methods = {
        row: {"tried": {"0.0005": 80.0, "0.02": 81.0}, "chosen": value}
        for row, value in (("plain", 0.02), ("dml", 0.0005))
    }
    file.write_text(json.dumps({"sweep": {"setting": "weight_decay", "seeds": 2, "methods": methods}}))
    says = "Chosen on validation, with 2 seeds of their own, weight_decay of 0.0005, 0.02: plain 0.02, dml 0.0005."
    assert ledger.swept("s", "c").strip() == says
    file.write_text(json.dumps({"sweep": None}))
    assert ledger.swept("s", "c") == ""


def test_a_frozen_network_keeps_what_its_first_batch_said() -> None:
    net = nets.frozen_small_cnn(10, 1)
    first, second = torch.randn(2, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    net(first)
    kept = {name: value.clone() for name, value in net.named_buffers()}
    net.train()
    net(second)
    assert all(torch.equal(value, kept[name]) for name, value in net.named_buffers())
    norms = [layer for layer in net.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert norms and not any(layer.training for layer in norms)


def test_a_card_has_its_own_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"study": "s", "comparison": "c", "against": "plain", "difference": 0.5, "interval": [-1.0, 2.0], "seeds": 5}
    rows = [row | {"row": name, "cost": 2.0} for name in ("dml", "dml-3-peers", "plain-2x-longer", "cs-kd")]
    monkeypatch.setattr(cards, "_ledger", lambda: rows)
    shown = {name: cards.card(name).partition("\nResults:")[2].splitlines()[-2:] for name in METHODS}
    says = "+0.50 [-1.00, +2.00] against plain at 2.0 times its FLOPs, 5 seeds"
    assert shown["dml"] == [f"    s/c: {says}", f"    s/c, dml-3-peers: {says}"]
    assert shown["plain"][-1] == f"    s/c, plain-2x-longer: {says}"
    assert shown["kd"][-1] == "    None yet."
    monkeypatch.undo()
    assert any(row["row"] == "dml" for row in cards._ledger())

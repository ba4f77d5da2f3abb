"""A network by its cost: --split-into K, and the wider network of a comparison."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from teacherless import models
from teacherless.cli import main
from teacherless.errors import InputError
from teacherless.evaluation.metrics import flops
from teacherless.runs.build import build_method, load_source
from teacherless.runs.config import Run, parse_student
from teacherless.runs.widths import scaled, split


def cost(name: str, width: int) -> int:
    net = models.create(name, num_classes=10, in_channels=3, seed=0, width=width)
    return flops(net, torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(("name", "base"), [("small-cnn", 32), pytest.param("resnet8", 16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("times", [1 / 2, 3.3, *(pytest.param(t, marks=pytest.mark.slow) for t in (1 / 4, 1, 2))])
def test_no_width_costs_nearer(name: str, base: int, times: float) -> None:
    found = scaled(parse_student(name), times)
    assert found is not None
    width = found[0].arguments["width"]
    assert found[1] == cost(name, width) / cost(name, base)
    aim = times * cost(name, base)
    nearest = min(range(1, 4 * base + 1), key=lambda w: abs(cost(name, w) - aim))
    assert abs(cost(name, width) - aim) == abs(cost(name, nearest) - aim)


def test_the_width_of_before_is_still_that_network() -> None:
    assert list(models.create("resnet8", num_classes=3, in_channels=1).state_dict()) == list(
        models.create("resnet8", num_classes=3, in_channels=1, width=16).state_dict()
    )
    assert models.create("resnet8", num_classes=3, width=4).channels == [4, 8, 16]


def test_peers_share_the_cost_of_one() -> None:
    peers, said = split([parse_student("small-cnn,lr=0.5")], 3)
    assert len(peers) == 3 and peers[0].optimizer == {"lr": 0.5}
    width = peers[0].arguments["width"]
    share = cost("small-cnn", width) / cost("small-cnn", 32)
    assert said == f"small-cnn split into 3 of width {width}, each {share:.1%} of its FLOPs"
    run = Run(method="dml", student=("small-cnn",), split_into=3)
    method, _ = build_method(run, load_source(run, quiet=True))
    assert [net.channels[0] for net in method.students().values()] == [width] * 3  # type: ignore[union-attr]


def test_a_width_in_the_name_can_be_set() -> None:
    """WRN-28-10 is divided into the widths of Zhao et al. (arXiv:2011.14660): 7 for two, 5 for four."""
    assert models.create("wrn-16-8", num_classes=3, width=2).channels == [32, 64, 128]
    for into, width in ((2, 7), (4, 5)):
        assert split([parse_student("wrn-28-10")], into)[0][0].arguments == {"width": width}


def test_a_network_without_a_width() -> None:
    assert scaled(parse_student("mobilenet"), 2) is None
    with pytest.raises(
        InputError, match="--split-into: mobilenet has no width; those that have one: small-cnn, resnet8"
    ):
        split([parse_student("mobilenet")], 2)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["train", "dml", "--student", "small-cnn", "--split-into", "2", "--steps", "2", "--batch-size", "16"]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 0
    assert "small-cnn split into 2 of width 22, each" in capsys.readouterr().out
    students = json.loads((tmp_path / "run" / "summary.json").read_text())["students"]
    assert list(students) == ["peer0", "peer1"]
    for more, words in (
        (["--peers", "3"], "--split-into: found 2; it makes peers of one --student, without --peers"),
        (["--student", "resnet8"], "--split-into: found 2; it makes peers of one --student"),
    ):
        capsys.readouterr()
        assert main([*argv, *more, "--out", str(tmp_path / "other")]) == 2
        assert words in capsys.readouterr().err
    assert main(["train", "plain", "--split-into", "2", "--steps", "2"]) == 2
    assert "plain trains one" in capsys.readouterr().err


def test_a_comparison_splits_only_the_cohort(tmp_path: Path) -> None:
    argv = ["compare", "--methods", "plain,dml", "--student", "small-cnn,width=8", "--split-into", "2", "--steps", "2"]
    assert main([*argv, "--seeds", "2", "--jobs", "1", "--out", str(tmp_path / "c")]) == 0
    params = {
        row: json.loads((tmp_path / "c" / "cells" / f"{row}-s0" / "summary.json").read_text())["students"]
        for row in ("plain", "dml")
    }
    assert len(params["plain"]) == 1 and len(params["dml"]) == 2
    assert params["dml"]["peer0"]["params"] < params["plain"]["student"]["params"]

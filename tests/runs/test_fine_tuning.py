"""Starting from weights that are there: a student's folder, or the zoos' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import batch, tiny
from PIL import Image

import teacherless as tl
from teacherless.cli import main
from teacherless.models.files import state_hash
from teacherless.models.foreign import by_name
from teacherless.runs.stored import shipped
from teacherless.training.settings import Settings
from teacherless.training.step import body, make_optimizer, train_step


def photos(root: Path, classes: int = 3) -> Path:
    for c in range(classes):
        (root / f"class{c}").mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (16, 12), (80 * c, 20 * i, 90)).save(root / f"class{c}" / f"{i}.png")
    return root


def test_fine_tuning_starts_from_a_student_and_reads_images_as_it_did(tmp_path: Path, capsys: Any) -> None:
    """The body's weights, the statistics, the size and the fit are the first run's; the head is of the new classes."""
    first = ["train", "plain", "--data", str(photos(tmp_path / "one")), "--img-size", "12", "--fit", "crop"]
    own = ["--student", "small-cnn,width=4", "-b", "8"]
    assert main([*first, *own, "--steps", "3", "--out", str(tmp_path / "first")]) == 0
    start, before = shipped(tmp_path / "first")
    second = ["train", "dml", "--data", str(photos(tmp_path / "two", classes=2)), "--init", str(tmp_path / "first")]
    assert main([*second, *own, "--steps", "2", "--body-lr", "0", "--out", str(tmp_path / "second")]) == 0
    net, config = shipped(tmp_path / "second")
    for key in ("input_size", "fit", "mean", "std"):
        assert config[key] == before[key], key
    assert config["classes"] == ["class0", "class1"]
    for (name, value), old in zip(net.named_parameters(), start.parameters(), strict=True):
        assert torch.equal(value, old) is not name.startswith("head"), "a body of rate 0 stays, the head is new"
    other = ["--student", "small-cnn,width=8", "--steps", "1", "--out", str(tmp_path / "other")]
    assert main([*second, *other]) == 2
    assert "holds another architecture than small-cnn,width=8" in capsys.readouterr().err
    (tmp_path / "first").rename(tmp_path / "elsewhere")
    assert main(["evaluate", str(tmp_path / "second")]) == 0, "where it began is not needed any more"


def test_init_with_the_same_classes_takes_the_head_too(tmp_path: Path) -> None:
    argv = ["train", "plain", "--data", str(photos(tmp_path / "one")), "--student", "small-cnn,width=4", "-b", "8",
            "--img-size", "8", "--steps", "1"]  # fmt: skip
    assert main([*argv, "--out", str(tmp_path / "first")]) == 0
    assert main([*argv, "--init", str(tmp_path / "first"), "--lr", "1e-30", "--out", str(tmp_path / "second")]) == 0
    for one, two in zip(*(shipped(tmp_path / n).net.parameters() for n in ("first", "second")), strict=True):
        assert torch.equal(one, two)


def test_the_weights_of_init_are_in_run_json_and_a_run_does_not_go_on_with_others(tmp_path: Path, capsys: Any) -> None:
    argv = ["train", "plain", "--data", str(photos(tmp_path / "one")), "--student", "small-cnn,width=4", "-b", "8",
            "--img-size", "8", "--steps", "2"]  # fmt: skip
    for seed in ("0", "1"):
        assert main([*argv, "--seed", seed, "--out", str(tmp_path / seed)]) == 0
    second = ["train", "--out", str(tmp_path / "second"), "--resume"]
    assert main([*argv, "--init", str(tmp_path / "0"), "--out", str(tmp_path / "second")]) == 0
    stored = json.loads((tmp_path / "second" / "run.json").read_text())
    assert stored["init"] == state_hash(shipped(tmp_path / "0").net) != state_hash(shipped(tmp_path / "1").net)
    assert main(second) == 0
    (tmp_path / "0").rename(tmp_path / "before")
    (tmp_path / "1").rename(tmp_path / "0")
    assert main(second) == 2
    assert "the start of --init is not the same" in capsys.readouterr().err


def test_the_body_has_a_rate_of_its_own() -> None:
    """A group for each student's head, one for its body; helpers go with the heads."""
    method = tl.DML(tiny(0), tiny(1))
    settings = Settings(lr=0.2, body_lr=0.1, clip_grad=0.5)
    own: dict[str, dict[str, float]] = {"peer1": {"lr": 0.4}}
    optimizer = make_optimizer(method.param_groups(), settings, own, body(method))
    found = [(group["name"], round(group["initial_lr"], 6), len(group["params"])) for group in optimizer.param_groups]
    parts = len(list(tiny(0).parameters()))
    assert found == [("peer0", 0.2, 2), ("peer1", 0.4, 2), ("peer0", 0.02, parts - 2), ("peer1", 0.04, parts - 2)]
    one, two = tl.Plain(tiny(0)), tl.Plain(tiny(0))
    for plain, rate in ((one, 1.0), (two, 0.5)):
        parted = make_optimizer(
            plain.param_groups(), Settings(body_lr=rate, momentum=0, nesterov=False), {}, body(plain)
        )
        train_step(plain, parted, batch(), tl.progress(epochs=1), clip=0.01)
    for name, start in tiny(0).named_parameters():
        step, half = (plain.student.get_parameter(name) - start for plain in (one, two))
        assert torch.allclose(half, step * (1 if name.startswith("head") else 0.5), atol=1e-7), "clipped as one"


def test_threads_step_heads_and_bodies_as_the_loop_does() -> None:
    ends = []
    for engine in ("loop", "threads"):
        method = tl.DML(tiny(0), tiny(1))
        tl.train(method, [batch(i) for i in range(3)], epochs=2, engine=engine, body_lr=0.1, quiet=True)
        ends.append(method.state_dict())
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_how_pretrained_weights_want_their_images(zoo: None) -> None:
    for name in ("timm/resnet18", "torchvision/resnet18"):
        found = by_name.reads(name)
        assert (found["size"], found["fit"]) == (224, "crop")
        assert list(found["mean"]) == pytest.approx([0.485, 0.456, 0.406])
        assert list(found["std"]) == pytest.approx([0.229, 0.224, 0.225])
    assert by_name.reads("resnet8") == {}

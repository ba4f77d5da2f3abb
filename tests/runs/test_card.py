"""A student's folder that anyone can use: its card, and timm's own format where the network is timm's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import teacherless as tl
from teacherless.cli import main
from teacherless.files import disk
from teacherless.models.files import CONFIG, save_student
from teacherless.runs import card

CLASSES = ["ant", "b|ee", "line\nbreak"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compare") / "cells" / "dml-s3"
    words = ["dml", "--student", "small-cnn,width=4", "--epochs", "1", "--seed", "3", "--lr", "0.05", "--out", str(out)]
    assert main(["train", *words]) == 0
    return out


def test_a_run_has_cards(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    for name, row in summary["students"].items():
        found = (run / "students" / name / "README.md").read_text()
        assert f"`{name}`, one of 2 networks" in found
        assert ("validation chose" in found) == (name == summary["chosen"])
        assert f"| test: top-1 % | {row['test_top1']:.2f} |" in found
        assert "digits: 1294 train, 144 val, 359 test images" in found and "| seed | 3 |" in found
        assert "teacherless train dml --epochs 1 --lr 0.05 --seed 3 --student small-cnn,width=4" in found
        assert "Images are gray, resized to 8x8 as a whole" in found and '["0", "1", "2"' in found


def test_its_code_runs(run: Path) -> None:
    found = (run / "students" / "peer0" / "README.md").read_text()
    code = found.partition("```python\n")[2].partition("```")[0]
    before = "import torch\nimages = torch.randn(2, 1, 8, 8)\n"
    code = f"{before}{code}assert logits.shape == (2, 10)"
    subprocess.run([sys.executable, "-c", code], cwd=run / "students" / "peer0", check=True)


def test_a_comparison_is_told_with_its_interval(run: Path) -> None:
    table = run.parent.parent / "compare.json"
    rows = {"dml": {"student": {"seeds": 5, "mean": 91.234, "std": 0.5}, "verdict": "dml: +1.2 [0.4, 2.0]"}}
    disk.write_json(table, {"methods": rows, "caveat": "intervals cover seeds"})
    config = json.loads((run / "students" / "peer0" / CONFIG).read_text())
    found = card.text(run, "peer0", config)
    assert "over 5 seeds: 91.23 ± 0.50 on test. dml: +1.2 [0.4, 2.0]; intervals cover seeds." in found
    for damaged in ('{"methods": 3}', "not JSON", '{"methods": {}, "caveat": ""}'):
        table.write_text(damaged)
        assert "One run, of seed 3." in card.text(run, "peer0", config)
    table.unlink()


def test_a_folder_alone(tmp_path: Path) -> None:
    net = tl.create("small-cnn", num_classes=3, width=4, seed=0)
    about = {"classes": CLASSES, "input_size": [8, 8], "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3}
    save_student(tmp_path, net, about)
    found = card.text(None, "student", json.loads((tmp_path / CONFIG).read_text()))
    assert '["ant", "b|ee", "line\\nbreak"]' in found and "How it was trained" not in found


@pytest.mark.parametrize("part", ["classes", "input_size", "channels", "mean", "std"])
def test_what_a_config_has_lost_is_not_told(run: Path, part: str) -> None:
    config = json.loads((run / "students" / "peer0" / CONFIG).read_text())
    assert "Images are " in card.text(run, "peer0", config)
    del config[part]
    assert "Images are " not in card.text(run, "peer0", config)


def test_what_a_summary_has_lost_is_unknown(run: Path) -> None:
    config, summary = (json.loads((run / name).read_text()) for name in (f"students/peer0/{CONFIG}", "summary.json"))
    kept = {key: value for key, value in summary.items() if key not in ("seed", "data")}
    (run / "summary.json").write_text(json.dumps(kept))
    try:
        told = card.text(run, "peer0", config)
    finally:
        (run / "summary.json").write_text(json.dumps(summary))
    assert "of seed unknown." in told and "on unknown data" in told


@pytest.mark.parametrize(
    ("name", "channels", "side", "arguments"),
    [("resnet10t", 1, 32, {}), ("test_vit", 3, 160, {}), ("test_vit", 1, 96, {"img_size": 96, "drop_path_rate": 0.1})],
)
@pytest.mark.usefixtures("zoo")
def test_timm_builds_its_own_networks(
    name: str, channels: int, side: int, arguments: dict[str, float], tmp_path: Path
) -> None:
    import timm

    net = tl.create(f"timm/{name}", num_classes=3, in_channels=channels, seed=0, **arguments)
    about = {"classes": CLASSES, "input_size": [side, side], "channels": channels, "fit": "crop-0.875",
             "mean": [0.4] * channels, "std": [0.2] * channels}  # fmt: skip
    save_student(tmp_path, net, about)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    x = torch.randn(2, channels, side, side)
    assert torch.equal(theirs.eval()(x), net.eval()(x))
    assert torch.equal(tl.load_student(tmp_path).net.eval()(x), net(x))
    reads = timm.data.resolve_model_data_config(theirs)
    assert reads["input_size"] == (channels, side, side) and reads["crop_pct"] == 0.875
    assert reads["mean"] == [0.4] * channels and reads["crop_mode"] == "center"
    assert theirs.pretrained_cfg["label_names"] == CLASSES


@pytest.mark.slow
@pytest.mark.usefixtures("zoo")
def test_timms_student_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                   monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """The fresh process builds it with timm; of a torchvision of another build, only names are asked, as in `zoo`."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(
        "import torch\nlibrary = torch.library.Library('torchvision', 'FRAGMENT')\n"
        "for name in ('nms', 'qnms'):\n"
        "    library.define(name + '(Tensor boxes, Tensor scores, float threshold) -> Tensor')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"), prepend=":")
    net = tl.create("timm/resnet10t", num_classes=10, in_channels=1, seed=0)
    about = {"classes": list("0123456789"), "input_size": [8, 8], "channels": 1, "mean": [0.3], "std": [0.3]}
    save_student(tmp_path / "student", net, about)
    words = ["export", str(tmp_path / "student"), "--data", "digits", "--format", "safetensors", "--json"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["difference"] == 0 and found["images"] == 256
    assert "timm.create_model" in (tmp_path / "out" / "README.md").read_text()
    shutil.rmtree(tmp_path / "out")

"""predict on whatever lies in a folder."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import teacherless as tl
from teacherless.cli import main
from teacherless.models.files import save_student


@pytest.fixture
def student(tmp_path: Path) -> Path:
    made = tl.create("small-cnn", num_classes=3, in_channels=3, width=4, seed=0)
    about = {"classes": ["red", "green", "blue"], "input_size": [16, 16], "channels": 3, "mean": [0.5] * 3,
             "std": [0.25] * 3}  # fmt: skip
    save_student(tmp_path / "student", made, about)
    return tmp_path / "student"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "photos"
    (out / "more").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out / "a.png")
    Image.fromarray(noise[..., 0]).save(out / "gray.jpg")
    Image.fromarray(noise[:1, :1]).save(out / "one-pixel.png")
    Image.new("RGB", (6000, 4000), "red").save(out / "more" / "huge.jpg")
    (out / "broken.jpg").write_bytes((out / "gray.jpg").read_bytes()[:200])
    (out / "notes.txt").write_text("not an image")
    return out


def test_a_folder(student: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(student), str(folder), "--format", "json"]) == 1
    shown = capsys.readouterr()
    found = {Path(row["path"]).name: row for row in json.loads(shown.out)}
    assert set(found) == {"a.png", "gray.jpg", "one-pixel.png", "huge.jpg", "broken.jpg"}
    for name, row in found.items():
        if name == "broken.jpg":
            assert row["error"]
            assert not row["classes"]
        else:
            assert sum(row["classes"].values()) == pytest.approx(1, abs=1e-5)
            assert list(row["classes"].values()) == sorted(row["classes"].values(), reverse=True)
    assert shown.err.count("\n") == 1
    assert "broken.jpg" in shown.err


def test_it_is_what_the_network_says(student: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(student), str(folder / "a.png"), "--format", "csv", "--top", "1"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    net, config = tl.load_student(student)
    with Image.open(folder / "a.png") as image:
        x = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR, reducing_gap=2.0))
    z = torch.from_numpy(x.copy()).float().permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        p = net.eval()((z - 0.5) / 0.25).softmax(1)[0]
    assert rows[0]["class"] == config["classes"][int(p.argmax())]
    assert float(rows[0]["probability"]) == pytest.approx(float(p.max()), abs=1e-4)


def test_a_missing_file_has_a_row_like_a_broken_one(
    student: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["predict", str(student), "nowhere.png", str(folder / "a.png"), str(folder / "broken.jpg"), "--json"]) == 1
    )
    shown = capsys.readouterr()
    rows = json.loads(shown.out)
    assert [bool(row["classes"]) for row in rows] == [False, True, False]
    assert "no such file" in rows[0]["error"].lower()
    assert shown.err.count("\n") == 1 and "nowhere.png" in shown.err and "1 more" in shown.err


def test_bad_input(student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(student), str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(student), str(tmp_path / "empty")]) == 2
    assert "no images" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "empty"), str(tmp_path)]) == 2
    assert "neither a run folder" in capsys.readouterr().err
    assert main(["predict", str(student), str(tmp_path / "student" / "config.json")]) == 1
    assert "cannot be read" in capsys.readouterr().out

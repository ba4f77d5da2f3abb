"""What evaluate says of a run: split, classes, confusion, mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix

import teacherless as tl
from teacherless.cli import main
from teacherless.models.files import save_student
from teacherless.runs.predict import predict
from teacherless.runs.results import confusion, evaluate_folder
from teacherless.runs.stored import shipped

CLASSES = ["red", "green", "blue"]


@pytest.fixture
def student(tmp_path: Path) -> Path:
    made = tl.create("small-cnn", num_classes=3, in_channels=3, width=4, seed=0)
    about = {"classes": CLASSES, "input_size": [16, 16], "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3}
    save_student(tmp_path / "student", made, about)
    return tmp_path / "student"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five images of noise for each class and split; the first of green's test images is cut."""
    noise = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in CLASSES:
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(5):
                Image.fromarray(noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    cut = tmp_path / "photos" / "test" / "green" / "0.png"
    cut.write_bytes(cut.read_bytes()[:100])
    return tmp_path / "photos"


def test_confusion_against_scikit_learn() -> None:
    g = torch.Generator().manual_seed(0)
    labels, guess = torch.randint(4, (80,), generator=g), torch.randint(4, (80,), generator=g)
    assert confusion(guess, labels, 5)[:4] == [[*row, 0] for row in confusion_matrix(labels, guess).tolist()]
    assert confusion(torch.tensor([-1, 0]), torch.tensor([0, 0]), 2) == [[1, 0], [0, 0]]


@pytest.mark.parametrize("lazily", [False, True])
def test_classes_and_mistakes_are_those_of_the_files(
    lazily: bool, student: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lazily:
        monkeypatch.setattr("teacherless.data.folder.IN_MEMORY", 100)
    found = evaluate_folder(student, data=str(photos), data_dir=None, split="test")
    assert (found.split, found.images, sorted(found.classes)) == ("test", 14, sorted(CLASSES))
    assert [sum(row) for row in found.confusion] == [4 if name == "green" else 5 for name in found.classes]
    right = sum(row[i] for i, row in enumerate(found.confusion))
    assert 100 * right / 14 == pytest.approx(found.metrics["student"]["top1"])
    assert len(found.mistakes) == 14 - right > 3
    confidence = [mistake.confidence for mistake in found.mistakes]
    assert confidence == sorted(confidence, reverse=True)
    assert found.pixels is not None
    for mistake, pixels in zip(found.mistakes, found.pixels, strict=True):
        assert mistake.label != mistake.taken_for
        own = [photos / mistake.file] if mistake.file else (photos / "test" / mistake.label).iterdir()
        readable = [Image.open(path) for path in own if path.stat().st_size > 100]
        assert any(np.array_equal(np.asarray(image), pixels.numpy()) for image in readable)
    assert any(mistake.file for mistake in found.mistakes) == lazily


def test_a_student_reads_a_folder_as_it_was_trained(photos: Path, tmp_path: Path) -> None:
    """Gray, cut to squares, by its config alone: as `predict` reads the same files."""
    made = tl.create("small-cnn", num_classes=3, in_channels=1, width=4, seed=0)
    about = {"classes": sorted(CLASSES), "input_size": [8, 8], "channels": 1, "mean": [0.5], "std": [0.25]}
    save_student(tmp_path / "gray", made, about | {"fit": "crop"})
    evaluation = evaluate_folder(tmp_path / "gray", data=str(photos), data_dir=None, split="val")
    files = sorted((photos / "val").rglob("*.png"))
    guesses = [next(iter(each.probabilities)) for each in predict(shipped(tmp_path / "gray"), files)]
    right = sum(guess == file.parent.name for guess, file in zip(guesses, files, strict=True))
    assert evaluation.metrics["gray"]["top1"] == pytest.approx(100 * right / len(files))
    counts = [sum(guess == name for guess in guesses) for name in evaluation.classes]
    assert np.sum(evaluation.confusion, 0).tolist() == counts


def test_data_of_other_channels_is_refused(student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = np.zeros((30, 16, 16), np.uint8), np.arange(30) % 3
    np.savez(tmp_path / "gray.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    assert main(["evaluate", str(student), "--data", f"npz:{tmp_path / 'gray.npz'}"]) == 2
    assert "are 1; the student reads 3" in capsys.readouterr().err


def test_on_the_command_line(student: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["evaluate", str(student), "--data", str(photos), "--split", "val", "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    for words in ("photos, val: 15 images, 3 classes", "class by class", "blue", "top-1 %"):
        assert words in shown, shown
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"evaluation.json", "confusion.png", "confusion.svg", "mistakes.png", "mistakes.svg"}
    assert main([*argv, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert {key: printed[key] for key in written} == written
    assert len(written["per_class"]) == 3 and written["images"] == 15
    (tmp_path / "file").write_text("")
    assert main([*argv[:-1], str(tmp_path / "file" / "out")]) == 2
    assert "--out: cannot write" in capsys.readouterr().err

"""Folders of images: formats, bad files, splits, streaming; and what is refused."""

from __future__ import annotations

import errno
import json
import logging
import shutil
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from teacherless.cli import main
from teacherless.data import Files, Loader, Resident, images, load
from teacherless.data import folder as module
from teacherless.data.images import Unreadable, read, size_of
from teacherless.errors import InputError
from teacherless.method import Batch, Wants

RED, GREEN, BLUE = (200, 30, 30), (30, 200, 30), (30, 30, 200)


def picture(seed: int, size: tuple[int, int] = (20, 16), base: tuple[int, ...] = RED) -> Image.Image:
    """Smooth noise around a colour; `size` is W, H."""
    rng = np.random.default_rng(seed)
    small = rng.integers(-25, 26, (4, 4, 3)) + np.array(base)
    return Image.fromarray(small.clip(0, 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)


def photos(root: Path, classes: int = 3, each: int = 10, suffix: str = ".png") -> Path:
    for c in range(classes):
        where = root / f"class{c}"
        where.mkdir(parents=True)
        for i in range(each):
            picture(100 * c + i, base=(RED, GREEN, BLUE)[c % 3]).save(where / f"{i:03}{suffix}")
    return root


def batches(split: Any, epoch: int = 0, workers: int = 0, **settings: Any) -> list[Batch]:
    settings = {"batch_size": 4, "mean": (0.5,) * 3, "std": (0.2,) * 3, "wants": Wants(index=True), **settings}
    return list(Loader(split, workers=workers, **settings).epoch(epoch))


def identical(one: list[Batch], two: list[Batch]) -> bool:
    flat = [[t for b in batches for t in (*b.inputs, b.labels, b.index)] for batches in (one, two)]
    return len(flat[0]) == len(flat[1]) and all(map(torch.equal, *flat))  # type: ignore[arg-type]


# --- one file


def stored(tmp_path: Path, image: Image.Image, name: str, size: int = 8, channels: int = 3, **save: Any) -> Any:
    image.save(tmp_path / name, **save)
    return read(tmp_path / name, (size, size), channels).astype(int)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.gif", "a.ppm", "a.jpg", "a.JPEG", "a.webp"])
def test_formats_agree(tmp_path: Path, name: str) -> None:
    image = picture(0, (32, 32))
    exact = np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR, reducing_gap=2.0)).astype(int)
    got = stored(tmp_path, image, name)
    assert got.shape == (8, 8, 3)
    assert np.abs(got - exact).max() <= (0 if name[2:] in ("png", "bmp", "tif", "ppm") else 12)


LEVEL = 153  # gray that is in the palette of web colours, too
MODES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "LA": lambda gray: gray.convert("L").convert("LA"),
    "PA": lambda gray: gray.convert("L").convert("PA"),
    "I;16": lambda gray: Image.fromarray(np.full((9, 12), LEVEL * 257, np.uint16)),
    "I": lambda gray: Image.fromarray(np.full((9, 12), LEVEL * 257, np.int32)),
    **{mode: lambda gray, mode=mode: gray.convert(mode) for mode in ("L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV")},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [1, 3])
def test_modes_become_gray_or_rgb(mode: str, channels: int) -> None:
    image = MODES[mode](Image.new("RGB", (12, 9), (LEVEL,) * 3))
    assert image.mode == mode
    got = images.colours(image, "L" if channels == 1 else "RGB")
    assert len(got.getbands()) == channels and np.abs(np.asarray(got).astype(int) - LEVEL).max() <= 2


@pytest.mark.parametrize("mode", ["1", "LA", "P", "CMYK"])
def test_modes_survive_a_file(tmp_path: Path, mode: str) -> None:
    level = 255 if mode == "1" else LEVEL
    image = Image.new("RGB", (12, 9), (level,) * 3)
    image = MODES[mode](image) if mode in MODES else image.convert(mode)
    assert np.abs(stored(tmp_path, image, "a.jpg" if mode == "CMYK" else "a.png") - level).max() <= 2


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 8 * 8).reshape(8, 8).astype(np.uint16)
    got = stored(tmp_path, Image.fromarray(ramp), "a.png", channels=1)[..., 0]
    assert np.array_equal(got, np.rint(ramp / 257))
    Image.fromarray(ramp).save(tmp_path / "a.tif")
    assert np.array_equal(read(tmp_path / "a.tif", (8, 8), 1)[..., 0], got)


def test_transparency_is_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert (stored(tmp_path, clear, "a.png") == 255).all()
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert (stored(tmp_path, palette, "b.png", transparency=1) == 255).all()
    assert (stored(tmp_path, palette, "c.png")[..., 2] == 255).all() and not stored(tmp_path, palette, "d.png")[
        ..., :2
    ].any()
    assert (stored(tmp_path, palette, "e.png", transparency=b"\xff\x80")[0, 0] == (127, 127, 255)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    """Red on top, as the photographer saw it, whichever way the camera was held."""
    turns = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
             7: "TRANSVERSE", 8: "ROTATE_270"}  # fmt: skip
    seen = Image.new("RGB", (64, 48), BLUE)
    seen.paste(RED, (0, 0, 64, 24))
    as_stored = seen.transpose(Image.Transpose[turns[orientation]]) if orientation > 1 else seen
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = stored(tmp_path, as_stored, "a.jpg", exif=exif, quality=95)
    assert (got[:3, :, 0] > 150).all() and (got[-3:, :, 2] > 150).all()


def test_any_size(tmp_path: Path) -> None:
    assert (stored(tmp_path, Image.new("RGB", (1, 1), GREEN), "a.png") == GREEN).all()
    assert np.abs(stored(tmp_path, Image.new("RGB", (6000, 4000), GREEN), "b.jpg") - GREEN).max() <= 3
    assert (stored(tmp_path, Image.new("L", (6000, 4000), 77), "c.png") == 77).all()
    assert stored(tmp_path, Image.new("RGB", (3000, 2), RED), "d.png", size=16).shape == (16, 16, 3)


def bomb(path: Path) -> None:
    """A PNG that says it is 40,000 x 40,000."""
    body = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
                     + struct.pack(">I", 16) + b"IDAT")  # fmt: skip


BAD: dict[str, Callable[[Path], Any]] = {
    "empty file": lambda p: p.write_bytes(b""),
    "not an image": lambda p: p.write_text("a diary"),
    "truncated": lambda p: (picture(0, (300, 300)).save(p, "JPEG"), p.write_bytes(p.read_bytes()[:1500])),
    "decompression bomb": bomb,
    "float pixels": lambda p: Image.fromarray(np.zeros((4, 4), np.float32)).save(p, "TIFF"),
    "No such file": lambda p: None,
    "directory": lambda p: p.mkdir(),
}


@pytest.mark.parametrize("why", BAD)
def test_unreadable_files_say_why_in_a_line(tmp_path: Path, why: str) -> None:
    path = tmp_path / ("a.png" if why == "decompression bomb" else "a.jpg")
    BAD[why](path)
    with pytest.raises(Unreadable, match=why) as caught:
        read(path, (8, 8), 3)
    assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)
    if why in ("empty file", "not an image"):
        with pytest.raises(Unreadable, match=why):
            size_of(path)


# --- a folder


def awkward(root: Path) -> Path:
    """The folder of the acceptance test: 300 photos in 5 classes, and everything a folder can hold."""
    photos(root, classes=5, each=60, suffix=".jpg")
    for i, suffix in enumerate((".png", ".webp", ".bmp", ".gif")):
        picture(i, base=BLUE).save(root / "class0" / f"other{suffix}")
    (root / "class1" / "corrupt.jpg").write_bytes((root / "class1" / "000.jpg").read_bytes()[:300])
    (root / "class1" / "zero.png").write_bytes(b"")
    (root / "class1" / "text.jpg").write_text("not a photo")
    (root / "class1" / "gone.jpg").symlink_to("moved.jpg")
    (root / "class2" / "notes.txt").write_text("notes")
    (root / "class2" / ".DS_Store").write_bytes(b"\0")
    (root / ".git").mkdir()
    picture(1).convert("CMYK").save(root / "class2" / "cmyk.jpg")
    picture(2).convert("P").save(root / "class2" / "palette.png")
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(root / "class3" / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(3).save(root / "class3" / "turned.jpg", exif=exif)
    picture(4, (1, 1)).save(root / "class4" / "dot.png")
    (root / "class4" / "more").mkdir()
    picture(5, (6000, 4000)).save(root / "class4" / "more" / "huge.jpg")
    return root


def test_a_folder_of_everything(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = awkward(tmp_path / "photos")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = load(str(root), img_size=16)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert "skipped 4 unreadable files: class1/corrupt.jpg: " in message
    assert message.endswith(", and 3 more (1 other file ignored)")
    assert source.name == "photos" and source.classes == [f"class{i}" for i in range(5)]
    assert (source.size, source.channels) == ((16, 16), 3)
    assert source.val is not None and source.test is not None and isinstance(source.train, Resident)
    sizes = [len(s) for s in (source.train, source.val, source.test)]
    assert sum(sizes) == 310 and sizes[1:] == [25, 62]
    assert len(batches(source.train, augment=source.augment)) == sizes[0] // 4


def test_splits_hang_on_names_not_on_what_else_is_there(tmp_path: Path) -> None:
    root = photos(tmp_path / "p", classes=2, each=40)
    before = load(str(root), img_size=8)
    assert before.test is not None and before.val is not None
    picture(0).save(root / "class0" / "000a.png")
    after = load(str(root), img_size=8)
    assert after.test is not None and before.fingerprint != after.fingerprint

    def rows(split: Any) -> set[bytes]:
        return {image.numpy().tobytes() for image in split.images}

    assert len(rows(before.test) & rows(after.test)) >= len(before.test) - 1
    again = load(str(root), img_size=8)
    assert again.fingerprint == after.fingerprint and isinstance(again.train, Resident)
    assert torch.equal(again.train.images, after.train.images)  # type: ignore[attr-defined]


def test_train_val_and_test_folders(tmp_path: Path) -> None:
    root = tmp_path / "p"
    for split, each in (("train", 8), ("validation", 3), ("test", 2)):
        photos(root / split, classes=2, each=each)
    source = load("p", data_dir=tmp_path, img_size=8, gray=True)
    assert source.val is not None and source.test is not None
    assert [len(s) for s in (source.train, source.val, source.test)] == [16, 6, 4]
    assert source.channels == 1 and len(source.mean) == 1
    shutil.rmtree(root / "validation")
    shutil.rmtree(root / "test")
    source = load(str(root), img_size=8)
    assert source.val is not None and source.test is None and len(source.train) + len(source.val) == 16


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    root = photos(tmp_path / "p", classes=2)
    (root / "class0").rename(root / "train")
    assert load(str(root), img_size=8).classes == ["class1", "train"]


def test_default_size_and_names(tmp_path: Path) -> None:
    root = photos(tmp_path / "p", classes=2, each=5)
    (root / "class0" / "000.png").rename(root / "class0" / "späß \udcff.png")
    source = load(str(root))
    assert source.size == (64, 64) and source.augment.flip and source.augment.pad == 8
    assert all(m == pytest.approx(e, abs=0.1) for m, e in zip(source.mean, (0.45, 0.45, 0.12), strict=True))


def empty(root: Path, name: str) -> None:
    shutil.rmtree(root / name)
    (root / name).mkdir()


def spoil_all(root: Path, name: str) -> None:
    for path in (root / name).iterdir():
        path.write_bytes(b"")


def into_splits(root: Path) -> None:
    for split in ("train", "test"):
        shutil.copytree(root, root.parent / "s" / split)
    shutil.rmtree(root)
    (root.parent / "s").rename(root)


SPOIL: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (shutil.rmtree, "no such folder; must be a folder with one sub-folder"),
    "a file": (lambda r: (shutil.rmtree(r), r.write_text("")), "is a file"),
    "nothing": (lambda r: (shutil.rmtree(r), r.mkdir()), "found no images in its sub-folders"),
    "images but no classes": (lambda r: [shutil.rmtree(p) for p in r.iterdir()] and picture(0).save(r / "a.png"),
                              "found no images in its sub-folders; must have one sub-folder of images per class"),
    "one class": (lambda r: shutil.rmtree(r / "class1"), r"found one class \('class0'\); a classifier needs"),
    "an empty class": (lambda r: empty(r, "class1"), "class 'class1' has no images in class1/"),
    "a spoilt class": (lambda r: spoil_all(r, "class1"), r"no image of class 'class1' .*\(class1/000.png: empty file"),
    "no train": (lambda r: (into_splits(r), (r / "train").rename(r / "val")), "found test, val but no train/"),
    "two validations": (lambda r: (into_splits(r), (r / "val").mkdir(), (r / "valid").mkdir()), "found val/ and valid"),
    "a class too few": (lambda r: (into_splits(r), shutil.rmtree(r / "test" / "class1")),
                        "test/ lacks class 'class1', which train/ has"),
    "a class too many": (lambda r: (into_splits(r), shutil.copytree(r / "test" / "class1", r / "test" / "class7")),
                         "test/ has class 'class7', which train/ lacks"),
    "an empty test class": (lambda r: (into_splits(r), empty(r / "test", "class1")), "no images in test/class1/"),
    "an empty test": (lambda r: (into_splits(r), empty(r, "test")), "found no images in test/"),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOIL)
def test_folders_that_are_refused(tmp_path: Path, what: str) -> None:
    root = photos(tmp_path / "photos", classes=2, each=3)
    spoil, words = SPOIL[what]
    spoil(root)
    with pytest.raises(InputError, match=words) as caught:
        load(str(root), img_size=8)
    assert "\n" not in str(caught.value) and str(root) in str(caught.value)


def test_a_folder_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = photos(tmp_path / "photos", classes=2, each=3)

    def locked(where: Path, onerror: Callable[[OSError], None]) -> list[Any]:
        onerror(PermissionError(errno.EACCES, "Permission denied", str(where)))
        return []

    monkeypatch.setattr(module.os, "walk", locked)
    with pytest.raises(InputError, match=r"cannot read .*class0: Permission denied"):
        load(str(root))


# --- streaming


def test_streaming_and_workers_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = photos(tmp_path / "p", classes=3, each=12, suffix=".jpg")
    resident, streamed = (load(str(root), img_size=16, stream=stream) for stream in (False, True))
    assert isinstance(streamed.train, Files) and isinstance(streamed.val, Files)
    assert (resident.mean, resident.std) == (streamed.mean, streamed.std)
    wants = Wants(views=2, classmate=True, index=True)
    settings: dict[str, Any] = {"augment": resident.augment, "wants": wants, "seed": 5}
    expected = batches(resident.train, 1, **settings)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert len(expected) == len(resident.train) // 4
    assert identical(expected, batches(streamed.train, 1, **settings))
    assert identical(expected, batches(streamed.train, 1, workers=2, **settings))
    assert torch.equal(before, torch.get_rng_state()), "decoding draws nothing from the global generator"
    loader = Loader(streamed.train, batch_size=4, mean=(0.5,) * 3, std=(0.2,) * 3, workers=2, **settings)
    assert identical(expected[3:], list(loader.epoch(1, 3)))
    assert identical(batches(resident.val), batches(streamed.val, workers=1))
    monkeypatch.setattr(module, "IN_MEMORY", 16 * 16 * 3 * 36 - 1)
    assert isinstance(load(str(root), img_size=16).train, Files), "too large for memory"
    assert load(str(root), img_size=16).fingerprint == streamed.fingerprint
    assert isinstance(load(str(root), img_size=16, gray=True).train, Resident)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_fails_while_streaming(tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int) -> None:
    """Its header is whole, so that only decoding finds it."""
    root = photos(tmp_path / "p", classes=2, each=10, suffix=".jpg")
    for name in ("000", "001"):
        (root / "class0" / f"{name}.jpg").write_bytes(cut(root, name))
    (root / "class1" / "000.jpg").write_text("no header either")
    source = load(str(root), img_size=8, stream=True, val_fraction=0)
    assert [r.getMessage().partition(": ")[2] for r in caplog.records] == [
        "skipped 1 unreadable file: class1/000.jpg: not an image"
    ]
    assert source.test is not None and isinstance(source.train, Files) and isinstance(source.test, Files)
    every = Files(root, np.concatenate([source.train.names, source.test.names]),
                  torch.cat([source.train.labels, source.test.labels]),
                  np.concatenate([source.train.sizes, source.test.sizes]), (8, 8), 3)  # fmt: skip
    caplog.clear()
    settings: dict[str, Any] = {"batch_size": 19, "mean": (0.0,) * 3, "std": (1.0,) * 3, "workers": workers}
    loader = Loader(every, augment=source.augment, **settings)
    first, again = next(loader.epoch(0)), next(loader.epoch(0))
    assert len(first.labels) == 19 and identical_inputs(first, again)
    reds = first.inputs[0][first.labels == 0].mean((2, 3))
    assert len(reds) == 10 and (reds[:, 0] > reds[:, 2] + 0.3).all(), "another of its class stands in"
    said = sorted(r.getMessage() for r in caplog.records)
    assert len(said) == 2, "each is named once, whatever the number of epochs"
    assert said[0].startswith("p: cannot read class0/000.jpg: ") and said[0].endswith("class stands in")
    caplog.clear()
    (batch,) = Loader(every, augment=None, **settings)
    assert len(batch.labels) == len(batch.inputs[0]) == 17 and int((batch.labels == 0).sum()) == 8
    assert all(r.getMessage().endswith("; left out") for r in caplog.records) and len(caplog.records) == 2


def cut(root: Path, name: str) -> bytes:
    path = root / "class0" / f"{name}.jpg"
    picture(int(name), (300, 300)).save(path)
    return path.read_bytes()[:1200]


def identical_inputs(one: Batch, two: Batch) -> bool:
    return all(map(torch.equal, one.inputs, two.inputs))


def test_a_class_that_is_gone(tmp_path: Path) -> None:
    root = photos(tmp_path / "p", classes=2, each=4)
    source = load(str(root), img_size=8, stream=True, val_fraction=0)
    shutil.rmtree(root / "class1")
    with pytest.raises(InputError, match=r"class1/.*: No such file or directory: no image of its class can be read"):
        batches(source.train, augment=source.augment)
    assert all((b.labels == 0).all() for b in batches(source.train)), "an evaluation goes on without"
    assert isinstance(source.train, Files)
    assert len(source.train.sample(torch.arange(len(source.train)))) == int((source.train.labels == 0).sum())


# --- what is said of it


def test_fit(tmp_path: Path) -> None:
    """A photo twice as wide as tall: squashed it keeps its sides, cropped it loses them."""
    root = photos(tmp_path / "p", classes=2, each=4)
    wide = Image.new("RGB", (80, 40), GREEN)
    wide.paste(RED, (0, 0, 20, 40))
    for where in root.iterdir():
        for file in where.iterdir():
            wide.save(file)
    for fit, red in (("squash", True), (None, True), ("crop", False), ("crop-0.875", False)):
        source = load(str(root), img_size=8, fit=fit)
        assert isinstance(source.train, Resident) and source.fit == (fit or "squash")
        left = source.train.images[0, 4, 0].tolist()
        assert (left == list(RED)) is red, "the 40 x 40 in the middle begin where red ends"


def test_what_a_source_says_of_itself(tmp_path: Path) -> None:
    assert str(load(str(photos(tmp_path / "p")), img_size=8)) == "30 images, 3 classes: 22 train, 2 val, 6 test, 8x8"
    assert str(load("digits", val_fraction=0)) == "1,797 images, 10 classes: 1,438 train, 359 test, 8x8"


def test_list_data_knows_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = awkward(tmp_path / "photos")
    (root / "class3").rename(root / "[bold]")
    assert main(["list", "data", str(root)]) == 0
    shown = capsys.readouterr().out
    assert "310 images, 5 classes: 223 train, 25 val, 62 test, 64x64" in shown
    assert "smallest 1x1, median 20x16, largest 6000x4000; read as 64x64 by squash" in shown
    assert shown.count("cannot be read: ") == 4 and "cannot be read: class1/zero.png: empty file" in shown
    (row,) = [line for line in shown.splitlines() if "[bold]" in line]
    assert sum(map(int, row.split()[1:])) == 62
    assert main(["list", "data", str(root / "nowhere")]) == 2
    assert main(["list", "data", "digit"]) == 2
    assert "did you mean 'digits'" in capsys.readouterr().err


TINY = ["--student", "small-cnn,width=4", "--img-size", "8", "--steps", "2", "-b", "8"]


def test_what_cannot_be_read_is_in_the_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = awkward(tmp_path / "photos"), tmp_path / "run"
    assert main(["train", "plain", "--data", str(root), *TINY, "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("310 images, 5 classes: 223 train, 25 val, 62 test, 8x8\n")
    assert f"4 images could not be read: {out}/unreadable.txt" in shown.out
    assert len((out / "unreadable.txt").read_text().splitlines()) == 4
    assert json.loads((out / "summary.json").read_text())["unreadable"] == 4
    assert main(["train", "plain", "--data", str(root), *TINY, "--out", str(out) + "2", "--bad-images", "stop"]) == 2
    assert "and 3 more; --bad-images skip" in capsys.readouterr().err


def test_a_comparison_says_once_what_it_trains_on(tmp_path: Path, caplog: Any, capsys: Any) -> None:
    root, out = awkward(tmp_path / "photos"), tmp_path / "compare"
    argv = ["compare", "--data", str(root), "--methods", "plain", "--seeds", "2", "--jobs", "1", *TINY]
    assert main([*argv, "--out", str(out)]) == 0
    assert capsys.readouterr().out.count("310 images, 5 classes") == 1
    assert len([record for record in caplog.records if "unreadable" in record.getMessage()]) == 1
    assert len((out / "unreadable.txt").read_text().splitlines()) == 4
    assert len((out / "cells" / "plain-s1" / "unreadable.txt").read_text().splitlines()) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_rots_in_mid_run(tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    """Its header is whole: skipped, named and counted, or what the run stops for."""
    root = photos(tmp_path / "p", classes=2, each=20, suffix=".jpg")
    for number in range(20):
        (root / "class0" / f"{number:03}.jpg").write_bytes(cut(root, f"{number:03}") if number < 5 else b"")
        if number >= 5:
            picture(number).save(root / "class0" / f"{number:03}.jpg")
    argv = ["train", "plain", "--data", str(root), "--student", "small-cnn,width=4", "--img-size", "8", "-b", "8",
            "--aug", "rrc", "--epochs", "2", "-j", str(workers)]  # fmt: skip
    assert main([*argv, "--out", str(tmp_path / "run")]) == 0
    lines = (tmp_path / "run" / "unreadable.txt").read_text().splitlines()
    assert len(lines) == 5 and all(line.startswith("p: cannot read class0/00") for line in lines)
    assert len([record for record in caplog.records if "class0/00" in record.getMessage()]) >= 5
    assert main([*argv, "--out", str(tmp_path / "stop"), "--bad-images", "stop"]) == 2

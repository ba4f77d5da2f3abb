"""The papers' data sets, written small in their real formats, read back, and spoiled."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from formats import write_cifar, write_fashion, write_imagenet, write_market, write_svhn, write_tiny
from PIL import Image
from scipy.io import savemat

from teacherless.data import SOURCES, Files, Loader, Resident, load
from teacherless.data import images as photos
from teacherless.data.augment.distort import Augment
from teacherless.data.sets import cifar, svhn
from teacherless.data.sets.synthetic import SHAPES
from teacherless.errors import InputError
from teacherless.method import Wants

Spoil = Callable[[Path], Any]


def change(name: str, by: Callable[[bytes], bytes]) -> Spoil:
    return lambda root: (root / name).write_bytes(by((root / name).read_bytes()))


def refused(words: str, name: str, **settings: Any) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load(name, **settings)
    assert "\n" not in str(caught.value)


# --- CIFAR


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_round_trip(classes: int, tmp_path: Path) -> None:
    train, test = write_cifar(tmp_path, classes, per_class=5)
    for where in (tmp_path, tmp_path / cifar.CIFAR10.folder if classes == 10 else tmp_path / cifar.CIFAR100.folder):
        source = load(f"cifar{classes}", data_dir=where, val_fraction=0)
        assert isinstance(source.train, Resident) and isinstance(source.test, Resident)
        for split, (images, labels) in ((source.train, train), (source.test, test)):
            assert np.array_equal(split.images.numpy(), images)
            assert split.labels.tolist() == labels.tolist()
        assert source.classes[:2] == ["thing 0".replace(" ", "_"), "thing_1"] and len(source.classes) == classes
    assert (source.size, source.channels, source.augment) == ((32, 32), 3, Augment(pad=4, flip=True))


BATCH = f"{cifar.CIFAR10.folder}/data_batch_3.bin"
TEST = f"{cifar.CIFAR10.folder}/test_batch.bin"
META = f"{cifar.CIFAR10.folder}/batches.meta.txt"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            change(BATCH, lambda b: b[:-1]),
            "data_batch_3.bin: found 30,729 bytes; must be a multiple of 3073: truncated",
        ),
        (change(BATCH, lambda b: b[:-3073]), "data_batch_3.bin: found 9 images; data_batch_1.bin has 10"),
        (change(BATCH, lambda b: b""), "found 0 bytes"),
        (change(BATCH, lambda b: b"<html>nothing</html>"), "found 20 bytes.*truncated, or not of cifar10's"),
        (change(BATCH, lambda b: b"\x0b" + b[1:]), "data_batch_3.bin: found label 11; must be 0 to 9"),
        (change(TEST, lambda b: b[: 9 * 3073]), "test has images of 9 classes and must have 10: none of 'thing_9'"),
        (change(META, lambda b: b"one\ntwo\n"), "batches.meta.txt: found 2 class names; must be 10"),
        (change(META, lambda b: b"\xff\xfe"), "is not text"),
        (lambda root: (root / BATCH).unlink(), "data_batch_3.bin: No such file"),
        (lambda root: (root / TEST).unlink(), r"found no test_batch.bin.*download https.*\(170 MB\)"),
    ],
)
def test_cifar_files_are_refused_by_name(tmp_path: Path, spoil: Spoil, words: str) -> None:
    write_cifar(tmp_path, 10, per_class=5)
    spoil(tmp_path)
    refused(words, "cifar10", data_dir=tmp_path)


def test_cifar_is_downloaded_checked_and_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path / "src", 10, per_class=5)
    packed = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(tmp_path / "src" / cifar.CIFAR10.folder, cifar.CIFAR10.folder)
        info = tarfile.TarInfo("../escape")
        tar.addfile(info, io.BytesIO())
    md5 = hashlib.md5(packed.read_bytes()).hexdigest()
    monkeypatch.setenv("TEACHERLESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cifar, "CIFAR10", cifar.CIFAR10._replace(url=packed.as_uri(), md5=md5))

    def fetch(url: str, path: Path, *, md5: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(packed.read_bytes())
        assert hashlib.md5(path.read_bytes()).hexdigest() == md5

    monkeypatch.setattr(cifar, "download", fetch)
    assert len(load("cifar10", val_fraction=0).train) == 50
    found = sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert found == sorted([*cifar.CIFAR10.train, cifar.CIFAR10.test, cifar.CIFAR10.names]), "and no archive"
    monkeypatch.setattr(cifar, "download", None)
    load("cifar10")  # is there now


def test_cifar_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHERLESS_CACHE", str(tmp_path))

    def refuse(*_: Any, **__: Any) -> None:
        raise InputError("HTTP 404")

    monkeypatch.setattr(cifar, "download", refuse)
    refused(r"cifar100: HTTP 404 \(or download https://\S+, 169 MB, yourself, .*--data-dir", "cifar100")
    monkeypatch.setattr(svhn, "download", refuse)
    refused(r"svhn: HTTP 404 \(or download http://\S+train_32x32.mat, 182 MB", "svhn")


# --- SVHN


def test_svhn_round_trip(tmp_path: Path) -> None:
    parts = write_svhn(tmp_path, per_class=4)
    source = load("svhn", data_dir=tmp_path, val_fraction=0)
    more = load("svhn-extra", data_dir=tmp_path, val_fraction=0)
    assert isinstance(source.train, Resident) and isinstance(more.train, Resident) and isinstance(source.test, Resident)
    assert np.array_equal(source.train.images.numpy(), parts["train"][0])
    assert np.array_equal(source.test.images.numpy(), parts["test"][0])
    assert source.train.labels.tolist() == (parts["train"][1] % 10).tolist(), "10 is the digit 0"
    assert np.array_equal(more.train.images.numpy(), np.concatenate([parts["train"][0], parts["extra"][0]]))
    assert source.augment == Augment() and source.classes == [str(i) for i in range(10)]


def as_mat(**arrays: Any) -> Spoil:
    return lambda root: savemat(root / "train_32x32.mat", arrays)


X, Y = np.zeros((32, 32, 3, 20), np.uint8), np.arange(20)[:, None] % 10 + 1


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (change("train_32x32.mat", lambda b: b[:3000]), "train_32x32.mat: is not a readable MATLAB file: truncated"),
        (change("train_32x32.mat", lambda b: b"<html>"), "is not a readable MATLAB file"),
        (as_mat(X=X), r"found {'X': \[32, 32, 3, 20\]}; must be X"),
        (as_mat(X=X, y=Y[1:]), r"'y': \[19, 1\]"),
        (as_mat(X=X.astype(float), y=Y), "must be X, bytes"),
        (as_mat(X=X, y=Y - 1), "found label 0; must be 1 to 10"),
        (as_mat(X=X, y=Y + 1), "found label 11"),
        (as_mat(X=X, y=np.ones((20, 1))), "train has images of 1 classes and must have 10"),
        (as_mat(digits=X), "found neither X nor y"),
        (lambda root: (root / "test_32x32.mat").unlink(), r"found no test_32x32.mat in .*download http.* \(64 MB\)"),
    ],
)
def test_svhn_files_are_refused_by_name(tmp_path: Path, spoil: Spoil, words: str) -> None:
    write_svhn(tmp_path, per_class=2)
    spoil(tmp_path)
    refused(words, "svhn", data_dir=tmp_path)


# --- Market-1501


def test_market_round_trip(tmp_path: Path) -> None:
    written = write_market(tmp_path, persons=4)
    source = load("market1501", data_dir=tmp_path, val_fraction=0)
    assert source.classes == ["0002", "0007", "0012", "0017"] and source.test is None and source.reid
    assert isinstance(source.train, Resident) and len(source.train) == len(written["bounding_box_train"])
    names = {"query": "query", "gallery": "bounding_box_test", "multi": "gt_bbox"}
    for part, folder in names.items():
        found = getattr(source.reid, part)
        expected = [(int(name.split("_")[0]), int(name.split("_")[1][1])) for name in sorted(written[folder])]
        assert list(zip(found.split.labels.tolist(), found.cameras.tolist(), strict=True)) == expected
    assert {-1, 0} < set(source.reid.gallery.split.labels.tolist()), "junk and distractors are in the gallery"
    assert source.train.images.shape[1:] == (128, 128, 3)
    first = sorted(written["bounding_box_train"])[0]
    again = photos.read(tmp_path / "bounding_box_train" / first, (128, 128), 3)
    assert np.array_equal(source.train.images[0].numpy(), again)
    assert load("market1501", data_dir=tmp_path, img_size=32, limit=8).size == (32, 32)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: [p.unlink() for p in (root / "query").iterdir()], "found no images in query/"),
        (lambda root: (root / "query").rename(root / "queries"), "found no query/ in .*must have bounding_box_train/"),
        (lambda root: (root / "query" / "photo.jpg").write_bytes(b""), "found 'photo.jpg'; must be named as 0002_c1s1"),
        (lambda root: (root / "query" / "0009_c7s1_000001_00.jpg").write_bytes(b""), "found '0009_c7s1"),
        (lambda root: (root / "bounding_box_train" / "0099_c1s1_000001_00.jpg").write_bytes(b"<"),
         "cannot read bounding_box_train/0099_c1s1_000001_00.jpg: not an image"),
        (lambda root: (root / "bounding_box_train" / "-1_c1s1_000001_00.jpg").write_bytes(b"<"), "found person -1 in"),
        (lambda root: (root / "query" / "0002_c1s1_000001_00.jpg").write_bytes(b"<"), "found person 2 in .*in query"),
    ],
)  # fmt: skip
def test_market_folders_are_refused_by_name(tmp_path: Path, spoil: Spoil, words: str) -> None:
    write_market(tmp_path, persons=4)
    spoil(tmp_path)
    refused(words, "market1501", data_dir=tmp_path)


def test_market_that_is_not_there(tmp_path: Path) -> None:
    refused(r"market1501: found no bounding_box_train/ in .*download Market-1501.*\(146 MB\)", "market1501",
            data_dir=tmp_path)  # fmt: skip


# --- ImageNet and Tiny-ImageNet


def test_imagenet_folders_are_streamed_through_crops(tmp_path: Path) -> None:
    write_imagenet(tmp_path, classes=3, per_class=4)
    source = load("imagenet", data_dir=tmp_path, img_size=32, val_fraction=0)
    assert isinstance(source.train, Files) and isinstance(source.test, Files) and source.val is None
    assert source.augment == Augment(crop=True, flip=True)
    middle = source.test.decode(0)
    file = Image.open(tmp_path / source.test.name(0))
    box = photos.middle(0.875)(*file.size)
    assert np.array_equal(middle, np.asarray(file.resize((32, 32), Image.Resampling.BILINEAR, box, reducing_gap=2.0)))
    make: dict[str, Any] = {"batch_size": 6, "mean": source.mean, "std": source.std, "augment": source.augment}
    for wants in (Wants(), Wants(views=2), Wants(views=2, classmate=True)):
        here = list(Loader(source.train, wants=wants, **make).epoch(1))
        there = list(Loader(source.train, wants=wants, workers=2, **make).epoch(1))
        assert len(here) == len(there) == 2
        for one, two in zip(here, there, strict=True):
            assert all(map(torch.equal, one.inputs, two.inputs)), "workers change nothing"
        if wants.views == 2:
            assert not torch.equal(here[0].inputs[0], here[0].inputs[1]), "each view is a crop of its own"
    again = list(Loader(source.train, **make).epoch(2))
    assert not torch.equal(again[0].inputs[0], here[0].inputs[0])


def test_random_parts_are_inside_and_of_all_sizes() -> None:
    rng = np.random.default_rng(0)
    areas = []
    for draws in rng.random((2000, 4)).tolist():
        left, top, right, bottom = photos.random_part(draws)(400, 300)
        assert 0 <= left < right <= 400 and 0 <= top < bottom <= 300
        areas.append((right - left) * (bottom - top) / 120_000)
    assert min(areas) == pytest.approx(0.08, abs=0.01) and max(areas) > 0.9 and 0.45 < np.mean(areas) < 0.56


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: (root / "val").rename(root / "values"), "imagenet: found no val/ in .*155 GB"),
        (lambda root: (root / "val" / "n00000002").rename(root / "val" / "n9"), "val/ lacks class 'n00000002'"),
    ],
)
def test_imagenet_folders_are_refused_by_name(tmp_path: Path, spoil: Spoil, words: str) -> None:
    write_imagenet(tmp_path, classes=3, per_class=2)
    spoil(tmp_path)
    refused(words, "imagenet", data_dir=tmp_path)


def test_tiny_imagenet_round_trip(tmp_path: Path) -> None:
    written = write_tiny(tmp_path, classes=4, per_class=3)
    source = load("tiny-imagenet", data_dir=tmp_path, val_fraction=0)
    assert isinstance(source.train, Resident) and isinstance(source.test, Resident)
    assert source.classes == [f"n{i:08}" for i in range(4)] and len(source.train) == 12
    assert source.test.labels.tolist() == written
    streamed = load("tiny-imagenet", data_dir=tmp_path, val_fraction=0, aug="rrc-flip")
    assert isinstance(streamed.train, Files)
    assert isinstance(streamed.test, Resident) and torch.equal(streamed.test.images, source.test.images), "whole photos"
    small = load("tiny-imagenet", data_dir=tmp_path, val_fraction=0, img_size=32)
    assert small.size == (32, 32) and small.augment.pad == 4
    assert isinstance(load("tiny-imagenet", data_dir=tmp_path, stream=True).train, Files)


NOTES = "tiny-imagenet-200/val/val_annotations.txt"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (change(NOTES, lambda b: b.replace(b"n00000001", b"n00000009", 1)), "line .: found class 'n00000009'"),
        (change(NOTES, lambda b: b.replace(b"val_0.JPEG", b"val_99.JPEG", 1)), "'val_99.JPEG', which is not in"),
        (change(NOTES, lambda b: b.partition(b"\n")[2]), "lacks val/images/val_0.JPEG"),
        (lambda root: (root / NOTES).unlink(), "val_annotations.txt: No such file"),
        (
            lambda root: (root / "tiny-imagenet-200" / "wnids.txt").unlink(),
            r"found no wnids.txt.*download http.*248 MB",
        ),
    ],
)
def test_tiny_imagenet_is_refused_by_name(tmp_path: Path, spoil: Spoil, words: str) -> None:
    write_tiny(tmp_path, classes=4, per_class=3)
    spoil(tmp_path)
    refused(words, "tiny-imagenet", data_dir=tmp_path)


# --- collections


def arrays(n: int = 20, **change: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (n, 12, 12, 3), dtype=np.uint8)
    whole = {"x_train": x, "y_train": np.arange(n) % 4, "x_test": x[:8], "y_test": np.arange(8) % 4, **change}
    return {key: value for key, value in whole.items() if value is not None}


def test_npz_round_trip(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", **arrays())
    source = load(f"npz:{tmp_path / 'set.npz'}", val_fraction=0)
    assert isinstance(source.train, Resident) and source.name == "set"
    assert np.array_equal(source.train.images.numpy(), arrays()["x_train"]) and len(source.classes) == 4
    first = arrays(x_train=arrays()["x_train"].transpose(0, 3, 1, 2), y_train=(np.arange(20) % 4)[:, None])
    np.savez(tmp_path / "first.npz", x_val=first["x_train"][:4], y_val=np.arange(4), **first)
    channels_first = load("npz:first.npz", data_dir=tmp_path)
    assert isinstance(channels_first.train, Resident) and channels_first.val is not None
    assert torch.equal(channels_first.train.images, source.train.images)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"x_train": np.zeros((20, 12, 12, 3))}, "x_train: found float64; images must be bytes"),
        ({"x_train": np.zeros((20, 12, 10, 3), np.uint8)}, "must be square images"),
        ({"y_train": np.arange(19)}, r"y_train: found int64 \[19\]"),
        ({"y_train": np.arange(20) % 4 - 1}, "found class -1"),
        ({"y_train": None}, "lacks the array 'y_train'"),
        ({"y_test": None}, "lacks the array 'y_test'"),
        ({"x_tset": np.zeros(3)}, "did you mean 'x_test'"),
        ({"y_test": np.arange(8) % 3}, "test has images of 3 classes and must have 4"),
        ({"y_test": np.arange(8) % 5}, "test has class 4; train has 4 classes"),
        ({"y_train": np.array([{"a": 1}] * 20, dtype=object)}, "is not a readable .npz file of plain arrays"),
        ({"x_test": np.zeros((8, 10, 10, 3), np.uint8)}, "test has images of 10x10x3, train of 12x12x3"),
    ],
)
def test_npz_is_refused_by_name(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "set.npz", **arrays(**changed))
    refused(words, "npz:set.npz", data_dir=tmp_path)


def test_npz_that_cannot_be_read(tmp_path: Path) -> None:
    refused("no.npz: No such file", "npz:no.npz", data_dir=tmp_path)
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 cut")
    refused("is not a readable .npz", "npz:cut.npz", data_dir=tmp_path)


@pytest.mark.parametrize(("name", "package"), [("torch/cifar10", "torchvision"), ("hfds/mnist", "datasets")])
def test_a_missing_extra_is_one_line(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    refused(f"^{name}: {package} is not installed; pip install 'teacherless.{package}.'$", name)


class FakeSet:
    """As torchvision's sets are: pairs of an image and a class."""

    classes = ("cat", "dog")

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        self.count = 12 if train else 6

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Any:
        return ((Image.new("RGB", (9, 9), (i, 0, 0)), i % 2) for i in range(self.count))


def test_torchvision_and_hugging_face_by_their_contracts(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = __import__("sys").modules
    monkeypatch.setitem(modules, "torchvision", SimpleNamespace(datasets=SimpleNamespace(CatsDogs=FakeSet)))
    source = load("torch/catsdogs", val_fraction=0)
    assert source.classes == ["cat", "dog"] and len(source.train) == 12 and source.size == (9, 9)
    refused("unknown torchvision data set 'catdog'", "torch/catdog")

    class Column(SimpleNamespace):
        pass

    image, label = type("Image", (), {})(), type("ClassLabel", (), {"names": ["a", "b"]})()
    rows = [{"img": Image.new("L", (9, 9), i), "label": i % 2} for i in range(8)]

    class Split(list):  # type: ignore[type-arg]
        features = {"img": image, "label": label}  # noqa: RUF012

    loaded = {"train": Split(rows), "validation": Split(rows[:4])}
    monkeypatch.setitem(modules, "datasets", SimpleNamespace(load_dataset=lambda name, cache_dir=None: loaded))
    source = load("hfds/me/set", img_size=5)
    assert (source.name, source.size, source.channels) == ("set", (5, 5), 1), "as gray as its images are"
    assert source.val is not None and len(source.val) == 4 and source.test is None
    Split.features = {"img": image}
    refused("found 0 columns of ClassLabel", "hfds/me/set")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "fashion-mnist"])
def test_a_data_set_is_the_same_through_every_door(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read from the authors' files, by torchvision, by Hugging Face or from .npz: the same splits, pixels and care."""
    if name.startswith("cifar"):
        train, test = write_cifar(tmp_path, int(name[5:]), per_class=5)
    elif name == "svhn":
        parts = write_svhn(tmp_path, per_class=5)
        train, test = ((parts[part][0], parts[part][1] % 10) for part in ("train", "test"))
    else:
        train, test = write_fashion(tmp_path, per_class=5)
    ours = load(name, data_dir=tmp_path)
    pairs = {"train": train, "test": test}
    kind = name.replace("-", "")

    def rows(part: str) -> list[tuple[Image.Image, int]]:
        return [(Image.fromarray(image.squeeze()), int(label)) for image, label in zip(*pairs[part], strict=True)]

    class Theirs(list):  # type: ignore[type-arg]
        classes = ours.classes
        features = {"image": type("Image", (), {})(), "label": type("ClassLabel", (), {"names": classes})()}  # noqa: RUF012

        def __init__(self, root: str = "", train: bool = True) -> None:
            super().__init__(rows("train" if train else "test"))

    loaded = {part: Theirs(train=part == "train") for part in pairs}
    for part in loaded.values():
        part[:] = [{"image": image, "label": label} for image, label in part]
    modules = __import__("sys").modules
    datasets = SimpleNamespace(load_dataset=lambda name, cache_dir=None: loaded)
    monkeypatch.setitem(modules, "torchvision", SimpleNamespace(datasets=SimpleNamespace(**{kind: Theirs})))
    monkeypatch.setitem(modules, "datasets", datasets)
    np.savez(tmp_path / f"{name}.npz", x_train=train[0], y_train=train[1], x_test=test[0], y_test=test[1])
    for other in (f"torch/{kind}", f"hfds/somebody/{kind}", f"npz:{tmp_path / name}.npz"):
        theirs = load(other)
        same = ("size", "channels", "mean", "std", "augment", "fingerprint")
        assert {key: getattr(theirs, key) for key in same} == {key: getattr(ours, key) for key in same}, other
        for split in ("train", "val", "test"):
            assert torch.equal(getattr(theirs, split).labels, getattr(ours, split).labels)


def test_few_of_every_split(tmp_path: Path) -> None:
    write_cifar(tmp_path, 10, per_class=5)
    source = load("cifar10", data_dir=tmp_path, limit=10)
    assert len(source.train) == 20 and source.train.labels.bincount().tolist() == [2] * 10, "two of each class at least"
    source = load("cifar10", data_dir=tmp_path, limit=30)
    assert len(source.train) == 30 and source.test is not None and len(source.test) == 20


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "imagenet" else ()) for name in SHAPES]
)
def test_noise_has_the_shape_of_its_set(name: str) -> None:
    seen = load(name, synthetic=True, val_fraction=0, limit=64)
    assert name in SOURCES and len(seen.train) == 2 * len(seen.classes)
    assert sorted(set(seen.train.labels.tolist())) == list(range(len(seen.classes)))
    assert (seen.test is None) == (seen.reid is not None) == (name == "market1501")
    again = load(name, synthetic=True, val_fraction=0, limit=64)
    assert again.fingerprint == seen.fingerprint, "the same for everybody"


def test_noise_and_files_are_alike(tmp_path: Path) -> None:
    write_cifar(tmp_path / "100", 100, per_class=2, test_per_class=1)
    write_svhn(tmp_path / "svhn", per_class=2)
    for name, folder in (("cifar100", "100"), ("svhn-extra", "svhn")):
        real, noise = load(name, data_dir=tmp_path / folder), load(name, synthetic=True)
        for key in ("channels", "size", "augment"):
            assert getattr(real, key) == getattr(noise, key), (name, key)
        assert len(real.classes) == len(noise.classes)

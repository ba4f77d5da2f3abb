"""Hash, distortion, loader, splits, the built-in sources, and users' own loaders."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from formats import idx, write_fashion
from formats import noise as noise_images
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from teacherless import data, losses
from teacherless.batch import weighted
from teacherless.data import Augment, Loader, Resident, as_loader, load, sources
from teacherless.data.augment.distort import counter_hash, distort, normalise, padded
from teacherless.data.sets.idx import read_idx
from teacherless.data.splits import balanced, moments, stratified
from teacherless.errors import InputError
from teacherless.method import Batch, Wants
from teacherless.methods.plain import Plain
from teacherless.training.lifecycle import train


def noise(n: int = 60, size: int = 8, channels: int = 1, classes: int = 5) -> Resident:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, size, size, channels), generator=g, dtype=torch.uint8)
    return Resident(images, torch.arange(n) % classes)


def loader(split: Any = None, **settings: Any) -> Loader:
    settings = {"batch_size": 7, "mean": (0.4,), "std": (0.3,), "augment": Augment(1, "zero", True), **settings}
    return Loader(split or noise(), **settings)


def same(one: Batch, two: Batch) -> bool:
    return all(map(torch.equal, one.inputs, two.inputs)) and torch.equal(one.labels, two.labels)


# --- the hash


def slow_hash(*keys: int) -> int:
    """The same in plain integers, written down once more."""

    def mix(h: int) -> int:
        h = (h ^ h >> 16) * 0x21F0AAAD % 2**32
        h = (h ^ h >> 15) * 0x735A2D97 % 2**32
        return h ^ h >> 15

    h = 0x9E3779B9
    for key in keys:
        h = mix(h ^ mix((key + 0x9E3779B9) % 2**32))
    return h


def test_hash_is_the_same_for_numbers_and_tensors() -> None:
    rows = torch.arange(50)[:, None]
    views = torch.arange(3, dtype=torch.int32)
    got = counter_hash(7, -2, rows, views, 2**40 + 1)
    assert got.shape == (50, 3) and got.dtype == torch.int64
    assert got.tolist() == [[slow_hash(7, -2, row, view, 2**40 + 1) for view in range(3)] for row in range(50)]
    assert int(counter_hash(7, 1)) == slow_hash(7, 1)


def test_hash_never_ties_and_is_even() -> None:
    h = counter_hash(0, 3, torch.arange(100_000))
    assert len(h.unique()) == len(h)
    for shift in (0, 8, 24):
        counts = (h >> shift & 255).bincount(minlength=256).double()
        chi2 = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
        assert 150 < chi2 < 400, "255 degrees of freedom"
    draws = torch.stack([counter_hash(0, 0, torch.arange(20_000), 0, draw) for draw in range(3)]).double()
    assert (torch.corrcoef(draws) - torch.eye(3)).abs().max() < 0.03
    orders = torch.stack([counter_hash(0, epoch, torch.arange(20_000)) for epoch in range(3)]).double()
    assert (torch.corrcoef(orders) - torch.eye(3)).abs().max() < 0.03


# --- distortion


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augment", [Augment(2, "zero", True), Augment(3, "reflect", True), Augment(), Augment(1)])
def test_distort_equals_a_slow_loop(channels: int, augment: Augment) -> None:
    images = noise(20, 8, channels).images
    p = augment.pad
    rows, take = torch.arange(100, 112), torch.randperm(20)[:12]
    got = distort(padded(images, augment), take, rows, augment, seed=3, epoch=4, view=1)
    mode: Any = {"zero": "constant", "reflect": "reflect"}[augment.mode]
    flips = 0
    for out, which, row in zip(got, take.tolist(), rows.tolist(), strict=True):
        image = np.pad(images[which].numpy(), ((p, p), (p, p), (0, 0)), mode=mode)
        dy, dx = (slow_hash(3, 4, row, 1, draw) % (2 * p + 1) for draw in (0, 1))
        crop = image[dy : dy + 8, dx : dx + 8]
        if augment.flip and slow_hash(3, 4, row, 1, 2) % 2:
            crop, flips = crop[:, ::-1], flips + 1
        assert np.array_equal(out.numpy(), crop)
    assert (0 < flips < 12) == augment.flip


def test_normalise() -> None:
    images = noise(5, 6, 3).images
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    got = normalise(images, mean, std)
    assert got.dtype == torch.float32 and got.shape == (5, 3, 6, 6)
    assert got.is_contiguous(memory_format=torch.channels_last)
    expected = (images.double() / 255 - torch.tensor(mean).double()) / torch.tensor(std).double()
    assert torch.allclose(got.double(), expected.permute(0, 3, 1, 2), atol=2e-6)
    assert torch.equal(got, normalise(images, torch.tensor(mean), torch.tensor(std)))


# --- the loader


def test_an_epoch_is_a_function_of_seed_and_number() -> None:
    one, two = loader(), loader()
    assert len(one) == 8
    full = list(one.epoch(3))
    assert len(full) == 8 and all(len(b.labels) == 7 for b in full), "training drops the last partial batch"
    list(two.epoch(0))  # what was read before does not matter
    assert all(map(same, full, two.epoch(3)))
    assert all(map(same, full[5:], loader().epoch(3, 5)))
    assert list(loader().epoch(3, 8)) == []
    for other in (loader().epoch(4), loader(seed=1).epoch(3)):
        assert not same(full[0], next(iter(other)))


def test_rows_are_permuted_and_draws_follow_the_row() -> None:
    """What happens to an image does not depend on the batch it is in."""
    split = noise(64)

    def by_row(batch_size: int) -> dict[int, Tensor]:
        batches = loader(split, batch_size=batch_size, wants=Wants(index=True)).epoch(2)
        return {int(i): x for b in batches if b.index is not None for i, x in zip(b.index, b.inputs[0], strict=True)}

    small, large = by_row(4), by_row(32)
    assert small.keys() == large.keys() == set(range(64))
    assert all(torch.equal(small[row], large[row]) for row in small)


def test_views_are_distorted_independently() -> None:
    split = noise(400)
    batch = next(iter(loader(split, batch_size=400, wants=Wants(views=3)).epoch(0)))
    assert len(batch.inputs) == 3
    shifts = [[bool((a == b).all()) for a, b in zip(batch.inputs[i], batch.inputs[i + 1], strict=True)] for i in (0, 1)]
    for equal in shifts:  # 9 crops and 2 flips: one of 18
        assert 0.02 < np.mean(equal) < 0.1
    first = next(iter(loader(split, batch_size=400).epoch(0)))
    assert torch.equal(first.inputs[0], batch.inputs[0]), "more views change nothing in the first"


def test_classmate_is_another_image_of_the_class() -> None:
    """Every image is of one gray level, its row, so that the rows can be read back."""
    n = 200
    split = Resident(torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 4, 4, 1), torch.arange(n) % 3)
    wants = Wants(views=2, classmate=True, index=True)
    plain = {"batch_size": 50, "mean": (0.0,), "std": (1 / 255,), "augment": Augment()}
    seen: list[list[int]] = []
    for epoch in range(2):
        mates: dict[int, int] = {}
        for batch in loader(split, wants=wants, **plain).epoch(epoch):
            assert batch.index is not None and len(batch.inputs) == 3
            own, also, mate = (x[:, 0, 0, 0].round().long() for x in batch.inputs)
            assert torch.equal(own, batch.index) and torch.equal(also, own)
            assert torch.equal(mate % 3, own % 3) and not (mate == own).any()
            mates.update(zip(own.tolist(), mate.tolist(), strict=True))
        assert len(set(mates.values())) > n / 3, "spread over the class"
        seen.append([mates[row] for row in range(n)])
    assert sum(a == b for a, b in zip(*seen, strict=True)) < n / 10
    twins = Resident(torch.zeros(4, 2, 2, 1, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    batch = next(iter(loader(twins, wants=Wants(classmate=True, index=True), **(plain | {"batch_size": 4})).epoch(0)))
    assert len(batch.inputs) == 2, "two in a class: each is the other's"


def test_each_loop_over_a_loader_is_its_next_epoch() -> None:
    """In a loop of one's own as in ours: `for batch in loader` must not give the same distortions for ever."""
    ours = loader(noise(40), wants=Wants(index=True))
    for epoch in range(3):
        for batch, same in zip(ours, ours.epoch(epoch), strict=True):
            assert torch.equal(batch.index, same.index) and torch.equal(batch.inputs[0], same.inputs[0])
    first, second = next(iter(ours)), next(iter(ours))
    assert not torch.equal(first.index, second.index), "an epoch that was left early is over too"


def test_a_balanced_epoch_has_as_many_of_each_class() -> None:
    """And an image that comes again is distorted otherwise: its draws have another key."""
    labels = torch.tensor([0] * 90 + [1] * 6 + [3] * 4)  # no 2
    split = Resident(noise(100).images, labels)
    ours = loader(split, batch_size=10, wants=Wants(index=True), balanced=True)
    rows = torch.cat([batch.index for batch in ours.epoch(0)])
    assert labels[rows].bincount().tolist() in ([34, 33, 0, 33], [33, 34, 0, 33], [33, 33, 0, 34])
    assert set(rows[labels[rows] > 0].tolist()) == set(range(90, 100)) and len(set(rows.tolist())) == 33 + 10 + (
        labels[rows].bincount()[0] == 34
    )
    assert not torch.equal(rows, torch.cat([batch.index for batch in ours.epoch(1)]))
    seen = torch.cat([batch.inputs[0] for batch in ours.epoch(0)])[rows == 99]
    assert 8 <= len(seen) <= 9 and len(seen.unique(dim=0)) > 4
    even = Resident(noise(100).images, torch.arange(100) % 5)
    for batch, other in zip(loader(even, balanced=True).epoch(2), loader(even).epoch(2), strict=True):
        assert batch.labels.shape == other.labels.shape, "and where all are alike an epoch has every image once"
    every = torch.cat([b.index for b in loader(even, batch_size=10, balanced=True, wants=Wants(index=True)).epoch(2)])
    assert sorted(every.tolist()) == list(range(100))


def test_weighted_classes_are_torch_s_weights() -> None:
    """The weight is in the label, so every cross-entropy with labels has it, smoothed and mixed ones too."""
    labels = torch.tensor([0] * 30 + [1] * 20 + [2] * 10)
    weights = balanced(labels, 3)
    assert float((weights[labels]).mean()) == pytest.approx(1)
    assert (weights * labels.bincount()).tolist() == pytest.approx([20, 20, 20])
    logits, ids = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)), labels
    ours = weighted(ids, weights)
    for smoothing in (0.0, 0.1):
        plain = torch.nn.functional.cross_entropy(logits, ids, reduction="none", label_smoothing=smoothing)
        assert torch.allclose(losses.ce(logits, ours, smoothing), weights[ids] * plain, atol=1e-6)
    assert torch.equal(losses.class_ids(ours), ids)
    oracle = losses.virtual_teacher(ours, logits, 0.9)
    assert torch.allclose(oracle, losses.virtual_teacher(ids, logits, 0.9), atol=1e-6)


def test_evaluation_reads_in_order_to_the_end() -> None:
    split = noise(23)
    batches = list(loader(split, augment=None, wants=Wants(index=True)))
    assert [len(b.labels) for b in batches] == [7, 7, 7, 2] and len(loader(split, augment=None)) == 4
    assert torch.equal(torch.cat([b.labels for b in batches]), split.labels)
    assert torch.cat([b.index for b in batches if b.index is not None]).tolist() == list(range(23))
    seen = torch.cat([b.inputs[0] for b in batches])
    assert torch.equal(seen, normalise(split.images, (0.4,), (0.3,)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 61}, "found 61; the training set has 60"),
        ({"batch_size": 0}, "found 0; must be at least 1"),
        ({"wants": Wants(views=2), "augment": None}, "augment=None"),
        ({"split": Resident(noise(6).images, torch.tensor([0, 0, 1, 2, 2, 2])), "wants": Wants(classmate=True),
          "batch_size": 2}, "class 1 has one training image"),
        ({"split": TensorDataset(torch.zeros(3))}, "type TensorDataset; must be Resident or Files"),
    ],
)  # fmt: skip
def test_a_loader_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        loader(**settings)


# --- splits and sources


def test_stratified() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 3 + [3])
    rest, part = stratified(labels, 0.1, spare=True)
    assert sorted([*rest.tolist(), *part.tolist()]) == list(range(84))
    assert labels[part].bincount(minlength=4).tolist() == [5, 3, 0, 0]
    for fraction in (0.5, 0.9, 0.99):
        rest, part = stratified(labels, fraction, spare=True)
        assert labels[rest].bincount(minlength=4).min() >= 1, "no class is emptied"
    _, some = stratified(labels, 0, count=20)
    assert labels[some].bincount(minlength=4).tolist() == pytest.approx([12, 7, 1, 0], abs=1) and len(some) == 20
    keys = counter_hash(5, torch.arange(84))
    shuffled = torch.randperm(84, generator=torch.Generator().manual_seed(0))
    _, one = stratified(labels, 0.3, keys=keys)
    _, two = stratified(labels[shuffled], 0.3, keys=keys[shuffled])
    assert set(keys[one].tolist()) == set(keys[shuffled][two].tolist()), "the keys decide, not the order"


def test_moments() -> None:
    split = noise(5000, 4, 3)
    pixels = split.images.double().reshape(-1, 3) / 255
    mean, std = moments(split)
    assert mean == pytest.approx(pixels.mean(0).tolist(), abs=1e-12)
    assert std == pytest.approx(pixels.std(0, correction=0).tolist(), abs=1e-12)
    assert moments(Resident(torch.zeros(3, 2, 2, 1, dtype=torch.uint8), torch.zeros(3).long()))[1] == (1e-3,)


def test_digits() -> None:
    from sklearn.datasets import load_digits

    source = load("digits")
    assert source.val is not None and source.test is not None
    assert [len(s) for s in (source.train, source.val, source.test)] == [1294, 144, 359]
    assert (source.size, source.channels, len(source.classes)) == ((8, 8), 1, 10)
    assert source.augment == Augment(pad=1, flip=False)
    rows = [tuple(i.flatten().tolist()) for s in (source.train, source.val, source.test) for i in s.images]  # type: ignore[attr-defined]
    assert sorted(rows) == sorted(tuple(np.round(i.flatten() * 255 / 16).astype(int)) for i in load_digits().images)
    for split in (source.train, source.val, source.test):
        counts = split.labels.bincount(minlength=10)
        assert counts.min() > 0.85 * counts.max(), "stratified"
    assert load("digits").fingerprint == source.fingerprint == load("digits", val_fraction=0.3).fingerprint
    test = load("digits", val_fraction=0.3, train_samples=20).test
    assert test is not None and torch.equal(test.sample(torch.arange(9)), source.test.sample(torch.arange(9)))


def test_val_fraction_and_train_samples() -> None:
    none = load("digits", val_fraction=0)
    assert none.val is None and len(none.train) == 1438
    few = load("digits", train_samples=50)
    assert len(few.train) == 50 and few.train.labels.bincount().tolist() == [5] * 10
    assert few.val is not None and len(few.val) == 144, "validation does not shrink"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "digit"}, "unknown data 'digit'; did you mean 'digits'.*path of a folder"),
        ({"name": "./nowhere"}, "nowhere: no such folder"),
        ({"name": "a/b"}, "a/b: no such folder"),
        ({"val_fraction": 1.5}, "--val-fraction: found 1.5; must be at least 0 and less than 1"),
        ({"val_fraction": -0.1}, "--val-fraction: found -0.1"),
        ({"val_fraction": float("nan")}, "--val-fraction: found nan"),
        ({"val_fraction": 1e-6}, "that is none"),
        ({"train_samples": 0}, "--train-samples: found 0; must be at least 1"),
        ({"train_samples": 1295}, "--train-samples: found 1295; digits has 1294"),
        ({"img_size": 16}, "--img-size: found 16; digits is 8x8"),
        ({"img_size": 0}, "--img-size: found 0"),
        ({"gray": False}, "digits has one channel"),
        ({"stream": True}, "only folders are streamed"),
    ],
)
def test_what_load_refuses(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load(**{"name": "digits", **settings})
    assert "\n" not in str(caught.value)


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    """A small Fashion-MNIST in the real format: train gzipped, test not."""
    write_fashion(tmp_path, per_class=20)
    return tmp_path


def test_fashion_mnist_round_trip(fashion: Path) -> None:
    source = load("fashion-mnist", data_dir=fashion, val_fraction=0)
    expected = noise_images(200, 28, seed=200)[..., 0]
    assert isinstance(source.train, Resident)
    assert np.array_equal(source.train.images.numpy()[..., 0], expected)
    assert source.train.labels.tolist() == [i % 10 for i in range(200)]
    assert source.test is not None and len(source.test) == 50
    assert len(source.classes) == 10 and source.classes[-1] == "Ankle boot" and source.augment.flip


def damage(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda where: (where / name).write_bytes(change((where / name).read_bytes())) and None


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (damage("t10k-images-idx3-ubyte", lambda b: b[:-1]), "t10k-images-idx3-ubyte: found 39,215 bytes.*truncated"),
        (damage("t10k-images-idx3-ubyte", lambda b: b[:10]), "found 10 bytes; truncated"),
        (damage("t10k-images-idx3-ubyte", lambda b: b + b"x"), "too long"),
        (damage("t10k-images-idx3-ubyte", lambda b: b"<html>"), "must be an IDX file"),
        (damage("t10k-images-idx3-ubyte", lambda b: b""), "must be an IDX file"),
        (damage("train-labels-idx1-ubyte.gz", lambda b: b[:-12]), "train-labels-idx1-ubyte.gz: a truncated or damaged"),
        (damage("train-labels-idx1-ubyte.gz", lambda b: gzip.compress(idx(np.arange(3)))), "found 3 labels"),
        (damage("t10k-labels-idx1-ubyte", lambda b: b[:-1] + b"\x0b"), "found label 11; must be 0 to 9"),
        (damage("t10k-images-idx3-ubyte", lambda b: idx(np.zeros((50, 20, 28)))), "must be 28x28"),
        (damage("t10k-labels-idx1-ubyte", lambda b: idx(np.zeros((50, 1)))), "must be an IDX file"),
        (lambda where: (where / "t10k-labels-idx1-ubyte").unlink(), "found no t10k-labels-idx1-ubyte"),
    ],
)
def test_foreign_idx_files_are_refused_by_name(fashion: Path, spoil: Callable[[Path], None], words: str) -> None:
    spoil(fashion)
    with pytest.raises(InputError, match=words):
        load("fashion-mnist", data_dir=fashion)


def test_idx_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="directory"):
        read_idx(tmp_path, 3)


@pytest.mark.skipif(not sources.FASHION_DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_debian() -> None:
    source = load("fashion-mnist")
    assert source.val is not None and source.test is not None
    assert [len(s) for s in (source.train, source.val, source.test)] == [54000, 6000, 10000]
    assert source.val.labels.bincount().tolist() == [600] * 10
    assert source.mean == pytest.approx((0.286,), abs=1e-3) and source.std == pytest.approx((0.353,), abs=1e-3)


# --- users' own loaders

X, Y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    "item",
    [
        (X, Y),
        [X, Y],
        (X.numpy(), Y.numpy()),
        (X, Y.to(torch.uint8)),
        (X, Y.tolist()),
        {"inputs": X, "labels": Y},
        {"pixel_values": X, "label": Y.int(), "more": "ignored"},
        {"image": X, "target": Y},
        Batch((X,), Y),
    ],
)
def test_shapes_of_batches(item: Any) -> None:
    (got,) = as_loader([item], Wants()).epoch(0)
    assert torch.equal(got.inputs[0], X) and torch.equal(got.labels, Y)
    assert got.labels.dtype == torch.int64 and got.index is None


def test_views_index_and_classmates_of_a_user() -> None:
    index = torch.arange(4)
    (got,) = as_loader([((X, 2 * X, 3 * X), Y, index)], Wants(2, True, True)).epoch(0)
    assert torch.equal(got.inputs[2], 3 * X) and got.index is not None and torch.equal(got.index, index)
    (got,) = as_loader([{"x": [X, X], "y": Y, "index": index.int()}], Wants(index=True, views=2)).epoch(0)
    assert got.index is not None and got.index.dtype == torch.int64


def test_any_modality_and_length() -> None:
    words = torch.randint(0, 100, (12, 9))
    labels = torch.arange(12) % 3
    wrapped = as_loader(DataLoader(TensorDataset(words, labels), batch_size=4))
    assert len(wrapped) == 3
    assert [b.inputs[0].dtype for b in wrapped.epoch(0)] == [torch.int64] * 3
    assert [b.labels.tolist() for b in wrapped.epoch(1, start=2)] == [labels[8:].tolist()]
    assert as_loader(wrapped) is wrapped

    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield from zip(words, labels, strict=True)

    assert not hasattr(as_loader(DataLoader(Endless(), batch_size=4)), "__len__")


@pytest.mark.parametrize(
    ("item", "wants", "words"),
    [
        ((X, Y), Wants(views=2), r"wants 2 views of each sample; found 1: yield \(\(x1, x2\), y\)"),
        (((X, X), Y), Wants(views=2, classmate=True), r"found none: yield \(\(x1, x2, mate\), y\)"),
        ((X, Y), Wants(classmate=True), r"wants a classmate.*yield \(\(x, mate\), y\)"),
        ((X, Y), Wants(index=True), r"wants each sample's index; found none: yield \(x, y, index\)"),
        ((X, Y.float()), Wants(), "found labels of torch.float32; must be class ids"),
        ((X, torch.eye(4).long()), Wants(), r"labels of shape \[4, 4\]"),
        ((X[0], 3), Wants(), "goes into a DataLoader"),
        ((X[:3], Y), Wants(), r"found inputs \[3, 3\] with 4 labels"),
        (("text", Y), Wants(), "found a str in a batch"),
        (((), Y), Wants(), "found no input"),
        ((X, Y, Y, Y), Wants(), "found a tuple of 4; must be"),
        ({"picture": X}, Wants(), r"found a dict with \['picture'\]; needs one of"),
        (object(), Wants(), "found a object"),
    ],
)
def test_batches_that_are_refused(item: Any, wants: Wants, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        list(as_loader([item], wants).epoch(0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", [3, "digits", {"x": X, "y": Y}, None])
def test_what_is_no_loader(what: Any) -> None:
    with pytest.raises(InputError, match=f"found a {type(what).__name__}; must be an iterable"):
        as_loader(what)


def test_a_loader_of_ours_must_have_been_built_for_the_method() -> None:
    ours = loader(wants=Wants(views=2))
    assert as_loader(ours, Wants(views=2)) is ours and as_loader(ours, Wants()) is ours
    for wants, words in ((Wants(views=3), "wants 3 views.*found 2"), (Wants(classmate=True), "classmate"),
                         (Wants(index=True), "index")):  # fmt: skip
        with pytest.raises(InputError, match=words + ".*build it with wants=method.wants"):
            as_loader(ours, wants)


def test_an_exhausted_generator_says_so() -> None:
    wrapped = as_loader((x for x in [(X, Y), (X, Y)]), Wants())
    assert len(list(wrapped.epoch(0))) == 2
    with pytest.raises(InputError, match="no batches in epoch 1; a generator can be read only once"):
        list(wrapped.epoch(1))
    with pytest.raises(InputError, match=r"no batches in epoch 0$"):
        list(as_loader([]).epoch(0))


def test_looking_at_the_first_batch_leaves_no_trace() -> None:
    pairs = [((X + i, X), Y) for i in range(3)]
    once = as_loader(iter(pairs), Wants(views=2))
    assert [float((b.inputs[0] - X).mean().round()) for b in once.epoch(0)] == [0, 1, 2]
    shuffled = DataLoader(TensorDataset(torch.arange(30), torch.arange(30), torch.arange(30)), 5, shuffle=True)
    torch.manual_seed(4)
    wrapped = as_loader(shuffled, Wants(index=True))
    order = [b.labels.tolist() for b in wrapped.epoch(0)]
    torch.manual_seed(4)
    assert order == [item[1].tolist() for item in shuffled]


def test_names_that_others_use() -> None:
    assert {"Augment", "Files", "Loader", "Resident", "SOURCES", "Source", "as_loader", "load"} <= set(dir(data))
    assert all(source.__doc__ and source.__doc__.startswith(name) for name, source in data.SOURCES.items())


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda x, y: x[5, 0, 1, 1].fill_(torch.nan), "batch 3, row 5: found NaN"),
        (lambda x, y: y[2].fill_(7), "batch 3, row 2: found class 7; must be 0 to 3"),
        (lambda x, y: y[2].fill_(-100), "batch 3, row 2: found class -100; must be 0 to 3"),
    ],
)
def test_what_one_sample_spoils_is_named_by_batch_and_row(split: str, spoil: Any, words: str) -> None:
    """In the middle of an epoch, where a lower rate would not help."""

    def batches(bad: bool) -> list[tuple[Tensor, Tensor]]:
        found = [(torch.randn(8, 1, 4, 4), torch.arange(8) % 4) for _ in range(5)]
        if bad:
            spoil(*found[3])
        return found

    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 4))
    parts = [batches(split == name) for name in ("train", "val", "test")]
    with pytest.raises(InputError, match=words):
        train(Plain(net), *parts, epochs=1, quiet=True)

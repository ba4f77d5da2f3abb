"""`--aug`: its grammar, and what it does to pixels and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from PIL import Image
from torch import Tensor

from teacherless import losses, methods
from teacherless.cli import main
from teacherless.data import Augment, Loader, Resident, load
from teacherless.data.augment.distort import GRAMMAR, ROTATE_DRAW, counter_hash, parse_augment
from teacherless.data.augment.mixing import Mixer, erased
from teacherless.errors import InputError
from teacherless.method import Wants

N = 600


def noise(n: int = N, size: int = 16, channels: int = 3, classes: int = 5) -> Resident:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, size, size, channels), generator=g, dtype=torch.uint8)
    return Resident(images, torch.arange(n) % classes)


def loader(aug: str, split: Resident | None = None, **settings: Any) -> Loader:
    split = split or noise()
    channels = split.images.shape[-1]
    fixed = {"batch_size": len(split), "mean": (0.5,) * channels, "std": (0.25,) * channels}
    return Loader(split, augment=parse_augment(aug), **{**fixed, **settings})


# --- grammar


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", Augment()),
        ("pad4", Augment(pad=4)),
        ("pad4-zero-flip", Augment(pad=4, flip=True)),
        ("pad2-reflect-flip", Augment(pad=2, mode="reflect", flip=True)),
        ("flip+cutout", Augment(flip=True, cutout=16)),
        ("rrc-flip+trivialaug", Augment(crop=True, flip=True, policy="trivialaug")),
        ("randaug", Augment(policy="randaug", layers=2, magnitude=9)),
        ("randaug-n1-m15+erase=0.25", Augment(policy="randaug", layers=1, magnitude=15, erase=0.25)),
        ("mixup", Augment(mixup=0.2)),
        ("cutmix=0.5+cutout=8", Augment(cutmix=0.5, cutout=8)),
        ("default+mixup=0.3", Augment(pad=1, flip=True, mixup=0.3)),
        ("default", Augment(pad=1, flip=True)),
        ("pad4-flip+rotate", Augment(pad=4, flip=True, rotate=15)),
    ],
)
def test_grammar(text: str, expected: Augment) -> None:
    assert parse_augment(text, Augment(pad=1, flip=True)) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("randomaug", "unknown --aug 'randomaug'; did you mean 'randaug-n2-m9'"),
        ("pad4+flp", "unknown --aug 'flp'; did you mean 'flip'"),
        ("pad", "found 'pad'; must be like 'pad4-reflect-flip'"),
        ("pad4-mirror", "found 'pad4-mirror'; must be like 'pad4-reflect-flip'"),
        ("mixup=x", "found 'mixup=x'; must be like 'mixup=0.2'"),
        ("mixup=1.2.3", "'1.2.3' is not a number"),
        ("mixup=0", "mixup must be from 0.001 to 100"),
        ("erase=2", "erase must be from 0 to 1"),
        ("randaug-m31", "magnitude must be from 0 to 30"),
        ("cutout=0", "cutout must be from 1"),
        ("cutout+cutout=8", "says cutout twice"),
        ("randaug+trivialaug", "says policy twice"),
        ("mixup+cutmix", "either mixup or cutmix"),
        ("rrc+pad4", "either rrc or a padded crop"),
        ("none+flip", "none stands alone"),
        ("", "unknown --aug ''"),
    ],
)
def test_what_the_grammar_refuses(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        parse_augment(text)
    assert "\n" not in str(caught.value)


def test_every_name_is_an_example_of_itself() -> None:
    for name in GRAMMAR:
        parse_augment(name)


# --- pixels


@pytest.mark.parametrize(
    "aug", ["randaug-n2-m9", "randaug-n1-m30", "trivialaug", "erase=0.5", "cutout=6", "pad2+erase", "rotate=45"]
)
def test_a_distortion_is_a_function_of_seed_epoch_row_and_view(aug: str) -> None:
    """Not of the batch an image is in; and two views are distorted independently."""
    small = noise(60)
    wants = Wants(views=2, index=True)

    def by_row(batch_size: int, epoch: int) -> dict[int, tuple[Tensor, Tensor]]:
        torch.rand(1)  # the global generator has no say
        found = loader(aug, small, batch_size=batch_size, wants=wants).epoch(epoch)
        return {
            int(i): (a, b) for x in found if x.index is not None for i, a, b in zip(x.index, *x.inputs, strict=True)
        }

    one, two, later = by_row(60, 0), by_row(20, 0), by_row(60, 1)
    assert all(torch.equal(one[i][v], two[i][v]) for i in one for v in (0, 1))
    assert sum(torch.equal(*one[i]) for i in one) < 35, "views differ"
    assert sum(torch.equal(one[i][0], later[i][0]) for i in one) < 35, "epochs differ"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("aug", ["randaug-n3-m30", "trivialaug"])
def test_policies_keep_shape_and_range(aug: str, channels: int) -> None:
    state = torch.get_rng_state()
    batch = next(loader(aug, noise(200, channels=channels)).epoch(0))
    assert batch.inputs[0].shape == (200, channels, 16, 16)
    assert batch.inputs[0].abs().max() <= 2 and batch.inputs[0].isfinite().all()
    assert torch.equal(state, torch.get_rng_state())


def test_randaug_of_magnitude_0_does_next_to_nothing() -> None:
    """All but autocontrast and equalize shrink to the identity; noise is nearly of full contrast."""
    plain = next(loader("none", noise(300)).epoch(0)).inputs[0]
    seen = next(loader("randaug-n1-m0", noise(300)).epoch(0)).inputs[0]
    same = (plain - seen).abs().amax((1, 2, 3)) < 0.02
    assert same.double().mean() > 0.8


def test_rotations_are_pillows() -> None:
    split = noise(200)
    (batch,) = loader("rotate=30", split, mean=(0.0,) * 3, std=(1.0,) * 3, wants=Wants(index=True)).epoch(0)
    seen = (batch.inputs[0].permute(0, 2, 3, 1) * 255).round().byte()
    draw = counter_hash(0, 0, batch.index, 0, ROTATE_DRAW)
    angles = (draw.double() / 2**31 - 1) * 30
    assert -30 <= angles.min() < -25 and 25 < angles.max() <= 30 and angles.mean().abs() < 3
    for turned, row, angle in zip(seen, batch.index.tolist(), angles.tolist(), strict=True):
        expected = np.asarray(Image.fromarray(split.images[row].numpy()).rotate(angle))
        assert (turned.numpy() == expected).mean() > 0.98, "but for rounding"


def test_erase_and_cutout() -> None:
    x, rows = torch.ones(N, 3, 20, 20), torch.arange(N)
    keys = {"seed": 0, "epoch": 0, "view": 0}
    gone = erased(x, rows, Augment(erase=0.5), **keys) == 0
    share = gone[:, 0].double().mean((1, 2))
    hit = share > 0
    assert 0.42 < hit.double().mean() < 0.58
    assert share[hit].min() > 0.01 and share.max() < 0.48 and 0.12 < share[hit].mean() < 0.28
    assert torch.equal(gone[:, 0], gone[:, 1]), "all channels"
    gone = erased(x, rows, Augment(cutout=8), **keys)[:, 0] == 0
    sizes = gone.sum((1, 2))
    assert sizes.max() == 64 and 16 <= sizes.min() < 40, "a square, whose centre is anywhere"
    assert gone.any(0).all(), "everywhere"
    assert torch.equal(erased(x, rows, Augment(), **keys), x)


# --- two images in one


@pytest.mark.parametrize("aug", ["mixup=0.2", "mixup=1.0", "cutmix=1.0"])
def test_mixed_pixels_have_their_labels(aug: str) -> None:
    """Class c is a flat image of level c: a pixel's mean is the labels' mean."""
    labels = torch.arange(N) % 5
    split = Resident((labels * 50).to(torch.uint8)[:, None, None, None].expand(N, 12, 12, 1), labels)
    flat = {"mean": (0.0,), "std": (50 / 255,), "wants": Wants(views=2)}
    batch = next(loader(aug, split, **flat, classes=7).epoch(0))
    assert batch.labels.shape == (N, 7)
    assert torch.allclose(batch.labels.sum(1), torch.ones(N)) and batch.labels[:, 5:].abs().max() == 0
    for view in batch.inputs:
        expected = (batch.labels * torch.arange(7)).sum(1)
        assert torch.allclose(view.mean((1, 2, 3)), expected, atol=1e-4)
    mixed = batch.labels.amax(1) < 0.999
    assert 0.3 < mixed.double().mean() < 0.95
    again = next(loader(aug, split, **flat, classes=7).epoch(0))
    assert torch.equal(again.labels, batch.labels)


def test_shares_are_of_the_beta_distribution() -> None:
    for alpha in (0.2, 1.0, 4.0):
        shares = Mixer(Augment(mixup=alpha), 3, 0, torch.device("cpu")).shares.double()
        assert shares.mean() == pytest.approx(0.5, abs=1e-4)
        assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=2e-3)


def test_soft_labels_in_the_losses() -> None:
    z = torch.randn(2, 6, 4, dtype=torch.float64)
    ids = torch.arange(6) % 4
    hard = torch.nn.functional.one_hot(ids, 4).double()
    for smoothing in (0.0, 0.1):
        assert torch.allclose(losses.ce(z, ids, smoothing), losses.ce(z, hard, smoothing))
    soft = 0.7 * hard + 0.3 * hard.roll(1, 0)
    assert torch.allclose(losses.ce(z, soft), 0.7 * losses.ce(z, ids) + 0.3 * losses.ce(z, ids.roll(1)))
    assert torch.allclose(losses.virtual_teacher(hard, z[0], 0.9), losses.virtual_teacher(ids, z[0], 0.9))
    assert torch.equal(losses.class_ids(soft), ids) and torch.equal(losses.class_ids(ids), ids)


@pytest.mark.parametrize("name", ["plain", "label-smoothing", "dml", "one", "ddgsd", "byot", "frskd", "tf-kd"])
def test_methods_learn_from_mixed_images(name: str) -> None:
    nets = [tiny(i) for i in range(2 if name == "dml" else 1)]
    method = methods.METHODS[name](*nets)
    split = Resident(noise(20, 8, 1).images, torch.arange(20) % 5)
    out = method(next(loader("default+cutmix", split, wants=method.wants).epoch(0)))
    out.loss.backward()
    assert out.loss.isfinite()


@pytest.mark.parametrize(
    ("wants", "words"),
    [(Wants(index=True), "the same image in every epoch"), (Wants(classmate=True), "wants classmates")],
)
def test_who_cannot_learn_from_mixed_images(wants: Wants, words: str) -> None:
    with pytest.raises(InputError, match=words):
        loader("mixup", wants=wants)


def test_crops_need_files() -> None:
    with pytest.raises(InputError, match="only files can be cropped"):
        load("digits", aug="rrc")
    with pytest.raises(InputError, match="only files can be cropped"):
        loader("rrc")


def test_aug_replaces_the_default_or_adds_to_it() -> None:
    assert load("digits", aug="flip").augment == Augment(flip=True)
    assert load("digits", aug="default+cutout=3").augment == Augment(pad=1, cutout=3)


@pytest.mark.parametrize(
    "aug", ["none", "pad2-reflect-flip", "randaug", "trivialaug", "erase", "cutout=3", "mixup", "cutmix"]
)
def test_a_contact_sheet(aug: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "out.png"
    assert main(["list", "data", "digits", "--aug", aug, "--show", str(sheet)]) == 0
    with Image.open(sheet) as image:
        assert image.width > 600 and len(image.convert("L").getcolors()) > 5
        gray = torch.from_numpy(np.array(image.convert("L")))
    original, view, names = gray[:72, :72], gray[:72, 73:145], gray[72:88, :60]
    source = load("digits", aug=aug)
    small = original[4::9, 4::9]  # digits are shown at nine times their size
    assert bool((source.train.images[..., 0].int() - small.int()).abs().amax((1, 2)).le(1).any()), "untouched"
    if aug in ("none", "pad2-reflect-flip"):  # erase, say, comes to every second image
        assert torch.equal(original, view) == (aug == "none")
    assert names.min() < 128, "the class is written under it"


def test_a_contact_sheet_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, words in (
        (["list", "data", "digits", "--show", str(tmp_path / "no" / "out.png")], "--show: cannot write"),
        (["list", "data", "digits", "--show", str(tmp_path / "out.what")], "--show: cannot write"),
        (["list", "models", "resnet8", "--show", "x.png"], "unknown flag '--show'"),
        (["list", "data", "--show", "x.png"], "--show: is of"),
        (["list", "data", "digits", "--aug", "flop", "--show", "x.png"], "did you mean 'flip'"),
    ):
        assert main(argv) == 2
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1


def test_a_missing_kornia_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "kornia", None)
    with pytest.raises(InputError, match=r"^--aug .*: kornia is not installed; pip install 'teacherless.aug.'"):
        next(loader("randaug").epoch(0))

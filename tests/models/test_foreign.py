"""Networks of timm, of torchvision and of the user: trained by every kind of method, shipped untouched."""

from __future__ import annotations

import copy
import json
import sys
import textwrap
import urllib.error
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import teacherless as tl
from teacherless import models
from teacherless.cli import main
from teacherless.methods.byot import BYOT
from teacherless.methods.ddgsd import DDGSD
from teacherless.methods.fitnets import FitNets
from teacherless.methods.frskd import FRSKD
from teacherless.methods.okddip import OKDDip
from teacherless.methods.one import ONE
from teacherless.methods.pcl import PCL
from teacherless.models.files import load_student, load_weights, save_student
from teacherless.models.foreign.wrapper import Foreign

CLASSES = 3
ABOUT = {"classes": ["a", "b", "c"]}


class Block(nn.Module):
    """Pre-norm attention and a little MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A user's own: a class token and positions are the root's own parameters, blocks run in a loop, output a dict."""

    def __init__(self, num_classes: int, side: int = 16, patch: int = 4, width: int = 12, depth: int = 4) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, (side // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        for block in self.blocks:
            x = block(x)
        return {"logits": self.head(self.norm(x)[:, 0])}


class Rows(nn.Module):
    """Maps are `[B, H, W, C]`, as in a Swin transformer; one activation is used everywhere."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.act = nn.GELU()
        self.one, self.two = nn.Linear(3, 5), nn.Linear(20, 7)
        self.norm = nn.BatchNorm1d(7)
        self.head = nn.Linear(7, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.one(x.permute(0, 2, 3, 1)))
        b, h, w, c = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(b, h // 2, w // 2, 4 * c)
        x = self.act(self.two(x))
        return self.head(self.norm(x.mean((1, 2))))


class Skips(nn.Module):
    """An early map comes back after the split, and one layer runs on both sides of it."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.down, self.last = nn.Conv2d(6, 6, 3, stride=2, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.scale = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(6, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        early = self.norm(self.twice(self.stem(x))).relu()
        x = self.twice(self.down(early)).relu() + F.avg_pool2d(early, 2)
        return self.head((self.scale * self.last(x)).mean((2, 3)))


def plain_timm(name: str) -> Callable[[], nn.Module]:
    return lambda: __import__("timm").create_model(name, num_classes=CLASSES)


def plain_torchvision(name: str) -> Callable[[], nn.Module]:
    return lambda: __import__("torchvision").models.get_model(name, num_classes=CLASSES)


def user(kind: type[nn.Module], seed: int = 0, **options: Any) -> Foreign:
    torch.manual_seed(seed)
    return tl.adapt(kind(CLASSES), **options)


def batches(side: int, count: int = 2, size: int = 8, views: int = 1, channels: int = 3) -> list[tl.Batch]:
    g = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        labels = torch.arange(size) % CLASSES
        inputs = [torch.randn(size, channels, side, side, generator=g) + labels[:, None, None, None] - 1.0]
        inputs += [inputs[0].flip(-1)] * (views - 1)
        found.append(tl.Batch(tuple(inputs), labels, torch.arange(size)))
    return found


def shipped_equals(net: nn.Module, folder: Path, plain: nn.Module, x: Tensor) -> None:
    """What is saved loads into the plain architecture, strictly, and gives the logits of what is read back here."""
    save_student(folder, net, {})
    plain.load_state_dict(load_file(folder / "model.safetensors"))
    again = load_student(folder, net=None if net.spec["architecture"] else tl.adapt(copy.deepcopy(plain)),
                         trust_imports=True).net  # fmt: skip
    with torch.no_grad():
        found, expected = plain.eval()(x), again.eval()(x)
        torch.testing.assert_close(expected, net.eval()(x))  # training may have left it in another memory layout
    assert torch.equal(found["logits"] if isinstance(found, dict) else found, expected)
    assert list(net.state_dict()) == list(plain.state_dict())


# Methods on other people's networks ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in folders: each class is a brightness."""
    root = tmp_path_factory.mktemp("images")
    g = np.random.default_rng(0)
    for i, name in enumerate(("dark", "grey", "light")):
        (root / name).mkdir()
        for k in range(20):
            pixels = g.normal(60 + 60 * i, 15, (32, 32, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{k}.png")
    return root


@pytest.mark.slow
def test_dml_of_timm_and_torchvision(zoo: None, folder: Path, tmp_path: Path) -> None:
    """Acceptance 2, by the command line: train, ship, read back here, in timm and in torchvision."""
    out = tmp_path / "run"
    argv = ["train", "dml", "--data", str(folder), "--img-size", "32", "--batch-size", "16", "--steps", "4", "--lr",
            "0.01", "--student", "timm/resnet18", "--student", "torchvision/mobilenet_v3_small",
            "--out", str(out)]  # fmt: skip
    assert main(argv) == 0
    assert main(["evaluate", str(out)]) == 0
    plain = (plain_timm("resnet18"), plain_torchvision("mobilenet_v3_small"))
    for i, name in enumerate(("timm/resnet18", "torchvision/mobilenet_v3_small")):
        net, config = load_student(out / "students" / f"peer{i}")
        assert config["architecture"] == name
        shipped_equals(net, tmp_path / str(i), plain[i](), batches(32, 1)[0].inputs[0])


def test_grey_images_for_a_network_that_reads_three_channels(zoo: None, tmp_path: Path) -> None:
    x = batches(32, 1, channels=1)[0].inputs[0]
    net = models.create("torchvision/mobilenet_v3_small", num_classes=CLASSES, in_channels=1)
    models.check_input(net, (32, 32), 1)
    save_student(tmp_path, net, ABOUT)
    again, plain = load_student(tmp_path).net, plain_torchvision("mobilenet_v3_small")()
    load_weights(plain, tmp_path / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(again.eval()(x), net.eval()(x))
        assert torch.equal(plain.eval()(x.repeat(1, 3, 1, 1)), net(x))


METHODS: dict[str, Callable[[nn.Module, nn.Module], tl.Method]] = {
    "one": lambda net, teacher: ONE(net, branches=2),
    "fitnets": lambda net, teacher: FitNets(net, teacher),
    "byot": lambda net, teacher: BYOT(net),
    "byot-released": lambda net, teacher: BYOT(net, **BYOT.variants["released"]),
    "frskd": lambda net, teacher: FRSKD(net),
    "ddgsd": lambda net, teacher: DDGSD(net),
    "okddip": lambda net, teacher: OKDDip(net, branches=3),
    "pcl": lambda net, teacher: PCL(net, num_classes=CLASSES, branches=2),
}
CASES = [
    *(("timm/resnet18", method) for method in METHODS),
    ("timm/convnext_atto", "one"),
    ("torchvision/mobilenet_v3_small", "byot"),
    ("torchvision/mobilenet_v3_small", "ddgsd"),
    ("vit", "one"),
    ("vit", "ddgsd"),
    ("vit", "okddip"),
    ("vit", "pcl"),
    *(("rows", method) for method in METHODS),
    *(("skips", method) for method in ("one", "fitnets", "frskd", "okddip", "pcl")),
]


def build(name: str, seed: int = 0) -> tuple[nn.Module, Callable[[], nn.Module], int]:
    """The network as methods get it, a plain one of its kind, and the side of its images."""
    if "/" in name:
        plain = {"timm": plain_timm, "torchvision": plain_torchvision}[name.split("/")[0]](name.split("/")[1])
        return models.create(name, num_classes=CLASSES, seed=seed), plain, 32
    kind = {"vit": ViT, "rows": Rows, "skips": Skips}[name]
    stages = {"vit": None, "rows": "one+two", "skips": "norm+last"}[name]
    example = torch.zeros(2, 3, 16, 16)
    return user(kind, seed, stages=stages, example=example), lambda: kind(CLASSES), 16


@pytest.mark.parametrize(("name", "method"), CASES)
def test_trains_and_ships(name: str, method: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Acceptance 2: every kind of method; the files fit the plain architecture."""
    if "/" in name:
        request.getfixturevalue("zoo")
    net, plain, side = build(name)
    trained = METHODS[method](net, build(name, seed=1)[0])
    data = batches(side, views=trained.wants.views)
    result = tl.train(trained, data, data, epochs=1, lr=0.01, quiet=True)
    assert all(np.isfinite(value) for value in result.history[-1].values() if isinstance(value, float))
    for student, found in trained.students().items():
        shipped_equals(found, tmp_path / student, plain(), data[0].inputs[0])


# The cut, against networks that run whole ---------------------------------------------------------------------------


@pytest.mark.parametrize("copy_init", [False, True])
@pytest.mark.parametrize("name", ["timm/resnet18", "timm/convnext_atto", "torchvision/mobilenet_v3_small", "vit",
                                  "rows", "skips"])  # fmt: skip
def test_one_is_its_branches_run_whole(name: str, copy_init: bool, request: pytest.FixtureRequest) -> None:
    """Logits are the whole networks' to the bit; gradients are those of the same loss without the shared trunk."""
    if "/" in name:
        request.getfixturevalue("zoo")
    net, _, side = build(name)
    one = ONE(net, branches=3, copy_init=copy_init).eval()
    x = batches(side, 1)[0].inputs[0]
    each, _ = one.predict(x)
    whole = [student(x) for student in one.students().values()]
    assert all(torch.equal(a, b) for a, b in zip(each, whole, strict=True))
    assert not torch.equal(each[0], each[1]) and not torch.equal(each[1], each[2])
    maps = one.trunks[0](x)
    for student, branch, z in zip(one.students().values(), one.branches, each, strict=True):
        embedding, logits = student.read(branch, maps)
        assert torch.equal(embedding, student.embed(x)) and torch.equal(logits, z)
    weights = [p for branch in one.branches for p in branch.parameters()]
    weights = list(dict.fromkeys(weights))
    shared = torch.autograd.grad(each.square().sum(), weights, allow_unused=True)
    alone = torch.autograd.grad(torch.stack(whole).square().sum(), weights, allow_unused=True)
    for a, b in zip(shared, alone, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def test_what_is_shared_is_what_runs_before_the_split() -> None:
    one = ONE(user(ViT), branches=2)
    first, second = (student.net for student in one.students().values())
    assert first.embed is second.embed and first.token is second.token and first.places is second.places
    assert [first.blocks[i] is second.blocks[i] for i in range(4)] == [True, True, True, False]
    assert first.head is not second.head and not torch.equal(first.head.weight, second.head.weight)
    assert not torch.equal(first.blocks[3].mlp[0].weight, second.blocks[3].mlp[0].weight)
    copied = ONE(user(ViT), branches=2, copy_init=True).students()["branch1"].net
    assert torch.equal(copied.blocks[3].mlp[0].weight, user(ViT).net.blocks[3].mlp[0].weight)
    assert not torch.equal(copied.head.weight, user(ViT).net.head.weight)


def test_fresh_branches_start_as_their_factory_starts_them(zoo: None) -> None:
    """ConvNeXt draws its weights with std 0.02; torch's own start of such a layer is another."""
    one = ONE(models.create("timm/convnext_atto", num_classes=CLASSES, seed=0), branches=2)
    first, second = (student.net.stages[3].blocks[0].mlp.fc1.weight for student in one.students().values())
    assert not torch.equal(first, second)
    assert float(second.detach().std()) == pytest.approx(0.02, rel=0.05)


def test_the_trunk_runs_once() -> None:
    """Its batch norm counts one batch, and dropout before the split draws one mask for all branches."""

    class Net(nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.low = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
            self.high = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
            self.head = nn.Linear(4, num_classes)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.high(self.low(x)).mean((2, 3)))

    one = ONE(user(Net, stages="low+high"), branches=3, share=True)
    nets = [student.net for student in one.students().values()]
    for net in nets[1:]:  # equal branches, so that equal masks show
        net.load_state_dict(nets[0].state_dict())
    each, _ = one.train().predict(batches(16, 1)[0].inputs[0])
    assert torch.equal(each[0], each[1]) and torch.equal(each[1], each[2])
    assert [int(net.low[1].num_batches_tracked) for net in nets] == [1, 1, 1]
    assert [int(net.high[1].num_batches_tracked) for net in nets] == [1, 1, 1]
    assert "forward" not in vars(nets[0].low)


def test_branches_stay_joined_when_they_are_moved() -> None:
    one = ONE(user(ViT), branches=2).double().eval()
    x = batches(16, 1)[0].inputs[0].double()
    first, second = one.students().values()
    assert torch.equal(torch.stack([first(x), second(x)]), one.predict(x)[0])
    with torch.no_grad():
        first.net.places.add_(1.0)
    assert torch.equal(second.net.places, first.net.places)


def test_a_fresh_branch_copies_no_attention() -> None:
    first, second = (student.net.blocks[3].attention for student in ONE(user(ViT), branches=2).students().values())
    assert not torch.equal(first.in_proj_weight, second.in_proj_weight)


def test_a_map_changed_in_place_is_not_shared() -> None:
    class Net(nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.low, self.high = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, stride=2)
            self.head = nn.Linear(4, num_classes)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.high(F.relu(self.low(x), inplace=True)).mean((2, 3)))

    one = ONE(user(Net, stages="low+high"), branches=2)
    with pytest.raises(tl.InputError, match=r"^Net: changes the output of 'low' in place after the split.*elsewhere$"):
        one.predict(batches(16, 1)[0].inputs[0])


def test_whole_networks_without_a_shared_trunk() -> None:
    one = ONE(user(ViT), branches=2, share=False)
    first, second = (student.net for student in one.students().values())
    assert not {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}
    x = batches(16, 1)[0].inputs[0]
    assert all(torch.equal(a, s(x)) for a, s in zip(one.eval().predict(x)[0], one.students().values(), strict=True))


def test_fitnets_trains_the_lower_half_first(zoo: None) -> None:
    student = models.create("timm/resnet18", num_classes=CLASSES, seed=0)
    method = FitNets(student, models.create("timm/resnet18", num_classes=CLASSES, seed=1))
    method.begin("hint")
    (group,) = method.param_groups()
    names = {name.removeprefix("net.").split(".")[0] for name, p in student.named_parameters()
             if any(p is q for q in group["params"])}  # fmt: skip
    assert names == {"conv1", "bn1", "layer1", "layer2", "layer3"}
    method(batches(32, 1)[0], tl.Progress()).loss.backward()
    assert student.net.layer3[0].conv1.weight.grad is not None and student.net.layer4[0].conv1.weight.grad is None


# What is seen inside ------------------------------------------------------------------------------------------------


def test_channels_last_maps_are_turned() -> None:
    net, _, _ = build("rows")
    x = batches(16, 1)[0].inputs[0]
    maps, embedding, logits = net.look(x)
    assert [m.shape for m in maps] == [(8, 5, 16, 16), (8, 7, 8, 8)]
    assert net.channels == [5, 7] and net.maps and net.dim == 7
    assert embedding.shape == (8, 7) and torch.equal(net.net.head(embedding), logits)
    assert torch.equal(net.eval().reach(x, 0), net.look(x).maps[0])


@pytest.mark.parametrize(("name", "stages", "channels"), [
    ("timm/resnet18", "layer1 layer2 layer3 layer4", [64, 128, 256, 512]),
    ("timm/convnext_atto", "stages.0 stages.1 stages.2 stages.3", [40, 80, 160, 320]),
    ("timm/regnetx_002", "s1 s2 s3 s4", [24, 56, 152, 368]),
    ("torchvision/resnet18", "layer1 layer2 layer3 layer4", [64, 128, 256, 512]),
    ("torchvision/mobilenet_v3_small", "features.1 features.3 features.8 features.12", [16, 24, 48, 576]),
    ("torchvision/efficientnet_b0", "features.2 features.3 features.5 features.8", [24, 40, 112, 1280]),
    ("torchvision/convnext_tiny", "features.1 features.3 features.5 features.7", [96, 192, 384, 768]),
    ("torchvision/shufflenet_v2_x0_5", "maxpool stage2 stage3 conv5", [24, 48, 96, 1024]),
    ("torchvision/densenet121", "features.denseblock1 features.denseblock2 features.denseblock3 features.norm5",
     [256, 512, 1024, 1024]),
    ("torchvision/squeezenet1_1", "features.1 features.4 features.7 features.12", [64, 128, 256, 512]),
])  # fmt: skip
def test_default_stages(zoo: None, name: str, stages: str, channels: list[int]) -> None:
    net = models.create(name, num_classes=CLASSES, seed=0)
    assert net.structure.stages == stages.split()
    assert net.channels == channels


def test_default_stages_of_transformers(zoo: None) -> None:
    net = models.create("timm/vit_tiny_patch16_224", num_classes=CLASSES, seed=0, img_size=32, depth=12, embed_dim=24)
    assert net.structure.stages == ["blocks.2", "blocks.5", "blocks.8", "blocks.11"]
    assert net.maps and net.channels == [24] * 4 and net.dim == 24
    assert user(ViT, example=torch.zeros(2, 3, 16, 16)).structure.stages == [f"blocks.{i}" for i in range(4)]


def test_list_shows_what_would_be_used(zoo: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "models", "timm/resnet18"]) == 0
    assert capsys.readouterr().out == ("timm/resnet18: 11,227,812 parameters at 100 classes; stages "
                                       "layer1+layer2+layer3+layer4 of 64-128-256-512 channels\n")  # fmt: skip


def test_default_stages_inside_a_single_child() -> None:
    class Wrapped(nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.body = ViT(num_classes)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)["logits"]

    assert user(Wrapped, example=torch.zeros(2, 3, 16, 16)).structure.stages == [f"body.blocks.{i}" for i in range(4)]


def test_looking_inside_leaves_no_trace() -> None:
    net, _, _ = build("rows")
    net.train()
    state, before = torch.get_rng_state(), copy.deepcopy(net.state_dict())
    assert net.channels == [5, 7]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


# What is shipped ----------------------------------------------------------------------------------------------------


def test_keys_are_the_networks_own_inside_anything() -> None:
    net = user(ViT)
    assert list(net.state_dict()) == list(net.net.state_dict())
    assert list(nn.Sequential(net).state_dict()) == [f"0.{key}" for key in net.net.state_dict()]
    method, other = tl.DML(net, user(ViT, 1)), tl.DML(user(ViT, 2), user(ViT, 3))
    other.load_state_dict(method.state_dict())
    copied = copy.deepcopy(method)
    for again in (other, copied):
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), method.parameters(), strict=True))
    copied.load_state_dict(tl.DML(user(ViT, 4), user(ViT, 5)).state_dict())
    assert not torch.equal(copied.peers[0].net.head.weight, net.net.head.weight)
    assert list(ONE(user(ViT), branches=2).students()["branch1"].state_dict()) == list(net.net.state_dict())


def test_stages_are_part_of_the_spec(zoo: None, tmp_path: Path) -> None:
    net = models.create("timm/resnet18", num_classes=CLASSES, seed=0, stages="layer2+layer4")
    save_student(tmp_path, net, ABOUT)
    again = load_student(tmp_path).net
    assert again.channels == [128, 512] and again.spec == net.spec
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_a_seed_is_a_network(zoo: None) -> None:
    before = torch.get_rng_state()
    a, b, c = (models.create("timm/convnext_atto", num_classes=CLASSES, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.net.head.fc.weight, c.net.head.fc.weight)


@pytest.mark.parametrize("output", [
    lambda z: z,
    lambda z: (z, z + 1),
    lambda z: [z, "loss"],
    lambda z: {"logits": z, "loss": z.sum()},
    lambda z: OrderedDict(scores=z),
    lambda z: SimpleNamespace(logits=z, loss=None),
])  # fmt: skip
def test_outputs_that_are_logits(output: Callable[[Tensor], Any]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Any:
            return output(self.layer(x))

    x = torch.randn(2, 4)
    net = tl.adapt(Net())
    assert torch.equal(net(x), net.net.layer(x))
    tl.train(tl.Plain(net), [(x, torch.tensor([0, 1]))], epochs=1, quiet=True)


@pytest.mark.parametrize(("output", "found"), [
    (lambda z: {"a": z, "b": z}, "a dict"),
    (lambda z: z.sum(), r"a tensor \[\]"),
    (lambda z: (), "a tuple"),
    (lambda z: z[:, :, None], r"a tensor \[2, 3, 1\]"),
    (lambda z: None, "a NoneType"),
])  # fmt: skip
def test_outputs_that_are_not(output: Callable[[Tensor], Any], found: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, CLASSES, 3)

        def forward(self, x: Tensor) -> Any:
            return output(self.layer(x).mean((2, 3)))

    with pytest.raises(tl.InputError, match=rf"^Net: found {found} as output; must be logits \[B, classes\], or"):
        models.check_input(tl.adapt(Net()), (8, 8), 3)
    with pytest.raises(tl.InputError, match=rf"^Net: found {found} as output"):  # not adapted: train says it too
        tl.train(tl.Plain(Net()), [(torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))], epochs=1, quiet=True)


# What is refused, in one line ---------------------------------------------------------------------------------------


@pytest.fixture
def mynets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory, which a console script does not have on its path."""
    name = f"mynets_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(
        textwrap.dedent("""
        import torch
        from torch import nn
        class Net(nn.Sequential):
            def __init__(self, classes, channels=3):
                super().__init__(nn.Conv2d(channels, 4, 3, stride=2), nn.ReLU(),
                                 nn.Conv2d(4, 6, 3, stride=2), nn.ReLU(),
                                 nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes))
        def make(num_classes, in_channels, width=4):
            open("was_imported", "w").close()
            return Net(num_classes, in_channels)
        def ten(): return Net(10)
        def bad(num_classes): raise KeyError("no such\\nconfiguration")
        def nothing(num_classes): return "a network"
    """)
    )
    monkeypatch.chdir(tmp_path)
    return name


def test_an_import_path_runs_only_when_asked_for(
    mynets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, student = tmp_path / "run", tmp_path / "run" / "students" / "branch1"
    argv = ["--data", "digits", "--student", f"{mynets}:make,width=5", "--steps", "2", "--train-samples", "128"]
    assert main(["train", "one", *argv, "--out", str(out)]) == 0
    config = json.loads((student / "config.json").read_text())
    assert config["architecture"] == f"{mynets}:make" and config["arguments"]["width"] == 5
    (tmp_path / "was_imported").unlink()
    capsys.readouterr()
    assert main(["evaluate", str(out)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"names code to run, '{mynets}:make'" in err and "--trust-imports" in err
    with pytest.raises(tl.InputError, match="trust_imports=True"):
        load_student(student)
    assert not (tmp_path / "was_imported").exists()
    assert main(["evaluate", str(out), "--trust-imports"]) == 0
    assert (tmp_path / "was_imported").exists()
    net = load_student(student, trust_imports=True).net
    plain = __import__(mynets).Net(10, 1)
    shipped_equals(net, tmp_path / "again", plain, torch.randn(2, 1, 8, 8))


@pytest.mark.parametrize(("argv", "words"), [
    (["--student", "mynets:ten"], "mynets:ten: found 10 outputs for 3 classes; it must take num_classes"),
    (["--student", "mynets:bad"], "mynets:bad: cannot be built: KeyError: 'no such\\nconfiguration'"),
    (["--student", "mynets:nothing"], "mynets:nothing: found a str; the function must return a torch.nn.Module"),
    (["--student", "mynets:missing"], "mynets:missing: cannot be built: AttributeError: module 'mynets' has no"),
    (["--student", "no_such_module:f"], "no_such_module:f: cannot be built: ModuleNotFoundError: No module named"),
    (["--student", "mynets:make,depth=3"], "mynets:make: cannot be built: TypeError: make() got an unexpected keyword"),
    (["--student", "mynets:make", "--pretrained"], "mynets:make: takes no argument pretrained, so --pretrained has no"),
    (["--student", "small-cnn", "--pretrained"], "--pretrained: small-cnn has no weights to start from; timm/... and"),
    (["--student", "mynets:make,stages=0+3+9"], "stages: mynets:make has no module '9'"),
    (["--student", "mynets:make,num_classes=4"], "--student: found num_classes= for mynets:make; the run sets it"),
    (["--student", "hub/resnet18"], "found 'hub/resnet18'; must be timm/NAME, torchvision/NAME or package.module:"),
    (["--student", "mynets:make", "--img-size", "4"], "mynets:make: found images of 4x4, which it cannot read (a layer "
     "with stride 2 would read a map of [1, 1]); the smallest it can read is 7x7"),
])  # fmt: skip
def test_one_line_from_the_command_line(
    argv: list[str], words: str, mynets: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [arg.replace("mynets", mynets) for arg in argv]
    size = [] if "--img-size" in argv else ["--img-size", "16"]
    assert main(["train", "plain", "--data", str(folder), "--out", str(tmp_path / "o"), *size, *argv]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "Traceback" not in err
    assert words.replace("mynets", mynets).replace("\\n", " ") in err.replace("\\n", " "), err


NEEDS = "^one: needs a student with stages; "


@pytest.mark.parametrize(("stages", "words"), [
    ("layer1+laier2", r"^stages: timm/resnet18 has no module 'laier2'; did you mean 'layer2'\? \(it has conv1, bn1, "),
    ("layer2+layer1", NEEDS + r"stages: 'layer1' of timm/resnet18 runs before the stage named before it$"),
    ("layer1.0.drop_block+layer4+fc",
     NEEDS + r"stages: 'fc' of timm/resnet18 holds its head, 'fc'; a stage must end before"),
])  # fmt: skip
def test_stages_that_cannot_be_used(zoo: None, stages: str, words: str) -> None:
    with pytest.raises(tl.InputError, match=words):
        ONE(models.create("timm/resnet18", num_classes=CLASSES, stages=stages))


def test_stages_that_run_never_or_often() -> None:
    class Net(nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.conv, self.unused, self.head = (
                nn.Conv2d(3, 3, 3, padding=1),
                nn.Conv2d(3, 3, 3),
                nn.Linear(3, num_classes),
            )
            self.pair, self.first = Pair(), FirstPlaces()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.first(self.pair(self.conv(self.conv(x)))["map"]).mean((0, 2)))

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"map": x}

    class FirstPlaces(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.permute(2, 0, 3, 1)

    for stages, words in {
        "conv+pair": "'conv' of Net runs 2 times; a stage must run once",
        "unused": "'unused' of Net runs 0 times",
        "pair": r"'pair' of Net gives None for a batch of 2; must be a tensor \[B, C, H, W\]",
        "first": r"'first' of Net gives \[64, 2, 64, 3\] for a batch of 2",
    }.items():
        with pytest.raises(tl.InputError, match=f"^stages: {words}"):
            _ = user(Net, stages=stages).channels


def test_networks_without_stages_still_do_what_needs_none() -> None:
    flat = tl.adapt(nn.Sequential(nn.Flatten(), nn.Linear(48, CLASSES)), example=torch.zeros(2, 3, 4, 4))
    x, y = torch.randn(8, 3, 4, 4), torch.arange(8) % CLASSES
    tl.train(DDGSD(flat), [((x, x + 0.1), y)], epochs=1, quiet=True)
    with pytest.raises(
        tl.InputError,
        match=NEEDS + r"Sequential: its stages are not known; name them: stages=a\+b\+c \(it has",
    ):
        ONE(flat)
    with pytest.raises(
        tl.InputError,
        match=NEEDS + r"Sequential: cannot look inside \(what it reads is not known\); show it a",
    ):
        ONE(tl.adapt(nn.Sequential(nn.Flatten(), nn.Linear(48, CLASSES))))


def test_tokens_of_an_image_are_a_grid_and_of_a_text_a_line() -> None:
    net = user(ViT, example=torch.zeros(2, 3, 16, 16))
    x = batches(16, 1)[0].inputs[0]
    tokens: list[Tensor] = []
    net.net.blocks[1].register_forward_hook(lambda _m, _a, said: tokens.append(said))
    grid = net.look(x).maps[1]  # a class token, then 4x4 places of 12 channels
    assert torch.equal(grid[:, :, 2, 3], tokens[-1][:, 1 + 4 * 2 + 3])
    for method in (BYOT(net), FRSKD(net), FitNets(net, net)):
        for out in method.steps(batches(16, 1)[0], tl.progress(epochs=2)):
            out.loss.backward()

    class Text(nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 12), nn.Linear(12, num_classes)
            self.blocks = nn.ModuleList(Block(12) for _ in range(3))

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
            h = self.embed(input_ids) * attention_mask[..., None]
            for block in self.blocks:
                h = block(h)
            return {"logits": self.head(h.mean(1)), "hidden_states": h}

    words = {"input_ids": torch.randint(9, (6, 9)), "attention_mask": torch.ones(6, 9).long()}
    text = tl.adapt(Text(CLASSES), stages="blocks.0+blocks.2", example=words)
    assert [tuple(each.shape) for each in text.look(words).maps] == [(6, 12, 9, 1)] * 2
    for kind in (BYOT, FRSKD, ONE, DDGSD, tl.Plain):
        method = kind(text)
        item = tl.Batch((words,) * method.wants.views, torch.arange(6) % CLASSES)
        for out in method.steps(item, tl.progress(epochs=1)):
            out.loss.backward()


def test_stages_that_are_vectors_are_no_maps() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, CLASSES))
    with pytest.raises(tl.InputError, match=r"needs a student whose stages give maps \[B, C, H, W\].*\(one, dml"):
        BYOT(tl.adapt(net, stages="0+2", example=torch.zeros(2, 4)))


@pytest.mark.parametrize("name", ["vit", "skips", "timm/resnet18"])
def test_one_holds_every_tensor_once(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Safetensors refuses tensors that share memory, and a checkpoint would hold the trunk once a branch."""
    if "/" in name:
        request.getfixturevalue("zoo")
    one = ONE(build(name)[0], branches=3)
    state = one.state_dict()
    places = [value.data_ptr() for value in state.values() if value.numel()]
    assert len(set(places)) == len(places)
    save_file(state, tmp_path / "one.safetensors")
    held = {id(t) for t in (*one.parameters(), *one.buffers())}
    assert {id(t) for net in one.students().values() for t in (*net.parameters(), *net.buffers())} <= held
    again = ONE(build(name)[0], branches=3)
    again.load_state_dict(load_file(tmp_path / "one.safetensors"))
    x = batches(build(name)[2], 1)[0].inputs[0]
    assert torch.equal(again.eval().predict(x)[0], one.eval().predict(x)[0])
    shared = copy.deepcopy(one).double()
    kinds = {t.dtype for net in shared.students().values() for t in (*net.parameters(), *net.buffers())}
    assert kinds <= {torch.float64, torch.int64}


def test_stages_that_timm_names(zoo: None) -> None:
    swin = models.create("timm/swin_tiny_patch4_window7_224", num_classes=CLASSES)
    assert swin.structure.stages == [f"layers.{i}" for i in range(4)]
    vgg = models.create("timm/vgg11_bn", num_classes=CLASSES)
    assert vgg.structure.stages == ["features.13", "features.20", "features.27", "features.28"]
    xcit = models.create("timm/xcit_nano_12_p16_224", num_classes=CLASSES)
    assert xcit.structure.stages == ["blocks.2", "blocks.5", "blocks.8", "blocks.11"]
    assert xcit.maps  # its class token, which it counts among the tokens, joins after these


def test_an_attribute_error_inside_says_what_it_is() -> None:
    net = tl.adapt(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, CLASSES)))
    object.__setattr__(net, "_trace", lambda: net.net[0].not_there)
    with pytest.raises(tl.InputError, match=r"Sequential: cannot look inside .*no attribute 'not_there'"):
        _ = net.channels


@pytest.mark.parametrize(("name", "words"), [
    ("timm/resnet81", r"^unknown model timm/resnet81; of \d+, timm has .*resnet18"),
    ("timm/hf-hub:someone/resnet18", r"^timm/hf-hub:someone/resnet18: cannot be built"),
    ("torchvision/mobilenet_v3", r"^unknown model torchvision/mobilenet_v3; of \d+, torchvision has mobilenet_v"),
    ("torchvision/fasterrcnn_resnet50_fpn", "^unknown model torchvision/fasterrcnn"),
])  # fmt: skip
def test_unknown_names(zoo: None, name: str, words: str) -> None:
    with pytest.raises(tl.InputError, match=words):
        models.create(name, num_classes=CLASSES)


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained_cfg", "weights", "pretrained_cfg_overlay", "cache_dir"])
def test_a_config_cannot_load_weights_of_its_own(zoo: None, key: str, tmp_path: Path) -> None:
    net = models.create("timm/convnext_atto", num_classes=CLASSES)
    save_student(tmp_path, net, ABOUT)
    config = json.loads((tmp_path / "config.json").read_text())
    config["arguments"][key] = "evil.pth"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(tl.InputError, match=rf"config.json: unknown argument of timm/convnext_atto {key!r}"):
        load_student(tmp_path)
    with pytest.raises(tl.InputError, match=rf"timm/convnext_atto: found {key}='evil.pth'; weights come by --pretr"):
        load_student(tmp_path, trust_imports=True)


@pytest.mark.parametrize("extra", ["timm", "torchvision"])
def test_an_extra_that_is_missing(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Acceptance 3."""
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(tl.InputError, match=rf"^{extra}/resnet18: {extra} is not installed; pip install "
                                            rf"'teacherless\[{extra}\]'$"):  # fmt: skip
        models.create(f"{extra}/resnet18", num_classes=CLASSES)
    models.create("small-cnn", num_classes=CLASSES)


@pytest.mark.parametrize("extra", ["timm", "torchvision"])
def test_an_extra_that_is_broken(extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Acceptance 3: as torchvision is where its binary does not fit the torch."""
    (tmp_path / f"{extra}.py").write_text("raise RuntimeError('operator does not exist\\nmore lines')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == extra]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(tl.InputError) as caught:
        models.create(f"{extra}/resnet18", num_classes=CLASSES)
    text = str(caught.value)
    for words in (f"{extra}/resnet18: torchvision ", f"torch {torch.__version__} are builds that do not match ",
                  "RuntimeError: operator does not exist)", "&& pip install torch torchvision"):  # fmt: skip
        assert words in text, text
    assert "\n" not in text and "more lines" not in text and "teacherless[" not in text
    models.create("small-cnn", num_classes=CLASSES)


# Pretrained weights: there is no network here, so the way to them is walked with weights of our own ---------------


def test_pretrained_weights_of_torchvision(zoo: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    theirs = torchvision.models.resnet18().state_dict()
    asked: dict[str, Any] = {}
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict",
                        lambda self, **kwargs: asked.update(kwargs) or theirs)  # fmt: skip
    net = models.create("torchvision/resnet18", num_classes=CLASSES, seed=0, pretrained=True)
    assert asked["weights_only"] is True and asked["check_hash"] is True
    assert torch.equal(net.net.layer4[0].conv1.weight, theirs["layer4.0.conv1.weight"])
    assert net.net.fc.weight.shape == (CLASSES, 512)
    assert "pretrained" not in net.spec
    first, second = (student.net for student in ONE(net, branches=2).students().values())
    assert torch.equal(first.layer4[0].conv1.weight, second.layer4[0].conv1.weight)  # ONE copies what was learnt
    assert not torch.equal(first.fc.weight, second.fc.weight)
    fresh = ONE(net, branches=2, copy_init=False).students()["branch1"].net
    assert not torch.equal(first.layer4[0].conv1.weight, fresh.layer4[0].conv1.weight)


def test_pretrained_weights_of_timm(zoo: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    asked: list[dict[str, Any]] = []

    def create(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
        asked.append({"name": name, "pretrained": pretrained, **kwargs})
        return timm.models.create_model(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", create)
    assert models.create("timm/resnet18", num_classes=CLASSES, in_channels=1, pretrained=True).pretrained
    assert asked == [{"name": "resnet18", "pretrained": True, "num_classes": CLASSES, "in_chans": 1}]


def test_weights_that_cannot_be_had(zoo: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr("torchvision._internally_replaced_utils.load_state_dict_from_url", offline, raising=False)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(
        tl.InputError, match=r"^torchvision/resnet18: cannot be had with pretrained weights: URLError: "
    ):
        models.create("torchvision/resnet18", num_classes=CLASSES, pretrained=True)


def test_pretrained_peers_that_start_identical_are_refused(zoo: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    theirs = torchvision.models.resnet18(num_classes=CLASSES).state_dict()  # the head too
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", lambda self, **kwargs: theirs)
    peers = [models.create("torchvision/resnet18", num_classes=CLASSES, seed=seed, pretrained=True) for seed in (0, 1)]
    with pytest.raises(tl.InputError, match=r"start with equal weights.*dropout or views=2"):
        tl.DML(*peers)
    tl.DML(*peers, views=2)
    del theirs["fc.weight"], theirs["fc.bias"]  # as ever: other classes, so each head starts from its own seed
    tl.DML(*(models.create("torchvision/resnet18", num_classes=CLASSES, seed=i, pretrained=True) for i in (0, 1)))


def test_a_stage_that_is_left_out_at_random() -> None:
    class Net(nn.Module):
        """Layer drop, as in wav2vec2; looked into, it leaves nothing out."""

        def __init__(self) -> None:
            super().__init__()
            self.low, self.high, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = self.low(x)
            return self.head((x if self.training else self.high(x)).mean((2, 3)))

    net = tl.adapt(Net(), stages="low+high")
    with pytest.raises(tl.InputError, match="'high' of Net was left out this time, as layer drop does"):
        tl.BYOT(net)(batches(16, 1)[0])


def test_no_auxiliary_heads_by_name(zoo: None) -> None:
    net = models.create("torchvision/googlenet", num_classes=CLASSES)
    assert not any("aux" in key for key in net.state_dict())

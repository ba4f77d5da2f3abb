"""The networks: sizes as published, insides as promised, starts that hide nothing, errors in one line."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teacherless import models
from teacherless.errors import InputError
from teacherless.method import Batch
from teacherless.methods import METHODS
from teacherless.models import MODELS, check_input, create, describe
from teacherless.models.densenet import densenet
from teacherless.models.preact import PreActivated
from teacherless.models.resnet import Residual, ZeroPad
from teacherless.models.staged import Staged, fresh

PARAMS = {  # at 100 classes; those with a source are published or counted from the authors' code
    "small-cnn": 106_372,
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,  # DML: 0.5M
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet14-bottleneck": 243_508,
    "resnet110-bottleneck": 1_727_284,  # the script of ONE
    "resnet18": 11_220_132,  # 11.22M
    "resnet34": 21_328_292,
    "resnet50": 23_705_252,
    "se-resnet18": 11_309_212,
    "se-resnet110": 1_750_802,
    "resnext29-8x64d": 34_518_948,  # 34.4M at 10 classes
    "resnext50-32x4d": 23_177_124,
    "preact-resnet18": 11_218_340,  # 11.2M
    "wrn-16-2": 703_284,  # 0.7M
    "wrn-16-8": 11_007_540,  # 11.0M
    "wrn-28-10": 36_536_884,  # DML: 36.5M
    "wrn-40-2": 2_255_156,  # 2.2M
    "densenet-40-12": 1_060_132,  # 1.0M
    "densenet-bc-40-12": 188_092,
    "densenet-bc-190-40": 25_821_620,  # 25.6M at 10 classes
    "mobilenet": 3_309_476,  # DML: 3.3M
    "googlenet": 5_694_724,  # DML says 7.8M, see its docstring
    "vgg16-bn": 14_770_212,
    "alexnet": 2_495_396,
}
SMALL = [name for name, count in PARAMS.items() if count < 4e6]
SMALLEST = {"vgg16-bn": 32, "alexnet": 29}  # the others read 8x8
every_net = pytest.mark.parametrize("name", MODELS)


def staged(name: str, *, num_classes: int = 7, **kwargs: object) -> Staged:
    net = create(name, num_classes=num_classes, seed=0, **kwargs)
    assert isinstance(net, Staged)
    return net


def noise(name: str, channels: int = 3) -> Tensor:
    side = SMALLEST.get(name, 8)
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1))


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_parameter_counts() -> None:
    with torch.device("meta"):
        assert {name: count(create(name, num_classes=100)) for name in MODELS} == PARAMS


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnext50-32x4d", 25_028_904),
        ("mobilenet", 4_231_976),
        ("googlenet", 6_624_904),
    ],
)
def test_imagenet_stems_have_the_published_size_and_strides(name: str, params: int) -> None:
    with torch.device("meta"):
        net = create(name, num_classes=1000, stem="imagenet")
        assert isinstance(net, Staged)
        assert count(net) == params
        assert net.features(torch.empty(2, 3, 224, 224))[-1].shape[-2:] == (7, 7)


@pytest.mark.parametrize(
    ("name", "params"), [("resnext29-8x64d", 34_426_698), ("densenet-40-12", 1_019_722), ("wrn-16-8", 10_961_370)]
)
def test_sizes_published_at_ten_classes(name: str, params: int) -> None:
    with torch.device("meta"):
        assert count(create(name, num_classes=10)) == params


def test_the_preactivated_network_of_cs_kd_and_ps_kd() -> None:
    net = staged("preact-resnet18", num_classes=100, layout="released").eval()
    assert count(net) == 11_217_444
    x = noise("preact-resnet18")
    stem, first = net.stages[0][:3], net.stages[0][3]
    active = first.activate(stem(x))
    torch.testing.assert_close(first(stem(x)), active + first.body(active), rtol=0, atol=0)  # not: stem(x) + body
    assert isinstance(net.stages[-1][-1], PreActivated), "nothing after the last block"


def test_googlenet_pools_as_slim_does() -> None:
    net = staged("googlenet", stem="imagenet")
    assert [stage[0].kernel_size for stage in net.stages[1:]] == [3, 2]
    assert net.stages[2][0](torch.empty(1, 1, 7, 7)).shape[-2:] == (4, 4), "the last row and column count"


@every_net
def test_insides_are_what_staged_promises(name: str) -> None:
    net = staged(name).eval()
    x = noise(name)
    maps = net.features(x)
    assert [m.shape[1] for m in maps] == net.channels
    assert 2 <= len(net.stages) <= 5
    assert all(key.startswith(("stages.", "head.")) for key in net.state_dict())
    heard: list[Tensor] = []
    net.head.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
    logits = net(x)
    assert logits.shape == (2, 7)
    assert torch.equal(net.embed(x), heard[0])
    assert heard[0].shape == (2, net.head.in_features)


@every_net
def test_a_stage_leaves_its_input_alone(name: str) -> None:
    """Several readers share a map (branches, exits, regressors): none may write to it."""
    net = staged(name)
    x = noise(name)
    for stage in net.stages:
        before = x.clone()
        after = stage(x)
        assert torch.equal(x, before)
        x = after


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in MODELS),
        *((name, torch.bfloat16) for name in SMALL),
        *(pytest.param(name, torch.bfloat16, marks=pytest.mark.exhaustive) for name in MODELS if name not in SMALL),
    ],
)
def test_one_step(name: str, dtype: torch.dtype) -> None:
    net = staged(name)
    before = {key: value.clone() for key, value in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        logits = net(noise(name))
    assert logits.dtype is dtype
    F.cross_entropy(logits.float(), torch.tensor([0, 1])).backward()
    optimizer.step()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.isfinite().all(), key
    assert not torch.equal(before["head.bias"], net.head.bias)
    assert not torch.equal(first := before[next(iter(before))], next(net.parameters())), first


@pytest.mark.parametrize("name", SMALL)
def test_loss_falls(name: str) -> None:
    net = staged(name)
    x = torch.cat([noise(name), -noise(name)])
    labels = torch.arange(4)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    losses = []
    for _ in range(12):  # the deepest overshoot at first
        loss = F.cross_entropy(net(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < losses[0]


@pytest.mark.parametrize(
    "method",
    [pytest.param("one", marks=pytest.mark.slow), pytest.param("byot", marks=pytest.mark.slow),
     pytest.param("dml", marks=pytest.mark.exhaustive)],
)  # fmt: skip
@pytest.mark.parametrize("name", SMALL)
def test_loss_falls_through_methods(name: str, method: str) -> None:
    """Branches, a method on features, a cohort: each trains every net of up to 4M parameters."""
    torch.manual_seed(7)
    nets = [staged(name)]
    if method == "dml":
        nets.append(fresh(staged(name)))
    trained = METHODS[method](*nets)
    batch = Batch((torch.cat([noise(name), -noise(name)]),), torch.arange(4))
    lr = 0.001 if name == "resnet110-bottleneck" else 0.01  # 164 layers: at 0.01 it overshoots before it falls
    optimizer = torch.optim.SGD(trained.param_groups(), lr, momentum=0.9)
    losses = []
    for _ in range(12):
        out = trained(batch)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.loss.item())
    assert min(losses[-3:]) < losses[0], losses


@every_net
def test_no_forgotten_init_hides(name: str) -> None:
    """`fresh` gives every weight and statistic its first value, and it is the one that `create` gave."""
    net = staged(name)
    filled = copy.deepcopy(net)
    for tensor in [*filled.parameters(), *filled.buffers()]:
        if tensor.is_floating_point():
            tensor.data.fill_(torch.nan)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh(filled)
    assert same(filled, net)
    assert all(tensor.isfinite().all() for tensor in net.state_dict().values())


def test_init_is_he() -> None:
    net = staged("resnet18")
    for key, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 10_000:
            he = (2 / (layer.kernel_size[0] ** 2 * layer.out_channels)) ** 0.5
            assert layer.weight.std().item() == pytest.approx(he, rel=0.05), key


def test_seeds() -> None:
    state = torch.get_rng_state()
    one, again, other = (create("resnet8", num_classes=7, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(one, again)
    assert not any(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True) if a.dim() > 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        assert same(create("resnet8", num_classes=7), one)
        assert not same(create("resnet8", num_classes=7), one)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("small-cnn", {"width": 8}),
        ("resnet20", {"shortcut": "A"}),
        ("mobilenet", {"stem": "imagenet"}),
        ("wrn-16-2", {"dropout": 0.3}),
        ("densenet-40-12", {"dropout": 0}),
        ("alexnet", {}),
    ],
)
def test_spec_rebuilds(name: str, kwargs: dict[str, object]) -> None:
    net = create(name, num_classes=3, in_channels=1, seed=4, **kwargs)
    assert net.spec == {"architecture": name, "num_classes": 3, "in_channels": 1, **kwargs}
    again = create(**json.loads(json.dumps(net.spec)))
    again.load_state_dict(net.state_dict())
    x = noise("alexnet", channels=1)
    assert torch.equal(net.eval()(x), again.eval()(x))


def test_counts_may_be_numpy_or_tensors() -> None:
    classes = torch.tensor([0, 4, 2]).max() + 1
    assert type(create("small-cnn", num_classes=classes).spec["num_classes"]) is int


@pytest.mark.parametrize("name", ["wrn-16-2", "densenet-40-12"])
def test_dropout_drops_in_training_and_leaves_keys_alone(name: str) -> None:
    net, dropped = staged(name), staged(name, dropout=0.5)
    assert net.state_dict().keys() == dropped.state_dict().keys()
    x = noise(name)
    with torch.random.fork_rng(devices=[]):
        assert not torch.equal(dropped(x), dropped(x))
    assert torch.equal(net(x), net(x))


def test_shortcuts() -> None:
    assert count(staged("resnet32", num_classes=100, shortcut="A")) == 470_004
    assert count(staged("resnet110", num_classes=100, shortcut="A")) == 1_733_812
    x = torch.randn(2, 3, 5, 5)
    out = ZeroPad(4, stride=2)(x)
    assert torch.equal(out, torch.cat([x[:, :, ::2, ::2], torch.zeros(2, 4, 3, 3)], dim=1))
    assert torch.equal(Residual(nn.Identity(), nn.Identity())(x), (2 * x).relu())


def test_a_wide_block_adds_what_its_body_says() -> None:
    x = torch.randn(2, 4, 6, 6)
    block = PreActivated(4, 4, 1)
    nn.init.zeros_(block.body[-1].weight)
    assert torch.equal(block(x), x)
    block = PreActivated(4, 8, 2)
    nn.init.zeros_(block.body[-1].weight)
    assert torch.equal(block(x), block.shortcut(block.activate(x)))


def test_dense_layers_append() -> None:
    net = densenet(num_classes=5, in_channels=3, depth=16, growth=4, bottleneck=True)
    assert net.channels == [16, 16, 16]  # 8 + 2·4, then twice half of it + 2·4
    stage = net.stages[0].eval()
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(stage(x)[:, :8], stage[0](x))


@every_net
def test_describe(name: str) -> None:
    line = describe(name)
    assert line.startswith(f"{PARAMS[name]:,} parameters at 100 classes; stages of ")
    assert "\n" not in line


def test_small_cnn_learns_digits() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    y = torch.tensor(digits.target)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(x), generator=generator)
    train, test = order[:1408], order[1408:]
    net = create("small-cnn", num_classes=10, in_channels=1, seed=0)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    steps = 8 * 22
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        rows = train[torch.randint(len(train), (64,), generator=generator)]
        optimizer.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
        if step < steps - 1:
            schedule.step()
    assert (net.eval()(x[test]).argmax(1) == y[test]).float().mean() > 0.97


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"architecture": "mobilnet"}, "unknown model 'mobilnet'; did you mean 'mobilenet'?"),
        ({"architecture": "resnet32", "shortcat": "A"}, "unknown argument of resnet32 'shortcat'; did you mean"),
        ({"architecture": "resnet32", "depth": 20}, "unknown argument of resnet32 'depth'"),
        ({"architecture": "alexnet", "stem": "cifar"}, "unknown argument of alexnet 'stem'"),
        ({"architecture": "resnet32", "shortcut": "C"}, "resnet32: shortcut: found 'C'; must be 'A' or 'B'"),
        ({"architecture": "resnet32", "shortcut": ["A"]}, "shortcut: found ['A']; must be 'A' or 'B'"),
        ({"architecture": "wrn-16-2", "dropout": "much"}, "wrn-16-2: dropout: found 'much'; must be a number"),
        ({"architecture": "wrn-16-2", "dropout": True}, "dropout: found True; must be a number"),
        ({"architecture": "wrn-16-2", "dropout": 1.0}, "dropout: found 1.0; must be at least 0 and less than 1"),
        ({"architecture": "small-cnn", "width": 0}, "small-cnn: width: found 0; must be a positive integer"),
        ({"architecture": "resnet8", "num_classes": 0}, "num_classes: found 0; must be a positive integer"),
        ({"architecture": "resnet8", "num_classes": 2.5}, "num_classes: found 2.5; must be a positive integer"),
        ({"architecture": "resnet8", "in_channels": True}, "in_channels: found True; must be a positive integer"),
        ({"architecture": "resnet8", "seed": "one"}, "seed: found 'one'; must be an integer"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        create(**{"num_classes": 10, **arguments})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@every_net
def test_check_input_finds_the_smallest_legal_size(name: str) -> None:
    net = staged(name)
    check_input(net, (32, 40), 3)
    with pytest.raises(InputError) as caught:
        check_input(net, (1, 40), 3)
    text = str(caught.value)
    assert text.startswith(f"{name}: found images of 1x40, too small for its strides; the smallest it can read is ")
    smallest = int(text.rpartition("x")[2])
    assert smallest == SMALLEST.get(name, smallest)
    assert 3 <= smallest <= 5 or name in SMALLEST
    check_input(net, (smallest, smallest), 3)
    with pytest.raises(InputError):
        check_input(net, (smallest - 1, smallest), 3)


def test_check_input_leaves_no_trace() -> None:
    net = staged("wrn-16-2", dropout=0.5)
    net.stages[0].eval()
    flags = [module.training for module in net.modules()]
    before = copy.deepcopy(net)
    state = torch.get_rng_state()
    check_input(net, (8, 8), 3)
    with pytest.raises(InputError):
        check_input(net, (1, 1), 3)
    assert [module.training for module in net.modules()] == flags
    assert same(net, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_pre_hooks for module in net.modules())


class Fussy(nn.Module):
    """Someone else's network."""

    def forward(self, x: Tensor) -> Tensor:
        """Only 4x4."""
        if x.shape[-1] != 4:
            raise TypeError("this network wants 4x4\nand nothing else")
        torch.rand(1)
        return x.flatten(1)


def test_check_input_of_any_network() -> None:
    state = torch.get_rng_state()
    check_input(Fussy(), (4, 4), 3)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(InputError, match=r"^Fussy: cannot read images of 3 channels, 8x8: this network wants 4x4$"):
        check_input(Fussy(), (8, 8), 3)
    with pytest.raises(InputError, match=r"^resnet8: found images of 1 channels; it was built for 3$"):
        check_input(create("resnet8", num_classes=5), (8, 8), 1)
    check_input(create("resnet8", num_classes=5).bfloat16(), (8, 8), 3)
    own = Staged([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)], [4, 4], nn.Linear(4, 2))
    with pytest.raises(InputError, match=r"^Staged: cannot read images of 1 channels, 8x8: .*expected input"):
        check_input(own, (8, 8), 1)
    with pytest.raises(InputError, match=r"^Staged: found images of 2x8, .*the smallest it can read is 3x3$"):
        check_input(own, (2, 8), 3)


def test_networks_are_made_where_the_default_device_is() -> None:
    with torch.device("meta"):
        assert next(create("resnet8", num_classes=5, seed=1).parameters()).is_meta
    assert models.create("resnet8", num_classes=5).spec["architecture"] == "resnet8"

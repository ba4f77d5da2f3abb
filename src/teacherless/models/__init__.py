"""The networks, by name: `create("resnet32", num_classes=100)`.

Every constructor in the table is a function of keyword arguments that returns a `Staged`; what it lists besides
`num_classes` and `in_channels` is what a user may set, checked against its annotations. To add a network: one function,
one line here.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, get_args, get_origin

import torch
from torch import nn

from teacherless.errors import InputError, first_line, unknown
from teacherless.models import resnet
from teacherless.models.classic import alexnet, vgg16_bn
from teacherless.models.densenet import densenet
from teacherless.models.foreign import by_name as foreign
from teacherless.models.foreign.wrapper import Foreign
from teacherless.models.googlenet import googlenet
from teacherless.models.mobilenet import mobilenet
from teacherless.models.preact import preact_resnet18, wrn
from teacherless.models.small import small_cnn
from teacherless.models.staged import Staged, at_rest, fresh

WRN = ((16, 2), (16, 8), (28, 10), (40, 2))  # depth and width

MODELS: dict[str, Callable[..., Staged]] = {
    "small-cnn": small_cnn,
    **{f"resnet{depth}": partial(resnet.resnet_cifar, depth=depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}-bottleneck": partial(resnet.resnet_cifar_bottleneck, depth=depth) for depth in (14, 110)},
    **{f"resnet{depth}": partial(resnet.resnet, depth=depth) for depth in (18, 34, 50)},
    "preact-resnet18": preact_resnet18,
    "se-resnet18": partial(resnet.se_resnet, depth=18),
    "se-resnet110": partial(resnet.se_resnet_cifar, depth=110),
    "resnext29-8x64d": resnet.resnext29,
    "resnext50-32x4d": resnet.resnext50,
    **{f"wrn-{deep}-{wide}": partial(wrn, depth=deep, width=wide) for deep, wide in WRN},
    "densenet-40-12": partial(densenet, depth=40, growth=12, bottleneck=False),
    "densenet-bc-40-12": partial(densenet, depth=40, growth=12, bottleneck=True),
    "densenet-bc-190-40": partial(densenet, depth=190, growth=40, bottleneck=True),
    "mobilenet": mobilenet,
    "googlenet": googlenet,
    "vgg16-bn": vgg16_bn,
    "alexnet": alexnet,
}

LARGEST_SIDE = 256  # where the search for the smallest legal input ends


def create(
    architecture: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    seed: int | None = None,
    pretrained: bool = False,
    size: tuple[int, int] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """A new network, freshly initialised; `net.spec` is the plain dict that rebuilds it: `create(**net.spec)`.

    Args:
        architecture: a name in `MODELS`, `timm/NAME`, `torchvision/NAME` or `package.module:function`.
        num_classes: C, the width of the logits.
        in_channels: channels of the input images.
        seed: initialise from this seed and leave the global generator alone; by default, draw from the global one.
        pretrained: with weights from timm or torchvision; only the head starts afresh.
        size: height and width of the images, for networks that read no other.
        kwargs: the constructor's own arguments, `options(architecture)`; of somebody else's network also `stages`,
            the module paths of its stages, "layer1+layer2+layer3".

    Returns: a network that maps `[B, in_channels, H, W]` to logits `[B, C]`, on the default device. The weights of a
        seed are the same on every device.
    Raises: InputError for an unknown name, for an argument that is unknown or has the wrong type or value, and for
        somebody else's network that cannot be built.
    """
    if architecture not in MODELS and not foreign.is_foreign(architecture):
        raise unknown("model", architecture, MODELS)
    counts: dict[str, Any] = {"num_classes": _count("num_classes", num_classes)}
    counts["in_channels"] = _count("in_channels", in_channels)
    if seed is not None and type(seed) is not int:
        raise InputError(f"seed: found {seed!r}; must be an integer")
    device = torch.get_default_device()
    if foreign.is_foreign(architecture):
        with _seeded(seed), torch.device("meta" if device.type == "meta" else "cpu"):
            return foreign.create(architecture, pretrained=pretrained, size=size, **counts, **kwargs).to(device)
    if pretrained:
        why = "has no weights to start from; timm/... and torchvision/... have"
        raise InputError(f"--pretrained: {architecture} {why}")
    _check_arguments(architecture, kwargs)
    try:
        with torch.device("meta"):  # so that `fresh` is the one place where weights get their first values
            net = MODELS[architecture](**counts, **kwargs)
        net.spec = {"architecture": architecture, **counts, **kwargs}
        if device.type == "meta":
            return net
        with _seeded(seed):
            return fresh(net.to_empty(device="cpu")).to(device)
    except (RuntimeError, MemoryError) as error:  # a width that no memory holds, or no number counts
        raise InputError(f"{architecture}: cannot be built: {first_line(error)}") from error


@contextlib.contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Inside, the global generator starts from a seed; afterwards it is as before. None: it is the global one."""
    with contextlib.nullcontext() if seed is None else torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        yield


def options(architecture: str) -> dict[str, inspect.Parameter]:
    """What a user may set of a network besides classes and channels: each with its type and default. Of somebody else's
    network that is not known. Raises: InputError for an unknown name."""
    if foreign.is_foreign(architecture):
        return {}
    if architecture not in MODELS:
        raise unknown("model", architecture, MODELS)
    constructor = MODELS[architecture]
    named = getattr(constructor, "keywords", {}).keys() - {"width"}  # a width in the name is a default
    fixed = {"num_classes", "in_channels", *named}
    signature = inspect.signature(constructor, eval_str=True)
    return {name: parameter for name, parameter in signature.parameters.items() if name not in fixed}


def describe(architecture: str) -> str:
    """One line on a network: parameters at 100 classes, stages, options. Raises InputError for an unknown name."""
    with contextlib.nullcontext() if foreign.is_foreign(architecture) else torch.device("meta"):
        net = create(architecture, num_classes=100)
    assert isinstance(net, (Staged, Foreign))
    params = sum(p.numel() for p in net.parameters())
    names = f"{'+'.join(net.structure.stages)} " if isinstance(net, Foreign) else ""
    stages = f"{names}of {'-'.join(map(str, net.channels))}"
    settings = [f"{name}: {_legal(p.annotation)}, default {p.default}" for name, p in options(architecture).items()]
    return "; ".join([f"{params:,} parameters at 100 classes", f"stages {stages} channels", *settings])


def check_input(net: nn.Module, size: tuple[int, int], in_channels: int) -> None:
    """Refuse images that a network cannot read, before anything is trained.

    Runs two blank images in evaluation mode: parameters, batch-norm statistics, training flags and the global generator
    stay as they are. A network by name also refuses images so small that a strided layer reads less than its stride:
    padding would let it run on nothing but borders. Somebody else's must have as many outputs as there are classes.

    Args:
        net: any network for images.
        size: height and width.
        in_channels: channels of the images.

    Raises: InputError naming the network, what was found and, for a network by name, the smallest legal size.
    """
    height, width = size
    problem = _problem(net, size, in_channels)
    if problem is None:
        return
    spec = getattr(net, "spec", {})
    name = spec.get("architecture", type(net).__name__)
    if in_channels != spec.get("in_channels", in_channels):
        raise InputError(f"{name}: found images of {in_channels} channels; it was built for {spec['in_channels']}")
    if isinstance(net, (Staged, Foreign)):
        for side in range(min(size) + 1, LARGEST_SIDE + 1):
            if _problem(net, (side, side), in_channels) is None:
                why = "too small for its strides" if isinstance(net, Staged) else f"which it cannot read ({problem})"
                smallest = f"the smallest it can read is {side}x{side}"
                raise InputError(f"{name}: found images of {height}x{width}, {why}; {smallest}")
    raise InputError(f"{name}: cannot read images of {in_channels} channels, {height}x{width}: {problem}")


def _problem(net: nn.Module, size: tuple[int, int], in_channels: int) -> str | None:
    """Why `net` cannot read such images, in one line; None if it can."""
    like = next(net.parameters(), torch.empty(0))
    images = torch.zeros(2, in_channels, *size, dtype=like.dtype, device=like.device)
    named = isinstance(net, (Staged, Foreign))
    strided = [module for module in net.modules() if _stride(module) > 1] if named else []
    try:
        with at_rest(net), contextlib.ExitStack() as hooks:
            for module in strided:
                hooks.enter_context(module.register_forward_pre_hook(_refuse_less_than_stride))
            logits = net(images)
    except InputError:  # not of the images: its output cannot be read
        raise
    except Exception as error:  # a foreign network may raise anything; whatever it is, it cannot read this
        return next(iter(str(error).splitlines()), type(error).__name__)
    outputs = logits.shape[1]
    if isinstance(net, Foreign) and outputs != (classes := net.spec.get("num_classes", outputs)):
        raise InputError(f"{net.name}: found {outputs} outputs for {classes} classes; it must take num_classes")
    return None


def _stride(module: nn.Module) -> int:
    stride = module.stride if isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)) else 1
    return max(stride) if isinstance(stride, tuple) else int(stride)


def _refuse_less_than_stride(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    if min(inputs[0].shape[-2:]) < _stride(module):
        raise ValueError(f"a layer with stride {_stride(module)} would read a map of {list(inputs[0].shape[-2:])}")


def _count(name: str, value: Any) -> int:
    """A positive integer, numpy's or a tensor's too, as Python's own."""
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1 or isinstance(value, bool):
        raise InputError(f"{name}: found {value!r}; must be a positive integer")
    return count


def _check_arguments(architecture: str, arguments: dict[str, Any]) -> None:
    legal = options(architecture)
    for name, value in arguments.items():
        if name not in legal:
            raise unknown(f"argument of {architecture}", name, [*legal, "num_classes", "in_channels"])
        kind = legal[name].annotation
        if not _fits(value, kind):
            raise InputError(f"{architecture}: {name}: found {value!r}; must be {_legal(kind)}")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a constructor may get `value`; every integer argument of ours is a count."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind is int:
        return type(value) is int and value > 0
    assert kind is float, kind
    return type(value) in (int, float)


def _legal(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    return {int: "a positive integer", float: "a number"}[kind]

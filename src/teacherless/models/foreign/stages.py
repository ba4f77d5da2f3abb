"""What runs when inside a network, and where its maps shrink: found by running it once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool1d)


@dataclass
class Call:
    """When a module ran, on a clock that ticks at every entry and exit, and what went through it."""

    began: int
    ended: int = -1
    count: int = 0
    input_shape: torch.Size | None = None
    output_shape: torch.Size | None = None


@contextmanager
def watching(net: nn.Module, calls: dict[str, Call]) -> Iterator[None]:
    """Inside, note in `calls` when every module of `net` runs."""
    clock = itertools.count()

    def enter(path: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        call = calls.setdefault(path, Call(next(clock)))
        call.input_shape = args[0].shape if args and isinstance(args[0], Tensor) else None

    def leave(path: str, module: nn.Module, args: Any, output: Any) -> None:
        call, tensor = calls[path], first_tensor(output)
        call.ended, call.count = next(clock), call.count + 1
        call.output_shape = None if tensor is None else tensor.shape

    with ExitStack() as hooks:
        for path, module in net.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(partial(enter, path)))
            hooks.enter_context(module.register_forward_hook(partial(leave, path)))
        yield


def timm_stages(net: nn.Module) -> list[str]:
    """The stages that a network of timm names itself: the last four sizes, or four blocks where there is one size."""
    about = [info for info in getattr(net, "feature_info", None) or () if isinstance(info, Mapping)]
    known = [info for info in about if {"module", "reduction"} <= info.keys()]
    paths = [info["module"] for info in known]
    if len({info["reduction"] for info in known}) > 1:
        return paths[-4:]
    parts = min(4, len(paths))
    return [paths[(i + 1) * len(paths) // parts - 1] for i in range(parts)]


def default_stages(net: nn.Module, calls: Mapping[str, Call], head: str, batch: int) -> list[str]:
    """Where the maps of a network shrink: the path of the last module of every size, of the last four sizes.

    Looks at the modules in `nn.Sequential`s and `nn.ModuleList`s; where these are too few, into the largest one. Where
    sizes are too few, as in a transformer, equal blocks are cut into four. Empty where nothing is found.
    """
    path = ""
    while True:
        module = net.get_submodule(path)
        stages = _stages_among(_blocks(path, module, calls), net, calls, calls[head].began, batch)
        children = dict(module.named_children())
        if len(stages) >= 2 or not children:
            return stages if len(stages) >= 2 else []
        path = join(path, max(children, key=lambda name: sum(p.numel() for p in children[name].parameters())))


def _blocks(path: str, module: nn.Module, calls: Mapping[str, Call]) -> list[str]:
    """The modules that run once inside, containers opened, in the order in which they end."""
    blocks = []
    for name, child in module.named_children():
        inner = join(path, name)
        if isinstance(child, (nn.Sequential, nn.ModuleList)):
            blocks += _blocks(inner, child, calls)
        elif inner in calls and calls[inner].count == 1 and not isinstance(child, (nn.Identity, nn.Dropout)):
            blocks.append(inner)
    return sorted(blocks, key=lambda inner: calls[inner].ended)


def _stages_among(blocks: list[str], net: nn.Module, calls: Mapping[str, Call], end: int, batch: int) -> list[str]:
    groups: list[list[str]] = []  # of blocks in a row whose maps are of one size
    size: tuple[int, ...] = ()
    for block in blocks:
        shape, learns = calls[block].output_shape, has_parameters(net.get_submodule(block))
        if calls[block].ended > end or isinstance(net.get_submodule(block), POOLS):
            break
        if shape is None or len(shape) not in (3, 4) or shape[0] != batch:
            continue
        if math.prod(places(shape)) == 1 and not learns:  # a pool of somebody's own
            break
        if places(shape) != size:
            groups.append([])
        size = places(shape)
        groups[-1].append(block)
    if len(groups) > 1 and not any(has_parameters(net.get_submodule(block)) for block in groups[-1]):
        pooling = groups.pop()
        groups[-1] += pooling
    if len(groups) == 1 or (len(groups) == 2 and len(size) == 1):
        return _quarters(max(groups, key=len), net)
    return _widen([_last(group, after, calls) for group, after in itertools.pairwise([*groups, []])][-4:], net, calls)


def _quarters(blocks: list[str], net: nn.Module) -> list[str]:
    """Four of the blocks of the commonest kind, at equal distances; the last one is the last."""
    kinds = [type(net.get_submodule(block)) for block in blocks]
    kind = max(kinds, key=kinds.count)
    equal = [block for block, own in zip(blocks, kinds, strict=True) if own is kind]
    parts = min(4, len(equal))
    return [equal[(i + 1) * len(equal) // parts - 1] for i in range(parts)]


def _last(group: list[str], after: list[str], calls: Mapping[str, Call]) -> str:
    """The last block of a group that is not the beginning of a transition, a container that ends in the next group."""
    for block in reversed(group):
        parent = calls.get(block.rpartition(".")[0])
        if not (parent and after and calls[group[0]].ended < parent.began):
            return block
        if not calls[after[0]].ended < parent.ended < calls[after[-1]].ended:
            return block
    return group[-1]


def _widen(ends: list[str], net: nn.Module, calls: Mapping[str, Call]) -> list[str]:
    """The same places under shorter names: `layer1`, not `layer1.1`."""
    stages: list[str] = []
    for path in ends:
        before = calls[stages[-1]].ended if stages else -1
        parent = path.rpartition(".")[0]
        while (
            parent in calls
            and isinstance(net.get_submodule(parent), nn.Sequential)
            and calls[parent].ended == calls[path].ended + 1
            and calls[parent].began > before
        ):
            path, parent = parent, parent.rpartition(".")[0]
        stages.append(path)
    return stages


def is_layer(module: nn.Module) -> bool:
    """Whether it has parameters, and no modules inside."""
    return not any(True for _ in module.children()) and has_parameters(module)


def has_parameters(module: nn.Module) -> bool:
    """Whether there is anything to learn in it."""
    return any(True for _ in module.parameters())


def first_tensor(output: Any) -> Tensor | None:
    """A module's output, or the first of several; None if that is no tensor."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def channels_last(shape: torch.Size) -> bool:
    """`[B, H, W, C]`, known by its two equal sides: examples are square."""
    return len(shape) == 4 and shape[1] == shape[2] != shape[3]


def channels(shape: torch.Size) -> int:
    """C of `[B, C, H, W]`, `[B, H, W, C]`, `[B, N, C]` or `[B, C]`."""
    return shape[1] if len(shape) == 4 and not channels_last(shape) else shape[-1]


def places(shape: torch.Size) -> tuple[int, ...]:
    """`(H, W)` of a map, `(N,)` of tokens."""
    return tuple(shape[1:-1] if len(shape) == 3 or channels_last(shape) else shape[2:])


def join(path: str, name: str) -> str:
    """The path of a child."""
    return f"{path}.{name}" if path else name

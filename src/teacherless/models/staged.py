"""Networks whose insides have names: what methods ask of them, and our own, which need no hooks for it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from teacherless.network import evaluating


class Look(NamedTuple):
    """One pass through a network, seen from the inside."""

    maps: list[Tensor]  # one [B, C_i, H_i, W_i] per stage; of a transformer [B, N, C_i]
    embedding: Tensor  # [B, D], exactly what the head reads
    logits: Tensor  # [B, C]


class Insides(nn.Module):
    """What methods ask of a network with stages, ours (`Staged`) or anyone's (`Foreign`).

    A network is cut after a stage: what comes before is its trunk, what comes after a branch. `trunk(n)` maps images to
    whatever `branch(n)` maps to logits; together they are the network, to the bit.
    """

    spec: dict[str, Any]  # the arguments that rebuild it, where it comes from `models.create`
    pretrained: bool = False

    @property
    def channels(self) -> list[int]:
        """C_i of every stage."""
        raise NotImplementedError

    @property
    def dim(self) -> int:
        """D, the width of what the head reads."""
        raise NotImplementedError

    @property
    def maps(self) -> bool:
        """Whether every stage gives `[B, C_i, H_i, W_i]`; a transformer's give tokens."""
        return True

    def look(self, x: Any) -> Look:
        """Maps, embedding and logits of `[B, ...]`."""
        raise NotImplementedError

    def features(self, x: Tensor) -> list[Tensor]:
        """The output of every stage: one `[B, C_i, H_i, W_i]` each."""
        return self.look(x).maps

    def embed(self, x: Tensor) -> Tensor:
        """`[B, D]`, exactly what the head reads."""
        return self.look(x).embedding

    def reach(self, x: Any, stage: int) -> Tensor:
        """The output of one stage; what comes after it is not run."""
        raise NotImplementedError

    def lower(self, stage: int) -> list[nn.Parameter]:
        """The parameters up to a stage."""
        raise NotImplementedError

    def exit(self) -> tuple[nn.Module, nn.Module]:
        """A new pool and a new head, for maps like the last stage's: `[B, C_i, H, W] -> [B, D'] -> [B, C]`."""
        raise NotImplementedError

    def trunk(self, stages: int) -> nn.Module:
        """The first `stages` stages."""
        raise NotImplementedError

    def branch(self, stages: int) -> nn.Module:
        """What comes after the first `stages` stages."""
        raise NotImplementedError

    def read(self, branch: Any, trunk_output: Any) -> tuple[Tensor, Tensor]:
        """What the head, which is the branch's last part, reads, and the logits. `-> [B, D], [B, C]`."""
        embedding = branch[:-1](trunk_output)
        return embedding, branch[-1](embedding)

    def split_map(self, trunk_output: Any) -> Tensor:
        """The last stage's map in what `trunk` returns; of ours that is the map."""
        last: Tensor = trunk_output
        return last

    def new_branch(self, stages: int, *, copy_init: bool) -> Self:
        """A network over the same first `stages` stages; its others start afresh, or are copies with a new head."""
        raise NotImplementedError


class Staged(Insides):
    """stages -> pool -> head. What `embed` returns is exactly what the head reads.

    `stages[i]` maps `[B, C_{i-1}, H, W]` to `[B, C_i, H_i, W_i]`; the stem belongs to the first stage. `channels[i]` is
    C_i. The pool has no parameters, so the state's keys are `stages.*` and `head.*`. A network from `models.create`
    carries the arguments that rebuild it as `spec`.
    """

    def __init__(
        self, stages: Iterable[nn.Module], channels: list[int], head: nn.Module, pool: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self._channels = list(channels)
        self.pool: nn.Module = pool or nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head: nn.Module = head

    @property
    def channels(self) -> list[int]:
        """C_i of every stage."""
        return self._channels

    @property
    def dim(self) -> int:
        """D, the width of what the head reads."""
        return int(getattr(self.head, "in_features", self.channels[-1]))

    def features(self, x: Tensor) -> list[Tensor]:
        """The output of every stage: one `[B, C_i, H_i, W_i]` each."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def embed(self, x: Tensor) -> Tensor:
        """`[B, D]`: the pooled features, exactly what the head reads."""
        out: Tensor = self.pool(self.features(x)[-1])
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Logits, `[B, C]`."""
        logits: Tensor = self.head(self.embed(x))
        return logits

    def look(self, x: Tensor) -> Look:
        """Maps, embedding and logits of `[B, ...]`."""
        maps = self.features(x)
        embedding = self.pool(maps[-1])
        return Look(maps, embedding, self.head(embedding))

    def reach(self, x: Tensor, stage: int) -> Tensor:
        """The output of one stage; what comes after it is not run."""
        for module in self.stages[: stage + 1]:
            x = module(x)
        return x

    def lower(self, stage: int) -> list[nn.Parameter]:
        """The parameters up to a stage."""
        return list(self.stages[: stage + 1].parameters())

    def exit(self) -> tuple[nn.Module, nn.Module]:
        """Copies of the pool and the head; the head starts afresh."""
        return copy.deepcopy(self.pool), fresh(copy.deepcopy(self.head))

    def trunk(self, stages: int) -> nn.Sequential:
        """The first `stages` stages."""
        return nn.Sequential(*self.stages[:stages])

    def branch(self, stages: int) -> nn.Sequential:
        """The other stages, the pool, the head."""
        return nn.Sequential(*self.stages[stages:], self.pool, self.head)

    def new_branch(self, stages: int, *, copy_init: bool) -> Self:
        """A network over the same first `stages` stages; its others start afresh, or are copies with a new head."""
        other = copy.deepcopy(self, {id(stage): stage for stage in self.stages[:stages]})
        for module in [other.head] if copy_init else [*other.stages[stages:], other.head]:
            fresh(module)
        return other


@contextmanager
def at_rest(net: nn.Module) -> Iterator[None]:
    """Look at a network and leave no trace: evaluation mode, no gradients, the generator and all modes as before."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]), evaluating([net]):
        yield


def fresh(module: nn.Module) -> nn.Module:
    """Give every parameter of `module` a new random start, in place, from the global generator; returns it.

    Uses each layer's own `reset_parameters` (nn.MultiheadAttention hides it), then for convolutions He et al. 2015:
    normal with std sqrt(2 / (k² · C_out)). A parameter whose layer has neither keeps its value.
    """
    for layer in module.modules():
        reset = getattr(layer, "reset_parameters", getattr(layer, "_reset_parameters", None))
        if callable(reset):
            reset()
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module

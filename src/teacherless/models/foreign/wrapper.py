"""A network somebody else wrote, as methods need it, and never edited.

`Foreign` stands around a network: it has the network's keys, reads logits from whatever it returns, and looks inside by
hooks. Stages are module paths. Where none are named, they are those that timm names of its networks, or the last
modules before the maps shrink; of a transformer, four of its blocks. Tokens are a map too: of an image a grid, of a
text a line.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import cached_property, partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from teacherless.batch import Input, as_input, leaves, mapped
from teacherless.errors import InputError, first_line
from teacherless.models.foreign import stages as tracing
from teacherless.models.foreign.split import Branch, Trunk, TrunkOutput, across, cut, one_graph_cannot, tensors
from teacherless.models.staged import Insides, Look, at_rest, fresh
from teacherless.network import call, read_logits

# Sides of the images a network is looked into with, tried in this order.
SIDES = (64, 32, 28, 16, 8, 96, 128, 224, 256, 299, 384)


def adapt(
    net: nn.Module,
    *,
    stages: str | Sequence[str] | None = None,
    example: Input | None = None,
    logits: int | str | None = None,
) -> Foreign:
    """Any module as the methods need it: logits out, and insides with names. `net` itself stays as it is.

    Args:
        net: maps a tensor, a tuple of them (`net(*x)`) or a dict (`net(**x)`) to logits `[B, C]`, to a tuple or list
            with them first, or to a dict or an object with `logits`.
        stages: the stages' module paths, "layer1+layer2+layer3" or a sequence; by default they are found.
        example: an input it can read: a tensor, a tuple or a dict; by default square images of a few sizes are tried.
        logits: which entry of the output they are, by place or name, where there can be doubt.

    Returns: a network with the keys of `net`, which shares its weights.
    Raises: InputError for a stage that is not there; when it is looked into, for stages that cannot be used.
    """
    inner = net.net if isinstance(net, Foreign) else net
    return Foreign(inner, stages=stages, example=example, logits=logits, spec=getattr(net, "spec", None))


class Structure(NamedTuple):
    """What one look into a network finds."""

    calls: dict[str, tracing.Call]  # by module path
    stages: list[str]
    head: str
    logits: torch.Size
    image: bool  # what it reads is [B, C, H, W]


class Foreign(Insides):
    """Somebody's network, untouched: logits out, its own keys, insides by module path. `net` is the network itself.

    Args:
        net: any module, see `adapt`.
        stages: module paths.
        example: an input it can read.
        logits: which entry of its output they are.
        size: height and width of images that it can read.
        spec: what rebuilds it.
        build: makes another one, freshly initialised.

    Raises: InputError for a stage that is not there.
    """

    grey_as_rgb = False  # images of one channel for a network that reads three

    def __init__(
        self,
        net: nn.Module,
        *,
        stages: str | Sequence[str] | None = None,
        example: Input | None = None,
        logits: int | str | None = None,
        size: tuple[int, int] | None = None,
        spec: dict[str, Any] | None = None,
        build: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        cls = type(net)
        self.spec = spec or {"architecture": None, "class": f"{cls.__module__}.{cls.__qualname__}"}
        self.name = self.spec["architecture"] or cls.__name__
        self.named = [part for part in stages.split("+") if part] if isinstance(stages, str) else list(stages or ())
        self._example, self._size, self._build = example, size, build
        self.logits = logits
        self.register_load_state_dict_pre_hook(_add_prefix)  # type: ignore[no-untyped-call]
        paths = [path for path, _ in net.named_modules()]
        for stage in self.named:
            if stage not in paths:
                near = difflib.get_close_matches(stage, paths, n=1, cutoff=0.3)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise InputError(f"stages: {self.name} has no module {stage!r}{hint} (it has {_outline(net)})")

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Logits, `[B, C]`. Raises: InputError if the network's output cannot be read as logits."""
        if self.grey_as_rgb:
            args = (args[0].expand(-1, 3, -1, -1),)
        return read_logits(self.net(*args, **kwargs), self.name, self.logits)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The network's own, with its own keys."""
        return self.net.state_dict(*args, **kwargs)

    @cached_property
    def structure(self) -> Structure:
        """What there is to know of its insides. Raises: InputError if it reads no example, or stages do not follow."""
        try:
            return self._look_inside()
        except AttributeError as error:  # a property that raises one would be reported as missing
            raise InputError(f"{self.name}: cannot look inside ({first_line(error)})") from error

    def _look_inside(self) -> Structure:
        calls, logits, image = self._trace()
        layers = [path for path, module in self.net.named_modules() if path in calls and tracing.is_layer(module)]
        if not layers:
            raise InputError(f"{self.name}: has no layers inside that could be a stage or a head")
        head = max(layers, key=lambda path: calls[path].ended)
        for stages in filter(None, (self.named, tracing.timm_stages(self.net))):
            with suppress(*() if self.named else (InputError,)):  # what timm names may not do
                return self._checked(Structure(calls, stages, head, logits, image))
        stages = tracing.default_stages(self.net, calls, head, logits[0])
        return self._checked(Structure(calls, stages, head, logits, image))

    @property
    def channels(self) -> list[int]:
        """C_i of every stage. Raises: InputError if none were named and none can be found."""
        if not self.structure.stages:
            outline = _outline(self.net)
            raise InputError(f"{self.name}: its stages are not known; name them: stages=a+b+c (it has {outline})")
        return [tracing.channels(_output_shape(self.structure, stage)) for stage in self.structure.stages]

    @property
    def dim(self) -> int:
        """D, the width of what the head reads."""
        shape = self.structure.calls[self.structure.head].input_shape
        assert shape is not None
        return shape[1:].numel()

    @property
    def maps(self) -> bool:
        """Whether every stage gives a map, or tokens that can be one."""
        shapes = [_output_shape(self.structure, stage) for stage in self.structure.stages]
        return all(len(shape) == 4 or (len(shape) == 3 and self._grid(shape[1]) is not None) for shape in shapes)

    def _grid(self, tokens: int) -> tuple[int, int, int] | None:
        """How many tokens (of class, registers) come before the grid, and its sides; a line where it is no image."""
        if not self.structure.image:
            return 0, tokens, 1
        known = getattr(self.net, "num_prefix_tokens", None)
        for before in range(6) if known is None else (known, *range(6)):  # at some stages before they join
            side = math.isqrt(max(0, tokens - before))
            if side and side**2 == tokens - before:
                return before, side, side
        return None

    def look(self, x: Input) -> Look:
        """Maps, embedding and logits of `[B, ...]`, in one pass."""
        one_graph_cannot()
        outputs: dict[str, Tensor] = {}
        embedding: list[Tensor] = []
        with ExitStack() as hooks:
            for stage in self.structure.stages:
                hooks.enter_context(self._on_exit(stage, partial(outputs.__setitem__, stage)))
            head = self.net.get_submodule(self.structure.head)
            hooks.enter_context(head.register_forward_pre_hook(lambda _, args: embedding.append(args[0])))
            logits = call(self, x)
        for stage in self.structure.stages:
            if stage not in outputs:
                raise self._not_run(stage)
        maps = [self._as_map(stage, outputs[stage]) for stage in self.structure.stages]
        return Look(maps, embedding[-1].flatten(1), logits)

    def reach(self, x: Input, stage: int) -> Tensor:
        """The output of one stage; what comes after it is not run."""
        path = self.structure.stages[stage]
        reached: list[Tensor] = []

        def stop(output: Tensor) -> None:
            reached.append(output)
            if not torch.compiler.is_exporting():  # its tracer would be lost; what nobody reads it drops
                raise _Reached

        with self._on_exit(path, stop), suppress(_Reached):
            call(self, x)
        if not reached:
            raise self._not_run(path)
        return self._as_map(path, reached[0])

    def lower(self, stage: int) -> list[nn.Parameter]:
        """The parameters up to a stage, and those of which it is not known when they are used."""
        upper = {id(p) for path in cut(self, stage + 1)[1] for p in self.net.get_submodule(path).parameters()}
        return [p for p in self.net.parameters() if id(p) not in upper]

    def exit(self) -> tuple[nn.Module, nn.Module]:
        """The mean over places and a linear layer."""
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return pool, nn.Linear(self.channels[-1], self.structure.logits[1])

    def trunk(self, stages: int) -> Trunk:
        """The first `stages` stages, and what a container of modules on both sides holds itself."""
        return Trunk(self, stages)

    def branch(self, stages: int) -> Branch:
        """The network after the first `stages` stages."""
        return Branch(self, stages)

    def read(self, branch: Branch, trunk_output: TrunkOutput) -> tuple[Tensor, Tensor]:
        """What the head reads, and the logits."""
        one_graph_cannot()
        embedding: list[Tensor] = []
        head = self.net.get_submodule(self.structure.head)
        with head.register_forward_pre_hook(lambda _, args: embedding.append(args[0])):
            logits = branch(trunk_output)
        return embedding[-1].flatten(1), logits

    def split_map(self, trunk_output: TrunkOutput) -> Tensor:
        """The last stage's map in what `trunk` returns."""
        return trunk_output.map

    def new_branch(self, stages: int, *, copy_init: bool) -> Self:
        """A network over the same first `stages` stages; its others start afresh, or are copies with a new head.

        Parameters that a container uses itself (a class token, positions) are shared, whenever they are used.
        """
        shared, own = cut(self, stages)
        theirs = {id(t) for path in own for t in tensors(self.net.get_submodule(path))}
        memo: dict[int, Any] = {id(t): t for t in tensors(self.net) if id(t) not in theirs}
        memo |= {id(module): module for module in map(self.net.get_submodule, shared)}
        other = copy.deepcopy(self, memo)
        for path in across(self, stages):  # one dict for all, so that a move is everyone's
            mine, its = self.net.get_submodule(path), other.net.get_submodule(path)
            its._parameters, its._buffers = mine._parameters, mine._buffers
        donor = self._build() if self._build else None
        for path in [self.structure.head] if copy_init else own:
            module = other.net.get_submodule(path)
            if donor is None:
                fresh(module)
            else:
                module.load_state_dict(donor.get_submodule(path).state_dict())
        return other

    # How it is looked into -------------------------------------------------------------------------------------------

    def _trace(self) -> tuple[dict[str, tracing.Call], torch.Size, bool]:
        """Run an example and note when every module ran; the shape of the logits; whether it was an image."""
        if isinstance(self.net, torch.jit.ScriptModule):
            raise InputError(f"{self.name}: is scripted, so it cannot be looked into; give the module it was made of")
        reason = ""
        for x in self._examples():
            calls: dict[str, tracing.Call] = {}
            try:
                with at_rest(self), tracing.watching(self.net, calls):
                    return calls, call(self, x).shape, next(leaves(x)).dim() == 4
            except InputError:
                raise
            except Exception as error:  # a foreign network may raise anything; another size may do
                reason = reason or first_line(error)
        show = "show it a batch that it can read: teacherless.adapt(net, example=x)"
        raise InputError(f"{self.name}: cannot look inside ({reason or 'what it reads is not known'}); {show}")

    def _examples(self) -> Iterator[Input]:
        like = next((p for p in self.net.parameters() if p.is_floating_point()), torch.empty(0))
        if self._example is not None:
            yield mapped(lambda x: x.to(like.device), as_input(self._example))
            return
        first = next((m.in_channels for m in self.net.modules() if isinstance(m, nn.Conv2d)), None)
        channels = self.spec.get("in_channels", first)
        if channels is not None:
            sizes = [(side, side) for side in SIDES]
            if self._size is not None:
                sizes.insert(1, self._size)
            for size in sizes:
                yield torch.zeros(2, channels, *size, dtype=like.dtype, device=like.device)

    def _checked(self, structure: Structure) -> Structure:
        """Raises: InputError for stages that are not run once, in order, before the head, with a tensor to show."""
        before, batch, what = -1, structure.logits[0], ""
        for stage in structure.stages:
            what = f"stages: {stage!r} of {self.name}"
            call = structure.calls.get(stage, tracing.Call(0))
            if call.count != 1:
                raise InputError(f"{what} runs {call.count} times; a stage must run once")
            shape = None if call.output_shape is None else list(call.output_shape)
            if shape is None or not 2 <= len(shape) <= 4 or shape[0] != batch:
                legal = "a tensor [B, C, H, W], [B, N, C] or [B, C]"
                raise InputError(f"{what} gives {shape} for a batch of {batch}; must be {legal}")
            if call.ended < before:
                raise InputError(f"{what} runs before the stage named before it")
            before = call.ended
        if structure.calls[structure.head].began < before:
            raise InputError(f"{what} holds its head, {structure.head!r}; a stage must end before it")
        return structure

    def _as_map(self, stage: str, output: Tensor) -> Tensor:
        if output.dim() == 3 and (grid := self._grid(output.shape[1])):
            before, height, width = grid
            return output[:, before:].transpose(1, 2).reshape(output.shape[0], -1, height, width)
        return output.permute(0, 3, 1, 2) if tracing.channels_last(_output_shape(self.structure, stage)) else output

    def _on_exit(self, path: str, use: Callable[[Tensor], None]) -> RemovableHandle:
        """Call `use` with what a module says, until the handle is removed."""

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensor = tracing.first_tensor(output)
            assert tensor is not None, path
            use(tensor)

        return self.net.get_submodule(path).register_forward_hook(hook)

    def _not_run(self, stage: str) -> InputError:
        return InputError(
            f"stages: {stage!r} of {self.name} was left out this time, as layer drop does; switch that off"
        )


class _Reached(Exception):
    """Nothing after a stage is wanted."""


def _output_shape(structure: Structure, stage: str) -> torch.Size:
    shape = structure.calls[stage].output_shape
    assert shape is not None
    return shape


def _outline(net: nn.Module) -> str:
    names = [name for name, _ in net.named_children()]
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "no modules inside"


def _add_prefix(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """The state's keys are the network's own; inside, it is a child."""
    for key in [key for key in state_dict if key.startswith(prefix)]:
        state_dict[f"{prefix}net.{key.removeprefix(prefix)}"] = state_dict.pop(key)

"""How a network is called, whatever it reads, and where its logits are, whatever it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from teacherless.batch import Batch, Input, leaves
from teacherless.errors import InputError


def call(net: nn.Module, x: Input) -> Tensor:
    """The logits `[B, C]` of `net(x)`, of `net(*x)` for a tuple and of `net(**x)` for a dict.

    Raises: InputError for a network that cannot be called so, and for an output without logits.
    """
    args, kwargs = arguments(x)
    try:
        output = net(*args, **kwargs)
    except (RuntimeError, TypeError) as error:
        if isinstance(error, TypeError) and "argument" in str(error):
            raise InputError(f"{type(net).__name__}: cannot be called with {_shown(x)}: {error}") from error
        if why := _misread(error, x):
            raise InputError(why) from error
        raise
    return read_logits(output, getattr(net, "name", type(net).__name__))


def check_ready(net: nn.Module) -> None:
    """Raises: InputError for parameters that have no values: of lazy layers, or on the meta device."""
    for key, parameter in net.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            why = "is of a lazy layer, which has no weights yet; run a batch through the network first"
        elif parameter.is_meta:
            hint = "give it some first: net.to_empty(device=...) and its weights"
            why = f"is on the meta device, which holds no weights; {hint}"
        else:
            continue
        raise InputError(f"{type(net).__name__}: {key} {why}")


@contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode it was in before, shared ones too."""
    before = {module: module.training for net in modules for module in net.modules()}
    try:
        for module in before:
            module.training = False
        yield
    finally:
        for module, training in before.items():
            module.training = training


@contextmanager
def calling(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Inside, these modules are computed so, not by their own `forward`; afterwards as before."""
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, own in before.items():
            del module.forward
            if own is not None:
                module.forward = own


def drawing_layer(net: nn.Module) -> str | None:
    """The path of the first layer that draws random numbers in training: dropout of any kind, drop path."""
    for path, layer in net.named_modules():
        kind = type(layer).__name__.lower()
        rate = getattr(layer, "p", getattr(layer, "drop_prob", 1.0))
        if isinstance(layer, nn.RReLU) or (("drop" in kind or "stochasticdepth" in kind) and rate > 0):
            return str(path)
    return None


def arguments(x: Input) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """An input as positional and keyword arguments."""
    if isinstance(x, Mapping):
        return (), dict(x)
    positional = x if isinstance(x, tuple) else (x,)
    return positional, {}


def packed(args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Input:
    """The reverse of `arguments`."""
    return kwargs or (args[0] if len(args) == 1 else args)


def read_logits(output: Any, name: str, which: int | str | None = None) -> Tensor:
    """The logits `[B, C]` in what a network returned: entry `which`, or where there can be no doubt.

    Raises: InputError if there are none, or several that might be.
    """
    logits = output if isinstance(output, Tensor) else _entry(output, name, which)
    if isinstance(logits, Tensor) and logits.dim() == 2:
        return logits
    shown = f"a tensor {list(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(output).__name__}"
    legal = "logits [B, classes], or a tuple, dict or object that has them first or as 'logits'"
    raise InputError(f"{name}: found {shown} as output; must be {legal}")


def _entry(output: Any, name: str, which: int | str | None) -> Any:
    if isinstance(which, int):
        return output[which]
    if which is not None:
        return output[which] if isinstance(output, Mapping) else getattr(output, which)
    keys = list(output) if isinstance(output, Mapping) else getattr(output, "_fields", ())
    aux = [key for key in keys if "aux" in str(key) and isinstance(_entry(output, name, key), Tensor)]
    if aux:
        why = "beside its logits, heads that no method would train"
        hint = "build it without them (aux_logits=False), or say adapt(net, logits='logits')"
        raise InputError(f"{name}: returns {', '.join(aux)} {why}; {hint}")
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, Mapping):
        return output.get("logits", next(iter(output.values())) if len(output) == 1 else None)
    if not isinstance(output, (tuple, list)):
        return None
    widths = [each.shape[1] for each in output if isinstance(each, Tensor) and each.dim() == 2]
    if len(set(widths)) > 1:
        several = f"several tensors [B, ...] that might be logits, of {widths} columns"
        raise InputError(f"{name}: returns {several}; say which: adapt(net, logits=0)")
    return next(iter(output), None)


def reason(error: Exception, batch: Batch) -> str | None:
    """What a step that failed says of the data, in one line; None if it is not the data."""
    text = str(error)
    if "more than 1 value per channel" in text:
        return "data: found a batch of 1 sample; batch norm needs 2 in training: DataLoader(..., drop_last=True)"
    if (batch.labels.dim() == 2 and "found shape" in text) or "smaller than num_classes" in text:
        return "data: labels or class_weights are of another number of classes than a network has outputs"
    if "out of bounds" in text and batch.labels.dim() == 1:
        return f"data: found class {int(batch.labels.max())}, for which a network has no output"
    return next(filter(None, (_misread(error, x) for x in batch.inputs)), None)


def _misread(error: Exception, x: Input) -> str | None:
    """Whether a network failed for the input's dtype, in one line."""
    kinds = {str(leaf.dtype) for leaf in leaves(x)}
    for kind, cure in (("torch.uint8", "x.float() / 255"), ("torch.float64", "x.float()")):
        if kind in kinds and isinstance(error, RuntimeError) and "type" in str(error):
            return f"data: found inputs of {kind}, which the network does not read; give it {cure}"
    return None


def _shown(x: Input) -> str:
    return ", ".join(x) if isinstance(x, Mapping) else f"{len(x) if isinstance(x, tuple) else 1} tensors"

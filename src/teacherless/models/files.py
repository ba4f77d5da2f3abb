"""A shipped student: a folder with `model.safetensors` (the plain architecture's own keys) and `config.json`."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.hooks import RemovableHandle

from teacherless import models
from teacherless.errors import InputError, names_code, unknown
from teacherless.files import disk, schemas
from teacherless.models.foreign import by_name
from teacherless.models.foreign.wrapper import Foreign

WEIGHTS, CONFIG = "model.safetensors", "config.json"  # what a student's folder holds
_LEGAL = ("num_classes", "in_channels")  # arguments of every network


class Student(NamedTuple):
    """A student read back: the network, and what it expects."""

    net: nn.Module
    config: dict[str, Any]


def save_student(folder: Path | str, net: nn.Module, about: dict[str, Any]) -> dict[str, str]:
    """Write one student. `about` says what the data was: classes, input size, channels, mean, std.

    Returns: the SHA-256 of each file. Raises: InputError if one cannot be written.
    """
    folder, net, tensors = Path(folder), unwrapped(net), own_state(net)
    nameless = {"architecture": None, "class": f"{type(net).__module__}.{type(net).__qualname__}"}
    spec = dict(getattr(net, "spec", nameless))
    config = described(net, {"architecture": spec.pop("architecture"), "arguments": spec, **about})
    return {
        WEIGHTS: disk.write(folder / WEIGHTS, save(tensors, metadata={"format": "pt"})),
        CONFIG: disk.write_json(folder / CONFIG, config),
    }


def described(net: nn.Module, config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as it is written: of a network of timm it is timm's own, too."""
    architecture = config["architecture"] or ""
    if architecture.startswith("timm/") and isinstance(net, Foreign):
        return {**config, **by_name.timm_config(net.net, config)}
    return dict(config)


def unwrapped(net: nn.Module) -> nn.Module:
    """The network inside what torch.compile, DataParallel and DistributedDataParallel put around it."""
    while inner := _inside(net):
        net = net.get_submodule(inner)
    return net


def own_state(net: nn.Module) -> dict[str, Tensor]:
    """A copy of its state on the CPU, under its own keys: without what was put around the network or its parts."""
    state = {key: value.detach().cpu().contiguous().clone() for key, value in net.state_dict().items()}
    for path, module in reversed(list(net.named_modules())):  # the innermost first
        if inner := _inside(module):
            outer = f"{path}." if path else ""
            state = {re.sub(f"^{re.escape(outer + inner)}[.]", outer, key): value for key, value in state.items()}
    return state


def state_hash(net: nn.Module) -> str:
    """The SHA-256 of a network's state: names and values."""
    digest = hashlib.sha256()
    for name, value in net.state_dict().items():
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _inside(module: nn.Module) -> str | None:
    """The child's name in a wrapper."""
    if "_orig_mod" in module._modules:
        return "_orig_mod"
    return "module" if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)) else None


def load_student(folder: Path | str, net: nn.Module | None = None, *, trust_imports: bool = False) -> Student:
    """Read one student; nothing is unpickled, and no code is imported that only the file names.

    Args:
        folder: what `save_student` wrote.
        net: a network to fill, for architectures without a name.
        trust_imports: an architecture `package.module:function` may be imported and called.

    Raises: InputError for anything that is not such a folder, and for tensors that do not fit the architecture.
    """
    folder = Path(folder)
    file, config = folder / WEIGHTS, read_config(folder)
    if not file.is_file():
        raise InputError(f"{folder}: is not a student: {file.name} is missing")
    if net is None:
        net = _build(config, folder / CONFIG, file, trust_imports)
    load_weights(net, file)
    return Student(net, dict(config))


def read_config(folder: Path) -> schemas.Config:
    """What a student's config.json says. Raises: InputError if there is none, or it is none."""
    config = schemas.read(folder / CONFIG, schemas.CONFIG)
    if config is None:
        raise InputError(f"{folder}: is not a student: {CONFIG} is missing")
    if config["architecture"] and "pretrained_cfg" in config:  # timm's own format
        config["architecture"] = f"timm/{config['architecture']}"
    return config


def _build(config: schemas.Config, where: Path, weights: Path, trusted: bool) -> nn.Module:
    """The network a config names, with its first values. What the file asks for costs nothing before it fits the
    weights: no code of its own runs, no server is asked, and the network is laid out without memory first.

    Raises: InputError.
    """
    architecture, arguments = config["architecture"], config["arguments"]
    if architecture is None:
        what = arguments.get("class", architecture)
        raise InputError(f"{where}: {what!r} is not one of our architectures; build it and give it as net=")
    if ":" in architecture and not trusted:
        raise names_code(where, architecture)
    if not trusted:
        schemas.check(arguments, schemas.ARGUMENTS, where)
    try:
        legal = {*_LEGAL, *(by_name.PLAIN if by_name.is_foreign(architecture) else models.options(architecture))}
        for name in arguments:
            if name not in legal and (not trusted or name in by_name.OURS):
                raise unknown(f"argument of {architecture}", name, legal)
        with _at_most(2 * len(_header(weights)) + 100), torch.device("meta"):
            layout = models.create(architecture, **arguments)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    check_shapes(layout, weights)
    return models.create(architecture, **arguments)


def _at_most(tensors: int) -> RemovableHandle:
    """Inside, a network that is built may have so many parameters: a depth of 10^7 ends here, not in the memory."""
    built = itertools.count(1)

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        if next(built) > tensors:
            raise InputError(f"its config asks for more than {tensors} tensors, its weights hold fewer")

    return register_module_parameter_registration_hook(count)


def load_weights(net: nn.Module, file: Path) -> None:
    """Fill `net` from a safetensors file, strictly. Raises: InputError naming the first tensor that does not fit."""
    check_shapes(net, file)
    try:
        with safe_open(str(file), framework="pt") as stored:
            tensors: dict[str, Tensor] = {key: stored.get_tensor(key) for key in net.state_dict()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: is not a readable safetensors file ({error})") from None
    net.load_state_dict(tensors)


def start_from(net: nn.Module, start: Student, classes: list[str]) -> str | None:
    """Give a network the weights of a student; those of the head only where the classes are the same.

    Returns: the key of a tensor that does not fit, of another architecture.
    """
    own, given = net.state_dict(), start.net.state_dict()
    linear = [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear)]
    head = tuple(f"{name}." for name in linear[-1:])
    other_classes = start.config["classes"] != classes
    for key in own.keys() | given.keys():
        fresh = other_classes and key.startswith(head)
        if key not in own or key not in given or (own[key].shape != given[key].shape and not fresh):
            return key
        if not fresh:
            own[key].copy_(given[key])
    net.pretrained = True  # type: ignore[assignment]
    return None


def check_shapes(net: nn.Module, file: Path) -> None:
    """Compare names, shapes and kinds of numbers, reading nothing but the header. Raises: InputError naming what does
    not fit."""
    own, stored = net.state_dict(), _header(file)
    for key in sorted(own.keys() ^ stored.keys()):
        what = f"has no {key!r}" if key in own else f"has {key!r}, which the network does not"
        raise InputError(f"{file}: is of another architecture: it {what}")
    for key, (shape, dtype) in stored.items():
        if shape != list(own[key].shape):
            raise InputError(f"{file}: is of another architecture: {key!r} is {shape}, not {list(own[key].shape)}")
        if own[key].is_floating_point() != ("F" in dtype):
            raise InputError(f"{file}: {key!r} holds {dtype}, which is no {own[key].dtype}")


def _header(file: Path) -> dict[str, tuple[list[int], str]]:
    """Shape and type ("F32") of every tensor in a file. Raises: InputError if it is not of safetensors."""
    try:
        with safe_open(str(file), framework="pt") as stored:
            slices = {key: stored.get_slice(key) for key in stored.keys()}  # noqa: SIM118, it is no dict
            return {key: (each.get_shape(), each.get_dtype()) for key, each in slices.items()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: is not a readable safetensors file ({error})") from None

"""A shipped student: a folder with `model.safetensors` (the plain architecture's own keys) and `config.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from teacherless import disk, models
from teacherless.errors import InputError

WEIGHTS, CONFIG = "model.safetensors", "config.json"  # what a student's folder holds


class Student(NamedTuple):
    """A student read back: the network, and what it expects."""

    net: nn.Module
    config: dict[str, Any]


def save_student(folder: Path, net: nn.Module, about: dict[str, Any]) -> dict[str, str]:
    """Write one student. `about` says what the data was: classes, input size, channels, mean, std.

    Returns: the SHA-256 of each file. Raises: InputError if one cannot be written.
    """
    spec = dict(
        getattr(net, "spec", {"architecture": None, "class": f"{type(net).__module__}.{type(net).__qualname__}"})
    )
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in net.state_dict().items()}
    config = {"architecture": spec.pop("architecture"), "arguments": spec, **about}
    return {
        WEIGHTS: disk.write(folder / WEIGHTS, save(tensors, metadata={"format": "pt"})),
        CONFIG: disk.write_json(folder / CONFIG, config),
    }


def load_student(folder: Path, net: nn.Module | None = None, *, trust_imports: bool = False) -> Student:
    """Read one student; nothing is unpickled, and no code is imported that only the file names.

    Args:
        folder: what `save_student` wrote.
        net: a network to fill, for architectures without a name.
        trust_imports: an architecture `package.module:function` may be imported and called.

    Raises: InputError for anything that is not such a folder, and for tensors that do not fit the architecture.
    """
    config_file, file = folder / CONFIG, folder / WEIGHTS
    for path in (config_file, file):
        if not path.is_file():
            raise InputError(f"{folder}: is not a student: {path.name} is missing")
    try:
        config = json.loads(config_file.read_text())
        architecture, arguments = config["architecture"], dict(config["arguments"])
        if isinstance(architecture, str) and not {"num_classes", "in_channels"} <= arguments.keys():
            raise KeyError("arguments need num_classes and in_channels")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{config_file}: is not a student's config ({type(error).__name__}: {error})") from None
    if net is None:
        if not isinstance(architecture, str):
            what = arguments.get("class", architecture)
            raise InputError(f"{config_file}: {what!r} is not one of our architectures; build it and give it as net=")
        if ":" in architecture and not trust_imports:
            raise InputError(f"{config_file}: names code to run, {architecture!r}; if you trust it, say "
                             "--trust-imports (in Python: trust_imports=True)")  # fmt: skip
        with torch.device("meta"):  # absurd shapes are refused before they take memory
            check_shapes(models.create(architecture, **arguments), file)
        net = models.create(architecture, **arguments)
    load_weights(net, file)
    return Student(net, config)


def load_weights(net: nn.Module, file: Path) -> None:
    """Fill `net` from a safetensors file, strictly. Raises: InputError naming the first tensor that does not fit."""
    check_shapes(net, file)
    try:
        with safe_open(str(file), framework="pt") as found:
            tensors: dict[str, Tensor] = {key: found.get_tensor(key) for key in net.state_dict()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: is not a readable safetensors file ({error})") from None
    net.load_state_dict(tensors)


def check_shapes(net: nn.Module, file: Path) -> None:
    """Compare names and shapes, reading nothing but the header. Raises: InputError naming what does not fit."""
    own = net.state_dict()
    try:
        with safe_open(str(file), framework="pt") as found:
            keys = set(found.keys())
            shapes = {key: found.get_slice(key).get_shape() for key in own.keys() & keys}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: is not a readable safetensors file ({error})") from None
    for key in sorted(own.keys() ^ keys):
        what = f"has no {key!r}" if key in own else f"has {key!r}, which the network does not"
        raise InputError(f"{file}: is of another architecture: it {what}")
    for key, shape in shapes.items():
        if shape != list(own[key].shape):
            raise InputError(
                f"{file}: is of another architecture: {key!r} is {shape}, the network's {list(own[key].shape)}"
            )

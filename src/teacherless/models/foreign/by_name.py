"""Somebody else's networks, by name: `timm/NAME`, `torchvision/NAME`, `package.module:function`.

Extras are imported when a name asks for them. What comes back is the untouched network in `Foreign`.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from teacherless.errors import InputError, extra, first_line
from teacherless.models.foreign.wrapper import Foreign

# What a file may ask of a network of timm or torchvision: sizes and kinds of layers, nothing that is fetched or read.
PLAIN = {
    "stages", "act_layer", "aux_logits", "depth", "depths", "drop_path_rate", "drop_rate", "dropout", "embed_dim",
    "global_pool", "groups", "image_size", "img_size", "mlp_ratio", "norm_layer", "num_heads", "patch_size",
    "stem_width", "stochastic_depth_prob", "width_mult", "width_per_group", "window_size", "zero_init_residual",
}  # fmt: skip
OURS = {"pretrained", "seed", "size"}  # said when a network is first made, by nobody who reads one back


def is_foreign(architecture: str) -> bool:
    """Whether a name is of somebody else's network."""
    return "/" in architecture or ":" in architecture


def create(
    architecture: str,
    *,
    num_classes: int,
    in_channels: int,
    pretrained: bool = False,
    stages: str | Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    **kwargs: Any,
) -> Foreign:
    """A network by its name; arguments as of `models.create`. Draws from the global generator.

    Raises: InputError, in one line, for a name nobody knows, an extra that is missing or broken, arguments that would
        load weights, a factory that raises or returns no module, and weights that cannot be had.
    """
    for key in kwargs:
        if any(word in key for word in ("pretrained", "weights", "checkpoint", "cache", "file", "url")):
            raise InputError(f"{architecture}: found {key}={kwargs[key]!r}; weights come by --pretrained only")
    prefix, _, name = architecture.partition("/")
    if ":" in architecture:
        factory, name = _imported, architecture
    elif prefix in FACTORIES:
        factory = FACTORIES[prefix]
    else:
        raise InputError(f"found {architecture!r}; must be timm/NAME, torchvision/NAME or package.module:function")
    build = partial(_build, architecture, partial(factory, name, num_classes, in_channels, **kwargs))
    given = {} if stages is None else {"stages": stages if isinstance(stages, str) else list(stages)}
    spec = {"architecture": architecture, "num_classes": num_classes, "in_channels": in_channels, **given, **kwargs}
    net = Foreign(build(pretrained), stages=stages, size=size, spec=spec, build=partial(build, False))
    net.pretrained = pretrained
    net.grey_as_rgb = prefix == "torchvision" and in_channels == 1
    return net


def _build(architecture: str, factory: Callable[[bool], nn.Module], pretrained: bool) -> nn.Module:
    """Call a factory. Raises: InputError that shows what it raised."""
    try:
        net = factory(pretrained)
    except InputError:
        raise
    except Exception as error:
        what = "cannot be had with pretrained weights" if pretrained else "cannot be built"
        raise InputError(f"{architecture}: {what}: {first_line(error)}") from error
    if not isinstance(net, nn.Module):
        raise InputError(f"{architecture}: found a {type(net).__name__}; the function must return a torch.nn.Module")
    return net


def _timm(name: str, classes: int, channels: int, pretrained: bool, **kwargs: Any) -> nn.Module:
    timm = extra("timm", f"timm/{name}")
    if ":" in name or not timm.is_model(name.split(".")[0]):
        raise _nobody_knows("timm", name, timm.list_models())
    net: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=classes, in_chans=channels, **kwargs)
    return net


def _torchvision(name: str, classes: int, channels: int, pretrained: bool, **kwargs: Any) -> nn.Module:
    zoo = extra("torchvision", f"torchvision/{name}").models
    if name not in zoo.list_models(module=zoo):
        raise _nobody_knows("torchvision", name, zoo.list_models(module=zoo))
    if channels not in (1, 3):
        raise InputError(f"torchvision/{name}: found images of {channels} channels; it reads 3 (or 1, repeated)")
    if name in ("googlenet", "inception_v3"):  # no method would train their auxiliary heads
        kwargs.setdefault("aux_logits", False)
    net: nn.Module = zoo.get_model(name, weights=None, num_classes=classes, **kwargs)
    if pretrained:  # not by `weights=`: torchvision refuses other classes than the weights'
        own = net.state_dict()
        theirs = zoo.get_model_weights(name).DEFAULT.get_state_dict(progress=False, check_hash=True, weights_only=True)
        fitting = {key: value for key, value in theirs.items() if key in own and value.shape == own[key].shape}
        net.load_state_dict({**own, **fitting})
    return net


def reads(architecture: str) -> dict[str, Any]:
    """How the pretrained weights of `timm/NAME` and `torchvision/NAME` want their images: size, fit, mean and std."""
    prefix, _, name = architecture.partition("/")
    if prefix == "timm" and (cfg := extra("timm", architecture).get_pretrained_cfg(name)):
        return {"size": cfg.input_size[-1], "mean": cfg.mean, "std": cfg.std, "fit": "crop"}
    if prefix == "torchvision":
        with contextlib.suppress(ValueError):
            change = extra("torchvision", architecture).models.get_model_weights(name).DEFAULT.transforms()
            return {"size": change.crop_size[0], "mean": change.mean, "std": change.std, "fit": "crop"}
    return {}


OF_ARCHITECTURE = ("fixed_input_size", "first_conv", "classifier")  # what timm knows of a network, whatever its weights


def timm_config(net: nn.Module, config: Mapping[str, Any]) -> dict[str, Any]:
    """What timm's own config.json says of a network of its own, so that `timm.create_model("local-dir:FOLDER")` builds
    it and reads images as it was trained to.

    Args:
        net: timm's network.
        config: ours of it; what it says of the data goes over.
    """
    arguments, known = dict(config["arguments"]), dict(net.pretrained_cfg)  # type: ignore[arg-type]
    classes, channels = arguments.pop("num_classes"), arguments.pop("in_channels")
    arguments.pop("stages", None)
    size = config.get("input_size", known["input_size"][1:])
    fit = config.get("fit", "squash")
    how = {
        "mean": config.get("mean"),
        "std": config.get("std"),
        "interpolation": "bilinear",
        "label_names": config.get("classes"),
        "crop_mode": "squash" if fit == "squash" else "center",
        "crop_pct": 0.875 if fit == "crop-0.875" else 1.0,
    }
    own = {key: known.get(key) for key in OF_ARCHITECTURE}
    own |= {key: value for key, value in how.items() if value is not None}
    return {
        "architecture": config["architecture"].removeprefix("timm/").partition(".")[0],
        "num_classes": classes,
        "num_features": net.num_features,
        "model_args": {"in_chans": channels, **arguments},
        "pretrained_cfg": {**own, "num_classes": classes, "input_size": [channels, *size], "custom_load": False},
    }


def _imported(path: str, classes: int, channels: int, pretrained: bool, **kwargs: Any) -> nn.Module:
    """`package.module:function`, called with what it takes of num_classes, in_channels and pretrained."""
    module, _, name = path.partition(":")
    here = os.getcwd()  # as `python -m` does, and a console script does not
    sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module), name)
    finally:
        sys.path.remove(here)
    takes = inspect.signature(function).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    offered = {"num_classes": classes, "in_channels": channels, "pretrained": pretrained}
    if pretrained and not anything and "pretrained" not in takes:
        raise InputError(f"{path}: takes no argument pretrained, so --pretrained has no effect")
    net: nn.Module = function(**{key: value for key, value in offered.items() if anything or key in takes}, **kwargs)
    return net


FACTORIES: dict[str, Callable[..., nn.Module]] = {"timm": _timm, "torchvision": _torchvision}


def _nobody_knows(package: str, name: str, known: Sequence[str]) -> InputError:
    near = ", ".join(difflib.get_close_matches(name, known, n=3)) or "nothing like it"
    return InputError(f"unknown model {package}/{name}; of {len(known)}, {package} has {near}")

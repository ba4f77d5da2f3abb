"""What `--small` shrinks, so that any row of a paper's table runs anywhere in seconds, every piece of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SAMPLES = 64  # of each split
STEPS, BATCH = 20, 8
SIDE = 64  # pixels of images that are resized anyway
NARROWER = {  # the same kind of network, narrower or shorter
    "wrn-28-10": "wrn-16-2",
    "wrn-16-8": "wrn-16-2",
    "densenet-bc-190-40": "densenet-bc-40-12",
    "resnet110": "resnet14",
    "resnet56": "resnet14",
    "resnet50": "resnet18",
    "resnet110-bottleneck": "resnet14-bottleneck",
    "timm/mobilenetv1_100": "mobilenet",
    "timm/mobilenetv2_100": "mobilenet",
    "timm/resnet50": "resnet18",
    "timm/vit_base_patch16_384": "resnet18",
    "timm/vit_base_patch16_224": "resnet18",
    "timm/vit_tiny_patch16_224": "resnet18",
    "timm/deit3_small_patch16_224": "resnet18",
}


def student(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A network's name and arguments, smaller."""
    smaller = dict(arguments)
    if name.startswith("resnext"):
        smaller["base_width"] = 1
    if name.startswith("timm/"):
        smaller = {"stem": "imagenet"}
    return {"name": NARROWER.get(name, name), "arguments": smaller}


def settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings, smaller."""
    resized = values.get("img_size") or values.get("data") in ("imagenet", "market1501")
    sizes = {"img_size": min(SIDE, values.get("img_size", SIDE))} if resized else {}
    kept = {key: value for key, value in values.items() if key not in ("epochs", "pretrained", "train_samples")}
    return {**kept, **sizes, "steps": STEPS, "batch_size": min(BATCH, values.get("batch_size", BATCH)), "workers": 0}

"""What a stranger does with an exported folder: read it, with nothing of ours, and run it.

`export` starts this file as a process of its own, in which teacherless cannot be imported.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Predict = Callable[[Tensor], Tensor]


@torch.no_grad()
def run(predict: Predict, images: Tensor, sizes: list[int]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Logits `[N, C]` in batches of each size, and the milliseconds that an image took: the median batch's."""
    logits, ms = {}, {}
    for size in sizes:
        parts, seconds = [], []
        for batch in torch.split(images, size):
            began = time.perf_counter()
            parts.append(predict(batch))
            seconds.append((time.perf_counter() - began) / len(batch))
        logits[str(size)] = torch.cat(parts)
        ms[str(size)] = 1000 * median(seconds)
    return logits, ms


def _program(folder: Path, work: Path, prefix: str) -> Predict:
    return torch.export.load(folder / "model.pt2").module()


def _onnx(folder: Path, work: Path, prefix: str) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    path = str(folder / "model.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _weights(folder: Path, work: Path, prefix: str) -> Predict:
    """timm builds its own networks; of others the program comes from `work`/skeleton.pt2, where every weight is 0."""
    if "pretrained_cfg" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        import timm

        net: Predict = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        return net
    program = torch.export.load(work / "skeleton.pt2").module()
    weights = load_file(folder / "model.safetensors")
    program.load_state_dict({f"{prefix}{key}": value for key, value in weights.items()})
    return program


LOAD = {"torch": _program, "onnx": _onnx, "safetensors": _weights}


def main(folder: str, format: str, work: str, sizes: str, threads: str, prefix: str) -> None:
    """Read `work`/images.safetensors, run the exported network on it, write its logits there; times go to stdout."""
    torch.set_num_threads(int(threads))
    there = Path(work)
    predict = LOAD[format](Path(folder), there, prefix)
    logits, ms = run(predict, load_file(there / "images.safetensors")["images"], json.loads(sizes))
    save_file(logits, there / "logits.safetensors")
    print(json.dumps(ms))


if __name__ == "__main__":
    sys.modules["teacherless"] = None  # type: ignore[assignment]
    main(*sys.argv[1:])

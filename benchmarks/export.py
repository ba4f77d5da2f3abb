"""Every network of ours through every format of export and back: writes docs/export.md; of some, their rows in it.

    pip install 'teacherless[onnx]'
    python benchmarks/export.py [NETWORK]...

The images are scikit-learn's digits, written as PNG files and read at the smallest size, from 8x8, that a network
reads. Weights are random, batch norm's statistics those of noise. A cell: the largest difference of two logits in
batches of 1, 7 and 64, or the one line that is said instead; then megabytes, and milliseconds an image takes alone.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

import teacherless as tl
from teacherless import models
from teacherless.models.files import save_student
from teacherless.runs.export import IMAGES, export

PAGE = Path(__file__).parent.parent / "docs" / "export.md"
FORMATS = ("safetensors", "torch", "onnx")
STATS = {"mean": [0.5] * 3, "std": [0.25] * 3}


def photos(folder: Path) -> Path:
    pictures, labels = load_digits(return_X_y=True)
    for i, (picture, label) in enumerate(zip(pictures[:600], labels[:600], strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        levels = (picture.reshape(8, 8) * 15.9).astype(np.uint8)
        Image.fromarray(levels).save(folder / str(label) / f"{i}.png")
    return folder


def smallest(net: torch.nn.Module) -> int:
    for side in (8, 16, 32, 64, 96, 128, 224):
        try:
            models.check_input(net, (side, side), 3)
            return side
        except tl.InputError:
            continue
    raise AssertionError


def student(name: str, folder: Path) -> tuple[Path, int]:
    net = tl.create(name, num_classes=10, seed=0)
    side = smallest(net)
    net.train()
    with torch.no_grad():
        for seed in range(20):  # batch norm's statistics
            net(torch.randn(16, 3, side, side, generator=torch.Generator().manual_seed(seed)))
    about = {
        "classes": [str(i) for i in range(10)],
        "input_size": [side, side],
        "channels": 3,
        "fit": "squash",
        **STATS,
    }
    save_student(folder, net, about)
    return folder, side


def row(name: str, data: Path, work: Path) -> str:
    folder, side = student(name, work / "student")
    cells = [name, f"{side}x{side}"]
    for format in FORMATS:
        try:
            found = export(
                folder, format=format, dynamic_batch=format != "safetensors", data=str(data), out=work / format
            )
            assert found.images == IMAGES and list(found.ms) == ["1", "7", "64"]
            cells.append(f"{found.difference:.1g}; {found.size / 1e6:.1f} MB; {found.ms['1']:.2f} ms")
        except tl.InputError as error:
            cells.append(str(error))
    print("| " + " | ".join(cells) + " |", flush=True)
    return "| " + " | ".join(cells) + " |\n"


def rows_of_page() -> dict[str, str]:
    lines = PAGE.read_text(encoding="utf-8").splitlines() if PAGE.exists() else []
    rows = {line.split("|")[1].strip(): f"{line}\n" for line in lines if line.startswith("| ")}
    return {name: row for name, row in rows.items() if name in models.MODELS}


def write_page(rows: dict[str, str]) -> None:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "onnx", "onnxscript", "onnxruntime"))
    rest = ", ".join(name for name in models.MODELS if name not in rows)
    PAGE.write_text(
        "# Every network, every format, and back\n\n"
        f"Written by `python benchmarks/export.py`: {IMAGES} images of digits through the network here, and through\n"
        "the exported file in a process without teacherless. A cell: the largest difference of two logits in batches\n"
        "of 1, 7 and 64; the file's size; what an image takes alone, on one thread of a busy CPU.\n\n"
        f"{versions}; Python {sys.version.split()[0]}. Not measured: {rest or 'none'}.\n\n"
        f"| network | images | {' | '.join(FORMATS)} |\n|---|---|---|---|---|\n"
        f"{''.join(rows[name] for name in models.MODELS if name in rows)}",
        encoding="utf-8",
    )


def main() -> None:
    torch.set_num_threads(1)
    rows = rows_of_page()
    with tempfile.TemporaryDirectory() as folder:
        data = photos(Path(folder) / "digits")
        for name in sys.argv[1:] or models.MODELS:
            with tempfile.TemporaryDirectory() as work:
                rows[name] = row(name, data, Path(work))
            write_page(rows)


if __name__ == "__main__":
    main()

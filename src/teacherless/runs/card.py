"""A model card, README.md of a student's folder: what the network is, reads and is worth, and how it was trained."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from teacherless.errors import InputError
from teacherless.files import disk, schemas
from teacherless.models.files import read_config
from teacherless.runs.merge import command_of

NAME = "README.md"
FITS = {"squash": "resized to {} as a whole", "crop": "their middle square resized to {}",
        "crop-0.875": "the middle 7/8 of their middle square resized to {}"}  # fmt: skip
NUMBERS = {"top1": "top-1 %", "balanced": "balanced accuracy %", "nll": "NLL, nats", "ece": "ECE %",
           "map": "mAP %", "rank1": "rank-1 %"}  # fmt: skip
USE = {
    "ours": 'import teacherless\n\nnet = teacherless.load_student(".").net.eval()\nlogits = net(images)',
    "timm": 'import timm\n\nnet = timm.create_model("local-dir:.", pretrained=True).eval()\nlogits = net(images)',
    "torch": 'import torch\n\nprogram = torch.export.load("model.pt2").module()\nlogits = program(images)',
    "onnx": 'import onnxruntime\n\nsession = onnxruntime.InferenceSession("model.onnx")\n'
            '(logits,) = session.run(["logits"], {"images": images})  # a NumPy array',
}  # fmt: skip


def write_all(folder: Path) -> None:
    """The card of every student in a finished run's folder. Raises: InputError."""
    for name in schemas.staying(schemas.summary(folder) or {"students": {}}):
        student = folder / "students" / name
        disk.write(student / NAME, text(folder, name, dict(read_config(student))))


def text(folder: Path | None, name: str, config: Mapping[str, Any]) -> str:
    """The card of one network, or of the ensemble.

    Args:
        folder: of its run, where that is known.
        name: the student's, or "ensemble".
        config: what its config.json says.
    """
    summary = schemas.summary(folder) if folder else None
    what = (config["architecture"] or name).removeprefix("timm/")
    head = ["---", f"library_name: {'timm' if 'pretrained_cfg' in config else 'pytorch'}",
            "pipeline_tag: image-classification", "tags: [teacherless]", "---", ""]  # fmt: skip
    if folder is None or summary is None:
        return "\n".join([*head, f"# {what}", "", *_use(config)])
    title = f"# {what}, trained by {summary['method']} on {_data(summary)}"
    return "\n".join([*head, title, "", *_which(name, summary), *_use(config), *_worth(folder, name, summary),
                      *_training(folder, summary)])  # fmt: skip


def _data(summary: Mapping[str, Any]) -> str:
    return summary.get("data") or "unknown data"


def _which(name: str, summary: Mapping[str, Any]) -> Iterator[str]:
    others = len(summary["students"])
    if name == "ensemble":
        yield f"All {others} networks that were trained together, as one.\n"
    elif others > 1:
        yield f"`{name}`, one of {others} networks that were trained together" + (
            " and the one that validation chose.\n" if name == summary["chosen"] else ".\n")  # fmt: skip


def _use(config: Mapping[str, Any]) -> Iterator[str]:
    how = config.get("export", {})
    kind = "timm" if "pretrained_cfg" in config else "ours"
    kind = how["format"] if how.get("format") in ("torch", "onnx") else kind
    yield f"## Use\n\n```python\n{USE[kind]}\n```\n"
    if not {*schemas.OF_DATA} <= {*config, "fit"}:  # trained from Python, or a part is lost
        return
    height, width = config["input_size"]
    colours = "gray" if config["channels"] == 1 else "RGB"
    fit = FITS[config.get("fit", "squash")].format(f"{height}x{width}")
    if how.get("images", "").startswith("uint8"):
        scaled = f"as they are: uint8 `[B, {height}, {width}, {config['channels']}]`"
    else:
        mean, std = (", ".join(f"{value:.4f}" for value in config[key]) for key in ("mean", "std"))
        scaled = (f"divided by 255, minus mean ({mean}), divided by std ({std}), as in config.json: float32 "
                  f"`[B, {config['channels']}, {height}, {width}]`")  # fmt: skip
    batch = " B is 1." if how.get("batch") == 1 else ""
    yield f"Images are {colours}, {fit}, {scaled}.{batch}"
    yield f"Logits `[B, {len(config['classes'])}]` are of these classes:\n"
    yield f"```json\n{json.dumps(config['classes'], ensure_ascii=False)}\n```\n"


def _worth(folder: Path, name: str, summary: Mapping[str, Any]) -> Iterator[str]:
    row = (summary["ensemble"] if name == "ensemble" else summary["students"][name]) or {}
    tested = {label: row[f"test_{key}"] for key, label in NUMBERS.items() if row.get(f"test_{key}") is not None}
    yield "## What it is worth\n\n| | |\n|---|---|"
    if row.get("val_top1") is not None:
        yield f"| validation: top-1 % | {row['val_top1']:.2f} |"
    yield from (f"| test: {label} | {value:.2f} |" for label, value in tested.items())
    yield f"\nOne run, of seed {summary.get('seed', 'unknown')}."
    if compared := _compared(folder):
        yield compared
    yield ""


def _compared(folder: Path) -> str | None:
    """What the comparison found that the run is a cell of; None where there is none, or it is not known yet."""
    try:
        table = schemas.read(folder.resolve().parent.parent / "compare.json", schemas.COMPARED)
    except InputError:
        return None
    row = folder.resolve().name.rpartition("-s")[0]
    if table is None or row not in table["methods"]:
        return None
    compared = table["methods"][row]
    numbers = compared["student"]
    spread = "" if numbers.get("std") is None else f" ± {numbers['std']:.2f}"
    verdict = f" {compared['verdict']}; {table['caveat']}." if compared["verdict"] else ""
    return f"One network of this kind, over {numbers['seeds']} seeds: {numbers['mean']:.2f}{spread} on test.{verdict}"


def _training(folder: Path, summary: Mapping[str, Any]) -> Iterator[str]:
    stored = schemas.stored(folder)
    assert stored is not None
    data: dict[str, Any] = dict(stored["data"])
    settings = stored["settings"]
    images = ", ".join(f"{data[part]} {part}" for part in ("train", "val", "test") if data.get(part))
    about = {"method": summary["method"], "data": f"{_data(summary)}: {images} images", "fingerprint of the data":
             data.get("fingerprint"), "seed": summary.get("seed"), "epochs": summary["epochs"],
             **{f"version of {key}": value for key, value in stored.get("versions", {}).items()}}  # fmt: skip
    yield "## How it was trained\n\n| | |\n|---|---|"
    yield from (f"| {key} | {value} |" for key, value in about.items() if value is not None)
    if "method" in settings:
        yield f"\n```\n{command_of(['train', settings['method']], settings)}\n```"
    yield ""

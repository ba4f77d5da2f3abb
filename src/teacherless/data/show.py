"""A contact sheet: what a network sees of a source's training images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from teacherless.data.augment.distort import Augment
from teacherless.data.loader import Loader
from teacherless.data.sources import Source
from teacherless.errors import InputError
from teacherless.files import disk
from teacherless.method import Wants

ROWS, COLUMNS = 8, 4  # of images, each with two views
SIDE = 72  # pixels that an image is shown at, at least
GAP, LINE = 8, 14  # pixels between images, and of the class's name under them


def contact_sheet(source: Source, path: Path, *, seed: int = 0) -> None:
    """Write a picture of the first training batch, each image as it is, two views of it, its class under them.

    Args:
        source: its `augment` is what is shown.
        path: of the picture; its suffix says the format.
        seed: of the order and the distortions.

    Raises: InputError for a picture that cannot be written.
    """
    count = min(ROWS * COLUMNS, len(source.train))
    make: dict[str, Any] = {"batch_size": count, "mean": source.mean, "std": source.std, "seed": seed}
    plain = next(Loader(source.train, augment=Augment(), **make).epoch(0))  # the same order, undistorted
    loader = Loader(source.train, augment=source.augment, classes=len(source.classes), wants=Wants(views=2), **make)
    views = torch.stack([*plain.inputs, *next(loader.epoch(0)).inputs], 1)  # [N, 3, C, H, W]
    mean, std = (torch.tensor(value)[:, None, None] for value in (source.mean, source.std))
    pixels = ((views * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 1, 3, 4, 2)
    scale = -(-SIDE // source.size[0])
    height, width = (side * scale for side in source.size)
    wide, high = 3 * (width + 1) + GAP, height + LINE + GAP  # of an image with its views
    sheet = Image.new("RGB", (COLUMNS * wide, -(-count // COLUMNS) * high), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (each, label) in enumerate(zip(pixels, plain.labels.tolist(), strict=True)):
        x, y = i % COLUMNS * wide, i // COLUMNS * high
        for view, image in enumerate(each):
            shown = Image.fromarray(image.squeeze(-1).numpy()).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(shown, (x + view * (width + 1), y))
        pen.text((x, y + height + 1), source.classes[label][: wide // 7], fill="black")
    part = path.with_name(disk.PART + path.name)
    try:
        sheet.save(part)
        part.replace(path)
    except (OSError, ValueError) as error:
        part.unlink(missing_ok=True)
        raise InputError(f"--show: cannot write {str(path)!r}: {getattr(error, 'strerror', None) or error}") from error

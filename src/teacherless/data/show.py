"""A contact sheet: what a network sees of a source's training images."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from teacherless import disk
from teacherless.data.loader import Loader
from teacherless.data.sources import Source
from teacherless.errors import InputError
from teacherless.method import Wants

ROWS, COLUMNS = 6, 6  # pairs of views
SIDE = 72  # pixels that an image is shown at, at least
GAP = 6


def contact_sheet(source: Source, path: Path, *, seed: int = 0) -> None:
    """Write a picture of the first training batch, two views of each image side by side.

    Args:
        source: its `augment` is what is shown.
        path: of the picture; its suffix says the format.
        seed: of the order and the distortions.

    Raises: InputError for a picture that cannot be written.
    """
    count = min(ROWS * COLUMNS, len(source.train))
    loader = Loader(source.train, batch_size=count, mean=source.mean, std=source.std, seed=seed, wants=Wants(views=2),
                    augment=source.augment, classes=len(source.classes))  # fmt: skip
    views = torch.stack(next(iter(loader)).inputs, 1)  # [N, 2, C, H, W]
    mean, std = (torch.tensor(value)[:, None, None] for value in (source.mean, source.std))
    pixels = ((views * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 1, 3, 4, 2)
    scale = -(-SIDE // source.size[0])
    height, width = (side * scale for side in source.size)
    rows = -(-count // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (2 * width + 2 * GAP), rows * (height + GAP)), "white")
    for i, pair in enumerate(pixels):
        row, column = divmod(i, COLUMNS)
        for view, image in enumerate(pair):
            shown = Image.fromarray(image.squeeze(-1).numpy()).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(shown, (column * (2 * width + 2 * GAP) + view * (width + 1), row * (height + GAP)))
    part = path.with_name(disk.PART + path.name)
    try:
        sheet.save(part)
        part.replace(path)
    except (OSError, ValueError) as error:
        part.unlink(missing_ok=True)
        raise InputError(f"--show: cannot write {str(path)!r}: {getattr(error, 'strerror', None) or error}") from error

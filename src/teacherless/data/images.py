"""One image file to one array: what a file's mode means, and what is done about it, is decided here."""

from __future__ import annotations

import math
import stat
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Image import Transpose

SUFFIXES = frozenset(
    [".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif"]
)
LARGE = 2**25  # pixels, decoded: such images are read one at a time, in bands
BAND = 2**22  # pixels
_ALONE = threading.Lock()
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}  # by EXIF orientation
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class Unreadable(ValueError):
    """A file that is not an image, or only the beginning of one; the text says why."""


def quietly() -> warnings.catch_warnings[None]:
    """No warnings of the decoder's (large images, odd EXIF): what cannot be read is said by name, the rest is fine.

    To be entered once around many reads, by one thread: Python's warning filters belong to the process.
    """
    return warnings.catch_warnings(action="ignore")


Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
Cut = Callable[[int, int], Box]  # of an image of so many pixels (width, height): which part is read


def read(path: Path, size: tuple[int, int], channels: int, cut: Cut | None = None) -> Pixels:
    """One image as uint8 `[H, W, C]`, `C` = 1 (gray) or 3 (RGB).

    Turned as its EXIF orientation says; of several frames the first; palettes looked up; transparent parts white; CMYK
    and other colour spaces converted; 16-bit gray scaled to 8 (never clipped). Resized as a whole to `H x W` with
    antialiasing, so nothing is cut off and the aspect ratio is not kept; or only the part that `cut` says.

    Raises: Unreadable for a file that is empty, cut, not an image, larger than 179 million pixels (a decompression
    bomb), or of float pixels, which have no known range.
    """
    height, width = size
    mode = "L" if channels == 1 else "RGB"
    try:
        with Image.open(_regular(path)) as image:
            # A JPEG can be decoded at 1/2, 1/4, 1/8 of its size for a fraction of the time; twice the target is plenty.
            share = _share(cut(*image.size), image.size) if cut else 1.0
            image.draft(None, (int(2 * width / share), int(2 * height / share)))
            large = math.prod(image.size) > LARGE
            with _ALONE if large else nullcontext():
                image.load()
                factor = int(share * min(image.size) / (2 * max(size))) if large else 1
                whole = _reduced(image, mode, factor) if factor > 1 else colours(image, mode)
                turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
            if turn is not None:
                whole = whole.transpose(turn)
            box = cut(*whole.size) if cut else None
            small = whole.resize((width, height), Image.Resampling.BILINEAR, box, reducing_gap=2.0)
    except Exception as error:  # a damaged file can raise anything: OSError, SyntaxError, struct.error, zlib.error, …
        raise Unreadable(_why(path, error)) from error
    return np.asarray(small).reshape(height, width, channels)


def middle(share: float) -> Cut:
    """The middle square, with a share of the shorter side."""

    def cut(width: int, height: int) -> Box:
        side = share * min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side

    return cut


# How a whole photo becomes a square: all of it, aspect ratio not kept; its middle; what evaluation on ImageNet reads
# (224 of 256 pixels).
FITS: dict[str, Cut | None] = {"squash": None, "crop": middle(1.0), "crop-0.875": middle(0.875)}


def random_part(draws: Sequence[float]) -> Cut:
    """A part of 8 to 100 % of the area, as wide as 3/4 to 4/3 of its height, anywhere (Szegedy et al. 2015, section 6).

    A part that is wider or taller than the image is cut to it, where other libraries draw again: one draw is always
    enough, so that a crop is a function of four numbers in [0, 1): area, shape, and where from the left and the top.
    """
    area, shape, x, y = draws

    def cut(width: int, height: int) -> Box:
        pixels = (0.08 + 0.92 * area) * width * height
        ratio = math.exp((2 * shape - 1) * math.log(4 / 3))
        wide, tall = min(width, math.sqrt(pixels * ratio)), min(height, math.sqrt(pixels / ratio))
        left, top = x * (width - wide), y * (height - tall)
        return left, top, left + wide, top + tall

    return cut


def _share(box: Box, size: tuple[int, int]) -> float:
    """How much of the longer side a part has, for the size to decode at."""
    return max((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1], 1e-3)


def size_of(path: Path) -> tuple[int, int]:
    """Width and height, from a file's header only. Raises: Unreadable for an empty file and for one of no image."""
    try:
        with Image.open(_regular(path)) as image:
            return image.size
    except Exception as error:  # as above
        raise Unreadable(_why(path, error)) from error


def _regular(path: Path) -> Path:
    """The path. Raises: OSError for a pipe or a device, which would be waited for."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError("a pipe or a device, not a file")
    return path


def _reduced(image: Image.Image, mode: str, factor: int) -> Image.Image:
    """The image in "L" or "RGB", each `factor x factor` of its pixels averaged; band by band, so that of a large one
    no second copy is held."""
    width, height = image.size
    rows = max(1, BAND // (width * factor)) * factor
    small = Image.new(mode, (-(-width // factor), -(-height // factor)))
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height)))
        small.paste(colours(band, mode).reduce(factor), (0, top // factor))
    return small


def colours(image: Image.Image, mode: str) -> Image.Image:
    """The image in "L" or "RGB"."""
    if image.mode == "F":
        raise ValueError("float pixels have no known range")
    if image.mode.startswith("I"):  # 16 bits; PIL's own conversion would clip at 255
        levels = np.asarray(image).astype(np.float64).clip(0, 65535)
        image = Image.fromarray(np.rint(levels / 257).astype(np.uint8))
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours)
    return image.convert(mode)


def _why(path: Path, error: Exception) -> str:
    """A reason in a few words, without the path, which the caller knows."""
    try:
        if path.stat().st_size == 0:
            return "empty file"
    except OSError as missing:
        return missing.strerror or "cannot be opened"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).partition("\n")[0] or type(error).__name__

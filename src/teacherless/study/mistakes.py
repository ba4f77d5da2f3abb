"""What a shipped student takes for what: the files of `teacherless evaluate`, and their drawings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from teacherless.files import disk
from teacherless.runs.results import Evaluation
from teacherless.runs.stored import run_folder
from teacherless.study.drawing import NAMED_CLASSES, heatmap, panels, save

NUMBERED_CLASSES = 20  # of a confusion matrix with its numbers


def default_out(path: Path, evaluation: Evaluation) -> Path:
    """`RUN/evaluation/<data>-<split>`, also for a student in a run folder; a student's own folder stays as it is."""
    run, whole = run_folder(path), path.resolve()
    if run is not None and run != whole:
        return run / "evaluation" / f"{whole.name}-{evaluation.data}-{evaluation.split}"
    return path / "evaluation" / f"{evaluation.data}-{evaluation.split}"


def write(evaluation: Evaluation, out: Path) -> list[Path]:
    """evaluation.json, the confusion matrix, and a sheet of the most confident mistakes.

    Raises: InputError where they cannot be written.
    """
    with disk.saying(f"--out: cannot write to {str(out)!r}"):
        out.mkdir(parents=True, exist_ok=True)
    files = [out / "evaluation.json"]
    disk.write_json(files[0], evaluation.about())
    if evaluation.confusion:
        files += confusion(evaluation.confusion, evaluation.classes, evaluation.shipped, out / "confusion")
    if evaluation.mistakes and evaluation.pixels is not None:
        captions = [f"{m.label}, taken for\n{m.taken_for} ({100 * m.confidence:.0f} %)" for m in evaluation.mistakes]
        files += sheet(
            evaluation.pixels, captions, f"{evaluation.shipped}: the most confident mistakes", out / "mistakes"
        )
    return files


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str], name: str, path: Path) -> list[Path]:
    """How many images of each class (down) are taken for each (across), coloured by their share of the class."""
    n = len(classes)
    named, numbers = n <= NAMED_CLASSES, n <= NUMBERED_CLASSES
    side = 2.2 + (0.42 * n if numbers else 0.22 * min(n, NAMED_CLASSES))
    figure, (ax,) = panels(1, 1, width=side + 0.6, height=side, grid=False)
    shares = [[100 * count / max(1, sum(row)) for count in row] for row in counts]
    labels = list(classes) if named else []
    heatmap(ax, labels, labels, shares, "{}" if numbers else "", 100, [[n or "" for n in row] for row in counts])
    ax.set(title=f"{name}: images of a class, and what they are taken for", xlabel="taken for", ylabel="class")
    return save(figure, path)


def sheet(pixels: Tensor, captions: Sequence[str], title: str, path: Path) -> list[Path]:
    """Images, uint8 `[M, H, W, C]`, with a caption each."""
    columns = min(6, len(captions))
    rows = -(-len(captions) // columns)
    _, height, width = pixels.shape[:3]
    wide, high = 1.15, 1.15 * height / width + 0.35  # of an image with its room, an image's width being 1
    figure, (ax,) = panels(1, 1, width=1.6 * columns, height=0.5 + 1.39 * high * rows, grid=False)
    for i, (image, caption) in enumerate(zip(pixels, captions, strict=True)):
        left, top = wide * (i % columns), high * (i // columns)
        extent = (left, left + 1, top + height / width, top)
        ax.imshow(image.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255, extent=extent)
        ax.text(left + 0.5, top - 0.04, caption, fontsize=8, ha="center", va="bottom")
    ax.set(xlim=(0, wide * columns), ylim=(high * rows - 0.35, -0.35))
    ax.axis("off")
    figure.suptitle(title, fontsize=10)
    return save(figure, path)

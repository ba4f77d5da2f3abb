"""What a shipped student takes for what: the files of `teacherless evaluate`."""

from __future__ import annotations

from pathlib import Path

from teacherless.files import disk
from teacherless.runs.results import Evaluation
from teacherless.runs.stored import run_folder
from teacherless.study import plots


def default_out(path: Path, found: Evaluation) -> Path:
    """`RUN/evaluation/<data>-<split>`, also for a student in a run folder; a student's own folder stays as it is."""
    run, whole = run_folder(path), path.resolve()
    if run is not None and run != whole:
        return run / "evaluation" / f"{whole.name}-{found.data}-{found.split}"
    return path / "evaluation" / f"{found.data}-{found.split}"


def write(found: Evaluation, out: Path) -> list[Path]:
    """evaluation.json, the confusion matrix, and a sheet of the most confident mistakes.

    Raises: InputError where they cannot be written.
    """
    with disk.saying(f"--out: cannot write to {str(out)!r}"):
        out.mkdir(parents=True, exist_ok=True)
    files = [out / "evaluation.json"]
    disk.write_json(files[0], found.about())
    if found.confusion:
        files += plots.confusion(found.confusion, found.classes, found.shipped, out / "confusion")
    if found.mistakes and found.pixels is not None:
        captions = [f"{m.label}, taken for\n{m.taken_for} ({100 * m.confidence:.0f} %)" for m in found.mistakes]
        files += plots.sheet(found.pixels, captions, f"{found.shipped}: the most confident mistakes", out / "mistakes")
    return files

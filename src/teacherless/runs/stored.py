"""A stored run: its settings and its students."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from teacherless.errors import InputError
from teacherless.files import disk, schemas
from teacherless.models.files import CONFIG, WEIGHTS, Student, load_student
from teacherless.runs.config import Run, as_given, refuse_code
from teacherless.training.settings import read


class StoredRun(NamedTuple):
    """What a folder holds."""

    run: Run | None  # None where it is not known
    students: dict[str, Student]
    chosen: str  # the student to ship


def run_folder(path: Path) -> Path | None:
    """The run folder that `path` is, or, as a student's folder, is in: whole, however it was named. None if neither."""
    whole = path.resolve()
    return next((f for f in (whole, whole.parent.parent) if (f / "run.json").is_file()), None)


def read_run(path: Path, *, trust_imports: bool = False) -> StoredRun:
    """The run a folder belongs to and its students: a run folder's all, or the one.

    Raises: InputError if it is neither, holds no student, is damaged, or names code that is not trusted.
    """
    whole, folder = path.resolve(), run_folder(path)
    if folder is None and not (path / CONFIG).is_file():
        raise InputError(f"{path}: is neither a run folder nor a student's folder")
    folders = sorted((path / "students").glob("*")) if whole == folder else [path]
    summary = schemas.summary(folder) if folder else None
    if folder and summary:
        sums = summary.get("files", {})
        names = [f"students/{p.resolve().name}/{file}" for p in folders for file in (CONFIG, WEIGHTS)]
        for name in disk.damaged(folder, [name for name in names if name in sums], sums):
            again = f"teacherless train --out {folder} --resume writes it again"
            raise InputError(f"{folder / name}: is missing or damaged, by its checksum in summary.json; {again}")
    students = {p.resolve().name: _read_student(p, trust_imports) for p in folders}
    if not students:
        raise InputError(f"{path}: holds no students; the run is not finished")
    chosen = summary["chosen"] if summary and whole == folder else next(iter(students))
    if summary and whole == folder and (staying := schemas.staying(summary)).keys() != students.keys():
        raise InputError(f"{path}: summary.json is of {', '.join(staying)}; students/ holds {', '.join(students)}")
    run = _settings(folder, trust_imports) if folder else None
    if run and run.init is not None:  # its students remember how images are read; where they began may be gone
        run = run.model_copy(update={"init": folders[0]})
    return StoredRun(run, students, chosen)


def shipped(path: Path, *, trust_imports: bool = False) -> Student:
    """The one student of a student's folder; of a run's, the one that its summary says to ship.

    Raises: InputError if it is neither.
    """
    _, students, chosen = read_run(path, trust_imports=trust_imports)
    return students[chosen]


def _read_student(folder: Path, trust_imports: bool) -> Student:
    """A student that says what it expects. Raises: InputError."""
    student = load_student(folder, trust_imports=trust_imports)
    for key in ("classes", "input_size", "channels", "mean", "std"):
        if key not in student.config:
            why = "as one that was trained from Python; read it with teacherless.load_student"
            raise InputError(f"{folder / CONFIG}: does not say its {key}, {why}")
    return student


def _settings(folder: Path, trust_imports: bool) -> Run | None:
    """A run's settings; None of one from Python. Raises: InputError."""
    stored = schemas.stored(folder)
    if stored is None or "method" not in stored["settings"]:
        return None
    where = folder / "run.json"
    run = read(Run, {**as_given(stored["settings"]), "trust_imports": trust_imports}, where=f"{where}: ")
    refuse_code(run, where)
    return run

"""A stored run: its settings and its students."""

from __future__ import annotations

import json
from pathlib import Path

from teacherless import disk
from teacherless.errors import InputError
from teacherless.models.files import CONFIG, WEIGHTS, Student, load_student
from teacherless.runs.config import Run, as_given, refuse_code
from teacherless.training.folder import read_json
from teacherless.training.settings import read


def read_run(path: Path, *, trust_imports: bool = False) -> tuple[Run | None, dict[str, Student]]:
    """The run a folder belongs to (None where that is not known) and its students: a run folder's all, or the one.

    Raises: InputError if it is neither, or holds no student.
    """
    folder = next((f for f in (path, path.parent.parent) if (f / "run.json").is_file()), None)
    if folder is None and not (path / "config.json").is_file():
        raise InputError(f"{path}: is neither a run folder nor a student's folder")
    folders = sorted((path / "students").glob("*")) if path == folder else [path]
    if folder is not None:
        sums = (read_json(folder / "summary.json") or {}).get("files", {})
        names = [f"students/{p.name}/{file}" for p in folders for file in (CONFIG, WEIGHTS)]
        for name in disk.damaged(folder, [name for name in names if name in sums], sums):
            raise InputError(f"{folder / name}: is missing or damaged, by its checksum in summary.json; teacherless "
                             f"train --out {folder} --resume writes it again")  # fmt: skip
    students = {p.name: load_student(p, trust_imports=trust_imports) for p in folders}
    if not students:
        raise InputError(f"{path}: holds no students; the run is not finished")
    if folder is None:
        return None, students
    settings = as_given(json.loads((folder / "run.json").read_text())["settings"])
    if "method" not in settings:
        return None, students
    run = read(Run, {**settings, "trust_imports": trust_imports}, where=f"{folder / 'run.json'}: ")
    refuse_code(run, folder / "run.json")
    return run, students


def shipped(path: Path, *, trust_imports: bool = False) -> Student:
    """The one student of a student's folder; of a run's, the one that its summary says to ship.

    Raises: InputError if it is neither.
    """
    _, students = read_run(path, trust_imports=trust_imports)
    summary = read_json(path / "summary.json")
    return students[summary["chosen"] if summary else next(iter(students))]

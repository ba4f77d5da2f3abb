"""The students of a finished run, evaluated again."""

from __future__ import annotations

from pathlib import Path

from teacherless.data import Loader
from teacherless.errors import InputError
from teacherless.evaluation.metrics import evaluate
from teacherless.methods._parts import MeanProbability
from teacherless.runs.build import load_source
from teacherless.runs.config import Run
from teacherless.runs.stored import read_run
from teacherless.training.summary import search_of


def evaluate_folder(
    path: Path, *, data: str | None, data_dir: Path | None, split: str, trust_imports: bool = False
) -> dict[str, dict[str, float]]:
    """Metrics of every student of a run folder (and their ensemble, for peers), or of one student's folder.

    The data is what the run was trained on, unless named. Raises: InputError for anything that does not fit together.
    """
    run, students, _ = read_run(path, trust_imports=trust_imports)
    if run is None and data is None:
        raise InputError(f"--data: {path} does not say what it was trained on; name the data")
    run = run or Run(method="plain")
    config = next(iter(students.values())).config
    if data not in (None, run.data):  # nothing of what the run did to its own data, but the student's input size
        run = Run(method=run.method, data=data, img_size=config["input_size"][0], workers=run.workers,
                  fit=config.get("fit"))  # fmt: skip
    source = load_source(run.model_copy(update={"data_dir": data_dir or run.data_dir}))
    for name, student in students.items():
        if len(student.config["classes"]) != len(source.classes):
            raise InputError(f"--data: {source.name} has {len(source.classes)} classes; {name} was trained on "
                             f"{len(student.config['classes'])}")  # fmt: skip
    chosen = {"val": source.val, "test": source.test}[split]
    stats = {"mean": config["mean"], "std": config["std"]}
    search = search_of(source, run.workers, **stats)
    if search and split == "test":
        return search({name: student.net for name, student in students.items()})
    if chosen is None:
        raise InputError(f"--split: {source.name} has no {split} split")
    predictors = {name: student.net for name, student in students.items()}
    if len(predictors) > 1 and run.method == "dml":
        predictors["ensemble"] = MeanProbability(list(predictors.values()))
    return evaluate(predictors, Loader(chosen, batch_size=512, augment=None, **stats))

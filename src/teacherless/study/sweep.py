"""--sweep: a setting that every method chooses for itself, on validation, before the methods are compared.

One learning rate for all is fair to nobody. Every value is tried with the same few seeds, which are not compared later:
what is chosen by luck is not measured with the same luck. The test set has no part in it; what it costs is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from teacherless.errors import InputError, short, unknown
from teacherless.files import schemas
from teacherless.runs.config import Run
from teacherless.study.cells import Cell, run_cells
from teacherless.study.watch import Told
from teacherless.training.settings import read

SEEDS = range(1000, 1002)  # counted from the comparison's first
SWEPT = ("lr", "weight_decay", "momentum", "smoothing", "clip_grad", "ema", "batch_size", "warmup_epochs", "decay_rate")


def parse(text: str, run: Run) -> tuple[str, list[Any]]:
    """`lr=0.03,0.1,0.3`: a field of Run, and its values.

    Raises: InputError for a field not in SWEPT, for values it cannot have, and for fewer than two.
    """
    name, equals, values = text.partition("=")
    setting = name.strip().replace("-", "_")
    if not equals:
        raise InputError(f"--sweep: found {short(text)}; must be like lr=0.03,0.1,0.3")
    if setting not in SWEPT:
        raise unknown("setting to sweep", name, SWEPT)
    given = run.model_dump(exclude_unset=True)
    tried = [getattr(read(Run, given | {setting: value}, "--sweep: "), setting) for value in values.split(",")]
    if len(set(tried)) < 2:
        raise InputError(f"--sweep: found {short(text)}; must be two values at least")
    return setting, list(dict.fromkeys(tried))


def choose(
    setting: str, values: Sequence[Any], runs: Mapping[str, Run], out: Path, jobs: int, *, quiet: bool = False
) -> dict[str, Any]:
    """Try every value with every method.

    Args:
        setting: a field of Run.
        values: what it may be.
        runs: by method, the run that is compared.
        out: the folder of the comparison.
        jobs: as in `run_cells`.
        quiet: show nothing.

    Returns: `{"setting", "seeds", "methods"}`; of each method `{"tried", "chosen", "seconds"}`: by value the mean top-1
        on validation, None where a run diverged; what is best; what all trials took to train.
    Raises: InputError where there is no validation data; as `run_cells`.
    """
    trials = {
        (method, value): [_trial(method, run.model_copy(update={setting: value}), setting, seed, out) for seed in SEEDS]
        for method, run in runs.items()
        for value in values
    }
    told = None if quiet else Told("validation", _on_validation)
    run_cells([cell for cells in trials.values() for cell in cells], jobs, told, ", then the comparison")
    results = {}
    for method in runs:
        scores = {value: _score(trials[method, value]) for value in values}
        lines = [line for value in values for cell in trials[method, value] for line in schemas.lines(cell.folder)]
        results[method] = {
            "tried": {f"{value:g}": score and score[0] for value, score in scores.items()},
            "chosen": max(values, key=lambda value: scores[value] or (-1.0, 0.0)),  # of equal ones the first
            "seconds": sum(line["seconds"] for line in lines),  # also of a trial that diverged
        }
    return {"setting": setting, "seeds": len(SEEDS), "methods": results}


def _trial(method: str, run: Run, setting: str, seed: int, out: Path) -> Cell:
    run = run.model_copy(update={"seed": run.seed + seed})
    row = f"{method}, {setting} {getattr(run, setting):g}"
    return Cell(row, run, out / "sweep" / f"{method}-{setting}={getattr(run, setting):g}-s{run.seed}")


def _score(cells: Sequence[Cell]) -> tuple[float, float] | None:
    """Top-1 on validation, then minus the NLL: means over students and seeds. None if one of the runs diverged.

    Raises: InputError where there is no validation data.
    """
    top1, nll = [], []
    for cell in cells:
        done = cell.done()
        assert done is not None
        if "failed" in done:
            return None
        last = schemas.lines(cell.folder)[-1]
        for name, row in schemas.staying(done).items():
            if row["val_top1"] is None:
                raise InputError("--sweep: the data has no validation split to choose on")
            top1.append(row["val_top1"])
            if (measured := last.get(f"val/nll/{name}")) is None:
                return None
            nll.append(measured)
    return fmean(top1), -fmean(nll)


def _on_validation(cell: Cell, done: Mapping[str, Any]) -> float | None:
    """Top-1, the mean over its students."""
    known = [row["val_top1"] for row in schemas.staying(done).values() if row["val_top1"] is not None]
    return fmean(known) if known else None

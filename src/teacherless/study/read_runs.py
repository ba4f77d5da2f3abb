"""analyse: from run folders to every analysis that applies to them.

Each gives a table (JSON), a figure (PNG and SVG) and one line on what it shows; index.html has them all on one page.
Nothing is trained or chosen here: the test set explains a result, it does not make one. Runs of one method and the same
settings are one label over several seeds.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from teacherless.data import Loader, Source
from teacherless.data.augment.distort import counter_hash
from teacherless.errors import InputError
from teacherless.files import disk, schemas
from teacherless.method import Wants
from teacherless.methods import METHODS
from teacherless.models.files import Student
from teacherless.runs.build import load_source
from teacherless.runs.config import Run
from teacherless.runs.stored import read_run
from teacherless.study.findings import KINDS, AnalysedRun, Finding, Groups, look
from teacherless.study.outcome import comparable
from teacherless.training.step import pick_device

# Runs that differ in these are alike.
NO_MATTER = {"seed", "data_dir", "device", "engine", "workers", "checkpoint_every", "log"}
log = logging.getLogger("teacherless.study.read_runs")
SAMPLES = 2000  # training images, and test images for features; drawn by hash, the same for every run


def analyse(
    paths: Sequence[Path],
    out: Path | None = None,
    *,
    trust_imports: bool = False,
    say: Callable[[str, str], object] = lambda name, says: None,
) -> list[Path]:
    """Compute every analysis that applies to some runs, all on the same data.

    Args:
        paths: run folders, or folders of a comparison (their finished cells are read).
        out: where tables and figures go; `<first path>/analysis` by default.
        trust_imports: import the code that a student's config.json names (`package.module:function`).
        say: is told the name of each analysis and what it shows.

    Returns: the files written, index.html first.
    Raises: InputError for folders that hold no finished run, and for runs on different data.
    """
    groups, source = read(paths, trust_imports)
    out = out or paths[0] / "analysis"
    with disk.saying(f"--out: cannot write to {str(out)!r}"):
        disk.make_folder(out)
    files, shown = [out / "index.html"], []
    for kind in KINDS:
        for finding in kind(groups, source):
            shown.append(finding)
            disk.write_json(out / f"{finding.name}.json", finding.table)
            files += [out / f"{finding.name}.json", *finding.draw(out / finding.name)]
            say(finding.name, finding.says)
    disk.write(files[0], _index(source, shown))
    return files


def _index(source: Source, shown: Sequence[Finding]) -> str:
    """All figures on one page, each with what it shows."""
    parts = "".join(
        f'<h2 id="{one.name}">{one.name}</h2><p>{escape(one.says)} (<a href="{one.name}.json">table</a>)</p>'
        f'<img src="{one.name}.svg" alt="{one.name}">\n'
        for one in shown
    )
    links = " · ".join(f'<a href="#{one.name}">{one.name}</a>' for one in shown)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(source.name)}, analysed</title>'
        "<style>body{font:16px sans-serif;max-width:60em;margin:2em auto}img{max-width:100%}</style>\n"
        f"<h1>{escape(source.name)}, analysed</h1><p>{links}</p>\n{parts}</html>\n"
    )


# What is there -------------------------------------------------------------------------------------------------------


def read(paths: Sequence[Path], trust_imports: bool = False) -> tuple[Groups, Source]:
    """Load the runs and let their students predict. Raises: as `analyse`."""
    named = [pair for path in paths for pair in _find(path)]
    if not named:
        raise InputError(f"{paths[0] if paths else 'analyse'}: holds no finished run")
    loaded: list[_Loaded] = []
    for name, folder in named:
        try:
            loaded.append(_load(name, folder, trust_imports))
        except InputError as error:
            if name is None:
                raise
            log.warning("%s; left out", error)
    if not loaded:
        raise InputError(f"{paths[0]}: holds no run that can be read")
    runs = [one.run for one in loaded]
    labels = _labels([one.name or one.run.method for one in loaded], runs)
    kinds = _labels([run.method for run in runs], [_any_number(run) for run in runs])
    source = load_source(runs[0], quiet=True)
    for one in loaded:
        if one.fingerprint != source.fingerprint:
            raise InputError(f"{one.folder}: was trained on other data than {loaded[0].folder} ({source.name})")
    if (source.test or source.val or source.reid) is None:
        raise InputError(f"{source.name}: has neither test nor validation data to look at")
    groups: Groups = {}
    for label, kind, one in zip(labels, kinds, loaded, strict=True):
        groups.setdefault(label, []).append(_see(label, kind, one, source))
    for label, group in groups.items():
        group.sort(key=lambda run: run.run.seed)
        for a, b in pairwise(group):
            if a.run.seed == b.run.seed:
                raise InputError(f"{b.folder}: is the same run as {a.folder}: {label}, seed {a.run.seed}")
    order = list(METHODS)
    return dict(sorted(groups.items(), key=lambda item: order.index(item[1][0].run.method))), source


def _find(path: Path) -> list[tuple[str | None, Path]]:
    """The finished runs of a folder, each with its row's name where it is the cell of a comparison."""
    if (path / "cells").is_dir():
        cells = sorted((path / "cells").iterdir())
        for cell in cells:
            if not (cell / "summary.json").is_file():
                log.warning("%s: is not finished; left out", cell)
        return [(cell.name.rpartition("-s")[0], cell) for cell in cells if (cell / "summary.json").is_file()]
    if not (path / "summary.json").is_file():
        raise InputError(f"{path}: is neither a finished run nor a comparison")
    return [(None, path)]


class _Loaded(NamedTuple):
    name: str | None  # of its row, where it is the cell of a comparison
    folder: Path
    run: Run
    students: dict[str, Student]
    summary: dict[str, Any]
    fingerprint: str | None  # of the data it was trained on


def _load(name: str | None, folder: Path, trust_imports: bool) -> _Loaded:
    """A run. Raises: InputError if any of its files cannot be read."""
    run, students, _ = read_run(folder, trust_imports=trust_imports)
    about, summary = schemas.stored(folder), schemas.summary(folder)
    if run is None or about is None or summary is None:
        raise InputError(f"{folder}: was trained from Python; what data it saw is not known")
    schemas.finished_lines(folder)
    return _Loaded(name, folder, run, students, summary, about["data"].get("fingerprint"))


def _labels(bases: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """A cell's row or a run's method, and whatever makes its runs differ from others of that name."""
    settings = [run.model_dump(mode="json", exclude={"set", *NO_MATTER}) | run.set for run in runs]
    labels = []
    for base, own in zip(bases, settings, strict=True):
        others = [other for name, other in zip(bases, settings, strict=True) if name == base]
        different = [f"{key}={_short(value)}" for key, value in own.items() if any(o.get(key) != value for o in others)]
        labels.append(" ".join([base, *different]))
    return labels


def _any_number(run: Run) -> Run:
    """The run without how many students it has: each kind of them once."""
    kinds = dict.fromkeys(re.sub(r"\*\d+", "", text) for text in run.student)
    return run.model_copy(update={"peers": None, "student": tuple(kinds)})


def _short(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _see(label: str, kind: str, one: _Loaded, source: Source) -> AnalysedRun:
    device, run = pick_device("auto"), one.run
    nets = {name: student.net.to(device) for name, student in one.students.items()}
    config = next(iter(one.students.values())).config
    make: dict[str, Any] = {"mean": config["mean"], "std": config["std"], "device": device, "workers": run.workers}
    test = source.test or (source.reid.query.split if source.reid else source.val)
    assert test is not None
    some = test.take(_sample(len(test)))
    train = Loader(source.train.take(_sample(len(source.train))), batch_size=256, **make)
    # Views need the training's distortions; where there are none, the loader only shuffles, and `consistency` says no.
    views = Loader(some, batch_size=min(256, len(some)), augment=source.augment, wants=Wants(views=2), **make)
    whole, part = Loader(test, batch_size=256, **make), Loader(some, batch_size=256, **make)
    on_all = [{name: look(net, data) for name, net in nets.items()} for data in (train, whole, part)]
    on_train, on_test = ({name: predictions.logits for name, predictions in each.items()} for each in on_all[:2])
    features = {name: part.features for name, part in on_all[2].items() if part.features is not None}
    labels = [next(iter(each.values())).labels for each in on_all]
    like_plain = list(comparable(run, one.summary))
    if not like_plain:
        raise InputError(f"{one.folder}: {schemas.who_left(one.summary['left'])}; no student like plain's is left")
    loaders = (train, views, whole)
    return AnalysedRun(
        label, kind, run, one.folder, nets, like_plain, one.summary, *loaders, on_train, on_test, features, *labels
    )


def _sample(size: int) -> Tensor:
    """Rows of at most SAMPLES images."""
    return counter_hash(0, torch.arange(size)).argsort(stable=True)[:SAMPLES]

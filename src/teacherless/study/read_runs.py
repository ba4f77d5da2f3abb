"""analyse: from run folders to every analysis that applies to them.

Each gives a table (JSON), a figure (PNG and SVG) and one line on what it shows. Nothing is trained or chosen here: the
test set explains a result, it does not make one. Runs of one method and the same settings are one label over several
seeds; where one network must stand for a run, it is the shipped one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teacherless import disk
from teacherless.data import Loader, Source
from teacherless.data.augment.distort import counter_hash
from teacherless.errors import InputError
from teacherless.method import Wants
from teacherless.methods import METHODS
from teacherless.runs.build import load_source
from teacherless.runs.config import Run
from teacherless.runs.stored import read_run
from teacherless.study.findings import KINDS, Groups, Seen, look
from teacherless.training.folder import read_json
from teacherless.training.step import pick_device

log = logging.getLogger("teacherless.study.read_runs")
SAMPLES = 2000  # training images, and test images for features; drawn by hash, the same for every run


def analyse(
    paths: Sequence[Path], out: Path | None = None, *, trust_imports: bool = False, quiet: bool = False
) -> list[Path]:
    """Compute every analysis that applies to some runs, all on the same data.

    Args:
        paths: run folders, or folders of a comparison (their finished cells are read).
        out: where tables and figures go; `<first path>/analysis` by default.
        trust_imports: import the code that a student's config.json names (`package.module:function`).
        quiet: do not print the lines.

    Returns: the files written.
    Raises: InputError for folders that hold no finished run, and for runs on different data.
    """
    groups, source = read(paths, trust_imports)
    out = out or paths[0] / "analysis"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: cannot write to {str(out)!r}: {error.strerror}") from None
    files = []
    for kind in KINDS:
        for found in kind(groups, source):
            disk.write_json(out / f"{found.name}.json", found.table)
            files += [out / f"{found.name}.json", *found.draw(out / found.name)]
            if not quiet:
                print(f"{found.name}: {found.says}", flush=True)
    return files


# What is there -------------------------------------------------------------------------------------------------------


def read(paths: Sequence[Path], trust_imports: bool = False) -> tuple[Groups, Source]:
    """Load the runs and let their students predict. Raises: as `analyse`."""
    named = [pair for path in paths for pair in _find(path)]
    if not named:
        raise InputError(f"{paths[0] if paths else 'analyse'}: holds no finished run")
    loaded = [_load(folder, trust_imports) for _, folder in named]
    labels = _labels([name for name, _ in named], [run for run, _, _ in loaded])
    source = load_source(loaded[0][0])
    for (_, folder), (_, _, fingerprint) in zip(named, loaded, strict=True):
        if fingerprint != source.fingerprint:
            raise InputError(f"{folder}: was trained on other data than what {named[0][1]} names ({source.name})")
    if (source.test or source.val) is None:
        raise InputError(f"{source.name}: has neither test nor validation data to look at")
    groups: Groups = {}
    for label, (_, folder), (run, students, _) in zip(labels, named, loaded, strict=True):
        groups.setdefault(label, []).append(_see(label, run, folder, students, source))
    for label, group in groups.items():
        group.sort(key=lambda seen: seen.run.seed)
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


def _load(folder: Path, trust_imports: bool) -> tuple[Run, dict[str, Any], str]:
    """A run, its students, and the fingerprint of the data it was trained on."""
    run, students = read_run(folder, trust_imports=trust_imports)
    if run is None:
        raise InputError(f"{folder}: was trained from Python; what data it saw is not known")
    about = read_json(folder / "run.json")
    assert about is not None
    return run, students, about["data"]["fingerprint"]


def _labels(names: Sequence[str | None], found: Sequence[Run]) -> list[str]:
    """A cell's row or a run's method, and whatever sets its runs apart from others of that name."""
    bases = [name or run.method for name, run in zip(names, found, strict=True)]
    settings = [run.model_dump(mode="json", exclude={"seed", "data_dir", "device"}) for run in found]
    labels = []
    for base, own in zip(bases, settings, strict=True):
        others = [other for name, other in zip(bases, settings, strict=True) if name == base]
        apart = [f"{key}={_short(value)}" for key, value in own.items() if any(o[key] != value for o in others)]
        labels.append(" ".join([base, *apart]))
    return labels


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items()) or "default"
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _see(label: str, run: Run, folder: Path, students: Mapping[str, Any], source: Source) -> Seen:
    device = pick_device("auto")
    nets = {name: student.net.to(device) for name, student in students.items()}
    config = next(iter(students.values())).config
    make: dict[str, Any] = {"mean": config["mean"], "std": config["std"], "device": device, "workers": run.workers}
    test = source.test or source.val
    assert test is not None
    some = test.take(_sample(len(test)))
    train = Loader(source.train.take(_sample(len(source.train))), batch_size=256, **make)
    # Views need the training's distortions; where there are none, the loader only shuffles, and `consistency` says no.
    views = Loader(some, batch_size=min(256, len(some)), augment=source.augment, wants=Wants(views=2), **make)
    whole, part = Loader(test, batch_size=256, **make), Loader(some, batch_size=256, **make)
    sights = [{name: look(net, data) for name, net in nets.items()} for data in (train, whole, part)]
    on_train, on_test = ({name: sight.logits for name, sight in each.items()} for each in sights[:2])
    features = {name: sight.features for name, sight in sights[2].items() if sight.features is not None}
    labels = [next(iter(each.values())).labels for each in sights]
    summary = read_json(folder / "summary.json")
    assert summary is not None
    return Seen(
        label, run, folder, nets, summary["chosen"], train, views, whole, on_train, on_test, features, *labels
    )  # fmt: skip


def _sample(size: int) -> Tensor:
    """Rows of at most SAMPLES images."""
    return counter_hash(0, torch.arange(size)).argsort(stable=True)[:SAMPLES]

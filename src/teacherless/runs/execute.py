"""execute(): a whole run of the command line: build, train, write its folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from teacherless.data import Loader, Source
from teacherless.method import Wants
from teacherless.runs.build import build_method, init_hash, load_source
from teacherless.runs.config import Run, new_folder, specs
from teacherless.runs.widths import split
from teacherless.training.distributed import opened
from teacherless.training.lifecycle import About, Result, to_the_end
from teacherless.training.loop import Training
from teacherless.training.precision import tune_allocator
from teacherless.training.step import pick_device
from teacherless.training.summary import search_of


def execute(
    run: Run,
    out: Path | None,
    *,
    resume: bool = False,
    anyway: bool = False,
    quiet: bool = False,
    then: Callable[[Source, Result], object] = lambda source, done: None,
) -> Result:
    """One run of the command line: build, train, write the folder `out`, or a new one; `then`, for the first rank, what
    reads the data once more. Raises: as `train`."""
    tune_allocator()
    with opened(run) as ranks:
        quiet |= ranks.rank > 0
        with ranks.together():
            source = load_source(run, quiet=quiet)
            if not quiet:
                print(source, flush=True)
                if run.split_into:
                    print(split(specs(run), run.split_into)[1], flush=True)
            about = About(describe(source), inputs(source), init_hash(run), search_of(source, run.workers))
            method, per_student = build_method(run, source)
            train, val, test = loaders(run, source, method.wants, pick_device(run.device), quiet=quiet)
            out = out or (None if ranks.rank else new_folder(run))
        ranks.check(method, run, source.fingerprint)
        out = ranks.from_first(out)
        with ranks.together():
            training = Training(method, train, val, run, per_student, out, quiet=quiet, ranks=ranks)
        if ranks.size > 1 and not quiet:
            print(f"{ranks}; batch {run.batch_size} each, {run.batch_size * train.ranks} in all", flush=True)
        done = to_the_end(training, test, about, resume=resume, anyway=anyway)
    if not ranks.rank:
        then(source, done)
    return done


def loaders(run: Run, source: Source, wants: Wants, device: torch.device, *, quiet: bool = False) -> list[Any]:
    """Train, validation and test loaders of a source; None where it has no such split."""
    make = partial(
        Loader,
        mean=source.mean,
        std=source.std,
        device=device,
        workers=run.workers,
        bad_images=run.bad_images,
        quiet=quiet,
    )
    training = make(
        source.train,
        batch_size=run.batch_size,
        seed=run.seed,
        wants=wants,
        augment=source.augment,
        classes=len(source.classes),
        balanced=run.balanced_sampler,
    )
    return [training, *(split and make(split, batch_size=512, augment=None) for split in (source.val, source.test))]


def describe(source: Source) -> dict[str, Any]:
    """What run.json says of the data."""
    return {
        "name": source.name,
        "fingerprint": source.fingerprint,
        "classes": len(source.classes),
        "train": len(source.train.labels),
        "val": len(source.val.labels) if source.val else 0,
        "test": len(source.test.labels) if source.test else 0,
        "unreadable": list(source.unreadable),
    }


def inputs(source: Source) -> dict[str, Any]:
    """What a student's config.json says of its inputs."""
    return {
        "classes": source.classes,
        "input_size": list(source.size),
        "channels": source.channels,
        "fit": source.fit,
        "mean": list(source.mean),
        "std": list(source.std),
    }

"""execute(): a whole run of the command line: build, train, write its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from teacherless.data import Loader, Source
from teacherless.method import Wants
from teacherless.runs.build import build_method, load_source
from teacherless.runs.config import Run, new_folder
from teacherless.training.lifecycle import About, Result, to_the_end
from teacherless.training.loop import Training
from teacherless.training.step import pick_device
from teacherless.training.summary import search_of


def execute(run: Run, out: Path | None, *, resume: bool = False, anyway: bool = False, quiet: bool = False) -> Result:
    """One run of the command line: build, train, write the folder `out`, or a new one. Raises: as `train`."""
    source = load_source(run, quiet=quiet)
    if not quiet:
        print(source, flush=True)
    method, per_student = build_method(run, source)
    data = loaders(run, source, method.wants, pick_device(run.device), quiet=quiet)
    training = Training(method, data[0], data[1], run, per_student, out or new_folder(run), quiet=quiet)
    search = search_of(source, run.workers, training.device)
    return to_the_end(training, data[2], About(describe(source), about(source), search), resume=resume, anyway=anyway)


def loaders(run: Run, source: Source, wants: Wants, device: torch.device, *, quiet: bool = False) -> list[Any]:
    """Train, validation and test loaders of a source; None where it has no such split."""
    make: dict[str, Any] = {"mean": source.mean, "std": source.std, "device": device, "workers": run.workers,
                            "bad_images": run.bad_images, "quiet": quiet}  # fmt: skip
    training = Loader(
        source.train,
        batch_size=run.batch_size,
        seed=run.seed,
        wants=wants,
        augment=source.augment,
        classes=len(source.classes),
        balanced=run.balanced_sampler,
        **make,
    )
    rest = (split and Loader(split, batch_size=512, augment=None, **make) for split in (source.val, source.test))
    return [training, *rest]


def describe(source: Source) -> dict[str, Any]:
    """What run.json says of the data."""
    sizes = {name: len(split.labels) if split else 0 for name, split in
             (("train", source.train), ("val", source.val), ("test", source.test))}  # fmt: skip
    return {"name": source.name, "fingerprint": source.fingerprint, "classes": len(source.classes), **sizes,
            "unreadable": list(source.unreadable)}  # fmt: skip


def about(source: Source) -> dict[str, Any]:
    """What a student's config.json says of its inputs."""
    return {"classes": source.classes, "input_size": list(source.size), "channels": source.channels,
            "fit": source.fit, "mean": list(source.mean), "std": list(source.std)}  # fmt: skip

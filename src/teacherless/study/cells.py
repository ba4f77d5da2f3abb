"""The cells of a comparison: what is missing of them is run, side by side.

A cell computes in one thread, however many run beside it: so its bits do not depend on `--jobs`, and N cells keep N
cores busy. Cells and the comparison meet in nothing but their folders, so a worker may be a process of this machine,
one of a cluster that sees the same folder (`on_cluster`), or the same command started elsewhere: who trains a cell
holds its lock.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from statistics import median
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from filelock import FileLock, Timeout

from teacherless.errors import Diverged, InputError, Stopped, extra, one_line, short
from teacherless.files import disk, schemas
from teacherless.runs.config import Run
from teacherless.runs.execute import execute
from teacherless.training.engines.threads import one_thread_each
from teacherless.training.stop import Signals

if TYPE_CHECKING:
    from teacherless.study.watch import Progress, Told  # which reads scipy, half a second that a worker need not wait


class Cell(NamedTuple):
    """One run of a comparison."""

    row: str  # the method, or plain under another name
    run: Run
    folder: Path

    def done(self) -> dict[str, Any] | None:
        """The run's summary, or `{"failed": why}`, also of one whose files cannot be read; None while it is not
        finished."""
        try:
            schemas.stored(self.folder)
            if (summary := schemas.summary(self.folder)) is None:
                failed = schemas.read(self.folder / "failed.json", schemas.FAILED)
                return None if failed is None else dict(failed)
            return {**summary, "typical_seconds": _seconds(self.folder)}
        except InputError as error:
            return {"failed": str(error)}


def _seconds(folder: Path) -> float:
    """What training costs in seconds, the first epoch's warm-up left out: the median epoch, times their number."""
    seconds: list[float] = [line["seconds"] for line in schemas.finished_lines(folder)]
    return median(seconds) * len(seconds)


def run_cells(cells: Sequence[Cell], jobs: int, told: Told | None, then: str = "") -> list[dict[str, Any]]:
    """Run the cells that are not finished, each from where it stands, `jobs` at a time.

    Args:
        cells: all of the comparison so far.
        jobs: how many at a time: in this process where that is 1, else in workers of joblib.
        told: what is said of a finished cell; None shows nothing.
        then: what comes after these cells, said beside the time left.

    Returns: of each cell its summary, or `{"failed": why}`.
    Raises: Stopped after Ctrl-C or SIGTERM, once every cell is saved and none is running; InputError for a cell that
        was begun with other settings or cannot be run, and where a worker died.
    """
    from teacherless.study.watch import Progress

    _check(cells)
    with Progress(cells, told, then) as progress:
        while missing := [cell for cell in cells if cell.done() is None]:
            if min(jobs, len(missing)) > 1 or _backend() != "LokyBackend":
                _in_workers(missing, jobs, progress)
            else:
                for cell in missing:
                    progress.start(cell)
                    run_cell(cell.run, cell.folder)
            if missing == [cell for cell in cells if cell.done() is None]:  # others have them
                time.sleep(1)
    summaries = [cell.done() for cell in cells]
    assert None not in summaries
    return [done for done in summaries if done]


def _check(cells: Sequence[Cell]) -> None:
    for cell in cells:
        now, stored = cell.run.model_dump(mode="json"), None
        with contextlib.suppress(InputError):  # one that cannot be read is a broken cell, and left out
            stored = schemas.stored(cell.folder)
        for key, value in stored["settings"].items() if stored else ():
            if now.get(key) != value:
                raise InputError(
                    f"--out: {cell.folder} was run with {key} {short(value)}, not {now.get(key)!r}; give "
                    "the same settings, or another --out"
                )


ONE = threading.Lock()  # runs in one process share the generators


def run_cell(run: Run, folder: Path) -> None:
    """Run one cell in one thread, or go on with it; a diverged one leaves `failed.json`. Nothing if another process has
    it, or had it."""
    lock = folder.parent.with_name(".locks") / f"{folder.parent.name}-{folder.name}"
    with disk.saying(f"cannot write {str(lock)!r}"):
        disk.make_folder(lock.parent)
    with contextlib.suppress(Timeout, Diverged), ONE, FileLock(lock, timeout=0):
        if Cell("", run, folder).done() is None:
            with one_thread_each():
                execute(run, folder, resume=folder.is_dir(), quiet=True)


# Workers -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def on_cluster(kind: str, address: str) -> Iterator[None]:
    """Inside, cells are run by the workers of a dask or ray cluster, which see the same folders.

    Raises: InputError where there is no cluster.
    """
    from joblib import parallel_config

    with contextlib.ExitStack() as open_things:
        try:
            if kind == "dask":
                open_things.enter_context(extra("distributed", "--backend dask", name="cluster").Client(address))
            else:
                ray = extra("ray", "--backend ray")
                host, _, port = address.removeprefix("ray://").rpartition(":")
                if port.isdecimal():  # ray itself would try for minutes
                    socket.create_connection((host, int(port)), timeout=10).close()
                ray.init(address, log_to_driver=False)
                open_things.callback(ray.shutdown)
                extra("ray.util.joblib", "--backend ray", name="ray").register_ray()
        except (OSError, ValueError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"--backend: found no {kind} cluster at {address} ({one_line(error)})") from None
        open_things.enter_context(parallel_config(kind))
        yield


def _backend() -> str:
    """The name of joblib's backend: its own, unless we are on a cluster."""
    from joblib.parallel import get_active_backend

    return type(get_active_backend()[0]).__name__


def _in_workers(cells: Sequence[Cell], jobs: int, progress: Progress) -> None:
    from joblib import Parallel, delayed

    with _PassedOn() as signals:

        def due() -> Iterator[Any]:
            for cell in cells:
                if signals.asked:
                    return
                progress.start(cell)
                yield delayed(_work)(cell.run, cell.folder, os.getpid())

        try:  # no more tasks are handed out than there are workers: none is waiting when a stop is asked for
            Parallel(n_jobs=jobs, pre_dispatch="n_jobs", batch_size=1)(due())
        except BrokenProcessPool:
            if not signals.asked:
                raise InputError(
                    f"--jobs: one of {jobs} workers died (killed, or out of memory); the same command "
                    "goes on, and fewer --jobs need less memory"
                ) from None
        if signals.asked:
            raise Stopped(signals.asked, "stopped")


def dismiss(jobs: int) -> None:
    """End joblib's workers: what they did is saved, and tidying up they would slow down what comes next."""
    if jobs > 1 and _backend() == "LokyBackend":
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor(jobs, reuse=True).shutdown(wait=True, kill_workers=True)


class _PassedOn(Signals):
    """A stop that is asked for is asked of the workers too."""

    def _ask(self, number: int, frame: FrameType | None) -> None:
        super()._ask(number, frame)
        for worker in multiprocessing.active_children():
            worker.terminate()


def _work(run: Run, folder: Path, comparison: int) -> None:
    """A cell in a worker. One that the comparison's own process has started stops when that asks for it."""
    if os.getppid() != comparison:
        return run_cell(run, folder)
    _end_with(comparison)
    signal.signal(signal.SIGTERM, _stop)  # until the loop has a handler of its own, which saves first
    try:
        run_cell(run, folder)
    except Stopped:
        pass  # who asked for it knows
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(number, "stopped")


@functools.cache
def _end_with(comparison: int) -> None:
    """Once per worker: Ctrl-C is left to the process that started it, and it does not outlive that."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()

    def watch() -> None:
        while os.getppid() == comparison:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)  # saves the cell, if there is one
        time.sleep(10)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

"""From a split to batches: `epoch(e)` yields `Batch`es that are a function of (seed, e) alone."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from teacherless.data import images
from teacherless.data.augment.distort import Augment, counter_hash, distort, normalise, padded
from teacherless.data.augment.mixing import Mixer, erased, uniform
from teacherless.data.splits import Files, Resident, Split
from teacherless.errors import InputError
from teacherless.method import Batch, Wants

log = logging.getLogger("teacherless.data")
CLASSMATE_DRAW = 7  # the draw that picks the classmate; draws 0 to 2 are crop and flip
CROP_DRAW = 10  # the first of the four draws of a random-resized crop


class Loader:
    """Batches of a split, on the device: batch b of epoch e is a function of (seed, e, b). Each `for` over a loader is
    its next epoch; `epoch(e)` is any of them.

    Images in memory move to the device once, as uint8. Files are decoded by workers, which changes nothing but the
    speed: a file that cannot be decoded is named once, and then left out of an evaluation, and in training replaced by
    the next image of its class that can. `unreadable` lists them.

    Args:
        split: labelled images.
        batch_size: samples per batch. Training drops the last partial batch, evaluation keeps it.
        mean, std: per channel, pixels in [0, 1].
        seed: of order and distortions.
        wants: views, classmate, index.
        augment: of training; `Augment()` shuffles without distorting; None reads in order to the end (evaluation).
        device: where batches are.
        workers: processes that decode `Files`; 0 decodes in this one.
        classes: C, where images are mixed: labels become probabilities `[B, C]`.
        balanced: an epoch of training has as many images, and of each class equally many, whatever the set has.
        bad_images: "stop" refuses a file that cannot be decoded.
        quiet: say nothing of files that cannot be decoded.

    Raises: InputError for a batch larger than the training set, for a class of one image where a method wants a
    classmate, for views where there is no distortion to tell them apart, for crops of images that are not files, and
    for mixed images where a method wants classmates or the samples' index.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        mean: Iterable[float],
        std: Iterable[float],
        seed: int = 0,
        wants: Wants = Wants(),
        augment: Augment | None = None,
        device: torch.device | str = "cpu",
        workers: int = 0,
        classes: int | None = None,
        balanced: bool = False,
        bad_images: str = "skip",
        quiet: bool = False,
    ) -> None:
        self.augment, self.wants, self.seed, self.batch_size = augment, wants, seed, batch_size
        self.begun = 0  # epochs, by iterating
        self.rank, self.ranks = 0, 1  # of a global batch of `ranks` batches, the one that is read here
        self.balanced, self.bad_images, self.quiet = balanced, bad_images, quiet
        self.unreadable: list[str] = []  # "file: why", of those met so far
        self.device, self.workers = torch.device(device), workers
        self.mean, self.std = (torch.tensor(tuple(each), device=device) for each in (mean, std))
        self.read: Callable[[Iterable[Needed]], Read]
        if isinstance(split, Resident):
            self.read = partial(_look_up, padded(split.images.to(device), augment or Augment()))
            self.labels = split.labels.to(device)
        elif isinstance(split, Files):
            self.read = _FromFiles(split, augment, self.device, workers, self._note).read
            self.labels = split.labels  # rows name files: they stay where the files are opened
        else:
            raise InputError(f"data: found a split of type {type(split).__name__}; must be Resident or Files")
        if batch_size < 1:
            raise InputError(f"--batch-size: found {batch_size}; must be at least 1")
        if augment is not None and batch_size > len(split):
            raise InputError(f"--batch-size: found {batch_size}; the training set has {len(split)} samples")
        if augment is None and wants.views > 1:
            raise InputError(f"data: found wants.views={wants.views} and augment=None; equal views teach nothing")
        if augment is not None and augment.crop and not isinstance(split, Files):
            raise InputError("--aug: found rrc; these images are in memory, only files can be cropped at full size")
        self.classmates = _Classmates(self.labels) if wants.classmate else None
        self.mixer: Mixer | None = None
        if augment is not None and augment.mixes:
            if wants.classmate or wants.index:
                what = "classmates" if wants.classmate else "the same image in every epoch"
                raise InputError(f"--aug: found mixup or cutmix; the method wants {what}, which a mixed image is not")
            self.mixer = Mixer(augment, classes or int(self.labels.max()) + 1, seed, self.device)

    def __len__(self) -> int:
        if self.augment is not None:
            return len(self.labels) // (self.batch_size * self.ranks)
        return -(-len(self.labels) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """The next epoch: who iterates once more sees another order and other distortions."""
        self.begun += 1
        return self.epoch(self.begun - 1)

    def _note(self, failure: str) -> None:
        """Once for each file that cannot be read. Raises: InputError with `bad_images="stop"`."""
        if self.bad_images == "stop":
            raise InputError(f"{failure}; --bad-images skip goes on without it")
        if failure not in self.unreadable:
            self.unreadable.append(failure)
            fate = "left out" if self.augment is None else "another image of its class stands in"
            if not self.quiet:
                log.warning("%s; %s", failure, fate)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from number `start` on."""
        order, keys = self._order(epoch)
        ours = slice(self.rank, len(self) * self.ranks, self.ranks)
        batches, draws = (torch.split(each, self.batch_size)[ours][start:] for each in (order, keys))
        needed = (self._needed(*pair, epoch) for pair in zip(batches, draws, strict=True))
        for keys, (rows, pixels, takes) in zip(draws, self.read(needed), strict=True):
            if len(rows):
                keys = keys.to(self.device)
                inputs = tuple(self._inputs(keys, pixels, takes, epoch))
                labels = self.labels[rows].to(self.device)
                if self.mixer:
                    inputs, labels = self.mixer(inputs, labels, keys, epoch)
                yield Batch(inputs, labels, rows.to(self.device) if self.wants.index else None)

    def _order(self, epoch: int) -> tuple[Tensor, Tensor]:
        """An epoch's rows, and the key of each one's draws: the row itself, or where it comes again another."""
        count = len(self.labels)
        rows = torch.arange(count, device=self.labels.device)
        if self.augment is None:
            return rows, rows
        order = counter_hash(self.seed, epoch, rows).argsort(stable=True)
        if not self.balanced:
            return order, order
        by_class = order[self.labels[order].argsort(stable=True)]
        sizes = self.labels.bincount()
        first, there = sizes.cumsum(0) - sizes, sizes.nonzero().flatten()
        kind, turn = there[order % len(there)], order // len(there)  # position p is of class p modulo their number
        rows = by_class[first[kind] + turn % sizes[kind]]
        return rows, rows + count * (turn // sizes[kind])

    def _needed(self, rows: Tensor, keys: Tensor, epoch: int) -> Needed:
        """Which images a batch needs: a sample's own in all views, then its classmate's."""
        mates = draws = None
        if self.classmates is not None:
            mates = self.classmates.of(rows, counter_hash(self.seed, epoch, keys, 0, CLASSMATE_DRAW))
        if self.augment is not None and self.augment.crop:
            views = self.wants.views + int(self.wants.classmate)
            numbers = torch.arange(views)[:, None, None], CROP_DRAW + torch.arange(4)
            draws = uniform(self.seed, epoch, keys[:, None], *numbers)  # [views, B, 4]
        return Needed(rows, self.wants.views, mates, draws)

    def _inputs(self, rows: Tensor, pixels: Tensor, takes: Sequence[Tensor], epoch: int) -> Iterator[Tensor]:
        """Each of `pixels[take]`, distorted; `rows` are the keys of all draws."""
        for view, take in enumerate(takes):
            if self.augment is None:
                yield normalise(pixels[take], self.mean, self.std)
                continue
            keys = {"seed": self.seed, "epoch": epoch, "view": view}
            view_pixels = distort(pixels, take, rows, self.augment, **keys)
            if self.augment.policy:
                from teacherless.data.augment.policies import distorted

                view_pixels = distorted(view_pixels, rows, self.augment, **keys)
            yield erased(normalise(view_pixels, self.mean, self.std), rows, self.augment, **keys)


class _Classmates:
    """For each row another row of its class."""

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels
        self.sizes = labels.bincount()
        single = (self.sizes == 1).nonzero().flatten().tolist()
        if single:
            raise InputError(f"data: class {single[0]} has one training image; a classmate needs two")
        self.order = labels.argsort(stable=True)  # by class
        self.first = self.sizes.cumsum(0) - self.sizes  # where a class starts in `order`
        self.place = torch.empty_like(self.order)  # the inverse of `order`
        self.place[self.order] = torch.arange(len(labels), device=labels.device)

    def of(self, rows: Tensor, draw: Tensor) -> Tensor:
        """`[B], [B] -> [B]`."""
        kind = self.labels[rows]
        size, first = self.sizes[kind], self.first[kind]
        step = 1 + draw % (size - 1)  # around the class, but never a whole turn: never itself
        return self.order[first + (self.place[rows] - first + step) % size]


class Needed(NamedTuple):
    """What a batch is made of."""

    rows: Tensor  # [B]
    views: int
    mates: Tensor | None  # [B], rows of classmates
    draws: Tensor | None  # [views, B, 4] in [0, 1), of random-resized crops; the mate's come last

    @property
    def own(self) -> int:
        """How many images are read of each sample: a view is a crop of its own, or the same image again."""
        return 1 if self.draws is None else self.views


Read = Iterator[tuple[Tensor, Tensor, list[Tensor]]]  # rows, pixels, and where in pixels each view of a batch is


def _look_up(pixels: Tensor, needed: Iterable[Needed]) -> Read:
    """Pixels are there already: rows are where to look."""
    for rows, views, mates, _ in needed:
        yield rows, pixels, [rows] * views + ([] if mates is None else [mates])


class _FromFiles:
    """Each batch is decoded, moved and padded; rows count from 0 in it."""

    def __init__(
        self, split: Files, augment: Augment | None, device: torch.device, workers: int, note: Callable[[str], None]
    ) -> None:
        self.augment, self.device, self.workers, self.note = augment, device, workers, note
        self.decode = partial(_decode, split, augment is not None)  # what workers get a copy of

    def read(self, needed: Iterable[Needed]) -> Read:
        waiting: deque[tuple[Needed, int]] = deque()  # the batches on their way, and how many images each reads

        def jobs() -> Iterator[_Job]:
            for need in needed:
                mates = [] if need.mates is None else [need.mates]
                rows = torch.cat([*[need.rows] * need.own, *mates])
                waiting.append((need, len(rows)))
                draws = None if need.draws is None else need.draws.flatten(0, 1).numpy()
                yield rows.numpy(), draws

        for stack, kept, notes in self._decoded(jobs()):
            need, count = waiting.popleft()
            for note in notes:
                self.note(note)
            rows = need.rows
            if self.augment is None and need.mates is None:
                rows = rows[kept]
            elif len(kept) < count:
                raise InputError(f"data: {notes[-1]}: no image of its class can be read")
            pixels = padded(torch.from_numpy(stack).to(self.device), self.augment or Augment())
            takes = list(torch.split(torch.arange(len(stack), device=self.device), max(1, len(rows))))
            own = takes[: need.own]
            yield rows, pixels, own * (need.views // need.own) + takes[need.own :]

    def _decoded(self, jobs: Iterator[_Job]) -> Iterator[_Decoded]:
        if self.workers == 0:
            with images.quietly():
                yield from map(self.decode, jobs)
            return
        team = [_Worker(self.decode) for _ in range(self.workers)]
        flying: deque[tuple[_Worker, _Job]] = deque()
        try:
            for worker, job in zip(team, jobs, strict=False):
                flying.append(worker.give(job))
            while flying:
                worker, job = flying.popleft()
                decoded = worker.take(job)
                if following := next(jobs, None):
                    flying.append(worker.give(following))
                yield decoded
        finally:
            for worker in team:
                worker.end()


_Job = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]  # rows [M], and the draws of their crops [M, 4]
_Decoded = tuple[np.ndarray[Any, Any], list[int], list[str]]  # pixels [M, H, W, C], their places in the job, failures


def _decode(split: Files, replace: bool, job: _Job) -> _Decoded:
    """A batch of files."""
    rows, draws = job
    notes: list[str] = []
    stack: dict[int, images.Pixels] = {}
    crops = [None] * len(rows) if draws is None else draws.tolist()
    for place, (row, crop) in enumerate(zip(rows.tolist(), crops, strict=True)):
        try:
            stack[place] = split.decode(row, crop)
        except images.Unreadable as error:
            notes.append(f"{split.root.name}: cannot read {split.name(row)}: {error}")
            if replace and (image := _stand_in(split, row, crop)) is not None:
                stack[place] = image
    empty = np.zeros((0, *split.size, split.channels), np.uint8)
    return np.stack(list(stack.values())) if stack else empty, list(stack), notes


def _stand_in(split: Files, row: int, crop: Sequence[float] | None) -> images.Pixels | None:
    """The next image of the class, around the end, that can be read."""
    peers = (split.labels == split.labels[row]).nonzero().flatten()
    for other in peers.roll(-int((peers <= row).sum()))[:-1].tolist():
        with contextlib.suppress(images.Unreadable):  # it will be named in its own turn
            return split.decode(other, crop)
    return None


class _Worker:
    """A process that decodes, a batch at a time. Where it died, its batches are decoded here.

    Arrays travel through a pipe, not through shared memory, which containers give 64 MB of. Each worker has a pipe of
    its own: of one that is killed while it writes, the others know nothing.
    """

    def __init__(self, decode: Callable[[_Job], _Decoded]) -> None:
        self.decode, self.alive = decode, True
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=_work, args=(decode, theirs, self.pipe), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, job: _Job) -> tuple[_Worker, _Job]:
        """Send it a batch; it has none."""
        with contextlib.suppress(OSError):  # it died, which `take` sees too
            self.pipe.send(job)
        return self, job

    def take(self, job: _Job) -> _Decoded:
        """The batch that it was given."""
        try:
            decoded: _Decoded = self.pipe.recv()
        except (EOFError, OSError):
            if self.alive:
                died = "a process that decodes images died (killed, or out of memory)"
                log.warning("--workers: %s; what it had to do is done in this one", died)
            self.alive = False
            with images.quietly():
                return self.decode(job)
        return decoded

    def end(self) -> None:
        """It keeps nothing; and one that is stopped (SIGSTOP) hears nothing milder."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _work(decode: Callable[[_Job], _Decoded], pipe: Connection, theirs: Connection) -> None:
    """What a worker does until nobody is there any more."""
    theirs.close()  # or this process would keep its own parent's end open
    for name, action in (("SIGINT", signal.SIG_IGN), ("SIGHUP", signal.SIG_IGN), ("SIGTERM", signal.SIG_DFL)):
        if hasattr(signal, name):  # Ctrl-C and the end of a terminal reach every process: who started this one decides
            signal.signal(getattr(signal, name), action)
    torch.set_num_threads(1)
    with images.quietly(), contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(decode(pipe.recv()))

"""Where ranks stand, and what each of them has: students along "peer", parts of a batch along "data"."""

from __future__ import annotations

import math
import re

from teacherless.batch import mapped
from teacherless.data import Loader
from teacherless.errors import InputError, short
from teacherless.evaluation.metrics import flops
from teacherless.method import Method
from teacherless.training.engines.threads import assign


def shape(parallel: str, ranks: int | None, students: int, splits: bool) -> tuple[int, int]:
    """The mesh, peer × data. `auto`: as many along "peer" as divide both the ranks and the students. For a plan nobody
    has started ranks (None): there are as many as it takes.

    Raises: InputError for one that does not fit.
    """
    named = re.fullmatch(r"([1-9]\d{0,8})x([1-9]\d{0,8})", parallel)
    if ranks is None:
        if not named:
            raise InputError(f"--parallel: found {parallel!r}; without ranks it must be as 2x4 (peer x data)")
        ranks = int(named[1]) * int(named[2])
    along = math.gcd(ranks, students) if splits else 1
    peers, data = {"auto": (along, ranks // along), "data": (1, ranks), "peers": (ranks, 1)}.get(parallel, (0, 0))
    if named:
        peers, data = int(named[1]), int(named[2])
    if not peers:
        raise InputError(f"--parallel: found {parallel!r}; must be auto, data, peers, or as 2x4 (peer x data)")
    if peers * data != ranks:
        raise InputError(f"--parallel: found {parallel}, which is {peers * data} ranks; torchrun started {ranks}")
    if peers > students:
        raise InputError(f"--parallel: found {peers} ranks for peers; there are {students} students to share out")
    if peers > 1 and not splits:
        why = "the method, with these options, does not split by students"
        raise InputError(f"--parallel: found {parallel}; {why}; use data")
    return peers, data


def splits(method: Method) -> bool:
    """Whether ranks can hold different students of it."""
    everyone = range(len(method.students()))
    return method.shard(everyone, lambda own: own, lambda own: (own, slice(None))) is not None


def dealt(method: Method, place: str | None, loader: Loader, peers: int) -> tuple[list[list[int]], list[int]]:
    """The students of each place along "peer", so that costs balance or as `place` says; and what each place costs.

    Raises: InputError for a `place` that does not fit.
    """
    few = mapped(lambda x: x[:2], next(iter(loader.epoch(0))).inputs[0])
    costs = [flops(net, few) for net in method.students().values()]
    assigned = assign(costs, peers) if place is None else placed(place, len(costs), peers)
    return assigned, [sum(costs[i] for i in each) for each in assigned]


def part_of(loader: Loader, rank: int, ranks: int) -> None:
    """From here on a loader reads what one of several data ranks does. Raises: InputError where that is nothing."""
    loader.rank, loader.ranks = rank, ranks
    if len(loader) == 0:
        each = f"found {loader.batch_size} on each of {ranks} data ranks"
        raise InputError(f"--batch-size: {each}; the training set has {len(loader.labels)} samples")


def placed(text: str, students: int, peers: int) -> list[list[int]]:
    """`0,0,1`: each student's place along "peer". Raises: InputError for anything else."""
    places = [int(place) if place.isdecimal() else -1 for place in text.split(",")]
    if len(places) != students or {*places} != {*range(peers)}:
        legal = f"for each of {students} students a place from 0 to {peers - 1}, and none of these left empty"
        raise InputError(f"--place: found {short(text)}; must be {legal}")
    return [[student for student, place in enumerate(places) if place == peer] for peer in range(peers)]

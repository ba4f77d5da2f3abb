"""Ranks for tests: processes with torchrun's environment, from a server that has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from conftest import CLASSES, tiny
from torch import nn

import teacherless as tl
from teacherless.data import Loader, Resident
from teacherless.data.augment.distort import Augment
from teacherless.method import Batch, Method, Wants

SAMPLES = 64
MADE = multiprocessing.get_context("forkserver")
# and what a run imports on its way: each rank would for itself, for seconds
MADE.set_forkserver_preload(
    ["ranks", "teacherless.runs.execute", "sklearn.datasets", "torch._dynamo", "torch.nn.parallel"]
)


class Raised(NamedTuple):
    """An exception of a rank."""

    kind: str
    text: str


def on_ranks(size: int, work: Callable[..., Any], *args: Any, waits_for: int | None = None) -> list[Any]:
    """What `work(*args)` returns, or what it raises, on each of `size` ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [MADE.Pipe(duplex=False) for _ in range(size)]
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    team = [
        MADE.Process(target=_rank, args=(pipe, {**env, "RANK": str(i), "LOCAL_RANK": str(i)}, work, args))
        for i, (_, pipe) in enumerate(pipes)
    ]
    for process in team:
        process.start()
    try:
        found = []
        for number, (end, _) in enumerate(pipes[:waits_for]):
            assert end.poll(180), f"rank {number} hangs"
            found.append(pickle.loads(end.recv_bytes()))
        return found
    finally:
        for process in team:
            process.kill()
            process.join()


def _rank(pipe: Connection, env: dict[str, str], work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update(env)
    torch.set_num_threads(1)
    try:
        found = work(*args)
    except BaseException as error:
        traceback.print_exc()
        found = Raised(type(error).__name__, str(error))
    pipe.send_bytes(pickle.dumps(found))  # torch's own pickling would share memory that dies with this process


def resident(seed: int = 0, size: int = SAMPLES) -> Resident:
    """Noise of 8x8, with a bright square that tells the class."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(size) % CLASSES
    images = torch.randint(0, 200, (size, 8, 8, 1), generator=g, dtype=torch.uint8)
    for i, label in enumerate(labels.tolist()):
        images[i, label : label + 3, label : label + 3] = 255
    return Resident(images, labels)


class Disturbed(Loader):
    """A loader that does something before the batch of a number, counted over all epochs."""

    def __init__(self, *args: Any, at: int, then: Callable[[], object], **more: Any) -> None:
        super().__init__(*args, **more)
        self.at, self.then = at, then

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for number, batch in enumerate(super().epoch(epoch, start), epoch * len(self) + start):
            if number == self.at:
                self.then()
            yield batch


def loader(batch_size: int, wants: Wants = Wants(), at: int = -1, then: Callable[[], object] = bool) -> Loader:
    """To train on; before batch `at` it does `then`."""
    made: dict[str, Any] = {"augment": Augment(pad=1), "mean": [0.5], "std": [0.3], "wants": wants}
    return Disturbed(resident(), batch_size=batch_size, at=at, then=then, **made)


def validation() -> Loader:
    return Loader(resident(5), batch_size=64, mean=[0.5], std=[0.3])


def without_norm(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, nn.Identity())
        else:
            without_norm(child)
    return module


def cohort(peers: int = 4, *, norm: bool = True, **options: Any) -> Method:
    """Peers of several widths."""
    nets = [tiny(seed, width=3 + seed % 3) for seed in range(peers)]
    return tl.DML(*(nets if norm else map(without_norm, nets)), **options)


def weights(method: Method) -> list[torch.Tensor]:
    return [value.clone() for net in method.students().values() for value in net.state_dict().values()]


def farthest(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """The largest difference between two lists of tensors."""
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))

"""Peers on ranks against DistributedDataParallel of all of them: the same students, images and ranks.

python benchmarks/distributed.py [--ranks 2] [--peers 2 4 8] [--student resnet8] [--batch 64] [--steps 20] [--rounds 5]

Both ways train K students on a global batch of `--batch` images. Along "peer" each rank has K / ranks students and all
images; along "data" each has all students and a part of the images. Times are of a step, both ways in turn on the same
ranks; bytes are what one rank hands to its collectives. Needs as many idle cores as ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from bench import interval, machine, ratio, shown, table, write

import teacherless as tl
from teacherless.data import Loader, Resident
from teacherless.data.augment.distort import Augment
from teacherless.method import Progress
from teacherless.training.distributed import opened
from teacherless.training.settings import Settings
from teacherless.training.step import make_optimizer, train_step


def measure(args: argparse.Namespace) -> None:
    """On every rank: both ways, interleaved; the first prints times and bytes."""
    torch.set_num_threads(1)
    with opened(Settings(device="cpu")) as ranks:
        found: dict[str, Any] = {}
        for peers in args.peers:
            steps = {way: step_of(way, peers, args, ranks) for way in ("peers", "data")}
            for step in steps.values():
                step()  # the first makes the optimizer's state, and DDP's buckets
            times: dict[str, list[float]] = {way: [] for way in steps}
            sent = {way: counted(step) for way, step in steps.items()}
            for _ in range(args.rounds):
                for way, step in steps.items():
                    dist.barrier()
                    began = time.perf_counter()
                    for _ in range(args.steps):
                        step()
                    times[way].append(1000 * (time.perf_counter() - began) / args.steps)
            found[str(peers)] = {"ms": times, "bytes": sent}
        if ranks.rank == 0:
            print(json.dumps(found))


def step_of(way: str, peers: int, args: argparse.Namespace, ranks: Any) -> Any:
    nets = [tl.create(args.student, num_classes=10, in_channels=3, seed=seed) for seed in range(peers)]
    method = tl.DML(*nets).train()
    settings = Settings(parallel=way, device="cpu")
    images = torch.randint(
        0, 256, (args.batch, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    own = args.batch // (ranks.size if way == "data" else 1)
    data = Loader(
        Resident(images, torch.arange(args.batch) % 10), batch_size=own, augment=Augment(), mean=[0.5], std=[0.3]
    )
    ranks.lay_out(method, settings, data)
    part, through = ranks.part, ranks.through
    here = type(ranks).__new__(type(ranks))
    here.__dict__ |= ranks.__dict__  # where this method stands, whatever is laid out later
    if part is not method:
        part.exchange = here._mean_of_others
    optimizer = make_optimizer(method.param_groups(), settings, {})
    batch = next(iter(data.epoch(0)))
    return lambda: train_step(part, optimizer, batch, Progress(), through=through)


def counted(step: Any) -> int:
    """The bytes that one rank hands over in a step: to the exchange, and its gradients to DistributedDataParallel."""
    sent = 0
    before = dist.all_reduce

    def counting(tensor: torch.Tensor, *given: Any, **more: Any) -> Any:
        nonlocal sent
        sent += tensor.numel() * tensor.element_size()
        return before(tensor, *given, **more)

    dist.all_reduce = counting
    step()
    dist.all_reduce = before
    return sent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--peers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if "RANK" in os.environ:
        return measure(args)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(args.ranks)}
    team = [
        subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, **where, "RANK": str(rank)},
                         stdout=subprocess.PIPE, text=True)
        for rank in range(args.ranks)
    ]  # fmt: skip
    printed = [process.communicate()[0] for process in team]
    if any(process.returncode for process in team):
        raise SystemExit("a rank failed")
    found = json.loads(printed[0])
    size = sum(p.numel() for p in tl.create(args.student, num_classes=10, in_channels=3, seed=0).parameters())
    rows = []
    for peers, each in found.items():
        times, sent = each["ms"], each["bytes"]
        gradients = 4 * size * int(peers)  # what DistributedDataParallel reduces, in its own way
        rows.append([peers, *(f"{interval(times[way])[0]:.1f}" for way in ("peers", "data")),
                     shown(ratio(times["data"], times["peers"])), f"{sent['peers']:,}", f"{gradients:,}"])  # fmt: skip
    head = [
        "peers",
        "ms, peers on ranks",
        "ms, DDP of all",
        "times as fast",
        "bytes, peers on ranks",
        "bytes, DDP of all",
    ]
    title = f"{args.student}, {args.ranks} ranks (gloo), {args.batch} images a step in all"
    write("distributed", machine("cpu"), {title: table(head, rows)}, found)


if __name__ == "__main__":
    main()

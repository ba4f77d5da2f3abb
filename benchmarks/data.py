"""What surrounds a step: making the batch, and the loop with its recording.

python benchmarks/data.py [--rounds 10] [--net resnet32] [--device cpu]

CIFAR's shapes, in memory: 4 pixels of padding, random crop, flip, normalise. "bare" is a for-loop around the same step
on one fixed batch; "with data" takes its batches from the loader; "train()" is the whole of it, with its metrics: its
second epoch, since before the first it looks once whether the networks fit the data.
"""

from __future__ import annotations

import argparse

import torch
from bench import interleave, interval, machine, ratio, shown, table, timed, write

import teacherless as tl
from teacherless.data import Loader, Resident
from teacherless.data.augment.distort import Augment
from teacherless.method import Batch, Progress
from teacherless.training.precision import tune_allocator
from teacherless.training.settings import Settings
from teacherless.training.step import Engine, make_optimizer, set_rates

STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--net", default="resnet32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    tune_allocator()
    device = torch.device(args.device)
    count = 64 * STEPS
    images = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8)
    split = Resident(images, torch.randint(0, 100, (count,)))
    loader = Loader(
        split, batch_size=64, mean=(0.5,) * 3, std=(0.25,) * 3, augment=Augment(4, flip=True), device=device
    )
    method = tl.Plain(tl.create(args.net, num_classes=100, in_channels=3, seed=0)).to(device).train()
    settings = Settings(lr=0.01, amp=True, sched="constant")
    engine = Engine(method, settings, device)
    optimizer = make_optimizer(method.param_groups(), settings, {})
    fixed: Batch = next(iter(loader.epoch(0)))

    def bare() -> None:
        for _ in range(STEPS):
            set_rates(optimizer, 1.0)
            engine.step(optimizer, fixed, Progress())

    def with_data() -> None:
        for batch in loader.epoch(1):
            set_rates(optimizer, 1.0)
            engine.step(optimizer, batch, Progress())

    def data_alone() -> None:
        for _ in loader.epoch(1):
            pass

    def train() -> float:
        settings = {"lr": 0.01, "amp": True, "sched": "constant", "quiet": True}
        return 1000 * float(tl.train(method, loader, epochs=2, device=args.device, **settings).history[1]["seconds"])

    where = machine(args.device)
    with engine:
        ways = {"bare": bare, "data alone": data_alone, "with data": with_data}
        for way in ways.values():
            way()
        measured = {name: timed(way, device=args.device) for name, way in ways.items()}
        times = interleave({**measured, "train()": train}, args.rounds)
    rows = [[name, f"{interval(t)[0] / STEPS:.2f}", shown(ratio(t, times["bare"]), 4)] for name, t in times.items()]
    title = f"{args.net}, batch 64, --amp"
    write("data", where, {title: table(["", "ms per step", "/ bare"], rows)}, times)


if __name__ == "__main__":
    main()

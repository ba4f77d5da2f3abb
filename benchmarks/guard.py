"""What it costs that a peer which is not finite leaves the others' mean, as a share of a ResNet-32 step.

python benchmarks/guard.py [--rounds 20] [--device cpu]

The guard is a few kernels on the predictions, too little to be seen in a whole step, whose own spread is larger. So the
loss with and without it is timed on logits that are given, forward and backward, and the difference within a round is
divided by the time of a step of the same cohort on 32x32 images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from bench import interleave, interval, machine, shown, table, timed, write
from loss import Given
from torch import Tensor

from teacherless import models
from teacherless.method import Batch, Progress
from teacherless.methods import DML
from teacherless.methods._mutual import mutual
from teacherless.training.precision import tune_allocator
from teacherless.training.settings import Settings
from teacherless.training.step import Engine, make_optimizer

BATCH, CLASSES = 128, 100


class Unguarded(DML):
    """DML in which nobody leaves."""

    def _scores(self, own: Tensor, labels: Tensor, step: Tensor, x: object) -> tuple[Tensor, Tensor]:
        return mutual(own, labels, self.exchange, self.smoothing)


def loss(kind: type[DML], k: int, device: str) -> Callable[[], object]:
    g = torch.Generator().manual_seed(0)
    peers = [Given(torch.randn(BATCH, CLASSES, generator=g).to(device)) for _ in range(k)]
    batch = Batch((torch.zeros(BATCH, 1, device=device),), torch.randint(0, CLASSES, (BATCH,), generator=g).to(device))
    method, leaves = kind(*peers).to(device), [peer.logits for peer in peers]
    return lambda: torch.autograd.grad(method(batch).loss, leaves)


def whole(k: int, device: str) -> Callable[[], object]:
    torch.manual_seed(0)
    method = DML(*(models.create("resnet32", num_classes=CLASSES) for _ in range(k))).to(device).train()
    settings = Settings(engine="loop")
    engine, optimizer = (
        Engine(method, settings, torch.device(device)),
        make_optimizer(method.param_groups(), settings, {}),
    )
    batch = Batch((torch.randn(BATCH, 3, 32, 32, device=device),), torch.randint(0, CLASSES, (BATCH,), device=device))
    zero = torch.zeros((), dtype=torch.long, device=device)
    progress = Progress(zero, zero.clone(), zero + 1)
    return lambda: engine.step(optimizer, batch, progress)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    tune_allocator()
    where, rows, raw = machine(args.device), [], {}
    for k in (2, 3, 4):
        with_it, without, step = loss(DML, k, args.device), loss(Unguarded, k, args.device), whole(k, args.device)
        for each in (with_it, without, step):
            each()
        ways = {"guarded": timed(with_it, 200, args.device), "unguarded": timed(without, 200, args.device),
                "step": timed(step, 1, args.device)}  # fmt: skip
        raw[str(k)] = times = interleave(ways, args.rounds)
        share = interval([100 * (a - b) / c for a, b, c in zip(*times.values(), strict=True)])
        rows.append([str(k), *(f"{interval(t)[0]:.3g}" for t in times.values()), shown(share, 3)])
        print(*rows[-1], flush=True)
    head = ["K", "loss, ms", "loss unguarded, ms", "ResNet-32 step, ms", "guard, % of a step"]
    write("guard", where, {f"B = {BATCH}, C = {CLASSES}": table(head, rows)}, raw)


if __name__ == "__main__":
    main()

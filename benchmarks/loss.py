"""The mimicry loss of DML, forward and backward, against a loop over pairs; and the memory it takes.

python benchmarks/loss.py [--rounds 10] [--device cpu]

Peers that have predicted already: logits in, gradient out, all of `DML.forward` included. "pairs" is what users write:
cross-entropy and `F.kl_div` with each other peer. Memory is the peak beside the logits, the gradient included; on a CPU
each is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from bench import interleave, interval, machine, ratio, shown, table, timed, write
from torch import Tensor, nn
from torch.nn import functional as F

from teacherless.method import Batch
from teacherless.methods import DML
from teacherless.training.precision import tune_allocator

SIZES = [*((k, 128, 100) for k in (2, 4, 8, 16, 32)), *((k, 128, 1000) for k in (2, 4, 8)), (4, 256, 21841)]
HUNGRY = [(8, 128, 1000), (4, 256, 21841)]
WAYS = ("pairs", "ours")


def pairs(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    total = torch.zeros((), device=labels.device)
    for k, own in enumerate(logits):
        total = total + F.cross_entropy(own, labels)
        for j, other in enumerate(logits):
            if j != k:
                kl = F.kl_div(F.log_softmax(own, 1), F.softmax(other.detach(), 1), reduction="batchmean")
                total = total + kl / (len(logits) - 1)
    return total


class Given(nn.Module):
    """A peer that predicts what it was given."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, _: Tensor) -> Tensor:
        return self.logits


def step(way: str, k: int, b: int, c: int, device: str) -> Callable[[], object]:
    g = torch.Generator().manual_seed(0)
    peers = [Given(torch.randn(b, c, generator=g).to(device)) for _ in range(k)]
    batch = Batch((torch.zeros(b, 1, device=device),), torch.randint(0, c, (b,), generator=g).to(device))
    method, leaves = DML(*peers), [peer.logits for peer in peers]

    def ours() -> None:
        torch.autograd.grad(method(batch).loss, leaves)

    def by_pairs() -> None:
        torch.autograd.grad(pairs([peer(batch.inputs[0]) for peer in peers], batch.labels), leaves)

    return ours if way == "ours" else by_pairs


def peak(way: str, k: int, b: int, c: int, device: str) -> float:
    """Memory beside the logits at the worst moment, as a multiple of theirs."""
    logits = 4 * k * b * c
    step(way, 2, 4, 8, device)()  # libraries load
    run = step(way, k, b, c, device)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - before) / logits - 1
    before = int(_status("VmRSS"))
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest mark
    run()
    return 1024 * (int(_status("VmHWM")) - before) / logits - 1


def _status(field: str) -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.peak:
        way, *size = json.loads(args.peak)
        return print(peak(way, *size, args.device))
    tune_allocator()
    where, rows, raw = machine(args.device), [], {}
    for k, b, c in SIZES:
        repeats = max(2, min(20, 100_000_000 // (k * k * b * c)))
        times = interleave(
            {way: timed(step(way, k, b, c, args.device), repeats, args.device) for way in WAYS}, args.rounds
        )
        raw[f"{k} {b} {c}"] = times
        rows.append([str(k), str(b), str(c), *(f"{interval(t)[0]:.3g}" for t in times.values()),
                     shown(ratio(times["pairs"], times["ours"]), 1)])  # fmt: skip
        print(*rows[-1], flush=True)
    memory = []
    for size in HUNGRY:
        found = []
        for way in WAYS:
            command = [sys.executable, __file__, "--device", args.device, "--peak", json.dumps([way, *size])]
            env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back: no fragments counted
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
            found.append(float(done.stdout))
        memory.append([*map(str, size), *(f"{x:.1f}" for x in found), f"{found[0] / found[1]:.1f}"])
    head = ["K", "B", "C", *(f"{way}, ms" for way in WAYS), "pairs / ours"]
    sections = {
        "Time": table(head, rows),
        "Peak memory beside the logits, as a multiple of them": table([*head[:3], *WAYS, "pairs / ours"], memory),
    }
    write("loss", where, sections, {"times": raw, "memory": memory})


if __name__ == "__main__":
    main()

"""What a step costs on thousands of ranks, by a model: K peers on K ranks against DistributedDataParallel of all K.

python benchmarks/scaling_simulation.py [--params 25.6e6] [--step 0.25] [--batch 32] [--classes 1000] [--full 8]
    [--bandwidth 12.5e9] [--latency 15e-6] [--jitter 0.05] [--overlap 0.8]

Both ways use the same ranks and train the same students on as many images a second. Nothing here was measured: the
defaults are a ResNet-50 of a quarter of a second per 32 images, on links of 100 Gbit/s.

The model, for N ranks and K students of `params` numbers; `step` is the seconds of one student's forward and backward
on `batch` images on one rank:
- An all-reduce of n bytes among R ranks takes 2 (R-1)/R n / bandwidth + 2 log2(R) latency.
- Peers on ranks: a mesh of K x N/K. A rank computes one student on `batch` images; batch x (classes + 1) numbers are
  reduced among K ranks, and one student's gradients among N/K.
- DDP of all: a rank computes K students on batch / K images; all students' gradients are reduced among N.
- Backward hides the share `overlap` of its own time of a reduction of gradients; nothing hides the exchange.
- Each rank's compute is lognormal with relative spread `jitter`; who meets waits for the slowest. Peers of one batch
  meet in the middle of a step, and everybody at its end.
- A device is not faster on fewer than `full` images: this decides where DDP of many students stops paying.
"""

from __future__ import annotations

import argparse
import math

import numpy as np


def reduced(size: float, ranks: int, args: argparse.Namespace) -> float:
    """Seconds of an all-reduce."""
    if ranks == 1:
        return 0.0
    return 2 * (ranks - 1) / ranks * size / args.bandwidth + 2 * math.log2(ranks) * args.latency


def slowest(mean: float, ranks: int, args: argparse.Namespace, draws: np.random.Generator) -> float:
    """The expected time of the slowest of so many, each `mean` in the middle."""
    spread = np.sqrt(np.log1p(args.jitter**2))
    return float(mean * np.exp(spread * draws.standard_normal((200, ranks)).max(1)).mean())


def peers_on_ranks(ranks: int, peers: int, args: argparse.Namespace, draws: np.random.Generator) -> float:
    forward, backward = args.step / 3, 2 * args.step / 3
    exchange = reduced(4 * args.batch * (args.classes + 1), peers, args)
    gradients = reduced(4 * args.params, ranks // peers, args)
    middle = slowest(forward, peers, args, draws) + exchange
    return middle + slowest(backward, ranks, args, draws) + max(0.0, gradients - args.overlap * backward)


def ddp_of_all(ranks: int, peers: int, args: argparse.Namespace, draws: np.random.Generator) -> float:
    share = max(args.batch / peers, min(args.full, args.batch)) / args.batch  # a device is not faster on fewer images
    compute = peers * share * args.step
    gradients = reduced(4 * args.params * peers, ranks, args)
    return slowest(compute, ranks, args, draws) + max(0.0, gradients - args.overlap * 2 / 3 * compute)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("params", 25.6e6), ("step", 0.25), ("batch", 32), ("classes", 1000), ("bandwidth", 12.5e9),
                          ("latency", 15e-6), ("jitter", 0.05), ("overlap", 0.8), ("full", 8)):  # fmt: skip
        parser.add_argument(f"--{name}", type=type(default), default=default)
    args = parser.parse_args()
    draws = np.random.default_rng(0)
    sent = "exchange, bytes | gradients of peers on ranks | gradients of DDP"
    print(f"| ranks | peers | {sent} | peers on ranks, s | DDP, s | times as fast |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|")
    for ranks in (8, 64, 512, 4096):
        for peers in (2, 4, 8, 64, 512):
            if peers > ranks:
                continue
            ours, theirs = (way(ranks, peers, args, draws) for way in (peers_on_ranks, ddp_of_all))
            exchange, one = 4 * args.batch * (args.classes + 1), 4 * args.params
            sent = f"{exchange:.3g} | {one if ranks > peers else 0:.3g} | {one * peers:.3g}"
            print(f"| {ranks} | {peers} | {sent} | {ours:.3f} | {theirs:.3f} | {theirs / ours:.2f} |")


if __name__ == "__main__":
    main()

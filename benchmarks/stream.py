"""Does memory stay flat while a folder larger than memory is streamed? 20,000 JPEGs, two workers, RSS from /proc.

python benchmarks/stream.py [--images 20000] [--epochs 2] [--workers 2] [--size 64] [--step-ms 0]
python benchmarks/stream.py --aug rrc-flip --net resnet18 --size 112 --batches 30    # is its training step kept fed?

Memory is what this process and its workers hold at the end of every tenth of an epoch: "private" counts pages shared
between a worker and its parent once (PSS), "rss" counts them in each. Flat means that the second epoch ends no higher
than the first. Linux only.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from teacherless.data import Files, Loader, load
from teacherless.method import Batch
from teacherless.models import create


def write_photos(root: Path, count: int, side: int = 160, classes: int = 10) -> None:
    """JPEGs of smooth noise. 200 different ones, each padded by a comment so that all files differ."""
    rng = np.random.default_rng(0)
    stock = []
    for _ in range(200):
        image = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((side, side))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        stock.append(buffer.getvalue())
    for c in range(classes):
        (root / f"class{c}").mkdir(parents=True)
    for i in range(count):
        (root / f"class{i % classes}" / f"{i:06}.jpg").write_bytes(stock[i % len(stock)] + f"{i}".encode())


def memory(kind: str) -> float:
    """MB of this process and its children."""
    me = os.getpid()
    children = Path(f"/proc/{me}/task/{me}/children").read_text().split()
    total = 0.0
    for pid in (str(me), *children):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # a worker that has just ended
        total += sum(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) / 1024
    return total


def trainer(name: str) -> Callable[[Batch], None]:
    """A plain training step of a network with its ImageNet stem."""
    net = create(name, num_classes=10, stem="imagenet").to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)

    def step(batch: Batch) -> None:
        torch.nn.functional.cross_entropy(net(batch.inputs[0]), batch.labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--side", type=int, default=160, help="of the JPEGs, in pixels")
    parser.add_argument("--aug", help="as in `teacherless train`; rrc-flip is ImageNet's")
    parser.add_argument("--net", help="train this network, and say how long it waits for a batch")
    parser.add_argument("--batches", type=int, help="stop after so many batches of an epoch")
    parser.add_argument("--step-ms", type=float, default=0, help="pretend to train for so long per batch")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "photos"
        write_photos(root / "train", args.images, args.side)
        begin = time.perf_counter()
        source = load(str(root), img_size=args.size, stream=True, val_fraction=0, aug=args.aug)
        assert isinstance(source.train, Files)
        print(f"{args.images:,} files looked through in {time.perf_counter() - begin:.1f} s")
        loader = Loader(source.train, batch_size=args.batch_size, mean=source.mean, std=source.std,
                        augment=source.augment, workers=args.workers)  # fmt: skip
        step = trainer(args.net) if args.net else lambda batch: time.sleep(args.step_ms / 1000)
        total = min(len(loader), args.batches or len(loader))
        tenth = max(1, total // 10)
        print(f"before: pss {memory('Pss'):.0f} MB, rss {memory('Rss'):.0f} MB")
        for epoch in range(args.epochs):
            begin, pss, rss, waited = time.perf_counter(), [], [], []
            asked = begin
            for number, batch in enumerate(islice(loader.epoch(epoch), total), 1):
                waited.append(time.perf_counter() - asked)
                step(batch)
                if number % tenth == 0:
                    pss.append(memory("Pss"))
                    rss.append(memory("Rss"))
                asked = time.perf_counter()
            spent = time.perf_counter() - begin
            share = 100 * sum(waited[1:]) / spent
            fed = f"waited {share:.1f} % of the time, and {1000 * waited[0]:.0f} ms for the first batch"
            print(f"epoch {epoch}: {total * args.batch_size / spent:,.0f} img/s; pss MB "
                  f"{' '.join(f'{m:.0f}' for m in pss)}; rss {max(rss):.0f}; {fed}")  # fmt: skip


if __name__ == "__main__":
    main()

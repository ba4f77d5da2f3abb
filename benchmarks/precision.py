"""Does --amp cost accuracy? The same runs in fp32 and in bf16, the same seeds, and the difference with its interval.

python benchmarks/precision.py [--method dml] [--seeds 5] [--epochs 10] [--train-samples 10000] [--data fashion-mnist]

Real runs of the command line, each in a process of its own with one thread; finished ones are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

from bench import machine, table, write

from teacherless.study.statistics import t_interval


def top1(out: Path, seed: int, amp: bool, args: argparse.Namespace) -> float:
    """The test accuracy of the first student of one run."""
    if not (out / "summary.json").exists():
        peers = ["--peers", "2"] if args.method == "dml" else []
        command = ["train", args.method, "--data", args.data, "--student", args.net, *peers, "--epochs", args.epochs,
                   "--train-samples", args.train_samples, "--seed", str(seed), "--out", str(out), "--engine", "loop",
                   *(["--amp"] if amp else []), *(["--resume"] if out.exists() else [])]  # fmt: skip
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-m", "teacherless", *command], check=True, env=env, stdout=subprocess.DEVNULL)
    students = json.loads((out / "summary.json").read_text())["students"]
    return float(next(iter(students.values()))["test_top1"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="dml", choices=("dml", "plain"))
    parser.add_argument("--net", default="resnet8")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--seeds", type=int, default=5, choices=range(2, 100), metavar="N")
    parser.add_argument("--epochs", default="10")
    parser.add_argument("--train-samples", default="10000")
    parser.add_argument("--runs", type=Path, default=Path("runs/precision"))
    args = parser.parse_args()
    where = machine("cpu")
    what = f"{args.method}-{args.net}-{args.data}-{args.train_samples}-images-{args.epochs}-epochs"
    found: dict[str, list[float]] = {}
    for seed in range(args.seeds):
        for name, amp in (("fp32", False), ("bf16", True)):
            value = top1(args.runs / f"{what}-{name}-s{seed}", seed, amp, args)
            found.setdefault(name, []).append(value)
            print(f"seed {seed}, {name}: {value:.2f} % on test", flush=True)
    differences = [half - full for half, full in zip(found["bf16"], found["fp32"], strict=True)]
    low, high = t_interval(differences)
    rows = [[name, f"{mean(each):.2f} ± {stdev(each):.2f}", ", ".join(f"{v:.2f}" for v in each)]
            for name, each in found.items()]  # fmt: skip
    rows.append(
        [
            "bf16 - fp32",
            f"{mean(differences):+.2f} [{low:+.2f}, {high:+.2f}]",
            ", ".join(f"{v:+.2f}" for v in differences),
        ]
    )
    title = f"{args.train_samples} images of {args.data}, {args.epochs} epochs, {args.seeds} seeds"
    write(
        f"precision-{args.method}",
        where,
        {f"{args.method}, {args.net}, {title}": table(["", "test top-1 %", "by seed"], rows)},
        found,
    )


if __name__ == "__main__":
    main()

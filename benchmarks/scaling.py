"""How our step's cost grows: with the number of peers, the classes and the batch.

python benchmarks/scaling.py [--rounds 10] [--net resnet8] [--device cpu]

The step of `train`, by the engine that `auto` picks, in bf16 (--amp) and fp32. A column "per peer" that stays flat is a
cost that is linear in K.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from bench import Process, interleave, interval, machine, ratio, shown, table, write
from step import __file__ as worker
from step import ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--net", default="resnet8")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    where, sections, raw = machine(args.device), {}, {}
    for amp in (False, True):
        base = ours("dml", "auto", amp) | {"device": args.device, "nets": [args.net] * 2, "batch": 64}
        cases: dict[str, dict[str, dict[str, Any]]] = {
            "K": {f"{k}": base | {"nets": [args.net] * k} for k in range(2, 9)},
            "classes": {f"{c}": base | {"classes": c} for c in (10, 100, 1000, 10000)},
            "batch": {f"{b}": base | {"batch": b} for b in (16, 32, 64, 128, 256)},
        }
        for axis, settings in cases.items():
            processes = {value: Process(worker, setting, 2) for value, setting in settings.items()}
            times = interleave(processes, args.rounds)
            for process in processes.values():
                process.close()
            first, smallest = next(iter(times.values())), float(next(iter(times)))
            rows = []
            for value, t in times.items():
                share = float(value) / smallest if axis != "classes" else 1.0
                rows.append([value, f"{interval(t)[0]:.1f}", shown(ratio(t, first, share))])
            title = f"{axis}, {'amp' if amp else 'fp32'}"
            per = {"K": "per peer, of K = 2", "classes": "of 10 classes", "batch": "per image, of batch 16"}[axis]
            sections[title] = table([axis, "ms", per], rows)
            raw[title] = times
            print(title, sections[title], sep="\n", flush=True)
    write("scaling", where, sections, {"net": args.net, **raw})


if __name__ == "__main__":
    main()

"""One training step: ours, by engine and precision, against what people run today.

python benchmarks/step.py [--case NAME]... [--rounds 10] [--device cpu] [--pytorch-dml FOLDER]

"naive" is the loop as users write it: default layout and allocator, fp32, KL between every two peers, one backward and
one optimizer per student. "independent" is one such network, times K: the price of training K networks apart.
pytorch-dml 1.1.0 runs its own `train_epoch`; get it by
`pip install --no-deps --target FOLDER pytorch-dml==1.1.0 tqdm`. Every setting is a live process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from bench import Process, interleave, interval, machine, ratio, serve, shown, table, write
from torch import Tensor, nn
from torch.nn import functional as F

from teacherless import models
from teacherless.method import Batch, Progress
from teacherless.methods import METHODS
from teacherless.training.precision import tune_allocator
from teacherless.training.settings import Settings
from teacherless.training.step import Engine, make_optimizer

SGD: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
Step = Callable[[], object]


def ours(name: str, engine: str = "loop", amp: bool = False) -> dict[str, Any]:
    return {"way": "ours", "method": name, "engine": engine, "amp": amp}


def dml_case(nets: list[str], batch: int = 64) -> dict[str, dict[str, Any]]:
    """Everything there is to say about one cohort."""
    ways = {
        "naive fp32": {"way": "naive"},
        "pytorch-dml 1.1.0 fp32": {"way": "pytorch-dml"},
        "ours fp32 loop": ours("dml"),
        "ours fp32 threads": ours("dml", "threads"),
        "ours amp loop": ours("dml", amp=True),
        "ours amp threads": ours("dml", "threads", True),
        "ours amp graph": ours("dml", "graph", True),
    }
    cohort = {name: {**way, "nets": nets, "batch": batch} for name, way in ways.items()}
    for net in dict.fromkeys(nets):
        one = {"nets": [net], "batch": batch}
        cohort[f"{net} alone, naive fp32"] = {"way": "naive", **one}
        cohort[f"{net} alone, ours fp32"] = ours("plain") | one
        cohort[f"{net} alone, ours amp"] = ours("plain", amp=True) | one
    return cohort


def methods_case() -> dict[str, dict[str, Any]]:
    one = {"nets": ["resnet32"], "batch": 64}
    return {name: ours(name, amp=True) | one for name in ("plain", "one", "ddgsd")}


CASES: dict[str, dict[str, dict[str, Any]]] = {
    "resnet32*2": dml_case(["resnet32"] * 2),
    "resnet32*4": dml_case(["resnet32"] * 4),
    "resnet32+mobilenet": dml_case(["resnet32", "mobilenet"]),
    "small-cnn*2": dml_case(["small-cnn"] * 2),
    "methods": methods_case(),
}


# One step -------------------------------------------------------------------------------------------------------------


def naive(nets: list[nn.Module], x: Tensor, y: Tensor) -> Step:
    """As users write it."""
    optimizers = [torch.optim.SGD(net.parameters(), **SGD) for net in nets]

    def step() -> None:
        outputs = [net(x) for net in nets]
        for k, optimizer in enumerate(optimizers):
            loss = F.cross_entropy(outputs[k], y)
            for j, other in enumerate(outputs):
                if j != k:
                    kl = F.kl_div(F.log_softmax(outputs[k], 1), F.softmax(other.detach(), 1), reduction="batchmean")
                    loss = loss + kl / (len(nets) - 1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return step


def pytorch_dml(nets: list[nn.Module], x: Tensor, y: Tensor) -> Step:
    """One batch of the library's own epoch."""
    sys.path.insert(0, os.environ["PYTORCH_DML"])
    from pydml.trainers.dml import DMLConfig, DMLTrainer  # type: ignore[import-not-found]

    optimizers = [torch.optim.SGD(net.parameters(), **SGD) for net in nets]
    trainer = DMLTrainer(nets, DMLConfig(temperature=1.0), device=x.device.type, optimizers=optimizers)

    def step() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            trainer.train_epoch([(x, y)], 0)

    return step


def through_engine(nets: list[nn.Module], x: Tensor, y: Tensor, setting: dict[str, Any]) -> Step:
    """Our step, by the engine that `train` uses."""
    tune_allocator()
    method = METHODS[setting["method"]](*nets).to(x.device).train()
    settings = Settings(**SGD, engine=setting["engine"], amp=setting["amp"])
    engine = Engine(method, settings, x.device)
    optimizer = make_optimizer(method.param_groups(), settings, {})
    x = x.contiguous(memory_format=torch.channels_last)
    batch, progress = Batch((x,) * method.wants.views, y, torch.arange(len(y), device=x.device)), Progress()
    engine.__enter__()
    return lambda: engine.step(optimizer, batch, progress)


def build(setting: dict[str, Any]) -> Step:
    torch.manual_seed(0)
    device, channels, size = setting["device"], setting.get("channels", 3), setting.get("size", 32)
    classes = setting.get("classes", 100)
    nets = [
        models.create(name, num_classes=classes, in_channels=channels, seed=i).to(device).train()
        for i, name in enumerate(setting["nets"])
    ]
    x = torch.randn(setting["batch"], channels, size, size, device=device)
    y = torch.randint(0, classes, (setting["batch"],), device=device)
    if setting["way"] == "ours":
        return through_engine(nets, x, y, setting)
    return (naive if setting["way"] == "naive" else pytorch_dml)(nets, x, y)


# Report ---------------------------------------------------------------------------------------------------------------


def measure(case: dict[str, dict[str, Any]], rounds: int, steps: int, device: str) -> dict[str, list[float]]:
    processes = {name: Process(__file__, {**setting, "device": device}, steps) for name, setting in case.items()}
    try:
        return interleave(processes, rounds)
    finally:
        for process in processes.values():
            process.close()


def report(name: str, case: dict[str, dict[str, Any]], times: dict[str, list[float]]) -> str:
    """Milliseconds, and what they are of the naive step, of pytorch-dml's and of K networks apart."""
    if name == "methods":
        rows = [[way, f"{interval(t)[0]:.1f}", shown(ratio(t, times["plain"]))] for way, t in times.items()]
        return table(["method", "ms", "/ plain"], rows)
    nets = next(iter(case.values()))["nets"]

    def apart(kind: str) -> list[float]:
        return [sum(each) for each in zip(*(times[f"{net} alone, {kind}"] for net in nets), strict=True)]

    rows = []
    for way, t in times.items():
        low, mid, high = min(t), interval(t)[0], max(t)
        row = [way, f"{mid:.1f} [{low:.1f}, {high:.1f}]"]
        if "alone" not in way:
            kind = "ours amp" if "amp" in way else "ours fp32"
            row += [shown(ratio(times["naive fp32"], t))]
            row += [shown(ratio(times["pytorch-dml 1.1.0 fp32"], t)) if "pytorch-dml 1.1.0 fp32" in times else "-"]
            row += [shown(ratio(apart("naive fp32"), t)), shown(ratio(t, apart(kind))) if "ours" in way else "-"]
        rows.append(row + [""] * (6 - len(row)))
    head = ["", "ms [min, max]", "naive / this", "pytorch-dml / this", "independent / this", "this / our singles"]
    return table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve")
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3, help="of one measurement")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pytorch-dml", help="the folder it was installed to")
    parser.add_argument("--what", default="step", help="of the result file's name")
    args = parser.parse_args()
    if args.serve:
        setting = json.loads(args.serve)
        return serve(build(setting), setting["device"])
    if args.pytorch_dml:
        os.environ["PYTORCH_DML"] = args.pytorch_dml
    where, sections, raw = machine(args.device), {}, {}
    for name in args.case or CASES:
        case = {
            way: setting
            for way, setting in CASES[name].items()
            if not (setting["way"] == "pytorch-dml" and not args.pytorch_dml)
            and setting.get("engine") != {"cuda": "threads", "cpu": "graph"}[args.device]
        }
        raw[name] = measure(case, args.rounds, args.steps, args.device)
        sections[name] = report(name, case, raw[name])
        print(sections[name], flush=True)
    write(args.what, where, sections, raw)


if __name__ == "__main__":
    main()

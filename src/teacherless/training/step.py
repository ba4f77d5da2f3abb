"""How one step runs: the optimizer, its rates, and what a batch does to them.

The same mathematics whatever the engine; `Engine` holds what is decided once per run, by rules and never by a clock.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Container, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from teacherless.errors import InputError, unknown
from teacherless.method import Batch, Method, Output, Progress
from teacherless.network import drawing_layer
from teacherless.training.engines import threads
from teacherless.training.engines.graph import Graph
from teacherless.training.engines.threads import Threads
from teacherless.training.precision import NO_BF16, channels_last, fast_in_bf16, in_fp32, slow_in_bf16
from teacherless.training.settings import Settings


def train_step(
    method: Method,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    progress: Progress,
    clip: float | None = None,
    *,
    amp: bool = False,
    through: nn.Module | None = None,
) -> Output:
    """One batch: a step for every turn of the method. The terms of the turns are added up.

    With `amp`, convolutions and matrix products of the forward are computed in bfloat16. `through` is called instead of
    the method: it wrapped by DistributedDataParallel.
    """
    outputs = []
    for turn in range(method.turns):
        with torch.autocast(batch.labels.device.type, torch.bfloat16, enabled=amp):
            out: Output = (through or method)(batch, progress._replace(turn=turn))
        out.loss.backward()  # type: ignore[no-untyped-call]
        if clip is not None:
            by_student: dict[Any, list[Tensor]] = {}  # a peer's clipping must not depend on its peers
            for number, group in enumerate(optimizer.param_groups):
                by_student.setdefault(group.get("name", number), []).extend(group["params"])
            for params in by_student.values():
                torch.nn.utils.clip_grad_norm_(params, clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # None, not zero: momentum must not move who did not learn
        outputs.append(out)
    terms = {name: torch.stack([out.terms[name].detach() for out in outputs]).sum() for name in outputs[0].terms}
    return Output(terms, outputs[-1].logits)


def make_optimizer(
    groups: list[dict[str, Any]],
    settings: Settings,
    per_student: dict[str, dict[str, float]],
    body: Container[int] = frozenset(),
) -> torch.optim.Optimizer:
    """One optimizer over every group; a student's own lr, weight_decay and momentum beat the run's. Parameters whose
    `id` is in `body` are in groups of the same names after these, with `settings.body_lr` of the rate.

    Raises: InputError for a name that is no group, an unknown setting, and for momentum where the optimizer has none.
    """
    names = [group["name"] for group in groups]
    for name, own in per_student.items():
        if name not in names:
            raise InputError(f"per_student: found {name!r}; the groups are {', '.join(names)}")
        for key in own:
            if key not in ("lr", "weight_decay", "momentum"):
                raise unknown(f"per_student setting of {name}", key, ("lr", "weight_decay", "momentum"))
        if "momentum" in own and settings.opt != "sgd":
            raise InputError(f"--student: momentum is of sgd; the optimizer is {settings.opt}")
    groups = [{**group, **per_student.get(group["name"], {})} for group in groups]
    if settings.body_lr != 1:
        heads = [{**group, "params": [p for p in group["params"] if id(p) not in body]} for group in groups]
        bodies = [{**group, "params": [p for p in group["params"] if id(p) in body]} for group in groups]
        for group in bodies:
            group["lr"] = settings.body_lr * group.get("lr", settings.lr)
        groups = heads + bodies
    params = [p for group in groups for p in group["params"]]
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in params)  # one kernel, not hundreds
    optimizer: torch.optim.Optimizer
    if settings.opt == "sgd":
        nesterov = settings.nesterov and all(group.get("momentum", settings.momentum) > 0 for group in groups)
        optimizer = torch.optim.SGD(
            groups, settings.lr, settings.momentum, weight_decay=settings.weight_decay, nesterov=nesterov, fused=fused
        )
    else:
        kind = torch.optim.Adam if settings.opt == "adam" else torch.optim.AdamW
        optimizer = kind(groups, settings.lr, settings.opt_betas, weight_decay=settings.weight_decay, fused=fused)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def body(method: Method) -> set[int]:
    """The `id` of every parameter of a student that is not of its head, the last linear layer."""
    ids: set[int] = set()
    for net in method.students().values():
        heads = [layer for layer in net.modules() if isinstance(layer, nn.Linear)][-1:]
        ids |= {id(p) for p in net.parameters()} - {id(p) for head in heads for p in head.parameters()}
    return ids


def rate(settings: Settings, step: int, per_epoch: int, total: int) -> float:
    """The factor on every group's own learning rate at a step."""
    warm = settings.warmup_epochs * per_epoch
    if step < warm:
        return (step + 1) / warm
    if settings.sched == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
    if settings.sched == "step":
        every = settings.decay_epochs or max(1, total // per_epoch // 3)
        milestones = settings.decay_milestones or range(every, total // per_epoch + 1, every)
        return settings.decay_rate ** sum(m * per_epoch <= step for m in milestones)
    return 1.0


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group's rate is its own initial rate times the factor; in place where it is a tensor."""
    for group in optimizer.param_groups:
        value = group["initial_lr"] * factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises: InputError for what torch does not know, or this machine has not."""
    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"--device: found {name}, but this machine has none ({reason}); use cpu or auto") from error
    if device.type == "meta":
        raise InputError("--device: found meta, which computes nothing; use cpu or auto")
    return device


class Engine:
    """What is decided once per run about how its steps are computed. Use it as a context.

    `threads` is chosen for deep networks in bf16, which leave cores idle one after the other, if they are alike and as
    many on every core: else some core waits. It is a rule of the networks, their number, the cores and the precision,
    never of a clock. `graph` has not run on a GPU yet, and is never chosen.

    Args:
        method: what is trained.
        settings: engine, amp, amp_anyway, clip_grad.
        device: where.
        ranks: how many compute this run.
        through: what to call instead of the method.

    Raises: InputError for threads and graph where they cannot be.
    """

    def __init__(
        self,
        method: Method,
        settings: Settings,
        device: torch.device,
        *,
        ranks: int = 1,
        through: nn.Module | None = None,
    ) -> None:
        self.method, self.clip, self.device = method, settings.clip_grad, device
        self.ranks, self.through = ranks, through
        self.amp = settings.amp_anyway or (settings.amp and fast_in_bf16(device))
        self.refused = settings.amp and not self.amp  # bf16 was asked for and is not done
        self.kept = slow_in_bf16(method, device) if self.amp else {}
        self._threads: Threads | None = None
        self._graph: Graph | None = None
        self.automatic = settings.engine == "auto"
        self.choose(settings.engine)
        channels_last(method)

    def choose(self, name: str) -> None:
        """`auto`, or an engine by name (a resumed run's). Raises: InputError for one that cannot be."""
        obstacle = why_not_threads(self.method, self.device)
        if self.ranks > 1 and name in ("threads", "graph"):
            raise InputError(f"--engine: found {name}; ranks compute with --engine loop")
        if name == "threads" and obstacle:
            raise InputError(f"--engine: found threads, but {obstacle}; use --engine loop")
        if name == "graph" and self.device.type != "cuda":
            raise InputError(f"--engine: found graph, but the device is {self.device.type}; it needs --device cuda")
        self.name = name
        if name == "auto":
            sizes = {_size(net) for net in self.method.students().values()}
            deep = len(sizes) == 1 and min(sizes)[0] >= 20
            even = threads.cores() >= 2 and len(self.method.students()) % threads.cores() == 0
            one = self.ranks == 1
            self.name = "threads" if one and even and deep and self.amp and not obstacle else "loop"

    def about(self) -> dict[str, Any]:
        """What run.json says of it."""
        amp = {"dtype": "bfloat16", "fp32": list(self.kept)} if self.amp else None
        return {"engine": self.name, "amp": {"dtype": "float32", "why": NO_BF16} if self.refused else amp}

    @property
    def precision(self) -> str:
        """`bf16`, `fp32`, or why it is not bf16."""
        used = "bf16" if self.amp else "fp32"
        return NO_BF16 if self.refused else used

    def resume(self, stored: Mapping[str, Any]) -> None:
        """Compute as the run that goes on did, whatever this machine is good at."""
        self.amp = (stored["amp"] or {}).get("dtype") == "bfloat16"
        self.refused = stored["amp"] is not None and not self.amp
        self.kept = slow_in_bf16(self.method, self.device) if self.amp else {}
        if self.automatic:
            self.choose(stored["engine"])

    def __enter__(self) -> Engine:
        self._undo = contextlib.ExitStack()
        self._undo.enter_context(in_fp32(self.kept))
        if self.name == "threads":
            self._undo.enter_context(threads.one_thread_each())
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()
        self._threads = self._graph = None

    def step(self, optimizer: torch.optim.Optimizer, batch: Batch, progress: Progress) -> Output:
        """One batch."""
        one = partial(train_step, batch=batch, progress=progress, clip=self.clip, amp=self.amp, through=self.through)
        if self.name == "loop":
            return one(self.method, optimizer)
        if self.name == "graph":
            if self._graph is None or self._graph.optimizer is not optimizer:  # a phase has an optimizer of its own
                self._graph = self._recorded(optimizer)
            return self._graph.step(batch, progress)
        if self._threads is None:
            self._threads = Threads(self.method, batch)
            self._undo.enter_context(self._threads.pool)
        return self._threads.step(one, optimizer)

    def _recorded(self, optimizer: torch.optim.Optimizer) -> Graph:
        one = partial(train_step, self.method, optimizer, clip=self.clip, amp=self.amp)
        students = self.method.students()
        splits = self.method.shard(range(len(students)), lambda own: own) is not None
        independent = list(students.values()) if splits else []
        return Graph(one, optimizer, independent, draws=drawing_layer(self.method) is not None)


def why_not_threads(method: Method, device: torch.device) -> str | None:
    """What keeps a method from being computed by threads, or None."""
    if device.type != "cpu":
        return f"the device is {device.type}, not the CPU"
    if method.shard(range(len(method.students())), lambda own: own) is None:
        return "the method, with these options, does not split by students (simultaneous dml, complete topology, does)"
    layer = drawing_layer(method)
    return f"{layer} draws random numbers, which would come in any order" if layer else None


def _size(net: nn.Module) -> tuple[int, int]:
    """Convolutions and parameters."""
    convolutions = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    return len(convolutions), sum(p.numel() for p in net.parameters())

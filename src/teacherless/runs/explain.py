"""Who teaches whom: the terms of a method as it is built, measured on one batch.

Nothing here knows a method. Who learns from a term is who gets its gradient. A network is a constant in a term where
its influence on the value is more than its gradient says: then part of it is detached. An option is a weight where the
term is proportional to it. Everything runs in float64, in training mode, and leaves no trace: buffers are put back and
random draws repeat.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn

from teacherless import losses
from teacherless.method import Batch, Method, Progress
from teacherless.methods._parts import Frozen
from teacherless.runs.build import build_method, load_source, settable
from teacherless.runs.config import Run
from teacherless.training.step import make_optimizer, train_step

FAR = 100  # a term this many times larger or smaller than cross-entropy is worth a warning
STEPS = 20  # of training before anything is measured
ROWS = 16  # of the batch; enough to see who moves what
STEP = 1e-7  # of a finite difference, relative to the weights' size


class Route(NamedTuple):
    """Who learns, and from what; what teaches is a constant."""

    learns: str
    source: str


class Term(NamedTuple):
    """One term of the loss."""

    phase: str
    name: str
    weight: str
    first: float  # its size in the first epoch
    last: float  # and in the last: a ramp shows
    ratio: float  # to cross-entropy, the larger of the two
    routes: list[Route]

    @property
    def warning(self) -> str:
        """What to think about before training; "" for nothing."""
        if 1 / FAR <= self.ratio <= FAR:
            return ""
        if self.ratio == 0:
            return f"{self.name}: has no size at all on this batch"
        times = f"{self.ratio:.3g} times larger" if self.ratio > 1 else f"{1 / self.ratio:.3g} times smaller"
        return f"{self.name}: {times} than cross-entropy on this batch"


class Explanation(NamedTuple):
    """All there is to say."""

    parts: dict[str, int]  # of what takes part, the parameters
    shipped: list[str]
    terms: list[Term]


def explain(run: Run) -> Explanation:
    """Build what `run` would train, take a few steps, and measure it. Raises: InputError as `train` would.

    Before the first step all networks say nearly the same, and what compares them is small in any method.
    """
    from teacherless.runs.execute import loaders

    source = load_source(run)
    method, per_student = build_method(run, source)
    data = loaders(run, source, method.wants, torch.device("cpu"))[0]
    batches = list(islice(data.epoch(0), STEPS + 1))
    epochs = method.share(run.epochs)
    now = Progress(epochs=torch.tensor(epochs))
    found: list[Term] = []
    for phase in method.phases:
        method.begin(phase)
        optimizer = make_optimizer(method.param_groups(), run, per_student)
        with _repeatable():
            for batch in batches[:-1]:
                train_step(method, optimizer, batch, now, run.clip_grad)
        parts, shipped, terms = measure(method, batches[-1], epochs)
        found += terms
    return Explanation(parts, shipped, found)


def measure(method: Method, batch: Batch, epochs: int = 30) -> Explanation:
    """Every term of the method's phase on `batch`; `method` is not touched."""
    method = copy.deepcopy(method).double().train()
    if isinstance(teacher := getattr(method, "teacher", None), Frozen):
        teacher.net.double()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in batch.inputs)
    probe = Probe(method, batch._replace(inputs=inputs), epochs)
    shipped = {id(p) for net in method.students().values() for p in net.parameters()}
    parts = {name: sum(t.numel() for t in tensors) for name, tensors in probe.parts.items()}
    return Explanation(parts, [n for n, tensors in probe.parts.items() if id(tensors[0]) in shipped], probe.terms())


class Probe:
    """A method, a batch, and ways to shake them."""

    def __init__(self, method: Method, batch: Batch, epochs: int) -> None:
        self.method, self.epochs = method, epochs
        self.whole, self.batch = batch, first_rows(batch, ROWS)
        self.parts: dict[str, list[Tensor]] = {}  # what can move: parameters by owner, teacher, memories
        self.names: dict[int, str] = {}  # of a parameter, within its owner
        for name, p in method.named_parameters():
            owner, inside = _owner(method, name)
            self.parts.setdefault(owner, []).append(p)
            self.names[id(p)] = inside
        if isinstance(teacher := getattr(method, "teacher", None), Frozen):
            self.parts["teacher"] = list(teacher.net.parameters())
        stored = method.state_dict()
        for name, b in method.named_buffers(recurse=False):
            if name in stored and b.is_floating_point():
                self.parts[name] = [b]
        self.at(0, 0)
        with torch.no_grad(), _repeatable():
            method(self.whole, self.progress)  # a memory is worth a look once it has something to remember

    def at(self, epoch: int, turn: int) -> None:
        """Where training stands."""
        self.progress = Progress(torch.tensor(epoch), torch.tensor(epoch), torch.tensor(self.epochs), turn)

    @torch.no_grad()
    def values(self, batch: Batch | None = None) -> dict[str, float]:
        """The terms, and the cross-entropy of the students' logits as `""`."""
        with _repeatable(), self._buffers_kept():
            batch = batch or self.batch
            out = self.method(batch, self.progress)
        found = {name: value.item() for name, value in out.terms.items()}
        return found | {"": losses.ce(out.logits, batch.labels).mean().item()}

    def gradients(self, term: str) -> dict[int, Tensor]:
        """Of a term, by parameter, where it is not 0."""
        params = [p for p in self.method.parameters() if p.requires_grad]
        with _repeatable(), self._buffers_kept():
            value = self.method(self.batch, self.progress).terms[term]
            found = (
                torch.autograd.grad(value, params, allow_unused=True) if value.requires_grad else [None] * len(params)
            )
        return {id(p): g for p, g in zip(params, found, strict=True) if g is not None and bool(g.any())}

    def terms(self) -> list[Term]:
        """The terms of the method's phase."""
        routes: dict[str, list[Route]] = {}
        first, last = self.sizes(0), self.sizes(self.epochs - 1)
        weights = [self.weights(epoch) for epoch in ([0] if first == last else [0, self.epochs - 1])]
        for turn in range(self.method.turns):
            self.at(self.epochs - 1, turn)
            for name, found in self.routes().items():
                routes.setdefault(name, []).extend(found)
        ratios = {
            name: max(abs(size[name]) / (size.get("ce") or size[""]) for size in (first, last)) for name in routes
        }
        return [
            Term(
                self.method.phase,
                name,
                " → ".join(dict.fromkeys(weight[name] for weight in weights)),
                first[name],
                last[name],
                ratios[name],
                found,
            )
            for name, found in routes.items()
        ]

    def sizes(self, epoch: int) -> dict[str, float]:
        """The terms of the whole batch, turns added up."""
        found: dict[str, float] = {}
        for turn in range(self.method.turns):
            self.at(epoch, turn)
            for name, value in self.values(self.whole).items():
                found[name] = found.get(name, 0) + value
        return found

    def routes(self) -> dict[str, list[Route]]:
        """Who learns from whom, term by term, in one turn."""
        names = [name for name in self.values() if name]
        gradients = {name: self.gradients(name) for name in names}
        constants = self._constants(gradients)
        before, after = self.values(), self.values(self._other_labels())
        found = {}
        for name in names:
            learners = self._learners(gradients[name])
            said = ["labels"] if _moved(before[name], after[name]) else []
            peers = [part for part in learners if part in self.method.students()]
            if 1 < len(peers) == len(learners) and constants[name]:  # each may listen to others
                heard = self._heard(name, peers, constants[name], gradients[name])
                found[name] = [Route(learners[peer], ", ".join([*said, *heard[peer]])) for peer in peers]
            else:
                whole = [*said, *constants[name]] or ["itself, not detached"]
                found[name] = [Route(", ".join(learners.values()), ", ".join(whole))]
            if self.batch.inputs[1:] and (read := self._inputs_read(name)):
                found[name] = [route._replace(source=f"{route.source} ({read})") for route in found[name]]
        return found

    def _learners(self, gradients: Mapping[int, Tensor]) -> dict[str, str]:
        """Who gets a gradient, and how to say so where only a part of it does."""
        found = {}
        for owner, tensors in self.parts.items():
            inside = dict.fromkeys(self.names.get(id(t), "") for t in tensors)
            reached = dict.fromkeys(self.names[id(t)] for t in tensors if id(t) in gradients)
            missed = [name for name in inside if name not in reached]
            if reached and not missed:
                found[owner] = owner
            elif reached and len(missed) < len(reached):
                found[owner] = f"{owner} (not {' '.join(missed)})"
            elif reached:
                found[owner] = f"{owner} ({' '.join(reached)})"
        return found

    def _constants(self, gradients: Mapping[str, Mapping[int, Tensor]]) -> dict[str, list[str]]:
        """By term, whose influence on the value is not what the gradient says: it is detached, if only in places."""
        found: dict[str, list[str]] = {name: [] for name in gradients}
        for owner, tensors in self.parts.items():
            with _shaken(tensors, STEP) as direction:
                above = self.values()
            with _shaken(tensors, -STEP):
                below = self.values()
            for name, gradient in gradients.items():
                real = (above[name] - below[name]) / (2 * STEP)
                said = [
                    float((gradient[id(t)] * v).sum())
                    for t, v in zip(tensors, direction, strict=True)
                    if id(t) in gradient
                ]
                scale = max(abs(real), sum(map(abs, said)))  # the parts may cancel
                if abs(real - sum(said)) > max(1e-3 * scale, 1e-7 * abs(above[name])):
                    found[name].append(owner)
        return found

    def _heard(
        self, term: str, peers: list[str], constants: list[str], gradients: Mapping[int, Tensor]
    ) -> dict[str, list[str]]:
        """By peer, whose move changes its gradient."""
        found: dict[str, list[str]] = {peer: [] for peer in peers}
        for teacher in constants:
            with _shaken(self.parts[teacher], 0.1):
                moved = self.gradients(term)
            for peer in set(peers) - {teacher}:
                if any(not torch.equal(moved[i], gradients[i]) for t in self.parts[peer] if (i := id(t)) in gradients):
                    found[peer].append(teacher)
        return found

    def _inputs_read(self, term: str) -> str:
        """Which of several inputs the term depends on, where it is not all of them or the first."""
        wants, inputs = self.method.wants, self.batch.inputs
        names = [f"view {i}" for i in range(wants.views)] + ["classmate"] * wants.classmate
        names = ["image", *names[1:]] if wants.views == 1 else names
        read = []
        for i, name in enumerate(names):
            other = tuple(x.flip(-1) if j == i else x for j, x in enumerate(inputs))
            if _moved(self.values()[term], self.values(self.batch._replace(inputs=other))[term]):
                read.append(name)
        return "" if read == names[:1] else ", ".join(read)

    def _other_labels(self) -> Batch:
        labels = self.batch.labels
        return self.batch._replace(labels=labels.roll(1, -1) if labels.dim() == 2 else labels.roll(1))

    def weights(self, epoch: int) -> dict[str, str]:
        """By term, the options it is proportional to: `alpha · multiplier = 5`, `1 - alpha = 0.9`.

        Proportional to (option - root), with a root that does not depend on the data: 0 for a weight, 1 for what is
        left of a share.
        """
        self.at(epoch, self.method.turns - 1)
        factors: dict[str, list[tuple[str, float]]] = {name: [] for name in self.values()}
        for option in settable(type(self.method)):
            x = getattr(self.method, option, None)
            if type(x) is not float:
                continue
            roots = [self._roots(option, x, batch) for batch in (self.batch, self._other_labels())]
            for name in roots[0].keys() & roots[1].keys():
                root = roots[0][name]
                if abs(root - roots[1][name]) <= 1e-6 * max(1, abs(root)):
                    part = option if round(root, 6) == 1 else f"{option}/{root:.3g}"
                    factors[name].append((option, x) if abs(root) < 1e-6 else (f"1 - {part}", 1 - x / root))
        return {name: _product(found) for name, found in factors.items()}

    def _roots(self, option: str, x: float, batch: Batch) -> dict[str, float]:
        """Of the terms that are linear in the option, where they are 0."""
        h = 0.01 * max(1.0, abs(x))
        seen = []
        for i in range(3):
            setattr(self.method, option, x + i * h)
            seen.append(self.values(batch))
        setattr(self.method, option, x)
        found = {}
        for name, start in seen[0].items():
            slope = seen[1][name] - start
            bend = seen[2][name] - seen[1][name] - slope
            if abs(slope) > 1e-9 * abs(start) and abs(bend) < 1e-6 * abs(slope):
                found[name] = x - h * start / slope
        return found

    @contextmanager
    def _buffers_kept(self) -> Iterator[None]:
        before = {name: b.clone() for name, b in self.method.named_buffers()}
        yield
        for name, b in self.method.named_buffers():
            b.data.copy_(before[name])


@contextmanager
def _repeatable() -> Iterator[None]:
    """The same random draws each time (dropout)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@contextmanager
def _shaken(tensors: list[Tensor], size: float) -> Iterator[list[Tensor]]:
    """The tensors, moved a little in a direction that is the same each time."""
    g = torch.Generator().manual_seed(1)
    before = [t.detach().clone() for t in tensors]
    direction = [torch.randn(t.shape, generator=g, dtype=t.dtype) * (t.detach().abs().mean() + 1e-3) for t in tensors]
    for t, v in zip(tensors, direction, strict=True):
        t.data.add_(v, alpha=size)
    yield direction
    for t, b in zip(tensors, before, strict=True):
        t.data.copy_(b)


def first_rows(batch: Batch, rows: int) -> Batch:
    """So many samples of a batch, the first."""
    index = None if batch.index is None else batch.index[:rows]
    return Batch(tuple(x[:rows] for x in batch.inputs), batch.labels[:rows], index)


def _owner(method: Method, name: str) -> tuple[str, str]:
    """Whose a parameter is, and what it is called there: `peers.0.stages.1.weight` is `peer0`'s `stages.1`."""
    child, _, rest = name.partition(".")
    module = getattr(method, child)
    if isinstance(module, nn.ModuleList):
        number, _, rest = rest.partition(".")
        child = re.sub("(?<=ch)es$|s$", "", child) + (number if len(module) > 1 else "")
    inside = re.match(r"[^.]+(\.\d+)?(?=\.|$)", rest)
    return child, inside[0] if inside else rest


def _moved(a: float, b: float) -> bool:
    return abs(a - b) > 1e-9 * max(abs(a), abs(b))


def _product(factors: list[tuple[str, float]]) -> str:
    if not factors:
        return "1"
    names = [f"({name})" if " " in name and len(factors) > 1 else name for name, _ in factors]
    value = 1.0
    for _, factor in factors:
        value *= factor
    return f"{' · '.join(names)} = {value:.4g}"


def show(found: Explanation, write: Callable[[object], None]) -> None:
    """The explanation as text and a table, through `write`."""
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    kept = [f"{name} ({size:,})" for name, size in found.parts.items() if name not in found.shipped]
    shipped = [f"{name} ({found.parts[name]:,})" for name in found.shipped]
    write(Text(f"parameters shipped: {', '.join(shipped)}" + (f"; left behind: {', '.join(kept)}" if kept else "")))
    table = Table(box=SIMPLE)
    for column in ("term", "who learns", "from, detached", "weight", "size", "of CE"):
        table.add_column(column, justify="right" if column in ("size", "of CE") else "left")
    for term in found.terms:
        name = f"{term.phase}: {term.name}" if term.phase else term.name
        size = f"{term.first:.3g}" if not _moved(term.first, term.last) else f"{term.first:.3g} → {term.last:.3g}"
        for i, route in enumerate(term.routes):
            rest = ("", "", "", "") if i else (name, term.weight, size, f"{term.ratio:.3g}")
            table.add_row(rest[0], route.learns, route.source, *rest[1:])
    write(table)
    write(Text(f"sizes: of one batch after {STEPS} steps, in the first epoch → in the last"))
    for term in found.terms:
        if term.warning:
            write(Text(f"warning: {term.warning}"))

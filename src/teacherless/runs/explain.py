"""Who learns from which term, and how much a term weighs: the terms of a method as it is built, on one batch.

Nothing here knows a method: who learns from a term is who gets its gradient. The method that is asked about is not
touched, and random draws repeat. From whom it learns stands on its card.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import nn

from teacherless import losses, models
from teacherless.method import Batch, Method, Progress
from teacherless.methods import METHODS
from teacherless.runs.build import build_method, load_source, method_options
from teacherless.runs.config import Run
from teacherless.runs.execute import loaders
from teacherless.training.step import body, make_optimizer, train_step

FAR = 100  # a term this many times larger or smaller than cross-entropy is worth a warning
CLASSES = 4  # of the noise that shows who teaches whom
STEPS = 20  # of training before anything is measured: at first all networks say nearly the same


class Term(NamedTuple):
    """One term of the loss."""

    phase: str
    name: str
    learns: list[str]  # whose parameters get its gradient; "student, in part" where it is not all of them
    first: float  # its size in the first epoch
    last: float  # and in the last: a ramp shows
    ratio: float  # to cross-entropy, the larger of the two

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

    shipped: dict[str, int]  # parameters of what is shipped, by owner
    helpers: dict[str, int]  # and of what is trained and left behind
    terms: list[Term]


def explain(run: Run) -> Explanation:
    """Build what `run` would train, take a few steps of each phase, and measure. Raises: InputError as `train`."""
    source = load_source(run)
    method, per_student = build_method(run, source)
    data = loaders(run, source, method.wants, torch.device("cpu"))[0]
    batches = list(islice(data.epoch(0), STEPS + 1))
    epochs = method.share(run.epochs)
    terms: list[Term] = []
    for phase in method.phases:
        method.train().begin(phase)
        optimizer = make_optimizer(method.param_groups(), run, per_student, body(method))
        for batch in batches[:-1]:
            train_step(method, optimizer, batch, Progress(epochs=torch.tensor(epochs)), run.clip_grad)
        explanation = measure(method, batches[-1], epochs)
        terms += explanation.terms
    return explanation._replace(terms=terms)


class Lessons(NamedTuple):
    """Who teaches whom."""

    nodes: list[str]  # the students, and a teacher if there is one
    edges: list[tuple[str, str]]  # who teaches, who learns; a student that learns from itself is both
    terms: dict[str, list[str]]  # of the loss, and which students learn from it


def lessons(run: Run, students: int) -> Lessons:
    """Who teaches whom in a run's method, on small networks and noise: neither its data nor its networks are touched.

    One network teaches another if the other's gradient changes with the first one's own weights. Raises: InputError
    for options that do not fit.
    """
    kind, size = METHODS[run.method], 2 * CLASSES
    nets = [
        models.create("small-cnn", num_classes=CLASSES, in_channels=1, seed=i, width=4) for i in range(students + 1)
    ]
    known = {"num_classes": CLASSES, "num_samples": size}
    options = method_options(kind, run.method, run.set) | {name: known[name] for name in kind.needs}
    given = nets[: students if kind.cohort else 1] + (nets[-1:] if run.teacher else [])
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = kind(*given, **options)
    inputs = method.wants.views + method.wants.classmate
    rows = torch.arange(size)
    batch = Batch(tuple(torch.randn(inputs, size, 1, 8, 8, generator=draw)), rows % CLASSES, rows)
    owned = _own(method)
    nodes = [*owned, *(["teacher"] if run.teacher else [])]
    edges: dict[tuple[str, str], None] = {}
    terms: dict[str, list[str]] = {}
    for phase in method.phases:
        method.train().begin(phase)
        before = _gradients(method, batch, owned, terms)
        for name in nodes:
            other: Any = copy.deepcopy(method)
            params = dict(other.named_parameters())
            changed = [params[key] for key in owned[name]] if name in owned else other.teacher.net.parameters()
            with torch.no_grad():
                for p in changed:
                    p.add_(torch.randn(p.shape, generator=draw), alpha=0.1)
            after = _gradients(other, batch, owned, {})
            for learner in (each for each in owned if each != name):
                if not torch.allclose(after[learner], before[learner], rtol=1e-4, atol=1e-7):
                    edges[name, learner] = None
    if len(nodes) == 1 and any(learners for term, learners in terms.items() if term != "ce"):
        edges[nodes[0], nodes[0]] = None
    return Lessons(nodes, list(edges), terms)


def _own(method: Method) -> dict[str, list[str]]:
    """Of each student the names of the parameters that no other student has."""
    students = {name: {id(p) for p in net.parameters()} for name, net in method.students().items()}
    owners = Counter(key for own in students.values() for key in own)
    return {
        name: [key for key, p in method.named_parameters() if id(p) in own and owners[id(p)] == 1]
        for name, own in students.items()
    }


def _gradients(
    method: Method, batch: Batch, owned: dict[str, list[str]], terms: dict[str, list[str]]
) -> dict[str, torch.Tensor]:
    """Each student's gradient of the loss over all turns, as one vector; adds to `terms` who learns from each."""
    method = copy.deepcopy(method)
    params = dict(method.named_parameters())
    now = Progress(torch.tensor(1), torch.tensor(1), torch.tensor(2), 0)
    totals = {name: torch.zeros(sum(params[key].numel() for key in keys)) for name, keys in owned.items()}
    with torch.random.fork_rng(devices=[]):
        with torch.no_grad():
            method(batch, now)  # a memory has something to remember
        for turn in range(method.turns):
            torch.manual_seed(0)
            for term, value in method(batch, now._replace(turn=turn)).terms.items():
                for name, keys in owned.items():
                    if not value.requires_grad:
                        continue
                    own = [params[key] for key in keys if params[key].requires_grad]
                    each = torch.autograd.grad(value, own, retain_graph=True, allow_unused=True, materialize_grads=True)
                    flat = torch.cat([gradient.flatten() for gradient in each])
                    totals[name] = totals[name] + flat
                    if flat.any() and name not in terms.setdefault(term, []):
                        terms[term].append(name)
    return totals


def measure(method: Method, batch: Batch, epochs: int = 30) -> Explanation:
    """Every term of the method's phase on `batch`."""
    owned: dict[str, list[nn.Parameter]] = {}
    for name, p in method.named_parameters():
        owned.setdefault(_owner(method, name), []).append(p)
    inside = {id(p) for net in method.students().values() for p in net.parameters()}
    shipped, helpers = (
        {owner: sum(p.numel() for p in params) for owner, params in owned.items() if (id(params[0]) in inside) == which}
        for which in (True, False)
    )
    first, last = (_terms(method, batch, epoch, epochs) for epoch in (0, epochs - 1))
    ratios = {name: max(abs(terms[name][0]) / _ce(terms) for terms in (first, last)) for name in last}
    named = ((name, *measured) for name, measured in last.items() if name)
    terms = [Term(method.phase, name, learns, first[name][0], size, ratios[name]) for name, size, learns in named]
    return Explanation(shipped, helpers, terms)


def _terms(method: Method, batch: Batch, epoch: int, epochs: int) -> dict[str, tuple[float, list[str]]]:
    """By term, its size with all turns added up, and who learns; `""` is the cross-entropy of the students' logits."""
    method = copy.deepcopy(method).train()
    now = Progress(torch.tensor(epoch), torch.tensor(epoch), torch.tensor(epochs), 0)
    params = {p: _owner(method, name) for name, p in method.named_parameters() if p.requires_grad}
    sizes: dict[str, float] = {}
    reached: dict[str, set[nn.Parameter]] = {}
    with torch.random.fork_rng(devices=[]):
        with torch.no_grad():
            method(batch, now)  # a memory is worth a look once it has something to remember
        for turn in range(method.turns):
            torch.manual_seed(0)
            out = method(batch, now._replace(turn=turn))
            for name, value in {**out.terms, "": losses.ce(out.logits, batch.labels).mean()}.items():
                sizes[name] = sizes.get(name, 0.0) + value.item()
                whose = reached.setdefault(name, set())
                if value.requires_grad:
                    gradients = torch.autograd.grad(value, list(params), retain_graph=True, allow_unused=True)
                    whose.update(p for p, g in zip(params, gradients, strict=True) if g is not None and g.any())
    return {name: (size, _learners(params, reached[name])) for name, size in sizes.items()}


def _ce(terms: dict[str, tuple[float, list[str]]]) -> float:
    return terms.get("ce", terms[""])[0] or terms[""][0]


def _learners(params: dict[nn.Parameter, str], reached: set[nn.Parameter]) -> list[str]:
    """The owners of the parameters that are reached."""
    missed = {owner for p, owner in params.items() if p not in reached}
    owners = dict.fromkeys(owner for p, owner in params.items() if p in reached)
    return [f"{owner}, in part" if owner in missed else owner for owner in owners]


def _owner(method: Method, name: str) -> str:
    """Whose a parameter is: `peers.0.stages.1.weight` is `peer0`'s."""
    child, _, rest = name.partition(".")
    if not isinstance(module := getattr(method, child), nn.ModuleList):
        return child
    return re.sub("(?<=ch)es$|s$", "", child) + (rest.partition(".")[0] if len(module) > 1 else "")

"""Who learns from which term, and how much a term weighs: the terms of a method as it is built, on one batch.

Nothing here knows a method: who learns from a term is who gets its gradient. The method that is asked about is not
touched, and random draws repeat. From whom it learns stands on its card.
"""

from __future__ import annotations

import copy
import re
from itertools import islice
from typing import NamedTuple

import torch
from torch import nn

from teacherless import losses
from teacherless.method import Batch, Method, Progress
from teacherless.runs.build import build_method, load_source
from teacherless.runs.config import Run
from teacherless.runs.execute import loaders
from teacherless.training.step import body, make_optimizer, train_step

FAR = 100  # a term this many times larger or smaller than cross-entropy is worth a warning
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
        found = measure(method, batches[-1], epochs)
        terms += found.terms
    return found._replace(terms=terms)


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
    terms = [Term(method.phase, name, learns, first[name][0], size, ratios[name])
             for name, (size, learns) in last.items() if name]  # fmt: skip
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

"""The matrix: every method of METHODS keeps every promise of the contract. A new method walks in by its table line."""

from __future__ import annotations

import copy
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CLASSES, tiny
from torch import nn

from teacherless.method import Batch, Method, Progress
from teacherless.methods import METHODS
from teacherless.methods.plain import Plain
from teacherless.models.files import load_student, save_student
from teacherless.training.lifecycle import train

SAMPLES = 64
HEADINGS = (
    "What:", "Formula:", "Paper:", "Defaults:", "Where we differ from the paper, and from the authors' code:", "Ships:",
    "Cost:", "Results:",
)  # fmt: skip
FIRST = {"dlb"}  # whose first step has no past, and so a graph of its own


def declared(name: str, what: str) -> Any:
    """What a method's reference test says of it. ROUTES: which children of the method a term's gradient reaches."""
    file = f"test_{METHODS[name].__module__.rpartition('.')[2]}"
    try:
        return getattr(importlib.import_module(file), what)
    except (ImportError, AttributeError):
        raise AssertionError(f"{name}: tests/methods/{file}.py declares no {what}") from None


def build(name: str, seed: int = 0, teacher: nn.Module | None = None, **options: Any) -> Method:
    kind = METHODS[name]
    models: list[nn.Module] = [tiny(seed + 10 * i) for i in range(2 if kind.cohort else 1)]
    if kind.teacher_use == "required" or options.get("mode") == "self":
        models.append(teacher or tiny(seed + 100, width=6))
    known = {"num_classes": CLASSES, "num_samples": SAMPLES}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(*models, **{need: known[need] for need in kind.needs}, **options)


def data(method: Method, seed: int = 0, size: int = SAMPLES) -> Batch:
    """A batch with what the method wants: each class is a bright square somewhere, under noise."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(size) % CLASSES
    inputs = []
    for _ in range(method.wants.views):
        x = torch.randn(size, 1, 8, 8, generator=g)
        for i, label in enumerate(labels):
            x[i, 0, int(label) : int(label) + 3, int(label) : int(label) + 3] += 2
        inputs.append(x)
    if method.wants.classmate:  # the next image of the class
        inputs.append(inputs[0][[i + CLASSES if i + CLASSES < size else i % CLASSES for i in range(size)]])
    return Batch(tuple(inputs), labels, torch.arange(size))


def trainable(method: Method) -> list[torch.nn.Parameter]:
    return [p for group in method.param_groups() for p in group["params"]]


def each_phase(name: str) -> list[Method]:
    methods = []
    for phase in build(name).phases:
        method = build(name)
        method.begin(phase)
        methods.append(method)
    return methods


every_method = pytest.mark.parametrize("name", list(METHODS))
SEVERAL = {"plain", "dml", "ddgsd", "fitnets"}  # of those that take seconds; `make slow` has all
several_methods = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SEVERAL else pytest.mark.slow) for name in METHODS]
)


@every_method
def test_terms_add_up_to_the_loss(name: str) -> None:
    for method in each_phase(name):
        out = method(data(method), Progress())
        assert out.loss.item() == pytest.approx(sum(term.item() for term in out.terms.values()), rel=1e-6)
        assert all(term.dim() == 0 for term in out.terms.values())
        assert out.logits.shape == (len(method.students()), SAMPLES, CLASSES)
        assert not out.logits.requires_grad


@every_method
def test_every_trainable_parameter_gets_a_gradient(name: str) -> None:
    for method in each_phase(name):
        batch = data(method)
        for epoch in range(2):  # what has no past in the first epoch has one in the second
            for turn in range(method.turns):
                method(batch, Progress(epoch=torch.tensor(epoch), epochs=torch.tensor(3), turn=turn)).loss.backward()
        params = trainable(method)
        assert len({id(p) for p in params}) == len(params), "a parameter is in two groups"
        assert all(p.grad is not None and p.grad.isfinite().all() for p in params)
        assert any(p.grad.abs().sum() > 0 for p in params)


@every_method
def test_labels_of_mixed_images_are_shares_of_classes(name: str) -> None:
    """Shares that are one-hot are class ids; and what is linear in the labels is linear in the shares."""
    for method in each_phase(name):
        batch = data(method)
        other = batch.labels.flip(0)

        def terms(labels: torch.Tensor, method: Method = method, batch: Batch = batch) -> dict[str, float]:
            torch.manual_seed(0)  # a method may draw
            out = copy.deepcopy(method)(batch._replace(labels=labels), Progress())
            return {term: value.item() for term, value in out.terms.items()}

        ids, flipped = (torch.eye(CLASSES)[labels] for labels in (batch.labels, other))
        assert terms(ids) == pytest.approx(terms(batch.labels), rel=1e-5)
        a, b, both = terms(ids), terms(flipped), terms((ids + 3 * flipped) / 4)
        for term in both.keys() & {"ce", "ce_ensemble", "ce_exits", "ce_refined"}:
            assert both[term] == pytest.approx((a[term] + 3 * b[term]) / 4, rel=1e-5), term


@every_method
def test_class_weights_are_in_every_cross_entropy_with_labels(name: str) -> None:
    """And in nothing else: what is learnt from others does not know the classes' sizes."""
    for method, same in zip(each_phase(name), each_phase(name), strict=True):
        batch = data(method)
        classes = batch.labels.max().item() + 1
        torch.manual_seed(0)  # a method may draw
        plain = same(batch, Progress()).terms
        method.class_weights = torch.full((classes,), 3.0)
        torch.manual_seed(0)
        for term, value in method(batch, Progress()).terms.items():
            factor = 3 if term.startswith("ce") or (term == "past") else 1  # before there is a past, the label is it
            assert torch.allclose(value, factor * plain[term], rtol=1e-4), term


@every_method
def test_gradient_routing(name: str) -> None:
    for method in each_phase(name):
        with torch.no_grad():
            method(data(method), Progress(epochs=torch.tensor(3)))  # what has no past at first has one then
        out = method(data(method), Progress(epoch=torch.tensor(1), epochs=torch.tensor(3)))
        named = {id(p): key.split(".")[0] for key, p in method.named_parameters()}
        params = trainable(method)
        routes = {}
        for term, value in out.terms.items():
            grads = torch.autograd.grad(value, params, retain_graph=True, allow_unused=True)
            routes[term] = {named[id(p)] for p, g in zip(params, grads, strict=True) if g is not None and g.any()}
        expected = declared(name, "ROUTES")
        assert routes == {term: expected[term] for term in routes}, routes


@every_method
def test_students_have_the_plain_architectures_keys(name: str, tmp_path: Path) -> None:
    method = build(name)
    method.train()
    method.begin(method.phases[0])
    method(data(method), Progress()).loss.backward()  # batch-norm statistics of its own
    x = data(method).inputs[0]
    for student, net in method.students().items():
        save_student(tmp_path / student, net, {"classes": list("abcde")})
        again = load_student(tmp_path / student, net=tiny(999)).net
        assert list(again.state_dict()) == list(net.state_dict())
        with torch.no_grad():
            assert torch.equal(again.eval()(x), copy.deepcopy(net).eval()(x))


@every_method
def test_ensemble_predicts(name: str) -> None:
    method = build(name).eval()
    ensemble = method.ensemble()
    if len(method.students()) > 1:
        assert ensemble is not None
    if ensemble is not None:
        with torch.no_grad():
            assert ensemble(data(method).inputs[0]).shape == (SAMPLES, CLASSES)


@several_methods
def test_overfits_64_images(name: str) -> None:
    batch = data(build(name))
    teacher = tiny(100, width=6)
    if METHODS[name].teacher_use == "required":  # one that knows, or the student would learn what it does not
        train(Plain(teacher), [batch], epochs=60, lr=0.1, weight_decay=0, sched="constant", quiet=True)
    method = build(name, teacher=teacher)
    result = train(method, [batch], epochs=100, lr=0.1, weight_decay=0, sched="constant", quiet=True)
    last = result.history[-1]
    for student in method.students():
        assert last[f"train/top1/{student}"] == 100, last


@every_method
def test_one_seed_is_one_result(name: str) -> None:
    def run(seed: int) -> list[torch.Tensor]:
        method = build(name, seed)
        batch = data(method)
        parts = [Batch(tuple(x[i::2] for x in batch.inputs), batch.labels[i::2], batch.index[i::2]) for i in (0, 1)]
        train(method, parts, epochs=3, seed=seed, quiet=True)
        return [value.clone() for value in method.state_dict().values()]

    first, second, other = run(1), run(1), run(2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@several_methods
def test_one_graph_per_turn(name: str) -> None:
    for method in each_phase(name):
        graphs = []

        def backend(graph: torch.fx.GraphModule, inputs: list[Any], graphs: list[Any] = graphs) -> Any:
            graphs.append(graph)
            return graph.forward

        torch._dynamo.reset()
        step = torch.compile(method, fullgraph=True, backend=backend)
        batch = data(method)
        for epoch in range(12):
            for turn in range(method.turns):
                progress = Progress(torch.tensor(epoch * 7), torch.tensor(epoch), torch.tensor(12), turn)
                step(batch, progress).loss.backward()
        assert len(graphs) == method.turns + (name in FIRST), "something compiled again"


@every_method
def test_card_is_complete(name: str) -> None:
    card = inspect.getdoc(sys.modules[METHODS[name].__module__]) or ""
    where = [card.find("\n" + heading) for heading in HEADINGS]
    assert -1 not in where, HEADINGS[where.index(-1)]
    assert where == sorted(where)
    for heading, after in zip(HEADINGS, [*HEADINGS[1:], None], strict=True):
        text = card.split(heading)[1].split(after)[0] if after else card.split(heading)[1]
        assert len(text.strip()) > 10, heading
    for option, parameter in inspect.signature(METHODS[name].__init__).parameters.items():
        inner = {*METHODS[name].needs, "exchange", "gather"}
        if parameter.kind is parameter.KEYWORD_ONLY and option not in inner:
            assert option in card, f"the card does not mention {option}"


@every_method
def test_helpers_are_not_in_the_student(name: str) -> None:
    method = build(name)
    method.eval()
    for net in method.students().values():
        assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in tiny(0).parameters())

"""ONE against the paper's equations, written as slow loops."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import slow
import torch
from conftest import CLASSES, batch, tiny
from torch import Tensor, nn

from teacherless.errors import InputError
from teacherless.method import Batch, Progress
from teacherless.methods import METHODS
from teacherless.methods.one import ONE, ramp
from teacherless.methods.plain import Plain
from teacherless.models.staged import Staged

# Which children of the method each term's gradient may reach; everything else must get none.
ROUTES = {"ce": {"trunks", "branches"}, "ce_ensemble": {"trunks", "branches", "gate"}, "distil": {"trunks", "branches"}}

F64 = torch.float64


def make(seed: int = 0, **options: Any) -> ONE:
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        return ONE(tiny(seed, dtype=F64), **options).double()


def at(epoch: int, epochs: int = 12) -> Progress:
    return Progress(epoch=torch.tensor(epoch), epochs=torch.tensor(epochs))


def slow_gate(one: ONE, maps: Tensor) -> list[list[float]]:
    """g of each sample: pool, linear, batch norm, ReLU, softmax; one number at a time. `[B, m]`."""
    linear, norm = one.gate[2], one.gate[3]
    pooled = [[slow.mean(float(v) for v in channel.flatten()) for channel in sample] for sample in maps.detach()]
    scores = [[math.fsum(w * v for w, v in zip(row, p, strict=True)) for row in slow.rows(linear.weight)]
              for p in pooled]  # fmt: skip
    out = [[0.0] * len(scores[0]) for _ in scores]
    for i in range(len(scores[0])):
        column = [s[i] for s in scores]
        mean = slow.mean(column)
        var = slow.mean((v - mean) ** 2 for v in column)
        for b, v in enumerate(column):
            normed = (v - mean) / math.sqrt(var + norm.eps) * norm.weight[i].item() + norm.bias[i].item()
            out[b][i] = max(normed, 0.0)
    return [slow.softmax(row) for row in out]


def slow_terms(one: ONE, data: Batch, *, temperature: float, weight: float, smoothing: float) -> dict[str, float]:
    """The paper's terms from the plain networks that are shipped."""
    nets = one.students()
    logits = [slow.rows(net(data.inputs[0])) for net in nets.values()]  # m of [B, C]
    first = next(iter(nets.values()))
    gate = slow_gate(one, first.features(data.inputs[0])[len(one.trunks[0]) - 1]) if one.gate is not None else None
    m, labels = len(logits), [int(y) for y in data.labels]
    mixed = [[math.fsum((gate[b][i] if gate else 1 / m) * logits[i][b][c] for i in range(m)) for c in range(CLASSES)]
             for b in range(len(labels))]  # fmt: skip
    samples = range(len(labels))
    return {
        "ce": math.fsum(slow.mean(slow.ce(logits[i][b], labels[b], smoothing) for b in samples) for i in range(m)),
        "ce_ensemble": slow.mean(slow.ce(mixed[b], labels[b], smoothing) for b in samples),
        "distil": weight * temperature**2
        * math.fsum(slow.mean(slow.kl(logits[i][b], mixed[b], temperature) for b in samples) for i in range(m)),
    }  # fmt: skip


OPTIONS = [
    {},
    {"branches": 2, "temperature": 1.0, "kl_weight": 0.5},
    {"branches": 5, "split": 1},
    {"share": False},
    {"gate": False},
    {"distil": False},
    {"ramp_epochs": 8},
    {"copy_init": True},
]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("options", OPTIONS)
def test_every_term_equals_the_equation(options: dict[str, Any], smoothing: float) -> None:
    one, data = make(**options), batch(dtype=F64)
    one.smoothing = smoothing
    weight = options.get("kl_weight", 1.0) * (math.exp(-5 * (1 - 3 / 8) ** 2) if "ramp_epochs" in options else 1)
    expected = slow_terms(one, data, temperature=options.get("temperature", 3.0), weight=weight, smoothing=smoothing)
    if options.get("distil") is False:
        del expected["distil"]
    found = one(data, at(3)).terms
    assert found.keys() == expected.keys()
    for name, term in found.items():
        assert term.item() == slow.exactly(expected[name]), name


def test_gate_softmax_runs_over_branches() -> None:
    one, data = make(), batch(dtype=F64)
    each, mixed = one.predict(data.inputs[0])
    scores = one.gate(one.trunks[0](data.inputs[0]))
    weights = scores.softmax(1)
    torch.testing.assert_close(weights.sum(1), torch.ones(len(data.labels), dtype=F64))
    torch.testing.assert_close(mixed, torch.einsum("bm,mbc->bc", weights, each))
    swapped = torch.einsum("bm,mbc->bc", scores.softmax(0), each)
    assert not torch.allclose(mixed, swapped)


def test_gradient_routing() -> None:
    one = make()
    terms = one(batch(dtype=F64)).terms
    groups: dict[str, nn.Module] = {"trunk": one.trunks, "gate": one.gate}
    groups |= {f"branch{i}": branch for i, branch in enumerate(one.branches)}
    branches = {"branch0", "branch1", "branch2"}
    assert slow.reached(terms, groups) == {
        "ce": {"trunk"} | branches,
        "ce_ensemble": {"trunk", "gate"} | branches,
        "distil": {"trunk"} | branches,  # not the gate: the ensemble is a constant there
    }


def test_distillation_takes_the_ensemble_as_a_constant() -> None:
    one, data = make(), batch(dtype=F64)
    params = list(one.branches.parameters())
    found = torch.autograd.grad(one(data).terms["distil"], params)
    each, mixed = one.predict(data.inputs[0])
    p = (mixed / 3).softmax(1).detach()
    loss = sum(-9 * (p * (z / 3).log_softmax(1)).sum(1).mean() for z in each)
    for ours, theirs in zip(found, torch.autograd.grad(loss, params), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


def test_each_parameter_is_trained_once_and_gets_a_gradient() -> None:
    for options in OPTIONS:
        one = make(**options)
        (group,) = one.param_groups()
        assert len({id(p) for p in group["params"]}) == len(group["params"])
        assert {id(p) for net in one.students().values() for p in net.parameters()} <= {id(p) for p in group["params"]}
        one(batch(dtype=F64), Progress()).loss.backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in group["params"])


def test_one_branch_is_plain() -> None:
    one, plain, data = make(branches=1), Plain(tiny(0, dtype=F64)), batch(dtype=F64)
    ours, theirs = one(data), plain(data)
    assert ours.terms.keys() == {"ce"} and one.ensemble() is None and one.gate is None
    assert ours.loss == theirs.loss
    ours.loss.backward()
    theirs.loss.backward()
    for a, b in zip(one.students()["branch0"].parameters(), plain.student.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_sharing_and_not_sharing() -> None:
    def count(net: nn.Module) -> int:
        return sum(p.numel() for p in net.parameters())

    plain = tiny(0)
    own = count(plain.stages[2]) + count(plain.head)
    gate = 8 * 3 + 6
    assert count(make()) == count(plain) + 2 * own + gate
    assert count(make(share=False)) == 3 * count(plain) + gate
    nets = list(make(share=False).students().values())
    storages = {p.data_ptr() for net in nets for p in net.parameters()}
    assert len(storages) == 3 * len(list(plain.parameters()))  # m whole networks
    for name, p in nets[0].named_parameters():
        if p.dim() > 1:
            assert not torch.equal(p, dict(nets[1].named_parameters())[name])


def test_students_are_plain_networks_equal_to_the_training_graphs_branches() -> None:
    one, data = make(), batch(dtype=F64)
    one(data).loss.backward()  # moves the batch-norm statistics
    one.eval()
    each, mixed = one.predict(data.inputs[0])
    for i, (name, net) in enumerate(one.students().items()):
        assert name == f"branch{i}"
        assert net.state_dict().keys() == tiny(0).state_dict().keys()
        again = tiny(9, dtype=F64).eval()
        again.load_state_dict(net.state_dict())
        torch.testing.assert_close(again(data.inputs[0]), each[i], rtol=0, atol=0)
    torch.testing.assert_close(one.ensemble()(data.inputs[0]), mixed, rtol=0, atol=0)
    assert one.students()["branch0"] is one.students()["branch0"]


def test_the_student_is_branch_0_and_the_others_start_afresh() -> None:
    student = tiny(0)
    weights = copy.deepcopy(student.state_dict())
    branches = list(ONE(student).students().values())
    assert branches[0] is student
    assert all(torch.equal(value, weights[key]) for key, value in student.state_dict().items())
    assert branches[1].stages[0] is branches[2].stages[0] is student.stages[0]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(branches[a].stages[2][0].weight, branches[b].stages[2][0].weight)
        assert not torch.equal(branches[a].head.weight, branches[b].head.weight)


def test_copied_branches_start_from_the_students_stages_but_not_its_head() -> None:
    branches = list(ONE(tiny(0), copy_init=True).students().values())
    assert torch.equal(branches[0].stages[2][0].weight, branches[1].stages[2][0].weight)
    assert branches[0].stages[2][0].weight is not branches[1].stages[2][0].weight
    assert not torch.equal(branches[0].head.weight, branches[1].head.weight)


def test_split_is_where_branches_start() -> None:
    assert len(make(split=1).trunks[0]) == 1
    assert len(make(split=2).trunks[0]) == 2
    assert len(make(split=-1).trunks[0]) == 2
    one, data = make(split=1), batch(dtype=F64)
    one.eval()
    for z, net in zip(one.predict(data.inputs[0])[0], one.students().values(), strict=True):
        torch.testing.assert_close(net(data.inputs[0]), z, rtol=0, atol=0)


def test_train_and_eval_reach_the_students() -> None:
    one = make()
    assert not any(m.training for net in one.eval().students().values() for m in net.modules())
    assert all(m.training for net in one.train().students().values() for m in net.modules())


def test_a_copy_is_a_method_of_its_own() -> None:
    one = copy.deepcopy(make())
    shipped = {id(p) for net in one.students().values() for p in net.parameters()}
    assert shipped <= {id(p) for p in one.parameters()}


@pytest.mark.parametrize(("epoch", "expected"), [(0, math.exp(-5)), (40, math.exp(-1.25)), (80, 1.0), (200, 1.0)])
def test_variant_ramp_has_the_released_weights(epoch: int, expected: float) -> None:
    """One step at several epochs of the authors' 80-epoch ramp: 0.0067 at the start, 1 from epoch 80 on."""
    data, full = batch(dtype=F64), make()
    ramped = make(**ONE.variants["ramp"])
    ours = ramped(data, at(epoch, 300)).terms
    assert ramp(at(epoch, 300), 80, F64).item() == slow.exactly(expected)
    for name, term in full(data).terms.items():
        assert ours[name].item() == slow.exactly(term.item() * (expected if name == "distil" else 1))


def test_half_precision_autocast_mixes_in_float32() -> None:
    one = ONE(tiny(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        each, mixed = one.predict(batch().inputs[0])
        out = one(batch())
    assert each.dtype == mixed.dtype == out.loss.dtype == torch.float32
    assert out.loss.isfinite()


def test_one_graph_over_the_ramp() -> None:
    one, data, graphs = ONE(tiny(0), ramp_epochs=8), batch(), []

    def count(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    step = torch.compile(one, fullgraph=True, backend=count)
    values = [step(data, at(epoch)).terms["distil"].item() for epoch in range(12)]
    assert len(graphs) == 1
    assert values[0] < values[4] < values[8] == pytest.approx(values[11], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"branches": 0}, "branches: found 0"),
        ({"split": 0}, "split: found 0"),
        ({"split": -3}, "split: found -3"),
        ({"split": 3}, "split: found 3"),
        ({"temperature": 0}, "temperature: found 0"),
        ({"ramp_epochs": -1}, "ramp_epochs: found -1"),
        ({"distil": False, "ramp_epochs": 80}, "ramp_epochs: found 80; it has no effect with distil=False"),
        ({"distil": False, "temperature": 2.0}, "temperature: found 2.0; it has no effect with distil=False"),
    ],
)
def test_refuses(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        ONE(tiny(0), **options)


def test_refuses_a_student_without_stages() -> None:
    with pytest.raises(InputError, match=r"^one: needs a student with stages and found Linear; name them with"):
        METHODS["one"](nn.Linear(3, 4))
    with pytest.raises(InputError, match="one: found a student of 1 stage"):
        ONE(Staged([nn.Conv2d(1, 2, 3)], [2], nn.Linear(2, 3)))

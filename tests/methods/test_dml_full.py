"""DML's options against slow loops: who listens to whom, DML_e, both directions, Σ, temperature, weight and ramp."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import batch, tiny
from torch import Tensor

from teacherless.errors import InputError
from teacherless.method import Progress
from teacherless.methods import DML
from teacherless.methods._topology import listening

F64 = torch.float64
UNEVEN = ((0.0, 0.25, 0.75, 0.0), (0.0, 0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0), (0.5, 0.5, 0.0, 0.0))
EXPECTED = {
    "complete": [
        [0, 1 / 3, 1 / 3, 1 / 3],
        [1 / 3, 0, 1 / 3, 1 / 3],
        [1 / 3, 1 / 3, 0, 1 / 3],
        [1 / 3, 1 / 3, 1 / 3, 0],
    ],
    "ring": [[0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]],
    "star": [[0, 1 / 3, 1 / 3, 1 / 3], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]],
    "weak-to-strong": [[0, 1 / 3, 1 / 3, 1 / 3], [0, 0, 0.5, 0.5], [0, 0, 0, 1], [0, 0, 0, 0]],
    UNEVEN: UNEVEN,
}


def kl(p: Tensor, q: Tensor) -> float:
    return sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True) if float(a) > 0)


def slow(logits: list[Tensor], rows: Any, mimicry: str = "pairwise", temperature: float = 1.0) -> float:
    """Σ_k mean_b Σ_l A_kl KL, one sample, one pair, one class at a time."""
    p = [(z / temperature).softmax(1) for z in logits]
    total = 0.0
    for k, row in enumerate(rows):
        for b in range(len(p[0])):
            if mimicry == "dml_e":
                mean = sum(a * p[j][b] for j, a in enumerate(row))
                total += kl(mean, p[k][b]) if sum(row) else 0.0
            else:
                for j, a in enumerate(row):
                    total += a * kl(p[j][b], p[k][b]) / (1 if mimicry == "pairwise" else 2)
                    total += a * kl(p[k][b], p[j][b]) / 2 if mimicry == "symmetric" else 0.0
    return temperature**2 * total / len(p[0])


def peers() -> list[Any]:
    return [tiny(i, width=3 + i % 2, dtype=F64) for i in range(4)]


@pytest.mark.parametrize("topology", list(EXPECTED), ids=str)
@pytest.mark.parametrize("mimicry", ["pairwise", "dml_e", "symmetric"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_every_topology_and_kind(topology: Any, mimicry: Any, temperature: float) -> None:
    nets = peers()
    data = batch(dtype=F64)
    rows = EXPECTED[topology]
    torch.testing.assert_close(listening(topology, 4), torch.tensor(rows, dtype=F64))
    logits = [net(data.inputs[0]).detach() for net in nets]
    method = DML(*nets, topology=topology, mimicry=mimicry, temperature=temperature)
    out = method(data)
    assert out.terms["mimicry"].item() == pytest.approx(slow(logits, rows, mimicry, temperature), rel=1e-10)
    out.terms["mimicry"].backward()
    for k, net in enumerate(nets):  # who listens to nobody learns nothing here; everyone else does
        moved = any(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
        assert moved == (sum(rows[k]) > 0), k


@pytest.mark.parametrize("mimicry", ["pairwise", "dml_e", "symmetric"])
def test_targets_are_constants(mimicry: Any) -> None:
    """Peer k's gradient is that of its own row with everyone else's logits fixed."""
    nets, data = peers(), batch(dtype=F64)
    method = DML(*nets, topology=UNEVEN, mimicry=mimicry)
    method(data).terms["mimicry"].backward()
    fixed = [net(data.inputs[0]).detach() for net in nets]
    for k, net in enumerate(nets):
        own = net(data.inputs[0])
        log_q, row = own.log_softmax(1), UNEVEN[k]
        q = log_q.exp()
        p = [z.softmax(1) for z in fixed]
        if mimicry == "dml_e":
            loss = -(sum(a * p[j] for j, a in enumerate(row)) * log_q).sum(1)
        else:
            loss = -sum(a * (p[j] * log_q).sum(1) for j, a in enumerate(row))
        if mimicry == "symmetric":
            loss = (loss + sum(a * (q * (log_q - p[j].log())).sum(1) for j, a in enumerate(row))) / 2
        grads = torch.autograd.grad(loss.mean(), list(net.parameters()))
        for parameter, grad in zip(net.parameters(), grads, strict=True):
            found = torch.zeros_like(grad) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(found, grad, rtol=1e-8, atol=1e-12)


def test_complete_by_gather_is_complete_by_exchange() -> None:
    nets, data = peers(), batch(dtype=F64)
    matrix = tuple(tuple(row) for row in EXPECTED["complete"])
    a, b = DML(*nets)(data), DML(*nets, topology=matrix)(data)
    assert a.terms["mimicry"].item() == pytest.approx(b.terms["mimicry"].item(), rel=1e-12)


def test_variant_sum_is_the_authors_loop() -> None:
    """train_models.py adds the KL to every other network with weight 1: one step by hand, three peers."""
    nets, data = peers()[:3], batch(dtype=F64)
    logits = [net(data.inputs[0]).detach() for net in nets]
    expected = slow(logits, [[0, 1, 1], [1, 0, 1], [1, 1, 0]])
    for options in (DML.variants["sum"], {"reduce": "sum", "topology": ((0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0))}):
        assert DML(*nets, **options)(data).terms["mimicry"].item() == pytest.approx(expected, rel=1e-12)


def test_weight_and_ramp() -> None:
    nets, data = peers()[:2], batch(dtype=F64)
    full = DML(*nets)(data).terms["mimicry"].item()
    assert DML(*nets, weight=0.25)(data).terms["mimicry"].item() == pytest.approx(full / 4)
    ramped = DML(*nets, ramp_epochs=4)
    for epoch, factor in ((0, math.exp(-5)), (2, math.exp(-5 / 4)), (4, 1.0), (9, 1.0)):
        found = ramped(data, Progress(epoch=torch.tensor(epoch))).terms
        assert found["mimicry"].item() == pytest.approx(factor * full)
        assert found["ce"].item() == pytest.approx(DML(*nets)(data).terms["ce"].item())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"topology": "rings"}, "unknown topology 'rings'; did you mean 'ring'"),
        ({"topology": ((0, 1), (1, 0))}, r"rows of \[2, 2\]; 4 peers need 4 rows of 4"),
        ({"topology": ((0, 1, 1, 0),) * 4}, "row 0 .* sum to 1, or to 0"),
        ({"topology": ((0, 2, -1, 0),) * 4}, "at least 0"),
        ({"topology": ((1, 0, 0, 0),) * 4}, "does not listen to itself"),
        ({"topology": "ring", "views": 2}, "several views need 'complete'"),
        ({"mimicry": "js"}, "must be 'pairwise' or 'dml_e' or 'symmetric'"),
        ({"reduce": "max"}, "must be 'mean' or 'sum'"),
        ({"temperature": 0}, "above 0"),
        ({"weight": -1}, "at least 0"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        DML(*peers(), **options)


@pytest.mark.parametrize(
    "options", [{"topology": "ring"}, {"mimicry": "symmetric"}, {"mimicry": "dml_e"}, {"ramp_epochs": 3}]
)
def test_one_graph(options: dict[str, Any]) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    step = torch.compile(DML(tiny(0), tiny(1), **options), fullgraph=True, backend=backend)
    for epoch in range(5):
        step(batch(), Progress(epoch=torch.tensor(epoch))).loss.backward()
    assert len(graphs) == 1


@pytest.mark.parametrize("logits", [1e4, -1e4])
def test_extreme_logits_are_finite(logits: float) -> None:
    class Fixed(torch.nn.Module):
        def __init__(self, at: int) -> None:
            super().__init__()
            z = torch.zeros(5)
            z[at] = logits
            self.z = torch.nn.Parameter(z)

        def forward(self, x: Tensor) -> Tensor:
            return self.z.expand(len(x), -1)

    for mimicry in ("pairwise", "dml_e", "symmetric"):
        nets = [Fixed(0), Fixed(1), Fixed(2)]
        out = DML(*nets, mimicry=mimicry)(batch())  # type: ignore[arg-type]
        out.loss.backward()
        assert out.loss.isfinite()
        assert all(net.z.grad is not None and net.z.grad.isfinite().all() for net in nets)

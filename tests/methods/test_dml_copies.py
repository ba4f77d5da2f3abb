"""DML whose peers learn from copies of each other's weights, against a slow loop."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from conftest import batch, tiny
from torch import Tensor, nn

from teacherless.cli import main
from teacherless.errors import InputError
from teacherless.method import Progress
from teacherless.methods import DML

F64 = torch.float64


def cohort() -> list[nn.Module]:
    return [tiny(i, width=3 + i % 3, dtype=F64) for i in range(3)]


def at(step: int) -> Progress:
    return Progress(step=torch.tensor(step))


def optimizer_of(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1, 0.9, weight_decay=1e-3)


def slow_loop(peers: list[nn.Module], every: int, steps: int, rows: Any, temperature: float) -> None:
    """Each peer has an optimizer of its own, and whole networks are copied; one pair at a time."""
    optimizers = [optimizer_of(peer.parameters()) for peer in peers]
    for step in range(steps):
        data = batch(step, dtype=F64)
        if step % every == 0:
            copies = copy.deepcopy(peers)
        for k, (peer, optimizer) in enumerate(zip(peers, optimizers, strict=True)):
            own = peer(data.inputs[0])
            loss = nn.functional.cross_entropy(own, data.labels)
            log_q = (own / temperature).log_softmax(1)
            for weight, other in zip(rows[k], copies, strict=True):
                log_p = (other(data.inputs[0]).detach() / temperature).log_softmax(1)
                loss = loss + temperature**2 * weight * (log_p.exp() * (log_p - log_q)).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


COMPLETE = [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
RING = [[0, 0, 1], [1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(("topology", "rows"), [("complete", COMPLETE), ("ring", RING)])
@pytest.mark.parametrize(("every", "temperature"), [(3, 1.0), (100, 2.0)])
def test_steps_are_those_of_the_slow_loop(topology: Any, rows: Any, every: int, temperature: float) -> None:
    ours, theirs = cohort(), cohort()
    slow_loop(theirs, every, 8, rows, temperature)
    method = DML(*ours, topology=topology, exchange_every=every, temperature=temperature).train()
    optimizer = optimizer_of(method.param_groups())
    for step in range(8):
        optimizer.zero_grad()
        method(batch(step, dtype=F64), at(step)).loss.backward()
        optimizer.step()
    for a, b in zip(ours, theirs, strict=True):  # batch-norm statistics too: copies do not move them
        for name, value in a.state_dict().items():
            torch.testing.assert_close(value, b.state_dict()[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("options", [{}, {"mimicry": "dml_e"}, {"mimicry": "symmetric"}, {"views": 2}], ids=str)
def test_a_step_that_exchanges_is_a_step_of_dml(options: dict[str, Any]) -> None:
    data = batch(views=options.get("views", 1), dtype=F64)
    found, expected = (DML(*cohort(), exchange_every=n, **options)(data, at(0)) for n in (4, 1))
    for name, value in expected.terms.items():
        assert found.terms[name].item() == pytest.approx(value.item(), rel=1e-12)


def test_gradients_reach_each_peer_from_its_own_rows_only() -> None:
    """Peer 2's weights change nothing that anyone else learns until the next exchange, and copies learn nothing."""
    grads: list[list[Tensor]] = []
    for moved in (0.0, 0.1):
        method = DML(*cohort(), exchange_every=2)
        method(batch(dtype=F64), at(0))
        with torch.no_grad():
            for p in method.peers[2].parameters():
                p.add_(moved)
        method(batch(1, dtype=F64), at(1)).terms["mimicry"].backward()
        assert not method.copies.requires_grad
        grads.append([p.grad for peer in method.peers[:2] for p in peer.parameters()])
        assert all(p.grad is not None for p in method.peers[2].parameters())
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_nothing_is_exchanged_while_the_method_is_evaluated() -> None:
    method = DML(*cohort(), exchange_every=2)
    method(batch(dtype=F64), at(0))
    before = method.copies.clone()
    with torch.no_grad():
        next(method.peers[0].parameters()).add_(1)
    method.eval()(batch(dtype=F64), at(2))
    assert torch.equal(method.copies, before)
    method.train()(batch(dtype=F64), at(2))
    assert not torch.equal(method.copies, before)


def test_a_peer_that_goes_bad_teaches_by_its_copy_until_the_next_exchange() -> None:
    method = DML(*cohort(), exchange_every=3)
    method(batch(dtype=F64), at(0))
    next(method.peers[1].parameters()).data.fill_(math.nan)
    pair = DML(*(cohort()[i] for i in (0, 2)))
    for step in (1, 3):
        out = method(batch(dtype=F64), at(step))
        assert method.left().tolist() == [-1, 1, -1]
        assert out.loss.isfinite()
        alone = pair(batch(dtype=F64)).terms["mimicry"].item()
        assert (out.terms["mimicry"].item() == pytest.approx(alone, rel=1e-12)) == (step == 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"exchange_every": 0}, "exchange_every: found 0; must be at least 1"),
        ({"exchange_every": 5, "update": "in_turn"}, "update: found 'in_turn'; it has no effect with exchange_every=5"),
        ({"exchange_every": 5, "target": "naive"}, "target: found 'naive' with exchange_every=5; must be 'peers'"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        DML(*cohort(), **options)


def test_the_step_must_be_told() -> None:
    with pytest.raises(InputError, match="goes by the step or the epoch, and neither was told"):
        DML(*cohort(), exchange_every=5)(batch(dtype=F64))


def test_a_scripted_peer_is_refused() -> None:
    script = torch.jit.trace(cohort()[0].eval(), batch(dtype=F64).inputs[0])
    with pytest.raises(InputError, match="exchange_every: found 5 with a scripted peer"):
        DML(script, cohort()[1], exchange_every=5)


def test_from_the_command_line(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--exchange-every 3 --steps 2 --batch-size 16 --student small-cnn,width=4 --out"
    assert main(["train", "dml", *words.split(), str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["train", "one", *words.split(), str(tmp_path / "other")]) == 2
    why = "one has no peers that learn from each other (dml has)"
    assert capsys.readouterr().err == f"teacherless: --exchange-every: found 3; {why}\n"

"""PS-KD against the paper's equation, over several epochs."""

from __future__ import annotations

from typing import Any

import pytest
import slow
import torch
from conftest import CLASSES, batch, tiny

from teacherless.errors import InputError
from teacherless.method import Batch, Progress
from teacherless.methods.plain import Plain
from teacherless.methods.ps_kd import PSKD

# Which children of the method each term's gradient may reach; everything else must get none.
ROUTES = {"ce": {"student"}, "past": {"student"}}

F64 = torch.float64
N = 10


def make(dtype: torch.dtype = F64, **options: Any) -> PSKD:
    return PSKD(tiny(0, dtype=dtype), num_samples=N, num_classes=CLASSES, **options)


def at(epoch: int, epochs: int = 4) -> Progress:
    return Progress(epoch=torch.tensor(epoch), epochs=torch.tensor(epochs))


def data(seed: int = 0, rows: tuple[int, ...] = (7, 2, 9, 0, 4, 3), dtype: torch.dtype = F64) -> Batch:
    return batch(seed, len(rows), dtype=dtype)._replace(index=torch.tensor(rows))


@pytest.mark.parametrize("unseen", ["label", "zero"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_three_epochs_equal_the_equation(smoothing: float, unseen: Any) -> None:
    """Target of epoch t: (1 - α_t)·y + α_t·p_{t-1}, α_t = 0.8 t/4, t = 1, 2, 3; the first epoch has no past."""
    method = make(unseen=unseen)
    method.smoothing = smoothing
    past: dict[int, list[float]] = {}
    for epoch in range(3):
        now = data(seed=epoch)  # another distortion, the same rows
        z = slow.rows(method.student(now.inputs[0]))
        found = method(now, at(epoch))
        labels = [slow.onehot(int(y), CLASSES, smoothing) for y in now.labels]
        alpha = 0.8 * (epoch + 1) / 4
        target = [past.get(int(i), label) for i, label in zip(now.index, labels, strict=True)]
        assert found.terms["ce"].item() == slow.exactly((1 - alpha) * slow.mean(map(slow.soft_ce, z, labels)))
        assert found.terms["past"].item() == slow.exactly(alpha * slow.mean(map(slow.soft_ce, z, target)))
        mixed = [[(1 - alpha) * a + alpha * b for a, b in zip(q, p, strict=True)]
                 for q, p in zip(labels, target, strict=True)]  # fmt: skip
        assert found.loss.item() == slow.exactly(slow.mean(map(slow.soft_ce, z, mixed)))
        past = {int(i): slow.softmax(row) for i, row in zip(now.index, z, strict=True)}


def test_first_epoch_is_plain() -> None:
    ours, theirs = make()(data(), at(0)), Plain(tiny(0, dtype=F64))(data())
    assert ours.loss.item() == slow.exactly(theirs.loss.item())


def test_memory_holds_each_rows_last_prediction() -> None:
    method = make()
    p = method.student(data().inputs[0]).softmax(1)
    method(data(), at(0))
    torch.testing.assert_close(method.memory[data().index], p, rtol=1e-12, atol=0)
    others = [i for i in range(N) if i not in data().index]
    assert not method.memory[others].any()
    method(data(seed=1, rows=(1, 5)), at(0))
    torch.testing.assert_close(method.memory[data().index], p, rtol=1e-12, atol=0)  # older predictions are kept


def test_a_row_without_a_past_falls_back_to_its_label() -> None:
    method = make()
    method(data(), at(0))
    z = slow.rows(method.student(data(1, (1, 5)).inputs[0]))
    found = method(data(1, (1, 5)), at(1)).terms["past"].item()
    assert found == slow.exactly(0.4 * slow.mean(slow.ce(row, y) for row, y in zip(z, (0, 1), strict=True)))


def test_variant_released_gives_such_a_row_a_target_of_zeros() -> None:
    """The released step at its second epoch of 4: target 0.6·y + 0.4·0 where nothing was remembered."""
    method = make(**PSKD.variants["released"])
    method(data(), at(0))
    now = data(1, (1, 7))  # row 7 has a past, row 1 has none
    past = method.memory[7].tolist()
    z = slow.rows(method.student(now.inputs[0]))
    target = [[0.6 * (c == 0) for c in range(CLASSES)], [0.6 * (c == 1) + 0.4 * past[c] for c in range(CLASSES)]]
    assert method(now, at(1)).loss.item() == slow.exactly(slow.mean(map(slow.soft_ce, z, target)))


def test_gradient_routing_and_a_constant_past() -> None:
    method = make()
    method(data(), at(0))
    groups = {"stages": method.student.stages, "head": method.student.head}
    both = {"stages", "head"}
    assert slow.reached(method(data(1), at(1)).terms, groups) == {"ce": both, "past": both}
    assert not method.memory.requires_grad
    assert all(p is not method.memory for group in method.param_groups() for p in group["params"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_n_by_c_in_the_networks_dtype_and_in_the_state(dtype: torch.dtype) -> None:
    method = make(dtype=dtype)
    assert method.memory.shape == (N, CLASSES) and method.memory.dtype == dtype
    assert method.memory.numel() * method.memory.element_size() <= N * CLASSES * torch.empty(0, dtype=dtype).itemsize
    extra = set(method.state_dict()) - {f"student.{key}" for key in tiny(0).state_dict()}
    assert extra == {"_extra_state"}
    method(data(dtype=dtype), at(0))
    terms = method(data(1, dtype=dtype), at(1)).terms  # rows rounded to bfloat16 still count as seen
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())


def test_evaluation_remembers_nothing() -> None:
    method = make().eval()
    method(data(), at(0))
    assert not method.memory.any()


def test_one_graph_and_the_memory_inside_it() -> None:
    """The table is read and written in the compiled step, without a Python loop; α_t never compiles again."""
    compiled, eager, graphs = make(dtype=torch.float32), make(dtype=torch.float32), []

    def count(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    step = torch.compile(compiled, fullgraph=True, backend=count)
    for epoch in range(12):
        now = data(epoch, dtype=torch.float32)
        ours, theirs = step(now, at(epoch, 12)), eager(now, at(epoch, 12))
        torch.testing.assert_close(ours.loss, theirs.loss)
    assert len(graphs) == 1
    torch.testing.assert_close(compiled.memory, eager.memory)


@pytest.mark.parametrize("options", [{"alpha": 0}, {"alpha": 1.5}, {"unseen": "uniform"}])
def test_refuses(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))}: found"):
        make(**options)


def test_refuses_a_batch_without_rows() -> None:
    with pytest.raises(InputError, match="the method wants each sample's index"):
        make()(data()._replace(index=None))

"""FitNets against the paper's equations, phase by phase."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import slow
import torch
from conftest import batch, tiny
from torch import Tensor, nn

import teacherless as tl
from teacherless.errors import InputError
from teacherless.method import Progress
from teacherless.methods.fitnets import FitNets

# Which children of the method each term's gradient may reach; everything else must get none.
ROUTES = {"hint": {"regressor", "student"}, "ce": {"student"}, "distil": {"student"}}

F64 = torch.float64


def make(phase: str = "hint", **options: Any) -> FitNets:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        method = FitNets(tiny(0, dtype=F64), tiny(1, width=6, dtype=F64), **options).double()
    if "one_stage" not in options:
        method.phase = phase
    return method


def teacher() -> Any:
    return tiny(1, width=6, dtype=F64).eval()


def at(epoch: int, epochs: int) -> Progress:
    return Progress(epoch=torch.tensor(epoch), epochs=torch.tensor(epochs))


def slow_conv(conv: nn.Conv2d, maps: Tensor) -> Tensor:
    """A 1x1 convolution: at every place, each output channel is a weighted sum of the input channels."""
    out = torch.zeros(len(maps), conv.out_channels, *maps.shape[-2:], dtype=F64)
    for o in range(conv.out_channels):
        out[:, o] = conv.bias[o].detach()
        for i in range(conv.in_channels):
            out[:, o] += conv.weight[o, i, 0, 0].detach() * maps[:, i].detach()
    return out


@pytest.mark.parametrize("weight", [0.5, 3.0])
def test_hint_equals_the_equation(weight: float) -> None:
    method, data = make(hint_weight=weight), batch(dtype=F64)
    hint = teacher().features(data.inputs[0])[1]
    guess = slow_conv(method.regressor, method.student.features(data.inputs[0])[1])
    found = method(data, at(0, 2)).terms
    assert found.keys() == {"hint"}
    assert found["hint"].item() == slow.exactly(weight * slow.mean_square(guess, hint))


def test_the_larger_map_is_averaged_down() -> None:
    data = batch(dtype=F64)
    x = data.inputs[0]  # maps of 8x8, 4x4, 2x2
    for guided, hint in ((0, 1), (1, 0)):
        method = make(guided=guided, hint=hint)
        u = teacher().features(x)[hint].detach()
        guess = slow_conv(method.regressor, method.student.features(x)[guided])
        small, large = (u, guess) if guided == 0 else (guess, u)
        down = torch.zeros_like(small)
        for i in range(4):
            for j in range(4):
                down[:, :, i, j] = large[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3))
        assert method(data, at(0, 2)).terms["hint"].item() == slow.exactly(0.5 * slow.mean_square(down, small))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("epoch", "epochs", "weight"), [(0, 7, 4.0), (3, 7, 2.5), (6, 7, 1.0), (0, 1, 4.0)])
def test_kd_equals_the_equation(epoch: int, epochs: int, weight: float, smoothing: float) -> None:
    method, data = make("kd"), batch(dtype=F64)
    method.smoothing = smoothing
    z, target = method.student(data.inputs[0]), teacher()(data.inputs[0])
    found = method(data, at(epoch, epochs)).terms
    assert found.keys() == {"ce", "distil"}
    assert found["ce"].item() == slow.exactly(slow.mean_ce(z, data.labels, smoothing))
    assert found["distil"].item() == slow.exactly(weight * 9 * slow.mean_kl(z, target, 3))


def test_variant_one_stage_is_the_ports_step() -> None:
    """CE + 100·MSE(ReLU(BN(conv(v))), u), one training."""
    method, data = make(**FitNets.variants["one-stage"]), batch(dtype=F64)
    assert method.phases == ("",) and method.phase == ""
    x = data.inputs[0]
    conv, norm, _ = method.regressor
    guess = slow_conv(conv, method.student.features(x)[1])
    mean, var = guess.mean((0, 2, 3), keepdim=True), guess.var((0, 2, 3), keepdim=True, unbiased=False)
    guess = ((guess - mean) / (var + norm.eps).sqrt()).clamp(min=0)
    expected = slow.mean_ce(method.student(x), data.labels) + 100 * slow.mean_square(guess, teacher().features(x)[1])
    out = method(data)
    assert out.terms.keys() == {"hint", "ce"}
    assert out.loss.item() == slow.exactly(expected)
    (group,) = method.param_groups()
    out.loss.backward()
    assert {id(p) for p in group["params"]} == {id(p) for p in method.parameters()}
    assert all(p.grad is not None for p in group["params"])


def groups(method: FitNets) -> dict[str, nn.Module]:
    return {
        "lower": method.student.stages[:2],
        "upper": method.student.stages[2:],
        "head": method.student.head,
        "regressor": method.regressor,
    }


def test_gradient_routing() -> None:
    data = batch(dtype=F64)
    hint, kd = make("hint"), make("kd")
    student = {"lower", "upper", "head"}
    assert slow.reached(hint(data, at(0, 2)).terms, groups(hint)) == {"hint": {"lower", "regressor"}}
    assert slow.reached(kd(data, at(0, 2)).terms, groups(kd)) == {"ce": student, "distil": student}
    one = make(**FitNets.variants["one-stage"])
    assert slow.reached(one(data).terms, groups(one)) == {"hint": {"lower", "regressor"}, "ce": student}


@pytest.mark.parametrize("phase", ["hint", "kd"])
def test_each_phase_trains_what_it_should(phase: str) -> None:
    method = make(phase)
    parts = groups(method)
    trained = ("lower", "regressor") if phase == "hint" else ("lower", "upper", "head")
    (group,) = method.param_groups()
    assert {id(p) for p in group["params"]} == {id(p) for part in trained for p in parts[part].parameters()}
    assert len(group["params"]) == len({id(p) for p in group["params"]})
    method(batch(dtype=F64), at(0, 2)).loss.backward()
    assert all(p.grad is not None for p in group["params"])
    for part in parts.keys() - set(trained):
        assert all(p.grad is None for p in parts[part].parameters())


def test_starts_with_the_hint_and_then_kd() -> None:
    method = FitNets(tiny(0), tiny(1))
    assert method.phases == ("hint", "kd") and method.phase == ""
    progress = tl.progress(epochs=4)
    for phase in ("hint", "hint", "kd", "kd"):
        list(method.steps(batch(), progress))
        progress.advance()
        assert method.phase == phase


def test_the_teacher_is_only_read() -> None:
    method = make()
    before = copy.deepcopy(method.teacher.net.state_dict())
    method.train()
    method(batch(dtype=F64), at(0, 2)).loss.backward()
    method.phase = "kd"
    method(batch(dtype=F64), at(0, 2)).loss.backward()
    torch.testing.assert_close(method.teacher.net.state_dict(), before, rtol=0, atol=0)
    assert not any(m.training for m in method.teacher.net.modules())
    assert not any("teacher" in key for key in method.state_dict())


def test_one_graph_while_the_weight_falls() -> None:
    method, graphs = FitNets(tiny(0), tiny(1)), []
    method.phase = "kd"

    def count(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    step = torch.compile(method, fullgraph=True, backend=count)
    values = [step(batch(), at(epoch, 12)).terms["distil"].item() for epoch in range(12)]
    assert len(graphs) == 1
    assert values[0] == pytest.approx(4 * values[-1], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"guided": 3}, "guided: found 3; the student has 3 stages"),
        ({"hint": -4}, "hint: found -4; the teacher has 3 stages"),
        ({"regressor": "deep"}, "regressor: found 'deep'"),
        ({"temperature": 0}, "temperature: found 0"),
        ({"hint_weight": 0}, "hint_weight: found 0"),
        ({"kd_weight_end": -1}, "kd_weight_end: found -1"),
        ({"one_stage": True, "temperature": 4.0}, "temperature: found 4.0; it has no effect with one_stage"),
    ],
)
def test_refuses(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        make(**options)


def test_refuses_networks_without_stages_and_other_classes() -> None:
    with pytest.raises(InputError, match=r"^fitnets: needs a student with stages and found Linear"):
        FitNets(nn.Linear(2, 2), tiny(0))
    with pytest.raises(InputError, match=r"^fitnets: needs a teacher with stages and found Linear"):
        FitNets(tiny(0), nn.Linear(2, 2))
    method = FitNets(tiny(0), tiny(1, classes=7))
    method.phase = "kd"
    with pytest.raises(InputError, match="teacher: it predicts 7 classes and the student 5"):
        method(batch(), at(0, 2))

"""Methods under torch.compile, torch.func and torch.jit, and over networks without weights: or they say why not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import batch, tiny
from torch import Tensor, nn

import teacherless as tl


def plain_net(classes: int = 5) -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 8, 3, stride=2), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    )


def adapted() -> nn.Module:
    return tl.adapt(plain_net(), stages="0+1", example=batch().inputs[0])


GENERAL = {"target": "general", "temperature": 2.0}


@pytest.mark.parametrize(
    "make",
    [
        lambda: tl.Plain(adapted()),
        lambda: tl.DML(adapted(), adapted()),
        lambda: tl.DML(adapted(), adapted(), **GENERAL),
    ],
)
def test_one_graph_of_adapted_networks(make: Any) -> None:
    method = make()
    step = torch.compile(method, fullgraph=True, backend="eager")
    assert torch.equal(step(batch()).loss, copy.deepcopy(method)(batch()).loss)


@pytest.mark.parametrize("make", [lambda: tl.ONE(adapted()), lambda: tl.BYOT(adapted())])
def test_no_single_graph_where_hooks_read_stages(make: Any) -> None:
    method, x = make(), batch()
    with pytest.raises(Exception, match="read by hooks, which no graph can hold"):
        torch.compile(method, fullgraph=True, backend="eager")(x)
    torch._dynamo.reset()
    other = copy.deepcopy(method)
    assert torch.equal(torch.compile(other, backend="eager")(x).loss, method(x).loss)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(
    "make", [lambda: tl.Plain(tiny(0)), lambda: tl.DML(tiny(0), tiny(1)), lambda: tl.DML(tiny(0), tiny(1), **GENERAL)]
)
def test_torch_func_takes_gradients_of_methods(make: Any) -> None:
    """Per batch, and of two batches side by side."""
    method, a, b = make().eval(), batch(0), batch(9)
    params = dict(method.named_parameters())

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return torch.func.functional_call(method, params, (x, y)).loss

    each = [torch.func.grad(loss)(params, item.inputs[0], item.labels) for item in (a, b)]
    both = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(
        params, torch.stack([a.inputs[0], b.inputs[0]]), torch.stack([a.labels, b.labels])
    )
    method(a).loss.backward()
    for name, parameter in method.named_parameters():
        torch.testing.assert_close(each[0][name], parameter.grad)
        torch.testing.assert_close(both[name], torch.stack([each[0][name], each[1][name]]))


def test_scripted_networks() -> None:
    scripted = [torch.jit.script(plain_net()) for _ in range(2)]
    tl.DML(*scripted)(batch()).loss.backward()
    teacher = tl.KD(plain_net(), scripted[0])
    teacher(batch()).loss.backward()
    assert not any(p.requires_grad for p in teacher.teacher.net.parameters())
    with pytest.raises(tl.InputError, match="'in_turn' with a scripted peer"):
        tl.DML(*scripted, update="in_turn")
    with pytest.raises(tl.InputError, match="is scripted, so it cannot be looked into"):
        tl.ONE(tl.adapt(scripted[0], example=batch().inputs[0]))


def lazy() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(5))


def meta() -> nn.Module:
    with torch.device("meta"):
        return plain_net()


@pytest.mark.parametrize(
    ("net", "words"), [(lazy, "lazy layer, which has no weights yet"), (meta, "on the meta device")]
)
def test_networks_without_weights(net: Any, words: str) -> None:
    item = (batch().inputs[0], batch().labels)
    for use in (lambda: tl.Plain(net())(*item), lambda: tl.DML(net(), net()), lambda: tl.train(tl.Plain(net()), [item]),
                lambda: tl.PSKD(net(), num_samples=6, num_classes=5)):  # fmt: skip
        with pytest.raises(tl.InputError, match=words):
            use()


class DropPath(nn.Module):
    """As timm's."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand(len(x), 1) > self.drop_prob) if self.training else x


def test_drop_path_sets_equal_peers_apart() -> None:
    peers = [nn.Sequential(nn.Flatten(), DropPath(rate), nn.Linear(64, 5)) for rate in (0.5, 0.0)]
    tl.DML(peers[0], copy.deepcopy(peers[0]))(batch()).loss.backward()
    with pytest.raises(tl.InputError, match="start with equal weights"):
        tl.DML(peers[1], copy.deepcopy(peers[1]))


def test_a_teacher_follows_its_input() -> None:
    method = tl.KD(plain_net(), plain_net())
    x, y = batch().inputs[0], batch().labels
    assert method(x, y).loss.dtype == torch.float32
    assert method.double()(x.double(), y).loss.dtype == torch.float64

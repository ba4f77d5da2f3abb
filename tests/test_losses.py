"""Every loss against a slow loop written from its equation; its gradient; extremes; half precision; wrong shapes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import slow
import torch
from torch import Tensor

from teacherless import losses
from teacherless.methods import _mutual
from teacherless.methods._mutual import mutual

F64 = torch.float64
B, C = 5, 7

Loss = Callable[[Tensor], Tensor]  # of the logits alone: [..., B, C] -> [..., B]


def noise(seed: int, *shape: int, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


LABELS = torch.tensor([0, 6, 3, 3, 1])
TARGET = noise(1, B, C)
PROBS = TARGET.softmax(-1)

LOGIT_LOSSES: dict[str, Loss] = {
    "ce": lambda z: losses.ce(z, LABELS),
    "ce, smoothed": lambda z: losses.ce(z, LABELS, 0.1),
    "soft_ce": lambda z: losses.soft_ce(z, PROBS),
    "bce": lambda z: losses.bce(z, PROBS),
    "bce, weighted": lambda z: losses.bce(z, 3 * PROBS, 3.0),
    "entropy": losses.entropy,
    "kl": lambda z: losses.kl(z, TARGET),
    "kl, T=4": lambda z: losses.kl(z, TARGET, 4.0),
    "kl, as the target": lambda z: losses.kl(TARGET, z, 2.0),
}

SLOW = {
    "ce": lambda z, i: slow.ce(z, int(LABELS[i])),
    "ce, smoothed": lambda z, i: slow.ce(z, int(LABELS[i]), 0.1),
    "soft_ce": lambda z, i: slow.soft_ce(z, PROBS[i].tolist()),
    "bce": lambda z, i: slow.bce(z, PROBS[i].tolist()),
    "bce, weighted": lambda z, i: 3 * slow.bce(z, PROBS[i].tolist()),
    "entropy": lambda z, i: slow.soft_ce(z, slow.softmax(z)),
    "kl": lambda z, i: slow.kl(z, TARGET[i].tolist()),
    "kl, T=4": lambda z, i: 16 * slow.kl(z, TARGET[i].tolist(), 4.0),
    "kl, as the target": lambda z, i: 4 * slow.kl(TARGET[i].tolist(), z, 2.0),
}


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_one_number_per_sample_equal_to_the_equation(name: str) -> None:
    logits = noise(0, B, C)
    found = LOGIT_LOSSES[name](logits)
    assert found.shape == (B,) and found.dtype == F64
    for i, row in enumerate(slow.rows(logits)):
        assert found[i].item() == pytest.approx(SLOW[name](row, i), rel=1e-12)


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_leading_axes_broadcast(name: str) -> None:
    logits = noise(0, 2, 3, B, C)
    found = LOGIT_LOSSES[name](logits)
    assert found.shape == (2, 3, B)
    torch.testing.assert_close(found[1, 2], LOGIT_LOSSES[name](logits[1, 2]), rtol=0, atol=0)


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_gradient(name: str) -> None:
    assert torch.autograd.gradcheck(LOGIT_LOSSES[name], noise(0, B, C).requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_extreme_logits_give_finite_values_and_gradients(name: str, dtype: torch.dtype) -> None:
    signs = torch.ones(B, C)
    signs[:, ::2] = -1
    for extreme in (1e4 * signs, -1e4 * signs, torch.full((B, C), 1e4)):
        logits = extreme.to(dtype).requires_grad_()
        value = LOGIT_LOSSES[name](logits)
        value.sum().backward()
        assert value.isfinite().all() and logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_half_precision_logits_are_computed_in_float32(name: str) -> None:
    half = noise(0, B, C).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = LOGIT_LOSSES[name](half)
    outside = LOGIT_LOSSES[name](half.float())
    assert found.dtype in (torch.float32, F64)  # float64 where the other side is
    torch.testing.assert_close(found, outside, rtol=0, atol=0)


def test_temperature_is_paid_back_by_its_square() -> None:
    """So that the gradient keeps its size: at high T it tends to (z - q)/C, both centred (Hinton et al., eq. 4)."""
    z, q = noise(0, B, C).requires_grad_(), noise(1, B, C)
    losses.kl(z, q, 1e4).sum().backward()
    limit = (z - z.mean(-1, keepdim=True) - (q - q.mean(-1, keepdim=True))).detach() / C
    torch.testing.assert_close(z.grad, limit, rtol=1e-3, atol=1e-4)


def test_kl_goes_from_the_target_to_the_student() -> None:
    """KL(target ‖ student) is the target's cross-entropy less its entropy; the other way round is another number."""
    z, q = noise(0, B, C), noise(1, B, C)
    entropy = -(q.softmax(-1) * q.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(losses.kl(z, q), losses.soft_ce(z, q.softmax(-1)) - entropy)
    assert not torch.allclose(losses.kl(z, q), losses.kl(q, z))


def test_smoothing_one_hot_and_uniform_are_the_ends() -> None:
    z = noise(0, B, C)
    torch.testing.assert_close(losses.ce(z, LABELS, 1.0), -z.log_softmax(-1).mean(-1))
    torch.testing.assert_close(losses.ce(z, LABELS, 0.0), losses.soft_ce(z, torch.eye(C, dtype=F64)[LABELS]))


def test_mmd_is_the_squared_distance_of_the_batch_means() -> None:
    a, b = noise(0, B, 4), noise(1, B, 4)
    slow_mmd = math.fsum(
        (slow.mean(float(v) for v in a[:, d]) - slow.mean(float(v) for v in b[:, d])) ** 2 for d in range(4)
    )
    assert losses.mmd(a, b).shape == ()
    assert losses.mmd(a, b).item() == pytest.approx(slow_mmd, rel=1e-12)
    assert losses.mmd(a, a[torch.randperm(B)]).item() == pytest.approx(0, abs=1e-25)  # means only: no pairing
    assert torch.autograd.gradcheck(losses.mmd, (a.requires_grad_(), b.requires_grad_()))


def test_the_unbiased_mmd_is_right_on_average() -> None:
    """Two views of an image are related; 12 at a time, the biased estimate is mostly noise, the other is not."""
    g = torch.Generator().manual_seed(0)
    image = torch.randn(4000, 12, 5, generator=g, dtype=torch.float64)
    a, b = (image + shift + torch.randn(image.shape, generator=g, dtype=torch.float64) for shift in (0.0, 0.1))
    truth, noise = 5 * 0.1**2, 5 * 2 / 12
    biased = torch.stack([losses.mmd(x, y) for x, y in zip(a, b, strict=True)]).mean().item()
    fair = torch.stack([losses.mmd(x, y, unbiased=True) for x, y in zip(a, b, strict=True)]).mean().item()
    assert biased == pytest.approx(truth + noise, abs=0.03) and fair == pytest.approx(truth, abs=0.03)


def test_mmd_sees_features_whose_grand_means_agree() -> None:
    """The mistake of the ports: a difference of two global scalar means is zero for quite different features."""
    a = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    assert losses.mmd(a, -a).item() == 8.0


def test_mmd_in_half_precision_is_computed_in_float32() -> None:
    a, b = noise(0, B, 4, scale=1e3).bfloat16(), noise(1, B, 4).bfloat16()
    found = losses.mmd(a, b)
    assert found.dtype == torch.float32 and found.isfinite()
    torch.testing.assert_close(found, losses.mmd(a.float(), b.float()), rtol=0, atol=0)


def test_virtual_teacher_is_always_right() -> None:
    like = noise(0, B, C).requires_grad_()
    found = losses.virtual_teacher(LABELS, like, 0.9)
    assert found.dtype == F64 and not found.requires_grad
    for i in range(B):
        expected = [0.9 if c == LABELS[i] else 0.1 / (C - 1) for c in range(C)]
        assert found[i].tolist() == pytest.approx(expected, rel=1e-15)
    torch.testing.assert_close(found.sum(1), torch.ones(B, dtype=F64), rtol=1e-15, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_of_mixed_images_are_shares_of_classes(smoothing: float) -> None:
    """A mixed image's cross-entropy is the mix of its two labels'; its virtual teacher the mix of theirs."""
    z, other = noise(0, 3, B, C), LABELS.flip(0)
    shares = 0.3 * torch.eye(C, dtype=F64)[LABELS] + 0.7 * torch.eye(C, dtype=F64)[other]
    expected = 0.3 * losses.ce(z, LABELS, smoothing) + 0.7 * losses.ce(z, other, smoothing)
    torch.testing.assert_close(losses.ce(z, shares, smoothing), expected)
    torch.testing.assert_close(losses.ce(z, 2 * shares, smoothing), 2 * expected)  # a weighted class
    a, b = losses.virtual_teacher(LABELS, z[0], 0.9), losses.virtual_teacher(other, z[0], 0.9)
    torch.testing.assert_close(losses.virtual_teacher(shares, z[0], 0.9), 0.3 * a + 0.7 * b)


def test_mse_is_the_mean_over_a_samples_entries() -> None:
    a, b = noise(0, B, 3, 2, 2), noise(1, B, 3, 2, 2)
    found = losses.mse(a, b)
    assert found.shape == (B,)
    for i in range(B):
        assert found[i].item() == pytest.approx(slow.mean_square(a[i], b[i]), rel=1e-12)
    assert torch.autograd.gradcheck(losses.mse, (a.requires_grad_(), b.requires_grad_()))
    huge = torch.full((2, 3), 1e4, dtype=torch.float16)  # its square is not a half
    assert losses.mse(huge, -huge).tolist() == [4e8, 4e8]


def slow_attention(a: Tensor) -> list[float]:
    """Mean over channels of the squares, at each place, divided by the length of all places."""
    channels, height, width = a.shape
    look = [slow.mean(a[c, h, w].item() ** 2 for c in range(channels)) for h in range(height) for w in range(width)]
    return [v / math.sqrt(math.fsum(u * u for u in look)) for v in look]


def test_attention_compares_where_two_maps_look() -> None:
    a, b = noise(0, B, 3, 2, 4), noise(1, B, 5, 2, 4)
    found = losses.attention(a, b)
    assert found.shape == (B,)
    for i in range(B):
        looks = zip(slow_attention(a[i]), slow_attention(b[i]), strict=True)
        assert found[i].item() == pytest.approx(slow.mean((x - y) ** 2 for x, y in looks), rel=1e-12)
    torch.testing.assert_close(losses.attention(a, 7 * a), torch.zeros(B, dtype=F64))  # its scale does not matter
    assert torch.autograd.gradcheck(losses.attention, (a.requires_grad_(), b.requires_grad_()))


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_attention_of_extreme_maps_is_finite(scale: float) -> None:
    a = (scale * noise(0, B, 3, 2, 2)).bfloat16().requires_grad_()
    value = losses.attention(a, noise(1, B, 3, 2, 2).bfloat16())
    value.sum().backward()
    assert value.dtype == torch.float32 and value.isfinite().all()
    assert a.grad is not None and a.grad.isfinite().all()


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda z: losses.ce(z, LABELS[:-1]), "labels"),
        (lambda z: losses.ce(z, LABELS[:, None]), "labels"),
        (lambda z: losses.soft_ce(z, PROBS[:, :-1]), "probs"),
        (lambda z: losses.bce(z, PROBS[:, :-1]), "shares"),
        (lambda z: losses.kl(z, TARGET[:-1]), "target_logits"),
        (lambda z: losses.kl(z, TARGET[:, :-1]), "target_logits"),
        (lambda z: losses.mmd(z, z[:-1]), "mmd"),
        (lambda z: losses.mmd(z[None], z[None]), "mmd"),
        (lambda z: losses.mse(z, z[:, :-1]), "mse"),
        (lambda z: losses.attention(z[:, :, None, None], z[:-1, :, None, None]), "attention"),
        (lambda z: losses.attention(z[:, None], z[:, None, :-1]), "attention"),
    ],
)
def test_wrong_shapes_are_refused_by_name(call: Loss, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        call(noise(0, B, C))


@pytest.mark.parametrize("many", [0, 2**20])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_mutual_is_what_autograd_makes_of_the_equation(
    many: int, smoothing: float, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients of each term alone and both together, whole and in slices, and a peer nobody answers."""
    monkeypatch.setattr(_mutual, "LARGE", many)
    monkeypatch.setattr(_mutual, "CACHE", 2 * C)
    z = noise(3, 3, B, C, scale=5).to(dtype)
    z[0, 0] *= 100  # as sure as can be

    def exchange(own: Tensor) -> Tensor:
        others = (own.sum(0) - own) / 2
        return others * torch.tensor([1.0, 1.0, 0.0]).to(own)[:, None, None]  # the last one listens to nobody

    def plain(z: Tensor) -> tuple[Tensor, Tensor]:
        log_p = losses.log_probs(z)
        p = log_p.exp()
        others = exchange(torch.cat([p, (p * log_p).sum(-1, keepdim=True)], -1).detach())
        return losses.nll(log_p, LABELS, smoothing), others[..., -1] - (others[..., :-1] * log_p).sum(-1)

    results = []
    for pair in (plain, lambda z: mutual(z, LABELS, exchange, smoothing)):
        leaf = z.clone().requires_grad_()
        ce, mimicry = pair(leaf)
        assert ce.shape == mimicry.shape == (3, B) and ce.dtype == torch.promote_types(dtype, torch.float32)
        terms = (ce.mean(), mimicry.square().mean(), ce.mean() + 3 * mimicry.mean())
        grads = [torch.autograd.grad(term, leaf, retain_graph=True)[0] for term in terms]
        (twice,) = torch.autograd.grad(terms[2], leaf, create_graph=True)
        grads += torch.autograd.grad(twice.square().sum(), leaf)
        results.append((ce.detach(), mimicry.detach(), *grads))
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    assert not results[1][3][2].any()


@pytest.mark.parametrize("many", [0, 2**20])
def test_mutual_is_one_graph(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mutual, "LARGE", many)

    def loss(z: Tensor) -> Tensor:
        return torch.stack(mutual(z, LABELS, lambda own: (own.sum(0) - own) / 2)).sum()

    z = noise(0, 3, B, C).requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    assert torch.equal(torch.autograd.grad(compiled(z), z)[0], torch.autograd.grad(loss(z), z)[0])

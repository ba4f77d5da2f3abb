"""What tests share: tiny networks, one fixed batch, quiet threads."""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from teacherless.method import Batch
from teacherless.models.staged import Staged

CLASSES = 5


def pytest_configure() -> None:
    """Signals act in the processes that tests start, also where the tests themselves run in the background. What
    fixtures of a module train is trained on one thread, as in tests: two give other last bits."""
    torch.set_num_threads(1)
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def tiny(seed: int, *, width: int = 4, classes: int = CLASSES, dtype: torch.dtype = torch.float32) -> Staged:
    """Three conv stages on 8x8 one-channel images."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        widths = [width, 2 * width, 3 * width]
        stages = [
            nn.Sequential(nn.Conv2d(i, o, 3, stride=s, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
            for i, o, s in zip([1, *widths], widths, [1, 2, 2], strict=False)
        ]
        return Staged(stages, widths, nn.Linear(widths[-1], classes)).to(dtype)


def images(seed: int, size: int = 6, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """One batch of noise and its labels."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 1, 8, 8, generator=g, dtype=torch.float64).to(dtype)
    return x, torch.arange(size) % CLASSES


def batch(seed: int = 0, size: int = 6, *, views: int = 1, dtype: torch.dtype = torch.float32) -> Batch:
    """A batch with every input a method may want."""
    inputs = tuple(images(seed + i, size, dtype=dtype)[0] for i in range(views))
    return Batch(inputs, images(seed, size)[1], torch.arange(size))


@pytest.fixture(scope="session")
def zoo() -> Iterator[None]:
    """timm and torchvision, importable.

    torchvision's usual wheel is built for CUDA, and beside a CPU torch its library does not load. Then the operators
    that its Python files ask for when they are imported are declared here; no network calls them.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or importlib.util.find_spec("timm") is None:
        pytest.skip("timm and torchvision are not installed")
    operators = torch.library.Library("torchvision", "FRAGMENT")
    try:
        torch.ops.load_library(str(Path(str(found.origin)).with_name("_C.so")))
    except OSError:
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    yield
    operators._destroy()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tests are small; threads only cost, and results must not depend on how many there are."""
    torch.set_num_threads(1)

"""Memory and precision: what makes the same mathematics fast on the machine at hand."""

from __future__ import annotations

import ctypes
import functools
import os
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from teacherless import losses
from teacherless.network import calling

NO_BF16 = "fp32, since this CPU has no bf16 instructions"


def tune_allocator() -> bool:
    """Keep freed memory in the process instead of giving it back and asking again at every step: a quarter of a step's
    time on Linux. The command line calls this; a program of your own may, before it allocates. Never done on import.

    Returns: whether it was done; not without glibc, nor with TEACHERLESS_NO_MALLOPT=1 in the environment.
    """
    if os.environ.get("TEACHERLESS_NO_MALLOPT", "0") not in ("", "0"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    return bool(mallopt(mmap_threshold, 1 << 30)) and bool(mallopt(trim_threshold, 2**31 - 1))


@torch.no_grad()
def channels_last(module: nn.Module) -> None:
    """Lay out every convolution's weight as `[out, height, width, in]` in memory, the order the fast kernels read."""
    for p in module.parameters():
        if p.dim() == 4:
            p.data = p.data.contiguous(memory_format=torch.channels_last)


def fast_in_bf16(device: torch.device) -> bool:
    """Whether a CPU has instructions for bf16: without them it takes longer than fp32. Other devices are taken at the
    user's word."""
    if device.type != "cpu":
        return True
    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    has = torch.cpu.get_capabilities()
    return any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16"))  # x86, then ARM


def slow_in_bf16(module: nn.Module, device: torch.device) -> dict[str, nn.Conv2d]:
    """The layers that stay in fp32 under `amp`: on a CPU, depthwise convolutions with a stride, whose bf16 gradient is
    a reference kernel, 30 times slower. A fixed rule, so that a run does not depend on a clock."""
    if device.type != "cpu":
        return {}
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1 and max(layer.stride) > 1
    }


def in_fp32(layers: dict[str, nn.Conv2d]) -> AbstractContextManager[None]:
    """These layers compute in fp32 under autocast. Undone at the end: what is exported is the plain architecture."""
    return calling({layer: functools.partial(_without_autocast, layer) for layer in layers.values()})


def _without_autocast(layer: nn.Conv2d, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return type(layer).forward(layer, losses.full(x))

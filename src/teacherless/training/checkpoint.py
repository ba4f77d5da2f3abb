"""Save whole or not at all; resume to the same bits.

A checkpoint is a folder `checkpoints/<step>/` with `tensors.safetensors`, `state.json` and `SHA256SUMS`. It is written
under a temporary name, flushed to the disk, and renamed: a folder of that name is whole, or was damaged later, which
the checksums show. The two newest are kept. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from teacherless.errors import InputError, short
from teacherless.files import bounds, disk

FORMAT = 3
KEEP = 2


class State(NamedTuple):
    """Everything that decides the future of a run."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]  # what JSON can hold


def write(folder: Path, step: int, state: State, sound: int = 0) -> None:
    """Save under `folder/<step>`; the previous checkpoint stays until this one is whole.

    Besides the newest two, the newest up to the step `sound` is kept: nothing was wrong until then.

    Raises: InputError if it cannot be written; what was there before is untouched.
    """
    final, part = folder / f"{step:010d}", folder / f"{disk.PART}{os.getpid()}"
    try:
        if not (final.exists() and _whole(final)):  # the same step is the same state
            _write_one(part, state)
            if final.exists():
                disk.remove(final)  # it is damaged
            part.rename(final)
            disk.flush_folder(folder)
        there = steps(folder)
        good = [path for path in there if int(path.name) <= sound][:1]
        for old in there[KEEP:]:
            if old not in good:
                disk.remove(old)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        there = steps(folder)
        last = f"the last whole checkpoint is {there[0]}" if there else "there is no earlier checkpoint"
        raise InputError(f"cannot save a checkpoint in {folder}: {error.strerror}; {last}") from None


def go_back(folder: Path, sound: int) -> None:
    """Remove what was saved after the step `sound`."""
    with disk.saying(f"cannot remove checkpoints in {folder}"):
        for path in steps(folder):
            if int(path.name) > sound:
                disk.remove(path)


def _write_one(part: Path, state: State) -> None:
    files = {
        "tensors.safetensors": save({k: v.detach().cpu().contiguous().clone() for k, v in state.tensors.items()}),
        "state.json": json.dumps({"format": FORMAT, **state.values}).encode(),
    }
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
    disk.make_folder(part.parent)
    part.mkdir()
    for name, data in (*files.items(), ("SHA256SUMS", sums.encode())):
        disk.write_flushed(part / name, data)
    disk.flush_folder(part)


def read(folder: Path) -> tuple[State, Path, list[str]] | None:
    """The newest whole checkpoint, its folder, and a line about each newer one that is damaged; None if none was saved.

    Raises: InputError if there are checkpoints and none is whole, or if it is of another format.
    """
    complaints: list[str] = []
    for path in steps(folder):
        try:
            return _read_one(path), path, complaints
        except _Damaged as error:
            complaints.append(f"{path} is damaged: {error}")
    if complaints:
        raise InputError(f"no whole checkpoint: {'; '.join(complaints)}; start again in another folder")
    return None


def steps(folder: Path) -> list[Path]:
    """The checkpoints of a folder, newest first."""
    folders = (p for p in folder.glob("*") if re.fullmatch(r"\d{10,}", p.name))  # ten digits, more from phase ten on
    return sorted(folders, key=lambda p: int(p.name), reverse=True)


class _Damaged(Exception):
    pass


def _read_one(path: Path) -> State:
    try:
        lines = [line.split("  ") for line in bounds.a_file(path / "SHA256SUMS").read_bytes().decode().splitlines()]
        sums = {name: digest for digest, name in lines}
        if sums.keys() != {"tensors.safetensors", "state.json"}:
            raise _Damaged("SHA256SUMS does not list its files")
        files = {name: bounds.a_file(path / name).read_bytes() for name in sums}
    except (OSError, ValueError, TypeError) as error:
        raise _Damaged(getattr(error, "strerror", None) or "SHA256SUMS is not readable") from None
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != sums[name]:
            raise _Damaged(f"{name} does not have its checksum")
    try:
        state = State(load(files["tensors.safetensors"]), json.loads(files["state.json"]))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise _Damaged(f"is not readable: {error}") from None
    stored = state.values.get("format") if isinstance(state.values, dict) else None
    if stored != FORMAT:
        raise InputError(f"{path}: found checkpoint format {short(stored)}; this version reads {FORMAT}")
    return state


def _whole(path: Path) -> bool:
    try:
        _read_one(path)
    except (_Damaged, InputError):
        return False
    return True


# Generators ----------------------------------------------------------------------------------------------------------


def random_state() -> State:
    """The states of Python's, NumPy's and torch's global generators."""
    kind, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)
    version, numbers, gauss_next = random.getstate()
    assert kind == "MT19937"
    words = torch.from_numpy(np.asarray(keys).astype(np.int64))
    tensors = {"torch": torch.get_rng_state(), "numpy": words, "python": torch.tensor(numbers)}
    if torch.cuda.is_available():
        tensors |= {f"cuda{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return State(tensors, {"numpy": [place, has_gauss, gauss], "python": [version, gauss_next]})


def set_random_state(state: State) -> None:
    """The reverse of `random_state`."""
    tensors, values = state
    torch.set_rng_state(tensors["torch"])
    place, has_gauss, gauss = values["numpy"]
    np.random.set_state(("MT19937", tensors["numpy"].numpy().astype(np.uint32), place, has_gauss, gauss))
    version, gauss_next = values["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss_next))
    for name, tensor in tensors.items():
        if name.startswith("cuda"):
            torch.cuda.set_rng_state(tensor, int(name.removeprefix("cuda")))


def pack(**states: State) -> State:
    """Several states as one; names get a prefix."""
    tensors = {f"{name}/{key}": tensor for name, state in states.items() for key, tensor in state.tensors.items()}
    return State(tensors, {name: state.values for name, state in states.items()})


def unpack(state: State, name: str) -> State:
    """One of the states that were packed."""
    tensors = {key.removeprefix(f"{name}/"): t for key, t in state.tensors.items() if key.startswith(f"{name}/")}
    return State(tensors, state.values[name])


def optimizer_state(optimizer: torch.optim.Optimizer) -> State:
    """An optimizer's state dict: its tensors, and its numbers."""
    state = optimizer.state_dict()
    entries = {f"{index}/{name}": x for index, each in state["state"].items() for name, x in each.items()}
    tensors = {name: x for name, x in entries.items() if isinstance(x, Tensor)}
    numbers = {name: x for name, x in entries.items() if name not in tensors}
    groups = [dict(group) for group in state["param_groups"]]
    for group in groups:
        group |= {name: x.item() for name, x in group.items() if isinstance(x, Tensor)}
    return State(tensors, {"numbers": numbers, "groups": groups})


def load_optimizer(optimizer: torch.optim.Optimizer, state: State) -> None:
    """The reverse of `optimizer_state`."""
    entries: dict[int, dict[str, Any]] = {}
    for key, value in {**state.tensors, **state.values["numbers"]}.items():
        index, name = key.split("/")
        entries.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": entries, "param_groups": state.values["groups"]})
    for param, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == param.shape:  # fused kernels walk both in memory's order
                values[name] = torch.empty_like(param, dtype=value.dtype).copy_(value)


class Every:
    """`10m`, `2e` or `500s`: minutes, epochs or steps."""

    def __init__(self, text: str) -> None:
        self.number, self.unit = int(text[:-1]), text[-1]
        self.saved = time.monotonic()

    def due(self, step: int, epochs_done: int | None) -> bool:
        """Whether to save now, after `step` steps; `epochs_done` only at the end of an epoch."""
        if self.unit == "m":
            due = time.monotonic() - self.saved >= 60 * self.number
        elif self.unit == "s":
            due = epochs_done is None and step % self.number == 0
        else:
            due = epochs_done is not None and epochs_done % self.number == 0
        if due:
            self.saved = time.monotonic()
        return due

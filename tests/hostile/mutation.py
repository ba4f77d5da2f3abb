"""Random damage, the same for the same seed: to JSON, to bytes, to folders."""

from __future__ import annotations

import copy
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 7, 10**6, 10**30, -0.0, 0.5, 1e308, -1e308, math.nan, math.inf, "", "x", "peer0", "1",
    "../../etc", "\x1b[31mred", "\udcff", "a\0b", "x" * 5000, "Infinity", [], [None], [1, 2], {}, {"x": 1}, DEEP,
    {"": {"": {}}}, "small-cnn", "resnet18", "dml", "digits", "os:system", [1e308], {"a": math.nan},
]  # fmt: skip


def damage(value: Any, rng: random.Random) -> Any:
    """A JSON value with one thing changed, somewhere inside."""
    value = copy.deepcopy(value)
    if not (isinstance(value, (dict, list)) and value) or rng.random() < 0.08:
        return rng.choice(VALUES)
    key: Any = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    kind = rng.random()
    if kind < 0.25:
        del value[key]
    elif kind < 0.35 and isinstance(value, dict):
        value[rng.choice(["x", "", "Ω", "method", "set", "trust_imports", "\x1b", "pretrained"])] = rng.choice(VALUES)
    else:
        value[key] = damage(value[key], rng) if rng.random() < 0.7 else rng.choice(VALUES)
    return value


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Cut, flipped, doubled, or with rubbish inside."""
    at = rng.randrange(len(data) + 1)
    return [
        lambda: data[:at],
        lambda: data[:at] + bytes([data[at % len(data)] ^ (1 << rng.randrange(8))]) + data[at + 1 :],
        lambda: data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:],
        lambda: data + data,
        lambda: b"",
        lambda: data[at:],
        lambda: b"\xff\xfe" + data,
        lambda: b"[" * 100_000,
        lambda: b"\0" * len(data),
    ][rng.randrange(9)]()  # fmt: skip


def damage_file(path: Path, rng: random.Random) -> None:
    """What a file holds, or what it is."""
    kind = rng.random()
    if kind < 0.05:
        path.unlink()
    elif kind < 0.08:
        path.unlink()
        path.mkdir()
    elif kind < 0.25 or path.suffix not in (".json", ".jsonl"):
        path.write_bytes(damage_bytes(path.read_bytes(), rng))
    elif path.suffix == ".json":
        path.write_text(json.dumps(damage(json.loads(path.read_text()), rng)))
    else:
        lines = path.read_text().splitlines()
        row = rng.randrange(len(lines))
        lines[row] = json.dumps(damage(json.loads(lines[row]), rng))
        path.write_text("\n".join(lines) + rng.choice(["", "\n", "\n\n", '\n{"epoch": 3, "tr']))


def damaged_copy(source: Path, target: Path, rng: random.Random) -> list[str]:
    """A copy of a run folder of which one to three files are damaged; returns their names."""
    shutil.copytree(source, target)
    whole = sorted(p for p in target.rglob("*") if p.is_file() and p.suffix in (".json", ".jsonl", ".safetensors"))
    chosen = rng.sample([p for p in whole if "checkpoints" not in p.parts], rng.choice([1, 1, 1, 2, 3]))
    for path in chosen:
        damage_file(path, rng)
    summary = target / "summary.json"
    if rng.random() < 0.7 and summary.is_file():  # who changes a student changes its checksum
        try:
            content = json.loads(summary.read_text())
            content.pop("files", None)
            summary.write_text(json.dumps(content))
        except (ValueError, AttributeError, TypeError, RecursionError):
            pass
    return [str(path.relative_to(target)) for path in chosen]

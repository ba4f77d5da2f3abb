"""Any data set gives what a method wants."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import CLASSES, tiny
from test_all_methods import build, every_method
from torch.utils.data import DataLoader, TensorDataset

import teacherless as tl
from teacherless.batch import as_batch

SAMPLES = 64


class Noisy(torch.utils.data.Dataset[Any]):
    """Each reading is distorted anew; the sample's row is in its corner."""

    def __init__(self, kind: type = tuple) -> None:
        self.kind = kind
        self.x = torch.randn(SAMPLES, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        self.x[:, 0, 0, 0] = torch.arange(SAMPLES)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, row: int) -> Any:
        x = self.x[row].clone()
        x[0, 1] += torch.randn(8)
        return (x, row % CLASSES) if self.kind is tuple else {"image": x, "label": row % CLASSES, "path": f"{row}.png"}


@every_method
@pytest.mark.parametrize("kind", [tuple, dict])
def test_what_a_method_wants(name: str, kind: type) -> None:
    method = build(name)
    views = tl.Views(Noisy(kind), *method.wants)
    for batch in map(as_batch, DataLoader(views, 16, shuffle=True)):
        for out in method.steps(batch, tl.progress(epochs=9)):
            out.loss.backward()
        rows = [x[:, 0, 0, 0].long() for x in batch.inputs]
        own, mate = (rows[:-1], rows[-1]) if method.wants.classmate else (rows, None)
        assert all(torch.equal(row, own[0]) for row in own)
        assert batch.index is None or torch.equal(batch.index, own[0])
        assert mate is None or ((mate != own[0]).all() and torch.equal(mate % CLASSES, batch.labels))
        assert len(own) == 1 or not torch.equal(batch.inputs[0], batch.inputs[1])


def test_a_classmate_is_any_other_of_the_class() -> None:
    views = tl.Views(Noisy(), classmate=True, labels=[row % CLASSES for row in range(SAMPLES)])
    found = {int(views[3][0][1][0, 0, 0]) for _ in range(200)}
    assert found == {row for row in range(SAMPLES) if row % CLASSES == 3 and row != 3}


def test_what_cannot_be_given() -> None:
    x, y = torch.randn(10, 1, 8, 8), torch.arange(10) % 3
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (TensorDataset(x, y), {"n": 2}, "gives the same when a sample is read twice"),
        (TensorDataset(x[:7], y[:7] + (y[:7] == 0) * torch.arange(7)), {"classmate": True}, "has one sample"),
        (iter([]), {}, "must have len"),
        (Noisy(), {"n": 0}, "n: found 0"),
    ]
    for dataset, options, words in cases:
        with pytest.raises(tl.InputError, match=words):
            tl.Views(dataset, **options)


def test_train_takes_it() -> None:
    method = tl.DDGSD(tiny(0))
    tl.train(method, DataLoader(tl.Views(Noisy(), *method.wants), 16), epochs=1, quiet=True)

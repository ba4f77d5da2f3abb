"""Any data set, as a method wants it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from teacherless.batch import as_input, leaves, parts
from teacherless.errors import InputError

LOOK = 16  # samples that are read twice, to see that views differ


class Views(Dataset[Any]):
    """A data set's samples with further views, a classmate, their row: `DataLoader(tl.Views(dataset, *method.wants))`.

    A view is the sample read once more: its random transform distorts it anew. Draws come from torch's generator, which
    a DataLoader seeds in its workers.

    Args:
        dataset: samples `(x, y)`, or dicts, by their row.
        n: views of each sample.
        classmate: one more input, another sample of the same class.
        index: the row, as the third entry.
        labels: of every sample; by default the data set's `targets` or `labels`, or every sample is read once.

    Raises: InputError for what has no rows, for views that do not differ, and for a class of one sample, which has no
        classmate.
    """

    def __init__(
        self,
        dataset: Any,
        n: int = 1,
        classmate: bool = False,
        index: bool = False,
        *,
        labels: Sequence[int] | None = None,
    ) -> None:
        if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            raise InputError(f"dataset: found a {type(dataset).__name__}; must have len(dataset) and dataset[row]")
        if n < 1:
            raise InputError(f"n: found {n}; must be at least 1")
        self.dataset, self.n, self.index = dataset, n, index
        if n > 1 and all(self._same_twice(row) for row in range(min(LOOK, len(dataset)))):
            why = "gives the same when a sample is read twice, and equal views teach nothing"
            raise InputError(f"dataset: {why}; give it a random transform")
        self.rows: list[torch.Tensor] = []  # of every class
        if classmate:
            for name in ("targets", "labels"):
                labels = getattr(dataset, name, None) if labels is None else labels
            if labels is None:
                labels = [int(parts(dataset[row])[1]) for row in range(len(dataset))]
            ids = torch.as_tensor(labels)
            self.rows = [(ids == kind).nonzero().flatten() for kind in range(int(ids.max()) + 1)]
            single = [kind for kind, rows in enumerate(self.rows) if len(rows) == 1]
            if single:
                raise InputError(f"dataset: class {single[0]} has one sample; a classmate needs two")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> tuple[Any, ...]:
        x, y, _ = parts(self.dataset[row])
        inputs = [x, *(self._input(row) for _ in range(self.n - 1))]
        if self.rows:
            inputs.append(self._input(self._mate(row, int(y))))
        given = tuple(inputs) if len(inputs) > 1 else x
        return (given, y, row) if self.index else (given, y)

    def _input(self, row: int) -> Any:
        return parts(self.dataset[row])[0]

    def _mate(self, row: int, kind: int) -> int:
        """Any other row of the class, each as likely."""
        rows = self.rows[kind]
        drawn = int(rows[torch.randint(len(rows) - 1, ())])
        return drawn if drawn != row else int(rows[-1])

    def _same_twice(self, row: int) -> bool:
        pair = (leaves(as_input(self._input(row))) for _ in range(2))
        return all(torch.equal(a, b) for a, b in zip(*pair, strict=True))

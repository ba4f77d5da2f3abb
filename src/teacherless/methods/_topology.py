"""Who listens to whom in a cohort."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from teacherless.errors import InputError, unknown


def listening(topology: str | Sequence[Sequence[float]], peers: int) -> Tensor:
    """Who listens to whom: `[K, K]`, row k the weights of peer k's targets, summing to 1, or to 0 for nobody.

    Raises: InputError for an unknown name and for a matrix that is not of this form.
    """
    if not isinstance(topology, str):
        return _checked(topology, peers)
    weights = torch.zeros(peers, peers, dtype=torch.float64)
    for k in range(peers):
        sources = {
            "complete": [j for j in range(peers) if j != k],
            "ring": [(k - 1) % peers],
            "star": [0] if k else [*range(1, peers)],
            "weak-to-strong": [*range(k + 1, peers)],
        }
        if topology not in sources:
            raise unknown("topology", topology, sources)
        for j in sources[topology]:
            weights[k, j] = 1 / len(sources[topology])
    return weights


def _checked(rows: Sequence[Sequence[float]], peers: int) -> Tensor:
    sizes = [len(row) for row in rows]
    if sizes != [peers] * peers:
        raise InputError(f"topology: found rows of {sizes}; {peers} peers need {peers} rows of {peers}")
    for k, row in enumerate(rows):
        if not (min(row) >= 0 and min(abs(sum(row)), abs(sum(row) - 1)) <= 1e-6):  # nor NaN
            shown = [float(weight) for weight in row]
            raise InputError(f"topology: found row {k} = {shown}; weights must be at least 0 and sum to 1, or to 0")
        if row[k] != 0:
            raise InputError(f"topology: found {float(row[k])} at [{k}][{k}]; a peer does not listen to itself")
    return torch.tensor([list(row) for row in rows], dtype=torch.float64)

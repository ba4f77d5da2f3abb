"""Re-identification: who of the gallery shows the person of the query? Features in, CMC and mAP out.

The protocol is Market-1501's (Zheng et al. 2015, and its evaluation code). For a query of person i seen by camera c, a
gallery image is

    right   if it shows person i from another camera,
    junk    if it shows person i from camera c, or has id -1 (a bad detection): it is taken out of the ranking,
    wrong   otherwise; distractors (id 0) always are.

A query without a right image is left out. AP is the area under precision and recall by trapezoids, as that code
computes it: at the k-th right image, found at place j of the ranking, precision is the mean of k/j and (k-1)/(j-1); at
place 1 it is 1. (A sum of rectangles gives another number: scikit-learn's is about 2 points higher.)
Equal distances rank in the order of the gallery. A distance that is no number (of features that are NaN or infinite)
ranks last, and the image there is never found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teacherless import losses
from teacherless.errors import InputError
from teacherless.method import Batch
from teacherless.network import evaluating

JUNK = -1  # the id of what is neither right nor wrong
DISTRACTOR = 0  # the id of what is always wrong
RANKS = (1, 5, 10)
NOWHERE = 2**40  # the place of a right image that is never found
CHUNK = 256  # queries whose ranking is in memory at one time


class Features(NamedTuple):
    """Images by what a network sees in them."""

    features: Tensor  # [N, D]
    ids: Tensor  # [N] of persons
    cameras: Tensor  # [N]


def reid(query: Features, gallery: Features, multi: Features | None = None) -> dict[str, float]:
    """Rank-1/5/10 and mAP, in percent, by the angle between features (the same ranking as Euclidean distance between
    features of length 1).

    Args:
        query: one image for each question.
        gallery: where the answers are.
        multi: more images of the queries' persons; each query becomes the mean of those of its person and camera.

    Returns: `rank1`, `rank5`, `rank10`, `map`; with `multi`, also `mq_rank1`, … `mq_map`.
    Raises: InputError if no query has a right image, or `multi` lacks the images of one.
    """
    percents = _ranked(query, gallery)
    if multi is not None:
        percents |= {f"mq_{name}": value for name, value in _ranked(pooled(query, multi), gallery).items()}
    return percents


def _ranked(query: Features, gallery: Features) -> dict[str, float]:
    asked, offered = unit(query.features), unit(gallery.features)
    chunks = []
    for rows in torch.split(torch.arange(len(asked)), CHUNK):
        distance = 1 - asked[rows] @ offered.T  # [Q, G]
        chunks.append(scores(distance, query.ids[rows], query.cameras[rows], gallery.ids, gallery.cameras))
    first, ap = map(torch.cat, zip(*chunks, strict=True))
    if len(first) == 0:
        raise InputError("re-id: no query has a right image in the gallery: the same person from another camera")
    return {f"rank{k}": 100 * float((first < k).double().mean()) for k in RANKS} | {"map": 100 * float(ap.mean())}


def scores(
    distance: Tensor, ids: Tensor, cameras: Tensor, gallery_ids: Tensor, gallery_cameras: Tensor
) -> tuple[Tensor, Tensor]:
    """For every query that has a right image: the place of the first one, counted from 0, and its AP.

    `[Q, G], [Q], [Q], [G], [G] -> [at most Q], [at most Q]`, int64 and float64.
    """
    same = ids[:, None] == gallery_ids  # [Q, G]
    near = cameras[:, None] == gallery_cameras
    junk = (gallery_ids == JUNK) | (same & near)
    right = same & ~near & (gallery_ids != JUNK) & (gallery_ids != DISTRACTOR)
    answered = right.any(1)
    order = distance[answered].argsort(dim=1, stable=True)  # NaN last
    finite = distance.isfinite()
    right, junk, finite = (each[answered].gather(1, order) for each in (right, junk, finite))  # in order of distance
    place = (~junk).cumsum(1).double()  # [Q, G] from 1, without the junk
    count = right.cumsum(1).double()  # right ones so far
    before = torch.where(place > 1, (count - 1) / (place - 1).clamp(min=1), 1.0)  # precision one place earlier
    ap = ((count / place.clamp(min=1) + before) / 2 * (right & finite)).sum(1) / count[:, -1:].squeeze(1)
    first = place.masked_fill(~(right & finite), NOWHERE).amin(1).long() - 1
    return first, ap


def pooled(query: Features, multi: Features) -> Features:
    """Each query as the mean of the unit features that `multi` has of its person and camera.

    Raises: InputError for a query of which `multi` has no image.
    """
    asked, given = (torch.stack([part.ids, part.cameras], 1) for part in (query, multi))
    pairs, group = torch.unique(torch.cat([asked, given]), dim=0, return_inverse=True)  # [P, 2], [Q + M]
    mine, theirs = group[: len(asked)], group[len(asked) :]
    number = theirs.bincount(minlength=len(pairs))
    if len(mine) and number[mine].min() == 0:
        person, camera = asked[number[mine].argmin()].tolist()
        raise InputError(f"re-id: found no image of person {person} from camera {camera} for multiple queries")
    features = unit(multi.features)
    total = torch.zeros(len(pairs), features.shape[1], dtype=features.dtype, device=features.device)
    total = total.index_add(0, theirs, features)
    return query._replace(features=(total / number.clamp(min=1)[:, None])[mine])


def unit(features: Tensor) -> Tensor:
    """Rows of length 1, at least float32. `[N, D] -> [N, D]`."""
    return F.normalize(losses.full(features), dim=1)


def cohort(features: Sequence[Tensor]) -> Tensor:
    """What several networks see, side by side: each network's rows are made of length 1 first, so that none outweighs
    the others. `K of [N, D_k] -> [N, ΣD_k]`."""
    return torch.cat([unit(each) for each in features], 1)


@torch.no_grad()
def look(nets: Mapping[str, nn.Module], batches: Iterable[Batch], cameras: Tensor) -> dict[str, Features]:
    """What every network sees, in evaluation mode: the features that its head reads. Several see more: `ensemble`.

    Args:
        nets: networks with `embed`.
        batches: their labels are persons, their index rows of `cameras`.
        cameras: `[N]`.

    Raises: InputError for a network without `embed`.
    """
    for name, net in nets.items():
        if not callable(getattr(net, "embed", None)):
            needs = "needs a network with stages, to read its features"
            kind = type(net).__name__
            raise InputError(f"re-id: {name}: {needs}, and found {kind}; see teacherless.models.staged.Staged")
    embeddings: dict[str, list[Tensor]] = {name: [] for name in nets}
    ids, rows = [], []
    with evaluating(nets.values()):
        for batch in batches:
            assert batch.index is not None
            ids.append(batch.labels)
            rows.append(batch.index)
            for name, net in nets.items():
                embeddings[name].append(net.embed(batch.inputs[0]).float())  # type: ignore[operator]
    persons, taken_by = torch.cat(ids).cpu(), cameras[torch.cat(rows).cpu()]
    features = {name: torch.cat(each).cpu() for name, each in embeddings.items()}
    if len(features) > 1:
        features["ensemble"] = cohort(list(features.values()))
    return {name: Features(each, persons, taken_by) for name, each in features.items()}

"""CMC and mAP against a loop written from the protocol, one image at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import batch, tiny
from torch import Tensor, nn

from teacherless.errors import InputError
from teacherless.evaluation import reid
from teacherless.evaluation.reid import Features


def slow(distance: Tensor, query: Features, gallery: Features) -> dict[str, float]:
    """The protocol in words, for one query after the other."""
    firsts, aps = [], []
    for q in range(len(query.ids)):
        person, camera = int(query.ids[q]), int(query.cameras[q])
        ranking = sorted(range(len(gallery.ids)), key=lambda g: (float(distance[q, g]), g))
        answers = []
        for g in ranking:
            found, seen_by = int(gallery.ids[g]), int(gallery.cameras[g])
            if found == -1 or (found == person and seen_by == camera):
                continue  # junk leaves the ranking
            answers.append(found == person and found != 0)
        if not any(answers):
            continue
        old_recall, old_precision, area, hits = 0.0, 1.0, 0.0, 0
        for place, right in enumerate(answers, 1):
            hits += right
            recall, precision = hits / sum(answers), hits / place
            area += (recall - old_recall) * (old_precision + precision) / 2
            old_recall, old_precision = recall, precision
        firsts.append(answers.index(True))
        aps.append(area)
    n = len(aps)
    return {f"rank{k}": 100 * sum(f < k for f in firsts) / n for k in (1, 5, 10)} | {"map": 100 * sum(aps) / n}


def people(
    seed: int, queries: int = 40, images: int = 150, persons: int = 12, size: int = 8
) -> tuple[Features, Features]:
    """Features around a centre for each person; the gallery has junk and distractors, and lacks persons 11 and 12."""
    g = torch.Generator().manual_seed(seed)
    centre = torch.randn(persons + 2, size, generator=g, dtype=torch.float64)

    def seen(ids: Tensor) -> Features:
        noise = torch.randn(len(ids), size, generator=g, dtype=torch.float64)
        return Features(centre[ids] + 1.5 * noise, ids, torch.randint(1, 4, (len(ids),), generator=g))

    ids = torch.randint(-1, persons - 1, (images,), generator=g)
    return seen(torch.randint(1, persons + 1, (queries,), generator=g)), seen(ids)


def angles(query: Features, gallery: Features) -> Tensor:
    return 1 - reid.unit(query.features) @ reid.unit(gallery.features).T


@pytest.mark.parametrize("seed", range(8))
def test_random_features(seed: int) -> None:
    query, gallery = people(seed)
    assert reid.reid(query, gallery) == pytest.approx(slow(angles(query, gallery), query, gallery), abs=1e-9)


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_tied_distances(levels: int) -> None:
    """One level: nothing but the gallery's order decides."""
    query, gallery = people(99)
    g = torch.Generator().manual_seed(levels)
    distance = torch.randint(levels, (len(query.ids), len(gallery.ids)), generator=g).double()
    first, ap = reid.scores(distance, query.ids, query.cameras, gallery.ids, gallery.cameras)
    expected = slow(distance, query, gallery)
    found = {f"rank{k}": 100 * float((first < k).double().mean()) for k in (1, 5, 10)} | {"map": 100 * float(ap.mean())}
    assert found == pytest.approx(expected, abs=1e-9)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery = people(3)
    whole = reid.reid(query, gallery)
    monkeypatch.setattr(reid, "CHUNK", 7)
    assert reid.reid(query, gallery) == pytest.approx(whole, abs=1e-9)


def line(*gallery: tuple[int, int]) -> Features:
    """A gallery of (person, camera), nearest first."""
    angle = torch.linspace(0, 1, len(gallery), dtype=torch.float64)
    ids, cameras = torch.tensor(gallery).T
    return Features(torch.stack([angle.cos(), angle.sin()], 1), ids, cameras)


ASKED = Features(torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([5]), torch.tensor([1]))


@pytest.mark.parametrize(
    ("gallery", "rank1", "ap"),
    [
        ([(5, 2), (6, 2)], 100, 1.0),
        ([(6, 2), (5, 2)], 0, (0 + 1 / 2) / 2),  # precision 0 before, 1/2 at the place
        ([(5, 1), (-1, 2), (5, 2), (6, 1)], 100, 1.0),  # the same camera and a bad detection do not count
        ([(0, 2), (5, 2)], 0, (0 + 1 / 2) / 2),  # a distractor does
        ([(5, 2), (6, 2), (5, 3)], 100, (1 + (1 / 2 + 2 / 3) / 2) / 2),
    ],
)
def test_by_hand(gallery: list[tuple[int, int]], rank1: float, ap: float) -> None:
    found = reid.reid(ASKED, line(*gallery))
    assert (found["rank1"], found["map"]) == pytest.approx((rank1, 100 * ap))


def test_a_query_without_a_right_image_is_left_out() -> None:
    both = Features(ASKED.features.repeat(2, 1), torch.tensor([5, 9]), torch.tensor([1, 1]))
    gallery = line((6, 2), (5, 2), (9, 1))  # person 9 is there, but only from the query's own camera
    assert reid.reid(both, gallery) == reid.reid(ASKED, gallery)
    with pytest.raises(InputError, match="no query has a right image"):
        reid.reid(ASKED, line((6, 2), (5, 1)))
    distractor = Features(ASKED.features, torch.tensor([0]), torch.tensor([1]))
    with pytest.raises(InputError, match="no query"):
        reid.reid(distractor, line((0, 2)))


def test_multiple_queries_are_the_mean_of_their_person_and_camera() -> None:
    query, gallery = people(5)
    more = Features(*(torch.cat([a, b]) for a, b in zip(query, people(6, images=60)[0], strict=True)))
    found = reid.reid(query, gallery, more)
    rows = []
    for person, camera in zip(query.ids.tolist(), query.cameras.tolist(), strict=True):
        mine = [f / f.norm() for f, i, c in zip(*more, strict=True) if (int(i), int(c)) == (person, camera)]
        rows.append(sum(mine) / len(mine))
    averaged = query._replace(features=torch.stack(rows))
    expected = slow(angles(averaged, gallery), query, gallery)
    assert {name: found[f"mq_{name}"] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert found["map"] == reid.reid(query, gallery)["map"]
    with pytest.raises(InputError, match="no image of person 5 from camera 1 for multiple"):
        reid.reid(ASKED, line((5, 2)), line((5, 7), (6, 1)))


def test_length_does_not_matter_and_a_cohort_is_fair() -> None:
    query, gallery = people(7)
    longer = gallery._replace(features=gallery.features * torch.rand(len(gallery.ids), 1) * 9)
    assert reid.reid(query, longer) == pytest.approx(reid.reid(query, gallery), abs=1e-6)
    a, b = torch.randn(6, 3), torch.randn(6, 4)
    side = reid.cohort([a, 1000 * b])
    assert torch.allclose(side, reid.cohort([a, b])) and side.shape == (6, 7)
    cosine = (reid.unit(a) @ reid.unit(a).T + reid.unit(b) @ reid.unit(b).T) / 2
    assert torch.allclose(reid.unit(side) @ reid.unit(side).T, cosine, atol=1e-6), "the mean of their similarities"


def test_look_reads_what_the_head_reads() -> None:
    nets = {"a": tiny(0), "b": tiny(1)}
    batches = [batch(0)._replace(index=torch.arange(6, 12)), batch(1)._replace(index=torch.arange(6))]
    cameras = torch.arange(12) + 1
    found = reid.look(nets, batches, cameras)
    for name, net in nets.items():
        net.eval()
        with torch.no_grad():
            assert torch.equal(found[name].features, torch.cat([net.embed(each.inputs[0]) for each in batches]))
        assert found[name].cameras.tolist() == [*range(7, 13), *range(1, 7)]
        assert torch.equal(found[name].ids, torch.cat([each.labels for each in batches]))
    assert torch.equal(found["ensemble"].features, reid.cohort([found["a"].features, found["b"].features]))
    assert reid.look({"a": tiny(0)}, batches, cameras).keys() == {"a"}
    foreign: Any = nn.Flatten()
    with pytest.raises(InputError, match="needs a network with stages"):
        reid.look({"b": foreign}, batches, cameras)


def test_what_is_no_number_is_never_found() -> None:
    ids, here, there = torch.tensor([1, 2]), torch.tensor([0, 0]), torch.tensor([1, 1])
    gallery = Features(torch.eye(2), ids, there)
    for dead in (torch.full((2, 2), torch.nan), torch.full((2, 2), torch.inf)):
        assert set(reid.reid(Features(dead, ids, here), gallery).values()) == {0.0}
        assert set(reid.reid(Features(torch.eye(2), ids, here), gallery._replace(features=dead)).values()) == {0.0}
    half = torch.tensor([[1.0, 0.0], [torch.nan, 0.0]])
    assert reid.reid(Features(half, ids, here), gallery)["rank1"] == 50

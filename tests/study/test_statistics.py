"""Intervals and tests against scipy; the promises about coverage and false verdicts by simulation."""

from __future__ import annotations

import json
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy import stats

from teacherless.errors import InputError
from teacherless.study import statistics
from teacherless.study.statistics import (
    ALPHA,
    Difference,
    caveat,
    compare,
    holm,
    seeds_needed,
    std_range,
    summarise,
    t_interval,
    t_test,
    two_way,
    verdict,
)

MANY = partial(pytest.param, marks=pytest.mark.exhaustive)


def by_seed(values: object) -> dict[int, float]:
    return {seed: float(v) for seed, v in enumerate(np.asarray(values))}


@pytest.fixture
def no_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many seeds would be needed, which is most of a comparison's time, decides nothing in it."""
    monkeypatch.setattr(statistics, "seeds_needed", lambda std, **more: 2)


def gains(*differences: object) -> dict[str, Difference]:
    """`compare` of methods that differ from plain by these amounts."""
    plain = by_seed(80 + np.arange(len(np.asarray(differences[0]))))
    return compare(plain, {f"m{i}": by_seed(np.asarray(list(plain.values())) + d) for i, d in enumerate(differences)})


@pytest.mark.parametrize("n", [3, 5, 30])
def test_t_against_scipy(n: int) -> None:
    values = np.random.default_rng(n).normal(0.3, 2.0, n)
    reference = stats.ttest_1samp(values, 0.0)
    assert t_interval(values) == pytest.approx(tuple(reference.confidence_interval(0.95)))
    assert t_interval(values, 0.01) == pytest.approx(tuple(reference.confidence_interval(0.99)))
    assert t_test(values) == pytest.approx(reference.pvalue)


def test_paired_test_against_scipy() -> None:
    g = np.random.default_rng(3)
    plain, method = g.normal(90, 1, 6), g.normal(91, 1, 6)
    found = compare(by_seed(plain), {"m": by_seed(method)})["m"]
    reference = stats.ttest_rel(method, plain)
    assert found["p"] == pytest.approx(reference.pvalue) == found["p_holm"]
    assert found["interval"] == pytest.approx(tuple(reference.confidence_interval())) == found["corrected"]
    assert found["mean"] == pytest.approx(method.mean() - plain.mean())
    assert found["std"] == pytest.approx((method - plain).std(ddof=1))


@pytest.mark.parametrize("p", [[0.01, 0.04, 0.03, 0.005], [0.5], [0.02, 0.02, 0.02], [0.001, 0.9, 0.02], [1, 1]])
def test_holm_against_the_slow_definition(p: list[float]) -> None:
    m, rejected, stopped = len(p), [False] * len(p), False
    expected = [0.0] * m
    order = sorted(range(m), key=lambda i: p[i])
    for i, test in enumerate(order):
        stopped = stopped or p[test] >= ALPHA / (m - i)
        rejected[test] = not stopped
        expected[test] = max(min(1.0, (m - j) * p[order[j]]) for j in range(i + 1))
    adjusted, levels = holm(p)
    assert adjusted == pytest.approx(expected)
    assert [a < ALPHA for a in adjusted] == rejected == [q < level for q, level in zip(p, levels, strict=True)]


def test_the_corrected_interval_and_the_verdict_agree() -> None:
    g = np.random.default_rng(0)
    signs = set()
    for _ in range(100):
        found = gains(*(g.normal(effect, 0.5, 4) for effect in (-0.8, 0, 0.4, 1.5)))
        for d in found.values():
            assert d["corrected"] is not None and d["interval"] is not None
            low, high = d["corrected"]
            assert d["sign"] == ("+" if low > 0 else "-" if high < 0 else "=")
            assert low <= d["interval"][0] <= d["mean"] <= d["interval"][1] <= high
            signs.add(d["sign"])
    assert signs == {"+", "-", "="}


@pytest.mark.parametrize(("d", "alpha", "n"), [(0.5, 0.05, 34), (0.8, 0.05, 15), (1.0, 0.05, 10), (0.2, 0.05, 199),
                                               (0.5, 0.01, 51)])  # fmt: skip
def test_seeds_needed_against_published_tables(d: float, alpha: float, n: int) -> None:
    """Effect size d = effect / std, power 0.8, two-sided: Cohen 1988, as any power calculator gives them."""
    assert seeds_needed(1.0, effect=d, alpha=alpha) == n


def test_seeds_needed_keeps_its_promise() -> None:
    n = seeds_needed(0.3)
    values = np.random.default_rng(0).normal(0.2, 0.3, (2000, n))
    seen = (stats.ttest_1samp(values, 0, axis=1).pvalue < 0.05).mean()
    assert 0.77 < seen < 0.84
    assert seeds_needed(1e-6) == 2
    assert seeds_needed(50.0) == pytest.approx(
        (50 / 0.2 * (stats.norm.ppf(0.975) + stats.norm.ppf(0.8))) ** 2, rel=0.01
    )
    with pytest.raises(InputError, match="must be positive"):
        seeds_needed(0.0)


@pytest.mark.parametrize(("rounds", "low", "high"), [(300, 274, 296), MANY(1000, 930, 970)])
@pytest.mark.usefixtures("no_plans")
def test_coverage_of_a_known_effect(rounds: int, low: int, high: int) -> None:
    """Comparisons of one method at 5 seeds: seeds differ more than methods do, and pairing removes that."""
    g = np.random.default_rng(0)
    covered = 0
    for _ in range(rounds):
        seed, noise = g.normal(90, 1, 5), g.normal(0, 0.3, (2, 5))
        d = compare(by_seed(seed + noise[0]), {"m": by_seed(seed + noise[1] + 0.4)})["m"]
        assert d["interval"] is not None
        covered += d["interval"][0] <= 0.4 <= d["interval"][1]
    assert low <= covered <= high


@pytest.mark.parametrize(("rounds", "most", "within"), [(300, 26, 44), MANY(1000, 70, 80)])
@pytest.mark.usefixtures("no_plans")
def test_false_verdicts_of_four_methods_without_effect(rounds: int, most: int, within: int) -> None:
    """As far from what is expected, in standard deviations, with few rounds as with many."""
    g = np.random.default_rng(1)
    false, uncorrected, covered = 0, 0, 0
    for _ in range(rounds):
        noise = g.normal(90, 0.3, (5, 5))
        found = compare(by_seed(noise[0]), {f"m{i}": by_seed(noise[i]) for i in range(1, 5)}).values()
        false += any(d["sign"] != "=" for d in found)
        uncorrected += any(d["p"] is not None and d["p"] < 0.05 for d in found)
        covered += sum(d["interval"] is not None and d["interval"][0] <= 0 <= d["interval"][1] for d in found)
    assert false <= most
    assert uncorrected > rounds / 10  # what the correction is for
    assert abs(covered - 0.95 * 4 * rounds) <= within


def test_below_three_seeds_there_is_no_interval() -> None:
    with pytest.raises(InputError, match="found 2 seeds; needs at least 3"):
        t_interval([1.0, 2.0])
    assert summarise([90.0]) == {"seeds": 1, "mean": 90.0, "std": None}
    found = gains([0.5])["m0"]
    assert (found["mean"], found["sign"], found["interval"], found["needed"]) == (0.5, "=", None, None)
    assert verdict("dml", found) == "dml: +0.5; one seed shows nothing: give at least 3, better 5"
    pair = gains([28.0, -27.0])["m0"]
    assert pair["std"] == pytest.approx(55 / math.sqrt(2))
    assert (pair["sign"], pair["interval"], pair["corrected"], pair["p"], pair["needed"]) == ("=", *[None] * 4)
    assert verdict("dml", pair, 2.0) == "dml: +0.5 for 2.0x training; 2 seeds show nothing: give at least 3, better 5"


def test_an_interval_ends_where_accuracies_end() -> None:
    plain = by_seed([99.0, 98.0, 97.0])  # 98 on average: nothing can be more than 2 above it
    wild, sure = compare(plain, {"wild": by_seed([100.0, 80.0, 99.0]), "sure": by_seed([1.0, 0.0, 0.5])}).values()
    assert wild["corrected"] is not None and wild["interval"] is not None
    assert wild["corrected"][1] == wild["interval"][1] == pytest.approx(2)
    assert wild["corrected"][0] < wild["mean"] < 2 and wild["sign"] == "="
    assert sure["corrected"] is not None and sure["sign"] == "-"
    assert sure["corrected"][0] == -98 < sure["mean"] < sure["corrected"][1] < 0


def test_the_range_of_the_seeds_needed() -> None:
    """Five seeds of a difference that truly takes 20: one number says 4 to 56, the range holds the 20."""
    std = next(s for s in np.arange(0.2, 0.4, 0.001) if seeds_needed(float(s)) == 20)
    g = np.random.default_rng(0)
    found = [gains(g.normal(0, std, 5))["m0"] for _ in range(300)]
    ranges = [d["needed_range"] for d in found if d["needed_range"] is not None]
    assert len(ranges) == 300
    assert 0.86 < sum(low <= 20 <= high for low, high in ranges) / 300 < 0.95
    assert all(low <= (d["needed"] or 0) <= high for d, (low, high) in zip(found, ranges, strict=True))
    assert std_range(1.0, 5) == pytest.approx((math.sqrt(4 / 9.4877), math.sqrt(4 / 0.7107)), rel=1e-3)


def test_no_spread_is_no_evidence() -> None:
    """A coarse test set gives equal differences by chance; they must not become certainty."""
    same, shifted, real = gains([0, 0, 0], [0.3, 0.3, 0.3], [5.0, 5.1, 5.2]).values()
    assert same["sign"] == shifted["sign"] == "="
    assert real["sign"] == "+" and real["level"] == ALPHA / 3  # they count as tests
    assert verdict("a", same) == "a: the same as plain at each of 3 seeds; with no spread there is no interval"
    assert verdict("b", shifted, 2.0) == (
        "b: +0.30 at each of 3 seeds for 2.0x training; with no spread there is no interval"
    )
    thirds = compare(by_seed([100 * 355 / 360, 100 * 350 / 360]), {"m": by_seed([100 * 356 / 360, 100 * 351 / 360])})
    assert thirds["m"]["interval"] is None  # equal up to the rounding of percentages
    assert t_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    with pytest.raises(InputError, match="no spread"):
        t_test([1.0, 1.0])


def test_cells_that_are_missing() -> None:
    plain = {0: 90.0, 1: 91.0, 3: 92.0}
    found = compare(plain, {"m": {1: 92.0, 2: 50.0, 3: 92.5}})["m"]
    assert (found["seeds"], found["mean"]) == (2, 0.75)
    with pytest.raises(InputError, match="m: shares no finished seed"):
        compare(plain, {"m": {7: 90.0}})
    with pytest.raises(InputError, match="must be one finite number per seed"):
        compare(plain, {"m": {0: math.nan, 1: 1.0}})
    with pytest.raises(InputError, match="must be one finite number"):
        summarise([])


def test_tables_are_json() -> None:
    found = gains(*np.random.default_rng(0).normal(0, 1, (2, 12)))
    assert json.loads(json.dumps(found)).keys() == {"m0", "m1"}


def test_verdicts() -> None:
    found = gains([0.4, 0.5, 0.3, 0.45, 0.35], [-2, -2.3, -2.1, -1.8, -1.9], [0.3, -0.2, 0.1, 0, 0.2])
    better, worse, unclear = found.values()
    assert verdict("ddgsd", better, 2.0) == "ddgsd: +0.4 [0.3, 0.5] for 2.0x training"
    assert verdict("one", worse) == "one: -2.0 [-2.4, -1.7]"
    assert unclear["needed"] == seeds_needed(0.19235384061671343)
    low, high = (seeds_needed(s) for s in std_range(0.19235384061671343, 5))
    assert (low, high) == (6, 43)
    assert verdict("dml", unclear) == "dml: no difference shown at 5 seeds; 6 to 43 would be needed to see 0.2"
    enough = gains([0.01, -0.02, 0.0, 0.015, -0.01])["m0"]
    assert verdict("kd", enough) == "kd: no difference shown at 5 seeds, enough to see 0.2 four times in five"
    close = gains([0.03, 0.05, 0.04, 0.04])["m0"]
    assert verdict("x", close) == "x: +0.04 [0.03, 0.05]"  # enough digits to see that 0 is outside


def networks(g: np.random.Generator, seeds: int, images: int, top1: float, gain: float, peers: int, odd: float,
             run: float) -> np.ndarray[Any, np.dtype[np.float64]]:  # fmt: skip
    """Percent of each test image that a method gets more than plain, `[seeds, images]`, of networks that are right
    where a normal score is above 0: of the image, of the method on it, of the run, and of chance, whose variances are
    0.6, `odd`, `run` and the rest of 1. In the population, plain gets `top1` right and the method `gain` more."""
    whole = math.sqrt(1 + run)
    image = g.normal(0, math.sqrt(0.6), images)

    def right(share: float, networks: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        score = stats.norm.ppf(share) * whole + image + g.normal(0, math.sqrt(odd), images)
        score = score + g.normal(0, math.sqrt(run), (seeds, 1, 1))
        chance = g.normal(0, math.sqrt(0.4 - odd), (seeds, networks, images))
        return (score + chance > 0).mean(1) * 100

    return right(top1 + gain, peers) - right(top1, 1)


# top1, gain, odd, run of `networks`
SETTINGS = (0.97, 0.0, 0.02, 0.001), (0.9, 0.02, 0.02, 0.002), (0.7, 0.03, 0.05, 0.002), (0.95, 0.01, 0.1, 0.0005)


def coverage(seeds: int, images: int, peers: int, rounds: int) -> dict[tuple[float, ...], tuple[float, float]]:
    """By setting, the share of 95 % intervals that hold the true difference: over seeds, and over both."""
    g, found = np.random.default_rng(seeds * images + peers), {}
    for setting in SETTINGS:
        each = [networks(g, seeds, images, setting[0], setting[1], peers, *setting[2:]) for _ in range(rounds)]
        intervals = [(t_interval(d.mean(1)), two_way(d)) for d in each]
        held = np.array([[low <= 100 * setting[1] <= high for low, high in pair] for pair in intervals]).mean(0)
        found[setting] = float(held[0]), float(held[1])
    return found


@pytest.mark.parametrize(("seeds", "images", "peers"), [(3, 360, 1), (5, 360, 2), (10, 100, 1)])
def test_intervals_over_seeds_and_images_hold_what_they_say(seeds: int, images: int, peers: int) -> None:
    """Coverage of at least 93 %, averaged over settings; each may fall short of it by the chance of 300 rounds. What
    covers the seeds alone falls short at many seeds. The table of more settings and rounds is in docs/log.md."""
    found = list(coverage(seeds, images, peers, 300).values())
    assert min(both for _, both in found) > 0.93 - 2 * math.sqrt(0.93 * 0.07 / 300)
    assert sum(both for _, both in found) / len(found) >= 0.93
    assert seeds < 10 or min(alone for alone, _ in found) < 0.88


def test_two_way_by_its_definition() -> None:
    """Sums of squares of a crossed layout by loops; and never inside the interval over seeds."""
    g = np.random.default_rng(0)
    d = g.normal(0, 1, (4, 7)) + g.normal(0, 2, (4, 1)) + g.normal(0, 3, 7)
    s, n, mean = 4, 7, d.mean()
    by_seed, by_image = d.mean(1), d.mean(0)
    square_s = sum(n * (by_seed[i] - mean) ** 2 for i in range(s)) / (s - 1)
    square_i = sum(s * (by_image[j] - mean) ** 2 for j in range(n)) / (n - 1)
    rest = [(d[i, j] - by_seed[i] - by_image[j] + mean) ** 2 for i in range(s) for j in range(n)]
    square_r = sum(rest) / ((s - 1) * (n - 1))
    variance = square_s + square_i - square_r
    freedom = variance**2 / (square_s**2 / 3 + square_i**2 / 6 + square_r**2 / 18)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(variance / (s * n))
    expected = t_interval(by_seed)
    expected = min(expected[0], mean - half), max(expected[1], mean + half)
    assert two_way(d) == pytest.approx(expected)
    for _ in range(50):
        d = g.choice([-100.0, 0.0, 100.0], (3, 20), p=[0.1, 0.8, 0.1])
        inner, outer = t_interval(d.mean(1), 0.02), two_way(d, 0.02)
        assert outer[0] <= inner[0] <= inner[1] <= outer[1]
    assert two_way(np.full((3, 5), 2.0)) == (2, 2)
    with pytest.raises(InputError, match="found 1 test image"):
        two_way(np.zeros((3, 1)))


def test_which_verdict_each_interval_allows() -> None:
    """At 360 images a gain of two of them in every seed is a verdict over seeds; over other images it is none."""
    g = np.random.default_rng(0)
    seeds, images = range(5), 360
    hard = np.arange(images) < 40  # which plain gets wrong in every seed
    plain = {seed: 100.0 * (~hard & (g.random(images) < 0.98)) for seed in seeds}

    def better(wins: int) -> dict[int, Any]:
        return {seed: np.where(np.arange(images) < wins + seed % 2, 100.0, plain[seed]) for seed in seeds}

    right = {"plain": plain, "few": better(2), "many": better(20)}
    means = {name: {seed: float(each.mean()) for seed, each in by.items()} for name, by in right.items()}
    others = {name: means[name] for name in ("few", "many")}
    found = compare(means["plain"], others, right)
    assert [(d["sign"], d["sign_both"], d["images"]) for d in found.values()] == [("+", "=", 360), ("+", "+", 360)]
    assert ", on these test images; on others [-" in verdict("few", found["few"])
    assert "; over other test images too [" in verdict("many", found["many"], 2.0)
    for name, d in found.items():
        assert d["both"] and d["corrected"] and d["both"][0] <= d["corrected"][0] < d["corrected"][1] <= d["both"][1]
        assert compare(means["plain"], others)[name] == d | {"both": None, "sign_both": None, "images": None}
    del right["few"][3]
    assert compare(means["plain"], others, right)["few"]["both"] is None, "one seed is not known by image"
    assert "not of the test images" in caveat(None)
    assert "the 360 test images, of which one is 0.28 points" in caveat(360)

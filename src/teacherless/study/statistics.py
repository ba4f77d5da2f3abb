"""Does it help? Paired differences to plain over seeds, with intervals, and a verdict in plain language.

Every method is compared with plain **seed by seed**: the same split, sample order and initial weights, so that what the
two share cancels in their difference. `interval` and `corrected` are about the choice of seeds, with these test images;
`both` is about the choice of seeds and of test images. `caveat` says so wherever they are shown.

The intervals, and how they relate to the verdict:

- `interval` is the 95 % t interval of one method's difference, on its own.
- `corrected` is the same interval widened to the level at which Holm's procedure (1979) tests this method among all the
  compared ones. It holds 0 exactly when the verdict is "no difference shown": the verdict is "+" or "-" only where the
  Holm-adjusted p is below 0.05, and with no effect in any method a false verdict comes in at most 5 % of comparisons.
  With one method both intervals are the same.
- `both` is at that level too, and never narrower: what it shows, `corrected` shows. A sign that only `corrected` has is
  a verdict about these test images: with others it might be another.

The t interval is exact for normal differences, at any number of seeds. Below three there is none: at two it would be as
wide as 13 standard deviations and say nothing. What an interval of accuracies cannot be is cut off: a method is between
0 and 100 %, so its difference to plain is between -plain and 100 - plain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import numpy as np
from scipy import stats

from teacherless.errors import InputError

ALPHA = 0.05  # of a false verdict, over all methods
POWER = 0.8  # of `seeds_needed`
VISIBLE = 0.2  # points of accuracy: the difference that `needed` is about
INTERVAL_FROM = 3  # seeds
CAVEAT = "intervals cover the choice of seeds, not of the test images"

Interval = tuple[float, float]
Images = np.ndarray[Any, np.dtype[np.float64]]
Sign = Literal["+", "-", "="]  # "=": no difference shown, which is not the same as no difference


class Summary(TypedDict):
    """One method, over its seeds."""

    seeds: int
    mean: float
    std: float | None  # ddof 1; None at one seed


class Difference(TypedDict):
    """One method against plain, paired by seed. In the units of what was compared (percent points of accuracy)."""

    seeds: int  # that both have
    mean: float  # method minus plain
    std: float | None  # of the paired differences, ddof 1; None at one seed
    # None below three seeds, and where all seeds gave the same difference: then nothing is known of its spread.
    interval: Interval | None  # 95 %, this method alone
    corrected: Interval | None  # 1 - level: without 0 exactly where sign is not "="
    p: float | None  # two-sided paired t test
    p_holm: float | None  # adjusted for the number of methods
    level: float  # at which Holm's procedure tests this method
    needed: int | None  # seeds to see a difference of 0.2 with 80 % power, at this level and with this std
    needed_range: tuple[int, int] | None  # the same with the 5 and 95 % bounds of what the std may really be
    sign: Sign
    both: Interval | None  # 1 - level, over seeds and test images; None where each image's result is not known
    sign_both: Sign | None  # of `both`
    images: int | None  # that it is about


def caveat(images: int | None) -> str:
    """What the intervals of a comparison are about; `images` of the test set, where results are paired by image."""
    if not images:
        return CAVEAT
    return (
        f"intervals under 'vs plain' cover the choice of seeds, under 'seeds and images' also that of the "
        f"{images:,} test images, of which one is {100 / images:.2g} points"
    )


def summarise(values: Sequence[float]) -> Summary:
    """Mean and standard deviation over seeds. Raises: InputError for none, and for one that is not finite."""
    array = _finite(values)
    return {
        "seeds": len(array),
        "mean": float(array.mean()),
        "std": float(array.std(ddof=1)) if len(array) > 1 else None,
    }


def t_interval(values: Sequence[float], alpha: float = ALPHA) -> Interval:
    """The two-sided 1 - alpha interval of the mean, by Student's t; one point where all values are equal.

    Raises: InputError for fewer than three values.
    """
    array = _finite(values)
    if len(array) < INTERVAL_FROM:
        raise InputError(f"interval: found {len(array)} seeds; needs at least {INTERVAL_FROM}")
    if _constant(array):
        return float(array.mean()), float(array.mean())
    interval = stats.ttest_1samp(array, 0).confidence_interval(1 - alpha)
    return float(interval.low), float(interval.high)


def two_way(differences: Images, alpha: float = ALPHA) -> Interval:
    """The two-sided 1 - alpha interval of the mean over a population of seeds and a population of test images.

    Seeds and images are crossed: difference(seed, image) = mean + seed + image + rest, all random. With the mean
    squares S, I and R of the three and n values in all, (S + I - R) / n estimates the variance of the mean without
    bias; it is taken for no less than S/n or I/n, with Satterthwaite's degrees of freedom, and the interval for no
    narrower than `t_interval` of the seeds' means. Simulated networks of 70 to 97 % accuracy, alone or two at a time,
    on 3 to 10 seeds and 100 to 10,000 images: 93 to 99 % of 95 % intervals hold the true difference (docs/log.md),
    where `t_interval`'s, which are about the images at hand, hold it in 80 to 97 %.

    Args:
        differences: `[seeds, images]`, a row for each seed, the same images in each.
        alpha: what may lie outside.

    Raises: InputError for fewer than three seeds or two images.
    """
    d = np.asarray(differences, dtype=np.float64)
    seeds, images = d.shape
    if images < 2:
        raise InputError(f"interval: found {images} test image; needs at least 2")
    by_seed = t_interval(d.mean(1), alpha)
    mean, of_seeds, of_images = d.mean(), d.mean(1, keepdims=True), d.mean(0, keepdims=True)
    freedom = np.array([seeds - 1, images - 1, (seeds - 1) * (images - 1)])
    rest = d - of_seeds - of_images + mean
    sums = [images * ((of_seeds - mean) ** 2).sum(), seeds * ((of_images - mean) ** 2).sum(), (rest**2).sum()]
    squares = np.array(sums) / freedom
    signs = max(([1, 1, -1], [1, 0, 0], [0, 1, 0]), key=lambda signs: float(squares @ signs))
    parts = squares * signs
    if not parts.any():
        return by_seed
    half = stats.t.isf(alpha / 2, parts.sum() ** 2 / (parts**2 / freedom).sum()) * math.sqrt(parts.sum() / d.size)
    return min(by_seed[0], float(mean - half)), max(by_seed[1], float(mean + half))


def t_test(values: Sequence[float]) -> float:
    """Two-sided p of a mean of 0, by Student's t. Raises: InputError for fewer than two values, or all equal."""
    array = _finite(values)
    if len(array) < 2 or _constant(array):
        raise InputError("t test: found no spread; it needs at least 2 values that differ")
    return float(stats.ttest_1samp(array, 0).pvalue)


def holm(p: Sequence[float], alpha: float = ALPHA) -> tuple[list[float], list[float]]:
    """Holm's step-down procedure over m tests: each one's adjusted p, and the level that it was tested at.

    The test with the i-th smallest p (from 0) is tested at alpha / (m - i) as long as all before it were rejected; the
    first that is not, and all after it, stay at that one's level. So `p < level`, `adjusted < alpha` and "rejected" are
    the same, and an interval of 1 - level excludes 0 exactly when its test is rejected.
    """
    adjusted, levels = [0.0] * len(p), [0.0] * len(p)
    worst, level = 0.0, alpha / max(len(p), 1)
    for i, test in enumerate(sorted(range(len(p)), key=lambda j: p[j])):
        if worst < alpha:
            level = alpha / (len(p) - i)
        worst = max(worst, min(1.0, (len(p) - i) * p[test]))
        adjusted[test], levels[test] = worst, level
    return adjusted, levels


def seeds_needed(std: float, *, effect: float = VISIBLE, power: float = POWER, alpha: float = ALPHA) -> int:
    """How many seeds a two-sided paired t test needs to see `effect` on its right side with probability `power`.

    Args:
        std: of the paired differences. From few seeds it is a rough estimate, and so is the answer: see `std_range`.
        effect: the true difference, in the units of `std`.
        power: in (0, 1).
        alpha: level of the test.

    Raises: InputError for a std that is not positive.
    """
    if not (math.isfinite(std) and std > 0):
        raise InputError(f"std: found {std}; must be positive")

    def seen(n: int) -> bool:
        chance = stats.nct.sf(stats.t.isf(alpha / 2, n - 1), n - 1, effect / std * math.sqrt(n))
        return bool(chance >= power)

    # With the spread known it would be this many; not knowing it costs a few more.
    known = float((stats.norm.isf(alpha / 2) + stats.norm.isf(1 - power)) * std / effect) ** 2
    n = max(2, math.floor(known))
    while not seen(n):
        n += 1
    return n


def std_range(std: float, seeds: int) -> Interval:
    """The 5 and 95 % bounds of the true standard deviation, of normal values, where `seeds` of them gave `std`."""
    low, high = (std * math.sqrt((seeds - 1) / float(stats.chi2.ppf(q, seeds - 1))) for q in (0.95, 0.05))
    return low, high


def compare(
    plain: Mapping[int, float],
    methods: Mapping[str, Mapping[int, float]],
    images: Mapping[str, Mapping[int, Images]] | None = None,
) -> dict[str, Difference]:
    """Every method against plain, `{seed: percent}` each, paired by the seeds that both have.

    Args:
        plain: what plain gets in each seed.
        methods: what the others get.
        images: `{method or "plain": {seed: percent of each test image [N]}}`, the same images in all; without it, or
            where one of a method's seeds is not in it, there is no interval over images.

    Raises: InputError for a method that shares no seed with plain, and for values that are not finite.
    """
    paired: dict[str, list[float]] = {}
    bounds: dict[str, Interval] = {}  # of a difference to plain
    for name, values in methods.items():
        seeds = sorted(plain.keys() & values.keys())
        if not seeds:
            raise InputError(f"{name}: shares no finished seed with plain")
        paired[name] = _finite([values[seed] - plain[seed] for seed in seeds]).tolist()
        middle = float(np.mean([plain[seed] for seed in seeds]))
        bounds[name] = -middle, 100 - middle
    tested = {name: len(d) >= INTERVAL_FROM and not _constant(np.asarray(d)) for name, d in paired.items()}
    # A method without spread counts as a test all the same: the correction must not depend on the results.
    p = [t_test(d) if tested[name] else 1.0 for name, d in paired.items()]
    differences = {
        name: _difference(d, bounds[name], *tests) if tested[name] else _unknown(d, tests[2])
        for (name, d), *tests in zip(paired.items(), p, *holm(p), strict=True)
    }
    for name, difference in differences.items():
        own, others = ((images or {}).get(each, {}) for each in (name, "plain"))
        seeds = sorted(plain.keys() & methods[name].keys())
        if (inner := difference["corrected"]) and all(seed in own and seed in others for seed in seeds):
            each = np.stack([own[seed] - others[seed] for seed in seeds])  # [seeds, images]
            outer = _clip(two_way(each, difference["level"]), bounds[name])
            low, high = min(outer[0], inner[0]), max(outer[1], inner[1])  # they may differ in the last digit
            sign = difference["sign"] if low > 0 or high < 0 else "="
            difference.update({"both": (low, high), "sign_both": sign, "images": each.shape[1]})
    return differences


def _difference(values: Sequence[float], bounds: Interval, p: float, adjusted: float, level: float) -> Difference:
    mean, std = float(np.mean(values)), float(np.std(values, ddof=1))
    lowest, highest = (seeds_needed(each, alpha=level) for each in std_range(std, len(values)))
    return {
        **_unknown(values, level),
        "interval": _clip(t_interval(values), bounds),
        "corrected": _clip(t_interval(values, level), bounds),
        "p": p,
        "p_holm": adjusted,
        "needed": seeds_needed(std, alpha=level),
        "needed_range": (lowest, highest),
        "sign": "=" if adjusted >= ALPHA else "+" if mean > 0 else "-",
    }


def _unknown(values: Sequence[float], level: float) -> Difference:
    """Too few seeds, or the same difference in every seed: a difference is seen, and nothing can be said about it."""
    return {
        **summarise(values),
        "interval": None,
        "corrected": None,
        "p": None,
        "p_holm": None,
        "level": level,
        "needed": None,
        "needed_range": None,
        "sign": "=",
        "both": None,
        "sign_both": None,
        "images": None,
    }


def verdict(name: str, difference: Difference, cost: float | None = None) -> str:
    """What a difference means, in plain language.

    "ddgsd: +0.4 [0.1, 0.6] for 2.0x training; over other test images too [0.1, 0.8]", with the corrected interval, or
    "dml: no difference shown at 5 seeds; 6 to 34 would be needed to see 0.2".

    Args:
        name: of the method.
        difference: to plain, in percent points.
        cost: training cost relative to plain's, if known.
    """
    seeds, mean, interval = difference["seeds"], difference["mean"], difference["corrected"]
    price = "" if cost is None else f" for {cost:.1f}x training"
    if interval is None:
        if seeds < INTERVAL_FROM:
            few = "one seed shows" if seeds == 1 else f"{seeds} seeds show"
            return f"{name}: {mean:+.1f}{price}; {few} nothing: give at least {INTERVAL_FROM}, better 5"
        same = "the same as plain" if abs(mean) < 1e-9 else f"{mean:+.2f}"
        return f"{name}: {same} at each of {seeds} seeds{price}; with no spread there is no interval"
    if difference["sign"] == "=":
        assert difference["needed_range"] is not None
        low, high = difference["needed_range"]
        if high <= seeds:
            return f"{name}: no difference shown at {seeds} seeds, enough to see {VISIBLE} four times in five"
        return f"{name}: no difference shown at {seeds} seeds; {low} to {high} would be needed to see {VISIBLE}"
    near = min(map(abs, interval))  # enough digits to see that 0 is outside
    digits = next((digits for digits in (1, 2, 3) if round(near, digits) > 0), 4)
    shown, both = (", ".join(f"{bound:.{digits}f}" for bound in each or ()) for each in (interval, difference["both"]))
    also = {None: "", "=": f", on these test images; on others [{both}]"}
    allowed = also.get(difference["sign_both"], f"; over other test images too [{both}]")
    return f"{name}: {mean:+.{digits}f} [{shown}]{price}{allowed}"


def _clip(interval: Interval, bounds: Interval) -> Interval:
    return max(interval[0], bounds[0]), min(interval[1], bounds[1])


def _finite(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0 or not np.isfinite(array).all():
        raise InputError(f"values: found {list(values)}; must be one finite number per seed")
    return array


def _constant(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> bool:
    """Whether all values are the same up to the rounding of percentages and their differences."""
    return bool(np.ptp(values) <= 1e-9 * max(1.0, float(np.abs(values).max())))

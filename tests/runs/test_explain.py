"""Who teaches whom, as measured: for every method what its card says."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import tiny
from test_all_methods import build, data

from teacherless.cli import main
from teacherless.methods import METHODS
from teacherless.methods.dml import DML
from teacherless.runs.explain import Explanation, Term, measure

LOWER = "student (stages.0 stages.1)"
ALL_OF_ONE = "trunk, branch0, branch1, branch2"
SEEN = " (view 0, view 1)"

# By method and term: who learns <- from what.
EXPECTED: dict[str, dict[str, list[str]]] = {
    "plain": {"ce": ["student <- labels"]},
    "label-smoothing": {"ce": ["student <- labels"]},
    "snapshot": {f"cycle{i}: ce": ["student <- labels"] for i in range(1, 6)},
    "dml": {"ce": ["peer0, peer1 <- labels"], "mimicry": ["peer0 <- peer1", "peer1 <- peer0"]},
    "one": {
        "ce": [f"{ALL_OF_ONE} <- labels"],
        "ce_ensemble": [f"{ALL_OF_ONE}, gate <- labels"],
        "distil": [f"{ALL_OF_ONE} <- {ALL_OF_ONE}, gate"],
    },
    "ddgsd": {
        "ce": [f"student <- labels{SEEN}"],
        "kl": [f"student <- student{SEEN}"],
        "mmd": [f"student (not head) <- itself, not detached{SEEN}"],
    },
    "kd": {"ce": ["student <- labels"], "distil": ["student <- teacher"]},
    "fitnets": {
        "hint: hint": [f"{LOWER}, regressor <- teacher"],
        "kd: ce": ["student <- labels"],
        "kd: distil": ["student <- teacher"],
    },
    "byot": {
        "ce": ["student <- labels"],
        "ce_exits": [f"{LOWER}, exit0, exit1 <- labels"],
        "distil": [f"{LOWER}, exit0, exit1 <- student"],
        "hint": [f"{LOWER}, exit0 (not head), exit1 (not head) <- student"],
    },
    "frskd": {
        "ce": ["student <- labels"],
        "ce_refined": ["student (not head), refiner <- labels"],
        "distil": ["student <- student, refiner"],
        "attention": ["student (not head) <- student, refiner"],
    },
    "ps-kd": {"ce": ["student <- labels"], "past": ["student <- memory"]},
    "tf-kd": {"ce": ["student <- labels"], "distil": ["student <- labels"]},
    "cs-kd": {"ce": ["student <- labels"], "distil": ["student <- student (image, classmate)"]},
}


def each_phase(name: str, **options: Any) -> list[Term]:
    method = build(name, **options)
    found: list[Term] = []
    for phase in method.phases:
        method.begin(phase)
        found += measure(method, data(method)).terms
    return found


def said(terms: list[Term]) -> dict[str, list[str]]:
    return {
        f"{t.phase}: {t.name}" if t.phase else t.name: [f"{route.learns} <- {route.source}" for route in t.routes]
        for t in terms
    }


def weights(terms: list[Term]) -> dict[str, str]:
    return {term.name: term.weight for term in terms}


@pytest.mark.parametrize("name", METHODS)
def test_who_learns_from_what(name: str) -> None:
    assert said(each_phase(name)) == EXPECTED[name]


def peers(count: int, **options: Any) -> Explanation:
    method = DML(*[tiny(i) for i in range(count)], **options)
    return measure(method, data(method))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"topology": "ring"}, ["peer0 <- peer2", "peer1 <- peer0", "peer2 <- peer1"]),
        ({"topology": "star"}, ["peer0 <- peer1, peer2", "peer1 <- peer0", "peer2 <- peer0"]),
        ({"topology": "weak-to-strong"}, ["peer0 <- peer1, peer2", "peer1 <- peer2"]),
        ({"update": "in_turn"}, ["peer0 <- peer1, peer2", "peer1 <- peer0, peer2", "peer2 <- peer0, peer1"]),
        ({"mimicry": "symmetric"}, ["peer0 <- peer1, peer2", "peer1 <- peer0, peer2", "peer2 <- peer0, peer1"]),
    ],
    ids=str,
)
def test_who_listens_to_whom(options: dict[str, Any], expected: list[str]) -> None:
    assert said(peers(3, **options).terms)["mimicry"] == expected


def test_a_target_that_is_not_detached_says_so() -> None:
    assert said(each_phase("ddgsd", detach=False))["kl"] == [f"student <- itself, not detached{SEEN}"]
    with_teacher = {"mode": "self", "alpha": 0.5}
    assert said(each_phase("tf-kd", **with_teacher))["distil"] == ["student <- teacher"]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("plain", {}, {"ce": "1"}),
        ("label-smoothing", {}, {"ce": "1"}),  # the loss is linear in ε, but ε is no weight
        ("dml", {"weight": 0.5}, {"ce": "1", "mimicry": "weight = 0.5"}),
        ("kd", {}, {"ce": "ce_weight = 0.1", "distil": "kd_weight = 0.9"}),
        ("tf-kd", {"multiplier": 50.0}, {"ce": "1 - alpha = 0.9", "distil": "alpha · multiplier = 5"}),
        ("ps-kd", {}, {"ce": "1 - alpha/30 = 0.9733 → 1 - alpha = 0.2", "past": "alpha = 0.8"}),
        ("byot", {}, {"ce": "1", "ce_exits": "1 - alpha = 0.7", "distil": "alpha = 0.3", "hint": "hint_weight = 0.03"}),
        (
            "fitnets",
            {},
            {"hint": "hint_weight = 0.5", "ce": "1", "distil": "kd_weight_start = 4 → kd_weight_end = 1"},
        ),
    ],
    ids=str,
)
def test_weights_are_the_options_a_term_is_proportional_to(
    name: str, options: dict[str, Any], expected: dict[str, str]
) -> None:
    assert weights(each_phase(name, **options)) == expected


def test_sizes_are_the_terms_and_a_ramp_shows() -> None:
    method = build("one", ramp_epochs=10)
    batch = data(method)
    terms = {term.name: term for term in measure(method, batch).terms}
    now = {name: value.item() for name, value in copy.deepcopy(method)(batch).terms.items()}
    for name, term in terms.items():
        assert term.first == pytest.approx(now[name], rel=1e-4)
    assert terms["ce"].first == terms["ce"].last
    assert terms["distil"].last == pytest.approx(terms["distil"].first * 2.718281828**5)
    assert terms["distil"].ratio == pytest.approx(terms["distil"].last / terms["ce"].last)


def test_a_term_of_weight_0_can_be_measured() -> None:
    terms = {term.name: term for term in each_phase("ps-kd", alpha=1.0)}
    assert terms["ce"].last == 0 and terms["ce"].weight.endswith("1 - alpha = 0")
    assert 0 < terms["past"].ratio < 100


def test_a_term_that_hardly_counts_or_drowns_the_rest_is_named() -> None:
    tiny_term, huge, fine = (
        {t.name: t.warning for t in each_phase("kd", kd_weight=w)}["distil"] for w in (1e-5, 1e5, 0.9)
    )
    assert "times smaller than cross-entropy" in tiny_term
    assert "times larger than cross-entropy" in huge
    assert fine == ""


@pytest.mark.parametrize("name", METHODS)
def test_measuring_leaves_no_trace(name: str) -> None:
    method = build(name)
    before, random = copy.deepcopy(method.state_dict()), torch.get_rng_state()
    options = {key: value for key, value in vars(method).items() if isinstance(value, float)}
    first, second = measure(method, data(method)), measure(method, data(method))
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert options == {key: value for key, value in vars(method).items() if isinstance(value, float)}
    assert all(p.grad is None and p.dtype == torch.float32 for p in method.parameters())
    assert first == second


def test_what_is_shipped_and_what_stays_behind() -> None:
    found = measure(build("fitnets"), data(build("fitnets")))
    assert found.shipped == ["student"]
    assert list(found.parts) == ["student", "regressor", "teacher"]
    assert found.parts["student"] == sum(p.numel() for p in tiny(0).parameters())


def test_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "methods", "ddgsd", "--student", "small-cnn,width=4", "--set", "views=3"]) == 0
    shown = capsys.readouterr().out
    for words in ("parameters shipped: student", "kl_weight = 1", "view 0, view 1, view 2", "warning: mmd:"):
        assert words in shown, shown
    assert "\033" not in shown
    assert main(["list", "methods", "dml"]) == 0
    card = capsys.readouterr().out
    assert card.startswith("DML: K networks") and "\nFormula:\n" in card and "\033" not in card
    assert "    Computed in closed form. With q_k = 1/(K-1) Σ_{l≠k} p_l, the mean of the other peers' prob" in card


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["methods", "dml", "--peers", "1"], "two peers"),
        (["methods", "kd", "--student", "small-cnn"], "--teacher"),
        (["methods", "--student", "small-cnn"], "--student: is of `teacherless list methods NAME`"),
        (["data", "digits", "--peers", "2"], "Unknown option: --peers"),
        (["data", "digits", "--aug", "pad4"], "--aug: is of `teacherless list data NAME --show PICTURE`"),
    ],
    ids=str,
)
def test_bad_input(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", *argv]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error

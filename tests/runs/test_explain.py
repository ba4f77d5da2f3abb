"""Who learns from which term, as measured: for every method what its reference test declares."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import tiny
from test_all_methods import build, data, declared

from teacherless.cli import main
from teacherless.method import Progress
from teacherless.methods import METHODS
from teacherless.methods.dml import DML
from teacherless.runs.explain import Term, measure


def each_phase(name: str, **options: Any) -> list[Term]:
    method = build(name, **options)
    found: list[Term] = []
    for phase in method.phases:
        method.begin(phase)
        found += measure(method, data(method)).terms
    return found


@pytest.mark.parametrize("name", METHODS)
def test_who_learns_from_what(name: str) -> None:
    """ROUTES names children of the method, `peers`; a learner is one of them, `peer0`."""
    routes = declared(name, "ROUTES")
    for term in each_phase(name):
        learners = {learner.removesuffix(", in part").rstrip("0123456789") for learner in term.learns}
        children = {"branches": "branch", "trunks": "trunk"}
        expected = {children.get(child, child.rstrip("0123456789").removesuffix("s")) for child in routes[term.name]}
        assert learners == expected, term


def test_who_learns_only_in_part() -> None:
    learns = {term.name: term.learns for term in each_phase("byot")}
    assert learns["ce"] == ["student"]
    assert learns["hint"] == ["student, in part", "exit0, in part", "exit1, in part"]


def test_every_turn_counts() -> None:
    method = DML(*[tiny(i) for i in range(3)], update="in_turn")
    assert [term.learns for term in measure(method, data(method)).terms] == [["peer0", "peer1", "peer2"]] * 2


def test_sizes_are_the_terms_and_a_ramp_shows() -> None:
    method = build("one", ramp_epochs=10)
    batch = data(method)
    terms = {term.name: term for term in measure(method, batch).terms}
    now = {name: value.item() for name, value in copy.deepcopy(method)(batch, Progress()).terms.items()}
    for name, term in terms.items():
        assert term.first == pytest.approx(now[name], rel=1e-4)
    assert terms["ce"].first == terms["ce"].last
    assert terms["distil"].last == pytest.approx(terms["distil"].first * 2.718281828**5, rel=1e-4)
    assert terms["distil"].ratio == pytest.approx(terms["distil"].last / terms["ce"].last)


def test_a_term_of_weight_0_can_be_measured() -> None:
    terms = {term.name: term for term in each_phase("ps-kd", alpha=1.0)}
    assert terms["ce"].last == 0
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
    method.begin(method.phases[0])
    before, random = copy.deepcopy(method.state_dict()), torch.get_rng_state()
    options = {key: value for key, value in vars(method).items() if isinstance(value, float)}
    first, second = measure(method, data(method)), measure(method, data(method))
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert options == {key: value for key, value in vars(method).items() if isinstance(value, float)}
    assert all(p.grad is None and p.dtype == torch.float32 for p in method.parameters())
    assert first == second


def test_what_is_shipped_and_what_stays_behind() -> None:
    method = build("fitnets")
    method.begin("hint")
    found = measure(method, data(method))
    assert found.shipped == {"student": sum(p.numel() for p in tiny(0).parameters())}
    assert list(found.helpers) == ["regressor"]


def test_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "methods", "ddgsd", "--student", "small-cnn,width=4", "--set", "views=3"]) == 0
    shown = capsys.readouterr().out
    for words in ("parameters shipped: student", "who learns", "warning: mmd:"):
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
        (["data", "digits", "--peers", "2"], "unknown flag '--peers'"),
    ],
    ids=str,
)
def test_bad_input(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", *argv]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error


@pytest.mark.parametrize("ratio", [0.0, 5e-324, 1e-7, 1e300])
def test_a_warning_is_a_line_whatever_the_ratio(ratio: float) -> None:
    """1e99 was once written out."""
    fields = dict.fromkeys(Term._fields, ratio) | {"phase": "", "name": "kd"}
    assert len(Term(**fields).warning) < 60

"""PeerClassifier among scikit-learn's own tools."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

import teacherless as tl

SCORED = {"epochs": 15, "random_state": 0}


@parametrize_with_checks([tl.PeerClassifier(random_state=0)])
def test_estimator_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([tl.PeerClassifier(method="plain", random_state=0)])
def test_estimator_checks_of_plain(estimator: Any, check: Any) -> None:
    check(estimator)


def test_in_a_pipeline_under_cross_validation() -> None:
    scores = cross_val_score(make_pipeline(StandardScaler(), tl.PeerClassifier(**SCORED)),
                             *load_breast_cancer(return_X_y=True), cv=3)  # fmt: skip
    assert scores.min() > 0.94


def test_its_settings_are_searched() -> None:
    search = GridSearchCV(tl.PeerClassifier(**SCORED), {"method": ["plain", "dml"], "peers": [2]}, cv=2)
    assert search.fit(*load_wine(return_X_y=True)).best_score_ > 0.9


def test_the_same_again_and_the_generator_left_alone() -> None:
    X, y = load_wine(return_X_y=True)
    before = torch.random.get_rng_state()
    made = tl.PeerClassifier(**SCORED).fit(X, y)
    assert torch.equal(torch.random.get_rng_state(), before)
    p = made.predict_proba(X)
    for again in (clone(made).fit(X, y), pickle.loads(pickle.dumps(made))):
        assert np.array_equal(again.predict_proba(X), p)
    assert not np.array_equal(tl.PeerClassifier(epochs=15, random_state=1).fit(X, y).predict_proba(X), p)


def test_ensemble_images_labels_as_text() -> None:
    X, y = load_digits(n_class=3, return_X_y=True)
    images, names = X.reshape(-1, 1, 8, 8) / 16, np.array(["zero", "one", "two"])[y]
    made = tl.PeerClassifier("resnet8", epochs=3, ensemble=True, random_state=0).fit(images, names)
    assert list(made.classes_) == ["one", "two", "zero"] and made.score(images, names) > 0.9
    assert type(made.network_).__name__ == "MeanProbability"
    own = tl.PeerClassifier(lambda shape, classes: nn.Linear(shape[0], classes), epochs=3, random_state=0)
    assert own.fit(X, names).predict(X[:5]).dtype == names.dtype


def test_methods_that_want_more_or_cannot_be_had() -> None:
    X, y = load_wine(return_X_y=True)
    for method in ("cs-kd", "ps-kd", "label-smoothing"):
        assert tl.PeerClassifier(method=method, **SCORED).fit(X, y).score(X, y) > 0.8
    for method, said in (
        ("ddgsd", "stages"),
        ("kd", "teacher"),
        ("byot", "stages"),
        ("dmll", "did you mean"),
    ):
        with pytest.raises(tl.InputError, match=said):
            tl.PeerClassifier(method=method, **SCORED).fit(X, y)
    views = {"method": "dml", "options": {"views": 2}}
    with pytest.raises(tl.InputError, match="random transform"):
        tl.PeerClassifier(**views, **SCORED).fit(X, y)
    with pytest.raises(tl.InputError, match="images"):
        tl.PeerClassifier("resnet8").fit(X, y)

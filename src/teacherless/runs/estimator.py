"""PeerClassifier: networks that teach each other, as an estimator of scikit-learn."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from teacherless import models
from teacherless.data.views import Views
from teacherless.errors import InputError, unknown
from teacherless.losses import log_probs
from teacherless.methods import METHODS
from teacherless.network import call
from teacherless.training.lifecycle import train

PREDICTED_AT_ONCE = 1024  # samples
HIDDEN = 64


class PeerClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Networks that teach each other while they learn, and predict with one of them: `fit`, `predict`, `predict_proba`.

    Args:
        student: what is trained: a function of (shape of a sample, number of classes) that returns a network; the name
            of one of ours, for images `[N, C, H, W]`; by default a layer of 64 units behind fixed scaling to mean 0 and
            std 1 of the training samples.
        method: one of `METHODS` that reads no teacher.
        peers: how many networks, of a method of a cohort (dml); others train one.
        options: of the method: `{"temperature": 2}`.
        epochs: passes over the training samples.
        lr: learning rate.
        batch_size: samples of a step; the last ones of an epoch, of which there are fewer, are left out.
        settings: more of `teacherless.train`: `{"opt": "adamw", "smoothing": 0.1}`.
        ensemble: predict with all networks together, where the method has an ensemble; else with the first.
        random_state: of weights and sample order: a number, or a `RandomState`.

    Attributes: `classes_`, `n_features_in_`; `network_`, the network that predicts, whose logits are of `classes_`.
    Raises: InputError, which is a ValueError, as `train` does.
    """

    def __init__(
        self,
        student: Callable[[tuple[int, ...], int], nn.Module] | str | None = None,
        *,
        method: str = "dml",
        peers: int = 2,
        options: dict[str, Any] | None = None,
        epochs: int = 30,
        lr: float = 0.05,
        batch_size: int = 32,
        settings: dict[str, Any] | None = None,
        ensemble: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.student, self.method, self.peers, self.options = student, method, peers, options
        self.epochs, self.lr, self.batch_size, self.settings = epochs, lr, batch_size, settings
        self.ensemble, self.random_state = ensemble, random_state

    def fit(self, X: Any, y: Any) -> PeerClassifier:
        """Train on samples `[N, ...]` and their labels `[N]`, of any kind."""
        X, y = validate_data(self, X, y, dtype=np.float32, allow_nd=True)
        check_classification_targets(y)
        self.classes_, ids = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(f"y: found one class, {self.classes_[0]!r}; must be at least two classes")
        if self.method not in METHODS:
            raise unknown("method", self.method, METHODS)
        kind, seed = METHODS[self.method], int(check_random_state(self.random_state).randint(2**31 - 1))
        if kind.teacher_use == "required":
            raise InputError(f"method: {self.method} reads a teacher, which an estimator has none of")
        x, numbers = torch.from_numpy(X), {"num_classes": len(self.classes_), "num_samples": len(X)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            nets = [self._network(x) for _ in range(self.peers if kind.cohort else 1)]
            needs = {name: numbers[name] for name in kind.needs}
            method = kind(*nets, **needs, **(self.options or {}))
            samples = Views(TensorDataset(x, torch.from_numpy(ids)), *method.wants)
            loader: DataLoader[Any] = DataLoader(samples, min(self.batch_size, len(X)), shuffle=True, drop_last=True)
            given = {"epochs": self.epochs, "lr": self.lr, "seed": seed, **(self.settings or {})}
            result = train(method, loader, quiet=True, **given)
        together = method.ensemble() if self.ensemble else None
        self.network_ = together or method.students()[result.summary["chosen"]]
        return self

    def _network(self, x: Tensor) -> nn.Module:
        shape, classes = tuple(x.shape[1:]), len(self.classes_)
        if isinstance(self.student, str):
            if len(shape) != 3:
                raise InputError(f"student: {self.student} reads images [N, C, H, W]; found samples {list(shape)}")
            return models.create(self.student, num_classes=classes, in_channels=shape[0], size=shape[1:])
        if self.student is not None:
            return self.student(shape, classes)
        flat = x.flatten(1)
        return nn.Sequential(nn.Flatten(), Scale(flat.mean(0), flat.std(0, correction=0)),
                             nn.Linear(flat.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes))  # fmt: skip

    @torch.no_grad()
    def predict_proba(self, X: Any) -> np.ndarray[Any, Any]:
        """Probabilities `[N, classes]`, in the order of `classes_`. The network computes them in float64."""
        check_is_fitted(self)
        x = torch.from_numpy(validate_data(self, X, dtype=np.float32, allow_nd=True, reset=False))
        device = next(self.network_.parameters(), x).device
        device = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        exact = copy.deepcopy(self.network_).to(device).double().eval()  # in float32 a row depends on those beside it
        logits = [call(exact, part.to(device, torch.float64)) for part in torch.split(x, PREDICTED_AT_ONCE)]
        probabilities: np.ndarray[Any, Any] = log_probs(torch.cat(logits)).exp().cpu().numpy()
        return probabilities

    def predict(self, X: Any) -> np.ndarray[Any, Any]:
        """The most probable class of each sample `[N]`."""
        best = self.predict_proba(X).argmax(1)
        classes: np.ndarray[Any, Any] = self.classes_[best]
        return classes


class Scale(nn.Module):
    """`(x - mean) / std`, fixed; features that never change become 0. `[B, D] -> [B, D]`."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", torch.where(std > 0, std, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        return (x - self.mean) / self.std

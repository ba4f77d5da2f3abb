"""Train better classifiers without a teacher.

The public names are imported when they are first used, so that `import teacherless` needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teacherless.data.views import Views as Views
    from teacherless.errors import Diverged as Diverged
    from teacherless.errors import InputError as InputError
    from teacherless.evaluation.metrics import evaluate as evaluate
    from teacherless.method import Batch as Batch
    from teacherless.method import Method as Method
    from teacherless.method import Output as Output
    from teacherless.method import Progress as Progress
    from teacherless.method import Wants as Wants
    from teacherless.method import progress as progress
    from teacherless.methods import METHODS as METHODS
    from teacherless.methods.byot import BYOT as BYOT
    from teacherless.methods.cosub import Cosub as Cosub
    from teacherless.methods.cs_kd import CSKD as CSKD
    from teacherless.methods.ddgsd import DDGSD as DDGSD
    from teacherless.methods.dlb import DLB as DLB
    from teacherless.methods.dml import DML as DML
    from teacherless.methods.fitnets import FitNets as FitNets
    from teacherless.methods.frskd import FRSKD as FRSKD
    from teacherless.methods.kd import KD as KD
    from teacherless.methods.label_smoothing import LabelSmoothing as LabelSmoothing
    from teacherless.methods.mean_teacher import MeanTeacher as MeanTeacher
    from teacherless.methods.okddip import OKDDip as OKDDip
    from teacherless.methods.one import ONE as ONE
    from teacherless.methods.pcl import PCL as PCL
    from teacherless.methods.plain import Plain as Plain
    from teacherless.methods.ps_kd import PSKD as PSKD
    from teacherless.methods.r_drop import RDrop as RDrop
    from teacherless.methods.snapshot import Snapshot as Snapshot
    from teacherless.methods.tf_kd import TFKD as TFKD
    from teacherless.methods.zipf_ls import ZipfLS as ZipfLS
    from teacherless.models import create as create
    from teacherless.models.files import load_student as load_student
    from teacherless.models.files import save_student as save_student
    from teacherless.models.foreign.wrapper import adapt as adapt
    from teacherless.runs.estimator import PeerClassifier as PeerClassifier
    from teacherless.runs.with_loss import WithLoss as WithLoss
    from teacherless.training.lifecycle import train as train

__version__ = "0.1.0"

_HOME = {
    "data.views": ["Views"],
    "errors": ["Diverged", "InputError"],
    "evaluation.metrics": ["evaluate"],
    "method": ["Batch", "Method", "Output", "Progress", "Wants", "progress"],
    "methods": [
        "METHODS",
        "BYOT",
        "CSKD",
        "Cosub",
        "DDGSD",
        "DLB",
        "DML",
        "FRSKD",
        "FitNets",
        "KD",
        "LabelSmoothing",
        "MeanTeacher",
        "OKDDip",
        "ONE",
        "PCL",
        "PSKD",
        "Plain",
        "RDrop",
        "Snapshot",
        "TFKD",
        "ZipfLS",
    ],
    "models": ["create"],
    "models.foreign.wrapper": ["adapt"],
    "models.files": ["load_student", "save_student"],
    "runs.estimator": ["PeerClassifier"],
    "training.lifecycle": ["train"],
    "runs.with_loss": ["WithLoss"],
}
_NAMES = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(import_module(f"teacherless.{_NAMES[name]}"), name)
        globals()[name] = value
        return value
    if name in ("losses", "models", "data"):
        return import_module(f"teacherless.{name}")
    raise AttributeError(f"module 'teacherless' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "data", "losses", "models"})

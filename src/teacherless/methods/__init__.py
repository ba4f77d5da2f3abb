"""The methods, one file each. A file's docstring is the method's card: `teacherless list methods NAME` prints it."""

from __future__ import annotations

from teacherless.method import Method
from teacherless.methods.byot import BYOT
from teacherless.methods.cosub import Cosub
from teacherless.methods.cs_kd import CSKD
from teacherless.methods.ddgsd import DDGSD
from teacherless.methods.dlb import DLB
from teacherless.methods.dml import DML
from teacherless.methods.fitnets import FitNets
from teacherless.methods.frskd import FRSKD
from teacherless.methods.kd import KD
from teacherless.methods.label_smoothing import LabelSmoothing
from teacherless.methods.mean_teacher import MeanTeacher
from teacherless.methods.okddip import OKDDip
from teacherless.methods.one import ONE
from teacherless.methods.pcl import PCL
from teacherless.methods.plain import Plain
from teacherless.methods.ps_kd import PSKD
from teacherless.methods.r_drop import RDrop
from teacherless.methods.snapshot import Snapshot
from teacherless.methods.tf_kd import TFKD
from teacherless.methods.zipf_ls import ZipfLS

METHODS: dict[str, type[Method]] = {
    "plain": Plain,
    "label-smoothing": LabelSmoothing,
    "dml": DML,
    "one": ONE,
    "ddgsd": DDGSD,
    "kd": KD,
    "fitnets": FitNets,
    "byot": BYOT,
    "frskd": FRSKD,
    "ps-kd": PSKD,
    "tf-kd": TFKD,
    "cs-kd": CSKD,
    "snapshot": Snapshot,
    "dlb": DLB,
    "r-drop": RDrop,
    "cosub": Cosub,
    "zipf-ls": ZipfLS,
    "mean-teacher": MeanTeacher,
    "pcl": PCL,
    "okddip": OKDDip,
}

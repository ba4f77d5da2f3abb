"""The public names, and where each is."""

from . import data as data
from . import losses as losses
from . import models as models
from .data.views import Views as Views
from .errors import Diverged as Diverged
from .errors import InputError as InputError
from .evaluation.metrics import evaluate as evaluate
from .method import Batch as Batch
from .method import Method as Method
from .method import Output as Output
from .method import Progress as Progress
from .method import Wants as Wants
from .method import progress as progress
from .methods import METHODS as METHODS
from .methods.byot import BYOT as BYOT
from .methods.cosub import Cosub as Cosub
from .methods.cs_kd import CSKD as CSKD
from .methods.ddgsd import DDGSD as DDGSD
from .methods.dlb import DLB as DLB
from .methods.dml import DML as DML
from .methods.fitnets import FitNets as FitNets
from .methods.frskd import FRSKD as FRSKD
from .methods.kd import KD as KD
from .methods.label_smoothing import LabelSmoothing as LabelSmoothing
from .methods.mean_teacher import MeanTeacher as MeanTeacher
from .methods.okddip import OKDDip as OKDDip
from .methods.one import ONE as ONE
from .methods.pcl import PCL as PCL
from .methods.plain import Plain as Plain
from .methods.ps_kd import PSKD as PSKD
from .methods.r_drop import RDrop as RDrop
from .methods.snapshot import Snapshot as Snapshot
from .methods.tf_kd import TFKD as TFKD
from .methods.zipf_ls import ZipfLS as ZipfLS
from .models import create as create
from .models.files import load_student as load_student
from .models.files import save_student as save_student
from .models.foreign.wrapper import adapt as adapt
from .runs.estimator import PeerClassifier as PeerClassifier
from .runs.with_loss import WithLoss as WithLoss
from .training.lifecycle import train as train

__version__: str

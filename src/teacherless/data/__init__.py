"""Data: where samples come from, what is done to them, and how they become batches."""

from teacherless.batch import as_weights as as_weights
from teacherless.data.augment.distort import Augment as Augment
from teacherless.data.folder import survey as survey
from teacherless.data.loader import Loader as Loader
from teacherless.data.own_loader import as_loader as as_loader
from teacherless.data.show import contact_sheet as contact_sheet
from teacherless.data.sources import SOURCES as SOURCES
from teacherless.data.sources import Files as Files
from teacherless.data.sources import Resident as Resident
from teacherless.data.sources import Source as Source
from teacherless.data.sources import load as load

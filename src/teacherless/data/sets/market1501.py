"""Market-1501: persons in front of six cameras (Zheng et al. 2015). Trained as a classifier, measured as a search.

A file name says who, which camera, which frame: `0002_c1s1_000451_03.jpg` is person 2 from camera 1. In the gallery
`-1` is a detection that shows nobody in particular (junk), `0000` a person that no query asks for (a distractor).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from teacherless.data.contents import Contents, Gallery, Options, Persons, absent
from teacherless.data.fetch import cache_dir
from teacherless.data.folder import decoded
from teacherless.data.splits import Files
from teacherless.errors import InputError

SIZE = 128  # pixels; images are 128x64
NAME = re.compile(r"(-1|\d{4})_c([1-6])s\d_\d{6}_\d{2}\.(jpg|png)(\.jpg)?")  # six names of the release end in .jpg.jpg
PARTS = {"train": "bounding_box_train", "gallery": "bounding_box_test", "query": "query", "multi": "gt_bbox"}
GET = "Market-1501-v15.09.15.zip from its authors' page, zheng-lab.cecs.anu.edu.au/Project/project_reid.html"


def market1501(options: Options) -> Contents:
    """market1501: 12,936 photos of 751 persons to train on, 750 others to find again (to download by hand: 146 MB).

    `--data-dir` is the folder with bounding_box_train/, bounding_box_test/, query/ and, for multiple queries, gt_bbox/.
    Images are resized to 128x128, or `--img-size` (DML: 224), and flipped in training. There is no test split:
    training classifies persons, and the test is to find others: rank-1, -5, -10 and mAP (`evaluation/reid.py`).
    """
    root = _root(options.data_dir or cache_dir() / "market1501")
    size, channels = options.img_size or SIZE, 1 if options.gray else 3
    parts = {part: _list(root, folder, size, channels) for part, folder in PARTS.items() if (root / folder).is_dir()}
    files, _ = parts["train"]
    if files.labels.min() < 1:
        legal = "junk and distractors are of bounding_box_test"
        raise InputError(f"{root}: found person {int(files.labels.min())} in bounding_box_train; {legal}")
    persons, labels = files.labels.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    overlap = set(parts["query"][0].labels.tolist()) & set(persons.tolist())
    if overlap:
        raise InputError(f"{root}: found person {min(overlap)} in bounding_box_train and in query; must be others")
    train = decoded(Files(root, files.names, labels, files.sizes, files.size, channels), options.stream)
    persons_of = {part: Persons(*each) for part, each in parts.items() if part != "train"}
    reid = Gallery(persons_of["query"], persons_of["gallery"], persons_of.get("multi"))
    classes = [f"{person:04}" for person in persons.tolist()]
    return Contents("market1501", classes, size, channels, train, None, None, reid=reid)


def _root(where: Path) -> Path:
    """The folder with the parts: `where`, or the release's own folder in it."""
    for root in (where, where / "Market-1501-v15.09.15"):
        missing = [PARTS[part] for part in ("train", "gallery", "query") if not (root / PARTS[part]).is_dir()]
        if not missing:
            return root
        if len(missing) < 3:
            must = f"it must have {PARTS['train']}/, {PARTS['gallery']}/ and {PARTS['query']}/"
            raise InputError(f"market1501: found no {missing[0]}/ in {str(root)!r}; {must}")
    raise absent("market1501", f"{PARTS['train']}/", where, GET, "146 MB")


def _list(root: Path, folder: str, size: int, channels: int) -> tuple[Files, Tensor]:
    """The images of a part, labelled by person, and their cameras. Raises: InputError for a name that says neither."""
    rows = []
    for entry in sorted(os.scandir(root / folder), key=lambda entry: entry.name):
        if entry.name.startswith(".") or entry.name in ("Thumbs.db", "readme.txt"):
            continue
        match = NAME.fullmatch(entry.name)
        if not match:
            legal = "0002_c1s1_000451_03.jpg: person, camera, sequence, frame, box"
            raise InputError(f"{root / folder}: found {entry.name!r}; must be named as {legal}")
        rows.append((os.fsencode(f"{folder}/{entry.name}"), int(match[1]), int(match[2]), entry.stat().st_size))
    if not rows:
        raise InputError(f"{root}: found no images in {folder}/")
    names, persons, cameras, sizes = map(np.array, zip(*rows, strict=True))
    return Files(root, names, torch.tensor(persons), sizes, (size, size), channels), torch.tensor(cameras)

"""Noise in the shape of a data set, so that `--small` shows that a recipe runs before anything is downloaded."""

from __future__ import annotations

import torch
from torch import Tensor

from teacherless.data.contents import Contents, Gallery, Options, Persons
from teacherless.data.splits import Resident

PERSONS = 16  # that are asked for
SHAPES = {  # what a network sees of a data set: classes, size, channels
    "fashion-mnist": (10, 28, 1),
    "cifar10": (10, 32, 3),
    "cifar100": (100, 32, 3),
    "svhn": (10, 32, 3),
    "svhn-extra": (10, 32, 3),
    "tiny-imagenet": (200, 64, 3),
    "imagenet": (1000, 224, 3),
    "market1501": (751, 128, 3),
}


def synthetic(name: str, options: Options) -> Contents:
    """Two images of every class to train on and one to test, each class with a shade of its own, the rest noise."""
    classes, size, channels = SHAPES[name]
    size, channels = options.img_size or size, 1 if options.gray else channels
    generator = torch.Generator().manual_seed(0)

    def images(labels: Tensor) -> Resident:
        noise = torch.randint(0, 128, (len(labels), size, size, channels), generator=generator, dtype=torch.uint8)
        return Resident(noise + (labels * 37 % 128).to(torch.uint8)[:, None, None, None], labels)

    def persons(cameras: list[int]) -> Persons:
        who = torch.arange(1, PERSONS + 1).repeat(len(cameras))
        return Persons(images(who), torch.tensor(cameras).repeat_interleave(PERSONS))

    train, test = images(torch.arange(2 * classes) % classes), images(torch.arange(classes))
    names = [str(i) for i in range(classes)]
    if name == "market1501":
        reid = Gallery(persons([1]), persons([2, 3, 4]), persons([1, 1]))
        return Contents(name, names, size, channels, train, None, None, reid=reid)
    return Contents(name, names, size, channels, train, None, test)

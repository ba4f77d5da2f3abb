"""Text that is on every machine that has teacherless: sentences of docstrings, and whose library they are from.

Names that would give the answer away are left out.
"""

import re
from collections import Counter

import numpy
import scipy.signal
import scipy.stats
import sklearn.cluster
import sklearn.linear_model
import sklearn.preprocessing
import torch
from torch import Tensor

LIBRARIES = {
    "numpy": [numpy, numpy.linalg, numpy.fft],
    "scipy": [scipy.stats, scipy.signal],
    "scikit-learn": [sklearn.linear_model, sklearn.cluster, sklearn.preprocessing],
    "torch": [torch.nn, torch.nn.functional, torch.optim],
}
TELLING = {"numpy", "np", "scipy", "sklearn", "scikit", "learn", "torch", "pytorch", "ndarray", "tensor", "tensors"}
WORDS, LENGTH, PER_LIBRARY = 2000, 24, 600


def sentences(modules: list[object]) -> list[list[str]]:
    """The words of each sentence of at least six, in the modules' own docstrings."""
    docs = {(getattr(module, name).__doc__ or "") for module in modules for name in sorted(vars(module))
            if not name.startswith("_")}  # fmt: skip
    found = [re.findall(r"[a-z]{2,}", sentence.lower()) for doc in sorted(docs)
             for sentence in re.split(r"\.\s", doc.partition(">>>")[0])]  # fmt: skip
    return [kept for words in found if len(kept := [word for word in words if word not in TELLING]) >= 6]


def load() -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]], int]:
    """Training and test samples, dicts of `input_ids` and `attention_mask` `[24]` and `labels`; how many words there
    are. 0 is no word, 1 a rare one."""
    texts = [(words, label) for label, modules in enumerate(LIBRARIES.values())
             for words in sentences(modules)[:PER_LIBRARY]]  # fmt: skip
    common = Counter(word for words, _ in texts for word in words).most_common(WORDS)
    number = {word: i for i, (word, _) in enumerate(common, 2)}
    samples = []
    for words, label in texts:
        ids = torch.tensor([number.get(word, 1) for word in words[:LENGTH]])
        padded = torch.nn.functional.pad(ids, (0, LENGTH - len(ids)))
        samples.append({"input_ids": padded, "attention_mask": (padded > 0).long(), "labels": torch.tensor(label)})
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()
    cut = len(samples) * 4 // 5
    return [samples[i] for i in order[:cut]], [samples[i] for i in order[cut:]], len(number) + 2

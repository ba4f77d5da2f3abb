"""Two classifiers of transformers, made from a config, teach each other: in our loop, then in the Trainer."""

import sys
import tempfile

import torch
from docstrings import LIBRARIES, load
from torch.utils.data import DataLoader

import teacherless as tl

try:
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
except ImportError:
    sys.exit("this example needs transformers and accelerate: pip install 'transformers[torch]'")

EPOCHS = 4
train, test, words = load()


def bert(layers: int) -> BertForSequenceClassification:
    config = BertConfig(vocab_size=words, hidden_size=64, num_hidden_layers=layers, num_attention_heads=4,
                        intermediate_size=128, max_position_embeddings=64, num_labels=len(LIBRARIES))  # fmt: skip
    return BertForSequenceClassification(config)


def pair() -> tl.DML:
    torch.manual_seed(0)
    return tl.DML(bert(2), bert(3))


def report(loop: str, method: tl.DML) -> None:
    for name, row in tl.evaluate(method.students(), DataLoader(test, 128)).items():
        print(f"{loop}, {name}: {row['top1']:.1f} % of {len(test)} test sentences")


method = pair()
tl.train(method, DataLoader(train, 32, shuffle=True, drop_last=True), epochs=EPOCHS, opt="adamw", lr=1e-3,
         sched="constant", quiet=True)  # fmt: skip
report("train()", method)

method = pair()
arguments = TrainingArguments(tempfile.mkdtemp(), num_train_epochs=EPOCHS, per_device_train_batch_size=32,
                              learning_rate=1e-3, lr_scheduler_type="constant", max_grad_norm=0, save_strategy="no",
                              report_to=[], use_cpu=True, disable_tqdm=True, remove_unused_columns=False)  # fmt: skip
Trainer(model=tl.WithLoss(method), args=arguments, train_dataset=train).train()
report("Trainer", method)

"""Anyone's networks and anyone's loops, by every method: writes docs/anyone.md.

    pip install timm torchvision transformers lightning accelerate fastai skorch keras
    python benchmarks/anyone.py [loops|networks|twenty]...

A cell is a real training: the method's steps over four epochs of a few samples, all phases and turns. "yes": every
parameter has had a gradient, and nothing is infinite. A number: the one line that is said instead.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import teacherless as tl

CLASSES, EPOCHS, SAMPLES = 3, 4, 12
PAGE = Path(__file__).parent.parent / "docs" / "anyone.md"
METHODS = [*tl.METHODS, "dml in turn"]

TIMM = ["resnet10t", "mobilenetv3_small_050", "convnext_atto", "regnetx_002", "test_vit", "test_efficientnet",
        "swin_tiny_patch4_window7_224", "xcit_nano_12_p16_224"]  # fmt: skip
TWENTY = [
    "resnet18", "mobilenetv2_050", "mobilenetv4_conv_small_035", "tinynet_e", "lcnet_035", "ghostnet_050",
    "regnety_002", "convnextv2_atto", "edgenext_xx_small", "densenet121", "dla46_c", "hrnet_w18_small",
    "mobilevit_xxs", "fastvit_t8",
    "poolformer_s12", "levit_128s", "vit_tiny_patch16_224", "mnasnet_small", "semnasnet_050", "starnet_s1",
]  # fmt: skip
SHORT = ["plain", "dml", "one", "ddgsd"]
TORCHVISION = ["googlenet", "shufflenet_v2_x0_5", "squeezenet1_1"]
TRANSFORMERS = ["bert", "distilbert", "vit", "resnet", "convnext", "wav2vec2"]


def silence() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    operators = torch.library.Library("torchvision", "FRAGMENT")  # a CUDA build of torchvision beside a CPU torch
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    globals()["operators"] = operators


# Networks -------------------------------------------------------------------------------------------------------------


def timm(name: str) -> tuple[Callable[[], nn.Module], Callable[[], Any]]:
    import timm as zoo

    smaller = {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (1, 1, 2, 1)} if "swin" in name else {}
    smaller |= {"depth": 4} if "xcit" in name else {}
    known = zoo.get_pretrained_cfg(name)
    side = known.input_size[-1] if known.fixed_input_size and not smaller else 64
    return lambda: zoo.create_model(name, num_classes=CLASSES, **smaller), lambda: torch.randn(4, 3, side, side)


def torchvision(name: str) -> tuple[Callable[[], nn.Module], Callable[[], Any]]:
    from torchvision import models

    return lambda: models.get_model(name, weights=None, num_classes=CLASSES), lambda: torch.randn(4, 3, 96, 96)


def transformers(name: str) -> tuple[Callable[[], nn.Module], Callable[[], Any]]:
    import transformers as hf

    small = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32,
             "num_labels": CLASSES}  # fmt: skip
    make: dict[str, Callable[[], nn.Module]] = {
        "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(vocab_size=50, **small)),
        "distilbert": lambda: hf.DistilBertForSequenceClassification(
            hf.DistilBertConfig(vocab_size=50, dim=24, n_layers=4, n_heads=2, hidden_dim=32, num_labels=CLASSES)),
        "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(image_size=32, patch_size=8, **small)),
        "resnet": lambda: hf.ResNetForImageClassification(
            hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], num_labels=CLASSES)),
        "convnext": lambda: hf.ConvNextForImageClassification(
            hf.ConvNextConfig(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], num_labels=CLASSES)),
        "wav2vec2": lambda: hf.Wav2Vec2ForSequenceClassification(
            hf.Wav2Vec2Config(conv_dim=(16, 16), conv_stride=(5, 4), conv_kernel=(10, 8), num_feat_extract_layers=2,
                              num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, mask_time_prob=0.0, **small)),
    }  # fmt: skip
    give: dict[str, Callable[[], Any]] = {
        "vit": lambda: torch.randn(4, 3, 32, 32),
        "resnet": lambda: torch.randn(4, 3, 64, 64),
        "convnext": lambda: torch.randn(4, 3, 64, 64),
        "wav2vec2": lambda: {"input_values": torch.randn(4, 800)},
    }
    words = lambda: {"input_ids": torch.randint(50, (4, 9)), "attention_mask": torch.ones(4, 9).long()}  # noqa: E731
    return make[name], give.get(name, words)


def build(name: str, make: Callable[[], nn.Module], example: Any) -> tl.Method:
    """The method over fresh networks; adapted where it wants stages, raw where it does not."""
    kind = tl.METHODS[name.split(" ")[0]]
    raw = kind in (tl.Plain, tl.LabelSmoothing, tl.DML, tl.KD, tl.PSKD, tl.TFKD, tl.CSKD, tl.Snapshot)

    def one(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        net = make()
        return net if raw else tl.adapt(net, example=example)

    nets = [one(seed) for seed in range(1 + (kind.cohort or kind.teacher_use == "required"))]
    options: dict[str, Any] = {"update": "in_turn"} if name == "dml in turn" else {}
    options |= {"num_samples": SAMPLES, "num_classes": CLASSES} if kind is tl.PSKD else {}
    return kind(*nets, **options | ({"cycles": 2} if kind is tl.Snapshot else {}))


def trainable(method: tl.Method) -> dict[str, nn.Parameter]:
    return {name: p for name, p in method.named_parameters() if p.requires_grad}


def watch(method: tl.Method) -> set[str]:
    """Will hold the names of the parameters that have had a gradient."""
    found: set[str] = set()
    for name, parameter in trainable(method).items():
        parameter.register_hook(
            lambda grad, name=name: found.add(name) if grad.any() and grad.isfinite().all() else None
        )
    return found


def verdict(method: tl.Method, learned: set[str]) -> str:
    """Yes, or which parameters have had no gradient, or are not finite."""
    now = trainable(method)
    still = [name for name in now if name not in learned]
    wild = [name for name, p in now.items() if not p.isfinite().all()]
    if wild:
        return f"not finite: {wild[0]}"
    return "yes" if not still else f"no gradient: {len(still)} of {len(now)} parameters, first {still[0]}"


def train_networks(name: str, make: Callable[[], nn.Module], give: Callable[[], Any], epochs: int = EPOCHS) -> str:
    try:
        torch.manual_seed(0)
        method = build(name, make, give())
        method.train()
        learned = watch(method)
        optimizer = torch.optim.SGD(trainable(method).values(), lr=0.001)
        progress, labels = tl.progress(epochs=epochs), torch.arange(4) % CLASSES
        for _ in range(epochs):
            views = tuple(give() for _ in range(method.wants.views + method.wants.classmate))
            for out in method.steps(tl.Batch(views, labels, torch.arange(4)), progress):
                optimizer.zero_grad()
                out.loss.backward()
                optimizer.step()
            progress.advance()
        return verdict(method, learned)
    except tl.InputError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"


# Loops ----------------------------------------------------------------------------------------------------------------


class Noise(Dataset[Any]):
    """Small images, distorted anew at every reading."""

    targets = torch.arange(SAMPLES) % CLASSES

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return torch.randn(1, 8, 8) + row % CLASSES, row % CLASSES


def plain_pytorch(method: tl.Method, data: Dataset[Any]) -> None:
    optimizer, progress = torch.optim.SGD(method.parameters(), lr=0.01), tl.progress(epochs=EPOCHS)
    for _ in range(EPOCHS):
        for batch in DataLoader(data, 6, shuffle=True):
            for out in method.steps(batch, progress):
                optimizer.zero_grad()
                out.loss.backward()
                optimizer.step()
        progress.advance()


def ours(method: tl.Method, data: Dataset[Any]) -> None:
    tl.train(method, DataLoader(data, 6, shuffle=True), epochs=EPOCHS, quiet=True)


def lightning(method: tl.Method, data: Dataset[Any]) -> None:
    import lightning as L

    class Lit(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.method, self.progress = method, tl.progress(epochs=EPOCHS)

        def training_step(self, batch: Any, _: int) -> None:
            optimizer = self.optimizers()
            for out in self.method.steps(batch, self.progress):
                optimizer.zero_grad()
                self.manual_backward(out.loss)
                optimizer.step()

        def on_train_epoch_end(self) -> None:
            self.progress.advance()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.method.parameters(), lr=0.01)

    trainer = L.Trainer(max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(Lit(), DataLoader(data, 6, shuffle=True))


def accelerate(method: tl.Method, data: Dataset[Any]) -> None:
    from accelerate import Accelerator

    accelerator, progress = Accelerator(cpu=True), tl.progress(epochs=EPOCHS)
    wrapped, optimizer, loader = accelerator.prepare(
        method, torch.optim.SGD(method.parameters(), lr=0.01), DataLoader(data, 6, shuffle=True)
    )
    for _ in range(EPOCHS):
        for batch in loader:
            for out in method.steps(batch, progress, through=wrapped):
                optimizer.zero_grad()
                accelerator.backward(out.loss)
                optimizer.step()
        progress.advance()


def hugging_face(method: tl.Method, data: Dataset[Any]) -> None:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    progress = tl.progress(epochs=EPOCHS)

    class MethodTrainer(Trainer):
        def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
            turns = method.turns
            for out in method.steps(inputs["batch"], progress, through=model):
                self.accelerator.backward(out.loss)
                turns -= 1
                if turns:  # the last step is the Trainer's own
                    self.optimizer.step()
                    self.optimizer.zero_grad()
            return out.loss.detach()

    class Epochs(TrainerCallback):
        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            progress.advance()

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, num_train_epochs=EPOCHS, per_device_train_batch_size=6, report_to=[],
                                      save_strategy="no", remove_unused_columns=False, use_cpu=True, max_grad_norm=0,
                                      disable_tqdm=True, learning_rate=0.01)  # fmt: skip
        collate = lambda samples: {"batch": torch.utils.data.default_collate(samples)}  # noqa: E731
        MethodTrainer(method, arguments, collate, data, callbacks=[Epochs()]).train()


def fastai(method: tl.Method, data: Dataset[Any]) -> None:
    import fastai.callback.progress  # noqa: F401 (brings no_bar)
    from fastai.callback.core import Callback
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader as Loader
    from fastai.learner import Learner
    from fastai.optimizer import SGD

    progress = tl.progress(epochs=EPOCHS)

    class MethodLearner(Learner):
        def _do_one_batch(self) -> None:
            if not self.training:
                return
            for out in self.model.steps((*self.xb, *self.yb), progress):
                self.pred, self.loss_grad = out.logits, out.loss
                self.loss = self.loss_grad.clone()
                self._do_grad_opt()

    class Epochs(Callback):
        def after_train(self) -> None:
            progress.advance()

    loader = Loader(data, bs=6, shuffle=True, n_inp=1)
    learner = MethodLearner(DataLoaders(loader, loader, device=torch.device("cpu")), method, loss_func=lambda *_: None,
                            opt_func=SGD, lr=0.01, cbs=[Epochs()])  # fmt: skip
    with learner.no_bar(), learner.no_logging():
        learner.fit(EPOCHS)


def skorch(method: tl.Method, data: Dataset[Any]) -> None:
    from skorch import NeuralNet

    progress = tl.progress(epochs=EPOCHS)

    class MethodNet(NeuralNet):
        def train_step(self, batch: Any, **_: Any) -> dict[str, Any]:
            for out in self.module_.steps(batch, progress):
                self.optimizer_.zero_grad()
                out.loss.backward()
                self.optimizer_.step()
            return {"loss": out.loss.detach(), "y_pred": out.logits[0]}

        def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
            super().on_epoch_end(net, **kwargs)
            progress.advance()

    MethodNet(method, nn.CrossEntropyLoss, max_epochs=EPOCHS, batch_size=6, lr=0.01, train_split=None, verbose=0,
              iterator_train__shuffle=True).fit(data, None)  # fmt: skip


def keras(method: tl.Method, data: Dataset[Any]) -> None:
    import keras as k

    progress = tl.progress(epochs=EPOCHS)

    class MethodModel(k.Model):
        def __init__(self) -> None:
            super().__init__()
            self.inner = k.layers.TorchModuleWrapper(method)
            self.built = True

        def train_step(self, data: Any) -> dict[str, Any]:
            for out in method.steps(tuple(part for part in data if part is not None), progress):
                method.zero_grad()
                out.loss.backward()
                moved = [v for v in self.trainable_weights if v.value.grad is not None]
                with torch.no_grad():
                    self.optimizer.apply([v.value.grad for v in moved], moved)
            return {"loss": out.loss.detach()}

    class Epochs(k.callbacks.Callback):
        def on_epoch_end(self, *_: Any) -> None:
            progress.advance()

    model = MethodModel()
    model.compile(optimizer=k.optimizers.SGD(0.01))
    model.optimizer.build(model.trainable_weights)
    model.fit(DataLoader(data, 6, shuffle=True), epochs=EPOCHS, verbose=0, callbacks=[Epochs()])


LOOPS: dict[str, Callable[[tl.Method, Dataset[Any]], None]] = {
    "plain PyTorch": plain_pytorch, "tl.train": ours, "Lightning": lightning, "accelerate": accelerate,
    "Hugging Face Trainer": hugging_face, "fastai": fastai, "skorch": skorch, "Keras (torch)": keras,
}  # fmt: skip


def train_in(loop: Callable[[tl.Method, Dataset[Any]], None], name: str) -> str:
    try:
        method = build(
            name, lambda: tl.create("small-cnn", num_classes=CLASSES, in_channels=1), torch.zeros(2, 1, 8, 8)
        )
        learned = watch(method)
        loop(method, tl.Views(Noise(), *method.wants))
        return verdict(method, learned)
    except tl.InputError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"


# The page -------------------------------------------------------------------------------------------------------------


def table(title: str, rows: Iterable[tuple[str, list[str]]], methods: list[str] = METHODS) -> str:
    """Markdown; what is no "yes" is a number, said below."""
    said: list[str] = []
    lines = [f"| {title} | " + " | ".join(methods) + " |", "|---|" + ":-:|" * len(methods)]
    for row, cells in rows:
        for cell in cells:
            if cell != "yes" and cell not in said:
                said.append(cell)
        shown = ["yes" if cell == "yes" else str(said.index(cell) + 1) for cell in cells]
        lines.append(f"| {row} | " + " | ".join(shown) + " |")
        print(row, shown, flush=True)
    return "\n".join(lines) + "\n\n" + "".join(f"{i}. `{line}`\n" for i, line in enumerate(said, 1))


def networks() -> str:
    kinds = [
        ("timm", timm, TIMM),
        ("torchvision", torchvision, TORCHVISION),
        ("transformers", transformers, TRANSFORMERS),
    ]

    def rows() -> Iterable[tuple[str, list[str]]]:
        for package, kind, names in kinds:
            for name in names:
                make, give = kind(name)
                yield f"{package} {name}", [train_networks(method, make, give) for method in METHODS]

    return table("network", rows())


def twenty() -> str:
    rows = ((name, [train_networks(method, *timm(name), epochs=2) for method in SHORT]) for name in TWENTY)
    return table("timm", rows, SHORT)


def loops() -> str:
    return table("loop", ((name, [train_in(loop, method) for method in METHODS]) for name, loop in LOOPS.items()))


def main() -> None:
    silence()
    wanted = sys.argv[1:] or ["loops", "networks", "twenty"]
    packages = ("torch", "timm", "torchvision", "transformers", "lightning", "accelerate", "fastai", "skorch", "keras")
    parts = {"loops": ("Anyone's loops", loops), "networks": ("Anyone's networks", networks),
             "twenty": ("Twenty more of timm, two steps each", twenty)}  # fmt: skip
    found = "\n\n".join(f"## {parts[part][0]}\n\n{parts[part][1]()}" for part in wanted)
    PAGE.write_text(
        "# Anyone's networks, anyone's loops\n\n"
        'Written by `python benchmarks/anyone.py`; a cell is a training of four epochs with the real library. "yes":\n'
        "every parameter has had a gradient. A number: the one line that is said instead, below the table.\n\n"
        f"{', '.join(f'{name} {version(name)}' for name in packages)}; Python {sys.version.split()[0]}.\n\n{found}",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()

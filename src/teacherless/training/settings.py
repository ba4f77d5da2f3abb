"""Settings: what the loop needs to know.

Field descriptions are the command line's help, so a flag is declared in one place. This module imports no torch:
`--help` must answer at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, TypedDict, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from teacherless.errors import InputError, unknown
from teacherless.files import schemas

M = TypeVar("M", bound=BaseModel)


class Settings(BaseModel):
    """How the loop trains. Rates are per step, epochs count from 0."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)

    epochs: int = Field(30, ge=1, le=10**6, description="passes over the training data")
    steps: int | None = Field(None, ge=1, le=10**9, description="batches to train for, instead of --epochs")
    lr: float = Field(0.1, gt=0, description="learning rate")
    opt: Literal["sgd", "adam", "adamw"] = Field("sgd", description="optimizer: sgd, adam or adamw")
    body_lr: float = Field(
        1.0, ge=0, description="factor on the rate of all of a student but its head (fine-tuning: 0.1)"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    nesterov: bool = Field(True, description="Nesterov momentum, for sgd")
    opt_betas: tuple[float, float] = Field((0.9, 0.999), description="of adam and adamw")
    weight_decay: float = Field(5e-4, ge=0, description="L2 penalty (adamw: decoupled)")
    clip_grad: float | None = Field(None, gt=0, description="largest gradient norm, per student")
    sched: Literal["cosine", "step", "constant"] = Field("cosine", description="rate: cosine, step or constant")
    warmup_epochs: int = Field(0, ge=0, le=10**6, description="epochs of linear warm-up")
    decay_epochs: int | None = Field(None, ge=1, description="sched step: decay every N epochs (default: a third)")
    decay_milestones: tuple[int, ...] = Field((), description="sched step: decay at these epochs")
    decay_rate: float = Field(0.1, gt=0, le=1, description="sched step: factor of each decay")
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing, inside any method")
    seed: int = Field(0, ge=0, lt=2**62, description="of weights, sample order, distortions")
    select: Literal["last", "best"] = Field("last", description="ship the last epoch, or the best on validation")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of averaged weights, evaluated and shipped instead; 0: none")
    on_divergence: Literal["isolate", "revive", "stop"] = Field(
        "isolate",
        description="a peer that is not finite: isolate takes it out of the others' mean; revive does and brings it "
        "back at the epoch's end, as when last whole, twice at most; stop ends the run, as the last to go always does",
    )
    device: str = Field("auto", description="auto, cpu, cuda, or what torch.device reads: cuda:1, mps, xpu")
    engine: Literal["auto", "loop", "threads", "graph"] = Field(
        "auto",
        description="students in turn (loop), one per core (threads), a CUDA graph (graph); auto goes by a fixed rule",
    )
    amp: bool = Field(False, description="train in bfloat16 where that is fast; losses and weights stay in float32")
    amp_anyway: bool = Field(False, description="as --amp, also on a CPU without bf16 instructions, where it is slow")
    checkpoint_every: str = Field("10m", description="10m, 2e or 500s: minutes, epochs, steps")
    log: Literal["tensorboard"] | None = Field(
        None, description="write the numbers of metrics.jsonl for TensorBoard too, to tensorboard/ in the run folder"
    )
    parallel: str = Field(
        "auto", description="under torchrun: data (parts of a batch), peers (students), or 2x4 (peers x data)"
    )
    place: str | None = Field(
        None, description="under torchrun: for each student the number of its place among the peers, as 0,0,1"
    )
    timeout: int = Field(600, ge=1, le=10**6, description="under torchrun: seconds to wait for a rank")
    sync_bn: bool = Field(False, description="under torchrun, on GPUs: batch norm of the whole batch, not of a part")

    @field_validator("opt_betas")
    @classmethod
    def _are_decays(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError(f"--opt-betas: found {value}; must be two numbers from 0 to less than 1")
        return value

    @field_validator("checkpoint_every")
    @classmethod
    def _is_interval(cls, value: str) -> str:
        if not re.fullmatch(r"[1-9]\d*[mes]", value):
            legal = "must be like 10m (minutes), 2e (epochs) or 500s (steps)"
            raise ValueError(f"--checkpoint-every: found {value!r}; {legal}")
        return value

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> Settings:
        if self.steps is not None and {"steps", "epochs"} <= self.model_fields_set:
            raise ValueError("give --epochs or --steps, not both")
        return self


class SettingsDict(TypedDict, total=False):
    """`Settings` as keyword arguments, for type checkers; a test compares the two."""

    epochs: int
    steps: int | None
    lr: float
    opt: Literal["sgd", "adam", "adamw"]
    body_lr: float
    momentum: float
    nesterov: bool
    opt_betas: tuple[float, float]
    weight_decay: float
    clip_grad: float | None
    sched: Literal["cosine", "step", "constant"]
    warmup_epochs: int
    decay_epochs: int | None
    decay_milestones: tuple[int, ...]
    decay_rate: float
    smoothing: float
    seed: int
    select: Literal["last", "best"]
    ema: float
    on_divergence: Literal["isolate", "revive", "stop"]
    device: str
    engine: Literal["auto", "loop", "threads", "graph"]
    amp: bool
    amp_anyway: bool
    checkpoint_every: str
    log: Literal["tensorboard"] | None
    parallel: str
    place: str | None
    timeout: int
    sync_bn: bool


def read(model: type[M], values: Mapping[str, Any], where: str = "") -> M:
    """`model(**values)`, its first complaint in one line. Raises: InputError."""
    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]).replace("_", "-")
        if first["type"] == "extra_forbidden":
            raise unknown(f"{where}setting", str(first["loc"][0]), model.model_fields) from None
        if first["type"] == "value_error":
            raise InputError(f"{where}{first['ctx']['error']}") from None
        raise InputError(f"{where}--{name}: {schemas.wording(first)}") from None

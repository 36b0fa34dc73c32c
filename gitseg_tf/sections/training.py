"""training: the optimisation."""

import difflib
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from gitseg_tf.sections.base import Section
from gitseg_tf.sections.loss import LossConfig

Strategy = Literal["auto", "one_device", "mirrored", "multiworker", "tpu"]
Precision = Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"]
Schedule = Literal["cosine", "polynomial", "one_cycle", "constant"]
OPTIMIZERS = ("adamw", "sgd", "lion")
ADDONS = "Addons>"


class TrainingConfig(Section):
    """The optimisation."""

    epochs: int = Field(3, ge=1)
    learning_rate: float = Field(2e-3, gt=0, le=10, description="the peak")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of all steps in which the rate rises from zero")
    schedule: Schedule = Field("cosine", description="course of the rate after the warm-up")
    power: float = Field(0.9, gt=0, description="of the polynomial schedule")
    optimizer: str = Field("adamw", description="adamw, sgd, lion or Addons>NAME")
    momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov's, of sgd")
    accumulate: int = Field(1, ge=1, description="parts of a batch that follow one another within a step")
    encoder_rate: float = Field(1.0, ge=0, le=1, description="share of the learning rate that the encoder has")
    layer_decay: float = Field(1.0, gt=0, le=1, description="that share from one stage of the encoder to the one above")
    swa: int = Field(0, ge=0, description="last epochs over which the weights are averaged equally; 0 is none")
    early_stopping: int = Field(0, ge=0, description="epochs without a higher val_dice that end training; 0: none do")
    weight_decay: float = Field(1e-2, ge=0)
    clip_norm: float = Field(1.0, gt=0, description="largest global norm of the gradient")
    ema: float = Field(
        0.99, ge=0, lt=1, validate_default=True, description="decay of the moving average of the weights; 0 is none"
    )
    loss: LossConfig = LossConfig()
    strategy: Strategy = "auto"
    precision: Precision = "auto"
    jit_compile: bool = Field(False, description="compile the training step with XLA; always on for TPUs")
    deterministic: bool = Field(False, description="the same bits from the same seed on a GPU too, slower")
    checkpoint_minutes: float = Field(0.0, ge=0, description="between savings within an epoch; 0: at its end alone")
    wandb: str | None = Field(None, min_length=1, description="project of Weights & Biases that gets the curves too")

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, value: str) -> str:
        if value not in OPTIMIZERS and not value.startswith(ADDONS):
            near = difflib.get_close_matches(value.lower(), OPTIMIZERS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"must be {', '.join(OPTIMIZERS)} or {ADDONS}NAME of tensorflow-addons{hint}")
        return value

    @field_validator("swa")
    @classmethod
    def _within_training(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("epochs", value):
            raise ValueError(f"must be training.epochs ({info.data['epochs']}) at most")
        return value

    @field_validator("ema")
    @classmethod
    def _one_average(cls, value: float, info: ValidationInfo) -> float:
        if value and info.data.get("swa"):
            raise ValueError("must be 0 with training.swa: the weights have one average")
        return value

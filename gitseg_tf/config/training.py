"""Config section `training`: the optimization."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from gitseg_tf.config.loss import LossConfig
from gitseg_tf.config.section import Section
from gitseg_tf.core.registry import Registry, suggestion

Strategy = Literal["auto", "one_device", "mirrored", "multiworker", "tpu"]
Precision = Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"]
# Learning rate schedules: functions from (step, Schedule) to the fraction of the peak, including the warm-up.
SCHEDULES = Registry("schedule")
for _name in ("cosine", "polynomial", "one_cycle", "constant"):
    SCHEDULES.register(_name, f"gitseg_tf.training.optim.schedules:{_name}")
# Optimizers: functions from (learning rate schedule, TrainingConfig) to a Keras optimizer without weight decay.
OPTIMIZERS = Registry("optimizer")
for _name in ("adamw", "sgd", "lion"):
    OPTIMIZERS.register(_name, f"gitseg_tf.training.optim.optimizers:{_name}")
ADDONS = "Addons>"


class TrainingConfig(Section):
    """The optimization."""

    epochs: int = Field(3, ge=1)
    learning_rate: float = Field(2e-3, gt=0, le=10, description="peak learning rate")
    warmup: float = Field(0.05, ge=0, lt=1, description="fraction of all steps over which the rate rises from zero")
    schedule: str = Field("cosine", description="schedule of the learning rate after the warm-up")
    power: float = Field(0.9, gt=0, description="exponent of the polynomial schedule")
    optimizer: str = Field("adamw", description="adamw, sgd, lion or Addons>NAME")
    momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov momentum of sgd")
    gradient_accumulation_steps: int = Field(
        1, ge=1, description="parts of a batch that are processed one after the other within a step"
    )
    encoder_lr_multiplier: float = Field(1.0, ge=0, le=1, description="factor of the encoder's learning rate")
    layer_lr_decay: float = Field(
        1.0, gt=0, le=1, description="factor of the learning rate of each encoder stage relative to the next deeper one"
    )
    freeze_epochs: int = Field(
        0, ge=0, description="number of first epochs that train only the new layers, not the loaded ones"
    )
    unfreeze_warmup_epochs: float = Field(
        0.0, ge=0, description="epochs over which the loaded layers' learning rate then rises from zero"
    )
    swa_epochs: int = Field(
        0, ge=0, description="number of last epochs over which the weights are averaged equally; 0: none"
    )
    early_stopping_patience: int = Field(
        0, ge=0, description="epochs without a higher evaluation.metric after which training stops; 0: never"
    )
    weight_decay: float = Field(1e-2, ge=0)
    clip_norm: float = Field(1.0, gt=0, description="maximum global norm of the gradient")
    ema_decay: float = Field(
        0.99, ge=0, lt=1, validate_default=True, description="decay of the moving average of the weights; 0: none"
    )
    loss: LossConfig = LossConfig()
    strategy: Strategy = "auto"
    precision: Precision = "auto"
    jit_compile: bool = Field(False, description="compile the training step with XLA; always on for TPUs")
    deterministic: bool = Field(False, description="bitwise reproducible on GPUs as well, but slower")
    checkpoint_minutes: float = Field(0.0, ge=0, description="minutes between mid-epoch checkpoints; 0: none")
    wandb: str | None = Field(None, min_length=1, description="Weights & Biases project that the curves are logged to")

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, value: str) -> str:
        if value not in SCHEDULES:
            raise ValueError(f"must be a registered schedule; {suggestion(value, SCHEDULES)}")
        return value

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, value: str) -> str:
        if value not in OPTIMIZERS and not value.startswith(ADDONS):
            names, hint = ", ".join(OPTIMIZERS), suggestion(value, OPTIMIZERS)
            hint = f"; {hint}" if hint.startswith("did") else ""
            raise ValueError(f"must be {names} or {ADDONS}NAME of tensorflow-addons{hint}")
        return value

    @field_validator("deterministic")
    @classmethod
    def _deterministic_without_xla(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("jit_compile"):
            raise ValueError("must be false with training.jit_compile: XLA has no deterministic max pooling gradient")
        return value

    @field_validator("swa_epochs")
    @classmethod
    def _within_training(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("epochs", value):
            raise ValueError(f"must be at most training.epochs ({info.data['epochs']})")
        return value

    @field_validator("ema_decay")
    @classmethod
    def _one_average(cls, value: float, info: ValidationInfo) -> float:
        if value and info.data.get("swa_epochs"):
            raise ValueError("must be 0 with training.swa_epochs (there is only one average of the weights)")
        return value

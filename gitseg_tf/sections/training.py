"""training: the optimisation."""

from typing import Literal

from pydantic import Field

from gitseg_tf.sections.base import Section
from gitseg_tf.sections.loss import LossConfig

Strategy = Literal["auto", "one_device", "mirrored", "multiworker", "tpu"]
Precision = Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"]


class TrainingConfig(Section):
    """The optimisation."""

    epochs: int = Field(3, ge=1)
    learning_rate: float = Field(2e-3, gt=0, le=10, description="the peak")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of all steps in which the rate rises from zero")
    weight_decay: float = Field(1e-2, ge=0)
    clip_norm: float = Field(1.0, gt=0, description="largest global norm of the gradient")
    ema: float = Field(0.99, ge=0, lt=1, description="decay of the moving average of the weights; 0 is none")
    loss: LossConfig = LossConfig()
    strategy: Strategy = "auto"
    precision: Precision = "auto"
    jit_compile: bool = Field(False, description="compile the training step with XLA; always on for TPUs")
    deterministic: bool = Field(False, description="the same bits from the same seed on a GPU too, slower")

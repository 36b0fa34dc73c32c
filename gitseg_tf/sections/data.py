"""data: what a training sample is."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from gitseg_tf.sections.base import Section


class DataConfig(Section):
    """What a training sample is and how many are in a batch."""

    path: str | None = Field(None, description="TFRecords made by `gitseg convert`, or a cohort; null is the phantom")
    folds: int = Field(5, ge=2, le=100, description="folds by patient, when a cohort is converted on the way")
    fold: int | None = Field(0, ge=0, description="the fold that is held out; null holds none out")
    slices: int = Field(5, ge=1, le=31, description="slices in a window, odd; 1 is a 2-D model, more a 2.5-D model")
    stride: int = Field(1, ge=1, le=8, description="distance between the slices of a window, in slices")
    stride_mm: float | None = Field(None, gt=0, description="the same in mm, rounded to whole slices of the scan")
    size: tuple[int, int] = Field((128, 128), description="height and width of the model's input, multiples of 32")
    crop: Literal["none", "body"] = Field("body", description="what of a slice fills the input: all, or the body")
    pixel_mm: float | None = Field(None, gt=0, description="pixel of the input in mm; null fits each scan into size")
    patch: tuple[int, int, int] | None = Field(None, description="slices, height, width of the crops of a 3-D model")
    batch_size: int = Field(16, ge=1, description="windows in a step, over all replicas")
    empty_slices: float = Field(0.25, ge=0, le=1, description="share of the slices without organ seen in an epoch")
    balance_organs: float = Field(0.0, ge=0, le=1, description="how far rarer organs are shown more often; 1 is fully")
    exclude_scans: tuple[str, ...] = Field((), description="ids of scans that are left out")
    shuffle_windows: int = Field(256, ge=1, description="windows held back for shuffling")
    service: str | None = Field(None, description="grpc://HOST:PORT of a data service that prepares training windows")
    cache_mib: int = Field(1024, ge=0, description="prepared scans are kept in memory when they fit in this many MiB")

    @field_validator("fold", mode="before")
    @classmethod
    def _one_fold(cls, value):
        if value == "all":
            raise ValueError("must be a number or null; train.py --fold all trains one fold after the other")
        return value

    @field_validator("slices")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd")
        return value

    @field_validator("size")
    @classmethod
    def _multiples_of_32(cls, value: tuple[int, int]) -> tuple[int, int]:
        if any(n < 32 or n % 32 for n in value):
            raise ValueError("must be two multiples of 32")
        return value

    @model_validator(mode="after")
    def _patch_fits(self):
        depth, height, width = self.patch or (1, 1, 1)
        if min(depth, height, width) < 1 or height > self.size[0] or width > self.size[1]:
            raise ValueError(f"patch is {[depth, height, width]}: height and width must fit into {list(self.size)}")
        return self

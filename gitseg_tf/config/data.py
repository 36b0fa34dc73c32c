"""Config section `data`: what a training sample is."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from gitseg_tf.config.intensity import IntensitySetting
from gitseg_tf.config.section import Section
from gitseg_tf.errors import ConfigError


class DataConfig(Section):
    """What a training sample is, and how many there are in a batch."""

    path: str | None = Field(None, description="TFRecords made by `gitseg convert`, or a cohort; null is the phantom")
    labels: tuple[str, ...] | None = Field(
        None, description="names of the labels to segment, in this order; null takes all labels of the dataset"
    )
    folds: int = Field(5, ge=1, le=100, description="number of folds if a cohort is converted first")
    fold: int | None = Field(0, ge=0, description="the held-out fold; null holds out none")
    intensity: IntensitySetting = Field(
        None, description="how intensities are mapped to [0, 1]: null, one mapping, or a list with one per channel"
    )
    plane: Literal["axial", "coronal", "sagittal"] = Field(
        "axial", description="orientation of the slices of which the windows of a 2-D or 2.5-D model consist"
    )
    window_slices: int = Field(
        5, ge=1, le=31, description="slices per window, odd; 1 makes a 2-D model, more a 2.5-D model"
    )
    window_stride: int = Field(1, ge=1, le=8, description="distance between the slices of a window, in slices")
    window_stride_mm: float | None = Field(
        None, gt=0, description="window_stride in mm, rounded to whole slices of the scan"
    )
    input_size: tuple[int, int] = Field(
        (128, 128), description="height and width of the model's input, multiples of 32 for a 2-D model"
    )
    crop: Literal["none", "body"] = Field("body", description="region of each slice that fills the input")
    pixel_mm: float | None = Field(
        None, gt=0, description="pixel size of the input in mm; null fits each scan into input_size"
    )
    patch: tuple[int, int, int] | None = Field(
        None, description="(slices, height, width) of the patches of a 3-D model"
    )
    batch_size: int = Field(16, ge=1, description="windows per step, across all replicas")
    empty_slice_fraction: float = Field(
        0.25, ge=0, le=1, description="fraction of the slices without any label that each epoch uses"
    )
    balance_labels: float = Field(
        0.0, ge=0, le=1, description="oversampling of rare labels: 0 as in the data, 1 as balanced as it permits"
    )
    exclude_scans: tuple[str, ...] = Field((), description="IDs of scans to leave out")
    shuffle_buffer: int = Field(
        256, ge=1, description="windows that are shuffled at a time, if the scans do not fit in cache_mib"
    )
    service: str | None = Field(None, description="grpc://HOST:PORT of a data service that prepares training windows")
    cache_mib: int = Field(
        1024,
        ge=0,
        description="prepared scans stay in memory, and all windows are shuffled, if they fit in this many MiB",
    )

    @field_validator("labels")
    @classmethod
    def _different_labels(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None:
            if not value:
                raise ValueError("must name at least one label, or be null")
            if twice := [name for name in value if value.count(name) > 1]:
                raise ValueError(f"must not repeat the label {twice[0]!r}")
        return value

    @field_validator("fold", mode="before")
    @classmethod
    def _one_fold(cls, value):
        if value == "all":
            raise ValueError("must be a number or null (a cross-validation trains all folds in turn)")
        return value

    @field_validator("window_slices")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd")
        return value

    @property
    def patch_shape(self) -> tuple[int, int, int]:
        """The `patch` of a 3-D model: (slices, height, width).

        Raises:
            ConfigError: `patch` is not set.
        """
        if self.patch is None:
            raise ConfigError("data.patch is missing; a 3-D model needs the (slices, height, width) of its patches")
        return self.patch

    @model_validator(mode="after")
    def _sizes_fit(self):
        if self.patch is None and any(n < 32 or n % 32 for n in self.input_size):
            raise ValueError(f"input_size must be two multiples of 32, got {list(self.input_size)}")
        if self.patch is not None and self.plane != "axial":
            raise ValueError(f"plane is {self.plane}, but patch is set: a 3-D model sees all axes; use plane axial")
        depth, height, width = self.patch or (1, 1, 1)
        if min(depth, height, width) < 1 or height > self.input_size[0] or width > self.input_size[1]:
            raise ValueError(
                f"patch is {[depth, height, width]}; its height and width must fit into "
                f"input_size {list(self.input_size)}"
            )
        return self

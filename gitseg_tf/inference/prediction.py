"""The base class of all predictors, whether their networks run here or on a server. Does not import TensorFlow."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from gitseg_tf.config import Config
from gitseg_tf.core.text import plural
from gitseg_tf.data.volume import Volume
from gitseg_tf.errors import DataError
from gitseg_tf.inference.identity import UNKNOWN, ModelIdentity
from gitseg_tf.inference.trust import scan_warnings
from gitseg_tf.labels import LabelSet
from gitseg_tf.runs.training_data import TrainingData

# Dtypes returned by readers; arrays of other dtypes are converted to float32.
_DTYPES = (np.uint8, np.uint16, np.int16, np.float32)


@dataclass(frozen=True, eq=False)
class Prediction:
    """The segmentation of a scan, at the scan's own size.

    Attributes:
        masks: bool [L, D, H, W], in the order of the predictor's labels, after post-processing; labels may overlap.
        probabilities: float32 [L, D, H, W] before post-processing, or None if not requested.
        levels: uint8 [L, D, H, W], the probabilities in percent, rounded down and at most 99, or None if not requested.

    Example:
        >>> prediction = Prediction(np.zeros((2, 3, 8, 8), bool))
        >>> prediction.masks.shape, prediction.probabilities
        ((2, 3, 8, 8), None)
    """

    masks: np.ndarray
    probabilities: np.ndarray | None = None
    levels: np.ndarray | None = None


class BasePredictor(ABC):
    """Segments whole scans.

    Attributes:
        labels: the segmented labels, in the order of the masks.
        channels: names of the input's channels; None if they are unknown.
        config: the config of the first model; None if it is unknown, as for a server.
        identity: name, version and weights of the model, which files with its masks state.
        has_probabilities: whether `predict` can return probabilities; a server returns masks only.
        warnings: reasons to distrust all results, such as an unfinished training.
        training_data: ranges of the training data of each model, as far as they are known.
    """

    labels: LabelSet
    channels: tuple[str, ...] | None
    config: Config | None
    identity: ModelIdentity = ModelIdentity(UNKNOWN)
    has_probabilities: bool = True
    warnings: tuple[str, ...] = ()
    training_data: tuple[TrainingData, ...] = ()

    def predict(
        self,
        volume: Volume | np.ndarray,
        *,
        spacing: Sequence[float] | None = None,
        probabilities: bool = False,
    ) -> Prediction:
        """Segment a scan.

        Args:
            volume: the scan, or its voxels [D, H, W] or [D, H, W, C] in the reader's units (Hounsfield units for CT).
            spacing: (z, y, x) in mm, for voxels without a Volume.
            probabilities: also return the probabilities.

        Returns:
            The masks, and the probabilities or None.

        Raises:
            DataError: no spacing, or other channels than those of the network.
            ScanError: this scan cannot be segmented; others are unaffected.
        """
        return self._predict(self._checked(volume, spacing), probabilities)

    def check(self, volume: Volume | np.ndarray, *, spacing: Sequence[float] | None = None) -> list[str]:
        """List the reasons to distrust the prediction of a scan: facts that lie far from the training data.

        Args:
            volume, spacing: as for `predict`.

        Returns:
            See `scan_warnings`; for an ensemble, those of the first model with any.

        Raises:
            DataError: see `predict`.
        """
        volume = self._checked(volume, spacing)
        return next(filter(None, (scan_warnings(volume, data) for data in self.training_data)), [])

    @abstractmethod
    def _predict(self, volume: Volume, probabilities: bool) -> Prediction:
        """Segment a validated volume, see `predict`."""

    def _checked(self, volume: Volume | np.ndarray, spacing: Sequence[float] | None) -> Volume:
        if not isinstance(volume, Volume):
            if spacing is None:
                raise DataError("spacing is missing; pass spacing=(z, y, x) in mm with an array, or pass a Volume")
            voxels = np.asarray(volume)
            if voxels.dtype not in _DTYPES:
                voxels = voxels.astype(np.float32)
            volume = Volume(voxels, cast(tuple[float, float, float], tuple(spacing)))
        if volume.voxels.dtype.kind == "f" and not np.isfinite(volume.voxels).all():
            raise DataError("the volume contains NaN or infinite values; replace them")
        if self.channels is not None and volume.channels != len(self.channels):
            raise DataError(
                f"the volume has {plural(volume.channels, 'channel')}, but the model takes {len(self.channels)} "
                f"({', '.join(self.channels)})"
            )
        return volume

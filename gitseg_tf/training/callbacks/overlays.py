"""Overlay images of the same held-out slices in each epoch: reference outlines next to predicted ones."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import cv2
import numpy as np
import tf_keras as keras

from gitseg_tf.config import Config
from gitseg_tf.data.outlines import draw_outlines
from gitseg_tf.data.pipeline.batches import validation_windows
from gitseg_tf.data.pipeline.planes import AXES
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.data.tfrecords.index import ScanEntry
from gitseg_tf.models.build import logits_of

SLICES = 4
_SMALLEST = 256


class Overlays(keras.callbacks.Callback):
    """Draws a few held-out slices after each validation, with the validated weights.

    The slices depend on the dataset and the config only, so a resumed run shows the same ones.

    Args:
        dataset: scans of config.data.fold are shown.
        config: the experiment.

    Attributes:
        pictures: the latest images: {"case1_day0, slice 5 of 8": uint8 [h, w, 3] RGB}, with the reference on the left
            and the prediction on the right.
    """

    def __init__(self, dataset: Dataset, config: Config):
        super().__init__()
        self._dataset, self._config = dataset, config
        self._slices: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.pictures: dict[str, np.ndarray] = {}

    def on_train_begin(self, logs=None):
        self._slices = overlay_slices(self._dataset, self._config)

    def on_test_end(self, logs=None):
        threshold = self._config.evaluation.threshold
        windows = np.stack([image for image, _ in self._slices.values()])
        # Tracing does not pay off for a few slices.
        outputs = self.model(windows, training=False)
        predicted = logits_of(outputs).numpy() >= math.log(threshold / (1 - threshold))
        channels = len(self._config.channels or ("image",))
        colors = self._config.label_set.colors
        self.pictures = {
            name: overlay_picture(_middle_plane(image, channels), _middle(mask) > 0, _middle(inside), colors)
            for (name, (image, mask)), inside in zip(self._slices.items(), predicted, strict=True)
        }


def overlay_slices(dataset: Dataset, config: Config, count: int = SLICES) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Choose held-out slices to watch: in each scan the one with the most labels, and the largest area among these.

    Args:
        dataset: config.data.fold is used.
        config: the experiment.
        count: maximum number of slices, each from another scan, preferably from different patients.

    Returns:
        {name: (image float32 [H, W, K * C] in [0, 1], mask float32 [H, W, L])}, or for a 3-D model (image
        [D, H, W, C], mask [D, H, W, L]), where labels and area of the middle slice count.
    """
    scans = dataset.scans_of([config.data.fold], config.data.exclude_scans)
    chosen = sorted(_most_labels_first(scans)[:count], key=lambda scan: scan.id)
    most = _most_shown(_windows_of(chosen, dataset, config))
    shown = {}
    for scan in chosen:
        number, window = most[scan.id]
        slices = scan.shape[AXES[config.data.plane][0]]
        position = f"patch {number}" if config.data.patch else f"slice {number} of {slices}"
        shown[f"{scan.id}, {position}"] = window
    return shown


def overlay_picture(
    plane: np.ndarray, reference: np.ndarray, predicted: np.ndarray, colors: Sequence[tuple[int, int, int]]
) -> np.ndarray:
    """Draw a slice twice, side by side, with outlines of the reference and of the prediction.

    Args:
        plane: float [H, W] in [0, 1].
        reference, predicted: bool [H, W, L].
        colors: (red, green, blue) of each label.

    Returns:
        uint8 [h, w, 3] RGB; each half shows the plane enlarged by an integer factor to at least 256 pixels in height.
    """
    scale = max(1, math.ceil(_SMALLEST / plane.shape[0]))
    gray = np.clip(np.rint(plane * 255), 0, 255).astype(np.uint8)
    gray = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    halves = []
    for masks in (reference, predicted):
        half = cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB)
        draw_outlines(half, np.moveaxis(masks, -1, 0), colors)
        halves.append(half)
    return np.concatenate(halves, 1)


def _most_labels_first(scans: list[ScanEntry]) -> list[ScanEntry]:
    """Sort scans by their number of labels and labeled slices; each patient's best scan precedes any second one."""

    def rank(scan):
        shown = [count for count in scan.label_slices.values() if count]
        return -len(shown), -sum(shown), scan.id

    by_rank = sorted(scans, key=rank)
    first = {scan.case: scan for scan in reversed(by_rank)}
    return sorted(by_rank, key=lambda scan: scan is not first[scan.case])


def _windows_of(
    scans: list[ScanEntry], dataset: Dataset, config: Config
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield the windows of a few held-out scans, in order for each scan, without the padding of the last batch."""
    # Read only the shards of these scans, in one pass: building the pipeline's graph takes longer than a few windows.
    shards = tuple(shard for shard in dataset.shards if any(scan in shard.scans for scan in scans))
    others = tuple(other.id for shard in shards for other in shard.scans if other not in scans)
    data = config.data.model_copy(update={"exclude_scans": others})
    alone = replace(dataset, shards=shards), config.model_copy(update={"data": data})
    for batch in validation_windows(*alone, named=True).as_numpy_iterator():
        for image, mask, weight, name in zip(*batch, strict=True):
            if weight:
                yield name.decode(), image, mask


def _most_shown(
    windows: Iterable[tuple[str, np.ndarray, np.ndarray]],
) -> dict[str, tuple[int, tuple[np.ndarray, np.ndarray]]]:
    """Find in each scan the window with the most labels in its middle slice, and its number, counted from 1."""
    best: dict[str, tuple[int, tuple[np.ndarray, np.ndarray]]] = {}
    most: dict[str, tuple[int, int]] = {}
    numbers: Counter[str] = Counter()
    for scan, image, mask in windows:
        numbers[scan] += 1
        areas = (_middle(mask) > 0).sum((0, 1))
        shown = int(np.count_nonzero(areas)), int(areas.sum())
        if shown > most.get(scan, (-1, -1)):
            best[scan], most[scan] = (numbers[scan], (image.copy(), mask.copy())), shown
    return best


def _middle_plane(image: np.ndarray, channels: int) -> np.ndarray:
    """Select the first channel of the middle slice, [H, W], of a window [H, W, K * C] or a patch [D, H, W, C]."""
    plane = _middle(image)
    return plane[..., plane.shape[-1] // channels // 2 * channels]


def _middle(volume: np.ndarray) -> np.ndarray:
    """Select the middle slice of [D, H, W, C]; return [H, W, C] unchanged."""
    return volume[volume.shape[0] // 2] if volume.ndim == 4 else volume

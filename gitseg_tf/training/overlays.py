"""Pictures of the same held-out slices in each epoch: the reference's outlines beside the network's."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

import cv2
import numpy as np
import tf_keras as keras

from gitseg_tf.config import Config
from gitseg_tf.data.contours import draw_outlines
from gitseg_tf.data.dataset import Dataset, ScanEntry
from gitseg_tf.data.pipeline import validation_windows

SLICES = 4
_SMALLEST = 256


class Overlays(keras.callbacks.Callback):
    """Draws a few held-out slices after each validation, with the weights that were validated.

    `pictures` holds the newest: {"case1_day0, slice 5 of 8": uint8 [h, w, 3] RGB}, the reference on the left, what the
    network finds on the right. The slices hang on the dataset and the config alone, so that a resumed run shows the
    same ones.

    Args:
        dataset: config.data.fold is shown.
        config: the experiment.
    """

    def __init__(self, dataset: Dataset, config: Config):
        super().__init__()
        self._dataset, self._config = dataset, config
        self._slices: dict[str, tuple[np.ndarray, np.ndarray]] | None = None
        self.pictures: dict[str, np.ndarray] = {}

    def on_train_begin(self, logs=None):
        self._slices = overlay_slices(self._dataset, self._config)

    def on_test_end(self, logs=None):
        threshold = self._config.evaluation.threshold
        windows = np.stack([image for image, _ in self._slices.values()])
        # Not traced, for it is a handful of slices.
        outputs = self.model(windows, training=False)
        logits = (outputs["logits"] if isinstance(outputs, dict) else outputs).numpy()
        found = logits >= math.log(threshold / (1 - threshold))
        self.pictures = {
            name: overlay_picture(_middle(image)[..., image.shape[-1] // 2], _middle(mask) > 0, _middle(inside))
            for (name, (image, mask)), inside in zip(self._slices.items(), found, strict=True)
        }


def overlay_slices(dataset: Dataset, config: Config, count: int = SLICES) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Choose the held-out slices that are worth watching.

    Args:
        dataset: config.data.fold is used.
        config: the experiment.
        count: how many slices at most, each of another scan, other patients first.

    Returns:
        {name: (image float32 [H, W, K] in [0, 1], mask float32 [H, W, 3])}, of a 3-D model (image [D, H, W, 1], mask
        [D, H, W, 3]): of each scan the window with most organs in its middle slice, of these the largest ones.
    """
    scans = dataset.scans_of([config.data.fold], config.data.exclude_scans)
    chosen = sorted(_most_organs_first(scans)[:count], key=lambda scan: scan.id)
    most = _most_shown(_windows_of(chosen, dataset, config))
    shown = {}
    for scan in chosen:
        number, window = most[scan.id]
        place = f"patch {number}" if config.data.patch else f"slice {number} of {scan.shape[0]}"
        shown[f"{scan.id}, {place}"] = window
    return shown


def overlay_picture(plane: np.ndarray, reference: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Draw a slice twice, side by side: with the reference's outlines, and with the predicted ones.

    Args:
        plane: float [H, W] in [0, 1].
        reference, predicted: bool [H, W, 3].

    Returns:
        uint8 [h, w, 3] RGB: each half the plane enlarged by a whole number to at least 256 pixels in height.
    """
    scale = max(1, math.ceil(_SMALLEST / plane.shape[0]))
    grey = np.clip(np.rint(plane * 255), 0, 255).astype(np.uint8)
    grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    halves = []
    for masks in (reference, predicted):
        half = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
        draw_outlines(half, np.moveaxis(masks, -1, 0))
        halves.append(half)
    return np.concatenate(halves, 1)


def _most_organs_first(scans: list[ScanEntry]) -> list[ScanEntry]:
    """By the number of organs and of slices that show one; of each patient the best scan before any second one."""

    def rank(scan):
        shown = [count for count in scan.organ_slices.values() if count]
        return -len(shown), -sum(shown), scan.id

    by_rank = sorted(scans, key=rank)
    first = {scan.case: scan for scan in reversed(by_rank)}
    return sorted(by_rank, key=lambda scan: scan is not first[scan.case])


def _windows_of(
    scans: list[ScanEntry], dataset: Dataset, config: Config
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The windows of a few held-out scans, those of each in order, without what fills up the last batch."""
    # Of their shards alone; and in one go, for to build the graph of the windows takes longer than to make a few.
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
    """Of each scan the window with most of the organs in its middle slice, and its number, counted from 1."""
    best, most, numbers = {}, {}, Counter()
    for scan, image, mask in windows:
        numbers[scan] += 1
        areas = (_middle(mask) > 0).sum((0, 1))
        shown = np.count_nonzero(areas), areas.sum()
        if shown > most.get(scan, (-1, -1)):
            best[scan], most[scan] = (numbers[scan], (image.copy(), mask.copy())), shown
    return best


def _middle(volume: np.ndarray) -> np.ndarray:
    """The middle slice of [D, H, W, C]; [H, W, C] as it is."""
    return volume[volume.shape[0] // 2] if volume.ndim == 4 else volume

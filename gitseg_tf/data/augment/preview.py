"""A preview image of the augmentation: the same four windows, changed by each transform in turn."""

from dataclasses import replace

import cv2
import numpy as np

from gitseg_tf.config import Config
from gitseg_tf.config.augment import AugmentConfig
from gitseg_tf.core.paths import AnyPath, write_atomically
from gitseg_tf.data.augment.opencv import HostAugment, pack_masks
from gitseg_tf.data.augment.parameters import draw
from gitseg_tf.data.pipeline.batches import training_windows
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.data.tfrecords.verify import naming_damaged_shards

_WINDOWS, _TILE, _GAP, _TEXT = 4, 150, 6, 24
_INK, _BACKGROUND = (235, 235, 235), (20, 18, 18)
# A tilt moves slices relative to each other, so a picture of one slice cannot show it.
_TRANSFORMS = [name for name in AugmentConfig.model_fields if name not in ("backend", "tensorflow_warp", "tilt")]


def save_augment_preview(path: AnyPath, dataset: Dataset, config: Config) -> None:
    """Draw how each transform changes windows of a dataset, with the ranges of a config.

    Args:
        path: the 8-bit PNG to write; an existing file is replaced.
        dataset: windows of its training folds are shown.
        config: windows and ranges; every transform is shown, regardless of its probability.

    Raises:
        DataError: no window to show.
        ConfigError: data.labels or data.intensity does not fit the dataset.
    """
    config = config.for_dataset(dataset.labels, dataset.channels, getattr(dataset, "intensities", None))
    image, mask = _windows(dataset, config)
    blocks = [_block("unchanged", image, mask, config)]
    for name in _TRANSFORMS:
        augmented, augmented_mask = _augmented(image, mask, name, config)
        blocks.append(_block(name.replace("_", " "), augmented, augmented_mask, config))
    if len(blocks) % 2:
        blocks.append(np.full_like(blocks[0], _BACKGROUND))
    columns = [np.concatenate(blocks[start::2]) for start in (0, 1)]
    _, png = cv2.imencode(".png", np.concatenate(columns, 1), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    write_atomically(path, png.tobytes())


def _windows(dataset: Dataset, config: Config):
    """Select unchanged windows: those of the first batch that show the most labels."""
    data = config.data.model_copy(update={"batch_size": 32, "patch": None, "service": None})
    plain = AugmentConfig(backend="tensorflow")  # leaves the augmentation to the training step
    dataset = replace(dataset, teacher=None)  # shows only the annotation
    batches = training_windows(dataset, config.model_copy(update={"data": data, "augment": plain}))
    with naming_damaged_shards(dataset):
        image, mask = next(batches.as_numpy_iterator())
    best = np.argsort(-(mask > 0).any((1, 2)).sum(-1), kind="stable")[:_WINDOWS]
    return image[best], mask[best]


def _augmented(image, mask, name: str, config: Config):
    import tensorflow as tf

    off = {other: {"p": 0.0} for other in _TRANSFORMS}
    augment = AugmentConfig(**off | {name: getattr(config.augment, name).model_dump() | {"p": 1.0}})
    height, width = image.shape[1:3]
    parameters = draw(_WINDOWS, height, width, tf.constant([config.seed, 1], tf.int64), augment)
    bits, annotated = pack_masks(mask)
    planes = np.ascontiguousarray(np.rint(np.moveaxis(image, -1, 1) * 65535).astype(np.uint16))[:, :, None]
    arrays = {key: value.numpy() for key, value in parameters.items()}
    host = HostAugment(augment, height, width, labels=mask.shape[-1], volumetric=False)
    return host(planes, bits, annotated, arrays)


def _block(title: str, image, mask, config: Config) -> np.ndarray:
    channels = image.shape[-1] // config.data.window_slices
    middle = config.data.window_slices // 2 * channels
    tiles = [_tile(plane, labels, config) for plane, labels in zip(image[..., middle], mask, strict=True)]
    row = np.concatenate(tiles, 1)
    row = cv2.copyMakeBorder(row, _TEXT, _GAP, _GAP, _GAP, cv2.BORDER_CONSTANT, value=_BACKGROUND)
    cv2.putText(row, title, (_GAP + 2, _TEXT - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.5, _INK, 1, cv2.LINE_AA)
    return row


def _tile(plane, mask, config: Config) -> np.ndarray:
    gray = cv2.resize(np.clip(plane * 255, 0, 255).astype(np.uint8), (_TILE, _TILE), interpolation=cv2.INTER_AREA)
    tile = cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR)
    for k, color in enumerate(config.label_set.colors):
        inside = (cv2.resize(mask[..., k], (_TILE, _TILE)) >= 0.5).astype(np.uint8)
        outline, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tile, outline, -1, color[::-1], 1)
    return cv2.copyMakeBorder(tile, 0, 0, 0, 2, cv2.BORDER_CONSTANT, value=_BACKGROUND)

"""A picture of each change: the same four windows, changed by one transform a row."""

import cv2
import numpy as np

from gitseg_tf.config import Config
from gitseg_tf.data.augment.draws import draw
from gitseg_tf.data.augment.host import HostAugment
from gitseg_tf.data.dataset import Dataset
from gitseg_tf.data.pipeline import training_windows
from gitseg_tf.data.scans import ORGAN_COLORS
from gitseg_tf.data.verify import naming_damaged_shards
from gitseg_tf.files import AnyPath, write_atomically
from gitseg_tf.sections.augment import AugmentConfig

_WINDOWS, _TILE, _GAP, _TEXT = 4, 150, 6, 24
_INK, _BACKGROUND = (235, 235, 235), (20, 18, 18)
_TRANSFORMS = [name for name in AugmentConfig.model_fields if name not in ("on", "accelerator_warp")]


def save_augment_preview(path: AnyPath, dataset: Dataset, config: Config) -> None:
    """Draw what each transform does to windows of a dataset, with the ranges of a config.

    Args:
        path: the PNG, 8 bit, replaced if it is there.
        dataset: its training folds are shown.
        config: windows and ranges; every transform is shown, whatever its probability.

    Raises:
        InputError: no window to show.
    """
    image, mask = _windows(dataset, config)
    blocks = [_block("as it is", image, mask)]
    for name in _TRANSFORMS:
        blocks.append(_block(name.replace("_", " "), *_changed(image, mask, name, config)))
    if len(blocks) % 2:
        blocks.append(np.full_like(blocks[0], _BACKGROUND))
    columns = [np.concatenate(blocks[start::2]) for start in (0, 1)]
    _, png = cv2.imencode(".png", np.concatenate(columns, 1), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    write_atomically(path, png.tobytes())


def _windows(dataset: Dataset, config: Config):
    """Windows as they are, those that show most of the organs among the first of an epoch."""
    data = config.data.model_copy(update={"batch_size": 32, "patch": None, "service": None})
    plain = AugmentConfig(on="accelerator")  # changed nowhere, for there is no training step here
    batches = training_windows(dataset, config.model_copy(update={"data": data, "augment": plain}))
    with naming_damaged_shards(dataset):
        image, mask = next(batches.as_numpy_iterator())
    best = np.argsort(-mask.any((1, 2)).sum(-1), kind="stable")[:_WINDOWS]
    return image[best], mask[best]


def _changed(image, mask, name: str, config: Config):
    import tensorflow as tf

    off = {other: {"p": 0.0} for other in _TRANSFORMS}
    augment = AugmentConfig(**off | {name: getattr(config.augment, name).model_dump() | {"p": 1.0}})
    height, width = image.shape[1:3]
    drawn = draw(_WINDOWS, height, width, tf.constant([config.seed, 1], tf.int64), augment)
    bits = sum(mask[..., k].astype(np.uint8) << k for k in range(mask.shape[-1]))[:, None]
    planes = np.ascontiguousarray(np.rint(np.moveaxis(image, -1, 1) * 65535).astype(np.uint16))
    arrays = {key: value.numpy() for key, value in drawn.items()}
    return HostAugment(augment, height, width, volumetric=False)(planes, bits, arrays)


def _block(title: str, image, mask) -> np.ndarray:
    tiles = [_tile(*window) for window in zip(image[..., image.shape[-1] // 2], mask, strict=True)]
    row = np.concatenate(tiles, 1)
    row = cv2.copyMakeBorder(row, _TEXT, _GAP, _GAP, _GAP, cv2.BORDER_CONSTANT, value=_BACKGROUND)
    cv2.putText(row, title, (_GAP + 2, _TEXT - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.5, _INK, 1, cv2.LINE_AA)
    return row


def _tile(plane, mask) -> np.ndarray:
    grey = cv2.resize(np.clip(plane * 255, 0, 255).astype(np.uint8), (_TILE, _TILE), interpolation=cv2.INTER_AREA)
    tile = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
    for k, colour in enumerate(ORGAN_COLORS.values()):
        inside = (cv2.resize(mask[..., k], (_TILE, _TILE)) >= 0.5).astype(np.uint8)
        outline, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tile, outline, -1, colour[::-1], 1)
    return cv2.copyMakeBorder(tile, 0, 0, 0, 2, cv2.BORDER_CONSTANT, value=_BACKGROUND)

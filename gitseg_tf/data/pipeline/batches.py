"""Batches for training and validation with tf.data."""

import math

import cv2
import numpy as np
import tensorflow as tf

from gitseg_tf.config import Config
from gitseg_tf.config.augment import AugmentConfig
from gitseg_tf.config.data import DataConfig
from gitseg_tf.data.augment.opencv import HostAugment
from gitseg_tf.data.augment.parameters import draw
from gitseg_tf.data.pipeline.epochs import numbered_batches, steps_per_epoch
from gitseg_tf.data.pipeline.planes import entries_in_plane
from gitseg_tf.data.pipeline.tiles import count_tiles, validation_tiles
from gitseg_tf.data.pipeline.windows import Layout, fits_in_memory, layout_of, prepared_scans, windows_at
from gitseg_tf.data.tfrecords.dataset import Dataset

# AutoGraph would take seconds to rewrite these functions, and none of them branches on a tensor in Python.
_as_written = tf.autograph.experimental.do_not_convert


@_as_written
def training_windows(dataset: Dataset, config: Config, first_epoch: int = 0, first_step: int = 0) -> tf.data.Dataset:
    """Yield shuffled training batches, epoch by epoch; augmented unless augment.backend is tensorflow.

    The batches depend only on config.seed, the epoch, and whether the scans fit in data.cache_mib, so that a resumed
    run sees the same batches. With data.service the windows of an epoch are the same, but their order and their
    augmentation differ from run to run.

    Args:
        dataset: all folds but config.data.fold are used, without data.exclude_scans.
        config: the experiment.
        first_epoch: earlier epochs are skipped.
        first_step: number of batches of the first epoch to skip.

    Returns:
        Dataset of (image, mask) with `steps_per_epoch` batches per epoch, all of the same size B: image float32
        [B, H, W, K * C] in [0, 1], starting with all channels of the first slice; mask float32 [B, H, W, L], 0 or 1, or
        -1 where a voxel is ignored or the label is not annotated in the scan. With data.patch, image [B, D, H, W, C]
        and mask [B, D, H, W, L] around one in D of those slices at random, so that an epoch shows a slice about once.
        With a teacher (see `learns_from_teacher`), its probabilities follow the L channels of the mask as L more.

    Raises:
        DataError: no such fold, or no window to train on.
        ConfigError: the config does not fit this dataset, see `Config.for_dataset`.
    """
    batches = numbered_batches(dataset, config, first_epoch=first_epoch, first_step=first_step)
    on_host = config.augment.backend == "opencv"
    finish = _finish(
        layout_of(dataset, config, training=True), config.data, config.augment if on_host else None, config.seed
    )
    return _with_options(batches.map(finish, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True))


@_as_written
def training_batch(dataset: Dataset, config: Config, epoch: int, step: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Reproduce one training batch and list its scans; not possible with data.service.

    Args:
        dataset, config: as for `training_windows`.
        epoch, step: counted from 0.

    Returns:
        The sorted, unique ids of its scans; image and mask as `training_windows` yields them.
    """
    batches = numbered_batches(dataset, config, first_epoch=epoch, first_step=step, named=True).take(1)
    augment = config.augment if config.augment.backend == "opencv" else None
    finish = _finish(layout_of(dataset, config, training=True), config.data, augment, config.seed)
    (batch,) = batches.map(lambda number, windows: (windows["id"], *finish(number, windows))).as_numpy_iterator()
    ids, image, mask = batch
    return sorted({name.decode() for name in ids}), image, mask


@_as_written
def sample_windows(dataset: Dataset, config: Config, count: int) -> tuple[list[str], np.ndarray]:
    """Sample windows of the training folds as prediction would prepare them, without augmentation.

    Args:
        dataset: all folds but config.data.fold are used, without data.exclude_scans.
        config: the experiment; the choice depends on its seed.
        count: number of windows; fewer are returned if an epoch has fewer.

    Returns:
        The sorted, unique ids of their scans, and float32 [N, H, W, K * C], or [N, D, H, W, C] with data.patch.

    Raises:
        DataError: no such fold, or no window to train on.
    """
    # Do not read ahead further than needed, and do not fill a cache that is used only once.
    few = {"batch_size": 1, "shuffle_buffer": count, "cache_mib": 0, "service": None}
    config = config.model_copy(update={"data": config.data.model_copy(update=few)})
    batches = numbered_batches(dataset, config, first_epoch=0, first_step=0, named=True)
    batches = batches.take(min(count, steps_per_epoch(dataset, config)))
    finish = _finish(layout_of(dataset, config, training=True), config.data, None, config.seed)
    samples = batches.map(lambda number, windows: (windows["id"], finish(number, windows)[0])).as_numpy_iterator()
    ids, images = zip(*samples, strict=True)
    return sorted({name.decode() for (name,) in ids}), np.concatenate(images)


@_as_written
def validation_windows(dataset: Dataset, config: Config, named: bool = False) -> tf.data.Dataset:
    """Yield batches with every slice of the held-out fold once; with data.patch, patches that count each voxel once.

    Args:
        dataset: config.data.fold is used.
        config: the experiment.
        named: also yield the scan id of each sample.

    Returns:
        Dataset of (image, mask, weight float32 [B]), image and mask as in `training_windows`, or with `named` (image,
        mask, weight, scan ids, string [B]). The last batch is padded with samples of weight 0, so that shapes are
        static. With data.patch, the mask is -1 at voxels that another patch already counts.

    Raises:
        DataError: no such fold.
        ConfigError: the config does not fit this dataset, see `Config.for_dataset`.
    """
    data = config.data
    dataset.check_fold(data.fold)
    layout = layout_of(dataset, config)
    scans = prepared_scans(tf.data.Dataset.from_tensor_slices(dataset.paths_of([data.fold])), dataset, config)
    if fits_in_memory(dataset, [data.fold], config):
        scans = scans.cache()
    if data.patch is None:
        windows = scans.flat_map(
            lambda scan: windows_at(scan, tf.range(tf.shape(scan["image"])[0]), layout, data, seed=0, named=named)
        )
    else:
        windows = scans.flat_map(lambda scan: validation_tiles(scan, data, named))
    windows = windows.map(lambda window: window | {"weight": 1.0})
    blank = {name: tf.zeros(spec.shape, spec.dtype) for name, spec in windows.element_spec.items()}
    blank["annotated"] = tf.ones([layout.labels], tf.bool)
    missing = -validation_samples(dataset, config) % data.batch_size
    windows = windows.concatenate(tf.data.Dataset.from_tensors(blank).repeat(missing))
    finish = _finish(layout, data, None, 0)

    def finish_weighted(number, windows):
        image, mask = finish(number, windows)
        if "counted" in windows:
            mask = tf.where(windows["counted"][..., None], mask, -1.0)
        weighted = image, mask, windows["weight"]
        return (*weighted, windows["id"]) if named else weighted

    batches = windows.batch(data.batch_size, drop_remainder=True).enumerate()
    return _with_options(batches.map(finish_weighted, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True))


def validation_samples(dataset: Dataset, config: Config) -> int:
    """Count the windows or patches of a validation, without padding.

    Raises:
        DataError: no such fold.
    """
    data = config.data
    dataset.check_fold(data.fold)
    scans = entries_in_plane(dataset, dataset.scans_of([data.fold], data.exclude_scans), data.plane)
    if data.patch is None:
        return sum(scan.shape[0] for scan in scans)
    return sum(count_tiles(scan.shape[0], scan.spacing, data) for scan in scans)


def validation_steps(dataset: Dataset, config: Config) -> int:
    """Count the validation batches: `validation_samples`, rounded up to whole batches.

    Raises:
        DataError: no such fold.
    """
    return math.ceil(validation_samples(dataset, config) / config.data.batch_size)


def _finish(layout: Layout, data: DataConfig, augment: AugmentConfig | None, seed: int):
    """Build the function that converts a batch of windows to (image, mask) in float32, with augmentation if given."""
    cv2.setNumThreads(1)  # tf.data runs several batches at once
    height, width = data.input_size if data.patch is None else data.patch[1:]
    host = HostAugment(
        augment or AugmentConfig(),
        height,
        width,
        labels=layout.labels,
        volumetric=data.patch is not None,
        levels=layout.levels,
        ignore_per_label=layout.pseudo,
    )

    def finish(number, windows):
        parameters = draw(data.batch_size, height, width, tf.stack([seed, number]), augment) if augment else {}
        names = sorted(parameters)
        image, mask = tf.numpy_function(
            lambda planes, bits, annotated, *values: host(
                planes, bits, annotated, dict(zip(names, values, strict=True))
            ),
            [windows["planes"], windows["bits"], windows["annotated"], *[parameters[name] for name in names]],
            [tf.float32, tf.float32],
            stateful=False,
        )
        if data.patch is None:
            plane, channels = [*data.input_size], data.window_slices * layout.channels
        else:
            plane, channels = [*data.patch], layout.channels
        return tuple(
            tf.ensure_shape(part, [data.batch_size, *plane, last])
            for part, last in ((image, channels), (mask, layout.targets))
        )

    return finish


def _with_options(batches: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    # One reader feeds all replicas of a machine. Each of several machines reads everything and keeps its part, so that
    # the global batch does not depend on the number of machines.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    options.threading.max_intra_op_parallelism = 1
    return batches.prefetch(2).with_options(options)

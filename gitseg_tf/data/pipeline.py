"""From shards to batches with tf.data."""

import math

import tensorflow as tf

from gitseg_tf.config import Config
from gitseg_tf.data.augment import augment
from gitseg_tf.data.dataset import Dataset, ScanEntry
from gitseg_tf.data.geometry import letterbox, normalize, stack_windows, window_indices
from gitseg_tf.data.records import parse_scan
from gitseg_tf.data.scans import ORGANS
from gitseg_tf.errors import InputError

_SCANS_AT_ONCE = 16
_FILES_AT_ONCE = 8


def training_windows(dataset: Dataset, config: Config, first_epoch: int = 0) -> tf.data.Dataset:
    """Shuffled, augmented batches, one epoch after the other.

    What comes out depends on config.seed and the epoch alone, so that a resumed run sees what it would have seen.

    Args:
        dataset: all folds but config.data.fold are used.
        config: the experiment.
        first_epoch: epochs before it are left out.

    Returns:
        Dataset of (image float32 [B, H, W, K] in [0, 1], mask float32 [B, H, W, 3]), B always the same:
        `steps_per_epoch` batches an epoch.

    Raises:
        InputError: no such fold, or no window to train on.
    """
    data, folds = config.data, dataset.training_folds(config.data.fold)
    steps = steps_per_epoch(dataset, config)
    files = tf.data.Dataset.from_tensor_slices(dataset.paths_of(folds))
    fits = _fits_in_memory(dataset, folds, config)
    in_memory = _prepared_scans(files, config).cache() if fits else None

    def one_epoch(epoch):
        # The seed of this function's graph alone: the order of the data must not hang on the process's global seed.
        tf.random.set_seed(config.seed + 1)
        seed = config.seed + 7919 * (epoch + 1)
        if fits:
            scans = in_memory.shuffle(len(dataset.scans_of(folds)), seed=seed, reshuffle_each_iteration=False)
        else:
            shuffled_files = files.shuffle(len(files), seed=seed, reshuffle_each_iteration=False)
            scans = _prepared_scans(shuffled_files, config)
            scans = scans.shuffle(_SCANS_AT_ONCE, seed=seed, reshuffle_each_iteration=False)
        windows = scans.interleave(
            lambda scan: _random_windows(scan, seed, data.empty_slices),
            cycle_length=_SCANS_AT_ONCE,
            num_parallel_calls=2,
            deterministic=True,
        )
        windows = windows.shuffle(data.shuffle_windows, seed=seed, reshuffle_each_iteration=False)
        return windows.repeat().take(steps * data.batch_size)

    def finish(number, window):
        image, mask = _as_sample(window)
        return augment(image, mask, tf.stack([tf.constant(config.seed, tf.int64), number]), config.augment)

    windows = tf.data.Dataset.range(first_epoch, config.training.epochs).flat_map(one_epoch)
    windows = windows.enumerate(start=first_epoch * steps * data.batch_size)
    samples = windows.map(finish, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return _batched(samples, data.batch_size)


def validation_windows(dataset: Dataset, config: Config) -> tf.data.Dataset:
    """Every slice of the held-out fold exactly once.

    Args:
        dataset: config.data.fold is used.
        config: the experiment.

    Returns:
        Dataset of (image, mask, weight float32 [B]) as `training_windows`; the last batch is filled up with samples of
        weight 0, so that shapes are static.

    Raises:
        InputError: no such fold.
    """
    data = config.data
    dataset.check_fold(data.fold)
    scans = _prepared_scans(tf.data.Dataset.from_tensor_slices(dataset.paths_of([data.fold])), config)
    if _fits_in_memory(dataset, [data.fold], config):
        scans = scans.cache()
    samples = scans.flat_map(lambda scan: _windows_at(scan, tf.range(tf.shape(scan["image"])[0], dtype=tf.int64)))
    samples = samples.map(lambda window: (*_as_sample(window), 1.0), num_parallel_calls=tf.data.AUTOTUNE)
    slices = sum(scan.shape[0] for scan in dataset.scans_of([data.fold]))
    filler = (tf.zeros([*data.size, data.slices]), tf.zeros([*data.size, len(ORGANS)]), 0.0)
    samples = samples.concatenate(tf.data.Dataset.from_tensors(filler).repeat(-slices % data.batch_size))
    return _batched(samples, data.batch_size)


def steps_per_epoch(dataset: Dataset, config: Config) -> int:
    """Training batches in an epoch.

    Args:
        dataset: all folds but config.data.fold count.
        config: the experiment.

    Returns:
        The number of whole batches of the windows that an epoch shows. Windows that do not fill one batch are repeated
        until they do.

    Raises:
        InputError: no window at all.
    """
    scans = dataset.scans_of(dataset.training_folds(config.data.fold))
    windows = sum(_windows_in_epoch(scan, config.data.empty_slices) for scan in scans)
    if not windows:
        raise InputError(f"{dataset.root}: no slice shows an organ and data.empty_slices is 0; nothing to train on")
    return max(windows // config.data.batch_size, 1)


def validation_steps(dataset: Dataset, config: Config) -> int:
    """Validation batches: all slices of the held-out fold, rounded up.

    Raises:
        InputError: no such fold.
    """
    dataset.check_fold(config.data.fold)
    return math.ceil(sum(scan.shape[0] for scan in dataset.scans_of([config.data.fold])) / config.data.batch_size)


def _prepared_scans(files: tf.data.Dataset, config: Config) -> tf.data.Dataset:
    """Scans at the model's size, from several shards at a time."""
    records = files.interleave(
        tf.data.TFRecordDataset, cycle_length=_FILES_AT_ONCE, num_parallel_calls=_FILES_AT_ONCE, deterministic=True
    )
    return records.map(lambda record: _prepare(parse_scan(record), config), num_parallel_calls=2, deterministic=True)


def _fits_in_memory(dataset: Dataset, folds, config: Config) -> bool:
    slices = sum(scan.shape[0] for scan in dataset.scans_of(folds))
    bytes_per_pixel = 3  # float16 and a byte of organ bits
    return slices * config.data.size[0] * config.data.size[1] * bytes_per_pixel <= config.data.cache_mib << 20


def _prepare(scan: dict, config: Config) -> dict:
    """Normalise and resize once a scan, not once a window: neighbouring windows share slices."""
    size = config.data.size
    image = letterbox(normalize(scan["image"], scan["percentiles"])[..., None], size)[..., 0]
    return {
        "id": scan["id"],
        # Before resizing, which may lose an organ of a few pixels: dataset.json counts these slices, so do the steps.
        "filled": tf.reduce_any(scan["bits"] > 0, axis=[1, 2]),
        "image": tf.cast(image, tf.float16),
        "bits": _resize_bits(scan["bits"], size),
        "windows": window_indices(scan["numbers"], config.data.slices, config.data.stride),
    }


def _resize_bits(bits, size: tuple[int, int]):
    """Resize each organ's mask linearly and cut at one half; one organ at a time, to spare memory."""
    resized = tf.zeros([tf.shape(bits)[0], *size], tf.uint8)
    for k in range(len(ORGANS)):
        organ = tf.cast(tf.bitwise.bitwise_and(bits, 1 << k) > 0, tf.float32)
        inside = letterbox(organ[..., None], size)[..., 0] >= 0.5
        resized = tf.bitwise.bitwise_or(resized, tf.cast(inside, tf.uint8) * (1 << k))
    return resized


def _windows_in_epoch(scan: ScanEntry, empty_share: float) -> int:
    return scan.shape[0] - scan.empty_slices + math.floor(empty_share * scan.empty_slices + 0.5)


def _random_windows(scan: dict, seed, empty_share: float) -> tf.data.Dataset:
    """The windows of a scan in random order: all that show an organ, and a share of those that do not."""
    empty = tf.reshape(tf.where(~scan["filled"]), [-1])
    kept = tf.cast(tf.floor(empty_share * tf.cast(tf.size(empty), tf.float64) + 0.5), tf.int32)
    start = tf.cast(tf.strings.to_hash_bucket_fast(scan["id"], 2**31 - 1), tf.int64)
    draw = tf.stack([seed, start])
    empty = tf.random.experimental.stateless_shuffle(empty, draw)[:kept]
    order = tf.concat([tf.reshape(tf.where(scan["filled"]), [-1]), empty], 0)
    return _windows_at(scan, tf.random.experimental.stateless_shuffle(order, draw + 1))


def _windows_at(scan: dict, order) -> tf.data.Dataset:
    def window(z):
        return {"image": stack_windows(scan["image"], scan["windows"][z][None])[0], "bits": scan["bits"][z]}

    return tf.data.Dataset.from_tensor_slices(order).map(window)


def _as_sample(window: dict):
    bits = window["bits"][..., None]
    mask = tf.bitwise.bitwise_and(tf.bitwise.right_shift(bits, tf.constant([*range(len(ORGANS))], tf.uint8)), 1)
    return tf.cast(window["image"], tf.float32), tf.cast(mask, tf.float32)


def _batched(samples: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
    options = tf.data.Options()
    # One reader feeds all replicas of a machine; several machines each read everything and keep their share, so that
    # the global batch is the same for any number of machines.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    options.threading.max_intra_op_parallelism = 1
    batches = samples.batch(batch_size, drop_remainder=True, num_parallel_calls=tf.data.AUTOTUNE)
    return batches.prefetch(2).with_options(options)

"""From shards to batches with tf.data."""

import math

import cv2
import numpy as np
import tensorflow as tf

from gitseg_tf.config import Config
from gitseg_tf.data.augment.draws import draw
from gitseg_tf.data.augment.host import HostAugment
from gitseg_tf.data.dataset import Dataset, ScanEntry
from gitseg_tf.data.geometry import normalize, patch_indices, place, to_model, window_indices, window_offsets
from gitseg_tf.data.records import parse_scan
from gitseg_tf.data.scans import ORGANS
from gitseg_tf.data.service import distribute
from gitseg_tf.data.tiles import count_tiles, scan_tiles, validation_tiles
from gitseg_tf.errors import InputError
from gitseg_tf.sections.augment import AugmentConfig
from gitseg_tf.sections.data import DataConfig

_SCANS_AT_ONCE = 16
_FILES_AT_ONCE = 4
_SLICES_AT_ONCE = 16
_MOST_REPEATS = 10
# Autograph would rewrite these functions' sources, which takes seconds; none of them branches on a tensor in Python.
_as_written = tf.autograph.experimental.do_not_convert


@_as_written
def training_windows(dataset: Dataset, config: Config, first_epoch: int = 0, first_step: int = 0) -> tf.data.Dataset:
    """Shuffled batches, one epoch after the other; augmented, unless augment.on leaves that to the accelerator.

    What comes out depends on config.seed, the epoch and on whether the scans fit in data.cache_mib alone, so that a
    resumed run sees what it would have seen. With data.service the windows of an epoch are the same, in an order and
    with changes that differ from run to run.

    Args:
        dataset: all folds but config.data.fold are used, without data.exclude_scans.
        config: the experiment.
        first_epoch: epochs before it are left out.
        first_step: as many batches of the first epoch are left out.

    Returns:
        Dataset of (image float32 [B, H, W, K] in [0, 1], mask float32 [B, H, W, 3]), B always the same:
        `steps_per_epoch` batches an epoch. With data.patch, (image [B, D, H, W, 1], mask [B, D, H, W, 3]): around
        one in D of those slices, at random, so that an epoch shows a slice about once.

    Raises:
        InputError: no such fold, or no window to train on.
    """
    batches = _numbered_batches(dataset, config, first_epoch, first_step)
    on_host = config.augment.on == "host"
    finish = _finish(config.data, config.augment if on_host else None, config.seed)
    return _with_options(batches.map(finish, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True))


@_as_written
def training_batch(dataset: Dataset, config: Config, epoch: int, step: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """One batch of the training once more, with the scans that it shows; not with data.service.

    Args:
        dataset, config: as for `training_windows`.
        epoch, step: counted from 0.

    Returns:
        The ids of its scans, sorted, each once; image and mask as `training_windows` gave them.
    """
    batches = _numbered_batches(dataset, config, epoch, step, named=True).take(1)
    finish = _finish(config.data, config.augment if config.augment.on == "host" else None, config.seed)
    (made,) = batches.map(lambda number, windows: (windows["id"], *finish(number, windows))).as_numpy_iterator()
    ids, image, mask = made
    return sorted({name.decode() for name in ids}), image, mask


@_as_written
def sample_windows(dataset: Dataset, config: Config, count: int) -> tuple[list[str], np.ndarray]:
    """Windows of the training folds as prediction makes them, without random changes.

    Args:
        dataset: all folds but config.data.fold are used, without data.exclude_scans.
        config: the experiment; the choice depends on its seed.
        count: how many; fewer come where an epoch has fewer.

    Returns:
        The ids of the scans that they are of, sorted, each once, and float32 [N, H, W, K], or [N, D, H, W, 1] with
        data.patch.

    Raises:
        InputError: no such fold, or no window to train on.
    """
    # Read ahead no further than needed, and no scan for a cache that nobody fills.
    few = {"batch_size": 1, "shuffle_windows": count, "cache_mib": 0, "service": None}
    config = config.model_copy(update={"data": config.data.model_copy(update=few)})
    batches = _numbered_batches(dataset, config, 0, 0, named=True).take(min(count, steps_per_epoch(dataset, config)))
    finish = _finish(config.data, None, config.seed)
    made = batches.map(lambda number, windows: (windows["id"], finish(number, windows)[0])).as_numpy_iterator()
    ids, images = zip(*made, strict=True)
    return sorted({name.decode() for (name,) in ids}), np.concatenate(images)


@_as_written
def validation_windows(dataset: Dataset, config: Config, named: bool = False) -> tf.data.Dataset:
    """Every slice of the held-out fold exactly once; with data.patch, patches in which every voxel counts exactly once.

    Args:
        dataset: config.data.fold is used.
        config: the experiment.
        named: a fourth part says whose window it is.

    Returns:
        Dataset of (image, mask, weight float32 [B]) as `training_windows`, or with `named` (image, mask, weight, ids of
        the scans, string [B]); the last batch is filled up with samples of
        weight 0, so that shapes are static. With data.patch, the mask is -1 at voxels that another patch counts.

    Raises:
        InputError: no such fold.
    """
    data = config.data
    dataset.check_fold(data.fold)
    scans = _prepared_scans(tf.data.Dataset.from_tensor_slices(dataset.paths_of([data.fold])), config)
    if _fits_in_memory(dataset, [data.fold], config):
        scans = scans.cache()
    if data.patch is None:
        windows = scans.flat_map(lambda scan: _windows_at(scan, tf.range(tf.shape(scan["image"])[0]), data, 0, named))
    else:
        windows = scans.flat_map(lambda scan: validation_tiles(scan, data, named))
    windows = windows.map(lambda window: window | {"weight": 1.0})
    blank = {name: tf.zeros(spec.shape, spec.dtype) for name, spec in windows.element_spec.items()}
    missing = -validation_samples(dataset, config) % data.batch_size
    windows = windows.concatenate(tf.data.Dataset.from_tensors(blank).repeat(missing))
    finish = _finish(data, None, 0)

    def finish_weighted(number, windows):
        image, mask = finish(number, windows)
        if "counted" in windows:
            mask = tf.where(windows["counted"][..., None], mask, -1.0)
        made = image, mask, windows["weight"]
        return (*made, windows["id"]) if named else made

    batches = windows.batch(data.batch_size, drop_remainder=True).enumerate()
    return _with_options(batches.map(finish_weighted, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True))


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
    data = config.data
    windows = _windows_in_epoch(dataset.scans_of(dataset.training_folds(data.fold), data.exclude_scans), data)
    if not windows:
        raise InputError(f"{dataset.root}: no slice shows an organ and data.empty_slices is 0; nothing to train on")
    return max(windows // data.batch_size, 1)


def validation_samples(dataset: Dataset, config: Config) -> int:
    """Windows or patches of a validation, filler not counted.

    Raises:
        InputError: no such fold.
    """
    data = config.data
    dataset.check_fold(data.fold)
    scans = dataset.scans_of([data.fold], data.exclude_scans)
    if data.patch is None:
        return sum(scan.shape[0] for scan in scans)
    return sum(count_tiles(scan.shape[0], scan.spacing, data) for scan in scans)


def validation_steps(dataset: Dataset, config: Config) -> int:
    """Validation batches: the `validation_samples`, rounded up to whole ones.

    Raises:
        InputError: no such fold.
    """
    return math.ceil(validation_samples(dataset, config) / config.data.batch_size)


def _numbered_batches(
    dataset: Dataset, config: Config, first_epoch: int, first_step: int, named: bool = False
) -> tf.data.Dataset:
    """Batches of unfinished windows with their number in the whole training; `named` adds the scans' ids."""
    data, folds = config.data, dataset.training_folds(config.data.fold)
    steps = steps_per_epoch(dataset, config)
    paths = dataset.paths_of(folds)
    files = tf.data.Dataset.from_tensor_slices(paths)
    # A worker of a service would fill its cache anew in each epoch.
    fits = data.service is None and _fits_in_memory(dataset, folds, config)
    in_memory = _prepared_scans(files, config).cache() if fits else None
    used = dataset.scans_of(folds, data.exclude_scans)
    repeats = _organ_repeats(used, data.balance_organs)
    # As often as a batch needs; not without end, for tf.data would begin to read again before an epoch is over.
    rounds = math.ceil(steps * data.batch_size / _windows_in_epoch(used, data))

    def one_epoch(epoch):
        # The seed of this function's graph alone: the order of the data must not hang on the process's global seed.
        tf.random.set_seed(config.seed + 1)
        seed = config.seed + 7919 * (epoch + 1)
        if fits:
            scans = in_memory.shuffle(len(dataset.scans_of(folds)), seed=seed, reshuffle_each_iteration=False)
        else:
            shuffled_files = files.shuffle(len(paths), seed=seed, reshuffle_each_iteration=False)
            scans = _prepared_scans(shuffled_files, config)
            scans = scans.shuffle(_SCANS_AT_ONCE, seed=seed, reshuffle_each_iteration=False)
        windows = scans.interleave(
            lambda scan: _windows_at(scan, _random_order(scan, seed, data, repeats), data, seed, named),
            cycle_length=_SCANS_AT_ONCE,
            num_parallel_calls=2,
            deterministic=True,
        )
        windows = windows.shuffle(data.shuffle_windows, seed=seed, reshuffle_each_iteration=False)
        if data.service is not None:
            # Without end: the windows that a lost worker took along are made up for.
            return distribute(windows, data.service).repeat().take(steps * data.batch_size)
        return (windows.repeat(rounds) if rounds > 1 else windows).take(steps * data.batch_size)

    windows = tf.data.Dataset.range(first_epoch, config.training.epochs).flat_map(one_epoch)
    # Windows are left out before they are finished, which takes most of the time.
    batches = windows.skip(first_step * data.batch_size).batch(data.batch_size, drop_remainder=True)
    return batches.enumerate(start=first_epoch * steps + first_step)


def _prepared_scans(files: tf.data.Dataset, config: Config) -> tf.data.Dataset:
    """Scans at the model's size, from several shards at a time."""
    records = files.interleave(
        tf.data.TFRecordDataset, cycle_length=_FILES_AT_ONCE, num_parallel_calls=_FILES_AT_ONCE, deterministic=True
    )
    scans = records.map(parse_scan, num_parallel_calls=2, deterministic=True)
    if config.data.exclude_scans:
        excluded = tf.constant(config.data.exclude_scans)
        scans = scans.filter(lambda scan: ~tf.reduce_any(scan["id"] == excluded))
    return scans.map(lambda scan: _prepare(scan, config.data), num_parallel_calls=2, deterministic=True)


def _fits_in_memory(dataset: Dataset, folds, config: Config) -> bool:
    slices = sum(scan.shape[0] for scan in dataset.scans_of(folds, config.data.exclude_scans))
    bytes_per_pixel = 3  # 16 bits, and a byte of organ bits
    return slices * config.data.size[0] * config.data.size[1] * bytes_per_pixel <= config.data.cache_mib << 20


def _prepare(scan: dict, data: DataConfig) -> dict:
    """Normalise and resize once a scan, not once a window: neighbouring windows share slices."""
    placement = place(scan["image"], scan["percentiles"], scan["spacing"], data)
    depth = tf.shape(scan["image"])[0]
    count = (depth + _SLICES_AT_ONCE - 1) // _SLICES_AT_ONCE
    made = {"image": (tf.uint16, data.size), "bits": (tf.uint8, data.size), "shown": (tf.bool, [len(ORGANS)])}
    parts = {
        name: tf.TensorArray(dtype, count, infer_shape=False, element_shape=[None, *shape])
        for name, (dtype, shape) in made.items()
    }

    def prepare_slab(i, parts):
        slab = slice(i * _SLICES_AT_ONCE, (i + 1) * _SLICES_AT_ONCE)
        image = to_model(normalize(scan["image"][slab], scan["percentiles"]), placement, data.size)
        bits, shown = _resize_bits(scan["bits"][slab], placement, data.size)
        slabs = {"image": tf.cast(tf.round(image * 65535.0), tf.uint16), "bits": bits, "shown": shown}
        return i + 1, {name: parts[name].write(i, slabs[name]) for name in parts}

    # Slab by slab: what is made on the way stays in the processor's cache and is not given back to the system.
    _, parts = tf.while_loop(lambda i, parts: i < count, prepare_slab, (0, parts), parallel_iterations=1)
    indices = window_indices if data.patch is None else patch_indices
    windows = indices(scan["numbers"], window_offsets(scan["spacing"], data))
    prepared = {"id": scan["id"], "windows": windows} | {name: part.concat() for name, part in parts.items()}
    if data.patch is not None:
        prepared["tiles"] = scan_tiles(depth, scan["spacing"], data)
    return prepared


def _resize_bits(bits, placement: dict, size: tuple[int, int]):
    """Organ bits [D, H, W] at the model's size, and bool [D, 3]: which organs a slice shows."""
    organs = [tf.bitwise.bitwise_and(bits, 1 << k) > 0 for k in range(len(ORGANS))]
    # Before resizing, which may lose an organ of a few pixels: dataset.json counts these slices, so do the steps.
    shown = tf.stack([tf.reduce_any(organ, [1, 2]) for organ in organs], 1)
    resized = tf.zeros([tf.shape(shown)[0], *size], tf.uint8)
    for k, organ in enumerate(organs):
        # Linearly, cut at one half; only the slices that show the organ, to spare time.
        slices = tf.where(shown[:, k])

        def add(organ=organ, slices=slices, resized=resized, bit=1 << k):
            inside = to_model(tf.cast(tf.gather_nd(organ, slices), tf.float32), placement, size) >= 0.5
            return tf.tensor_scatter_nd_add(resized, slices, tf.cast(inside, tf.uint8) * bit)

        resized = tf.cond(tf.size(slices) > 0, add, lambda resized=resized: resized)
    return resized, shown


def _organ_repeats(scans: list[ScanEntry], balance: float) -> list[float]:
    """How many more windows an epoch shows for each slice with an organ, so that rarer organs catch up."""
    slices = [sum(scan.organ_slices.get(organ, 0) for scan in scans) for organ in ORGANS]
    most = max(slices, default=0)
    return [balance * min(most / n - 1, _MOST_REPEATS) if n else 0.0 for n in slices]


def _windows_in_epoch(scans: list[ScanEntry], data: DataConfig) -> int:
    repeats, windows = _organ_repeats(scans, data.balance_organs), 0
    for scan in scans:
        shares = [data.empty_slices * scan.empty_slices]
        shares += [repeat * scan.organ_slices.get(organ, 0) for organ, repeat in zip(ORGANS, repeats, strict=True)]
        of_scan = scan.shape[0] - scan.empty_slices + sum(math.floor(n + 0.5) for n in shares)
        windows += math.ceil(of_scan / _slices_shown(data))
    return windows


def _slices_shown(data: DataConfig) -> int:
    """How many slices of masks a sample shows."""
    return 1 if data.patch is None else data.patch[0]


def _random_order(scan: dict, seed, data: DataConfig, repeats: list[float]):
    """The middles of a scan's windows in random order: all slices that show an organ, a share of the others, and more
    of those with a rarer organ; for patches as many of them as it takes to show that number of slices."""
    filled = tf.reduce_any(scan["shown"], 1)
    start = tf.cast(tf.strings.to_hash_bucket_fast(scan["id"], 2**31 - 1), tf.int64)
    draw = tf.stack([seed, start])

    def rounded(share, n):
        return tf.cast(tf.floor(share * tf.cast(n, tf.float64) + 0.5), tf.int32)

    def some(slices, count, stream):
        return tf.random.experimental.stateless_shuffle(slices, draw + stream)[:count]

    empty = tf.reshape(tf.where(~filled), [-1])
    order = [tf.reshape(tf.where(filled), [-1]), some(empty, rounded(data.empty_slices, tf.size(empty)), 0)]
    for k, repeat in enumerate(repeats):
        if repeat:
            with_organ = tf.reshape(tf.where(scan["shown"][:, k]), [-1])
            often = tf.repeat(with_organ[None], math.ceil(repeat), 0)
            order.append(some(tf.reshape(often, [-1]), rounded(repeat, tf.size(with_organ)), 2 + k))
    order = tf.random.experimental.stateless_shuffle(tf.concat(order, 0), draw + 1)
    shown = _slices_shown(data)
    return tf.cast(order[: (tf.size(order) + shown - 1) // shown], tf.int32)


def _windows_at(scan: dict, order, data: DataConfig, seed, named: bool = False) -> tf.data.Dataset:
    """Windows as planes, uint16 [K, H, W], with the organ bits of the middle slice, uint8 [1, H, W], or of all."""

    def window(z):
        return cut(z) | ({"id": scan["id"]} if named else {})

    def cut(z):
        slices = scan["windows"][z]
        if data.patch is None:
            return {"planes": tf.gather(scan["image"], slices), "bits": scan["bits"][z][None]}
        of_scan = tf.cast(tf.strings.to_hash_bucket_fast(scan["id"], 2**20), tf.int64)
        draw = tf.stack([tf.cast(seed, tf.int64), of_scan * 65536 + tf.cast(z, tf.int64)])
        y, x = _patch_corner(scan["bits"][z], data.patch[1:], draw)
        rows, columns = slice(y, y + data.patch[1]), slice(x, x + data.patch[2])
        patch = {"planes": scan["image"][:, rows, columns], "bits": scan["bits"][:, rows, columns]}
        patch = {name: tf.gather(volume, slices) for name, volume in patch.items()}
        return {name: tf.ensure_shape(volume, data.patch) for name, volume in patch.items()}

    return tf.data.Dataset.from_tensor_slices(order).map(window)


def _patch_corner(bits, patch: tuple[int, int], seed):
    """Where a patch is cut from its middle slice: about a random pixel of an organ, or anywhere if there is none."""
    u = tf.random.stateless_uniform([3], seed)
    room = tf.constant([bits.shape[0] - patch[0], bits.shape[1] - patch[1]], tf.float32)
    inside = tf.cast(tf.where(bits > 0), tf.float32)
    count = tf.shape(inside)[0]
    picked = tf.minimum(tf.cast(u[2] * tf.cast(count, tf.float32), tf.int32), count - 1)
    half = tf.constant(patch, tf.float32) / 2
    corner = tf.cond(count > 0, lambda: inside[picked] - half, lambda: u[:2] * (room + 1))
    return tf.unstack(tf.cast(tf.clip_by_value(tf.floor(corner), 0.0, room), tf.int32))


def _finish(data: DataConfig, augment: AugmentConfig | None, seed: int):
    """The function from a batch of windows to (image, mask) as float32, changed at random if asked."""
    cv2.setNumThreads(1)  # tf.data runs several batches at once
    height, width = data.size if data.patch is None else data.patch[1:]
    host = HostAugment(augment or AugmentConfig(), height, width, volumetric=data.patch is not None)

    def finish(number, windows):
        drawn = draw(data.batch_size, height, width, tf.stack([seed, number]), augment) if augment else {}
        names = sorted(drawn)
        image, mask = tf.numpy_function(
            lambda planes, bits, *values: host(planes, bits, dict(zip(names, values, strict=True))),
            [windows["planes"], windows["bits"], *[drawn[name] for name in names]],
            [tf.float32, tf.float32],
            stateful=False,
        )
        if data.patch is None:
            shapes = [*data.size, data.slices], [*data.size, len(ORGANS)]
        else:
            shapes = [*data.patch, 1], [*data.patch, len(ORGANS)]
        return tuple(
            tf.ensure_shape(part, [data.batch_size, *shape]) for part, shape in zip((image, mask), shapes, strict=True)
        )

    return finish


def _with_options(batches: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    # One reader feeds all replicas of a machine; several machines each read everything and keep their share, so that
    # the global batch is the same for any number of machines.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    options.threading.max_intra_op_parallelism = 1
    return batches.prefetch(2).with_options(options)

"""The windows of an epoch, their order, and the number of batches."""

import math
from collections.abc import Callable
from functools import partial

import tensorflow as tf

from gitseg_tf.config import Config
from gitseg_tf.config.data import DataConfig
from gitseg_tf.data.pipeline.balance import Repeats, balancing_repeats
from gitseg_tf.data.pipeline.empty_slices import EmptyShares, empty_shares
from gitseg_tf.data.pipeline.planes import entries_in_plane
from gitseg_tf.data.pipeline.service import distribute
from gitseg_tf.data.pipeline.store import shuffled_windows, stored_scans
from gitseg_tf.data.pipeline.windows import SCANS_AT_ONCE, fits_in_memory, layout_of, prepared_scans, windows_at
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.data.tfrecords.index import ScanEntry
from gitseg_tf.data.tfrecords.teacher import training_scans
from gitseg_tf.errors import DataError


def steps_per_epoch(dataset: Dataset, config: Config) -> int:
    """Count the training batches of an epoch.

    Args:
        dataset: all folds but config.data.fold are used, and with a teacher also scans without annotation.
        config: the experiment.

    Returns:
        The number of whole batches, at least 1: windows that do not fill one batch are repeated. If data.labels omits
        labels, dataset.json does not say exactly how many slices show one of the remaining labels, and an epoch may
        show some windows twice.

    Raises:
        DataError: no window to train on.
    """
    data = config.data
    _, scans, _ = training_scans(dataset, config)
    scans = entries_in_plane(dataset, scans, data.plane)
    repeats, shares = balancing_repeats(dataset, scans, config), empty_shares(dataset, scans, config)
    windows = _windows_in_epoch(scans, config, repeats, shares, max_filled_slices)
    if not windows:
        labels = ", ".join(config.label_set.names[:5]) + (", ..." if len(config.label_set) > 5 else "")
        annotated = any(annotated_slices(scan, config) for scan in scans)
        if annotated:
            problem = f"no slice shows a label ({labels}) and data.empty_slice_fraction is 0; increase it"
        else:
            problem = f"no scan of the training folds has an annotation of {labels}; add annotations"
        raise DataError(f"{dataset.root}: nothing to train on, because {problem}, or choose other labels")
    return max(windows // data.batch_size, 1)


def numbered_batches(
    dataset: Dataset, config: Config, *, first_epoch: int, first_step: int, named: bool = False
) -> tf.data.Dataset:
    """Yield (number in the whole training, batch of windows before augmentation); `named` adds the scan ids."""
    data = config.data
    folds, used, exclude = training_scans(dataset, config)
    layout = layout_of(dataset, config, training=True)
    steps = steps_per_epoch(dataset, config)
    paths = dataset.paths_of(folds)
    files = tf.data.Dataset.from_tensor_slices(paths)
    used = entries_in_plane(dataset, used, data.plane)
    # A worker of a data service would fill its memory again in each epoch.
    fits = data.service is None and fits_in_memory(dataset, folds, config, training=True)
    prepare = partial(prepared_scans, dataset=dataset, config=config, training=True, exclude=exclude)
    in_memory = stored_scans(prepare(files), used).cache() if fits else None
    repeats, shares = balancing_repeats(dataset, used, config), empty_shares(dataset, used, config)
    # Repeat only as often as needed: an endless repeat would make tf.data read ahead into a second round.
    fewest = max(_windows_in_epoch(used, config, repeats, shares, min_filled_slices), 1)
    rounds = math.ceil(steps * data.batch_size / fewest)
    most = max(_windows_in_epoch(used, config, repeats, shares, max_filled_slices), 1)

    def one_epoch(epoch):
        # This sets the seed of this function's graph only: the order must not depend on the process's global seed.
        tf.random.set_seed(config.seed + 1)
        seed = config.seed + 7919 * (epoch + 1)

        def order_of(scan):
            return _random_order(scan, seed, data, repeats, shares, teacher=layout.levels > 0)

        if in_memory is not None:
            # Filling a buffer of two reads to the end, which completes the cache: an epoch takes no more than it needs.
            windows = in_memory.shuffle(2).flat_map(
                lambda store: shuffled_windows(store, order_of, most, layout, data, seed=seed, named=named)
            )
            return (windows.repeat(rounds) if rounds > 1 else windows).take(steps * data.batch_size)
        shuffled_files = files.shuffle(len(paths), seed=seed, reshuffle_each_iteration=False)
        scans = prepare(shuffled_files)
        scans = scans.shuffle(SCANS_AT_ONCE, seed=seed, reshuffle_each_iteration=False)
        windows = scans.interleave(
            lambda scan: windows_at(scan, order_of(scan), layout, data, seed=seed, named=named),
            cycle_length=SCANS_AT_ONCE,
            num_parallel_calls=2,
            deterministic=True,
        )
        windows = windows.shuffle(data.shuffle_buffer, seed=seed, reshuffle_each_iteration=False)
        if data.service is not None:
            # The endless repeat makes up for windows that are lost with a worker.
            return distribute(windows, data.service).repeat().take(steps * data.batch_size)
        return (windows.repeat(rounds) if rounds > 1 else windows).take(steps * data.batch_size)

    windows = tf.data.Dataset.range(first_epoch, config.training.epochs).flat_map(one_epoch)
    # Windows are skipped before they are finished, because finishing them takes most of the time.
    batches = windows.skip(first_step * data.batch_size).batch(data.batch_size, drop_remainder=True)
    return batches.enumerate(start=first_epoch * steps + first_step)


def annotated_slices(scan: ScanEntry, config: Config) -> dict[str, int]:
    """Return the number of slices that show each label of the config that is annotated in a scan."""
    slices = scan.label_slices
    return {name: slices[name] for name in config.label_set.names if name in slices}


def max_filled_slices(scan: ScanEntry, slices: dict[str, int]) -> int:
    """Return an upper bound on the number of slices that show any of some labels; exact for all labels of a scan."""
    return min(scan.shape[0] - scan.empty_slices, sum(slices.values()))


def min_filled_slices(scan: ScanEntry, slices: dict[str, int]) -> int:
    """Return a lower bound on the number of slices that show any of some labels; exact for all labels of a scan."""
    left_out = sum(n for name, n in scan.label_slices.items() if name not in slices)
    return max(*slices.values(), scan.shape[0] - scan.empty_slices - left_out, 0)


def _windows_in_epoch(
    scans: list[ScanEntry], config: Config, repeats: Repeats | None, shares: EmptyShares, filled_slices: Callable
) -> int:
    data, windows = config.data, 0
    for scan in scans:
        annotated = annotated_slices(scan, config)
        if not annotated:
            continue
        filled = filled_slices(scan, annotated)
        empty = shares.count(scan, scan.shape[0] - filled)
        repeated = repeats.windows(scan) if repeats else 0
        windows += math.ceil((filled + empty + repeated) / _slices_shown(data))
    return windows


def _slices_shown(data: DataConfig) -> int:
    """Return the number of mask slices in a sample."""
    return 1 if data.patch is None else data.patch[0]


def _random_order(scan: dict, seed, data: DataConfig, repeats: Repeats | None, shares: EmptyShares, *, teacher: bool):
    """Choose the middle slices of a scan's windows, in random order.

    They are all slices that show a label, a fraction of the empty ones, and repeats of slices with rare labels. Patches
    need only as many as together show that number of slices. A scan without annotated labels has none, unless a teacher
    found its labels.
    """
    filled = tf.reduce_any(scan["shown"], 1)
    start = tf.cast(tf.strings.to_hash_bucket_fast(scan["id"], 2**31 - 1), tf.int64)
    draw = tf.stack([seed, start])

    empty = tf.reshape(tf.where(~filled), [-1])
    count = shares.choose(scan["annotated"], tf.size(empty))
    shown_empty = tf.random.experimental.stateless_shuffle(empty, draw)[:count]
    order = [tf.reshape(tf.where(filled), [-1]), shown_empty]
    if repeats:
        order.append(repeats.slices(scan["shown"], draw + 2))
    order = tf.random.experimental.stateless_shuffle(tf.concat(order, 0), draw + 1)
    if not teacher:
        order = order[: tf.where(tf.reduce_any(scan["annotated"]), tf.size(order), 0)]
    shown = _slices_shown(data)
    return tf.cast(order[: (tf.size(order) + shown - 1) // shown], tf.int32)

"""Scans at the model's size, and the windows and patches cut from them."""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from gitseg_tf.config import Config
from gitseg_tf.config.data import DataConfig
from gitseg_tf.data.augment.opencv import MOST_PLANES
from gitseg_tf.data.pipeline.geometry import normalize, patch_indices, place, to_model, window_indices, window_offsets
from gitseg_tf.data.pipeline.masks import bits_present, resize_masks
from gitseg_tf.data.pipeline.planes import entries_in_plane, scan_in_plane
from gitseg_tf.data.pipeline.tiles import cut_patch, scan_tiles
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.data.tfrecords.example import parse_scan
from gitseg_tf.data.tfrecords.teacher import LEVELS, SHOWN, learns_from_teacher
from gitseg_tf.errors import ConfigError

SCANS_AT_ONCE = 16
_FILES_AT_ONCE = 4
_SLICES_AT_ONCE = 16


@dataclass(frozen=True)
class Layout:
    """Number of channels and labels of a sample, and where the labels are stored in the records.

    Attributes:
        channels: number of channels, C.
        sources: index in the dataset's label set of each of the L labels of the config.
        source_bytes: number of bytes of mask bits per voxel in the records.
        teacher_bytes: the same of a teacher's probabilities; 0 without a teacher.
        pseudo: scans may have pseudo-labels, whose uncertain voxels do not count for one label.
    """

    channels: int
    sources: tuple[int, ...]
    source_bytes: int
    teacher_bytes: int = 0
    pseudo: bool = False

    @property
    def labels(self) -> int:
        """The number of labels of the config, L."""
        return len(self.sources)

    @property
    def levels(self) -> int:
        """The number of bits per label of a teacher's probabilities; 0 without a teacher."""
        return LEVELS if self.teacher_bytes else 0

    @property
    def targets(self) -> int:
        """The number of channels of a mask: L, or with a teacher 2 L."""
        return self.labels * (2 if self.levels else 1)

    @property
    def mask_bytes(self) -> int:
        """Bytes of mask bits per prepared voxel.

        They have a bit per label, `levels` bits per label, the ignore bit, and with pseudo-labels an ignore bit per
        label.
        """
        return self.labels * (1 + self.levels + self.pseudo) // 8 + 1

    @property
    def bits(self) -> tuple[int, ...]:
        """The bits of a record (masks, teacher, ignore, uncertain voxels) in the order of the prepared bits."""
        teacher = (8 * self.source_bytes + self.levels * s + i for s in self.sources for i in range(self.levels))
        ignore = 8 * (self.source_bytes + self.teacher_bytes)
        uncertain = (ignore + 8 + s for s in self.sources) if self.pseudo else ()
        return (*self.sources, *teacher, ignore, *uncertain)

    @property
    def label_bits(self) -> np.ndarray:
        """uint8 [mask_bytes] with the bits that show a label set, but not the ignore bit."""
        bits = np.arange(8 * self.mask_bytes) < self.labels
        if self.levels:
            bits[self.labels + SHOWN : self.labels * (1 + self.levels) : self.levels] = True
        return np.packbits(bits, bitorder="little")


def layout_of(dataset: Dataset, config: Config, *, training: bool = False) -> Layout:
    """Determine how a dataset's scans become samples of an experiment.

    Args:
        dataset: the dataset.
        config: the experiment.
        training: include the probabilities of the dataset's teacher, if the experiment learns from it.

    Raises:
        ConfigError: the config has labels that the dataset does not have, other channels, or windows with more planes
            than OpenCV supports.
    """
    channels = tuple(dataset.channels)
    planes = len(channels) * (config.data.window_slices if config.data.patch is None else 1)
    if planes > MOST_PLANES:
        raise ConfigError(
            f"data.window_slices is {config.data.window_slices}: with {len(channels)} channels a window has {planes} "
            f"planes, but at most {MOST_PLANES} are supported; use fewer slices"
        )
    if config.channels is not None and tuple(config.channels) != channels:
        raise ConfigError(
            f"{dataset.root}: has the channels {', '.join(channels)}, "
            f"but the config is for {', '.join(config.channels)}; use a dataset with the same channels"
        )
    try:
        sources = tuple(dataset.labels.index(name) for name in config.label_set.names)
    except ConfigError as error:
        raise ConfigError(f"{dataset.root}: {error}") from None
    teacher_bytes = -(-LEVELS * len(dataset.labels) // 8) if training and learns_from_teacher(dataset, config) else 0
    pseudo = dataset.pseudo_labels is not None
    return Layout(len(channels), sources, -(-len(dataset.labels) // 8), teacher_bytes, pseudo)


def prepared_scans(
    files: tf.data.Dataset,
    dataset: Dataset,
    config: Config,
    *,
    training: bool = False,
    exclude: tuple[str, ...] | None = None,
) -> tf.data.Dataset:
    """Read scans from several shards at a time and resample them to the model's size.

    Args:
        files: paths of shards of the dataset.
        dataset: its labels and channels are needed.
        config: the experiment.
        training: take pseudo-labels for annotations; the rest as for `layout_of`.
        exclude: ids of scans to leave out; None is data.exclude_scans.

    Returns:
        Dataset of dicts of tensors: id; image uint16 [D, C, h, w], 65535 represents 1; bits uint8 [D, G, h, w], see
        `Layout.mask_bytes`; shown bool [D, L], the annotated labels that a slice shows (of a scan without any, with a
        teacher, those that the teacher finds); annotated bool [L]; windows int32 [D, K], the slices of the window
        around each slice; with data.patch, tiles from `scan_tiles`. The D slices are those of data.plane.
    """
    layout = layout_of(dataset, config, training=training)
    records = files.interleave(
        tf.data.TFRecordDataset, cycle_length=_FILES_AT_ONCE, num_parallel_calls=_FILES_AT_ONCE, deterministic=True
    )
    scans = records.map(
        lambda record: _read_scan(record, layout, len(dataset.labels)), num_parallel_calls=2, deterministic=True
    )
    exclude = tuple(config.data.exclude_scans) if exclude is None else exclude
    if exclude:
        excluded = tf.constant(exclude)
        scans = scans.filter(lambda scan: ~tf.reduce_any(scan["id"] == excluded))
    if training and layout.pseudo:
        scans = scans.map(lambda scan: scan | {"annotated": scan["annotated"] | scan["pseudo"]})
    return scans.map(lambda scan: _prepare(scan, layout, config.data), num_parallel_calls=2, deterministic=True)


def _read_scan(record, layout: Layout, labels: int) -> dict:
    """Parse a record, and set the dimensions that are known statically."""
    optional = {"pseudo": layout.pseudo, "teacher": layout.teacher_bytes > 0}
    scan = parse_scan(record, **{name: True for name, stored in optional.items() if stored})
    shapes = {
        "image": [None, None, None, layout.channels],
        "percentiles": [layout.channels, None],
        "moments": [layout.channels, 2],
        "bits": [None, None, None, layout.source_bytes],
        "annotated": [labels],
    }
    if layout.pseudo:
        shapes |= {"pseudo": [labels], "uncertain": [None, None, None, layout.source_bytes]}
    if layout.teacher_bytes:
        shapes["teacher"] = [None, None, None, layout.teacher_bytes]
    return scan | {name: tf.ensure_shape(scan[name], shape) for name, shape in shapes.items()}


def fits_in_memory(dataset: Dataset, folds, config: Config, *, training: bool = False) -> bool:
    """Check whether the prepared scans of some folds fit into data.cache_mib; `training` as for `layout_of`."""
    layout = layout_of(dataset, config, training=training)
    entries = dataset.scans_of(folds, config.data.exclude_scans)
    slices = sum(scan.shape[0] for scan in entries_in_plane(dataset, entries, config.data.plane))
    bytes_per_pixel = 2 * layout.channels + layout.mask_bytes
    return (
        slices * config.data.input_size[0] * config.data.input_size[1] * bytes_per_pixel <= config.data.cache_mib << 20
    )


def _prepare(scan: dict, layout: Layout, data: DataConfig) -> dict:
    """Normalize and resize once per scan, not once per window: neighboring windows share slices."""
    scan = scan_in_plane(scan, data.plane)
    placement = place(scan["image"], scan["percentiles"], scan["spacing"], data)
    annotated = tf.gather(scan["annotated"], layout.sources)
    counted = tf.concat([annotated, tf.ones([layout.labels * layout.levels + 1], tf.bool)], 0)
    if layout.pseudo:
        counted = tf.concat([counted, tf.gather(scan["pseudo"], layout.sources) & annotated], 0)
    depth = tf.shape(scan["image"])[0]
    count = (depth + _SLICES_AT_ONCE - 1) // _SLICES_AT_ONCE
    outputs = {
        "image": (tf.uint16, [layout.channels, *data.input_size]),
        "bits": (tf.uint8, [layout.mask_bytes, *data.input_size]),
        "shown": (tf.bool, [layout.labels]),
    }
    parts = {
        name: tf.TensorArray(dtype, count, infer_shape=False, element_shape=[None, *shape])
        for name, (dtype, shape) in outputs.items()
    }

    def prepare_slab(i, parts):
        slab = slice(i * _SLICES_AT_ONCE, (i + 1) * _SLICES_AT_ONCE)
        image = to_model(normalize(scan["image"][slab], scan, data), placement, data.input_size)
        packed = [tf.transpose(scan[name][slab], [0, 3, 1, 2]) for name in ("bits", "teacher") if name in scan]
        packed.append(tf.cast(scan["ignore"][slab], tf.uint8)[:, None])
        if layout.pseudo:
            packed.append(tf.transpose(scan["uncertain"][slab], [0, 3, 1, 2]))
        planes = tf.concat(packed, 1)
        # Determined before resizing, which may lose a label of a few pixels, to agree with the counts in dataset.json.
        shown = tf.gather(bits_present(planes), layout.bits, axis=1) & counted
        slabs = {
            "image": tf.cast(tf.round(tf.transpose(image, [0, 3, 1, 2]) * 65535.0), tf.uint16),
            "bits": resize_masks(planes, shown, sources=layout.bits, placement=placement, size=data.input_size),
            "shown": _labels_shown(shown, annotated, layout),
        }
        return i + 1, {name: parts[name].write(i, slabs[name]) for name in parts}

    # Working slab by slab keeps intermediate results in the CPU cache and avoids returning memory to the system.
    _, parts = tf.while_loop(lambda i, parts: i < count, prepare_slab, (0, parts), parallel_iterations=1)
    indices = window_indices if data.patch is None else patch_indices
    windows = indices(scan["numbers"], window_offsets(scan["spacing"], data))
    prepared = {"id": scan["id"], "annotated": annotated, "windows": windows}
    prepared |= {name: part.concat() for name, part in parts.items()}
    if data.patch is not None:
        prepared["tiles"] = scan_tiles(depth, scan["spacing"], data)
    return prepared


def _labels_shown(shown, annotated, layout: Layout):
    """Select from the bits that slices show, bool [D, N], the labels: bool [D, L]."""
    labels = shown[:, : layout.labels]
    if not layout.levels:
        return labels
    found = shown[:, layout.labels + SHOWN : layout.labels * (1 + layout.levels) : layout.levels]
    return tf.where(tf.reduce_any(annotated), labels, found)


def windows_at(scan: dict, order, layout: Layout, data: DataConfig, *, seed, named: bool = False) -> tf.data.Dataset:
    """Cut the windows or patches around some slices of a prepared scan.

    Args:
        scan: from `prepared_scans`.
        order: int32 [N], the middle slices.
        layout: from `layout_of`.
        data: window or patch.
        seed: seed of the random positions of patches.
        named: add the scan's id.

    Returns:
        Dataset of the results of `cut_window`.
    """
    return tf.data.Dataset.from_tensor_slices(order).map(
        lambda z: cut_window(scan, z, layout, data, seed=seed, named=named)
    )


def cut_window(scan: dict, z, layout: Layout, data: DataConfig, *, seed, named: bool = False) -> dict:
    """Cut the window or patch around a slice of a prepared scan.

    Args:
        scan, layout, data, seed, named: as for `windows_at`.
        z: int32, the middle slice.

    Returns:
        planes uint16 [K, C, h, w], annotated bool [L], and bits uint8 [1, G, h, w] of the middle slice, or [K, G, h, w]
        for a patch; with `named`, id.
    """
    slices = scan["windows"][z]
    if data.patch is None:
        window = {"planes": tf.gather(scan["image"], slices), "bits": scan["bits"][z][None]}
    else:
        label_bits = tf.constant(layout.label_bits)[:, None, None]
        scan_hash = tf.cast(tf.strings.to_hash_bucket_fast(scan["id"], 2**20), tf.int64)
        draw = tf.stack([tf.cast(seed, tf.int64), scan_hash * 65536 + tf.cast(z, tf.int64)])
        inside = tf.reduce_any(tf.bitwise.bitwise_and(scan["bits"][z], label_bits) > 0, 0)
        y, x = _patch_corner(inside, data.patch[1:], draw)
        rows, columns = slice(y, y + data.patch[1]), slice(x, x + data.patch[2])
        patch = {"planes": scan["image"][:, :, rows, columns], "bits": scan["bits"][:, :, rows, columns]}
        window = cut_patch(patch, slices, data)
    return window | {"annotated": scan["annotated"]} | ({"id": scan["id"]} if named else {})


def _patch_corner(inside, patch: tuple[int, int], seed):
    """Choose the corner of a patch: centered on a random labeled pixel of the middle slice, or anywhere if none."""
    u = tf.random.stateless_uniform([3], seed)
    margin = tf.constant([inside.shape[0] - patch[0], inside.shape[1] - patch[1]], tf.float32)
    pixels = tf.cast(tf.where(inside), tf.float32)
    count = tf.shape(pixels)[0]
    picked = tf.minimum(tf.cast(u[2] * tf.cast(count, tf.float32), tf.int32), count - 1)
    half = tf.constant(patch, tf.float32) / 2
    corner = tf.cond(count > 0, lambda: pixels[picked] - half, lambda: u[:2] * (margin + 1))
    return tf.unstack(tf.cast(tf.clip_by_value(tf.floor(corner), 0.0, margin), tf.int32))

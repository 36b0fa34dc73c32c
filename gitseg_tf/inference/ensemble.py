"""Several networks, and several views of a scan, as one: the mean of their probabilities at the scan's size."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from gitseg_tf.config import Config
from gitseg_tf.data.scans import ORGANS
from gitseg_tf.errors import InputError
from gitseg_tf.inference.planes import make_plane_view
from gitseg_tf.inference.postprocess import clean_mask, organ_settings, postprocess
from gitseg_tf.inference.volumes import View, batches_of, make_volume_view, organs_first
from gitseg_tf.sections.postprocess import OrganConfig

Predictor = Callable[[np.ndarray, Sequence[int], np.ndarray, Sequence[float]], np.ndarray]
# Networks that agree in these are given the same windows of a scan.
_WINDOW_KEYS = ("slices", "stride", "stride_mm", "size", "crop", "pixel_mm", "patch")


@dataclass(frozen=True)
class Member:
    """A network of an ensemble.

    Attributes:
        name: the run or SavedModel, for people.
        probabilities: function from float32 windows [N, height, width, slices] to probabilities [N, height, width, 3];
            with data.patch from patches [N, D, H, W, 1] to probabilities [N, D, H, W, 3].
        config: window, size, batch size, overlap and test-time augmentation.
    """

    name: str
    probabilities: Callable = field(repr=False)
    config: Config = field(repr=False)


def make_ensemble(members: Sequence[Member], settings: Sequence[OrganConfig]) -> Predictor:
    """Segment whole scans by the mean of several networks' probabilities, each network counting the same.

    Args:
        members: the networks, which may differ in everything.
        settings: of each organ, with thresholds, as `organ_settings` gives.

    Returns:
        Function as from `make_predictor`.
    """
    if any(organ.smooth_mm for organ in settings):
        find = make_mean_function(members, tf.identity)

        def predict_smooth(image, numbers, percentiles, spacing):
            return postprocess(find(image, numbers, percentiles, spacing), settings, numbers, spacing)

        return predict_smooth
    # Without smoothing, no probabilities of the whole scan are needed but those of an ensemble.
    thresholds = np.array([organ.threshold for organ in settings], np.float32)
    segment = make_mean_function(members, lambda found: found >= thresholds)

    def predict(image, numbers, percentiles, spacing):
        masks = segment(image, numbers, percentiles, spacing)
        for k, organ in enumerate(settings):
            masks[k] = clean_mask(masks[k], organ, spacing)
        return masks

    return predict


def make_mean_function(members: Sequence[Member], finish: Callable) -> Predictor:
    """Run several networks over whole scans, and average their probabilities at the scan's size.

    Memory: one view of the scan at a time, and where there are several, one float32 a voxel and organ for their sum.

    Args:
        members: the networks.
        finish: as in `make_scan_function`.

    Returns:
        Function as from `make_predictor`, to [3, D, H, W] of what `finish` gives.
    """
    views = list(_views(members))
    batch_size = members[0].config.evaluation.batch_size
    if len(views) == 1:
        ((_, only),) = views

        def over_scan(*scan):
            return organs_first(((part, finish(found).numpy()) for part, found in only(*scan)), scan[0].shape)

        return over_scan

    def mean_over_scan(*scan):
        mean = np.zeros((*scan[0].shape, len(ORGANS)), np.float32)
        for share, view in views:
            for part, found in view(*scan):
                mean[part] += np.float32(share) * found.numpy()
        parts = ((part, finish(tf.constant(mean[part])).numpy()) for part in batches_of(len(mean), batch_size))
        return organs_first(parts, scan[0].shape)

    return mean_over_scan


def agreed_settings(models: Sequence[tuple[str, Config]]) -> list[OrganConfig]:
    """The post-processing of an ensemble: that of its models, which must have the same.

    Args:
        models: (name, config) of each.

    Returns:
        As from `organ_settings`.

    Raises:
        InputError: two models differ; the line names the key.
    """
    (first, config), *others = models
    settings = organ_settings(config)
    for name, other in others:
        for organ, mine, theirs in zip(ORGANS, settings, organ_settings(other), strict=True):
            for key, value in mine.model_dump().items():
                if (differs := getattr(theirs, key)) != value:
                    raise InputError(
                        f"{first} and {name}: {organ} has {key} {value} in one and {differs} in the other; "
                        "say what the ensemble takes with --postprocess FILE.yaml, or --set postprocess..."
                    )
    return settings


def tta_words(config: Config) -> str:
    """The test-time augmentation of a config, for people."""
    tta = config.evaluation.tta
    words = ["left and right changed"] * tta.flip + [f"{scale:g} times the size" for scale in tta.scales]
    return ", ".join(words) or "none"


def _views(members: Sequence[Member]) -> Iterator[tuple[float, View]]:
    """Each way in which a scan is looked at, and its share in the mean. Networks of the same windows look together."""
    together: dict[tuple, list[Member]] = {}
    for member in members:
        data, evaluation = member.config.data, member.config.evaluation
        windows = tuple(getattr(data, key) for key in _WINDOW_KEYS)
        together.setdefault((windows, evaluation.batch_size, evaluation.overlap, evaluation.tta), []).append(member)
    for group in together.values():
        config = group[0].config
        network = _mean_network([member.probabilities for member in group], config.evaluation.tta.flip)
        make_view = make_plane_view if config.data.patch is None else make_volume_view
        scales = (1.0, *config.evaluation.tta.scales)
        for scale in scales:
            yield len(group) / len(members) / len(scales), make_view(network, config, scale)


def _mean_network(networks: Sequence[Callable], flip: bool) -> Callable:
    """One network of several, one after the other, that also sees its input with left and right changed."""
    if len(networks) == 1 and not flip:
        return networks[0]

    def mean(windows):
        windows = tf.convert_to_tensor(windows)
        mirrored = _mirror(windows) if flip else None
        total = None
        for network in networks:
            found = network(windows)
            if flip:
                found += _mirror(network(mirrored))
            total = found if total is None else total + found
        return total / (len(networks) * (1 + flip))

    return mean


def _mirror(windows):
    """Columns, which are the axis before the last of planes and of volumes, in reverse."""
    return tf.reverse(windows, [-2])

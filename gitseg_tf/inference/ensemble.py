"""Average the probabilities of several networks, and of several views of a scan, at the scan's size."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tensorflow as tf

from gitseg_tf.config import Config
from gitseg_tf.config.evaluation import TtaConfig
from gitseg_tf.config.postprocess import LabelPostprocess
from gitseg_tf.data.volume import Volume
from gitseg_tf.errors import RunError
from gitseg_tf.inference.postprocess import label_settings
from gitseg_tf.inference.sliding_window.views import View, batches_of, labels_first, make_views

# Networks that agree in these get the same windows of a scan.
_WINDOW_KEYS = (
    "window_slices", "window_stride", "window_stride_mm", "input_size", "crop", "pixel_mm", "patch", "intensity"
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A network of an ensemble.

    Attributes:
        name: the run or SavedModel, for messages.
        network: function from float32 windows [N, height, width, K * C] to probabilities [N, height, width, L];
            with data.patch from patches [N, D, H, W, C] to probabilities [N, D, H, W, L].
        config: labels, channels, window, size, batch size, overlap and test-time augmentation.
        has_presence: whether the network also returns the probabilities of its presence head, as [N, height, width,
            2 L], see `with_presence`.
    """

    name: str
    network: Callable = field(repr=False)
    config: Config = field(repr=False)
    has_presence: bool = False


def make_mean(members: Sequence[Member], *, presence: bool = False) -> Callable[[Volume, Callable], np.ndarray]:
    """Build a function that applies several networks to a whole scan and averages their probabilities equally.

    Only one view of the scan is in memory at a time. With several views, their sum takes one float32 per voxel and
    label.

    Args:
        members: the networks, with the same labels; they may differ in everything else.
        presence: also average the probabilities of the presence heads, over the members that have one.

    Returns:
        Function from a scan and `finish`, a TensorFlow function from probabilities at the scan's size, float32
        [N, H, W, L], or [N, H, W, 2 L] with `presence`, to any dtype and number of channels. It returns the results of
        `finish` as [L, D, H, W].
    """
    count = len(members[0].config.label_set)
    voters = sum(member.has_presence for member in members)
    if presence and not voters:
        raise ValueError("no member has a presence head")
    # Members without the head do not vote: they add 0, and the votes of the others weigh more.
    members = [_with_planes(member, count, len(members) / voters if presence else 0.0) for member in members]
    count *= 1 + presence
    views = list(_views(members))
    batch_size = members[0].config.evaluation.batch_size
    if len(views) == 1:
        ((_, only),) = views

        def over_scan(volume: Volume, finish: Callable) -> np.ndarray:
            parts = ((part, finish(probabilities).numpy()) for part, probabilities in only(volume))
            return labels_first(parts, volume.shape)

        return over_scan

    def mean_over_scan(volume: Volume, finish: Callable) -> np.ndarray:
        mean = np.zeros((*volume.shape, count), np.float32)
        for weight, view in views:
            for part, probabilities in view(volume):
                mean[part] += np.float32(weight) * probabilities.numpy()
        parts = ((part, finish(tf.constant(mean[part])).numpy()) for part in batches_of(len(mean), batch_size))
        return labels_first(parts, volume.shape)

    return mean_over_scan


def _with_planes(member: Member, labels: int, vote: float) -> Member:
    """Let a member return `labels` planes, or twice as many if its presence counts, multiplied by `vote`."""
    if not vote and not member.has_presence:
        return member

    def network(windows):
        outputs = member.network(windows)
        if not vote:
            return outputs[..., :labels]
        if not member.has_presence:
            return tf.concat([outputs, tf.zeros_like(outputs)], -1)
        return tf.concat([outputs[..., :labels], np.float32(vote) * outputs[..., labels:]], -1)

    return replace(member, network=network)


def agreed_settings(models: Sequence[tuple[str, Config]]) -> list[LabelPostprocess]:
    """Determine the post-processing of an ensemble, on which its models must agree.

    Args:
        models: (name, config) of each model.

    Returns:
        The settings of each label, see `label_settings`.

    Raises:
        RunError: two models differ in labels, channels or post-processing.
    """
    (first, config), *others = models
    settings = label_settings(config)
    for name, other in others:
        for what, mine, theirs in (
            ("labels", config.label_set.names, other.label_set.names),
            ("channels", config.channels, other.channels),
        ):
            if mine != theirs:
                raise RunError(
                    f"{first} and {name}: their {what} differ ({_listed(mine)}; {_listed(theirs)}); "
                    f"an ensemble needs models with the same {what}"
                )
        for label, ours, other_settings in zip(config.label_set.names, settings, label_settings(other), strict=True):
            for key, value in ours.model_dump().items():
                if (differs := getattr(other_settings, key)) != value:
                    raise RunError(
                        f"{first} and {name}: {label} has {key} {value} in one and {differs} in the other; "
                        "set the post-processing of the ensemble explicitly"
                    )
    return settings


def _listed(names: Sequence[str] | None) -> str:
    return ", ".join(names or ("unknown",))


def tta_words(config: Config | TtaConfig) -> str:
    """Describe the test-time augmentation of a config."""
    tta = config if isinstance(config, TtaConfig) else config.evaluation.tta
    words = ["horizontal flip"] * tta.flip + [f"scale {scale:g}" for scale in tta.scales]
    return ", ".join(words) or "none"


def _views(members: Sequence[Member]) -> Iterator[tuple[float, View]]:
    """Yield each view of a scan with its weight in the mean; networks with the same windows share a view."""
    groups: dict[tuple, list[Member]] = {}
    for member in members:
        data, evaluation = member.config.data, member.config.evaluation
        windows = tuple(str(getattr(data, key, None)) for key in _WINDOW_KEYS)
        groups.setdefault((windows, evaluation.batch_size, evaluation.overlap, evaluation.tta), []).append(member)
    for group in groups.values():
        config = group[0].config
        network = mean_network([member.network for member in group], config.evaluation.tta.flip)
        scales = (1.0, *config.evaluation.tta.scales)
        for view in make_views(network, config, scales):
            yield len(group) / len(members) / len(scales), view


def mean_network(networks: Sequence[Callable], flip: bool = False) -> Callable:
    """Combine several networks into one that averages their results, optionally also over flipped input."""
    if len(networks) == 1 and not flip:
        return networks[0]

    def mean(windows):
        windows = tf.convert_to_tensor(windows)
        flipped = flip_columns(windows) if flip else None
        total: Any = None
        for network in networks:
            probabilities = network(windows)
            if flip:
                probabilities += flip_columns(network(flipped))
            total = probabilities if total is None else total + probabilities
        return total / (len(networks) * (1 + flip))

    return mean


def flip_columns(windows):
    """Reverse the columns, the second to last axis of windows and patches."""
    return tf.reverse(windows, [-2])

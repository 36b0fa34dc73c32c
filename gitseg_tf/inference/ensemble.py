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
    "plane", "window_slices", "window_stride", "window_stride_mm", "input_size", "crop", "pixel_mm", "patch",
    "intensity",
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A network of an ensemble.

    Attributes:
        name: the run or SavedModel, for messages.
        network: function from float32 windows [N, height, width, K * C] to probabilities [N, height, width, L];
            with data.patch from patches [N, D, H, W, C] to probabilities [N, D, H, W, L].
        config: labels, channels, window, size, batch size, overlap and test-time augmentation.
        weights: its weight in the mean of each label, relative to those of the other members; None is 1 for all labels.
        has_presence: whether the network also returns the probabilities of its presence head, as [N, height, width,
            2 L], see `with_presence`.
    """

    name: str
    network: Callable = field(repr=False)
    config: Config = field(repr=False)
    weights: tuple[float, ...] | None = None
    has_presence: bool = False


def make_mean(members: Sequence[Member], *, presence: bool = False) -> Callable[[Volume, Callable], np.ndarray]:
    """Build a function that applies several networks to a whole scan and averages their probabilities.

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
    shares = _shares(members, presence=presence)
    members = [_with_planes(member, count, presence=presence) for member in members]
    count *= 1 + presence
    views = list(_views(members, shares))
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
                mean[part] += weight * probabilities.numpy()
        parts = ((part, finish(tf.constant(mean[part])).numpy()) for part in batches_of(len(mean), batch_size))
        return labels_first(parts, volume.shape)

    return mean_over_scan


def _with_planes(member: Member, labels: int, *, presence: bool) -> Member:
    """Let a member return `labels` planes or, with `presence`, twice as many; without a head, these are 0."""
    if presence == member.has_presence:
        return member

    def network(windows):
        outputs = member.network(windows)
        return tf.concat([outputs, tf.zeros_like(outputs)], -1) if presence else outputs[..., :labels]

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


def _views(members: Sequence[Member], weights: np.ndarray) -> Iterator[tuple[np.ndarray, View]]:
    """Yield each view of a scan with its weight in the mean; networks with the same windows share one.

    Weights are float32 [members, L] or, with presence, [members, 2 L].
    """
    groups: dict[tuple, list[int]] = {}
    for number, member in enumerate(members):
        if weights[number].any():
            groups.setdefault(view_key(member.config), []).append(number)
    for group in groups.values():
        config, networks = members[group[0]].config, [members[number].network for number in group]
        of_group = weights[group].sum(0)
        equal = (weights[group] == weights[group[0]]).all()
        within = None if equal else weights[group] / np.where(of_group > 0, of_group, 1.0)
        network = mean_network(networks, config.evaluation.tta.flip, within)
        scales = (1.0, *config.evaluation.tta.scales)
        for view in make_views(network, config, scales):
            yield of_group / np.float32(len(scales)), view


def _shares(members: Sequence[Member], *, presence: bool) -> np.ndarray:
    """Normalize the weights of members: float32 [members, L], with a sum of 1 for each label.

    With `presence`, the weights of their presence heads follow: members without a head do not vote.
    """
    ones = np.ones(len(members[0].config.label_set))
    weights = np.stack([ones if member.weights is None else np.array(member.weights) for member in members])
    if presence:
        votes = np.array([float(member.has_presence) for member in members])
        if not votes.any():
            raise ValueError("no member has a presence head")
        weights = np.hstack([weights, votes[:, None] * ones])
    return (weights / weights.sum(0)).astype(np.float32)


def view_key(config: Config) -> tuple:
    """Return what networks must have in common to share the views of a scan."""
    evaluation = config.evaluation
    windows = tuple(str(getattr(config.data, key, None)) for key in _WINDOW_KEYS)
    return windows, evaluation.batch_size, evaluation.overlap, evaluation.tta


def mean_network(networks: Sequence[Callable], flip: bool = False, weights: np.ndarray | None = None) -> Callable:
    """Combine several networks into one that averages their results, optionally also over flipped input.

    Args:
        networks: functions from windows to probabilities [..., L].
        flip: also average over flipped input.
        weights: the weight of each network for each label, float32 [networks, L] with a sum of 1 for each label; None
            weights them equally.

    Returns:
        A function like the networks.
    """
    if len(networks) == 1 and not flip:
        return networks[0]

    def mean(windows):
        windows = tf.convert_to_tensor(windows)
        flipped = flip_columns(windows) if flip else None
        total: Any = None
        for number, network in enumerate(networks):
            probabilities = network(windows)
            if flip:
                probabilities += flip_columns(network(flipped))
            if weights is not None:
                probabilities *= len(networks) * weights[number]
            total = probabilities if total is None else total + probabilities
        return total / (len(networks) * (1 + flip))

    return mean


def flip_columns(windows):
    """Reverse the columns, the second to last axis of windows and patches."""
    return tf.reverse(windows, [-2])

"""Warn about results that should not be trusted: unfinished models, and scans unlike the training data.

The network gives masks for any input. These checks compare a scan with the ranges of the training data, each widened by
a factor; docs/how-to/predict.md lists them and the measurements behind them.
"""

from gitseg_tf.config import Config
from gitseg_tf.core.paths import AnyPath
from gitseg_tf.core.text import plural
from gitseg_tf.data.volume import Volume
from gitseg_tf.inference.exported import exported_file, exported_version
from gitseg_tf.runs.folder import training_progress
from gitseg_tf.runs.training_data import (
    ChannelFacts,
    Range,
    TrainingData,
    channel_facts,
    field_of_view,
    read_training_data,
)

# Hounsfield units of at least 1% of the voxels of a CT with air around or inside the body; MR has no values like it.
CT_BELOW = -500.0
# Factors by which a value may lie outside the range of the training data.
SPACING_FACTOR = 1.5
FIELD_FACTOR = 1.4
WIDTH_FACTOR = 3.0
# Percentile 1 may be this fraction of the training data's largest width outside its range, and the median's position
# between percentiles 1 and 99 this far.
LOW_SHIFT = 0.5
MIDDLE_SHIFT = 0.25


def model_training_data(path: AnyPath) -> TrainingData | None:
    """Read the ranges of a model's training data; None if they are unknown.

    Args:
        path: a run or an export, but not a cross-validation.

    Raises:
        RunError: its training_data.json is damaged.
    """
    return read_training_data(_assets(path))


def model_warnings(path: AnyPath, config: Config, data: TrainingData | None) -> list[str]:
    """List the reasons to distrust all results of a model.

    Args:
        path: a run or an export, but not a cross-validation.
        config: its config.
        data: from `model_training_data`.

    Returns:
        One clause per reason, in the order: unfinished training, labels without a voxel in the training data.
    """
    warnings = []
    if exported_file(path) is None and exported_version(path) is None:
        epochs, ended = training_progress(path, config)
        unfinished = None if ended else f"{epochs} of its {plural(config.training.epochs, 'epoch')}"
    else:
        unfinished = config.provenance.get("unfinished")
    if unfinished:
        warnings.append(f"{path} is not fully trained ({unfinished})")
    if data is not None and data.missing_labels:
        warnings.append(f"{path} was trained without a single voxel of {', '.join(data.missing_labels)}")
    return warnings


def scan_warnings(volume: Volume, data: TrainingData) -> list[str]:
    """List the facts in which a scan lies far from the training data.

    Args:
        volume: the scan.
        data: the ranges of the training data, with the same channels.

    Returns:
        One clause per fact, such as "spacing 9 x 1.5 x 1.5 mm (training data: 3 x 1.5 x 1.5 mm)", in the order z, y,
        x; empty for a scan like those.
    """
    warnings = []
    for c, ranges in enumerate(data.channels or ()):
        channel = f" of channel {c + 1}" if volume.channels > 1 else ""
        warnings += _intensity_warnings(channel_facts(volume.percentiles[c].tolist()), ranges, channel)
    extents = field_of_view(volume.shape, volume.spacing)
    for name, values, known, factor in (
        ("spacing", volume.spacing, data.spacing_mm, SPACING_FACTOR),
        ("field of view", extents, data.field_of_view_mm, FIELD_FACTOR),
    ):
        if any(_is_far(value, of_axis, factor) for value, of_axis in zip(values, known, strict=True)):
            seen = " x ".join(_span(of_axis, "-") for of_axis in known)
            warnings.append(f"{name} {' x '.join(f'{value:.4g}' for value in values)} mm (training data: {seen} mm)")
    return warnings


def _intensity_warnings(facts: ChannelFacts, known: ChannelFacts, channel: str) -> list[str]:
    (low, _), (width, _), (middle, _) = facts.low, facts.width, facts.middle
    is_ct, all_ct, any_ct = low < CT_BELOW, known.low[1] < CT_BELOW, known.low[0] < CT_BELOW
    if is_ct and not any_ct:
        return [f"intensities{channel} from {low:.5g}, as in CT (training data: from {known.low[0]:.5g}, not CT)"]
    if all_ct and not is_ct:
        return [f"intensities{channel} from {low:.5g}, not as in CT (training data: from {known.low[0]:.5g}, CT)"]
    shift = LOW_SHIFT * known.width[1]
    if not known.low[0] - shift <= low <= known.low[1] + shift:
        return [f"intensities{channel} begin at {low:.5g} (training data: {_span(known.low)})"]
    if _is_far(width, known.width, WIDTH_FACTOR):
        return [f"intensities{channel} span {width:.4g} (training data: {_span(known.width)})"]
    if not known.middle[0] - MIDDLE_SHIFT <= middle <= known.middle[1] + MIDDLE_SHIFT:
        percent = (round(100 * known.middle[0]), round(100 * known.middle[1]))
        return [f"median intensity{channel} at {100 * middle:.0f}% of the range (training data: {_span(percent)}%)"]
    return []


def _is_far(value: float, known: Range, factor: float) -> bool:
    return not known[0] / factor <= value <= known[1] * factor


def _span(known: Range, to: str = " to ") -> str:
    first, last = (f"{value:.4g}" for value in known)
    return first if first == last else f"{first}{to}{last}"


def _assets(path: AnyPath) -> AnyPath:
    """Return the folder with the files that accompany a network."""
    if (file := exported_file(path)) is not None:
        return file.parent
    exported = exported_version(path)
    return path if exported is None else exported / "assets.extra"

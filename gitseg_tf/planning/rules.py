"""Choose a plan from a fingerprint, measurements, and limits of time and memory. Pure functions, without TensorFlow.

docs/explanation/planning.md explains each rule.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gitseg_tf.core.text import plural
from gitseg_tf.errors import ConfigError
from gitseg_tf.planning.candidates import Candidate, Measurement, candidates, on_grid
from gitseg_tf.planning.choices import Choice, postprocess_choices, tta_choice
from gitseg_tf.planning.description import fingerprint_lines
from gitseg_tf.planning.fingerprint import Fingerprint
from gitseg_tf.planning.machine import Machine

MOST_EPOCHS = 1000
_MARGIN = 0.97
# Per epoch: metrics, checkpoint, history and pictures.
_EPOCH_SECONDS = 1.0
# Scoring, the report and the export load further libraries.
_SCORING_GIB, _SCORING_SECONDS = 0.6, 30.0
_ACTIVATION_MARGIN = 1.2
_LEAST_WINDOWS, _LEAST_PATCHES = 4, 2
_SHUFFLED, _SCANS_AT_ONCE = 256, 16
_LEARNING_RATE, _LEARNING_RATE_3D = 0.002, 0.003


@dataclass(frozen=True)
class MemoryUse:
    """How a candidate is trained within a memory limit: batch, parts of a batch, cache, and the expected peak."""

    batch_size: int
    parts: int
    cache_mib: int
    peak_gib: float


@dataclass(frozen=True)
class Prediction:
    """What a plan is expected to take.

    Attributes:
        start_minutes: tracing the graph, and preparing the scans in the first epoch.
        epoch_seconds: one epoch with its validation.
        training_minutes: all epochs, including `start_minutes`.
        scoring_minutes: scoring whole scans and exporting, after training.
        peak_gib: highest resident memory.
    """

    start_minutes: float
    epoch_seconds: float
    training_minutes: float
    scoring_minutes: float
    peak_gib: float


@dataclass(frozen=True)
class Plan:
    """A config with the reasons for each of its keys.

    Attributes:
        choices: dotted keys, their values and reasons.
        prediction: what training will take.
        limits: the minutes and GiB that were allowed.
        facts, measured, not_tried: lines about the data, the measurements, and what was not considered.
    """

    choices: tuple[Choice, ...]
    prediction: Prediction
    limits: tuple[float, float]
    facts: tuple[str, ...]
    measured: tuple[str, ...]
    not_tried: tuple[str, ...]

    def __getitem__(self, key: str) -> Any:
        """Return the value that was chosen for a dotted key.

        Raises:
            KeyError: the plan leaves the key at its default.
        """
        return {choice.key: choice.value for choice in self.choices}[key]


def decide(
    facts: Fingerprint,
    machine: Machine,
    measurements: Mapping[str, Measurement],
    *,
    minutes: float,
    memory_gib: float,
) -> Plan:
    """Choose a plan.

    Args:
        facts: the dataset.
        machine: where it will be trained.
        measurements: by name of the candidate, at least one; the others are interpolated.
        minutes: time for training, without conversion, scoring and export.
        memory_gib: most resident memory.

    Returns:
        The plan, the same for the same arguments.

    Raises:
        ConfigError: not even the cheapest candidate fits into the memory or the time.
    """
    listed = candidates(facts, machine)
    known = [(candidate, measurements[candidate.name]) for candidate in listed if candidate.name in measurements]
    options = []
    for candidate in listed:
        cost = measurements.get(candidate.name) or _interpolated(candidate, known)
        use = memory_use(candidate, cost, facts, memory_gib)
        if use is not None:
            options.append((candidate, cost, use, predict(candidate, cost, use, facts, minutes)))
    if not options:
        needed = min(
            _least_memory(one, measurements.get(one.name) or _interpolated(one, known), facts) for one in listed
        )
        raise ConfigError(
            f"the memory limit is {memory_gib:g} GiB, but training the smallest network on this data takes about "
            f"{needed:.2g} GiB; allow at least {math.ceil(10 * needed) / 10:g} GiB"
        )
    affordable = [option for option in options if _is_trained_enough(option[0], *option[3])]
    candidate, cost, use, (epochs, steps, prediction) = affordable[-1] if affordable else options[0]
    if epochs < 1:
        needed, start = prediction.epoch_seconds / 60, prediction.start_minutes
        raise ConfigError(
            f"{minutes:g} minutes are too short: one epoch takes about {needed:.2g} minutes, after a start of "
            f"{start:.2g} minutes; allow at least {math.ceil(11 * (needed + start)) / 10:g}"
        )
    choices = (
        *candidate.choices,
        *_batch_choices(candidate, use, memory_gib),
        *_training_choices(candidate, epochs, steps, minutes, prediction),
        tta_choice(facts),
        *postprocess_choices(facts),
    )
    order = ("data", "augment", "model", "training", "evaluation", "postprocess")
    return Plan(
        choices=tuple(sorted(choices, key=lambda choice: order.index(choice.key.partition(".")[0]))),
        prediction=prediction,
        limits=(minutes, memory_gib),
        facts=tuple(fingerprint_lines(facts)),
        measured=tuple(_measured_lines(listed, measurements, candidate, options)),
        not_tried=_not_tried(candidate),
    )


def memory_use(candidate: Candidate, cost: Measurement, facts: Fingerprint, memory_gib: float) -> MemoryUse | None:
    """Fit a candidate into the memory: first a smaller batch, then gradient accumulation, then no cache.

    Returns:
        How to train it; None if even single windows do not fit.
    """
    fixed, window = _fixed_gib(cost, facts), _window_gib(candidate, cost)
    least = _LEAST_PATCHES if _is_3d(candidate) else _LEAST_WINDOWS
    batches = [candidate.batch_size]
    while batches[-1] >= 2 * least:
        batches.append(batches[-1] // 2)
    parts = [1]
    while batches[-1] % (2 * parts[-1]) == 0:
        parts.append(2 * parts[-1])
    ways = [(batch, 1) for batch in batches] + [(batches[-1], part) for part in parts[1:]]
    stored, held_out = _prepared_gib(candidate, facts)
    streamed = _streamed_gib(candidate, facts)
    for batch, part in ways:
        peak = fixed + window * batch / part
        # While the cache is filled, slices exist twice.
        if peak + 2 * stored + held_out <= memory_gib:
            return MemoryUse(batch, part, math.ceil(1024 * stored) + 1, peak + 2 * stored + held_out)
        if peak + streamed <= memory_gib:
            return MemoryUse(batch, part, 0, peak + streamed)
    return None


def predict(
    candidate: Candidate, cost: Measurement, use: MemoryUse, facts: Fingerprint, minutes: float
) -> tuple[int, int, Prediction]:
    """Compute the number of epochs and steps that fit into the time, and what they take.

    Returns:
        Epochs, steps, and the prediction for them. If there is time for an epoch, but not for the start, it is one.
    """
    share = use.batch_size / candidate.batch_size
    step, validation = on_grid(cost.step_seconds) * share, on_grid(cost.validation_seconds) * share
    steps = max(cost.windows // use.batch_size, 1)
    epoch = steps * step + math.ceil(cost.held_out_windows / use.batch_size) * validation + _EPOCH_SECONDS
    slices = sum(depth for depth, _ in facts.training) + sum(facts.held_out)
    prepare = slices * on_grid(cost.slice_seconds)
    if not use.cache_mib:
        epoch += prepare
    start = on_grid(cost.start_seconds) + prepare
    seconds = 60 * _MARGIN * minutes
    epochs = min(max(int((seconds - start) / epoch), int(epoch <= 60 * minutes)), MOST_EPOCHS)
    scoring = _SCORING_SECONDS + 2 * math.ceil(cost.held_out_windows / use.batch_size) * validation
    total = (start + max(epochs, 1) * epoch) / 60
    return epochs, epochs * steps, Prediction(start / 60, epoch, total, scoring / 60, use.peak_gib)


def _is_trained_enough(candidate: Candidate, epochs: int, steps: int, _: Prediction) -> bool:
    return epochs >= candidate.least_epochs and steps >= candidate.least_steps


def _is_3d(candidate: Candidate) -> bool:
    return "data.patch" in candidate.overrides


def _interpolated(candidate: Candidate, known: list[tuple[Candidate, Measurement]]) -> Measurement:
    """Estimate the cost of a candidate that was not measured, from the two nearest in size or in proportion to one."""
    nearest = sorted(known, key=lambda pair: abs(pair[0].size - candidate.size))[:2]
    one, cost = nearest[0]

    def value(name: str) -> float:
        first = getattr(cost, name)
        if len(nearest) == 1:
            return first * candidate.size / one.size
        other, second = nearest[1][0], getattr(nearest[1][1], name)
        slope = (second - first) / (other.size - one.size)
        return max(first + slope * (candidate.size - one.size), 0.2 * first)

    activations = (cost.peak_gib - cost.base_gib) * max(candidate.size / one.size, 1.0)
    return replace(
        cost,
        step_seconds=value("step_seconds"),
        validation_seconds=value("validation_seconds"),
        slice_seconds=value("slice_seconds"),
        peak_gib=cost.base_gib + activations,
        steps=0,
    )


def _fixed_gib(cost: Measurement, facts: Fingerprint) -> float:
    """Memory that does not depend on the batch: libraries, network, and the probabilities of the largest scan."""
    voxels = math.prod(facts.most_shape)
    bytes_per_voxel = 9 * len(facts.labels) + 6 * len(facts.channels)
    return cost.base_gib + _SCORING_GIB + voxels * bytes_per_voxel / 2**30


def _window_gib(candidate: Candidate, cost: Measurement) -> float:
    return _ACTIVATION_MARGIN * max(cost.peak_gib - cost.base_gib, 0.0) / candidate.batch_size


def _least_memory(candidate: Candidate, cost: Measurement, facts: Fingerprint) -> float:
    return _fixed_gib(cost, facts) + _window_gib(candidate, cost) + _streamed_gib(candidate, facts)


def _slice_gib(candidate: Candidate, facts: Fingerprint) -> float:
    """Memory of a prepared slice: 16-bit channels, and a bit per label and for ignored voxels."""
    height, width = candidate.overrides["data.input_size"]
    return height * width * (2 * len(facts.channels) + len(facts.labels) // 8 + 1) / 2**30


def _prepared_gib(candidate: Candidate, facts: Fingerprint) -> tuple[float, float]:
    each = _slice_gib(candidate, facts)
    return each * sum(depth for depth, _ in facts.training), each * sum(facts.held_out)


def _streamed_gib(candidate: Candidate, facts: Fingerprint) -> float:
    """Memory of the scans and shuffled windows if the prepared scans are not kept."""
    overrides = candidate.overrides
    planes = overrides["data.patch"][0] if _is_3d(candidate) else overrides.get("data.window_slices", 1)
    depths = sorted((depth for depth, _ in facts.training), reverse=True)
    windows = min(_SHUFFLED, sum(depths))
    return _slice_gib(candidate, facts) * (sum(depths[:_SCANS_AT_ONCE]) + windows * planes)


def _batch_choices(candidate: Candidate, use: MemoryUse, memory_gib: float) -> list[Choice]:
    peak = f"expected peak {use.peak_gib:.1f} GiB of {memory_gib:.3g} GiB"
    reason = (
        peak if use.batch_size == candidate.batch_size else f"{candidate.batch_size} would exceed the memory; {peak}"
    )
    choices = [Choice("data.batch_size", use.batch_size, reason)]
    cached = "all prepared scans fit into memory" if use.cache_mib else "the prepared scans do not fit into memory"
    choices.append(Choice("data.cache_mib", use.cache_mib, cached))
    if use.parts > 1:
        reason = f"{use.batch_size} windows at once would exceed the memory"
        choices.append(Choice("training.gradient_accumulation_steps", use.parts, reason))
    micro = use.batch_size // use.parts
    return [*choices, Choice("evaluation.batch_size", micro, "as many as training processes at once")]


def _training_choices(
    candidate: Candidate, epochs: int, steps: int, minutes: float, prediction: Prediction
) -> list[Choice]:
    reason = f"{prediction.epoch_seconds:.3g} s per epoch, {prediction.training_minutes:.3g} of {minutes:g} minutes"
    if epochs == MOST_EPOCHS:
        reason += "; more epochs rarely help"
    elif prediction.training_minutes > minutes:
        reason += f"; the start takes {prediction.start_minutes:.2g} minutes of them"
    decay, rate = ema_decay(steps), _LEARNING_RATE_3D if _is_3d(candidate) else _LEARNING_RATE
    return [
        Choice("training.epochs", epochs, reason),
        Choice("training.learning_rate", rate, "for AdamW and this network; gitseg lr-find measures it"),
        Choice("training.schedule", "cosine", "ends at zero after the last epoch, whatever their number"),
        Choice("training.ema_decay", decay, f"averages the last {1 / (1 - decay):.0f} of {plural(steps, 'step')}"),
        Choice("training.loss.bce.weight", 1.0, "smooth, and gives calibrated probabilities"),
        Choice("training.loss.dice.weight", 1.0, "small labels count as much as large ones"),
    ]


def ema_decay(steps: int) -> float:
    """Choose the decay of the weight average, so that it spans at most about a tenth of the training.

    Example:
        >>> ema_decay(100), ema_decay(1500), ema_decay(30_000)
        (0.9, 0.99, 0.999)
    """
    return next((decay for decay in (0.999, 0.995, 0.99, 0.98, 0.95) if steps * (1 - decay) >= 10), 0.9)


def _measured_lines(listed, measurements, chosen, options) -> list[str]:
    lines = []
    predictions = {candidate.name: prediction for candidate, _, _, prediction in options}
    for candidate in listed:
        cost = measurements.get(candidate.name)
        mark = " (chosen)" if candidate is chosen else ""
        if candidate.name not in predictions:
            lines.append(f"{candidate.name}: exceeds the memory")
            continue
        epochs, steps, _ = predictions[candidate.name]
        if cost is None:
            lines.append(f"{candidate.name}{mark}: interpolated, {plural(epochs, 'epoch')}, {plural(steps, 'step')}")
            continue
        origin = f"{'from the cache, ' if cost.cached else ''}{cost.date}"
        lines.append(
            f"{candidate.name}{mark}: {cost.step_seconds:.3g} s per step of {candidate.batch_size}, peak "
            f"{cost.peak_gib:.2g} GiB ({plural(cost.steps, 'step')}, {origin}); {plural(epochs, 'epoch')}, "
            f"{plural(steps, 'step')}"
        )
    return lines


def _not_tried(candidate: Candidate) -> tuple[str, ...]:
    lines = [
        "pretrained encoders: model.backbone with model.pretrained, which need a download or a file",
        "other decoders (unetplusplus, attention_unet, fpn, deeplabv3plus, segformer) and deep supervision",
        "other losses, such as top_k for hard outlines or boundary for the Hausdorff distance",
        "other learning rates and optimizers (gitseg lr-find, gitseg grid)",
        "thresholds, smoothing and hole filling after training (gitseg tune), and ensembles",
    ]
    if _is_3d(candidate):
        return ("2-D and 2.5-D networks, and 3-D networks with residual blocks", *lines)
    return ("3-D networks: patches of large volumes take many more steps (docs/explanation/planning.md)", *lines)

"""The networks that a plan chooses from, and what measuring one of them on a machine gives."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from gitseg_tf.planning.choices import (
    Choice,
    augment_choices,
    data_choices,
    default_filters,
    input_sizes,
    kind_of,
    whole_volume_patch,
)
from gitseg_tf.planning.fingerprint import Fingerprint
from gitseg_tf.planning.machine import Machine

WINDOWS, PATCHES = 16, 4
_PATCH_VOXELS = 2**17  # of which PATCHES are a batch
_GRID = 2 ** (1 / 8)
# A larger input is chosen if it can still be trained for this long.
LEAST_EPOCHS, LEAST_STEPS = 20, 1500
# For volumes: filters, the number of steps for which there must be time, and the order of measuring.
_WIDTHS = ((8, 1, 3), (16, 60, 1), (24, 1500, 0), (32, 1500, 2))


@dataclass(frozen=True)
class Candidate:
    """A network with its input, and everything else that its speed depends on.

    Attributes:
        name: for people.
        choices: the config keys that differ from the defaults, with the reason of each.
        size: number of pixels or voxels of a window or patch, to which time and memory of a step are proportional.
        batch_size: windows or patches per step when it is measured.
        least_epochs, least_steps: it is chosen if there is time for as many.
        turn: its place in the order of measuring; 0 is interpolated.
    """

    name: str
    choices: tuple[Choice, ...]
    size: int
    batch_size: int
    least_epochs: int
    least_steps: int
    turn: int = 0

    @property
    def overrides(self) -> dict[str, Any]:
        """The dotted config keys."""
        return {choice.key: choice.value for choice in self.choices} | {"data.batch_size": self.batch_size}


@dataclass(frozen=True)
class Measurement:
    """The cost of training a candidate on this machine.

    Attributes:
        step_seconds: seconds of a training step after warm-up, with the input pipeline.
        validation_seconds: seconds of a validation step.
        start_seconds: seconds of the first step, which traces the graph, beyond those of another one.
        slice_seconds: seconds to read and prepare one slice of a scan, in the first epoch.
        base_gib: resident memory after the network is built.
        peak_gib: highest resident memory of the measuring process, without the prepared scans.
        windows: windows or patches of a training epoch of the whole dataset.
        held_out_windows: those of a validation.
        steps: number of steps that were timed.
        date: day of the measurement.
        cached: whether it was made for an earlier plan.
    """

    step_seconds: float
    validation_seconds: float
    start_seconds: float
    slice_seconds: float
    base_gib: float
    peak_gib: float
    windows: int
    held_out_windows: int
    steps: int
    date: str
    cached: bool = False

    def to_tree(self) -> dict:
        """Return the values to store."""
        return {name: value for name, value in asdict(self).items() if name != "cached"}

    @classmethod
    def from_tree(cls, tree: dict, *, cached: bool = False) -> "Measurement":
        """Read stored values.

        Raises:
            KeyError, TypeError, ValueError: a value is missing or is not of its type.
        """
        kinds: dict[str, Any] = {"windows": int, "held_out_windows": int, "steps": int, "date": str}
        names = [field.name for field in fields(cls) if field.name != "cached"]
        values = {name: kinds.get(name, float)(tree[name]) for name in names}
        numbers = [value for value in values.values() if not isinstance(value, str)]
        if not all(math.isfinite(value) and value >= 0 for value in numbers) or not values["step_seconds"]:
            raise ValueError("a measurement must have finite, positive numbers")
        return cls(**values, cached=cached)


def on_grid(value: float) -> float:
    """Round a measured duration to a geometric grid of 8 values per factor of 2, so that jitter rarely changes a plan.

    Example:
        >>> round(on_grid(0.98), 3), round(on_grid(1.03), 3), round(on_grid(1.1), 3)
        (1.0, 1.0, 1.091)
    """
    return _GRID ** round(math.log(value, _GRID)) if value > 0 else 0.0


def candidates(facts: Fingerprint, machine: Machine) -> list[Candidate]:
    """List the networks that suit a dataset, from the least to the most expensive.

    Args:
        facts: the dataset.
        machine: where it will be trained.
    """
    kind, reason = kind_of(facts)
    shared = (*data_choices(facts, kind), *augment_choices(facts, kind))
    if kind == "whole":
        return _whole_volume(facts, machine, shared, reason)
    slices = next((choice.value for choice in shared if choice.key == "data.window_slices"), 1)
    network = (
        Choice("model.architecture", "unet", reason),
        Choice("model.backbone", "plain", "best Dice for its time on two cores (docs/explanation/performance.md)"),
        default_filters(machine),
    )
    listed = []
    sizes = input_sizes(facts)
    turns = {number: turn for turn, number in enumerate(dict.fromkeys((min(2, len(sizes) - 1), 0, len(sizes) - 1)), 1)}
    for number, (height, width) in enumerate(sizes):
        pixel = max(facts.body_mm) / max(height, width)
        reason = f"the body at {pixel:.2g} mm per pixel; the scans have {min(facts.spacing[1:]):g} mm"
        size = Choice("data.input_size", [height, width], reason)
        name = f"{'2-D' if slices == 1 else '2.5-D'} plain U-Net, {slices} x {height} x {width}"
        listed.append(
            Candidate(
                name,
                (size, *shared, *network),
                height * width,
                WINDOWS,
                LEAST_EPOCHS,
                LEAST_STEPS,
                turns.get(number, 0),
            )
        )
    return listed


def to_measure(listed: list[Candidate]) -> list[Candidate]:
    """Choose which candidates to measure, the most important first; the others are interpolated."""
    return sorted((candidate for candidate in listed if candidate.turn), key=lambda candidate: candidate.turn)


def _whole_volume(facts: Fingerprint, machine: Machine, shared: tuple[Choice, ...], reason: str) -> list[Candidate]:
    patch, levels = whole_volume_patch(facts)
    shape = " x ".join(f"{n:g}" for n in facts.shape)
    multiple = 2 ** (levels - 1)
    batch = max(min(PATCHES, round(PATCHES * _PATCH_VOXELS / math.prod(patch))), 2)
    listed = []
    for filters, least_steps, turn in _WIDTHS:
        choices = (
            Choice("data.input_size", list(patch[1:]), f"about the size of the slices of a median volume of {shape}"),
            Choice("data.patch", list(patch), f"the median volume, rounded to multiples of {multiple}"),
            *shared,
            Choice("model.architecture", "unet3d", reason),
            Choice("model.levels", levels, f"halving {min(facts.shape):g} voxels more often leaves fewer than four"),
            Choice("model.filters", filters, f"the most for which there is time for {least_steps} steps"),
        )
        name = f"3-D U-Net, {filters} filters, {' x '.join(map(str, patch))}"
        listed.append(Candidate(name, choices, math.prod(patch) * filters, batch, 1, least_steps, turn))
    return listed

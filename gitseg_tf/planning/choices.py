"""Choices that follow from the data alone: kind of network, window, intensities, augmentation, post-processing.

docs/explanation/planning.md explains each rule.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gitseg_tf.planning.fingerprint import Fingerprint, LabelFingerprint
from gitseg_tf.planning.machine import Machine

# A volume of at most this many voxels is trained on as a whole.
WHOLE_VOLUME = 2**18
ANISOTROPIC = 3.0
# Slices farther apart show different anatomy, so a 2-D network is used.
_MOST_SLICE_MM = 10.0
_WINDOW_STEP_MM, _WINDOW_STEP_SHARE, _WINDOW_SLICES = 6.0, 0.015, 5
_RARE_LABEL = 0.05
_LEAST_SCANS = 5  # from which post-processing is concluded
_SAME = 1.05
_MULTIPLE = 32
_LEAST_RESOLUTION, _MOST_POOLINGS = 4, 4
_MOST_INPUT = 512
_MOST_STRIDE = 8


@dataclass(frozen=True)
class Choice:
    """The value of a config key, and the fact behind it."""

    key: str
    value: Any
    reason: str

    @property
    def path(self) -> tuple[str, ...]:
        """The parts of the key; the name of a label may contain dots."""
        section, _, rest = self.key.partition(".")
        if section == "postprocess":
            label, _, last = rest.rpartition(".")
            return section, label, last
        return (section, *rest.split("."))


def kind_of(facts: Fingerprint) -> tuple[str, str]:
    """Choose the kind of network.

    Returns:
        "whole" (a 3-D network whose patch is the whole volume), "2d" or "2.5d"; and why.
    """
    voxels = math.prod(facts.shape)
    if voxels <= WHOLE_VOLUME and min(facts.shape) >= 16 and facts.anisotropy < ANISOTROPIC:
        return "whole", f"a median volume has {voxels:,.0f} voxels, so that a 3-D patch holds about all of it"
    if facts.shape[0] < 3 or facts.neighbors < 0.5:
        return "2d", f"only {facts.neighbors:.0%} of the slices have neighbors"
    if facts.spacing[0] >= _MOST_SLICE_MM:
        return "2d", f"slices are {facts.spacing[0]:g} mm apart, so neighbors show other anatomy"
    isotropy = "anisotropic" if facts.anisotropy >= ANISOTROPIC else "nearly isotropic"
    size = " x ".join(f"{n:g}" for n in facts.shape)
    return (
        "2.5d",
        f"volumes of {size} voxels ({isotropic_text(facts)}, {isotropy}) are too large for whole-volume patches",
    )


def isotropic_text(facts: Fingerprint) -> str:
    """Describe the spacing in words."""
    return f"slices {facts.spacing[0]:g} mm apart, pixels of {min(facts.spacing[1:]):g} mm"


def data_choices(facts: Fingerprint, kind: str) -> Iterator[Choice]:
    """Choose the intensities, the window and the sampling."""
    yield _intensity(facts)
    if kind == "whole":
        yield Choice("data.crop", "none", "a patch holds whole slices")
        least, most = min(facts.least_spacing[1:]), max(facts.most_spacing[1:])
        reason = f"pixels are {least:g} mm" if least == most else f"pixels are {least:g} to {most:g} mm"
        yield Choice("data.pixel_mm", min(facts.spacing[1:]), f"{reason}; all volumes get the median")
        if facts.most_spacing[0] > _SAME * facts.least_spacing[0]:
            reason = f"slice distances differ: {facts.least_spacing[0]:g} to {facts.most_spacing[0]:g} mm"
            yield Choice("data.window_stride_mm", facts.spacing[0], reason)
        return
    yield Choice("data.crop", "body", f"the body's bounding box is {facts.body_mm[0]:g} x {facts.body_mm[1]:g} mm")
    if kind == "2d":
        yield Choice("data.window_slices", 1, kind_of(facts)[1])
    else:
        yield Choice("data.window_slices", _WINDOW_SLICES, "two slices on each side show what continues where")
        yield _window_step(facts)
    yield _balance(facts)


def _window_step(facts: Fingerprint) -> Choice:
    extent = max(facts.body_mm)
    wanted = min(_WINDOW_STEP_MM, max(_WINDOW_STEP_SHARE * extent, min(facts.spacing[1:])))
    wanted = round(wanted, 1)
    step = max(math.floor(wanted / facts.spacing[0] + 0.5), 1)
    if facts.most_spacing[0] > _SAME * facts.least_spacing[0] or step > _MOST_STRIDE:
        which = f"slice distances are {facts.least_spacing[0]:g} to {facts.most_spacing[0]:g} mm"
        return Choice("data.window_stride_mm", wanted, f"{which}; about {wanted:g} mm suits a body of {extent:g} mm")
    reach = step * facts.spacing[0] * (_WINDOW_SLICES // 2)
    reason = f"slices are {facts.spacing[0]:g} mm apart, so a window reaches {reach:g} mm to both sides"
    return Choice("data.window_stride", step, reason)


def _balance(facts: Fingerprint) -> Choice:
    rare = [label for label in facts.labels if 0 < label.slice_fraction < _RARE_LABEL]
    if not rare:
        fractions = [label.slice_fraction for label in facts.labels if label.slice_fraction]
        least = min(fractions, default=0.0)
        return Choice("data.balance_labels", 0.0, f"every label is in at least {least:.0%} of the slices")
    names = ", ".join(f"{label.name} ({label.slice_fraction:.1%})" for label in rare)
    return Choice("data.balance_labels", 0.5, f"in few slices: {names}")


def _intensity(facts: Fingerprint) -> Choice:
    settings, reasons = [], []
    for channel in facts.channels:
        if channel.is_ct:
            low, high = (10 * math.floor(channel.foreground[0] / 10), 10 * math.ceil(channel.foreground[1] / 10))
            settings.append({"kind": "window", "low": low, "high": max(high, low + 10)})
            reasons.append("CT: percentiles 0.5 to 99.5 of the annotated voxels, in Hounsfield units")
        else:
            settings.append({"kind": "percentiles", "low": 1, "high": 99})
            reasons.append(f"no absolute scale: the range of a scan varies by a factor of {channel.width_ratio:.3g}")
    value = settings[0] if len({str(setting) for setting in settings}) == 1 else settings
    return Choice("data.intensity", value, "; ".join(dict.fromkeys(reasons)))


def augment_choices(facts: Fingerprint, kind: str) -> Iterator[Choice]:
    """Choose the augmentation: no flip where labels have a side, and changes of intensity that the modality has."""
    sided = facts.sided
    if sided:
        reasons = "; ".join(f"{label.name}: {label.side}" for label in sided[:4])
        yield Choice("augment.flip.p", 0.0, f"labels have a side ({reasons}{'; ...' if sided[4:] else ''})")
    else:
        yield Choice("augment.flip.p", 0.5, "no label has a side, by its name or by a mirrored counterpart")
    patients = f"few patients ({facts.patients})" if facts.patients < 100 else f"{facts.patients} patients"
    yield Choice("augment.affine.p", 0.75, f"{patients} do not show every size and pose")
    yield Choice("augment.affine.scale", 0.15, "range of configs/accuracy.yaml")
    yield Choice("augment.affine.rotate", 15.0, "range of configs/accuracy.yaml")
    if all(channel.is_ct for channel in facts.channels):
        yield Choice("augment.brightness.p", 0.1, "Hounsfield units are calibrated; only small shifts occur")
        yield Choice("augment.brightness.shift", 0.03, "as above")
    else:
        yield Choice("augment.gamma.p", 0.2, "the contrast of images without absolute scale varies")
        yield Choice("augment.bias_field.p", 0.1, "receive coils shade MR images")
    if kind == "whole":
        yield Choice("augment.dropout.p", 0.0, "rectangles would hide most of a small structure")


def postprocess_choices(facts: Fingerprint) -> Iterator[Choice]:
    """Choose conservative post-processing: only what leaves every reference mask as it is, or nearly so."""
    for label in facts.labels:
        if label.present < _LEAST_SCANS:
            continue
        if label.components == 1:
            reason = f"one component in each of {label.present} scans"
            yield Choice(f"postprocess.{label.name}.keep_largest_component", True, reason)
        elif (least := _least_component(label)) > 0:
            reason = f"99% of its components have at least {label.smallest_component_ml:g} ml"
            yield Choice(f"postprocess.{label.name}.min_component_ml", least, reason)


def _least_component(label: LabelFingerprint) -> float:
    half = 0.5 * label.smallest_component_ml
    return float(f"{half:.1g}") if half >= 0.02 * label.volume_ml[1] else 0.0


def whole_volume_patch(facts: Fingerprint) -> tuple[tuple[int, int, int], int]:
    """Choose the patch (slices, height, width) about as large as a median volume, and the number of resolutions.

    All axes are halved as long as the shortest one keeps at least four voxels (Isensee et al. 2021,
    doi:10.1038/s41592-020-01008-z), and the patch is the median shape, rounded to the nearest multiples of what that
    divides by: rounding up would spend much of each step on padding.
    """
    poolings = min(max(math.floor(math.log2(min(facts.shape) / _LEAST_RESOLUTION)), 1), _MOST_POOLINGS)
    multiple = 2**poolings
    depth, height, width = (max(round(n / multiple), 1) * multiple for n in facts.shape)
    return (depth, height, width), poolings + 1


def input_sizes(facts: Fingerprint) -> list[tuple[int, int]]:
    """List the input sizes of a 2-D or 2.5-D network, from about 128 pixels to the scans' own resolution.

    The shorter side is as long as nine of ten bodies need, so that less of the input is padding.
    """
    tall = facts.body_mm[0] > facts.body_mm[1]
    finest = min(facts.spacing[1:])
    native = max(facts.body_mm) / finest
    longest = min(max(math.ceil(native / _MULTIPLE - 0.25) * _MULTIPLE, 64), _MOST_INPUT)
    sizes = []
    for long in range(min(128, longest), longest + 1, _MULTIPLE):
        short = max(math.ceil(long * facts.body_aspect / _MULTIPLE - 0.25) * _MULTIPLE, 64 if long > 32 else 32)
        short = min(short, long)
        sizes.append((long, short) if tall else (short, long))
    return sizes


def tta_choice(facts: Fingerprint) -> Choice:
    """Predict mirrored scans too, if training mirrors them."""
    if facts.sided:
        return Choice("evaluation.tta.flip", False, "labels have a side")
    return Choice("evaluation.tta.flip", True, "training flips; prediction takes twice as long")


def default_filters(machine: Machine) -> Choice:
    """Choose the number of channels at full resolution."""
    if machine.gpu:
        return Choice("model.filters", 32, "a GPU")
    return Choice("model.filters", 16, "no GPU: 32 filters would take about three times as long per step")

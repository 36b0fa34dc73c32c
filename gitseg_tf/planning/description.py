"""Describe a fingerprint in words."""

from gitseg_tf.core.text import plural
from gitseg_tf.planning.fingerprint import Fingerprint


def fingerprint_lines(facts: Fingerprint) -> list[str]:
    """Describe a fingerprint, one fact a line."""
    z, y, x = facts.spacing
    depth, height, width = facts.shape
    read = "" if facts.measured == facts.scans else f" ({facts.measured} of them measured)"
    lines = [
        f"{plural(facts.scans, 'annotated scan')}{read} of {plural(facts.patients, 'patient')}",
        f"median shape {depth:g} x {height:g} x {width:g}, spacing {z:g} x {y:g} x {x:g} mm, anisotropy "
        f"{facts.anisotropy:.2g}; the body's bounding box is {facts.body_mm[0]:g} x {facts.body_mm[1]:g} mm",
    ]
    for channel in facts.channels:
        unit = "Hounsfield units" if channel.is_ct else "not in Hounsfield units"
        lines.append(
            f"channel {channel.name}: {unit}, percentiles 1 to 99 are {channel.range[0]:g} to {channel.range[1]:g}, "
            f"the widest range is {channel.width_ratio:.3g} times the narrowest"
        )
    for label in facts.labels:
        low, middle, high = label.volume_ml
        side = f"; has a side: {label.side}" if label.side else ""
        scans = plural(label.annotated, "scan")
        lines.append(
            f"label {label.name}: in {label.present} of {scans} and {label.slice_fraction:.0%} of the slices, "
            f"{middle:g} ml ({low:g} to {high:g}), at most {plural(label.components, 'component')}{side}"
        )
    return lines

"""The phantom's abdomen as a T1-weighted MR scanner sees it: fat is bright, muscle and organs gray, gas black."""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d

from gitseg_tf.phantom.anatomy import Anatomy, fold_distance
from gitseg_tf.phantom.geometry import Box, Grid, Shape, Tube, carve, fine_box, smooth_field, upsample

EDGE_MM = np.float32(1.8)
GAS = 0.03
FAT = 0.84
MUSCLE = 0.19
SOLIDS = {
    "heart": 0.26,
    "liver": 0.36,
    "spleen": 0.25,
    "gallbladder": 0.30,
    "pancreas": 0.44,
    "right psoas": 0.19,
    "left psoas": 0.19,
    "right ilium": 0.19,
    "left ilium": 0.19,
    "right kidney": 0.38,
    "left kidney": 0.38,
    "right renal sinus": 0.72,
    "left renal sinus": 0.72,
    "aorta": 0.20,
    "vena cava": 0.27,
}
BONES = {"spine": 0.46, "disc": 0.30, "transverse process": 0.34, "spinous process": 0.42, "canal": 0.52, "cord": 0.36}


@dataclass(frozen=True)
class Look:
    """Intensity of a hollow organ's wall and content, as fractions of the brightest tissue; lengths in mm."""

    wall: float
    wall_mm: float
    content: float
    content_spread: float
    mottle: float


LOOKS = {
    "large_bowel": Look(wall=0.40, wall_mm=2.2, content=0.17, content_spread=0.06, mottle=0.07),
    "small_bowel": Look(wall=0.47, wall_mm=1.9, content=0.34, content_spread=0.06, mottle=0.035),
    "stomach": Look(wall=0.38, wall_mm=3.2, content=0.30, content_spread=0.08, mottle=0.06),
}


def draw_tissue(anatomy: Anatomy, rng: np.random.Generator) -> np.ndarray:
    """Paint the tissues, without noise and coil shading.

    Args:
        anatomy: the structures to paint.
        rng: random generator for textures, content and gas.

    Returns:
        float32 [depth, height, width] at the image's resolution, air 0, fat about 0.84.
    """
    grid = anatomy.grid
    texture = upsample(smooth_field(rng, grid, (5, 4.5, 4.5)))
    strands = upsample(np.clip(1 - 4 * np.abs(smooth_field(rng, grid, (40, 9, 9))), 0, 1))
    image = _trunk(anatomy, texture, strands)
    for side in ("left", "right"):
        blend(image, anatomy.solids[f"{side} erector"], MUSCLE, strands, 0.26)
    for name, value in BONES.items():
        shape = anatomy.bones[name]
        if name.endswith(("spine", "process")):
            blend(image, Shape(shape.sdf - 1.5, shape.box), 0.10)
        blend(image, shape, value, texture, 0.03)
    for name in SOLIDS:
        _solid(image, anatomy, name, texture)
    for vessel in anatomy.vessels["mesenteric"]:
        blend(image, vessel, 0.26)
    _hollow(image, anatomy.stomach, LOOKS["stomach"], texture, *_stomach_content(grid, anatomy.stomach, rng))
    _hollow(image, anatomy.colon, LOOKS["large_bowel"], texture, *_colon_content(grid, anatomy.colon, rng))
    _hollow(image, anatomy.bowel, LOOKS["small_bowel"], texture, *_bowel_content(grid, anatomy.bowel, rng))
    return image


def tight(inside: np.ndarray) -> Box:
    """Find the bounding box of a mask [depth, h, w] with a margin of one sample; the whole array if it is empty."""
    box = []
    floor = np.any(inside, axis=0)
    for line in (np.any(inside, axis=(1, 2)), floor.any(axis=1), floor.any(axis=0)):
        hit = np.flatnonzero(line)
        box.append(slice(max(hit[0] - 1, 0), hit[-1] + 2) if hit.size else slice(None))
    return box[0], box[1], box[2]


def blend(
    image: np.ndarray, shape: Shape, value: float, texture: np.ndarray | None = None, amount: float = 0.0
) -> None:
    """Paint a structure over the image in place, with partial volume effect at its edge."""
    inner = tight(shape.sdf < EDGE_MM)
    box = fine_box(tuple(_offset(outer, s) for outer, s in zip(shape.box, inner, strict=True)))
    cover = np.clip(0.5 - upsample(shape.sdf[inner]) / EDGE_MM, 0, 1)
    target = image[box]
    color = np.float32(value) if texture is None else value + np.float32(amount) * texture[box]
    target += cover * (color - target)


def _trunk(anatomy, texture, strands):
    frame, grid = anatomy.frame, anatomy.grid
    body, muscle, cavity = upsample(frame.body), upsample(frame.muscle), upsample(frame.cavity)
    image = np.clip(0.5 - body / EDGE_MM, 0, 1) * (FAT + 0.03 * texture - 0.12 * strands)
    image *= 1 - 0.45 * np.clip(1.5 - np.abs(body + 1.2), 0, 1)
    flesh = MUSCLE + 0.03 * texture + _fasciae(grid, muscle, cavity, strands)
    image += np.clip(0.5 - muscle / EDGE_MM, 0, 1) * (flesh - image)
    mesentery = 0.75 + 0.05 * texture - 0.28 * np.clip(texture - 1.1, 0, 1.5) - 0.14 * strands
    image += np.clip(0.5 - cavity / EDGE_MM, 0, 1) * (mesentery - image)
    rib = _ribs(anatomy)
    blend(image, rib, 0.10)
    blend(image, Shape(rib.sdf + 2.2, rib.box), 0.50)
    blend(image, Shape(frame.lungs, grid.whole()), 0.05, texture, 0.012)
    return image


def _fasciae(grid, muscle, cavity, strands):
    y, x = (np.repeat(axis, 2) for axis in (grid.y, grid.x))
    z, y, x = grid.z[:, None, None], y[None, :, None], np.abs(x)[None, None, :]
    layer = np.clip(muscle / np.minimum(muscle - cavity, -1), 0, 1) * 3
    stripe = np.clip(1 - 5 * np.abs(layer - np.rint(layer)), 0, 1) * (layer < 2.5)
    flank = np.float32(0.22) * ((y < 25) & ((x > 48) | (y > 0))).astype(np.float32)
    white_lines = (y < 0) * np.maximum(np.clip(1.5 - x / 2, 0, 1), np.clip(1.5 - np.abs(x - 50) / 2, 0, 1))
    fat = stripe * flank
    fat += np.float32(0.24) * (y > 20) * strands
    fat += np.float32(0.3) * (z > 90) * white_lines
    return fat


def _ribs(anatomy):
    grid, frame = anatomy.grid, anatomy.frame
    z, y, x = grid.axes
    slant = 42 * np.arctan2(np.abs(x), y - 20)
    height = z - slant
    across = (np.mod(height / 27, 1) - 0.5) * 24
    middle = (frame.muscle + np.minimum(frame.cavity, frame.muscle + 14)) / 2
    sdf = np.hypot(middle, across) - 5.5
    return Shape(np.maximum(sdf, np.maximum(height - 20, 25 - np.abs(x))), grid.whole())


def _solid(image, anatomy, name, texture):
    shape = anatomy.solids[name]
    blend(image, shape, SOLIDS[name], texture, 0.02)
    if name.endswith("ilium"):
        blend(image, Shape(shape.sdf - 12, shape.box), MUSCLE, texture, 0.03)
        blend(image, shape, 0.10)
        blend(image, Shape(shape.sdf + 2.5, shape.box), 0.50, texture, 0.04)
        return
    if name == "liver":
        for vessel in anatomy.vessels["hepatic"]:
            blend(image, carve(vessel, [Shape(-shape.sdf, shape.box)], 0.0), 0.50)
    if name.endswith("kidney"):
        cortex = 7 + 2.5 * anatomy.wobble[shape.box]
        blend(image, Shape(shape.sdf + cortex, shape.box), 0.27, texture, 0.05)
    if name == "aorta":
        blend(image, Shape(np.abs(shape.sdf + 0.8) - 0.4, shape.box), 0.40)


def _offset(outer, inner):
    start, stop, _ = inner.indices(outer.stop - outer.start)
    return slice(outer.start + start, outer.start + stop)


def _wander(rng, organ: Tube, length_mm: float):
    count = len(organ.points)
    walk = gaussian_filter1d(rng.standard_normal(count), length_mm / 3.0, mode="reflect")
    return (walk - walk.mean()) / (walk.std() + 1e-6)


def _stomach_content(grid, organ, rng):
    y = grid.within(organ.shape.box)[1]
    top, bottom = (organ.points[:, 1] - organ.radii).min(), (organ.points[:, 1] + organ.radii).max()
    level = top + rng.uniform(0.20, 0.45) * (bottom - top)
    above_gas = np.broadcast_to(y - np.float32(level), organ.depth.shape)
    brightness = np.full(organ.depth.shape, rng.normal(0, 1), np.float32)
    rugae = np.clip(1.2 * smooth_field(rng, grid, (16, 8, 8))[organ.shape.box], 0, 1)
    return above_gas, brightness, rugae * np.clip(1.6 - organ.depth / 9, 0, 1)


def _colon_content(grid, organ, rng):
    y = grid.within(organ.shape.box)[1]
    fill = np.clip(-0.1 + 0.9 * _wander(rng, organ, 60), -1.3, 1.2)
    surface = (organ.points[:, 1] + fill * organ.radii).astype(np.float32)
    brightness = _wander(rng, organ, 25).astype(np.float32)[organ.owner]
    fold = np.clip(1.6 - fold_distance(organ.along) / 2, 0, 1) * np.clip(1.6 - organ.depth / 7, 0, 1)
    return y - surface[organ.owner], brightness, fold


def _bowel_content(grid, organ, rng):
    y = grid.within(organ.shape.box)[1]
    fill = np.clip(-1.65 + 0.75 * _wander(rng, organ, 50), -1.5, 0.4)
    surface = (organ.points[:, 1] + fill * organ.radii).astype(np.float32)
    brightness = _wander(rng, organ, 35).astype(np.float32)[organ.owner]
    feathery = 0.6 * np.clip(np.sin(2 * np.pi * organ.along / 9), 0, 1) * np.clip(1.3 - organ.depth / 6, 0, 1)
    return y - surface[organ.owner], brightness, feathery


def _hollow(image, organ, look, texture, above_gas, brightness, folds):
    inner = tight(organ.shape.sdf < EDGE_MM)
    box = fine_box(tuple(_offset(outer, s) for outer, s in zip(organ.shape.box, inner, strict=True)))
    target, grain = image[box], texture[box]
    target += np.clip(0.5 - upsample(organ.shape.sdf[inner]) / EDGE_MM, 0, 1) * (look.wall - target)
    lumen = np.clip(0.5 + (upsample(organ.depth[inner]) - look.wall_mm) / EDGE_MM, 0, 1)
    content = look.content + look.content_spread * upsample(brightness[inner]) + look.mottle * grain
    content += upsample(folds[inner]) * (look.wall - content)
    gas = np.clip(0.5 - upsample(above_gas[inner]) / EDGE_MM, 0, 1) * (1 - 0.8 * upsample(folds[inner]))
    content += gas * (GAS - content)
    target += lumen * (np.maximum(content, GAS) - target)


def scan_image(tissue: np.ndarray, grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Acquire painted tissue: point spread, slice profile, coil shading, gain and Rician noise.

    The magnitude of a complex signal with Gaussian noise in both channels is Rician, and Rayleigh in air (Gudbjartsson
    and Patz, The Rician distribution of noisy MRI data, Magnetic Resonance in Medicine 34:910-914, 1995).

    Args:
        tissue: float32 [depth, height, width], about 0 to 1; overwritten.
        grid: the half-resolution grid of the same scan.
        rng: random generator.

    Returns:
        uint16 [depth, height, width].
    """
    for plane in tissue:
        cv2.GaussianBlur(plane, (5, 5), 0.62, dst=plane)
    profile = 0.8 * tissue
    profile[1:] += 0.1 * tissue[:-1]
    profile[:-1] += 0.1 * tissue[1:]
    profile[0] += 0.1 * tissue[0]
    profile[-1] += 0.1 * tissue[-1]
    shading = 0.14 * smooth_field(rng, grid, (150, 160, 160)) + 0.03 * smooth_field(rng, grid, (60, 60, 60))
    profile *= upsample(np.exp(shading))
    gain, sigma = rng.uniform(750, 1050), rng.uniform(0.014, 0.026)
    profile += np.float32(sigma) * rng.standard_normal(profile.shape, dtype=np.float32)
    profile = np.hypot(profile, np.float32(sigma) * rng.standard_normal(profile.shape, dtype=np.float32))
    return np.clip(np.rint(gain * profile), 0, 65535).astype(np.uint16)

"""Scans with the organs' outlines, as pictures."""

import io
from collections.abc import Iterator

import cv2
import numpy as np
from PIL import Image

from gitseg_tf.data.contours import draw_outlines
from gitseg_tf.data.scans import ORGAN_COLORS, Scan
from gitseg_tf.files import AnyPath, write_atomically

_PNG_SCALE = 2
_FRAME_MS = 100
_GREYS = 256 - len(ORGAN_COLORS)


def to_grey(image: np.ndarray) -> np.ndarray:
    """A scan as people look at it: uint16 [D, H, W] to uint8, the 1st to the 99.5th percentile from black to white."""
    low, high = np.percentile(image, [1, 99.5])
    return np.clip((image.astype(np.float32) - low) / max(high - low, 1) * 255, 0, 255).astype(np.uint8)


def overlays(image: np.ndarray, masks: np.ndarray, scale: int) -> Iterator[np.ndarray]:
    """Draw the outlines into each slice.

    Args:
        image: uint16 [D, H, W].
        masks: bool [3, D, H, W].
        scale: whole number to enlarge the slice by.

    Returns:
        uint8 [H * scale, W * scale, 3] RGB, slice by slice.
    """
    for z, plane in enumerate(to_grey(image)):
        picture = cv2.cvtColor(cv2.resize(plane, None, fx=scale, fy=scale), cv2.COLOR_GRAY2RGB)
        draw_outlines(picture, masks[:, z])
        yield picture


def write_pngs(out: AnyPath, scan: Scan, image: np.ndarray, masks: np.ndarray) -> None:
    """Write OUT/SCAN/SLICE_ID.png, a picture a slice at twice its size.

    Args:
        out: gets SCAN/.
        scan: its slice ids.
        image: uint16 [D, H, W].
        masks: bool [3, D, H, W].
    """
    folder = out / scan.id
    folder.mkdir(parents=True, exist_ok=True)
    for slice_id, picture in zip(scan.slice_ids, overlays(image, masks, _PNG_SCALE), strict=True):
        _, png = cv2.imencode(".png", picture[..., ::-1])
        write_atomically(folder / f"{slice_id}.png", png.tobytes())


def write_gif(out: AnyPath, scan: Scan, image: np.ndarray, masks: np.ndarray) -> None:
    """Write OUT/SCAN.gif: ten slices a second, again and again; neighbours that look the same share a frame.

    Args:
        out: the folder.
        scan: its id.
        image: uint16 [D, H, W].
        masks: bool [3, D, H, W].
    """
    first, *others = map(_with_palette, overlays(image, masks, 1))
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=others, duration=_FRAME_MS, loop=0)
    write_atomically(out / f"{scan.id}.gif", file.getvalue())


def _with_palette(picture: np.ndarray) -> Image.Image:
    """A picture in 253 greys and the organs' colours; Pillow's own `quantize` would keep 64 greys."""
    numbers = np.rint(picture[..., 0] / 255.0 * (_GREYS - 1)).astype(np.uint8)
    for number, colour in enumerate(ORGAN_COLORS.values(), _GREYS):
        numbers[(picture == colour).all(-1)] = number
    greys = np.rint(np.linspace(0, 255, _GREYS)).astype(np.uint8)
    paletted = Image.fromarray(numbers)
    paletted.putpalette(np.concatenate([np.repeat(greys, 3), np.ravel([*ORGAN_COLORS.values()])]).astype(np.uint8))
    return paletted

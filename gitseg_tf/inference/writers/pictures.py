"""Write images of scans with the outlines of the labels."""

import io
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from PIL import Image

from gitseg_tf.core.paths import write_atomically
from gitseg_tf.data.outlines import draw_outlines
from gitseg_tf.data.readers.base import Scan
from gitseg_tf.data.volume import Volume
from gitseg_tf.html.pages import to_gray
from gitseg_tf.inference.prediction import Prediction
from gitseg_tf.inference.writers.registry import Writer

_PNG_SCALE = 2
_FRAME_MS = 100
# Number of a GIF's 256 colors used for labels; further labels share these colors.
_MOST_COLORS = 128

Color = tuple[int, int, int]


class Pngs(Writer):
    """Writes OUT/SCAN/SLICE_ID.png, an image of each slice at twice its size."""

    def write(self, scan: Scan, volume: Volume, prediction: Prediction) -> None:
        folder = self.out / scan.id
        folder.mkdir(parents=True, exist_ok=True)
        pictures = overlays(volume, prediction.masks, self.labels.colors, _PNG_SCALE)
        for slice_id, picture in zip(scan.slice_ids, pictures, strict=True):
            _, png = cv2.imencode(".png", picture[..., ::-1])
            write_atomically(folder / f"{slice_id}.png", png.tobytes())


class Gifs(Writer):
    """Writes OUT/SCAN.gif: ten slices per second in a loop; adjacent slices that look the same share a frame."""

    def write(self, scan: Scan, volume: Volume, prediction: Prediction) -> None:
        colors = [self.labels.colors[k % _MOST_COLORS] for k in range(len(self.labels))]
        shown = list(dict.fromkeys(color for color, mask in zip(colors, prediction.masks, strict=True) if mask.any()))
        first, *others = (_with_palette(picture, shown) for picture in overlays(volume, prediction.masks, colors, 1))
        file = io.BytesIO()
        first.save(file, "GIF", save_all=True, append_images=others, duration=_FRAME_MS, loop=0)
        self.out.mkdir(parents=True, exist_ok=True)
        write_atomically(self.out / f"{scan.id}.gif", file.getvalue())


def _display_gray(image: np.ndarray) -> np.ndarray:
    """Convert a channel [D, H, W] to uint8 for display, from the 1st percentile (black) to the 99.5th (white)."""
    return to_gray(image, *np.percentile(image, [1, 99.5]))


def overlays(volume: Volume, masks: np.ndarray, colors: Sequence[Color], scale: int) -> Iterator[np.ndarray]:
    """Draw the outlines of the masks into each slice.

    Args:
        volume: the scan, whose first channel is shown.
        masks: bool [L, D, H, W].
        colors: colors of the masks.
        scale: integer factor by which slices are enlarged.

    Returns:
        Iterator over the slices, uint8 [H * scale, W * scale, 3] RGB.
    """
    for z, plane in enumerate(_display_gray(volume.with_channels[..., 0])):
        picture = cv2.cvtColor(cv2.resize(plane, None, fx=scale, fy=scale), cv2.COLOR_GRAY2RGB)
        draw_outlines(picture, masks[:, z], colors)
        yield picture


def _with_palette(picture: np.ndarray, colors: Sequence[Color]) -> Image.Image:
    """Convert to a palette of grays and the labels' colors; Pillow's `quantize` would keep only 64 grays."""
    count = 256 - len(colors)
    numbers = np.rint(picture[..., 0] / 255.0 * (count - 1)).astype(np.uint8)
    for number, color in enumerate(colors, count):
        numbers[(picture == color).all(-1)] = number
    grays = np.rint(np.linspace(0, 255, count)).astype(np.uint8)
    palette = Image.fromarray(numbers)
    palette.putpalette(np.concatenate([np.repeat(grays, 3), np.ravel(colors)]).astype(np.uint8).tobytes())
    return palette

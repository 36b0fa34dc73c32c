"""Draw a scan and its masks on one page: slices with contours, and the volume of each label."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import contourpy
import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gitseg_tf.core.paths import AnyPath, write_atomically
from gitseg_tf.core.text import plural
from gitseg_tf.data.readers.base import Scan
from gitseg_tf.data.volume import Volume
from gitseg_tf.html.pages import to_gray
from gitseg_tf.inference.trust import CT_BELOW
from gitseg_tf.labels import LabelSet

FOLDER = "previews"
# The page in pixels: axial slices in a grid, and a coronal and a sagittal plane in a column to their right.
_WIDTH, _GAP, _MARGIN = 1920, 8, 20
_COLUMNS, _ROWS = 4, 3
_TALLEST = 1.3  # of a tile, relative to its width
_BACKGROUND, _INK, _FAINT, _AMBER = (18, 18, 20), (238, 238, 238), (160, 160, 165), (255, 190, 60)
_SOFT_TISSUE = (-160.0, 240.0)  # Hounsfield units
_BODY = 26  # gray value of 255 above which a voxel is taken as body rather than air
_BORDER_MM = 8.0
_LEGEND_ROWS = 8
_MANY_LABELS = 12  # from which the legend and the contours are finer
_TITLE_WIDTH = 1000
_SCALE_BARS_MM = (100, 50, 20, 10, 5)
_SHIFT = 4  # fractional bits of the coordinates of contours

Color = tuple[int, int, int]


@dataclass(frozen=True)
class _Plane:
    """A plane to draw: gray uint8 [h, w], masks bool [L, h, w], pixel size (rows, columns) in mm, and its texts."""

    gray: np.ndarray
    masks: np.ndarray
    spacing: tuple[float, float]
    title: str
    sides: tuple[str, str]  # what lies to the left and to the right


def write_preview(
    out: AnyPath, scan: Scan, volume: Volume, masks: np.ndarray, labels: LabelSet, model: str, warnings: Sequence[str]
) -> None:
    """Write OUT/previews/SCAN.png, see `draw_preview`; `model` is a line on the model."""
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    page = draw_preview(scan.id, volume, masks, labels, model, warnings)
    file = io.BytesIO()
    Image.fromarray(page).save(file, "PNG")
    write_atomically(out / FOLDER / f"{scan.id}.png", file.getvalue())


def preview_files(out: AnyPath, scan_id: str) -> list[AnyPath]:
    """List the preview of a scan in a folder."""
    path = out / FOLDER / f"{scan_id}.png"
    return [path] if "/" not in scan_id and path.is_file() else []


def draw_preview(
    title: str, volume: Volume, masks: np.ndarray, labels: LabelSet, model: str = "", warnings: Sequence[str] = ()
) -> np.ndarray:
    """Draw up to twelve axial slices, a coronal and a sagittal plane with the contours of the masks.

    The slices are spread over those with a label and include each label that is present. Planes are cropped to the body
    and have square pixels. CT is shown in a soft-tissue window, other scans from the 1st percentile to the 99.5th.

    Args:
        title: of the page, such as the scan's id.
        volume: the scan, whose first channel is shown.
        masks: bool [L, D, H, W].
        labels: the labels in the order of the masks.
        model: a line on the model.
        warnings: reasons to distrust the masks.

    Returns:
        uint8 [height, 1920, 3] RGB.
    """
    image = volume.with_channels[..., 0]
    window = _window(volume)
    gray = to_gray(image, *window)
    planes = _axial_planes(gray, masks, volume)
    across = _coronal_and_sagittal(gray, masks, volume)
    colors = labels.colors
    inner = _WIDTH - 2 * _MARGIN
    side = round(inner * 0.24)
    columns = min(_COLUMNS, len(planes))
    tile_width = (inner - side - columns * _GAP) // columns
    tile_width = min(tile_width, inner // 3)
    extent = planes[0].gray.shape[0] * planes[0].spacing[0] / (planes[0].gray.shape[1] * planes[0].spacing[1])
    tile_height = round(tile_width * min(extent, _TALLEST))
    rows = [planes[start : start + columns] for start in range(0, len(planes), columns)]
    body = max(len(rows) * (tile_height + _GAP) - _GAP, round(side * 0.9))
    header = _header(title, volume, masks, labels, model, warnings, window)
    page = Image.new("RGB", (_WIDTH, header.height + body + _MARGIN), _BACKGROUND)
    page.paste(header, (0, 0))
    for r, row in enumerate(rows):
        for c, plane in enumerate(row):
            tile = _tile(plane, (tile_height, tile_width), colors, scale_bar=not r and not c)
            page.paste(tile, (_MARGIN + c * (tile_width + _GAP), header.height + r * (tile_height + _GAP)))
    half = (body - _GAP) // 2
    for k, plane in enumerate(across):
        tile = _tile(plane, (half, side), colors)
        page.paste(tile, (_WIDTH - _MARGIN - side, header.height + k * (half + _GAP)))
    return np.asarray(page)


def _window(volume: Volume) -> tuple[float, float]:
    if volume.percentiles[0][2] < CT_BELOW:
        return _SOFT_TISSUE
    return float(volume.percentiles[0][2]), float(volume.percentiles[0][9])


def _axial_planes(gray: np.ndarray, masks: np.ndarray, volume: Volume) -> list[_Plane]:
    rows, columns = _body_box(gray, masks, volume.spacing)
    return [
        _Plane(
            gray[z, rows, columns],
            masks[:, z, rows, columns],
            volume.spacing[1:],
            f"slice {volume.numbers[z]}",
            ("R", "L"),
        )
        for z in _chosen_slices(masks, _COLUMNS * _ROWS)
    ]


def _coronal_and_sagittal(gray: np.ndarray, masks: np.ndarray, volume: Volume) -> list[_Plane]:
    """Choose the planes that show all labels best: the largest sum of the square roots of their areas."""
    rows, columns = _body_box(gray, masks, volume.spacing)
    z_mm, y_mm, x_mm = volume.spacing
    y, x = (
        int(np.sqrt(masks.sum(axis)).sum(0).argmax()) if masks.any() else (box.start + box.stop) // 2
        for axis, box in (((1, 3), rows), ((1, 2), columns))
    )
    return [
        _Plane(gray[:, y, columns], masks[:, :, y, columns], (z_mm, x_mm), f"coronal, row {y + 1}", ("R", "L")),
        _Plane(gray[:, rows, x], masks[:, :, rows, x], (z_mm, y_mm), f"sagittal, column {x + 1}", ("A", "P")),
    ]


def _chosen_slices(masks: np.ndarray, most: int) -> list[int]:
    """Choose slices spread over those with a label, so that each label that is present appears in one of them."""
    areas = masks.sum((2, 3))  # [L, D]
    labeled = np.flatnonzero(areas.any(0))
    first, last = (labeled[0], labeled[-1]) if labeled.size else (0, areas.shape[1] - 1)
    chosen = sorted({int(z) for z in np.rint(np.linspace(first, last, min(most, last - first + 1)))})
    fixed: set[int] = set()
    for of_label in areas:
        if of_label.any() and not of_label[chosen].any():
            free = [z for z in chosen if z not in fixed]
            if not free:
                break
            best = int(of_label.argmax())
            chosen.remove(min(free, key=lambda z: abs(z - best)))
            chosen = sorted([*chosen, best])
            fixed.add(best)
    return chosen


def _body_box(gray: np.ndarray, masks: np.ndarray, spacing: Sequence[float]) -> tuple[slice, slice]:
    """Return the rows and columns that contain the body and all masks, with a border."""
    shown = (gray > _BODY).mean(0) > 0.02
    shown |= masks.any((0, 1))
    box = []
    for axis, length in ((1, spacing[1]), (0, spacing[2])):
        inside = np.flatnonzero(shown.sum(axis) > 1)
        border = int(np.ceil(_BORDER_MM / length))
        first, last = (inside[0], inside[-1]) if inside.size else (0, shown.shape[1 - axis] - 1)
        box.append(slice(max(int(first) - border, 0), int(last) + border + 1))
    return box[0], box[1]


def _tile(plane: _Plane, size: tuple[int, int], colors: Sequence[Color], *, scale_bar: bool = False) -> Image.Image:
    """Draw a plane into a tile of (height, width) pixels: as large as fits, centered."""
    (rows, columns), (height, width) = plane.gray.shape, size
    zoom = min(height / (rows * plane.spacing[0]), width / (columns * plane.spacing[1]))  # pixels per mm
    drawn_height, drawn_width = (
        max(round(count * length * zoom), 1) for count, length in zip((rows, columns), plane.spacing, strict=True)
    )
    picture = cv2.cvtColor(
        cv2.resize(plane.gray, (drawn_width, drawn_height), interpolation=cv2.INTER_CUBIC), cv2.COLOR_GRAY2RGB
    )
    factors = np.array([drawn_width / columns, drawn_height / rows])
    thickness = 2 if len(colors) <= _MANY_LABELS else 1
    for mask, color in zip(plane.masks, colors, strict=True):
        if mask.any():
            lines = [(line - 0.5) * factors - 0.5 for line in _outlines(mask)]
            points = [np.rint(line * (1 << _SHIFT)).astype(np.int32) for line in lines]
            cv2.polylines(picture, points, True, color, thickness, cv2.LINE_AA, _SHIFT)
    tile = Image.new("RGB", (width, height))
    tile.paste(Image.fromarray(picture), ((width - drawn_width) // 2, (height - drawn_height) // 2))
    draw = ImageDraw.Draw(tile)
    _write(draw, (8, 5), plane.title, 17)
    for text, x, anchor in ((plane.sides[0], 8, "lm"), (plane.sides[1], width - 8, "rm")):
        _write(draw, (x, height // 2), text, 17, anchor=anchor)
    if scale_bar:
        length = next((mm for mm in _SCALE_BARS_MM if mm * zoom < width / 3), _SCALE_BARS_MM[-1])
        draw.line([(10, height - 12), (10 + length * zoom, height - 12)], _INK, 3)
        _write(draw, (10, height - 18), f"{length} mm", 15, anchor="ls")
    return tile


def _outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Trace a mask halfway between pixel centers inside and outside: lines of (x, y), where pixels end at integers."""
    return contourpy.contour_generator(z=np.pad(mask, 1).astype(np.float32)).lines(0.5)


def _header(
    title: str,
    volume: Volume,
    masks: np.ndarray,
    labels: LabelSet,
    model: str,
    warnings: Sequence[str],
    window: tuple[float, float],
) -> Image.Image:
    """Draw the title, facts on the scan, the legend with volumes, and the warnings."""
    header = Image.new("RGB", (_WIDTH, 2000), _BACKGROUND)
    draw = ImageDraw.Draw(header)
    depth, height, width = volume.shape
    spacing = " x ".join(f"{length:.4g}" for length in volume.spacing)
    kind = "CT window" if window == _SOFT_TISSUE else "shown from"
    facts = f"{plural(depth, 'slice')} of {height} x {width}, {spacing} mm, {kind} {window[0]:.4g} to {window[1]:.4g}"
    while _length(title, 30, bold=True) > _TITLE_WIDTH:
        title = f"{title[:-2]}…"
    _write(draw, (_MARGIN, 12), title, 30, bold=True)
    _write(draw, (_WIDTH - _MARGIN, 12), facts, 17, _FAINT, anchor="ra")
    _write(draw, (_WIDTH - _MARGIN, 34), model, 17, _FAINT, anchor="ra")
    y = _legend(draw, 62, volume, masks, labels)
    for line in _wrapped(f"Check this result: {'; '.join(warnings)}." if warnings else "", 20):
        _write(draw, (_MARGIN, y), line, 20, _AMBER)
        y += 28
    return header.crop((0, 0, _WIDTH, y + 8))


def _legend(draw: ImageDraw.ImageDraw, y: int, volume: Volume, masks: np.ndarray, labels: LabelSet) -> int:
    """Draw the labels with their volumes, and those that are absent; return where the next line begins."""
    milliliters = float(np.prod(volume.spacing)) / 1000
    counts = masks.sum((1, 2, 3)).tolist()
    entries = [
        (label.title, f"{count * milliliters:,.1f} ml", label.color)
        for label, count in zip(labels, counts, strict=True)
        if count
    ]
    absent = [label.title for label, count in zip(labels, counts, strict=True) if not count]
    size = 20 if len(entries) <= _MANY_LABELS else 16
    x, row = _MARGIN, 1
    for number, (name, milliliter, color) in enumerate(entries):
        name_width, width = _length(name, size), _length(milliliter, size, bold=True)
        end = _WIDTH - _MARGIN - (120 if row == _LEGEND_ROWS else 0)
        if x + 38 + name_width + width > end and x > _MARGIN:
            if row == _LEGEND_ROWS:
                _write(draw, (x, y), f"and {len(entries) - number} more", size, _FAINT)
                break
            x, y, row = _MARGIN, y + size + 9, row + 1
        draw.rounded_rectangle((x, y + 3, x + 22, y + size), 3, color)
        _write(draw, (x + 30, y), name, size)
        _write(draw, (x + 38 + name_width, y), milliliter, size, bold=True)
        x += 38 + name_width + width + 32
    y += size + 13 if entries else 0
    missing = (
        f"no voxel of {', '.join(absent)}"
        if len(absent) < 4
        else f"no voxel of {len(absent)} labels: {', '.join(absent)}"
    )
    for line in _wrapped(missing if absent else "", 17, most=2):
        _write(draw, (_MARGIN, y), line, 17, _FAINT)
        y += 24
    return y


def _wrapped(text: str, size: int, most: int = 4) -> list[str]:
    """Break a text into lines of the page's width; the last of `most` lines ends in "…" if more would follow."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _length(longer, size) <= _WIDTH - 2 * _MARGIN:
            lines[-1] = longer
        elif len(lines) == most:
            lines[-1] += " …"
            break
        else:
            lines.append(word)
    return lines


def _write(draw, at, text: str, size: int, color: Color = _INK, *, bold: bool = False, anchor: str = "la") -> None:
    draw.text(at, text, color, _font(size, bold), anchor=anchor, stroke_width=1, stroke_fill=_BACKGROUND)


def _length(text: str, size: int, *, bold: bool = False) -> int:
    return round(_font(size, bold).getlength(text))


@cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)

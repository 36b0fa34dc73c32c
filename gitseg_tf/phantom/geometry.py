"""The phantom's building blocks: signed distances (mm, negative inside) to bodies, columns and tubes.

Coordinates are (z, y, x) in mm: z increases toward the feet, y toward the back, x toward the patient's left, with the
origin at the top of the scan and in the middle of the abdominal cavity. Distances are sampled on a grid of half the
image's in-plane resolution: they are smooth enough to interpolate without loss, and sampling is four times as fast.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d

FAR = np.float32(40.0)
ANATOMY_MM = 240.0
FREE_MM = 15.0
SAMPLE_MM = 3.0
MARGIN_MM = 12.0

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Grid:
    """Sample positions in mm, one sorted float32 axis each.

    Attributes:
        z: [depth].
        y: [height // 2].
        x: [width // 2].
    """

    z: np.ndarray
    y: np.ndarray
    x: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(depth, height // 2, width // 2)."""
        return self.z.size, self.y.size, self.x.size

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The three axes, shaped to broadcast against one another."""
        return self.z[:, None, None], self.y[None, :, None], self.x[None, None, :]

    @property
    def step(self) -> tuple[float, float, float]:
        """Distance between neighboring samples along z, y and x in mm."""
        z, y, x = (float(axis[1] - axis[0]) for axis in (self.z, self.y, self.x))
        return z, y, x

    def box(self, low, high) -> Box:
        """Find the box of samples between two corners (z, y, x) in mm; it always contains at least one sample."""
        edges = []
        for axis, first, last in zip((self.z, self.y, self.x), low, high, strict=True):
            start = min(int(np.searchsorted(axis, first)), axis.size - 1)
            edges.append(slice(start, max(int(np.searchsorted(axis, last)), start + 1)))
        return edges[0], edges[1], edges[2]

    def whole(self) -> Box:
        """Return the box of all samples."""
        z, y, x = (slice(0, size) for size in self.shape)
        return z, y, x

    def crop(self, box: Box) -> "Grid":
        """Return the grid of a box."""
        return Grid(self.z[box[0]], self.y[box[1]], self.x[box[2]])

    def within(self, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the axes of a box, shaped to broadcast against one another."""
        return self.z[box[0], None, None], self.y[None, box[1], None], self.x[None, None, box[2]]


@dataclass(frozen=True)
class Shape:
    """A structure as its signed distance, float32, on the samples of `box`; it does not extend beyond the box."""

    sdf: np.ndarray
    box: Box


@dataclass(frozen=True)
class Tube:
    """A hollow organ along a centerline.

    Attributes:
        shape: signed distance of its outer surface.
        depth: float32 over the box, distance in mm from the nearest surface, including the wall between two touching
            loops.
        gap: float32 over the box, half the distance in mm between the two nearest loops: negative if they touch.
        along: float32 over the box, position in mm along the centerline.
        owner: int over the box, the index of the nearest centerline sample.
        points: float [n, 3], centerline samples in mm.
        radii: float [n] in mm.
    """

    shape: Shape
    depth: np.ndarray
    gap: np.ndarray
    along: np.ndarray
    owner: np.ndarray
    points: np.ndarray
    radii: np.ndarray


def make_grid(shape: tuple[int, int, int], pixel_mm: float, slice_mm: float, shift_mm: np.ndarray) -> Grid:
    """Compute the sample positions for an image.

    The anatomy is `ANATOMY_MM` long: a longer scan shows more above and below it, a shorter one compresses it along z.

    Args:
        shape: (depth, height, width) of the image in voxels.
        pixel_mm: pixel spacing.
        slice_mm: slice spacing.
        shift_mm: offset (z, y, x) of the patient from the middle.

    Returns:
        The grid, at half the in-plane resolution of the image.
    """
    depth, height, width = shape
    step = max(slice_mm, ANATOMY_MM / depth)
    z = (np.arange(depth) + 0.5) * step - max(0.0, depth * slice_mm - ANATOMY_MM) / 2
    y, x = ((np.arange(n // 2) - (n // 2 - 1) / 2) * 2 * pixel_mm for n in (height, width))
    return Grid(*((axis - shift).astype(np.float32) for axis, shift in zip((z, y, x), shift_mm, strict=True)))


def smooth_field(rng: np.random.Generator, grid: Grid, cell_mm: tuple[float, float, float]) -> np.ndarray:
    """Draw a smooth random field, float32 over the grid, with zero mean and unit variance and features of `cell_mm`."""
    cells = [max(1.0, cell / step) for cell, step in zip(cell_mm, grid.step, strict=True)]
    low = [int(np.ceil(size / cell)) + 2 for size, cell in zip(grid.shape, cells, strict=True)]
    coarse = rng.standard_normal(low, dtype=np.float32)
    planes = np.stack([cv2.resize(plane, grid.shape[:0:-1], interpolation=cv2.INTER_CUBIC) for plane in coarse])
    position = np.arange(grid.shape[0], dtype=np.float32) / np.float32(cells[0])
    first = position.astype(int)
    weight = (position - first)[:, None, None]
    field = planes[first]
    field += weight * (planes[first + 1] - field)
    field -= field.mean()
    field /= field.std()
    return field


def upsample(field: np.ndarray) -> np.ndarray:
    """Upsample a half-resolution field [depth, h, w] to the image's resolution, [depth, 2 h, 2 w]."""
    depth, height, width = field.shape
    fine = np.empty((depth, 2 * height, 2 * width), np.float32)
    for plane, target in zip(field, fine, strict=True):
        cv2.resize(np.ascontiguousarray(plane, np.float32), (2 * width, 2 * height), dst=target)
    return fine


def fine_box(box: Box) -> Box:
    """Convert a box of half-resolution samples to the voxels of the image that it covers."""
    y, x = (slice(2 * s.start, 2 * s.stop) for s in box[1:])
    return box[0], y, x


def superellipse(grid: Grid, side: float, front: float, back: float, power: float, scale: np.ndarray) -> np.ndarray:
    """Compute the radial signed distance to a cylinder whose cross-section is a superellipse.

    Args:
        grid: the sample positions.
        side: half-axis along x in mm.
        front: half-axis toward negative y in mm.
        back: half-axis toward positive y in mm.
        power: 2 for an ellipse, more for a boxier section.
        scale: [depth], the section's relative size at every z.

    Returns:
        float32 [depth, height // 2, width // 2] in mm.
    """
    _, y, x = grid.axes
    y, x = y[0], x[0]
    ratio = (np.abs(x) / side) ** power + np.where(y < 0, -y / front, y / back) ** power
    ratio = np.maximum(ratio, 1e-6) ** (1 / power)
    radius = np.hypot(y, x)
    return (radius - scale[:, None, None] * (radius / ratio)).astype(np.float32)


def ellipsoid(grid: Grid, center, radii, tilt: float = 0.0, wobble: np.ndarray | None = None) -> Shape:
    """Create an ellipsoid, rotated in the axial plane by `tilt` radians, its surface displaced by `wobble` in mm."""
    center, radii = np.asarray(center, np.float32), np.asarray(radii, np.float32)
    reach = np.array([radii[0], *([max(radii[1:])] * 2)]) + MARGIN_MM
    box = grid.box(center - reach, center + reach)
    z, y, x = (axis - middle for axis, middle in zip(grid.within(box), center, strict=True))
    if tilt:
        cos, sin = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
        y, x = cos * y - sin * x, sin * y + cos * x
    unit = np.sqrt((z / radii[0]) ** 2 + (y / radii[1]) ** 2 + (x / radii[2]) ** 2)
    slope = np.sqrt((z / radii[0] ** 2) ** 2 + (y / radii[1] ** 2) ** 2 + (x / radii[2] ** 2) ** 2)
    sdf = unit * (unit - 1) / np.maximum(slope, 1e-4)
    return Shape(sdf if wobble is None else sdf + wobble[box], box)


def column(grid: Grid, y, x, radius_y, radius_x, top: float = -np.inf, bottom: float = np.inf) -> Shape:
    """Create a vertical structure with an elliptic section; center and radii in mm are numbers or arrays [depth]."""
    y, x, radius_y, radius_x = (
        np.broadcast_to(np.asarray(value, np.float32), grid.z.shape) for value in (y, x, radius_y, radius_x)
    )
    low = np.array([top, (y - radius_y).min(), (x - radius_x).min()]) - MARGIN_MM
    high = np.array([bottom, (y + radius_y).max(), (x + radius_x).max()]) + MARGIN_MM
    box = grid.box(low, high)
    at = [value[box[0], None, None] for value in (y, x, radius_y, radius_x)]
    axis_z, axis_y, axis_x = grid.within(box)
    unit = np.hypot((axis_y - at[0]) / at[2], (axis_x - at[1]) / at[3])
    sdf = (unit - 1) * np.minimum(at[2], at[3])
    return Shape(np.maximum(sdf, np.maximum(np.float32(top) - axis_z, axis_z - np.float32(bottom))), box)


def spline(control: np.ndarray) -> np.ndarray:
    """Fit a smooth curve through control points [n, 3], and sample it every `SAMPLE_MM`."""
    knots = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(control, axis=0), axis=1))])
    dense = CubicSpline(knots, control)(np.linspace(0, knots[-1], 12 * len(control)))
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(dense, axis=0), axis=1))])
    at = np.linspace(0, length[-1], max(4, round(length[-1] / SAMPLE_MM)))
    return np.stack([np.interp(at, length, axis) for axis in dense.T], axis=1)


def tube(grid: Grid, points: np.ndarray, radii: np.ndarray) -> Tube:
    """Compute distances to a tube with radii [n] in mm along centerline samples `points` [n, 3], `SAMPLE_MM` apart.

    Two sections of the centerline count as different loops if they are farther apart along it than they could be
    across the tube.
    """
    reach = radii.max() + MARGIN_MM
    box = grid.box(points.min(0) - reach, points.max(0) + reach)
    local = grid.crop(box)
    nearest, second = np.full(local.shape, FAR), np.full(local.shape, FAR)
    owner = np.full(local.shape, -(10**6), np.int32)
    apart = int(3.5 * radii.max() / SAMPLE_MM)
    for index, (point, radius) in enumerate(zip(points.astype(np.float32), radii.astype(np.float32), strict=True)):
        window = local.box(point - radius - MARGIN_MM, point + radius + MARGIN_MM)
        z, y, x = (axis - middle for axis, middle in zip(local.within(window), point, strict=True))
        distance = np.sqrt(z * z + y * y + x * x) - radius
        near, far, mine = nearest[window], second[window], owner[window]
        closer = distance < near
        other_loop = index - mine > apart
        np.copyto(far, np.minimum(far, np.maximum(near, distance)), where=other_loop)
        np.copyto(mine, index, where=closer)
        np.copyto(near, distance, where=closer)
    owner = np.maximum(owner, 0)
    tangent = np.gradient(points, SAMPLE_MM, axis=0).astype(np.float32)
    along = (owner * np.float32(SAMPLE_MM)).astype(np.float32)
    for axis, position, direction in zip(local.axes, points.T.astype(np.float32), tangent.T, strict=True):
        along += (axis - position[owner]) * direction[owner]
    depth = np.minimum(-nearest, (second - nearest) / 2)
    return Tube(Shape(nearest, box), depth, (nearest + second) / 2, along, owner, points, radii)


def carve(shape: Shape, others: list[Shape], gap_mm: float) -> Shape:
    """Indent a shape wherever another structure is closer than `gap_mm`."""
    sdf = shape.sdf.copy()
    for other in others:
        shared = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(shape.box, other.box, strict=True)]
        if all(s.start < s.stop for s in shared):
            mine = tuple(slice(s.start - a.start, s.stop - a.start) for s, a in zip(shared, shape.box, strict=True))
            theirs = tuple(slice(s.start - b.start, s.stop - b.start) for s, b in zip(shared, other.box, strict=True))
            np.maximum(sdf[mine], gap_mm - other.sdf[theirs], out=sdf[mine])
    return Shape(sdf, shape.box)


def settle(
    points: np.ndarray, radii: np.ndarray, room: np.ndarray, grid: Grid, steps: int, loops: bool = False
) -> np.ndarray:
    """Move a tube's centerline away from obstacles.

    Args:
        points: [n, 3] in mm.
        radii: [n] in mm.
        room: signed distance to the nearest obstacle over the whole grid, mm, negative inside an obstacle.
        grid: the grid of `room`.
        steps: number of small moves.
        loops: whether to push apart distant sections of the tube that overlap, and to keep their spacing.

    Returns:
        [n, 3], every point inside the anatomy's z range.
    """
    points = points.copy()
    spacing = np.linalg.norm(np.diff(points, axis=0), axis=1).mean()
    low, high = FREE_MM + radii, ANATOMY_MM - FREE_MM + 2 - radii
    for _ in range(steps):
        space, slope = _sample(room, grid, points)
        move = slope * np.clip(radii + 1.5 - space, 0, 8)[:, None] * 0.5
        if loops:
            move += _repulsion(points, radii, spacing) + _tension(points, spacing)
        else:
            move = gaussian_filter1d(move, 1.5, axis=0, mode="nearest")
        points += move
        points[:, 0] = np.clip(points[:, 0], low, high)
    return points


def _sample(room, grid, points):
    index = [
        np.clip(np.rint((points[:, k] - axis[0]) / step).astype(int), 2, axis.size - 3)
        for k, (axis, step) in enumerate(zip((grid.z, grid.y, grid.x), grid.step, strict=True))
    ]
    slope = np.empty_like(points)
    for axis, step in enumerate(grid.step):
        ahead, behind = [list(index) for _ in range(2)]
        ahead[axis], behind[axis] = index[axis] + 2, index[axis] - 2
        slope[:, axis] = (room[tuple(ahead)] - room[tuple(behind)]) / (4 * step)
    slope /= np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 0.2)
    return room[tuple(index)], slope


def _repulsion(points, radii, spacing):
    offset = [np.subtract.outer(axis, axis) for axis in points.T.astype(np.float32)]
    distance = np.sqrt(offset[0] ** 2 + offset[1] ** 2 + offset[2] ** 2) + np.float32(1e-3)
    wanted = np.add.outer(radii, radii).astype(np.float32) + 1
    order = np.abs(np.subtract.outer(np.arange(len(points)), np.arange(len(points))))
    push = np.where(order * spacing > 1.6 * wanted, np.maximum(wanted - distance, 0) / distance, 0)
    return np.clip(0.18 * np.stack([(axis * push).sum(1) for axis in offset], axis=1), -3, 3)


def _tension(points, spacing):
    move = np.zeros_like(points)
    link = np.diff(points, axis=0)
    length = np.linalg.norm(link, axis=1, keepdims=True) + 1e-3
    pull = 0.3 * (length - spacing) * link / length
    move[:-1] += pull
    move[1:] -= pull
    move[1:-1] += 0.12 * (points[2:] + points[:-2] - 2 * points[1:-1])
    return move

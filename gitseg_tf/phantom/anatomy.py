"""A patient's abdomen on one day: position and size of every structure of the phantom.

Permanent properties of a patient (build, bones, position of the organs) are drawn from the case's random generator;
properties that change from day to day (filling, position, course of the loops) are drawn from the day's.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

from gitseg_tf.phantom.geometry import (
    ANATOMY_MM,
    FAR,
    FREE_MM,
    SAMPLE_MM,
    Box,
    Grid,
    Shape,
    Tube,
    carve,
    column,
    ellipsoid,
    settle,
    smooth_field,
    spline,
    superellipse,
    tube,
)

VERTEBRA_MM = 34.0
# Centerlines as (z in mm, y and x in fractions of the cavity's half-axes), from the cecum, the cardia and the pylorus.
COLON = (
    (216, -0.05, -0.60),
    (190, 0.10, -0.68),
    (150, 0.20, -0.70),
    (116, 0.15, -0.70),
    (102, -0.35, -0.62),
    (118, -0.66, -0.38),
    (130, -0.74, -0.05),
    (120, -0.72, 0.28),
    (92, -0.50, 0.58),
    (62, 0.02, 0.72),
    (84, 0.38, 0.78),
    (130, 0.40, 0.78),
    (180, 0.30, 0.74),
    (212, 0.10, 0.62),
    (216, -0.25, 0.40),
)
STOMACH = (
    (34, 0.36, 0.38),
    (50, 0.12, 0.46),
    (68, -0.30, 0.44),
    (88, -0.60, 0.24),
    (98, -0.50, -0.06),
    (94, -0.22, -0.26),
)
STOMACH_MM = (22, 30, 29, 25, 20, 11)
DUODENUM = (
    (96, -0.12, -0.30),
    (104, 0.12, -0.36),
    (128, 0.22, -0.36),
    (146, 0.10, -0.20),
    (146, -0.02, 0.06),
    (128, -0.02, 0.24),
)


@dataclass(frozen=True)
class Habitus:
    """The build of a patient: half-axes of the abdominal cavity and thickness of the layers around it, in mm."""

    side: float
    front: float
    back: float
    muscle: float
    fat_side: float
    fat_front: float
    fat_back: float
    spine: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Habitus":
        """Draw a patient between slim and stout."""
        stout = rng.uniform(0, 1)
        return cls(
            side=rng.uniform(120, 130) + 8 * stout,
            front=rng.uniform(72, 80) + 16 * stout,
            back=rng.uniform(70, 76),
            muscle=rng.uniform(11, 14),
            fat_side=rng.uniform(6, 10) + 14 * stout,
            fat_front=rng.uniform(6, 10) + 14 * stout,
            fat_back=rng.uniform(7, 11) + 15 * stout,
            spine=rng.uniform(39, 43),
        )

    def place(self, fractions) -> np.ndarray:
        """Compute positions [..., 3] in mm from z in mm and fractions of the cavity's half-axes."""
        z, y, x = np.moveaxis(np.asarray(fractions, float), -1, 0)
        return np.stack([z, y * np.where(y < 0, self.front, self.back), x * self.side], axis=-1)


@dataclass(frozen=True)
class Frame:
    """The trunk as signed distances over the whole grid: float32, mm, negative inside."""

    body: np.ndarray
    muscle: np.ndarray
    cavity: np.ndarray
    lungs: np.ndarray


@dataclass(frozen=True)
class Anatomy:
    """One patient on one day.

    Attributes:
        grid: where the distances are sampled.
        habitus: the patient's build.
        frame: the trunk.
        bones: the parts of the spine by name, in the order in which they are painted.
        solids: the other unlabeled structures by name.
        vessels: unlabeled mesenteric and hepatic vessels.
        colon: the large bowel.
        bowel: the small bowel.
        stomach: the stomach.
        wobble: a smooth field of unit variance over the grid.
    """

    grid: Grid
    habitus: Habitus
    frame: Frame
    bones: dict[str, Shape]
    solids: dict[str, Shape]
    vessels: dict[str, list[Shape]]
    colon: Tube
    bowel: Tube
    stomach: Tube
    wobble: np.ndarray


def build_anatomy(grid: Grid, case: np.random.Generator, day: np.random.Generator) -> Anatomy:
    """Lay out an abdomen on a grid.

    Args:
        grid: the sample positions.
        case: the patient's random generator, with the same sequence on every day.
        day: the day's random generator.

    Returns:
        The anatomy of the patient on that day.
    """
    habitus = Habitus.draw(case)
    wobble = 0.8 * smooth_field(case, grid, (70, 45, 45)) + 0.6 * smooth_field(day, grid, (70, 45, 45))
    frame = _frame(grid, habitus, case, wobble)
    bones = _bones(grid, habitus, case)
    posterior = _retroperitoneum(grid, habitus, case, day, wobble)
    kidneys = [posterior["left kidney"], posterior["right kidney"]]
    free_space = -frame.cavity - 2
    _occupy(free_space, [bones["spine"], *kidneys, posterior["aorta"], posterior["vena cava"]])
    _occupy(
        free_space, [posterior[f"{side} {muscle}"] for side in ("left", "right") for muscle in ("erector", "psoas")]
    )
    stomach = _stomach(grid, habitus, case, day, free_space)
    _occupy(free_space, [stomach.shape])
    colon = _colon(grid, habitus, case, day, free_space)
    _occupy(free_space, [colon.shape])
    bowel = _bowel(grid, habitus, case, day, free_space)
    hollow = [stomach.shape, colon.shape, bowel.shape]
    upper = _upper_abdomen(grid, habitus, frame, case, wobble)
    solids = {name: carve(carve(shape, hollow, 3.0), kidneys, 5.0) for name, shape in upper.items()}
    vessels = _vessels(grid, habitus, case, day)
    return Anatomy(grid, habitus, frame, bones, solids | posterior, vessels, colon, bowel, stomach, wobble)


def trunk_box(grid: Grid) -> Box:
    """Find the part of a grid that contains even the stoutest patient; its size does not depend on the position."""
    plane = []
    for axis, low, high in ((grid.y, -140, 132), (grid.x, -186, 186)):
        size = min(int(np.ceil((high - low) / (axis[1] - axis[0]))), axis.size)
        start = int(np.clip(np.searchsorted(axis, low), 0, axis.size - size))
        plane.append(slice(start, start + size))
    return slice(0, grid.z.size), plane[0], plane[1]


def _occupy(free_space, shapes):
    for shape in shapes:
        np.minimum(free_space[shape.box], shape.sdf, out=free_space[shape.box])


def _frame(grid, habitus, case, wobble) -> Frame:
    h = habitus
    phase = case.uniform(0, 2 * np.pi)
    scale = (1 + 0.025 * np.sin(grid.z / 45 + phase) - 0.06 * np.clip((30 - grid.z) / 60, 0, 1)).astype(np.float32)
    back = h.back + 20
    cavity = superellipse(grid, h.side, h.front, h.back, 2.3, scale) + 1.4 * wobble
    muscle = superellipse(grid, h.side + h.muscle, h.front + h.muscle, back, 2.4, scale) + 1.4 * wobble
    body = superellipse(
        grid,
        h.side + h.muscle + h.fat_side,
        h.front + h.muscle + h.fat_front,
        back + h.fat_back,
        case.uniform(2.15, 2.45),
        scale,
    )
    body = np.minimum(body + 1.8 * wobble, muscle - 5)
    z, y, x = grid.axes
    depth = np.clip(-cavity / h.back, 0, 1)
    behind = np.clip(y / np.hypot(y, 0.7 * x + 1), -0.3, 1)
    floor = 22 + 46 * behind + 24 * np.clip(x / h.side, 0, 1) + case.uniform(-5, 5)
    dome = floor + 5 * wobble - 130 * depth
    lungs = np.maximum(cavity + 2, 0.6 * (z - dome)).astype(np.float32)
    return Frame(body, muscle, cavity, lungs)


def _bones(grid, habitus, case) -> dict[str, Shape]:
    z = grid.z
    y = habitus.spine + 4 * np.sin(z / 70 + case.uniform(0, 6))
    x = 3 * np.sin(z / 90 + case.uniform(0, 6))
    vertebra = (z + case.uniform(0, VERTEBRA_MM)) / VERTEBRA_MM % 1
    flare = 1.5 * np.cos(2 * np.pi * vertebra)
    between = np.abs(vertebra - 0.5) > 0.4
    arch = np.clip(3 * np.cos(2 * np.pi * (vertebra - 0.55)), 0, 1)
    return {
        "spine": column(grid, y, x, 16 + flare, 21 + flare),
        "disc": column(grid, y, x, 0.5 + 14 * between, 0.5 + 19 * between),
        "transverse process": column(grid, y + 20, x, 1 + 4 * arch, 8 + 28 * arch),
        "spinous process": column(grid, y + 38, x, 12 + 4 * arch, 3 + 2 * arch),
        "canal": column(grid, y + 24, x, 8, 10),
        "cord": column(grid, y + 24, x, 4.5, 6),
    }


def _retroperitoneum(grid, habitus, case, day, wobble) -> dict[str, Shape]:
    spine, z = habitus.spine, grid.z
    shapes = {}
    growth = np.clip((z - 95) / 110, 0, 1)
    for side, name in ((-1, "right"), (1, "left")):
        shapes[f"{name} erector"] = column(grid, spine + 36, side * 28, 24, 29)
        shapes[f"{name} psoas"] = column(
            grid, spine + 4 - 8 * growth, side * (27 + 13 * growth), 4 + 17 * growth, 3 + 14 * growth, top=100
        )
        center = habitus.place((114 - 6 * side, 0.50, 0.47 * side)) + case.normal(0, 4, 3) + day.normal(0, 3, 3)
        radii = np.array([54, 28, 22]) * case.uniform(0.9, 1.08, 3)
        shapes[f"{name} kidney"] = ellipsoid(grid, center, radii, 0.6 * side, 1.2 * wobble)
        hilum = center + np.array([0, -5, -9 * side])
        shapes[f"{name} renal sinus"] = ellipsoid(grid, hilum, (26, 9, 15), 0.6 * side, 2.5 * wobble)
        shapes[f"{name} ilium"] = ellipsoid(grid, habitus.place((278, 0.52, 0.8 * side)), (66, 40, 11), 0.7 * side)
    front = spine - 27 + 3 * np.sin(z / 60 + case.uniform(0, 6))
    split = np.clip((z - 205) / 60, 0, 0.5)
    shapes["aorta"] = column(grid, front, 7 + 18 * split, 9 - 2 * split, 9 - 2 * split)
    shapes["vena cava"] = column(grid, front + 2, -17 - 14 * split, 9, 11)
    return shapes


def _hollow(grid, points, radii) -> Tube:
    points = points.copy()
    points[:, 0] = np.clip(points[:, 0], FREE_MM + radii, ANATOMY_MM - FREE_MM + 2 - radii)
    return tube(grid, points, radii)


def _jitter(points, case, day, case_mm, day_mm):
    shift = case.normal(0, case_mm, points.shape) + day.normal(0, day_mm, points.shape)
    return points + gaussian_filter1d(shift, 0.7, axis=0, mode="nearest")


def _lumpy(rng, count, samples):
    bumps = gaussian_filter1d(rng.standard_normal(400), 160 / count, mode="reflect")
    return np.interp(np.linspace(0, 1, samples), np.linspace(0, 1, 400), bumps / bumps.std())


def _stomach(grid, habitus, case, day, free_space) -> Tube:
    control = _jitter(habitus.place(STOMACH), case, day, 6, 5)
    filling = case.uniform(0.9, 1.08) * day.uniform(0.85, 1.12)
    knots = np.linspace(0, 1, len(STOMACH_MM))
    centerline = spline(control)[::3]
    radii = filling * np.interp(np.linspace(0, 1, len(centerline)), knots, STOMACH_MM)
    centerline = settle(centerline, radii, free_space, grid, 12)
    points = spline(centerline)
    position = np.linspace(0, 1, len(points))
    radii = filling * np.interp(position, knots, STOMACH_MM) * (1 + 0.05 * _lumpy(day, 5, len(points)))
    return _hollow(grid, points, radii)


def _colon(grid, habitus, case, day, free_space) -> Tube:
    control = _jitter(habitus.place(COLON), case, day, 8, 6)
    girth = np.interp(np.linspace(0, 1, 7), np.linspace(0, 1, 4), (24, 21, 18, 17))
    girth = girth * case.uniform(0.92, 1.08) * (1 + 0.06 * case.standard_normal(7) + 0.08 * day.standard_normal(7))
    knots = np.linspace(0, 1, 7)
    centerline = spline(control)[::4]
    radii = np.interp(np.linspace(0, 1, len(centerline)), knots, girth)
    points = spline(settle(centerline, radii, free_space, grid, 20))
    radii = np.clip(np.interp(np.linspace(0, 1, len(points)), knots, girth), 14, 27)
    bulge = np.sqrt(fold_distance(np.arange(len(points)) * SAMPLE_MM) / 15)
    return _hollow(grid, points, radii * (0.87 + 0.24 * bulge))


def fold_distance(along: np.ndarray) -> np.ndarray:
    """Compute the distance in mm, 0 to 15, to the nearest fold of the colon at `along` mm of its centerline."""
    phase = along / 30 + 0.15 * np.sin(along / 47)
    return 30 * np.abs(phase - np.rint(phase))


def _bowel(grid, habitus, case, day, free_space) -> Tube:
    center = habitus.place((170, -0.22, 0.04)) + case.normal(0, 4, 3) + day.normal(0, 3, 3)
    reach = np.array([57, 0.76 * habitus.front, 0.74 * habitus.side]) * case.uniform(0.94, 1.06, 3)
    bag = ellipsoid(grid, center, reach)
    free_space = free_space.copy()
    outside = np.full(grid.shape, -20, np.float32)
    outside[bag.box] = np.maximum(-bag.sdf, -20)
    free_space = np.minimum(free_space, outside)
    count = 195
    t = np.linspace(0, 1, count)
    turns = np.array([2.7, 7.3, 5.2]) + case.uniform(-0.6, 0.6, 3)
    phase = case.uniform(0, 2 * np.pi, 3) + day.normal(0, 0.25, 3)
    coil = center + 0.75 * reach * np.sin(2 * np.pi * turns * t[:, None] + phase)
    duodenum = spline(_jitter(habitus.place(DUODENUM), case, day, 4, 4))[::3]
    radii = 11.5 + 1.2 * _lumpy(case, 12, count + len(duodenum)) + 0.8 * _lumpy(day, 14, count + len(duodenum))
    radii = np.clip(radii, 8.5, 14)
    nodes = np.concatenate([duodenum, coil])
    nodes = settle(nodes, radii, free_space, grid, 140, loops=True)
    points = spline(nodes)
    radii = np.interp(np.linspace(0, 1, len(points)), np.linspace(0, 1, len(radii)), radii)
    return _hollow(grid, points, radii)


def _upper_abdomen(grid, habitus, frame, case, wobble) -> dict[str, Shape]:
    right = ellipsoid(grid, habitus.place((58, -0.02, -0.52)), (84, 92, 0.56 * habitus.side), 0.0, 4 * wobble)
    left = ellipsoid(grid, habitus.place((46, -0.55, -0.05)), (40, 44, 0.52 * habitus.side), 0.25, 3 * wobble)
    lobes = np.full((2, *grid.shape), FAR)
    for lobe, field in zip((right, left), lobes, strict=True):
        field[lobe.box] = lobe.sdf
    fillet = np.maximum(24 - np.abs(lobes[0] - lobes[1]), 0) / 24
    liver = lobes.min(axis=0) - 6 * fillet**2
    inside = np.maximum(frame.cavity + 2.5, 2 - frame.lungs)
    spleen = ellipsoid(grid, habitus.place((62, 0.45, 0.78)), (46, 40, 24), -0.5, 3 * wobble)
    heart = ellipsoid(grid, (-36, -0.45 * habitus.front, 18), (50, 42, 52), 0.5)
    centerline = spline(habitus.place(((110, 0.05, -0.26), (100, -0.12, -0.02), (88, 0.0, 0.28), (78, 0.2, 0.55))))
    pancreas = tube(grid, centerline, 9 + 1.5 * _lumpy(case, 9, len(centerline)))
    whole = grid.whole()
    return {
        "liver": Shape(np.maximum(liver, inside), whole),
        "spleen": Shape(np.maximum(spleen.sdf, inside[spleen.box]), spleen.box),
        "heart": heart,
        "gallbladder": ellipsoid(grid, habitus.place((92, -0.42, -0.45)) + case.normal(0, 4, 3), (26, 17, 12), 0.4),
        "pancreas": pancreas.shape,
    }


def _vessels(grid, habitus, case, day) -> dict[str, list[Shape]]:
    porta = habitus.place((78, 0.0, -0.28))
    hepatic = []
    for _ in range(7):
        end = habitus.place((case.uniform(15, 110), case.uniform(-0.7, 0.5), case.uniform(-0.85, -0.2)))
        hepatic.append(_branch(grid, case, porta, end, 5.0))
    root = habitus.place((128, 0.1, 0.04))
    mesenteric = []
    for _ in range(36):
        end = habitus.place((case.uniform(105, 222), case.uniform(-0.85, 0.45), case.uniform(-0.8, 0.8)))
        mesenteric.append(_branch(grid, case, root, end + day.normal(0, 6, 3), case.uniform(2, 4)))
    return {"hepatic": hepatic, "mesenteric": mesenteric}


def _branch(grid, rng, start, end, radius):
    middle = (start + end) / 2 + rng.normal(0, 18, 3)
    t = np.linspace(0, 1, 22)[:, None]
    points = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end
    points[:, 0] = np.clip(points[:, 0], FREE_MM, ANATOMY_MM - FREE_MM)
    return tube(grid, points, np.linspace(radius, 0.7 * radius, len(points))).shape

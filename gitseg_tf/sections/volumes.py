"""What of an experiment makes it a 3-D one, and which of its keys must then agree."""

import math

from gitseg_tf.sections.model import VOLUMETRIC, ModelConfig

_POOLINGS = 4
_LEAST_PLANE = 2 * 2**_POOLINGS


def poolings(patch: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """By how much each stage of a 3-D network makes its input smaller: height and width by 2, the depth when it can.

    A patch is about a cube in mm, so its shape tells how much thicker slices are than pixels. The depth is kept until
    the plane has caught up, that is while it would become the more coarsely sampled of the two (Isensee et al. 2021,
    doi:10.1038/s41592-020-01008-z).

    Args:
        patch: slices, height, width.

    Returns:
        (depth, height, width) of each of the four poolings, each 1 or 2.
    """
    depth, plane = patch[0], min(patch[1:])
    steps = []
    for _ in range(_POOLINGS):
        step = 2 if 2 * depth > plane else 1
        steps.append((step, 2, 2))
        depth, plane = depth // step, plane // 2
    return steps


def check_volumes(model: ModelConfig, patch: tuple[int, int, int] | None) -> None:
    """Refuse a 2-D network of patches, a 3-D network without, and patches that a 3-D network cannot halve.

    Raises:
        ValueError: one line that names the keys.
    """
    architecture = model.architecture
    if architecture not in VOLUMETRIC:
        if patch is not None:
            names = " or ".join(VOLUMETRIC)
            raise ValueError(
                f"data.patch is {list(patch)} and model.architecture {architecture}, a 2-D network: "
                f"set data.patch to null, or model.architecture to {names}"
            )
        return
    if patch is None:
        raise ValueError(
            f"model.architecture is {architecture}, a 3-D network: it needs data.patch, such as [16, 64, 64]"
        )
    if model.backbone != "plain":
        raise ValueError(
            f"model.backbone is {model.backbone}: model.architecture {architecture} has its own encoder; leave it plain"
        )
    if model.presence:
        raise ValueError(f"model.presence is true: model.architecture {architecture} has no such head; set it to false")
    if min(patch[1:]) < _LEAST_PLANE:
        # At the bottom an instance's normalisation needs more than one voxel.
        raise ValueError(
            f"data.patch is {list(patch)}: {architecture} needs height and width of {_LEAST_PLANE} or more"
        )
    factors = [math.prod(axis) for axis in zip(*poolings(patch), strict=True)]
    if any(extent % factor for extent, factor in zip(patch, factors, strict=True)):
        raise ValueError(
            f"data.patch is {list(patch)}: {architecture} halves it {_POOLINGS} times in the plane; "
            f"a patch of about this shape must be multiples of {factors}"
        )

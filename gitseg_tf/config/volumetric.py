"""3-D experiments: the pooling factors of the networks, and consistency checks between config keys."""

import math

from gitseg_tf.config.model import NETWORKS_3D, ModelConfig


def poolings(patch: tuple[int, int, int], levels: int = 5) -> list[tuple[int, int, int]]:
    """Choose the pooling factors of a 3-D network: height and width are always halved, the depth if large enough.

    A patch is roughly a cube in mm, so its shape shows how much thicker slices are than pixels. The depth is not pooled
    as long as pooling would make it the more coarsely sampled axis (Isensee et al. 2021,
    doi:10.1038/s41592-020-01008-z).

    Args:
        patch: (slices, height, width).
        levels: number of resolutions of the network, `model.levels`.

    Returns:
        (depth, height, width) of each of the levels - 1 poolings, each 1 or 2.

    Example:
        >>> poolings((16, 64, 64), levels=4)
        [(1, 2, 2), (1, 2, 2), (2, 2, 2)]
    """
    depth, plane = patch[0], min(patch[1:])
    steps = []
    for _ in range(levels - 1):
        step = 2 if 2 * depth > plane else 1
        steps.append((step, 2, 2))
        depth, plane = depth // step, plane // 2
    return steps


def feature_depths(patch: tuple[int, int, int], levels: int = 5) -> list[int]:
    """Compute the depth of a 3-D network's features at each resolution.

    Args:
        patch: (slices, height, width).
        levels: number of resolutions, `model.levels`.

    Example:
        >>> feature_depths((16, 64, 64), levels=4)
        [16, 16, 16, 8]
    """
    depths = [patch[0]]
    for depth, _, _ in poolings(patch, levels):
        depths.append(depths[-1] // depth)
    return depths


def check_volumes(model: ModelConfig, patch: tuple[int, int, int] | None) -> None:
    """Reject a 2-D network with patches, a 3-D network without patches, and patches that cannot be pooled.

    Raises:
        ValueError: one line that names the keys.
    """
    architecture = model.architecture
    if architecture not in NETWORKS_3D:
        if patch is not None:
            names = " or ".join(NETWORKS_3D)
            raise ValueError(
                f"data.patch is {list(patch)}, but model.architecture {architecture} is a 2-D network; "
                f"set data.patch to null, or model.architecture to {names}"
            )
        return
    if patch is None:
        raise ValueError(
            f"model.architecture {architecture} is a 3-D network; set data.patch, for example to [16, 64, 64]"
        )
    if model.backbone != "plain":
        raise ValueError(
            f"model.backbone is {model.backbone}, but {architecture} has its own encoder; set model.backbone to plain"
        )
    if model.presence_head:
        raise ValueError(
            f"model.presence_head is true, but model.architecture {architecture} has no such head; set it to false"
        )
    if min(patch[1:]) < 2**model.levels:
        # At the lowest resolution, instance normalization needs more than one voxel.
        raise ValueError(
            f"data.patch is {list(patch)}, but {architecture} with {model.levels} levels needs a height and width "
            f"of at least {2**model.levels}; increase them, or decrease model.levels"
        )
    factors = [math.prod(axis) for axis in zip(*poolings(patch, model.levels), strict=True)]
    if any(extent % factor for extent, factor in zip(patch, factors, strict=True)):
        raise ValueError(
            f"data.patch is {list(patch)}, but {architecture} halves it {model.levels - 1} times in-plane; "
            f"for a patch of about this shape, use multiples of {factors}"
        )

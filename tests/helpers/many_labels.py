"""A synthetic cohort with 12 labels and 2 channels, in nnU-Net's layout."""

import json
from pathlib import Path

import nibabel
import numpy as np

LABELS = tuple(f"structure_{k}" for k in range(1, 13))
CHANNELS = ("T1", "CT")
SHAPE, SPACING = (16, 40, 56), (3.0, 1.5, 1.5)
IGNORE = 13


def make_scan(seed):
    """int16 channels [2, D, H, W] and a label map [D, H, W]: twelve jittered boxes in a grid of 3 x 4.

    The first channel encodes the row of a box in the grid, the second, in Hounsfield units, its column.
    """
    rng = np.random.default_rng(seed)
    label_map = np.zeros(SHAPE, np.uint8)
    channels = np.stack([rng.normal(200, 10, SHAPE), rng.normal(-900, 20, SHAPE)])
    channels[:, :, 2:-2, 2:-2] += np.array([300, 850])[:, None, None, None]
    for k in range(len(LABELS)):
        row, column = divmod(k, 4)
        y, x = 4 + 12 * row + rng.integers(0, 3), 4 + 13 * column + rng.integers(0, 3)
        z = 2 + int(rng.integers(0, 3))
        box = slice(z, z + 10), slice(y, y + 9), slice(x, x + 10)
        label_map[box] = k + 1
        channels[0][box] += 250 * (row + 1)
        channels[1][box] += 120 * (column + 1)
    return channels.astype(np.int16), label_map


def write(root, patients=6, ignore=False):
    """Write the cohort; with `ignore`, the first slice with labels is ignored.

    Args:
        root: a new folder.
        patients: number of patients, with one scan each.
        ignore: True adds nnU-Net's label "ignore".

    Returns:
        The folder.
    """
    root = Path(root)
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir(parents=True)
    affine = np.diag([-SPACING[2], -SPACING[1], -SPACING[0], 1.0])
    for n in range(patients):
        channels, label_map = make_scan(n)
        if ignore:
            label_map[2] = IGNORE
        for c, channel in enumerate(channels):
            path = root / "imagesTr" / f"patient{n:02d}_{c:04d}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(channel.transpose(2, 1, 0)), affine), path)
        path = root / "labelsTr" / f"patient{n:02d}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(label_map.transpose(2, 1, 0)), affine), path)
    labels = {"background": 0} | {name: k for k, name in enumerate(LABELS, 1)} | ({"ignore": IGNORE} if ignore else {})
    tree = {"channel_names": dict(enumerate(CHANNELS)), "labels": labels, "numTraining": patients}
    (root / "dataset.json").write_text(json.dumps(tree | {"file_ending": ".nii.gz"}))
    return root

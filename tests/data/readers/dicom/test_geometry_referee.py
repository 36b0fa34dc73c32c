"""dcm2niix, an independent converter, and our reader agree on where each voxel is."""

import nibabel
import numpy as np
import pytest
from helpers.referees import needs, output_of, write_ct

from gitseg_tf.data.readers.registry import read_cohort


def turned(about, degrees):
    """A rotation of patient coordinates about an axis."""
    angle, (a, b) = np.deg2rad(degrees), [axis for axis in range(3) if axis != about]
    rotation = np.eye(3)
    rotation[a, a] = rotation[b, b] = np.cos(angle)
    rotation[a, b], rotation[b, a] = -np.sin(angle), np.sin(angle)
    return rotation


OBLIQUE = turned(0, 17) @ turned(2, -8) @ turned(1, 5)


def rotate(rotation):
    def change(dataset, _):
        across, down = np.reshape(np.array(dataset.ImageOrientationPatient, float), (2, 3)) @ rotation.T
        position = rotation @ np.array(dataset.ImagePositionPatient, float)
        # A decimal string has at most 16 characters.
        dataset.ImageOrientationPatient = [round(float(v), 10) for v in (*across, *down)]
        dataset.ImagePositionPatient = [round(float(v), 6) for v in position]

    return change


def converted(folder, out):
    """The series as dcm2niix converts it."""
    out.mkdir()
    printed = output_of("dcm2niix", "-z", "n", "-f", "scan", "-o", out, folder)
    paths = list(out.glob("*.nii"))
    assert len(paths) == 1, printed
    return nibabel.load(paths[0])


def check_agreement(folder, out):
    """Compare voxels, affine and spacing, with the axes of both in the same directions."""
    (scan,) = read_cohort(folder).scans
    theirs = nibabel.as_closest_canonical(converted(folder, out))
    voxels, affine = scan.read_volume().voxels, scan.source.whole_grid(scan).records_affine
    ours = nibabel.as_closest_canonical(nibabel.Nifti1Image(np.float32(voxels).transpose(2, 1, 0), affine))
    assert ours.shape == theirs.shape
    assert np.array_equal(ours.get_fdata(), theirs.get_fdata())
    corners = np.array([[x, y, z, 1] for x in (0, ours.shape[0]) for y in (0, ours.shape[1]) for z in (0, 1)]).T
    assert np.abs((ours.affine - theirs.affine) @ corners).max() < 0.01
    assert np.allclose(ours.header.get_zooms(), theirs.header.get_zooms(), atol=1e-4)
    order = [int(axis) for axis in nibabel.io_orientation(affine)[:, 0]]
    assert np.allclose(np.array(scan.spacing)[::-1], np.array(theirs.header.get_zooms())[order], atol=1e-4)


@needs("dcm2niix")
@pytest.mark.parametrize("codes", ["LPI", "LPS", "LIP", "LIA", "PIR", "PIL", "PSL"])
def test_dcm2niix_agrees_on_axial_coronal_and_sagittal_series(write, clinic, tmp_path, codes):
    write().write_series(codes)
    check_agreement(clinic, tmp_path / "converted")


@needs("dcm2niix")
@pytest.mark.parametrize("codes", ["LPI", "LPS", "LIP", "PIR"])
def test_dcm2niix_agrees_on_oblique_series(write, clinic, tmp_path, codes):
    write().write_series(codes, change=rotate(OBLIQUE))
    check_agreement(clinic, tmp_path / "converted")


@needs("dcm2niix")
def test_dcm2niix_agrees_on_a_ct_with_a_rescale_intercept(tmp_path):
    headers = write_ct(tmp_path / "ct", change=rotate(turned(2, 3)))
    assert headers[0].RescaleIntercept == -1024
    check_agreement(tmp_path / "ct", tmp_path / "converted")

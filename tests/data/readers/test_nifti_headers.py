"""NIfTI headers that are unusual, ambiguous or contradict themselves; their bytes are set according to nifti1.h."""

import struct

import numpy as np
import pytest

from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.data.readers.summary import describe
from gitseg_tf.inspection import inspect_data

SPACING = (3.0, 1.5, 1.25)
PIXDIM, UNITS, QFORM_CODE, SFORM_CODE, QUATERNION, ROWS = 76, 123, 252, 254, 256, 280


@pytest.fixture
def image(nifti, tmp_path):
    """image(offset, format, *values, ...) writes a scan of 6 x 5 x 4 voxels and sets bytes of its header."""

    def write(*changes, name="scan.nii", spacing=SPACING, volume=None):
        affine = np.diag([-spacing[2], -spacing[1], -spacing[0], 1.0])
        volume = np.arange(120, dtype=np.int16).reshape(4, 5, 6) if volume is None else volume
        nifti.save(tmp_path / name, volume, affine)
        content = bytearray((tmp_path / name).read_bytes())
        for offset, form, *values in changes:
            struct.pack_into(f"<{form}", content, offset, *values)
        (tmp_path / name).write_bytes(content)
        return tmp_path

    return write


def test_a_plain_header_gives_no_remark(image):
    cohort = read_cohort(image())
    assert (cohort.notes, cohort.warnings, cohort.scans[0].spacing) == ((), (), SPACING)


@pytest.mark.parametrize(("unit", "mm", "name"), [(1, 1000, "meters"), (3, 0.001, "micrometers")])
def test_other_units_are_converted_to_millimeters(image, unit, mm, name):
    cohort = read_cohort(image((UNITS, "B", unit), spacing=np.divide(SPACING, mm)))
    assert cohort.scans[0].spacing == pytest.approx(SPACING)
    assert cohort.warnings == ()
    assert cohort.notes == (
        f"{cohort.root}: in 1 scan, the spacing is stored in {name} and is converted to millimeters",
    )


def test_an_unknown_unit_is_noted_once(image):
    image((UNITS, "B", 0), name="a.nii")
    cohort = read_cohort(image((UNITS, "B", 0), name="b.nii"))
    note = "in 2 scans, the header does not state the unit of the spacing; millimeters are assumed"
    assert cohort.notes == (f"{cohort.root}: {note}",)
    assert [scan.spacing for scan in cohort.scans] == [SPACING, SPACING]


def test_a_unit_that_cannot_be_right_is_refused(image, refusal):
    assert "has a spacing of 1.25 x 1.5 x 3 meters, which cannot be right; fix xyzt_units" in refusal(
        read_cohort, image((UNITS, "B", 1))
    )


def test_an_sform_that_differs_from_pixdim_is_a_warning_of_inspect_and_of_the_dry_run(image, tmp_path):
    root = image((PIXDIM + 4, "3f", 1.25, 1.5, 2.5))
    cohort = read_cohort(root)
    path = root / "scan.nii"
    line = f"{path}: the sform has a spacing of 1.25 x 1.5 x 3, but pixdim 1.25 x 1.5 x 2.5; the sform is used"
    assert cohort.scans[0].spacing == SPACING
    assert cohort.warnings == (line,)
    assert any(line in text for text in describe(root))
    assert any(line in finding.text for finding in inspect_data(root).findings)


def test_an_sform_that_differs_from_the_qform_is_a_warning(image):
    # A quaternion of 0 is no rotation, while the sform flips all axes.
    (line,) = read_cohort(image((QFORM_CODE, "h", 1), (QUATERNION, "6f", 0, 0, 0, 0, 0, 0), (PIXDIM, "f", 1))).warnings
    assert (
        "scan.nii: the sform places 6 x 5 x 4 voxels of 3 x 1.5 x 1.25 mm from (0, 0, 0) to (-3.75, -6, -15) mm" in line
    )
    # The last voxel of the records is the first one of the qform, whose axes point the other way.
    assert "but the qform 6 x 5 x 4 voxels of 3 x 1.5 x 1.25 mm from (3.75, 6, 15) to (0, 0, 0) mm" in line
    assert line.endswith("; the sform is used")


def test_many_warnings_are_shortened(image):
    for n in range(8):
        image((PIXDIM + 12, "f", 2.5), name=f"{n}.nii")
    cohort = read_cohort(image((PIXDIM + 12, "f", 2.5)))
    assert len(cohort.warnings) == 6 and cohort.warnings[-1] == "and 4 files more like these"


def test_a_quaternion_that_rounding_made_too_long_is_read(image):
    # Half a turn about z, written with an error that nibabel alone refuses.
    exact = [(SFORM_CODE, "h", 0), (QFORM_CODE, "h", 1), (PIXDIM, "f", 1), (QUATERNION, "6f", 0, 0, 1, 7, 8, 9)]
    grid = read_cohort(image(*exact)).scans[0].source.grid
    rounded = read_cohort(image(*exact, (QUATERNION + 8, "f", 1.00002))).scans[0].source.grid
    assert np.array_equal(np.array(grid.affine), [[-1.25, 0, 0, 7], [0, -1.5, 0, 8], [0, 0, 3, 9], [0, 0, 0, 1]])
    assert np.allclose(rounded.affine, grid.affine, rtol=0, atol=1e-9)


def test_a_quaternion_that_is_far_too_long_is_refused(image, refusal):
    changes = (SFORM_CODE, "h", 0), (QFORM_CODE, "h", 1), (QUATERNION, "3f", 0, 0, 1.2)
    assert "scan.nii: cannot be read as NIfTI (w2 should be positive" in refusal(read_cohort, image(*changes))


@pytest.mark.parametrize("rows", [[np.nan] * 4, [0, 0, 0, 5], [np.inf, 0, 0, 0]], ids=["NaN", "zero", "infinite"])
def test_a_singular_affine_is_refused(image, refusal, rows):
    assert "scan.nii: its affine is singular; fix the header" in refusal(read_cohort, image((ROWS, "4f", *rows)))


@pytest.mark.parametrize("axis", range(3))
def test_a_mask_may_be_shifted_by_a_tenth_of_a_voxel(nifti, tmp_path, refusal, axis):
    affine, shifted = np.diag([-1.25, -1.5, -3.0, 1.0]), np.diag([-1.25, -1.5, -3.0, 1.0])
    nifti.save(tmp_path / "a" / "image.nii.gz", np.ones((4, 5, 6)), affine, np.uint8)
    shifted[axis, 3] = 0.09 * affine[axis, axis]
    nifti.save(tmp_path / "a" / "liver.nii.gz", np.ones((4, 5, 6)), shifted, np.uint8)
    assert read_cohort(tmp_path).scans[0].read_annotation().masks.all()
    shifted[axis, 3] = 0.11 * affine[axis, axis]
    nifti.save(tmp_path / "a" / "liver.nii.gz", np.ones((4, 5, 6)), shifted, np.uint8)
    line = refusal(read_cohort, tmp_path)
    assert "liver.nii.gz: its grid is 6 x 5 x 4 voxels of 3 x 1.5 x 1.25 mm from (" in line
    assert (
        "but that of image.nii.gz is 6 x 5 x 4 voxels of 3 x 1.5 x 1.25 mm from (0, 0, 0) to (-3.75, -6, -15) mm"
        in line
    )

import nibabel
import numpy as np
import pytest
from nibabel.affines import apply_affine

from gitseg_tf.data.scans import ORGANS, read_cohort, read_image, read_masks
from gitseg_tf.inference.nifti_files import write_nifti

SCANS = (("case1_day0", (40, 64), range(1, 9)), ("case5_day0", (48, 40), (2, 3, 7, 8, 9)))


@pytest.fixture(scope="module")
def truth(draw, tmp_path_factory):
    return draw(tmp_path_factory.mktemp("truth") / "cohort", SCANS)


def written(root, out, masks, index=0):
    """The files that are written for a scan of a cohort: the image, and the masks by organ."""
    scan = read_cohort(root, table=False).scans[index]
    write_nifti(out, scan, read_image(scan), masks)
    files = {path.name.split(".")[0]: nibabel.load(path) for path in (out / scan.id).iterdir()}
    assert files.keys() == {"image", *ORGANS}
    return files.pop("image"), files


def places(nifti):
    """Where the voxels inside are, in millimetres, in any order."""
    inside = np.argwhere(np.asarray(nifti.dataobj) > 0)
    return np.array(sorted(np.round(apply_affine(nifti.affine, inside), 3).tolist()))


def drawn_places(scan, mask, origin, signs=(-1, -1, -1)):
    dz, dy, dx = scan.spacing
    z, y, x = np.nonzero(mask)
    steps = np.column_stack([x * dx, y * dy, (np.array(scan.numbers)[z] - 1) * dz])
    return np.array(sorted(np.round(np.array(origin) + signs * steps, 3).tolist()))


@pytest.mark.parametrize("codes", ["LPI", "RAS", "PIR", "SAL"])
def test_masks_of_nifti_have_the_inputs_axes_and_every_voxel_is_in_its_place(truth, nifti, tmp_path, codes):
    scan = truth.scans[0]
    affine = nifti.affine_of(scan, codes)
    nifti.save(tmp_path / "in/a.nii.gz", nifti.stored_as(scan.image, codes), affine)
    image, masks = written(tmp_path / "in", tmp_path / "out", scan.masks)
    for file in (image, *masks.values()):
        assert "".join(nibabel.aff2axcodes(file.affine)) == codes
        assert np.array_equal(file.affine, affine.astype(np.float32))
        assert np.allclose(file.get_qform(), affine, atol=1e-4) and file.header["sform_code"] == 1
        assert file.header.get_xyzt_units()[0] == "mm"
    assert np.array_equal(np.asarray(image.dataobj), nifti.stored_as(scan.image, codes))
    for organ, mask in zip(ORGANS, scan.masks, strict=True):
        assert np.allclose(places(masks[organ]), drawn_places(scan, mask, (50, 40, 500)), atol=2e-3)


@pytest.mark.parametrize("sheared", [False, True])
def test_oblique_and_sheared_axes_are_kept(truth, nifti, tmp_path, sheared):
    scan = truth.scans[0]
    turn = np.eye(4)
    turn[1:3, 1:3] = [[0.8, -0.6], [0.6, 0.8]]
    turn[0, 1] = 0.3 * sheared
    affine = turn @ nifti.affine_of(scan, "RAS")
    nifti.save(tmp_path / "in/a.nii", nifti.stored_as(scan.image, "RAS"), affine)
    _, masks = written(tmp_path / "in", tmp_path / "out", scan.masks)
    header = masks["stomach"].header
    assert np.allclose(masks["stomach"].affine, affine, atol=1e-4)
    assert header["qform_code"] == (0 if sheared else 1)
    assert np.array_equal(np.asarray(masks["stomach"].dataobj), nifti.stored_as(scan.masks[2], "RAS"))


def test_the_folder_is_a_cohort_of_the_projects_own(truth, nifti, tmp_path):
    for scan in truth.scans:
        nifti.save(tmp_path / f"in/{scan.id}.nii.gz", nifti.stored_as(scan.image, "LAS"), nifti.affine_of(scan, "LAS"))
    for index, scan in enumerate(truth.scans):
        written(tmp_path / "in", tmp_path / "out", scan.masks, index)
    cohort = read_cohort(tmp_path / "out")
    assert [scan.id for scan in cohort.scans] == [scan.id for scan in truth.scans]
    for read, scan in zip(cohort.scans, truth.scans, strict=True):
        assert read.spacing == scan.spacing
        assert np.array_equal(read_masks(read), scan.masks) and np.array_equal(read_image(read), scan.image)


@pytest.mark.parametrize("codes", ["LPI", "LPS", "LIP"])
def test_masks_of_dicom_are_where_the_series_is(patients, write, clinic, tmp_path, codes):
    scan = patients.scans[0]
    write().write_series(codes)
    _, masks = written(clinic, tmp_path / "out", scan.masks)
    for organ, mask in zip(ORGANS, scan.masks, strict=True):
        assert np.allclose(places(masks[organ]), drawn_places(scan, mask, (50, 40, 500)), atol=2e-3)


def test_slices_that_are_missing_in_a_series_are_empty_ones(patients, write, clinic, tmp_path):
    scan = patients.scans[1]
    write(1).write_series()
    image, masks = written(clinic, tmp_path / "out", scan.masks)
    assert image.shape == (64, 40, 9)
    assert np.flatnonzero(~np.asarray(image.dataobj).any((0, 1))).tolist() == [3, 4]
    for organ, mask in zip(ORGANS, scan.masks, strict=True):
        assert np.allclose(places(masks[organ]), drawn_places(scan, mask, (50, 40, 500)), atol=2e-3)


def test_png_slices_get_the_spacing_of_their_names_and_lie_as_the_competitions_do(truth, tmp_path):
    scan = truth.scans[1]
    image, masks = written(truth.root, tmp_path / "out", scan.masks, 1)
    assert image.header.get_zooms() == pytest.approx(scan.spacing[::-1])
    assert "".join(nibabel.aff2axcodes(image.affine)) == "LPI" and image.shape == (40, 48, 8)
    for organ, mask in zip(ORGANS, scan.masks, strict=True):
        assert np.allclose(places(masks[organ]), drawn_places(scan, mask, (0, 0, 0)), atol=2e-3)

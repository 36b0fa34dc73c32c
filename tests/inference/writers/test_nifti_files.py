import json

import nibabel
import numpy as np
import pytest
from nibabel.affines import apply_affine

from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.inference.prediction import Prediction
from gitseg_tf.inference.writers.registry import open_writer
from gitseg_tf.labels import UWMGI, LabelSet

SCANS = (("case1_day0", (40, 64), range(1, 9)), ("case5_day0", (48, 40), (2, 3, 7, 8, 9)))


@pytest.fixture(scope="module")
def truth(make_cohort, tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("truth") / "cohort", SCANS)


def written(root, out, masks, index=0):
    """Write a scan of a cohort; returns the image file and the mask files by label."""
    cohort = read_cohort(root, table=False)
    scan = cohort.scans[index]
    with open_writer("nifti", cohort, out, UWMGI) as writer:
        writer.write(scan, scan.read_volume(), Prediction(masks))
    files = {path.name.split(".")[0]: nibabel.load(path) for path in (out / scan.id).iterdir()}
    assert files.keys() == {"image", *UWMGI.names}
    return files.pop("image"), files


def positions(nifti):
    """The sorted positions of the foreground voxels in mm."""
    inside = np.argwhere(np.asarray(nifti.dataobj) > 0)
    return np.array(sorted(np.round(apply_affine(nifti.affine, inside), 3).tolist()))


def expected_positions(scan, mask, origin, signs=(-1, -1, -1)):
    dz, dy, dx = scan.spacing
    z, y, x = np.nonzero(mask)
    steps = np.column_stack([x * dx, y * dy, (np.array(scan.numbers)[z] - 1) * dz])
    return np.array(sorted(np.round(np.array(origin) + signs * steps, 3).tolist()))


@pytest.mark.parametrize("codes", ["LPI", "RAS", "PIR", "SAL"])
def test_masks_keep_the_axes_and_voxel_positions_of_the_nifti_input(truth, nifti, tmp_path, codes):
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
    for name, mask in zip(UWMGI.names, scan.masks, strict=True):
        assert np.allclose(positions(masks[name]), expected_positions(scan, mask, (50, 40, 500)), atol=2e-3)


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


def test_the_output_folder_can_be_read_as_a_cohort(truth, nifti, tmp_path):
    for scan in truth.scans:
        nifti.save(tmp_path / f"in/{scan.id}.nii.gz", nifti.stored_as(scan.image, "LAS"), nifti.affine_of(scan, "LAS"))
    for index, scan in enumerate(truth.scans):
        written(tmp_path / "in", tmp_path / "out", scan.masks, index)
    cohort = read_cohort(tmp_path / "out")
    assert [scan.id for scan in cohort.scans] == [scan.id for scan in truth.scans]
    for read, scan in zip(cohort.scans, truth.scans, strict=True):
        assert read.spacing == scan.spacing
        assert np.array_equal(read.read_annotation().masks, scan.masks)
        assert np.array_equal(read.read_volume().voxels, scan.image)


@pytest.mark.parametrize("codes", ["LPI", "LPS", "LIP"])
def test_masks_align_with_the_dicom_series(patients, write, clinic, tmp_path, codes):
    scan = patients.scans[0]
    write().write_series(codes)
    _, masks = written(clinic, tmp_path / "out", scan.masks)
    for name, mask in zip(UWMGI.names, scan.masks, strict=True):
        assert np.allclose(positions(masks[name]), expected_positions(scan, mask, (50, 40, 500)), atol=2e-3)


def test_missing_slices_of_a_series_are_written_as_empty(patients, write, clinic, tmp_path):
    scan = patients.scans[1]
    write(1).write_series()
    image, masks = written(clinic, tmp_path / "out", scan.masks)
    assert image.shape == (64, 40, 9)
    assert np.flatnonzero(~np.asarray(image.dataobj).any((0, 1))).tolist() == [3, 4]
    for name, mask in zip(UWMGI.names, scan.masks, strict=True):
        assert np.allclose(positions(masks[name]), expected_positions(scan, mask, (50, 40, 500)), atol=2e-3)


def test_png_slices_get_spacing_and_orientation_of_the_competition(truth, tmp_path):
    scan = truth.scans[1]
    image, masks = written(truth.root, tmp_path / "out", scan.masks, 1)
    assert image.header.get_zooms() == pytest.approx(scan.spacing[::-1])
    assert "".join(nibabel.aff2axcodes(image.affine)) == "LPI" and image.shape == (40, 48, 8)
    for name, mask in zip(UWMGI.names, scan.masks, strict=True):
        assert np.allclose(positions(masks[name]), expected_positions(scan, mask, (0, 0, 0)), atol=2e-3)


TWELVE = LabelSet.of(*(f"structure {k}" for k in range(12)))


@pytest.fixture
def scan(truth):
    return read_cohort(truth.root, table=False).scans[0]


def overlapping(shape):
    """Twelve bands of rows, each two rows wide, so that neighbors overlap in a row."""
    masks = np.zeros((12, *shape), bool)
    for k in range(12):
        masks[k, 1, k : k + 2] = True
    return masks


def test_twelve_labels_are_written_to_one_file_each(truth, scan, tmp_path):
    masks = overlapping(scan.shape)
    with open_writer("nifti", truth, tmp_path, TWELVE) as writer:
        writer.write(scan, scan.read_volume(), Prediction(masks))
    for name, mask in zip(TWELVE.names, masks, strict=True):
        file = nibabel.load(tmp_path / scan.id / f"{name}.nii.gz")
        assert np.array_equal(scan.source.whole_grid(scan).to_records(np.asarray(file.dataobj)) > 0, mask)


@pytest.mark.parametrize(("with_probabilities", "how"), [(True, "probability"), (False, "label order")])
def test_a_label_map_has_one_label_in_each_voxel(truth, scan, tmp_path, caplog, with_probabilities, how):
    caplog.set_level("INFO", "gitseg_tf")
    masks = overlapping(scan.shape)
    probabilities = np.random.default_rng(0).random(masks.shape).astype(np.float32)
    probabilities[~masks] = 0
    with open_writer("labelmap", truth, tmp_path, TWELVE) as writer:
        writer.write(scan, scan.read_volume(), Prediction(masks, probabilities if with_probabilities else None))
    numbers = nibabel.load(tmp_path / f"{scan.id}.nii.gz")
    assert numbers.get_data_dtype() == np.uint8
    expected = (probabilities if with_probabilities else masks).argmax(0) + 1
    expected[~masks.any(0)] = 0
    assert np.array_equal(scan.source.whole_grid(scan).to_records(np.asarray(numbers.dataobj)), expected)
    names = json.loads((tmp_path / "dataset.json").read_text())["labels"]
    assert names == {"background": 0} | {name: k for k, name in enumerate(TWELVE.names, 1)}
    assert [line for line in caplog.messages if line.endswith(f"one label, chosen by {how}")]


def test_labels_that_do_not_overlap_log_nothing(truth, scan, tmp_path, caplog):
    caplog.set_level("INFO", "gitseg_tf")
    masks = overlapping(scan.shape)
    masks[1::2] = False
    with open_writer("labelmap", truth, tmp_path, TWELVE) as writer:
        writer.write(scan, scan.read_volume(), Prediction(masks))
    assert caplog.messages == []

"""Other people's programs read what is written: plastimatch fills the contours, dicom3tools checks the standard."""

import nibabel
import numpy as np
import pydicom
import pytest
from helpers.clinic import affine_of, stored_as
from helpers.referees import errors_of, needs, plastimatch_mask, write_ct

from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.inference.identity import ModelIdentity
from gitseg_tf.inference.prediction import Prediction
from gitseg_tf.inference.writers.registry import open_writer
from gitseg_tf.labels import UWMGI, Code, Label, LabelSet

MODEL = ModelIdentity("abdomen unet", "0.1.0", "3f5a9c0d" + 56 * "0")
OTHER = ModelIdentity("abdomen unet", "0.1.0", "77aa0c31" + 56 * "0")


def write_format(name, root, out, masks, labels=UWMGI, model=MODEL):
    """Write the masks of the only scan of a folder, and return the file."""
    cohort = read_cohort(root)
    (scan,) = cohort.scans
    with open_writer(name, cohort, out, labels, model) as writer:
        writer.write(scan, scan.read_volume(), Prediction(masks))
    (path,) = out.rglob("*.dcm")
    return path


def hard_masks(shape):
    """Single voxels, diagonals, rings with islands, combs, several components and noise: bool [3, D, H, W]."""
    _, height, width = shape
    masks = np.zeros((3, *shape), bool)
    masks[0, 0, 5, 7] = masks[0, 0, 5, 9] = masks[0, -1, 0, 0] = True
    masks[0, 1, 3:20, 4:30], masks[0, 1, 6:17, 7:27], masks[0, 1, 10, 12:20] = True, False, True
    masks[0, 2] = np.eye(height, width, dtype=bool)
    masks[0, 4, 2:30, 2:40:2] = True
    masks[0, 5:, 2:6, 2:6] = masks[0, 5:, 20:28, 30:36] = True
    masks[1, ::2] = np.random.default_rng(0).random((len(masks[1, ::2]), height, width)) < 0.6
    masks[2, 1:3] = True
    masks[2, 1, 1:-1:3, 1:-1:3] = False
    return masks


@needs("plastimatch")
@pytest.mark.parametrize("codes", ["LPI", "LPS"])
@pytest.mark.parametrize("index", [0, 1], ids=["whole", "with a gap"])
def test_plastimatch_rasterizes_the_masks_without_a_different_voxel(patients, write, clinic, tmp_path, codes, index):
    truth = patients.scans[index]
    write(index).write_series(codes)
    masks = hard_masks(truth.image.shape)
    path = write_format("rtstruct", clinic, tmp_path / "out", masks)
    # The grid is written with nibabel alone; slices that are missing from the series are empty in it.
    numbers = np.array(truth.numbers) - truth.numbers[0]
    whole = np.zeros((3, numbers[-1] + 1, *masks.shape[2:]), bool)
    whole[:, numbers] = masks
    affine = affine_of(truth, "LPI")
    nibabel.save(nibabel.Nifti1Image(stored_as(whole[0], "LPI").astype(np.uint8), affine), tmp_path / "grid.nii")
    for label, mask in zip(UWMGI, whole, strict=True):
        read, at = plastimatch_mask(path, tmp_path / "grid.nii", tmp_path / "read", label.roi_name)
        assert np.allclose(at @ (3, 2, 1, 1), affine @ (3, 2, 1, 1), atol=1e-3)
        assert (read != stored_as(mask, "LPI")).sum() == 0


@pytest.mark.parametrize("name", ["rtstruct", "seg"])
@needs("dciodvfy")
def test_the_files_conform_to_the_standard_and_to_the_images(tmp_path, name):
    write_ct(tmp_path / "ct")
    masks = np.zeros((3, 5, 128, 128), bool)
    masks[0, 1:4, 20:40, 30:60], masks[1, 2, 30:50, 50:70] = True, True
    path = write_format(name, tmp_path / "ct", tmp_path / "out", masks)
    assert errors_of("dciodvfy", path) == []
    assert errors_of("dcentvfy", *sorted((tmp_path / "ct").iterdir()), path) == []


def without_identifiers(dataset, k):
    """What de-identification leaves: empty type 2 attributes, and none of the optional ones."""
    dataset.PatientName = dataset.PatientID = dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = ""
    for name in ("PatientBirthDate", "PatientSex", "ReferringPhysicianName", "StudyID", "PositionReferenceIndicator"):
        if name in dataset:
            delattr(dataset, name)


def with_a_foreign_name(dataset, k):
    dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 100", "Müller^Änne"


@needs("dciodvfy")
@pytest.mark.parametrize("name", ["rtstruct", "seg"])
@pytest.mark.parametrize("change", [without_identifiers, with_a_foreign_name])
def test_the_files_conform_for_unusual_patients_and_labels(tmp_path, name, change):
    write_ct(tmp_path / "ct", change=change)
    code = Code("T-" + "1" * 20, "99LOCAL", "A meaning " * 9)
    labels = LabelSet((Label("Gallenblase rot\xfctlich", (9, 8, 7)), Label("b" * 80, (1, 2, 3), code=code)))
    masks = np.ones((2, 5, 128, 128), bool)
    masks[1] = False
    path = write_format(name, tmp_path / "ct", tmp_path / "out", masks, labels)
    assert errors_of("dciodvfy", path) == []


@pytest.mark.parametrize("name", ["rtstruct", "seg"])
def test_two_models_can_be_told_apart_in_a_planning_system(tmp_path, name):
    write_ct(tmp_path / "ct")
    masks = np.ones((3, 5, 128, 128), bool)
    files = [write_format(name, tmp_path / "ct", tmp_path / m.weights[:3], masks, model=m) for m in (MODEL, OTHER)]
    one, other = map(pydicom.dcmread, files)
    for dataset, model in ((one, MODEL), (other, OTHER)):
        assert model.weights[:8] in dataset.SeriesDescription and "abdomen unet" in dataset.SeriesDescription
        assert dataset.SoftwareVersions[0] == "0.1.0" and f"weights {model.weights[:8]}" in dataset.SoftwareVersions
    if name == "rtstruct":
        assert (one.StructureSetLabel, other.StructureSetLabel) == ("abdomen 3f5a9c0d", "abdomen 77aa0c31")
        assert all(part in one.StructureSetDescription for part in ("abdomen unet", "0.1.0", MODEL.weights))
        assert {roi.ROIGenerationAlgorithm for roi in one.StructureSetROISequence} == {"AUTOMATIC"}

"""Structure sets from masks that were corrected elsewhere, read back with the images."""

import json
import shutil

import nibabel
import numpy as np
import pydicom
import pytest
from helpers.clinic import affine_of, label_map, save_nifti, stored_as, without_overlaps
from helpers.referees import errors_of, needs

from gitseg_tf.cli import main
from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.inference.prediction import Prediction
from gitseg_tf.inference.writers.from_masks import masks_to_structure_set
from gitseg_tf.inference.writers.registry import open_writer
from gitseg_tf.labels import UWMGI, LabelSet

TABLE = (
    '<?xml version="1.0"?><CaretExtension><VolumeInformation><LabelTable>'
    '<Label Key="1"><![CDATA[Bowel_Large]]></Label><Label Key="2"><![CDATA[Bowel_Small]]></Label>'
    '<Label Key="3"><![CDATA[Stomach]]></Label></LabelTable></VolumeInformation></CaretExtension>'
)


@pytest.fixture
def masks(patients):
    return without_overlaps(patients.scans[0].masks)


def on_whole_grid(scan, mask):
    """A mask with empty slices where the scan lacks slices."""
    numbers = np.array(scan.numbers) - scan.numbers[0]
    whole = np.zeros((numbers[-1] + 1, *mask.shape[1:]), mask.dtype)
    whole[numbers] = mask
    return whole


def save_files(folder, scan, masks, names=UWMGI.names, codes="LPI", shift=(0, 0, 0)):
    """A NIfTI file per label, with axes in the given directions."""
    for name, mask in zip(names, masks, strict=True):
        affine = affine_of(scan, codes)
        affine[:3, 3] += shift
        save_nifti(folder / f"{name}.nii.gz", stored_as(on_whole_grid(scan, mask), codes), affine, np.uint8)
    return folder


def save_map(path, scan, masks, table=None):
    image = nibabel.Nifti1Image(stored_as(label_map(masks), "LPI").astype(np.uint8), affine_of(scan, "LPI"))
    if table:
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(30, table.encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def read_back(clinic, path, labels=None):
    """The masks and names in a structure set, as read next to its series."""
    shutil.copy(path, clinic / "RS.dcm")
    cohort = read_cohort(clinic, labels=labels)
    return cohort.labels.names, cohort.scans[0].read_annotation().masks


@pytest.mark.parametrize("codes", ["LPI", "LPS"])
@pytest.mark.parametrize("stored", ["LPI", "RAS"])
def test_a_file_per_label_becomes_an_roi_per_file(patients, write, clinic, tmp_path, codes, stored):
    write().write_series(codes)
    scan = patients.scans[0]
    folder = save_files(tmp_path / "masks", scan, scan.masks, codes=stored)
    shutil.copy(folder / "stomach.nii.gz", folder / "image.nii.gz")
    path = masks_to_structure_set(folder, clinic, tmp_path / "new/out.dcm")
    names, masks = read_back(clinic, path)
    assert names == ("large_bowel", "small_bowel", "stomach") and np.array_equal(masks, scan.masks)


def test_a_series_with_a_gap_takes_masks_with_an_empty_slice_there(patients, write, clinic, tmp_path, refusal):
    write(1).write_series()
    scan = patients.scans[1]
    folder = save_files(tmp_path / "masks", scan, scan.masks)
    path = masks_to_structure_set(folder, clinic, tmp_path / "out.dcm")
    assert np.array_equal(read_back(clinic, path)[1], scan.masks)
    image = nibabel.load(folder / "stomach.nii.gz")
    filled = np.asanyarray(image.dataobj).copy()
    filled[3, 3, 3] = 1  # number 4, which the series lacks
    save_nifti(folder / "stomach.nii.gz", filled, image.affine)
    line = refusal(masks_to_structure_set, folder, clinic, tmp_path / "other.dcm")
    assert "1 voxel of its masks are in slices that case1_20260203 lacks" in line and "stomach.nii.gz" in line


@pytest.mark.parametrize("how", ["dataset.json", "header", "labels"])
def test_the_values_of_a_label_map_get_their_names(patients, write, clinic, tmp_path, masks, how):
    write().write_series()
    file = save_map(tmp_path / "map.nii.gz", patients.scans[0], masks, TABLE if how == "header" else None)
    if how == "dataset.json":
        tree = {"labels": {"background": 0, "Bowel_Large": 1, "Bowel_Small": 2, "Stomach": 3}}
        (tmp_path / "dataset.json").write_text(json.dumps(tree))
    path = masks_to_structure_set(file, clinic, tmp_path / "out.dcm", labels=UWMGI if how == "labels" else None)
    dataset = pydicom.dcmread(path)
    assert [roi.ROIName for roi in dataset.StructureSetROISequence] == ["Bowel_Large", "Bowel_Small", "Stomach"]
    assert np.array_equal(read_back(clinic, path, UWMGI)[1], masks)


@pytest.mark.parametrize("output", ["nifti", "labelmap"])
def test_predictions_are_found_by_the_scan(patients, write, clinic, tmp_path, masks, output):
    write().write_series()
    cohort = read_cohort(clinic)
    with open_writer(output, cohort, tmp_path / "out", UWMGI) as writer:
        writer.write(cohort.scans[0], cohort.scans[0].read_volume(), Prediction(masks))
    save_files(tmp_path / "out/another_scan", patients.scans[1], patients.scans[1].masks)
    path = masks_to_structure_set(tmp_path / "out", clinic, tmp_path / "out.dcm", labels=UWMGI)
    assert np.array_equal(read_back(clinic, path, UWMGI)[1], masks)


def test_a_single_mask_is_named_like_its_file(patients, write, clinic, tmp_path):
    write().write_series()
    folder = save_files(tmp_path / "masks", patients.scans[0], patients.scans[0].masks[2:], ["GTV boost"])
    path = masks_to_structure_set(folder / "GTV boost.nii.gz", clinic, tmp_path / "out.dcm")
    (roi,) = pydicom.dcmread(path).StructureSetROISequence
    assert roi.ROIName == "GTV boost"


def test_labels_rename_and_select(patients, write, clinic, tmp_path, refusal):
    write().write_series()
    scan = patients.scans[0]
    folder = save_files(tmp_path / "masks", scan, scan.masks[:2], ["colon", "small intestine"])
    path = masks_to_structure_set(folder, clinic, tmp_path / "out.dcm", labels=UWMGI)
    dataset = pydicom.dcmread(path)
    # A label without a mask has no ROI: nobody looked for it.
    assert [roi.ROIName for roi in dataset.StructureSetROISequence] == ["Bowel_Large", "Bowel_Small"]
    assert [tuple(item.ROIDisplayColor) for item in dataset.ROIContourSequence] == [UWMGI[0].color, UWMGI[1].color]
    line = refusal(masks_to_structure_set, folder, clinic, tmp_path / "b.dcm", labels=LabelSet.of("colon"))
    assert "'small intestine' matches no label" in line
    save_files(folder, scan, scan.masks[:1], ["large_bowel"])
    line = refusal(masks_to_structure_set, folder, clinic, tmp_path / "b.dcm", labels=UWMGI)
    assert "'colon' and 'large_bowel' are both large_bowel" in line


@needs("dciodvfy")
def test_the_structure_set_says_that_no_model_made_it(patients, write, clinic, tmp_path):
    write().write_series()
    folder = save_files(tmp_path / "masks", patients.scans[0], patients.scans[0].masks)
    path = masks_to_structure_set(folder, clinic, tmp_path / "out.dcm")
    dataset = pydicom.dcmread(path)
    assert "not by a model" in dataset.StructureSetDescription and dataset.StructureSetLabel == "from masks"
    assert {roi.ROIGenerationAlgorithm for roi in dataset.StructureSetROISequence} == {""}
    assert errors_of("dciodvfy", path) == []


def test_a_small_difference_of_the_grids_is_accepted_and_a_large_one_refused(
    patients, write, clinic, tmp_path, refusal
):
    write().write_series()
    scan = patients.scans[0]  # 1.25 mm, 1.5 mm and 3 mm along x, y and z
    near = save_files(tmp_path / "near", scan, scan.masks, shift=(0.1, 0, 0))
    path = masks_to_structure_set(near, clinic, tmp_path / "near.dcm")
    assert np.array_equal(read_back(clinic, path)[1], scan.masks)
    far = save_files(tmp_path / "far", scan, scan.masks, shift=(0, 0.16, 0))
    line = refusal(masks_to_structure_set, far, clinic, tmp_path / "far.dcm")
    assert "8 x 40 x 64 voxels of 3 x 1.5 x 1.25 mm from (50, 40.16, 500)" in line
    assert "that of case1_20260102 is 8 x 40 x 64 voxels of 3 x 1.5 x 1.25 mm from (50, 40, 500)" in line
    save_nifti(far / "large_bowel.nii.gz", np.zeros((64, 40, 7)), affine_of(scan, "LPI"), np.uint8)
    assert "7 x 40 x 64" in refusal(masks_to_structure_set, far, clinic, tmp_path / "far.dcm")
    assert not (tmp_path / "far.dcm").exists()


def test_values_without_names_are_refused(patients, write, clinic, tmp_path, masks, refusal):
    write().write_series()
    file = save_map(tmp_path / "map.nii.gz", patients.scans[0], masks)
    assert "nothing names its values (1, 2, 3)" in refusal(masks_to_structure_set, file, clinic, tmp_path / "out.dcm")
    two = LabelSet.of("liver", "spleen")
    line = refusal(masks_to_structure_set, file, clinic, tmp_path / "out.dcm", labels=two)
    assert "contains the value 3" in line
    folder = save_files(tmp_path / "masks", patients.scans[0], masks)
    shutil.copy(file, folder / "stomach.nii.gz")
    line = refusal(masks_to_structure_set, folder, clinic, tmp_path / "out.dcm")
    assert "stomach.nii.gz: contains more than one nonzero value" in line


def test_what_is_not_one_series_is_refused(patients, write, clinic, tmp_path, tiny_cohort, refusal):
    folder = save_files(tmp_path / "masks", patients.scans[0], patients.scans[0].masks)
    for index in (0, 1):
        write(index).write_series()
    line = refusal(masks_to_structure_set, folder, clinic, tmp_path / "out.dcm")
    assert "has 2 series (case1_20260102, case1_20260203)" in line
    assert "a structure set needs DICOM" in refusal(
        masks_to_structure_set, folder, tiny_cohort.root, tmp_path / "o.dcm"
    )
    assert "has no masks" in refusal(masks_to_structure_set, tmp_path, clinic / "case1_20260102", tmp_path / "o.dcm")
    missing = tmp_path / "missing"
    assert "does not exist" in refusal(masks_to_structure_set, missing, clinic / "case1_20260102", tmp_path / "o.dcm")


def test_the_command_writes_the_file_once(patients, write, clinic, tmp_path, monkeypatch, capsys):
    write().write_series()
    folder = save_files(tmp_path / "masks", patients.scans[0], patients.scans[0].masks)
    monkeypatch.chdir(tmp_path)
    command = ["rtstruct", str(folder), str(clinic), "--labels", "uwmgi"]
    assert main(command) == 0 and "case1_20260102.dcm" in capsys.readouterr().out
    assert np.array_equal(read_back(clinic, tmp_path / "case1_20260102.dcm", UWMGI)[1], patients.scans[0].masks)
    assert main(command) == 1 and "already exists" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert main([*command, "--out", "other.dcm"]) == 0 and (tmp_path / "other.dcm").is_file()

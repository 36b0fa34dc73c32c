import itertools
import json

import nibabel
import numpy as np
import pytest

from gitseg_tf.data.readers.base import source_digest
from gitseg_tf.data.readers.registry import is_cohort, read_cohort
from gitseg_tf.data.tfrecords.convert import convert
from gitseg_tf.labels import UWMGI, LabelSet

SCANS = (
    ("case1_day0", (40, 64), range(1, 9)),
    ("case1_day5", (40, 64), range(1, 8)),
    ("case2_day3", (48, 40), range(1, 7)),
)
AXES = ["LPI", "RAS", "LPS", "PIR", "SAL", "ILA", "ARS"]


@pytest.fixture(scope="module")
def truth(make_cohort, tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("truth") / "cohort", SCANS)


@pytest.fixture
def folders(truth, nifti):
    """folders(root, axes) writes a folder per scan with a mask file per label; the masks overlap."""

    def write(root, axes="LPI", ending=".nii.gz"):
        for scan, codes in zip(truth.scans, itertools.cycle(axes if isinstance(axes, list) else [axes])):
            affine = nifti.affine_of(scan, codes)
            nifti.save(root / scan.id / f"image{ending}", nifti.stored_as(scan.image, codes), affine)
            for name, mask in zip(UWMGI.names, scan.masks, strict=True):
                nifti.save(root / scan.id / f"{name}{ending}", nifti.stored_as(mask, codes), affine, np.uint8)
        return root

    return write


@pytest.fixture
def nnunet(truth, nifti):
    """nnunet(root) writes imagesTr/, labelsTr/ and, if labels are given, dataset.json; masks do not overlap."""

    def write(root, labels=None, numbers=(1, 2, 3), ending="_0000.nii.gz", codes="RAS"):
        for scan in truth.scans:
            affine = nifti.affine_of(scan, codes)
            nifti.save(root / "imagesTr" / f"{scan.id}{ending}", nifti.stored_as(scan.image, codes), affine)
            label = nifti.label_map(nifti.without_overlaps(scan.masks), numbers)
            nifti.save(root / "labelsTr" / f"{scan.id}.nii.gz", nifti.stored_as(label, codes), affine)
        if labels is not None:
            (root / "dataset.json").write_text(json.dumps({"labels": labels}))
        return root

    return write


@pytest.fixture
def one(tmp_path, truth, nifti):
    """one(volume, affine=..., name=...) writes a folder with one image."""

    def write(volume, affine=None, name="scan.nii"):
        nifti.save(tmp_path / name, volume, nifti.affine_of(truth.scans[0], "LPI") if affine is None else affine)
        return tmp_path

    return write


@pytest.mark.parametrize("codes", AXES)
def test_scans_in_any_orientation_are_read(folders, truth, tmp_path, codes):
    cohort = read_cohort(folders(tmp_path, codes))
    assert [scan.id for scan in cohort.scans] == [scan.id for scan in truth.scans] and cohort.labeled
    for scan, reference in zip(cohort.scans, truth.scans, strict=True):
        assert (scan.case, scan.numbers, scan.spacing) == (reference.case, reference.numbers, reference.spacing)
        assert scan.shape == reference.image.shape and scan.labeled
        image = scan.read_volume().voxels
        assert image.dtype == np.uint16 and np.array_equal(image, reference.image)
        assert np.array_equal(scan.read_annotation().masks, reference.masks)


def test_nifti_and_the_competition_layout_give_the_same_records(folders, truth, tmp_path):
    ours = convert(folders(tmp_path / "nifti", AXES), tmp_path / "a", folds=2, workers=1)
    theirs = convert(truth.root, tmp_path / "b", folds=2, workers=1)
    assert [shard.file for shard in ours.shards] == [shard.file for shard in theirs.shards]
    assert all((ours.root / s.file).read_bytes() == (theirs.root / s.file).read_bytes() for s in ours.shards)


def test_an_oblique_scan_is_read_along_its_nearest_axes(one, truth, nifti):
    scan, (c, s) = truth.scans[0], (np.cos(0.3), np.sin(0.3))
    turned = np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1]]) @ nifti.affine_of(scan, "RAS")
    (read,) = read_cohort(one(nifti.stored_as(scan.image, "RAS"), turned)).scans
    assert np.array_equal(read.read_volume().voxels, scan.image) and read.spacing == pytest.approx(
        scan.spacing, rel=1e-5
    )


@pytest.mark.parametrize("codes", ["RAS", "PIR"])
def test_the_grid_maps_record_voxels_to_world_coordinates(one, truth, nifti, codes):
    reference = truth.scans[0]
    stored = nifti.stored_as(reference.image, codes)
    (scan,) = read_cohort(one(stored, nifti.affine_of(reference, codes))).scans
    grid = scan.source.grid
    z, y, x = 3, 7, 21
    position = grid.records_affine @ [x, y, z, 1]
    dz, dy, dx = reference.spacing
    assert position[:3] == pytest.approx([50 - x * dx, 40 - y * dy, 500 - z * dz], abs=1e-4)
    assert np.array_equal(grid.from_records(reference.image), stored)


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [
        (None, (1, 2, 3)),
        ({"background": 0, "Stomach": 1, "bowel_large": 4, "small bowel": 2, "liver": 3}, (4, 2, 1)),
        ({"0": "background", "3": "stomach", "2": "colon", "1": "SmallBowel"}, (2, 1, 3)),
        ({"background": 0, "bowel": [5, 6], "large_bowel": 5, "small_bowel": 6, "stomach": [7]}, (5, 6, 7)),
    ],
    ids=["no dataset.json", "nnU-Net", "Decathlon", "regions"],
)
def test_label_values_come_from_dataset_json(nnunet, nifti, truth, tmp_path, labels, numbers):
    cohort = read_cohort(nnunet(tmp_path, labels, numbers), labels=UWMGI)
    for scan, reference in zip(cohort.scans, truth.scans, strict=True):
        assert np.array_equal(scan.read_volume().voxels, reference.image)
        assert np.array_equal(scan.read_annotation().masks, nifti.without_overlaps(reference.masks))


def test_a_region_is_the_union_of_its_values(nnunet, nifti, truth, tmp_path):
    cohort = read_cohort(nnunet(tmp_path, {"background": 0, "bowel": [1, 2], "stomach": 3}))
    masks, reference = cohort.scans[0].read_annotation().masks, nifti.without_overlaps(truth.scans[0].masks)
    assert cohort.labels.names == ("bowel", "stomach")
    assert np.array_equal(masks, [reference[0] | reference[1], reference[2]])


def test_without_dataset_json_the_labels_are_the_values_and_that_is_noted(nnunet, truth, tmp_path):
    cohort = read_cohort(nnunet(tmp_path))
    assert cohort.labels.names == ("label1", "label2", "label3")
    assert cohort.notes == (f"{tmp_path}: no dataset.json, so the label names come from the values in the label maps",)
    (note,) = read_cohort(tmp_path, labels=UWMGI).notes
    assert "the values 1 to 3 are read as the labels in the given order" in note
    for scan, drawn in zip(cohort.scans, truth.scans, strict=True):
        assert scan.read_annotation() is not None and scan.read_annotation().masks.shape == drawn.masks.shape


def add_label_table(path, names, code=0):
    rows = "".join(f'<Label Key="{n}" Red="1"><![CDATA[{name}]]></Label>' for n, name in names.items())
    text = (
        f'<?xml version="1.0"?><CaretExtension><VolumeInformation><LabelTable>{rows}</LabelTable></VolumeInformation>'
    )
    image = nibabel.load(path)
    image = nibabel.Nifti1Image(np.asanyarray(image.dataobj), image.affine)
    image.header.set_xyzt_units("mm")
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(code, text.encode()))
    nibabel.save(image, path)


@pytest.mark.parametrize("code", [0, 30], ids=["comment", "Caret"])
def test_labels_are_named_by_the_table_in_the_files(nnunet, nifti, truth, tmp_path, refusal, code):
    names = {0: "background", 1: "spleen", 2: "kidney right", 3: "kidney_left"}
    paths = sorted((nnunet(tmp_path) / "labelsTr").iterdir())
    for path in paths:
        add_label_table(path, names, code)
    cohort = read_cohort(tmp_path)
    assert cohort.labels.names == ("spleen", "kidney_right", "kidney_left")
    assert cohort.notes == (
        f"{tmp_path}: no dataset.json, so the label names come from the label tables in the headers",
    )
    for scan, drawn in zip(cohort.scans, truth.scans, strict=True):
        assert np.array_equal(scan.read_annotation().masks, nifti.without_overlaps(drawn.masks))
    add_label_table(paths[1], names | {2: "liver"})
    assert f"{paths[1]}: its header names the value 2 'liver', but another file names it 'kidney right'" in refusal(
        read_cohort, tmp_path
    )


def test_voxels_of_the_ignore_label_are_ignored(nnunet, nifti, truth, tmp_path):
    cohort = read_cohort(nnunet(tmp_path, {"background": 0, "bowel": [1, 3], "stomach": 2, "ignore": 3}))
    assert cohort.labels.names == ("bowel", "stomach")
    for scan, reference in zip(cohort.scans, truth.scans, strict=True):
        annotation, apart = scan.read_annotation(), nifti.without_overlaps(reference.masks)
        assert np.array_equal(annotation.ignore, apart[2]) and annotation.annotated.all()
        assert np.array_equal(annotation.masks, [apart[0] | apart[2], apart[1]])


def test_without_an_ignore_label_no_voxel_is_ignored(nnunet, tmp_path):
    scan = read_cohort(nnunet(tmp_path), labels=UWMGI).scans[0]
    assert scan.read_annotation().ignore is None


def test_slice_strata_match_the_masks(nnunet, nifti, truth, tmp_path):
    scan = read_cohort(nnunet(tmp_path), labels=UWMGI).scans[0]
    shown = nifti.without_overlaps(truth.scans[0].masks).any((2, 3))
    assert scan.slice_strata() == [int(a + 2 * b + 4 * c) for a, b, c in shown.T.astype(int)]


def test_test_images_are_read_without_annotations(nnunet, truth, tmp_path):
    nnunet(tmp_path)
    (tmp_path / "imagesTs").mkdir()
    moved = tmp_path / "imagesTr" / "case2_day3_0000.nii.gz"
    moved.rename(tmp_path / "imagesTs" / moved.name)
    cohort = read_cohort(tmp_path, table=False)
    assert [scan.id for scan in cohort.scans] == ["case2_day3"] and not cohort.labeled
    assert np.array_equal(cohort.scans[0].read_volume().voxels, truth["case2_day3"].image)


def test_a_folder_of_images_has_no_annotation(one, truth, nifti):
    root = one(nifti.stored_as(truth.scans[0].image, "LPI"), name="patient7_day3.nii")
    (scan,) = read_cohort(root).scans
    assert (scan.id, scan.case, scan.labeled) == ("patient7_day3", "patient7", False)
    assert scan.read_annotation() is None and len(scan.labels) == 0


def test_dated_folders_of_a_patient_are_scans_of_one_case(truth, nifti, tmp_path):
    for day in ("2026-01-02", "2026-03-04"):
        scan = truth.scans[0]
        volume, affine = nifti.stored_as(scan.image, "RAS"), nifti.affine_of(scan, "RAS")
        nifti.save(tmp_path / "anna" / day / "mri.nii", volume, affine)
        nifti.save(tmp_path / "anna" / day / "segmentations" / "colon.nii.gz", volume > 9999, affine, np.uint8)
    cohort = read_cohort(tmp_path, labels=UWMGI)
    assert [(s.id, s.case) for s in cohort.scans] == [("anna_2026-01-02", "anna"), ("anna_2026-03-04", "anna")]
    assert cohort.labeled and "file 'colon' is read as large_bowel (2 of 2 scans)" in cohort.label_notes
    lacking = "has a mask in 0 of 2 annotated scans, read as unannotated in anna_2026-01-02, anna_2026-03-04"
    assert f"stomach: {lacking}" in cohort.label_notes
    assert all(scan.annotated == ("large_bowel",) for scan in cohort.scans)


@pytest.mark.parametrize("missing", ["unannotated", "absent"])
def test_a_missing_mask_is_unannotated_or_absent_and_an_empty_one_absent(folders, nifti, truth, tmp_path, missing):
    folders(tmp_path)
    (tmp_path / "case1_day0" / "stomach.nii.gz").unlink()
    empty, scan = tmp_path / "case1_day5" / "stomach.nii.gz", truth.scans[1]
    nifti.save(empty, np.zeros(scan.image.shape[::-1]), nifti.affine_of(scan, "LPI"), np.uint8)
    cohort = read_cohort(tmp_path, missing=missing)
    annotations = [scan.read_annotation() for scan in cohort.scans]
    assert [a.annotated.tolist() for a in annotations] == [[True, True, missing == "absent"], [True] * 3, [True] * 3]
    assert [a.masks[2].any() for a in annotations] == [False, False, True]
    assert f"stomach: has a mask in 2 of 3 annotated scans, read as {missing} in case1_day0" in cohort.label_notes


def test_an_unknown_value_of_missing_is_refused(folders, tmp_path, refusal):
    assert "missing must be unannotated or absent, got 'zero'" in refusal(read_cohort, tmp_path, missing="zero")


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([0, 7, 65535], np.int32), np.uint16),
        (np.array([0, 7, 4000], np.float32), np.uint16),
        (np.array([-32768, 0, 32767], np.int16), np.int16),
        (np.array([-1000, 0, 3000], np.float32), np.int16),
        (np.array([-1, 0, 40000], np.int32), np.float32),
        (np.array([5, 100000, 199995], np.int32), np.float32),
        (np.array([0, 0.5, 1], np.float32), np.float32),
        (np.array([2.5, 2.5, 2.5], np.float32), np.float32),
        (np.array([-2.5, 0, 2.5], np.float64), np.float32),
    ],
    ids=["whole", "whole float", "int16", "HU", "wide", "int32", "float", "constant", "negative float"],
)
def test_voxels_are_kept_losslessly_in_the_smallest_dtype(one, values, dtype):
    (scan,) = read_cohort(one(np.tile(values[:, None, None], (1, 4, 2)))).scans
    voxels = scan.read_volume().voxels
    assert voxels.dtype == dtype and np.array_equal(voxels[1, 2], values)


def test_scl_slope_and_scl_inter_are_applied(one):
    path = one(np.full((3, 4, 2), 250, np.uint16)) / "scan.nii"
    data = bytearray(path.read_bytes())
    data[112:120] = np.array([2, 10], "<f4").tobytes()  # scl_slope and scl_inter of nifti1.h
    path.write_bytes(data)
    (scan,) = read_cohort(path.parent).scans
    assert (scan.read_volume().voxels == 510).all()


def test_the_fingerprint_depends_on_the_content_not_the_folder(folders, tmp_path):
    a, b = folders(tmp_path / "a", ending=".nii"), folders(tmp_path / "b", ending=".nii")
    before = read_cohort(b)
    assert read_cohort(a).fingerprint == before.fingerprint
    label = b / "case2_day3" / "stomach.nii"
    data = bytearray(label.read_bytes())
    data[-1] ^= 1
    label.write_bytes(data)
    assert read_cohort(b).fingerprint != before.fingerprint
    digests = [[source_digest([scan]) for scan in read_cohort(root).scans] for root in (a, b)]
    assert [x == y for x, y in zip(*digests, strict=True)] == [True, True, False]


def test_folders_without_nifti_are_not_a_cohort(tmp_path):
    (tmp_path / "scan1").mkdir()
    (tmp_path / "scan1" / "notes.txt").write_text("image.nii.gz")
    assert not is_cohort(tmp_path)


def shift_mask(root, nifti):
    path = root / "case1_day0" / "stomach.nii.gz"
    label = nibabel.load(path)
    affine = label.affine.copy()
    affine[2, 3] += 3
    nifti.save(path, np.asanyarray(label.dataobj), affine)


def crop_mask(root, nifti):
    path = root / "case1_day0" / "stomach.nii.gz"
    label = nibabel.load(path)
    nifti.save(path, np.asanyarray(label.dataobj)[:-1], label.affine)


def overwrite_mask(root, nifti):
    (root / "case1_day0" / "stomach.nii.gz").write_bytes(b"no nifti at all")


def duplicate_mask(root, nifti):
    path = root / "case1_day0" / "stomach.nii.gz"
    path.with_name("Stomach.nii.gz").write_bytes(path.read_bytes())


def duplicate_image(root, nifti):
    path = root / "case1_day0" / "image.nii.gz"
    path.with_name("mri.nii.gz").write_bytes(path.read_bytes())


def remove_orientation(root, nifti):
    path = root / "case1_day0" / "image.nii.gz"
    image = nibabel.load(path)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(image.dataobj), None, image.header), path)


def add_channel(root, nifti):
    path = root / "case1_day0" / "image.nii.gz"
    image = nibabel.load(path)
    nifti.save(path, np.stack([np.asanyarray(image.dataobj)] * 2, -1), image.affine)


@pytest.mark.parametrize(
    ("corrupt", "expected"),
    [
        (shift_mask, "that of image.nii.gz is 8 x 40 x 64 voxels of 3 x 1.5 x 1.25 mm from (50, 40, 500)"),
        (crop_mask, "stomach.nii.gz: its grid is 8 x 40 x 63 voxels"),
        (overwrite_mask, "stomach.nii.gz: cannot be read as NIfTI"),
        (duplicate_mask, "Stomach has another mask"),
        (duplicate_image, "image.nii.gz and mri.nii.gz are both images"),
        (remove_orientation, "image.nii.gz: has no orientation"),
        (add_channel, "image.nii.gz: case1_day0 has 2 channels, but other scans have 1"),
    ],
)
def test_an_invalid_scan_folder_is_named(folders, nifti, tmp_path, refusal, corrupt, expected):
    corrupt(folders(tmp_path), nifti)
    assert expected in refusal(read_cohort, tmp_path)


def test_a_scan_without_masks_has_no_annotation(folders, tmp_path):
    for path in folders(tmp_path).joinpath("case1_day0").glob("*.nii.gz"):
        if path.name != "image.nii.gz":
            path.unlink()
    cohort = read_cohort(tmp_path)
    assert [scan.labeled for scan in cohort.scans] == [False, True, True]
    assert cohort.scans[0].read_annotation() is None
    assert "1 of 3 scans has no annotation" in cohort.label_notes


def test_a_mask_with_a_different_axis_order_is_read(folders, nifti, truth, tmp_path):
    root, scan = folders(tmp_path, "LPI"), truth.scans[0]
    path = root / scan.id / "stomach.nii.gz"
    nifti.save(path, nifti.stored_as(scan.masks[2], "PIR"), nifti.affine_of(scan, "PIR"), np.uint8)
    assert np.array_equal(read_cohort(root).scans[0].read_annotation().masks, scan.masks)


def test_a_truncated_image_is_named_when_it_is_read(folders, tmp_path, refusal):
    path = folders(tmp_path) / "case1_day0" / "image.nii.gz"
    path.write_bytes(path.read_bytes()[:-200])
    assert f"{path}: cannot be read" in refusal(read_cohort(tmp_path).scans[0].read_volume)


def test_a_mask_with_several_values_is_refused(folders, truth, nifti, tmp_path, refusal):
    path = folders(tmp_path) / "case1_day0" / "stomach.nii.gz"
    nifti.save(path, np.arange(8 * 40 * 64).reshape(64, 40, 8) % 3, nifti.affine_of(truth.scans[0], "LPI"), np.uint8)
    assert f"{path}: contains more than one nonzero value" in refusal(read_cohort(tmp_path).scans[0].read_annotation)


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_a_mask_with_fractional_values_is_refused(folders, truth, nifti, tmp_path, refusal, value):
    scan, path = truth.scans[0], folders(tmp_path) / "case1_day0" / "stomach.nii.gz"
    nifti.save(path, nifti.stored_as(scan.masks[2] * value, "LPI"), nifti.affine_of(scan, "LPI"), np.float32)
    assert f"{path}: contains float32 values that are not integers" in refusal(
        read_cohort(tmp_path).scans[0].read_annotation
    )


def test_a_mask_can_be_stored_as_floats_or_as_255(folders, truth, nifti, tmp_path):
    scan, root = truth.scans[0], folders(tmp_path)
    affine = nifti.affine_of(scan, "LPI")
    nifti.save(root / scan.id / "stomach.nii.gz", nifti.stored_as(scan.masks[2], "LPI"), affine, np.float64)
    nifti.save(root / scan.id / "large_bowel.nii.gz", nifti.stored_as(scan.masks[0] * 255, "LPI"), affine, np.uint8)
    assert np.array_equal(read_cohort(root).scans[0].read_annotation().masks, scan.masks)


def test_non_finite_voxels_are_refused(one, refusal):
    root = one(np.full((3, 4, 2), np.nan, np.float32))
    assert "scan.nii: contains NaN or infinite values" in refusal(read_cohort(root).scans[0].read_volume)


def test_a_singular_affine_is_refused(one, refusal):
    affine = np.diag([1.5, 1.5, 0, 1])
    root = one(np.zeros((3, 4, 2), np.uint16))
    image = nibabel.Nifti1Image(np.zeros((3, 4, 2), np.uint16), None)
    image.header["sform_code"] = 1
    image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = affine[:3]
    nibabel.save(nibabel.Nifti1Image(image.dataobj, None, image.header), root / "scan.nii")
    assert "scan.nii: its affine is singular" in refusal(read_cohort, root)


def test_an_unknown_label_value_is_named(nnunet, tmp_path, refusal):
    scan = read_cohort(nnunet(tmp_path, {"background": 0, "large_bowel": 1, "small_bowel": 2})).scans[0]
    message = refusal(scan.read_annotation)
    assert (
        "case1_day0.nii.gz: contains the value 3, but the known values are 0, 1, 2; name it in dataset.json" in message
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            '{"labels": {"liver": 1, "spleen": 2}}',
            "none of the names (liver, spleen) matches a label (large_bowel, small_bowel, stomach)",
        ),
        ('{"labels": {"colon": 1, "large_bowel": 2}}', "large_bowel has two names"),
        ('{"name": "gut"}', 'has no "labels"'),
        ('{"labels": ["stomach"]}', 'has no "labels"'),
        ('{"labels": {"stomach": "three"}}', 'has no "labels"'),
        ('{"labels": {"1": "stomach", "2": "stomach"}}', "label 'stomach' is defined twice"),
        ('{"labels": {"stomach": 1, "stomach": 2}}', "'stomach' is defined twice"),
        ("{", "invalid JSON"),
        ("[]", "must be a JSON object, got list"),
        ('{"labels": {"background": 0}}', "no label names found"),
    ],
)
def test_an_invalid_dataset_json_is_refused(nnunet, tmp_path, refusal, content, expected):
    (nnunet(tmp_path) / "dataset.json").write_text(content)
    line = refusal(read_cohort, tmp_path, labels=UWMGI)
    assert f"{tmp_path / 'dataset.json'}: " in line and expected in line


def test_two_spellings_of_a_label_name_are_refused(nnunet, tmp_path, refusal):
    line = refusal(read_cohort, nnunet(tmp_path, {"Stomach": 1, "stomach": 2}))
    assert f"{tmp_path / 'dataset.json'}: Stomach has two names, one of them 'stomach'; remove one" in line


def test_more_than_255_labels_are_refused(nnunet, tmp_path, refusal):
    line = refusal(read_cohort, nnunet(tmp_path, {f"label{n}": n for n in range(1, 257)}))
    assert f"{tmp_path / 'dataset.json'}: 256 labels are too many" in line and "leave some out" in line
    assert len(read_cohort(tmp_path, labels=LabelSet.of("label1", "label256")).labels) == 2


@pytest.mark.parametrize("gone", ["imagesTr/case2_day3_0000.nii.gz", "labelsTr/case2_day3.nii.gz"])
def test_an_image_without_a_label_and_a_label_without_an_image_are_named(nnunet, tmp_path, refusal, gone):
    (nnunet(tmp_path) / gone).unlink()
    assert f"case2_day3 has no file in {gone.split('/')[0]}/" in refusal(read_cohort, tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "case1_day0_0001.nii.gz",
            "case1_day5_0001.nii.gz: is missing, but other scans have 2 channels; add this file",
        ),
        ("case1_day0_0002.nii.gz", "case1_day0_0001.nii.gz: is missing, but case1_day0_0002.nii.gz exists"),
        ("case1_day0.nii", "channel 0000 of case1_day0 exists twice"),
        (
            "case1_day5_0001.nii.gz",
            "case2_day3_0001.nii.gz: is missing, but other scans have 2 channels; add this file",
        ),
    ],
)
def test_a_missing_or_duplicate_channel_is_refused(nnunet, tmp_path, refusal, name, expected):
    images = nnunet(tmp_path, {"bowel": [1, 2], "stomach": 3}) / "imagesTr"
    if name == "case1_day5_0001.nii.gz":
        (images / "case1_day0_0001.nii.gz").write_bytes((images / "case1_day0_0000.nii.gz").read_bytes())
    (images / name).write_bytes((images / name).with_name(f"{name[:10]}_0000.nii.gz").read_bytes())
    if name == "case1_day0_0001.nii.gz":
        labels = json.loads((tmp_path / "dataset.json").read_text())
        (tmp_path / "dataset.json").write_text(json.dumps(labels | {"channel_names": {"0": "T1", "1": "T2"}}))
    assert expected in refusal(read_cohort, tmp_path)


def test_channel_names_that_do_not_match_the_scans_are_refused(nnunet, tmp_path, refusal):
    nnunet(tmp_path, {"bowel": [1, 2], "stomach": 3})
    labels = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(labels | {"modality": {"0": "T1", "1": "T2"}}))
    line = refusal(read_cohort, tmp_path)
    assert line.startswith(f"{tmp_path / 'dataset.json'}: names 2 channels (T1, T2), but the scans have 1")


def test_an_empty_images_folder_is_named(tmp_path, refusal):
    (tmp_path / "imagesTr").mkdir()
    assert f"{tmp_path / 'imagesTr'}: contains no image file (.nii" in refusal(read_cohort, tmp_path)


def test_ids_may_end_in_four_digits(truth, nifti, tmp_path):
    affine = nifti.affine_of(truth.scans[0], "LPI")
    image, label = nifti.stored_as(truth.scans[0].image, "LPI"), nifti.stored_as(truth.scans[0].masks[2], "LPI")
    for name in ("amos_0001", "amos_0004"):
        nifti.save(tmp_path / "labeled/imagesTr" / f"{name}.nii.gz", image, affine)
        nifti.save(tmp_path / "labeled/labelsTr" / f"{name}.nii.gz", label, affine, np.uint8)
        nifti.save(tmp_path / "alone" / f"{name}.nii.gz", image, affine)
        nifti.save(tmp_path / "channels/imagesTs" / f"{name}_0000.nii.gz", image, affine)
        nifti.save(tmp_path / "channels/imagesTs" / f"{name}_0001.nii.gz", image, affine)
    for folder, channels in (("labeled", 1), ("alone", 1), ("channels", 2)):
        cohort = read_cohort(tmp_path / folder)
        assert [scan.id for scan in cohort.scans] == ["amos_0001", "amos_0004"] and len(cohort.channels) == channels


def test_nan_outside_the_field_of_view_is_the_lowest_value(one, truth, nifti, caplog):
    image = truth.scans[0].image.astype(np.float32) - 7.5
    image[:, :3], image[:, :, -2:], image[2] = np.nan, np.nan, np.nan
    (scan,) = read_cohort(one(nifti.stored_as(image, "LPI"))).scans
    caplog.set_level("WARNING", "gitseg_tf")
    voxels = scan.read_volume().voxels
    assert np.array_equal(voxels, np.where(np.isnan(image), np.nanmin(image), image))
    (line,) = caplog.messages
    assert f"NaN in {np.isnan(image).sum()} voxels at the border of slices" in line


def test_nan_inside_a_slice_is_refused(one, truth, nifti, refusal):
    image = truth.scans[0].image.astype(np.float32)
    image[3, 20, 30] = np.nan
    (scan,) = read_cohort(one(nifti.stored_as(image, "LPI"))).scans
    assert "scan.nii: contains NaN inside a slice; replace it" in refusal(scan.read_volume)


def test_an_ignored_value_is_noted(nnunet, tmp_path):
    labels = {"background": 0, "large_bowel": 1, "small_bowel": 2, "ignore": 3}
    cohort = read_cohort(nnunet(tmp_path, labels))
    path = tmp_path / "dataset.json"
    assert cohort.notes == (f"{path}: voxels with the value 3 (ignore) are excluded from the loss and the scores",)


def test_an_empty_test_folder_is_not_read_as_a_test_set(nnunet, tmp_path):
    (nnunet(tmp_path, {"a": 1, "b": 2, "c": 3}) / "imagesTs").mkdir()
    cohort = read_cohort(tmp_path, table=False)
    assert len(cohort.scans) == 3 and f"{tmp_path / 'imagesTs'}: contains no images" in cohort.notes[0]


def test_images_beside_an_empty_test_folder_are_read(one, truth, nifti):
    root = one(nifti.stored_as(truth.scans[0].image, "LPI"))
    (root / "imagesTs").mkdir()
    cohort = read_cohort(root, table=False)
    assert [scan.id for scan in cohort.scans] == [
        "scan"
    ] and f"{root / 'imagesTs'}: contains no images" in cohort.notes[0]


def test_label_maps_without_names_must_hold_integers(nnunet, nifti, truth, tmp_path, refusal):
    path = sorted((nnunet(tmp_path) / "labelsTr").iterdir())[0]
    image = nibabel.load(path)
    nifti.save(path, np.asanyarray(image.dataobj) + np.float32(0.5), image.affine)
    assert f"{path}: contains float32 values that are not integers" in refusal(read_cohort, tmp_path)

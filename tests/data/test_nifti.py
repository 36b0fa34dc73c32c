import itertools
import json

import nibabel
import numpy as np
import pytest

from gitseg_tf.data.convert import convert
from gitseg_tf.data.scans import ORGANS, is_cohort, read_cohort, read_image, read_masks, slice_strata, source_digest

SCANS = (
    ("case1_day0", (40, 64), range(1, 9)),
    ("case1_day5", (40, 64), range(1, 8)),
    ("case2_day3", (48, 40), range(1, 7)),
)
AXES = ["LPI", "RAS", "LPS", "PIR", "SAL", "ILA", "ARS"]


@pytest.fixture(scope="module")
def truth(draw, tmp_path_factory):
    return draw(tmp_path_factory.mktemp("truth") / "cohort", SCANS)


@pytest.fixture
def folders(truth, nifti):
    """folders(root, axes) writes a folder a scan, with a mask an organ; organs overlap."""

    def write(root, axes="LPI", ending=".nii.gz"):
        for scan, codes in zip(truth.scans, itertools.cycle(axes if isinstance(axes, list) else [axes])):
            affine = nifti.affine_of(scan, codes)
            nifti.save(root / scan.id / f"image{ending}", nifti.stored_as(scan.image, codes), affine)
            for organ, mask in zip(ORGANS, scan.masks, strict=True):
                nifti.save(root / scan.id / f"{organ}{ending}", nifti.stored_as(mask, codes), affine, np.uint8)
        return root

    return write


@pytest.fixture
def nnunet(truth, nifti):
    """nnunet(root) writes imagesTr/, labelsTr/ and, where labels are given, dataset.json; organs do not overlap."""

    def write(root, labels=None, numbers=(1, 2, 3), ending="_0000.nii.gz", codes="RAS"):
        for scan in truth.scans:
            affine = nifti.affine_of(scan, codes)
            nifti.save(root / "imagesTr" / f"{scan.id}{ending}", nifti.stored_as(scan.image, codes), affine)
            label = nifti.numbered(nifti.apart(scan.masks), numbers)
            nifti.save(root / "labelsTr" / f"{scan.id}.nii.gz", nifti.stored_as(label, codes), affine)
        if labels is not None:
            (root / "dataset.json").write_text(json.dumps({"labels": labels}))
        return root

    return write


@pytest.fixture
def one(tmp_path, truth, nifti):
    """one(volume, affine=..., name=...) is the cohort of one unlabelled image."""

    def write(volume, affine=None, name="scan.nii"):
        nifti.save(tmp_path / name, volume, nifti.affine_of(truth.scans[0], "LPI") if affine is None else affine)
        return tmp_path

    return write


@pytest.mark.parametrize("codes", AXES)
def test_any_orientation_gives_the_drawn_scans(folders, truth, tmp_path, codes):
    cohort = read_cohort(folders(tmp_path, codes))
    assert [scan.id for scan in cohort.scans] == [scan.id for scan in truth.scans] and cohort.labelled
    for scan, drawn in zip(cohort.scans, truth.scans, strict=True):
        assert (scan.case, scan.numbers, scan.spacing) == (drawn.case, drawn.numbers, drawn.spacing)
        assert scan.shape == drawn.image.shape and scan.labelled
        image = read_image(scan)
        assert image.dtype == np.uint16 and np.array_equal(image, drawn.image)
        assert np.array_equal(read_masks(scan), drawn.masks)


def test_records_are_those_of_the_competitions_layout(folders, truth, tmp_path):
    ours = convert(folders(tmp_path / "nifti", AXES), tmp_path / "a", folds=2, workers=1)
    theirs = convert(truth.root, tmp_path / "b", folds=2, workers=1)
    assert [shard.file for shard in ours.shards] == [shard.file for shard in theirs.shards]
    assert all((ours.root / s.file).read_bytes() == (theirs.root / s.file).read_bytes() for s in ours.shards)


def test_an_oblique_scan_goes_along_its_nearest_axes(one, truth, nifti):
    scan, (c, s) = truth.scans[0], (np.cos(0.3), np.sin(0.3))
    turned = np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1]]) @ nifti.affine_of(scan, "RAS")
    (read,) = read_cohort(one(nifti.stored_as(scan.image, "RAS"), turned)).scans
    assert np.array_equal(read_image(read), scan.image) and read.spacing == pytest.approx(scan.spacing, rel=1e-5)


@pytest.mark.parametrize("codes", ["RAS", "PIR"])
def test_the_grid_says_where_the_records_voxels_are(one, truth, nifti, codes):
    drawn = truth.scans[0]
    stored = nifti.stored_as(drawn.image, codes)
    (scan,) = read_cohort(one(stored, nifti.affine_of(drawn, codes))).scans
    grid = scan.source.grid
    z, y, x = 3, 7, 21
    place = grid.records_affine @ [x, y, z, 1]
    dz, dy, dx = drawn.spacing
    assert place[:3] == pytest.approx([50 - x * dx, 40 - y * dy, 500 - z * dz], abs=1e-4)
    assert np.array_equal(grid.from_records(drawn.image), stored)


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
def test_label_numbers_are_those_of_dataset_json(nnunet, nifti, truth, tmp_path, labels, numbers):
    cohort = read_cohort(nnunet(tmp_path, labels, numbers))
    for scan, drawn in zip(cohort.scans, truth.scans, strict=True):
        assert np.array_equal(read_image(scan), drawn.image)
        assert np.array_equal(read_masks(scan), nifti.apart(drawn.masks))


def test_a_region_is_all_of_its_numbers(nnunet, nifti, truth, tmp_path):
    cohort = read_cohort(nnunet(tmp_path, {"colon": [1, 2], "stomach": 3}))
    masks, drawn = read_masks(cohort.scans[0]), nifti.apart(truth.scans[0].masks)
    assert np.array_equal(masks[0], drawn[0] | drawn[1]) and not masks[1].any()


def test_strata_are_what_the_masks_show(nnunet, nifti, truth, tmp_path):
    scan = read_cohort(nnunet(tmp_path)).scans[0]
    shown = nifti.apart(truth.scans[0].masks).any((2, 3))
    assert slice_strata(scan) == [int(a + 2 * b + 4 * c) for a, b, c in shown.T.astype(int)]


def test_test_images_are_taken_without_labels(nnunet, truth, tmp_path):
    nnunet(tmp_path)
    (tmp_path / "imagesTs").mkdir()
    moved = tmp_path / "imagesTr" / "case2_day3_0000.nii.gz"
    moved.rename(tmp_path / "imagesTs" / moved.name)
    cohort = read_cohort(tmp_path, table=False)
    assert [scan.id for scan in cohort.scans] == ["case2_day3"] and not cohort.labelled
    assert np.array_equal(read_image(cohort.scans[0]), truth["case2_day3"].image)


def test_a_folder_of_images_is_unlabelled(one, truth, refusal, nifti):
    root = one(nifti.stored_as(truth.scans[0].image, "LPI"), name="patient7_day3.nii")
    (scan,) = read_cohort(root).scans
    assert (scan.id, scan.case, scan.labelled) == ("patient7_day3", "patient7", False)
    assert "patient7_day3: has no contours" in refusal(read_masks, scan)


def test_a_patients_folders_are_scans_of_one_patient(truth, nifti, tmp_path):
    for day in ("2026-01-02", "2026-03-04"):
        scan = truth.scans[0]
        volume, affine = nifti.stored_as(scan.image, "RAS"), nifti.affine_of(scan, "RAS")
        nifti.save(tmp_path / "anna" / day / "mri.nii", volume, affine)
        nifti.save(tmp_path / "anna" / day / "segmentations" / "colon.nii.gz", volume > 9999, affine, np.uint8)
    cohort = read_cohort(tmp_path)
    assert [(s.id, s.case) for s in cohort.scans] == [("anna_2026-01-02", "anna"), ("anna_2026-03-04", "anna")]
    assert cohort.labelled and "colon.nii.gz is large_bowel (2 of 2 scans)" in cohort.labels
    assert "no file is stomach: taken as absent (2 of 2 scans)" in cohort.labels


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 7, 65535], np.int32), [0, 7, 65535]),
        (np.array([0, 7, 4000], np.float32), [0, 7, 4000]),
        (np.array([-1000, 0, 3000], np.int16), [0, 1000, 4000]),
        (np.array([5, 100000, 199995], np.int32), [0, 32768, 65535]),
        (np.array([0, 0.5, 1], np.float32), [0, 32768, 65535]),
        (np.array([2.5, 2.5, 2.5], np.float32), [0, 0, 0]),
        (np.array([-2.5, 0, 2.5], np.float64), [0, 32768, 65535]),
    ],
    ids=["whole", "whole float", "negative", "wide", "float", "constant", "negative float"],
)
def test_intensities_are_moved_only_where_they_have_to(one, values, expected):
    (scan,) = read_cohort(one(np.tile(values[:, None, None], (1, 4, 2)))).scans
    assert np.array_equal(read_image(scan)[1, 2], expected)


def test_the_files_scaling_is_respected(one):
    path = one(np.full((3, 4, 2), 250, np.uint16)) / "scan.nii"
    data = bytearray(path.read_bytes())
    data[112:120] = np.array([2, 10], "<f4").tobytes()  # scl_slope and scl_inter of nifti1.h
    path.write_bytes(data)
    (scan,) = read_cohort(path.parent).scans
    assert (read_image(scan) == 510).all()


def test_the_fingerprint_follows_the_content_not_the_place(folders, tmp_path):
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


def test_folders_without_nifti_are_none(tmp_path):
    (tmp_path / "scan1").mkdir()
    (tmp_path / "scan1" / "notes.txt").write_text("image.nii.gz")
    assert not is_cohort(tmp_path)


def spoil_move(root, nifti):
    path = root / "case1_day0" / "stomach.nii.gz"
    label = nibabel.load(path)
    affine = label.affine.copy()
    affine[2, 3] += 3
    nifti.save(path, np.asanyarray(label.dataobj), affine)


def spoil_shape(root, nifti):
    path = root / "case1_day0" / "stomach.nii.gz"
    label = nibabel.load(path)
    nifti.save(path, np.asanyarray(label.dataobj)[:-1], label.affine)


def spoil_bytes(root, nifti):
    (root / "case1_day0" / "stomach.nii.gz").write_bytes(b"no nifti at all")


def spoil_twice(root, nifti):
    path = root / "case1_day0" / "stomach.nii.gz"
    path.with_name("Stomach.nii.gz").write_bytes(path.read_bytes())


def spoil_image_twice(root, nifti):
    path = root / "case1_day0" / "image.nii.gz"
    path.with_name("mri.nii.gz").write_bytes(path.read_bytes())


def spoil_masks(root, nifti):
    for organ in ORGANS:
        (root / "case1_day0" / f"{organ}.nii.gz").unlink()


def spoil_codes(root, nifti):
    path = root / "case1_day0" / "image.nii.gz"
    image = nibabel.load(path)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(image.dataobj), None, image.header), path)


def spoil_axes(root, nifti):
    path = root / "case1_day0" / "image.nii.gz"
    image = nibabel.load(path)
    nifti.save(path, np.stack([np.asanyarray(image.dataobj)] * 2, -1), image.affine)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_move, "stomach.nii.gz: lies elsewhere than image.nii.gz"),
        (spoil_shape, "stomach.nii.gz: has 8 x 40 x 63 voxels, image.nii.gz has 8 x 40 x 64"),
        (spoil_bytes, "stomach.nii.gz: cannot be read as NIfTI"),
        (spoil_twice, "stomach is there already"),
        (spoil_image_twice, "image.nii.gz and mri.nii.gz are both images"),
        (spoil_masks, "case1_day0: holds no mask of an organ, other scans do"),
        (spoil_codes, "image.nii.gz: does not say how the patient lies"),
        (spoil_axes, "image.nii.gz: has 4 axes (64 x 40 x 8 x 2)"),
    ],
)
def test_a_bad_scan_folder_is_named(folders, nifti, tmp_path, refusal, spoil, said):
    spoil(folders(tmp_path), nifti)
    assert said in refusal(read_cohort, tmp_path)


def test_a_label_of_the_same_place_with_other_axes_is_taken(folders, nifti, truth, tmp_path):
    root, scan = folders(tmp_path, "LPI"), truth.scans[0]
    path = root / scan.id / "stomach.nii.gz"
    nifti.save(path, nifti.stored_as(scan.masks[2], "PIR"), nifti.affine_of(scan, "PIR"), np.uint8)
    assert np.array_equal(read_masks(read_cohort(root).scans[0]), scan.masks)


def test_a_truncated_image_is_named_when_it_is_read(folders, tmp_path, refusal):
    path = folders(tmp_path) / "case1_day0" / "image.nii.gz"
    path.write_bytes(path.read_bytes()[:-200])
    assert f"{path}: cannot be read" in refusal(read_image, read_cohort(tmp_path).scans[0])


def test_a_mask_of_several_values_is_none(folders, truth, nifti, tmp_path, refusal):
    path = folders(tmp_path) / "case1_day0" / "stomach.nii.gz"
    nifti.save(path, np.arange(8 * 40 * 64).reshape(64, 40, 8) % 3, nifti.affine_of(truth.scans[0], "LPI"), np.uint8)
    assert f"{path}: holds more than one value" in refusal(read_masks, read_cohort(tmp_path).scans[0])


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_a_mask_of_fractions_is_none(folders, truth, nifti, tmp_path, refusal, value):
    scan, path = truth.scans[0], folders(tmp_path) / "case1_day0" / "stomach.nii.gz"
    nifti.save(path, nifti.stored_as(scan.masks[2] * value, "LPI"), nifti.affine_of(scan, "LPI"), np.float32)
    assert f"{path}: holds float32 values that are not whole" in refusal(read_masks, read_cohort(tmp_path).scans[0])


def test_a_mask_may_be_stored_as_floats_or_as_255(folders, truth, nifti, tmp_path):
    scan, root = truth.scans[0], folders(tmp_path)
    affine = nifti.affine_of(scan, "LPI")
    nifti.save(root / scan.id / "stomach.nii.gz", nifti.stored_as(scan.masks[2], "LPI"), affine, np.float64)
    nifti.save(root / scan.id / "large_bowel.nii.gz", nifti.stored_as(scan.masks[0] * 255, "LPI"), affine, np.uint8)
    assert np.array_equal(read_masks(read_cohort(root).scans[0]), scan.masks)


def test_values_that_are_not_finite_are_refused(one, refusal):
    root = one(np.full((3, 4, 2), np.nan, np.float32))
    assert "scan.nii: holds values that are not finite" in refusal(read_image, read_cohort(root).scans[0])


def test_an_affine_without_volume_is_refused(one, refusal):
    affine = np.diag([1.5, 1.5, 0, 1])
    root = one(np.zeros((3, 4, 2), np.uint16))
    image = nibabel.Nifti1Image(np.zeros((3, 4, 2), np.uint16), None)
    image.header["sform_code"] = 1
    image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = affine[:3]
    nibabel.save(nibabel.Nifti1Image(image.dataobj, None, image.header), root / "scan.nii")
    assert "scan.nii: its affine gives voxels no volume" in refusal(read_cohort, root)


def test_an_unknown_label_number_is_named(nnunet, tmp_path, refusal):
    scan = read_cohort(nnunet(tmp_path, {"background": 0, "large_bowel": 1, "small_bowel": 2})).scans[0]
    said = refusal(read_masks, scan)
    assert "case1_day0.nii.gz: holds the label 3, known are 0, 1, 2" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"labels": {"liver": 1, "spleen": 2}}', "names no organ"),
        ('{"labels": {"colon": 1, "large_bowel": 2}}', "large_bowel is there under two names"),
        ('{"name": "gut"}', 'has no "labels"'),
        ('{"labels": ["stomach"]}', 'has no "labels"'),
        ('{"labels": {"stomach": "three"}}', 'has no "labels"'),
        ("{", 'has no "labels"'),
    ],
)
def test_a_dataset_json_without_organs_is_refused(nnunet, tmp_path, refusal, content, said):
    (nnunet(tmp_path) / "dataset.json").write_text(content)
    line = refusal(read_cohort, tmp_path)
    assert f"{tmp_path / 'dataset.json'}: " in line and said in line


@pytest.mark.parametrize("gone", ["imagesTr/case2_day3_0000.nii.gz", "labelsTr/case2_day3.nii.gz"])
def test_an_image_without_label_and_a_label_without_image_are_named(nnunet, tmp_path, refusal, gone):
    (nnunet(tmp_path) / gone).unlink()
    assert f"case2_day3 has no file in {gone.split('/')[0]}/" in refusal(read_cohort, tmp_path)


@pytest.mark.parametrize(
    ("name", "said"), [("case1_day0_0001.nii.gz", "is channel 0001"), ("case1_day0.nii", "is there twice")]
)
def test_a_second_image_of_a_scan_is_refused(nnunet, tmp_path, refusal, name, said):
    images = nnunet(tmp_path) / "imagesTr"
    (images / name).write_bytes((images / "case1_day0_0000.nii.gz").read_bytes())
    assert said in refusal(read_cohort, tmp_path)


def test_an_empty_images_folder_is_named(tmp_path, refusal):
    (tmp_path / "imagesTr").mkdir()
    assert f"{tmp_path / 'imagesTr'}: holds no .nii" in refusal(read_cohort, tmp_path)

import pickle

import numpy as np
import pydicom
import pytest

from gitseg_tf.data.convert import convert
from gitseg_tf.data.scans import is_cohort, read_cohort, read_image, read_masks


def only(root, **options):
    (scan,) = read_cohort(root, **options).scans
    return scan


def attribute(name, value, only_slice=None):
    def change(dataset, i):
        if only_slice in (None, i):
            setattr(dataset, name, value)

    return change


def shift(axis, mm, only_slice):
    def change(dataset, i):
        if i == only_slice:
            position = list(dataset.ImagePositionPatient)
            position[axis] += mm
            dataset.ImagePositionPatient = position

    return change


def test_a_clinics_tree_gives_the_drawn_scans(write, clinic, patients):
    for index in range(len(patients.scans)):
        write(index).write_series().write_structures()
    cohort = read_cohort(clinic)
    assert [scan.id for scan in cohort.scans] == [scan.id for scan in patients.scans] and cohort.labelled
    for scan, drawn in zip(cohort.scans, patients.scans, strict=True):
        assert (scan.case, scan.numbers, scan.shape) == (drawn.case, drawn.numbers, drawn.image.shape)
        assert scan.spacing == pytest.approx(drawn.spacing)
        image = read_image(scan)
        assert image.dtype == np.uint16 and np.array_equal(image, drawn.image)
        assert np.array_equal(read_masks(scan), drawn.masks)


def test_records_are_those_of_the_competitions_layout(write, clinic, patients, tmp_path):
    for index in range(len(patients.scans)):
        write(index).write_series().write_structures()
    ours = convert(clinic, tmp_path / "a", folds=2, workers=1)
    theirs = convert(patients.root, tmp_path / "b", folds=2, workers=1)
    assert [shard.file for shard in ours.shards] == [shard.file for shard in theirs.shards]
    assert all((ours.root / s.file).read_bytes() == (theirs.root / s.file).read_bytes() for s in ours.shards)


@pytest.mark.parametrize("codes", ["LPI", "LPS", "RAS", "PLI", "LSP", "LIA", "PIR", "ASL"])
def test_any_acquired_plane_gives_the_drawn_scan(write, clinic, patients, codes):
    writer = write().write_series(codes)
    writer.write_structures(writer.polygons(codes))
    scan, drawn = only(clinic), patients.scans[0]
    assert np.array_equal(read_image(scan), drawn.image) and scan.spacing == pytest.approx(drawn.spacing)
    assert np.array_equal(read_masks(scan), drawn.masks)


@pytest.mark.parametrize("codes", ["LPI", "LPS"])
def test_missing_slices_are_gaps_in_the_numbers_and_keep_their_place(write, clinic, patients, codes):
    write(1).write_series(codes).write_structures()
    scan, drawn = only(clinic), patients.scans[1]
    assert scan.numbers == [1, 2, 3, 6, 7, 8, 9] and np.array_equal(read_masks(scan), drawn.masks)
    place = scan.source.grid.records_affine @ [4, 5, scan.numbers[3] - 1, 1]
    dz, dy, dx = drawn.spacing
    assert place[:3] == pytest.approx([50 - 4 * dx, 40 - 5 * dy, 500 - 5 * dz])


def test_rounded_positions_are_even_distances(write, clinic, patients):
    write(1).write_series(change=shift(2, 0.05, 3))
    scan = only(clinic)
    assert scan.numbers == patients.scans[1].numbers and scan.spacing == pytest.approx(patients.scans[1].spacing)


def test_an_oblique_series_goes_along_its_nearest_axes(write, clinic, patients):
    c, s = np.cos(0.3), np.sin(0.3)
    turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])

    def oblique(dataset, _):
        orientation = np.array(dataset.ImageOrientationPatient).reshape(2, 3) @ turn.T
        dataset.ImageOrientationPatient = [f"{v:.6f}" for v in orientation.ravel()]
        dataset.ImagePositionPatient = [f"{v:.6f}" for v in turn @ np.array(dataset.ImagePositionPatient)]

    writer = write().write_series(change=oblique)
    turned = {name: [line @ turn.T for line in lines] for name, lines in writer.polygons().items()}
    writer.write_structures(turned)
    scan, drawn = only(clinic), patients.scans[0]
    assert np.array_equal(read_image(scan), drawn.image) and scan.spacing == pytest.approx(drawn.spacing, rel=1e-4)
    assert np.array_equal(read_masks(scan), drawn.masks)


def test_a_multi_frame_series_beside_the_one_that_is_meant_does_no_harm(write, clinic, patients):
    write().write_series().write_structures()
    other = write()
    other.root, other.series = other.root / "cine", other.uid("another series")
    other.root.mkdir()
    other.write_series(change=attribute("NumberOfFrames", 8))
    cohort = read_cohort(clinic)
    assert len(cohort.scans) == 1 and np.array_equal(read_image(cohort.scans[0]), patients.scans[0].image)
    assert cohort.ignored == (f"{other.root}: series without RTSTRUCT",)


def test_series_without_structures_are_unlabelled(write, clinic, patients, refusal):
    write().write_series()
    cohort = read_cohort(clinic)
    assert not cohort.labelled and np.array_equal(read_image(cohort.scans[0]), patients.scans[0].image)
    assert "case1_20260102: has no contours" in refusal(read_masks, cohort.scans[0])


def test_two_scans_of_a_day_have_two_ids(write, clinic, dicom_writer, patients):
    write().write_series()
    later = dicom_writer(clinic / "later", patients.scans[2], "case1", "20260102")
    later.write_series(change=lambda dataset, _: setattr(dataset, "StudyTime", "180000"))
    cohort = read_cohort(clinic)
    assert [scan.id for scan in cohort.scans] == ["case1_20260102", "case1_20260102_2"]
    assert np.array_equal(read_image(cohort.scans[1]), patients.scans[2].image)


def test_a_patients_name_becomes_fit_for_files(patients, dicom_writer, clinic):
    dicom_writer(clinic, patients.scans[0], "../UW 12/ä").write_series()
    scan = only(clinic)
    assert scan.id == "_UW_12_ä_20260102" and scan.case == "_UW_12_ä"


def test_rescaled_and_negative_values_are_respected(write, clinic, patients):
    def rescale(dataset, _):
        dataset.RescaleSlope, dataset.RescaleIntercept = 2, -100

    write().write_series(change=rescale)
    assert np.array_equal(read_image(only(clinic)), patients.scans[0].image * 2)


def test_scans_travel_to_other_processes(write, clinic, patients):
    write().write_series().write_structures()
    scan = pickle.loads(pickle.dumps(only(clinic)))
    assert np.array_equal(read_masks(scan), patients.scans[0].masks)


def test_what_a_later_structure_set_needs_is_kept(write, clinic, patients):
    writer = write().write_series("LPS").write_structures()
    source = only(clinic).source
    assert (source.series_uid, source.study_uid, source.frame_uid) == (writer.series, writer.study, writer.frame)
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in source.paths]
    assert [header.SOPInstanceUID for header in headers] == list(source.sop_uids)
    heights = [float(header.ImagePositionPatient[2]) for header in headers]
    assert heights == sorted(heights, reverse=True)


def test_the_fingerprint_changes_with_a_contour_and_not_with_the_place(write, clinic, tmp_path):
    writer = write().write_series().write_structures()
    before = read_cohort(clinic).fingerprint
    clinic.rename(tmp_path / "moved")
    assert read_cohort(tmp_path / "moved").fingerprint == before
    (tmp_path / "moved").rename(clinic)
    lines = writer.polygons()
    lines["stomach"][0][0] += 0.5
    writer.write_structures(lines)
    assert read_cohort(clinic).fingerprint != before


def test_a_folder_without_dicom_is_none(tmp_path):
    (tmp_path / "a.dcm").write_bytes(bytes(160))
    (tmp_path / "b.txt").write_text("no")
    assert not is_cohort(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (attribute("NumberOfFrames", 8), "is a multi-frame image"),
        (attribute("SOPClassUID", pydicom.uid.EnhancedMRImageStorage), "is a multi-frame image (Enhanced MR"),
        (attribute("PhotometricInterpretation", "MONOCHROME1"), "is MONOCHROME1"),
        (attribute("PatientID", ""), "has no PatientID"),
        (attribute("ImagePositionPatient", None, 3), "has no ImagePositionPatient"),
        (attribute("PixelSpacing", [1.5, 1.3], 3), "differ in PixelSpacing"),
        (attribute("Rows", 20, 3), "differ in Rows"),
        (attribute("ImageOrientationPatient", [0, 1, 0, 1, 0, 0], 3), "differ in ImageOrientationPatient"),
        (shift(2, 1.2, 3), "a scan has slices at even distances"),
        (shift(2, 0.3, 3), "a scan has slices at even distances"),
        (shift(2, 3, 3), "are in the same place"),
        (shift(0, 9, 3), "are shifted sideways"),
        (attribute("Modality", "PT"), "no MR or CT image"),
        (attribute("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]), "no MR or CT image"),
    ],
)
def test_a_bad_series_is_named(write, clinic, refusal, change, said):
    write().write_series(change=change)
    line = refusal(read_cohort, clinic)
    assert said in line and str(clinic) in line


def test_slices_that_are_missing_from_a_coronal_series_are_refused(write, clinic, refusal):
    writer = write().write_series("LIP")
    (writer.root / "IM0020").unlink()
    assert "slices are missing, and they are not axial" in refusal(read_cohort, clinic)


def test_two_series_without_a_word_are_refused(write, clinic, refusal):
    write().write_series(change=attribute("SeriesDescription", "t2 haste"))
    other = write()
    other.root, other.series = clinic / "b", other.uid("another series")
    other.root.mkdir()
    other.write_series(change=attribute("SeriesDescription", "trufi"))
    line = refusal(read_cohort, clinic)
    assert "has 2 series" in line and "'t2 haste'" in line and "'trufi'" in line


def test_patients_that_become_one_file_name_are_refused(patients, dicom_writer, clinic, refusal):
    dicom_writer(clinic / "a", patients.scans[0], "UW 1").write_series()
    dicom_writer(clinic / "b", patients.scans[2], "UW/1").write_series()
    assert "'UW 1' and 'UW/1' are both UW_1" in refusal(read_cohort, clinic)


def test_files_that_are_no_dicom_are_told_and_damaged_ones_refused(write, clinic, refusal):
    writer = write().write_series()
    (writer.root / "README.txt").write_text("hello")
    assert any("README.txt: no DICOM" in line for line in read_cohort(clinic).ignored)
    (writer.root / "IM0099.dcm").write_bytes(b"")
    assert "IM0099.dcm: is no DICOM file" in refusal(read_cohort, clinic)


def test_a_compression_without_decoder_is_named(write, clinic, refusal):
    def compress(dataset, _):
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless
        dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
        dataset["PixelData"].VR = "OB"

    write().write_series(change=compress)
    assert "is compressed as JPEG-LS Lossless Image Compression" in refusal(read_image, only(clinic))


def test_truncated_pixels_are_named(write, clinic, refusal):
    writer = write().write_series()
    path = writer.root / "IM0003"
    path.write_bytes(path.read_bytes()[:-400])
    assert f"{path}: its pixels cannot be read" in refusal(read_image, only(clinic))

import pickle
import shutil

import numpy as np
import pydicom
import pytest

from gitseg_tf.data.readers.registry import is_cohort, read_cohort
from gitseg_tf.data.tfrecords.convert import convert


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


def test_dicom_series_and_structure_sets_are_read(write, clinic, patients):
    for index in range(len(patients.scans)):
        write(index).write_series().write_structures()
    cohort = read_cohort(clinic)
    assert [scan.id for scan in cohort.scans] == [scan.id for scan in patients.scans] and cohort.labeled
    for scan, truth in zip(cohort.scans, patients.scans, strict=True):
        assert (scan.case, scan.numbers, scan.shape) == (truth.case, truth.numbers, truth.image.shape)
        assert scan.spacing == pytest.approx(truth.spacing)
        image = scan.read_volume().voxels
        assert image.dtype == np.uint16 and np.array_equal(image, truth.image)
        assert np.array_equal(scan.read_annotation().masks, truth.masks)


def test_dicom_and_the_competition_layout_give_the_same_records(write, clinic, patients, tmp_path):
    for index in range(len(patients.scans)):
        write(index).write_series().write_structures()
    ours = convert(clinic, tmp_path / "a", folds=2, workers=1)
    theirs = convert(patients.root, tmp_path / "b", folds=2, workers=1)
    assert [shard.file for shard in ours.shards] == [shard.file for shard in theirs.shards]
    assert all((ours.root / s.file).read_bytes() == (theirs.root / s.file).read_bytes() for s in ours.shards)


@pytest.mark.parametrize("codes", ["LPI", "LPS", "RAS", "PLI", "LSP", "LIA", "PIR", "ASL"])
def test_a_series_in_any_acquisition_plane_is_read(write, clinic, patients, codes):
    writer = write().write_series(codes)
    writer.write_structures(writer.polygons(codes))
    scan, truth = only(clinic), patients.scans[0]
    assert np.array_equal(scan.read_volume().voxels, truth.image) and scan.spacing == pytest.approx(truth.spacing)
    assert np.array_equal(scan.read_annotation().masks, truth.masks)


@pytest.mark.parametrize("codes", ["LPI", "LPS"])
def test_missing_slices_leave_gaps_in_the_numbers_and_keep_positions(write, clinic, patients, codes):
    write(1).write_series(codes).write_structures()
    scan, truth = only(clinic), patients.scans[1]
    assert scan.numbers == [1, 2, 3, 6, 7, 8, 9] and np.array_equal(scan.read_annotation().masks, truth.masks)
    position = scan.source.grid.records_affine @ [4, 5, scan.numbers[3] - 1, 1]
    dz, dy, dx = truth.spacing
    assert position[:3] == pytest.approx([50 - 4 * dx, 40 - 5 * dy, 500 - 5 * dz])


def test_rounded_slice_positions_count_as_evenly_spaced(write, clinic, patients):
    write(1).write_series(change=shift(2, 0.05, 3))
    scan = only(clinic)
    assert scan.numbers == patients.scans[1].numbers and scan.spacing == pytest.approx(patients.scans[1].spacing)


def test_an_oblique_series_is_read_along_its_nearest_axes(write, clinic, patients):
    c, s = np.cos(0.3), np.sin(0.3)
    turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])

    def oblique(dataset, _):
        orientation = np.array(dataset.ImageOrientationPatient).reshape(2, 3) @ turn.T
        dataset.ImageOrientationPatient = [f"{v:.6f}" for v in orientation.ravel()]
        dataset.ImagePositionPatient = [f"{v:.6f}" for v in turn @ np.array(dataset.ImagePositionPatient)]

    writer = write().write_series(change=oblique)
    turned = {name: [line @ turn.T for line in lines] for name, lines in writer.polygons().items()}
    writer.write_structures(turned)
    scan, truth = only(clinic), patients.scans[0]
    assert np.array_equal(scan.read_volume().voxels, truth.image) and scan.spacing == pytest.approx(
        truth.spacing, rel=1e-4
    )
    assert np.array_equal(scan.read_annotation().masks, truth.masks)


def test_an_unrelated_multi_frame_series_is_ignored(write, clinic, patients):
    write().write_series().write_structures()
    other = write()
    other.root, other.series = other.root / "cine", other.uid("another series")
    other.root.mkdir()
    other.write_series(change=attribute("NumberOfFrames", 8))
    cohort = read_cohort(clinic)
    assert len(cohort.scans) == 1 and np.array_equal(cohort.scans[0].read_volume().voxels, patients.scans[0].image)
    assert cohort.ignored == (f"{other.root}: series without RTSTRUCT",)


def test_series_without_structures_have_no_annotation(write, clinic, patients):
    write().write_series()
    cohort = read_cohort(clinic)
    assert not cohort.labeled and np.array_equal(cohort.scans[0].read_volume().voxels, patients.scans[0].image)
    assert cohort.scans[0].read_annotation() is None and len(cohort.labels) == 0


def test_two_scans_on_the_same_day_get_different_ids(write, clinic, dicom_writer, patients):
    write().write_series()
    later = dicom_writer(clinic / "later", patients.scans[2], "case1", "20260102")
    later.write_series(change=lambda dataset, _: setattr(dataset, "StudyTime", "180000"))
    cohort = read_cohort(clinic)
    assert [scan.id for scan in cohort.scans] == ["case1_20260102", "case1_20260102_2"]
    assert np.array_equal(cohort.scans[1].read_volume().voxels, patients.scans[2].image)


def test_patient_ids_are_sanitized_for_file_names(patients, dicom_writer, clinic):
    dicom_writer(clinic, patients.scans[0], "../UW 12/ä").write_series()
    scan = only(clinic)
    assert scan.id == "_UW_12_ä_20260102" and scan.case == "_UW_12_ä"


@pytest.mark.parametrize(("slope", "dtype"), [(2, np.int16), (0.125, np.float32), (30, np.float32)])
def test_rescale_slope_and_intercept_are_applied(write, clinic, patients, slope, dtype):
    def rescale(dataset, _):
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, -101

    write().write_series(change=rescale)
    voxels = only(clinic).read_volume().voxels
    assert voxels.dtype == dtype and np.array_equal(voxels, patients.scans[0].image * float(slope) - 101)


def test_signed_pixels_are_read_as_hounsfield_units(write, clinic, patients):
    def sign(dataset, _):
        signed = np.frombuffer(dataset.PixelData, "<u2").astype("<i2") - 1024
        dataset.PixelData, dataset.PixelRepresentation, dataset.Modality = signed.tobytes(), 1, "CT"

    write().write_series(change=sign)
    voxels = only(clinic).read_volume().voxels
    assert voxels.dtype == np.int16 and np.array_equal(voxels, patients.scans[0].image.astype(int) - 1024)


def test_scans_can_be_pickled(write, clinic, patients):
    write().write_series().write_structures()
    scan = pickle.loads(pickle.dumps(only(clinic)))
    assert np.array_equal(scan.read_annotation().masks, patients.scans[0].masks)


def test_the_uids_for_writing_a_structure_set_are_kept(write, clinic, patients):
    writer = write().write_series("LPS").write_structures()
    source = only(clinic).source
    assert (source.series_uid, source.study_uid, source.frame_uid) == (writer.series, writer.study, writer.frame)
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in source.paths]
    assert [header.SOPInstanceUID for header in headers] == list(source.sop_uids)
    heights = [float(header.ImagePositionPatient[2]) for header in headers]
    assert heights == sorted(heights, reverse=True)


def test_the_fingerprint_changes_with_a_contour_and_not_with_the_folder(write, clinic, tmp_path):
    writer = write().write_series().write_structures()
    before = read_cohort(clinic).fingerprint
    clinic.rename(tmp_path / "moved")
    assert read_cohort(tmp_path / "moved").fingerprint == before
    (tmp_path / "moved").rename(clinic)
    lines = writer.polygons()
    lines["stomach"][0][0] += 0.5
    writer.write_structures(lines)
    assert read_cohort(clinic).fingerprint != before


def test_a_folder_without_dicom_is_not_a_cohort(tmp_path):
    (tmp_path / "a.dcm").write_bytes(bytes(160))
    (tmp_path / "b.txt").write_text("no")
    assert not is_cohort(tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (attribute("NumberOfFrames", 8), "is a multi-frame image"),
        (attribute("SOPClassUID", pydicom.uid.EnhancedMRImageStorage), "is a multi-frame image (Enhanced MR"),
        (attribute("PhotometricInterpretation", "MONOCHROME1"), "is MONOCHROME1"),
        (attribute("PixelSpacing", 1.5, 3), "PixelSpacing must have 2 values, got 1"),
        (attribute("ImagePositionPatient", [1, 2], 3), "ImagePositionPatient must have 3 values, got 2"),
        (attribute("ImageOrientationPatient", [1, 0, 0], 3), "ImageOrientationPatient must have 6 values, got 3"),
        (shift(2, 1.5, 7), "slices must be evenly spaced"),
        (attribute("ImagePositionPatient", None, 3), "has no ImagePositionPatient"),
        (attribute("PixelSpacing", [1.5, 1.3], 3), "differ in PixelSpacing"),
        (attribute("Rows", 20, 3), "differ in Rows"),
        (attribute("ImageOrientationPatient", [0, 1, 0, 1, 0, 0], 3), "differ in ImageOrientationPatient"),
        (shift(2, 1.2, 3), "slices must be evenly spaced"),
        (shift(2, 0.3, 3), "slices must be evenly spaced"),
        (shift(2, 3, 3), "have the same position"),
        (shift(0, 9, 3), "are shifted sideways"),
        (attribute("Modality", "PT"), "no MR or CT images"),
        (attribute("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]), "no MR or CT images"),
    ],
)
def test_an_invalid_series_is_named(write, clinic, refusal, change, expected):
    write().write_series(change=change)
    line = refusal(read_cohort, clinic)
    assert expected in line and str(clinic) in line


def test_missing_slices_of_a_coronal_series_are_refused(write, clinic, refusal):
    writer = write().write_series("LIP")
    (writer.root / "IM0020").unlink()
    assert "slices are missing from a series that is not axial" in refusal(read_cohort, clinic)


def test_two_series_without_a_structure_set_are_refused(write, clinic, refusal):
    write().write_series(change=attribute("SeriesDescription", "t2 haste"))
    other = write()
    other.root, other.series = clinic / "b", other.uid("another series")
    other.root.mkdir()
    other.write_series(change=attribute("SeriesDescription", "trufi"))
    line = refusal(read_cohort, clinic)
    assert "has 2 series" in line and "'t2 haste'" in line and "'trufi'" in line


def test_patients_with_the_same_sanitized_name_are_refused(patients, dicom_writer, clinic, refusal):
    dicom_writer(clinic / "a", patients.scans[0], "UW 1").write_series()
    dicom_writer(clinic / "b", patients.scans[2], "UW/1").write_series()
    assert "'UW 1' and 'UW/1' would both be named UW_1" in refusal(read_cohort, clinic)


def test_other_files_are_listed_and_damaged_ones_refused(write, clinic, refusal):
    writer = write().write_series()
    (writer.root / "README.txt").write_text("hello")
    assert any("README.txt: not a DICOM file" in line for line in read_cohort(clinic).ignored)
    (writer.root / "IM0099.dcm").write_bytes(b"")
    assert "IM0099.dcm: is not a DICOM file" in refusal(read_cohort, clinic)


def test_truncated_pixel_data_is_named(write, clinic, refusal):
    writer = write().write_series()
    path = writer.root / "IM0003"
    path.write_bytes(path.read_bytes()[:-400])
    assert f"{path}: its pixels cannot be read" in refusal(only(clinic).read_volume)


BLANK = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


@pytest.mark.parametrize("blank", [BLANK[:1], BLANK[:2], BLANK])
def test_blank_identifiers_are_replaced_by_the_folder(patients, dicom_writer, clinic, blank):
    def erase(dataset, i=None):
        for name in blank:
            setattr(dataset, name, "")

    for name, index in (("a", 0), ("b", 2)):
        dicom_writer(clinic / name, patients.scans[index]).write_series(change=erase)
    cohort = read_cohort(clinic)
    assert [(scan.id, scan.case) for scan in cohort.scans] == [("a_20260102", "a"), ("b_20260102", "b")]
    for scan, truth in zip(cohort.scans, (patients.scans[0], patients.scans[2]), strict=True):
        assert np.array_equal(scan.read_volume().voxels, truth.image)
    (note,) = cohort.notes
    assert note == "2 studies have no PatientID; each counts as a patient of its own, named after its folder: a, b"


def test_copies_are_left_out_and_counted(write, clinic, patients):
    writer = write().write_series().write_structures()
    shutil.copy(writer.root / "IM0003", writer.root / "IM0003 (1)")
    shutil.copytree(writer.root, clinic / "copy")
    cohort = read_cohort(clinic)
    (scan,) = cohort.scans
    assert np.array_equal(scan.read_volume().voxels, patients.scans[0].image)
    assert np.array_equal(scan.read_annotation().masks, patients.scans[0].masks)
    assert cohort.notes[0].startswith("10 duplicate files left out; the first is ")
    assert cohort.notes[1].startswith("1 duplicate file left out; the first is ")


def test_an_instance_with_two_contents_is_refused(write, clinic, refusal):
    writer = write().write_series()
    other = pydicom.dcmread(writer.root / "IM0003")
    other.PixelData = bytes(len(other.PixelData))
    other.save_as(writer.root / "IM0003b")
    assert f"{writer.root / 'IM0003b'}: has the SOPInstanceUID of " in refusal(read_cohort, clinic)


@pytest.mark.parametrize("ending", ["", ".dcm"])
@pytest.mark.parametrize("implicit", [True, False])
def test_files_without_preamble_are_read(write, clinic, patients, ending, implicit):
    writer = write().write_series().write_structures()
    for path in list(writer.root.iterdir()):
        plain = pydicom.Dataset()
        plain.update({element.tag: element for element in pydicom.dcmread(path)})
        path.unlink()
        target = path.with_name(path.stem + ending)
        pydicom.dcmwrite(target, plain, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    (scan,) = read_cohort(clinic).scans
    assert np.array_equal(scan.read_volume().voxels, patients.scans[0].image)
    assert np.array_equal(scan.read_annotation().masks, patients.scans[0].masks)


def test_slices_with_a_series_each_are_one_scan(write, clinic, patients):
    def own_series(dataset, i):
        dataset.SeriesInstanceUID = pydicom.uid.generate_uid(entropy_srcs=["series", str(i)])

    writer = write().write_series(change=own_series)
    writer.write_structures(series=pydicom.uid.generate_uid(entropy_srcs=["series", "3"]))
    (scan,) = read_cohort(clinic).scans
    assert np.array_equal(scan.read_volume().voxels, patients.scans[0].image)
    assert np.array_equal(scan.read_annotation().masks, patients.scans[0].masks)


def test_the_most_frequent_distance_is_the_spacing(write, clinic):
    writer = write().write_series()
    for name in ("IM0002", "IM0003"):
        (writer.root / name).unlink()
    (scan,) = read_cohort(clinic).scans
    assert scan.spacing[0] == pytest.approx(3.0) and np.diff(scan.numbers).max() == 3


def test_a_blank_patient_never_gets_the_name_of_another(patients, dicom_writer, clinic):
    for name, index, patient in (("x", 0, "p"), ("y", 1, "p_2"), ("p", 2, "blank")):
        dicom_writer(clinic / name, patients.scans[index], patient).write_series(
            change=lambda dataset, _, patient=patient: patient == "blank" and setattr(dataset, "PatientID", "")
        )
    assert sorted(scan.case for scan in read_cohort(clinic).scans) == ["p", "p_2", "p_3"]

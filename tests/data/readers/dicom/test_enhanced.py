import shutil
import subprocess

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, EnhancedMRImageStorage

from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.inference.writers.rtstruct import structure_set
from gitseg_tf.labels import UWMGI

PARTS = ("InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "PixelData")


def item(**values):
    dataset = pydicom.Dataset()
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def merge(folder, *, shared=True, ct=False, change=lambda dataset: None, frame=lambda groups, i: None, order=None):
    """Replace the slices in a folder by one enhanced multi-frame image, as PS3.3 A.36 and A.38 describe it."""
    paths = sorted(folder.glob("IM*"))
    slices = [pydicom.dcmread(path) for path in paths]
    slices = [slices[i] for i in order or range(len(slices))]
    for path in paths:
        path.unlink()
    image = slices[0]
    pixels = b"".join(one.PixelData for one in slices)
    geometry = [(list(one.ImagePositionPatient), list(one.ImageOrientationPatient)) for one in slices]
    spacing = list(image.PixelSpacing)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(image, name)
    image.SOPClassUID = EnhancedCTImageStorage if ct else EnhancedMRImageStorage
    image.file_meta.MediaStorageSOPClassUID, image.Modality = image.SOPClassUID, "CT" if ct else "MR"
    image.NumberOfFrames, image.PixelData = len(slices), pixels
    pointers = ((0x00209056, 0x00209111), (0x00209057, 0x00209111))  # StackID, InStackPositionNumber
    image.DimensionIndexSequence = [
        item(DimensionIndexPointer=one, FunctionalGroupPointer=group) for one, group in pointers
    ]
    measures = item(PixelMeasuresSequence=[item(PixelSpacing=spacing, SliceThickness=99)])
    image.SharedFunctionalGroupsSequence = [measures if shared else item()]
    image.PerFrameFunctionalGroupsSequence = []
    for i, (position, orientation) in enumerate(geometry):
        groups = item(
            FrameContentSequence=[item(StackID="1", InStackPositionNumber=i + 1, DimensionIndexValues=[1, i + 1])],
            PlanePositionSequence=[item(ImagePositionPatient=position)],
            PixelValueTransformationSequence=[item(RescaleIntercept=0, RescaleSlope=1, RescaleType="US")],
        )
        plane = item(PlaneOrientationSequence=[item(ImageOrientationPatient=orientation)])
        (image.SharedFunctionalGroupsSequence[0] if shared else groups).update(plane)
        if not shared:
            groups.update(measures)
        frame(groups, i)
        image.PerFrameFunctionalGroupsSequence.append(groups)
    change(image)
    image.save_as(folder / "enhanced.dcm")
    return folder / "enhanced.dcm"


def only(root, **options):
    (scan,) = read_cohort(root, **options).scans
    return scan


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("ct", [True, False])
@pytest.mark.parametrize("codes", ["LPI", "LPS", "LIA"])
def test_an_enhanced_image_is_the_scan_of_its_frames(write, clinic, patients, shared, ct, codes):
    writer = write().write_series(codes)
    writer.write_structures(writer.polygons(codes))
    merge(writer.root, shared=shared, ct=ct)
    scan, truth = only(clinic), patients.scans[0]
    assert np.array_equal(scan.read_volume().voxels, truth.image) and scan.spacing == pytest.approx(truth.spacing)
    assert np.array_equal(scan.read_annotation().masks, truth.masks)


def test_frames_are_sorted_by_position_and_gaps_are_kept(write, clinic, patients):
    writer = write(1).write_series().write_structures()
    merge(writer.root, order=[3, 0, 6, 2, 5, 1, 4])
    scan, truth = only(clinic), patients.scans[1]
    assert scan.numbers == [1, 2, 3, 6, 7, 8, 9] and np.array_equal(scan.read_volume().voxels, truth.image)
    assert np.array_equal(scan.read_annotation().masks, truth.masks)
    assert [path.name for role, path in scan.source.files() if role == "image"] == ["enhanced.dcm"]


def test_each_frame_has_its_own_slope_and_intercept(write, clinic, patients):
    def rescale(groups, i):
        groups.PixelValueTransformationSequence = [item(RescaleSlope=1 + i, RescaleIntercept=-100 * i)]

    merge(write().write_series().root, frame=rescale)
    truth = patients.scans[0].image.astype(float)
    # Frame i shows slice 7 - i, because the files are numbered against the order of the slices.
    expected = np.stack([truth[z] * (8 - z) - 100 * (7 - z) for z in range(8)])
    assert np.array_equal(only(clinic).read_volume().voxels, expected)


def test_a_shared_slope_applies_to_all_frames(write, clinic, patients):
    def move(image):
        image.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = [
            item(RescaleSlope=2, RescaleIntercept=-1000)
        ]

    def drop(groups, _):
        del groups.PixelValueTransformationSequence

    merge(write().write_series().root, frame=drop, change=move)
    assert np.array_equal(only(clinic).read_volume().voxels, patients.scans[0].image.astype(int) * 2 - 1000)


def test_three_enhanced_images_of_a_study_are_three_series(write, clinic, refusal):
    writer = write()
    for n in range(3):
        writer.series = writer.uid("series", n)
        writer.write_series(change=lambda dataset, i, n=n: setattr(dataset, "SOPInstanceUID", writer.uid(n, i)))
        merge(writer.root).rename(writer.root / f"e{n}.dcm")
    assert "has 3 series" in refusal(read_cohort, clinic)


def varying(group, **values):
    def change(groups, i):
        found = groups.get(group) or [item()]
        for name, choices in values.items():
            setattr(found[0], name, choices[i % len(choices)])
        setattr(groups, group, found)

    return change


def at_same_place(groups, i):
    position = groups.PlanePositionSequence[0].ImagePositionPatient
    position[2] = 500 - 3 * (i // 2)
    groups.FrameContentSequence[0].DimensionIndexValues = [i % 2 + 1, i // 2 + 1]


def attribute(name, value):
    return {"change": lambda image: setattr(image, name, value)}


def drop_positions(groups, i):
    if i == 3:
        del groups.PlanePositionSequence


def tilt(groups, i):
    groups.PlanePositionSequence[0].ImagePositionPatient[1] += 0.8 * i


def uneven(groups, i):
    groups.PlanePositionSequence[0].ImagePositionPatient[2] += 1.2 if i == 3 else 0


def leaning(groups, _):
    groups.CTAcquisitionDetailsSequence = [item(GantryDetectorTilt=12.5)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"frame": varying("MREchoSequence", EffectiveEchoTime=[10.0, 20.0])}, "2 values of EffectiveEchoTime (10.0,"),
        ({"frame": varying("FrameContentSequence", StackID=["1", "2"])}, "2 values of StackID (1, 2)"),
        ({"frame": varying("FrameContentSequence", TemporalPositionIndex=[1, 2])}, "2 values of TemporalPositionIndex"),
        ({"frame": varying("MRDiffusionSequence", DiffusionBValue=[0.0, 50.0, 800.0])}, "3 values of DiffusionBValue"),
        ({"frame": at_same_place}, "(frame 7) and enhanced.dcm (frame 8) have the same position (differ in StackID)"),
        ({"frame": drop_positions}, "has no ImagePositionPatient"),
        ({"frame": tilt}, "are shifted sideways (by 14.9 degrees"),
        ({"frame": uneven}, "slices must be evenly spaced"),
        ({"frame": leaning, "ct": True}, "GantryDetectorTilt is 12.5 degrees"),
        (attribute("PhotometricInterpretation", "MONOCHROME1"), "is MONOCHROME1"),
        (attribute("NumberOfFrames", 7), "of 7 frames with 8 positions"),
        (attribute("PerFrameFunctionalGroupsSequence", []), "is a multi-frame image (Enhanced MR"),
    ],
)  # fmt: skip
def test_an_invalid_enhanced_image_is_refused(write, clinic, refusal, options, expected):
    path = merge(write().write_series().root, **options)
    line = refusal(read_cohort, clinic)
    assert expected in line and str(path.parent) in line


def test_a_truncated_enhanced_image_is_named(write, clinic, refusal):
    path = merge(write().write_series().root)
    path.write_bytes(path.read_bytes()[:-400])
    assert f"{path}: its pixels cannot be read" in refusal(only(clinic).read_volume)


def test_contours_of_an_enhanced_image_refer_to_its_frames(write, clinic, patients):
    writer = write().write_series()
    path = merge(writer.root)
    scan, masks = only(clinic), patients.scans[0].masks
    written = structure_set(scan, masks, UWMGI)
    frames = pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
    contours = [one for roi in written.ROIContourSequence for one in roi.ContourSequence]
    assert contours
    for contour in contours:
        (image,) = contour.ContourImageSequence
        position = frames[image.ReferencedFrameNumber - 1].PlanePositionSequence[0].ImagePositionPatient
        assert contour.ContourData[2] == pytest.approx(position[2], abs=1e-3)
    series = written.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    (image,) = series.ContourImageSequence
    assert image.ReferencedSOPInstanceUID == pydicom.dcmread(path).SOPInstanceUID
    assert "ReferencedFrameNumber" not in image
    written.save_as(clinic / "RS.dcm", enforce_file_format=True)
    assert np.array_equal(only(clinic, labels=UWMGI).read_annotation().masks, masks)


@pytest.mark.parametrize("ct", [True, False])
def test_a_series_converted_by_highdicom_is_read(write, clinic, patients, ct):
    legacy = pytest.importorskip("highdicom.legacy")

    def complete(dataset, i):
        dataset.InstanceNumber, dataset.SeriesNumber, dataset.AccessionNumber = i + 1, 1, ""
        for name in ("PatientName", "PatientBirthDate", "PatientSex", "StudyID", "ReferringPhysicianName"):
            setattr(dataset, name, "")
        for name in ("Series", "Content", "Acquisition"):
            setattr(dataset, f"{name}Date", "20260102")
            setattr(dataset, f"{name}Time", "120000")
        dataset.Manufacturer, dataset.PositionReferenceIndicator, dataset.PatientPosition = "M", "", "HFS"
        dataset.ScanningSequence, dataset.SequenceVariant, dataset.MRAcquisitionType = "GR", "SK", "2D"
        dataset.ScanOptions, dataset.AcquisitionNumber = "", 1
        if ct:
            dataset.SOPClassUID, dataset.Modality = CTImageStorage, "CT"
            dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1024 + i, "HU"

    writer = write().write_series(change=complete)
    paths = sorted(writer.root.glob("IM*"))
    build = legacy.LegacyConvertedEnhancedCTImage if ct else legacy.LegacyConvertedEnhancedMRImage
    image = build([pydicom.dcmread(path) for path in paths], writer.series, 2, writer.uid("legacy"), 1)
    for path in paths:
        path.unlink()
    image.save_as(writer.root / "legacy.dcm")
    offset = np.arange(-1024, -1016)[:, None, None] if ct else 0
    scan, truth = only(clinic), patients.scans[0]
    assert np.array_equal(scan.read_volume().voxels, truth.image.astype(int) + offset)
    assert scan.spacing == pytest.approx(truth.spacing)


@pytest.mark.skipif(not shutil.which("dcm2niix"), reason="compares with dcm2niix")
def test_dcm2niix_reads_the_same_scan(write, clinic, tmp_path):
    def rescale(groups, _):
        groups.PixelValueTransformationSequence = [item(RescaleSlope=2, RescaleIntercept=-1000)]

    merge(write().write_series().root, frame=rescale, order=[4, 0, 7, 2, 5, 1, 3, 6])
    subprocess.run(["dcm2niix", "-f", "out", "-b", "n", "-o", tmp_path, clinic], check=True, capture_output=True)
    image = nibabel.as_closest_canonical(nibabel.load(tmp_path / "out.nii"))
    scan = only(clinic)
    expected = np.asarray(image.dataobj)[::-1, ::-1, ::-1].transpose(2, 1, 0)
    assert np.array_equal(scan.read_volume().voxels, expected)
    last = np.array([*image.shape]) - 1
    position = nibabel.affines.apply_affine(image.affine, last)
    assert scan.source.grid.records_affine[:3, 3] == pytest.approx(position, abs=1e-3)
    assert scan.spacing == pytest.approx(image.header.get_zooms()[::-1], rel=1e-5)

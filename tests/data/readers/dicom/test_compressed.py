import shutil
import subprocess
import sys

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from gitseg_tf.data.readers.registry import read_cohort

# Blocks the packages of the extra, and Pillow's decoder of JPEG 2000, which some builds lack; then reads a scan.
WITHOUT_EXTRA = """
import sys
import PIL.features
PIL.features.check_codec = lambda name: False
for name in ("gdcm", "jpeg_ls", "pylibjpeg", "openjpeg"): sys.modules[name] = None
from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.errors import GitsegError
try:
    print(read_cohort(sys.argv[1]).scans[0].read_volume().voxels.sum())
except GitsegError as error:
    print(type(error).__name__, error)
"""


def only(root, **options):
    (scan,) = read_cohort(root, **options).scans
    return scan


def rewrite(folder, change):
    for path in sorted(folder.glob("IM*")):
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path)


def run_dcmtk(folder, *command):
    for path in sorted(folder.glob("IM*")):
        subprocess.run([*command, path, path], check=True)


def signed(dataset, _):
    """Store pixels as negative numbers too, as in CT."""
    values = np.frombuffer(dataset.PixelData, "<u2").astype("<i2") - 1024
    dataset.PixelData, dataset.PixelRepresentation, dataset.Modality = values.tobytes(), 1, "CT"


def read_without_extra(root):
    command = [sys.executable, "-c", WITHOUT_EXTRA, root]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("negative", [True, False])
def test_compressed_pixels_are_exact(write, clinic, patients, syntax, negative):
    def compress(dataset):
        if syntax.is_encapsulated:
            dataset.compress(syntax)
        dataset.file_meta.TransferSyntaxUID = syntax

    writer = write().write_series(**({"change": signed} if negative else {}))
    rewrite(writer.root, compress)
    assert pydicom.dcmread(writer.root / "IM0003").file_meta.TransferSyntaxUID == syntax
    expected = patients.scans[0].image.astype(int) - (1024 if negative else 0)
    assert np.array_equal(only(clinic).read_volume().voxels, expected)


def test_big_endian_pixels_are_exact(write, clinic, patients):
    def swap(dataset):
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        dataset["PixelData"].VR = "OW"

    for path in sorted(write().write_series().root.glob("IM*")):
        dataset = pydicom.dcmread(path)
        swap(dataset)
        pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=False, force_encoding=True)
    assert np.array_equal(only(clinic).read_volume().voxels, patients.scans[0].image)


@pytest.mark.skipif(not shutil.which("dcmcjpeg"), reason="needs the encoders of dcmtk")
@pytest.mark.parametrize(
    "command",
    [
        ("dcmcjpeg", "+e1"),
        ("dcmcjpeg", "+el"),
        ("dcmcjpls", "+el"),
        ("dcmcrle",),
        ("dcmconv", "+td"),
        ("dcmconv", "+te"),
    ],
)
@pytest.mark.parametrize("negative", [True, False])
def test_pixels_compressed_by_dcmtk_are_exact(write, clinic, patients, command, negative):
    writer = write().write_series(**({"change": signed} if negative else {}))
    run_dcmtk(writer.root, *command)
    expected = patients.scans[0].image.astype(int) - (1024 if negative else 0)
    assert np.array_equal(only(clinic).read_volume().voxels, expected)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_a_missing_decoder_is_named_with_its_extra(write, clinic, syntax):
    writer = write().write_series()
    rewrite(writer.root, lambda dataset: dataset.compress(syntax))
    line = read_without_extra(clinic)
    name = f"{writer.root}/IM0008: decoding {syntax.name} requires"
    assert line == f"DependencyError {name} pip install 'gitseg-tf[dicom]'"


@pytest.mark.skipif(not shutil.which("dcmcjpeg"), reason="needs the encoders of dcmtk")
def test_lossless_jpeg_needs_the_extra(write, clinic):
    run_dcmtk(write().write_series().root, "dcmcjpeg", "+e1")
    line = read_without_extra(clinic)
    assert line.endswith(f"IM0008: decoding {JPEGLosslessSV1.name} requires pip install 'gitseg-tf[dicom]'")


def test_rle_and_deflated_need_no_extra(write, clinic, patients):
    def compress(dataset):
        if str(dataset.SOPInstanceUID).endswith(("0", "2", "4", "6", "8")):
            dataset.compress(RLELossless)
        else:
            dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    rewrite(write().write_series().root, compress)
    assert read_without_extra(clinic) == str(patients.scans[0].image.sum())


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
def test_damaged_compressed_pixels_are_named(write, clinic, refusal, syntax):
    def damage(dataset):
        dataset.compress(syntax)
        frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
        dataset.PixelData = pydicom.encaps.encapsulate([frame[: len(frame) // 3]])

    writer = write().write_series()
    rewrite(writer.root, damage)
    assert f"{writer.root}/IM0008: its pixels cannot be read (" in refusal(only(clinic).read_volume)


def test_a_compression_that_no_decoder_reads_is_named(write, clinic, refusal):
    def video(dataset):
        dataset.file_meta.TransferSyntaxUID = MPEG2MPML
        dataset.PixelData = pydicom.encaps.encapsulate([b"\0\0\1\xb3"])
        dataset["PixelData"].VR = "OB"

    rewrite(write().write_series().root, video)
    assert f"{MPEG2MPML.name} is not supported; export it uncompressed" in refusal(only(clinic).read_volume)

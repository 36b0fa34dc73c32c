"""Sizes in headers are checked before memory is allocated for them."""

import gzip
import io
import struct
import tracemalloc
import zlib

import google_crc32c
import nibabel
import numpy as np
import pytest
from helpers.damage import png_bomb

from gitseg_tf.data.readers.nifti.files import open_image
from gitseg_tf.data.readers.png import png_size, read_png
from gitseg_tf.data.readers.registry import read_file
from gitseg_tf.data.tfrecords.codec import check_lengths, decode_example, encode_example, read_record
from gitseg_tf.data.tfrecords.example import decode_scan, serialize_scan
from gitseg_tf.data.volume import Annotation, Volume
from gitseg_tf.labels import LabelSet

MOST = 30 << 20


@pytest.fixture
def little_memory():
    """Fails if Python and numpy allocate more than 30 MB."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MOST


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("size", [(32767, 32767, 32767), (2000, 2000, 1)])
def test_a_nifti_header_that_promises_more_than_the_file_has(tmp_path, refusal, little_memory, compressed, size):
    path = tmp_path / "scan.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.float64), np.eye(4)), path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<8h", content, 40, 3, *size, 1, 1, 1, 1)
    path = tmp_path / f"scan.nii{'.gz' if compressed else ''}"
    path.write_bytes(gzip.compress(bytes(content)) if compressed else content)
    sizes = " x ".join(map(str, size))
    assert f"is too small for the {sizes} voxels" in refusal(lambda: open_image(path).read())


def test_a_nifti_file_of_zeros_is_not_taken_for_it(tmp_path):
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((300, 300, 60), np.float32), np.eye(4)), path)
    assert open_image(path).read().shape == (300, 300, 60)


@pytest.mark.parametrize("size", [(2**15, 2**15), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1)])
def test_a_png_header_that_promises_more_than_the_file_has(tmp_path, refusal, little_memory, size):
    path = tmp_path / "slice.png"
    path.write_bytes(png_bomb(*size))
    assert png_size(path.read_bytes()) == size[::-1]
    assert f"is too small for the {size[0]} x {size[1]} pixels" in refusal(read_png, path)


def record(size):
    length = struct.pack("<Q", size)
    crc = google_crc32c.value(length)
    return length + struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF) + b"x" * 100


@pytest.mark.parametrize("size", [97, 2**31, 2**40, 2**63, 2**64 - 1])
def test_a_record_that_is_longer_than_its_file(little_memory, size):
    """TensorFlow 2.21 ends the process if it reads such a record of 2^40 bytes."""
    for read in (check_lengths, lambda file: read_record(file, 0)):
        with pytest.raises(ValueError, match="record 0 is damaged"):
            read(io.BytesIO(record(size)))


def test_masks_that_inflate_to_more_than_their_volume(little_memory):
    volume = Volume(np.zeros((2, 4, 4), np.uint16), (3.0, 1.0, 1.0))
    annotation = Annotation.complete(np.zeros((1, 2, 4, 4), bool))
    features = decode_example(serialize_scan("a", "a", volume=volume, annotation=annotation, labels=LabelSet.of("x")))
    packer = zlib.compressobj()
    block = bytes(1 << 20)
    bomb = b"".join([*(packer.compress(block) for _ in range(200)), packer.flush()])
    with pytest.raises(ValueError, match="do not have 32 bytes"):
        decode_scan(encode_example(features | {"mask/bits": bomb}))


def test_intensities_that_overflow_float32_are_refused(tmp_path, refusal):
    path = tmp_path / "scan.nii"
    image = nibabel.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4))
    nibabel.save(image, path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<f", content, 112, 3e38)  # scl_slope
    path.write_bytes(content)
    (scan,) = read_file(path).scans
    assert "contains values up to 2.1e+39; fix the scaling" in refusal(scan.read_volume)

"""Damaged NIfTI files, and dataset.json of nnU-Net and the Decathlon."""

import gzip
import struct

import nibabel
import numpy as np
import pytest
from helpers.damage import Tally, damaged_bytes, damaged_json, generator

from gitseg_tf.data.readers.registry import read_cohort, read_file
from gitseg_tf.data.tfrecords.convert import convert
from gitseg_tf.data.tfrecords.dataset import is_dataset, load_dataset
from gitseg_tf.errors import DataError

pytestmark = pytest.mark.slow

AFFINE = np.diag([-1.5, -1.5, -3.0, 1.0])
HEADER = 348
TABLE = b'<Label Key="1" Red="1">liver</Label><Label Key="2"><![CDATA[spleen]]></Label>'


def saved(path, voxels, table=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(voxels, AFFINE)
    if table:
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(0, table))
    nibabel.save(image, path)
    return path.read_bytes()


def voxels_of(path):
    cohort = read_file(path)
    if cohort.broken:
        raise DataError(cohort.broken[0][1])
    for scan in cohort.scans:
        volume = scan.read_volume()
        assert len(volume.percentiles)
    return cohort


def headers(rng, content):
    """A damaged header: bytes anywhere, or one field with an extreme value."""
    if rng.random() < 0.4:
        return damaged_bytes(rng, content, 0, HEADER + 4)
    data = bytearray(content)
    kind = rng.integers(5)
    extreme = [-32768, -1, 0, 1, 2, 3, 7, 8, 9, 255, 32767]
    if kind == 0:  # dim
        struct.pack_into("<h", data, 40 + 2 * int(rng.integers(8)), int(rng.choice(extreme)))
    elif kind == 1:
        struct.pack_into("<8h", data, 40, 3, *(int(rng.choice([32767, 1, 0, -1, 20])) for _ in range(7)))
    elif kind == 2:  # datatype, bitpix
        struct.pack_into(
            "<h",
            data,
            70 + 2 * int(rng.integers(2)),
            int(rng.choice([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1536, 1792, 2048, 2304, -1])),
        )
    elif kind == 3:  # floats: pixdim, vox_offset, scl_slope, quaternion, sform
        place = int(
            rng.choice(
                [
                    76 + 4 * int(rng.integers(8)),
                    108,
                    112,
                    116,
                    256 + 4 * int(rng.integers(6)),
                    280 + 4 * int(rng.integers(12)),
                ]
            )
        )
        struct.pack_into(
            "<f", data, place, float(rng.choice([np.nan, np.inf, -np.inf, 0, -1, 1e-30, 3e38, 351, 352, 1e9, -1e9]))
        )
    else:  # codes, extension
        place = int(rng.choice([252, 254, 68, 123, 344, 348, 352]))
        data[place : place + 4] = rng.bytes(4)
    return bytes(data)


def test_headers(tmp_path):
    rng, tally = generator(10), Tally()
    voxels = rng.integers(0, 500, (6, 5, 4)).astype(np.int16)
    plain = saved(tmp_path / "a.nii", voxels)
    floats = saved(tmp_path / "b.nii", rng.normal(size=(6, 5, 4, 2)).astype(np.float32))
    named = saved(tmp_path / "c.nii", voxels, TABLE)
    for n in range(900):
        content = (plain, floats, named)[n % 3]
        damaged = headers(rng, content) if n % 4 else damaged_bytes(rng, content)
        path = tmp_path / f"scan.nii{'.gz' if n % 2 else ''}"
        path.write_bytes(gzip.compress(damaged, 1) if n % 2 else damaged)
        tally((n, damaged[:420].hex()), voxels_of, path)
        path.unlink()
    tally.check(900, accepted=100, refused=100)


def test_compressed_streams(tmp_path):
    rng, tally = generator(11), Tally()
    voxels = rng.integers(0, 500, (6, 5, 4)).astype(np.int16)
    content = saved(tmp_path / "a.nii.gz", voxels)
    for _n in range(400):
        path = tmp_path / "scan.nii.gz"
        path.write_bytes(damaged_bytes(rng, content))
        tally(path.read_bytes().hex(), voxels_of, path)
    tally.check(400, accepted=1, refused=100)


NNUNET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1, "tumor": [1, 2], "ignore": 3},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}
DECATHLON = {
    "name": "x",
    "modality": {"0": "MRI"},
    "labels": {"0": "background", "1": "liver", "2": "spleen"},
    "numTraining": 2,
    "tensorImageSize": "3D",
    "training": [{"image": "./imagesTr/a.nii", "label": "./labelsTr/a.nii"}],
}


def test_dataset_json_of_nnunet_and_the_decathlon(tmp_path):
    rng, tally = generator(12), Tally()
    root = tmp_path / "nnunet"
    for name in ("a", "b"):
        saved(root / "imagesTr" / f"{name}.nii", rng.integers(0, 500, (6, 5, 4)).astype(np.int16))
        saved(root / "labelsTr" / f"{name}.nii", rng.integers(0, 3, (6, 5, 4)).astype(np.uint8))

    def read():
        for scan in read_cohort(root).scans:
            scan.read_annotation()

    for n in range(900):
        (root / "dataset.json").write_bytes(damaged_json(rng, (NNUNET, DECATHLON)[n % 2]))
        tally((root / "dataset.json").read_bytes()[:200], read)
    tally.check(900, accepted=50, refused=100)


def test_folders_convert_completely_or_not_at_all(tmp_path):
    rng, tally = generator(13), Tally()
    root = tmp_path / "nnunet"
    for name in ("a", "b"):
        saved(root / "imagesTr" / f"{name}.nii", rng.integers(0, 500, (6, 5, 4)).astype(np.int16))
        saved(root / "labelsTr" / f"{name}.nii", rng.integers(0, 3, (6, 5, 4)).astype(np.uint8), TABLE)
    files = sorted(root.rglob("*.nii"))
    for n in range(120):
        path = files[rng.integers(len(files))]
        content = path.read_bytes()
        path.write_bytes(headers(rng, content) if n % 2 else damaged_bytes(rng, content))
        out = tmp_path / f"records{n}"
        tally(path, convert, root, out, folds=2, workers=1)
        if is_dataset(out):
            load_dataset(out, verify=True)
        assert not list(out.glob(".*.tmp"))
        path.write_bytes(content)
    tally.check(120, accepted=5, refused=20)

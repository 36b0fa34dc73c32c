"""Damaged NRRD and MetaImage files."""

import numpy as np
import pytest
from helpers.damage import Tally, damaged_bytes, generator

from gitseg_tf.data.readers.registry import read_file
from gitseg_tf.errors import DataError

sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is missing; pip install 'gitseg-tf[itk]'")
pytestmark = pytest.mark.slow


def voxels_of(path):
    cohort = read_file(path)
    if cohort.broken:
        raise DataError(cohort.broken[0][1])
    assert len(cohort.scans[0].read_volume().percentiles)


@pytest.mark.parametrize(("suffix", "compressed"), [(".nrrd", False), (".nrrd", True), (".mha", False), (".mha", True)])
def test_files(tmp_path, suffix, compressed):
    rng, tally = generator(30), Tally()
    path = tmp_path / f"scan{suffix}"
    image = sitk.GetImageFromArray(rng.integers(0, 500, (6, 5, 4)).astype(np.int16))
    sitk.WriteImage(image, str(path), useCompression=compressed)
    content = path.read_bytes()
    for n in range(250):
        damaged = damaged_bytes(rng, content, 0, 300) if n % 3 else damaged_bytes(rng, content)
        path.write_bytes(damaged)
        tally((n, damaged[:420].hex()), voxels_of, path)
    tally.check(250, accepted=20, refused=50)

"""Probabilities as NIfTI, read back with nibabel."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest

from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.inference.prediction import Prediction
from gitseg_tf.inference.writers.nifti import NiftiMasks
from gitseg_tf.inference.writers.probabilities import probability_files, write_probabilities
from gitseg_tf.labels import UWMGI


def random_probabilities(shape):
    random = np.random.default_rng(0)
    values = random.random((3, *shape), np.float32)
    values[0, 0, 0, :5] = (0, 1, 0.5, np.nextafter(np.float32(0.5), np.float32(0)), 0.25)
    return values


@pytest.fixture
def scan(tiny_cohort):
    return next(scan for scan in read_cohort(tiny_cohort.root).scans if scan.id == "case5_day0")  # has a gap


def test_the_files_give_the_probabilities_to_the_stated_rounding(scan, tmp_path):
    values = random_probabilities(scan.shape)
    write_probabilities(tmp_path, scan, values, UWMGI)
    files = sorted((tmp_path / scan.id / "probabilities").iterdir())
    assert [path.name for path in files] == [f"{name}.nii.gz" for name in sorted(UWMGI.names)]
    assert probability_files(tmp_path, scan.id) == files and probability_files(tmp_path, "case1") == []
    for name, expected in zip(UWMGI.names, values, strict=True):
        image = nibabel.load(tmp_path / scan.id / "probabilities" / f"{name}.nii.gz")
        stored = image.get_fdata().transpose(2, 1, 0)
        present = np.array(scan.numbers) - scan.numbers[0]
        difference = expected - stored[present]
        assert difference.min() >= 0 and difference.max() < 1 / 32768
        assert not np.delete(stored, present, 0).any() and len(stored) == 10
        for threshold in (0.25, 0.5, 0.75):
            assert np.array_equal(stored[present] >= threshold, expected >= threshold)
        assert image.header.get_zooms() == pytest.approx(scan.spacing[::-1])


def test_the_grid_is_that_of_the_masks_and_they_are_not_taken_as_labels(nifti, tiny_cohort, tmp_path):
    truth = tiny_cohort["case1_day0"]
    path = tmp_path / "in/anna/image.nii.gz"
    nifti.save(path, nifti.stored_as(truth.image, "PIL"), nifti.affine_of(truth, "PIL"))
    cohort = read_cohort(tmp_path / "in")
    (scan,) = cohort.scans
    values = random_probabilities(scan.shape)
    NiftiMasks(cohort, tmp_path / "out", UWMGI).write(scan, scan.read_volume(), Prediction(values >= 0.5))
    write_probabilities(tmp_path / "out", scan, values, UWMGI)
    for k, name in enumerate(UWMGI.names):
        mask = nibabel.load(tmp_path / f"out/anna/{name}.nii.gz")
        image = nibabel.load(tmp_path / f"out/anna/probabilities/{name}.nii.gz")
        assert np.array_equal(image.affine, mask.affine) and np.array_equal(mask.affine, nibabel.load(path).affine)
        assert np.array_equal(image.get_fdata() >= 0.5, mask.get_fdata() > 0), k
    again = read_cohort(tmp_path / "out")
    assert [scan.id for scan in again.scans] == ["anna"] and set(again.labels.names) == set(UWMGI.names)
    assert replace(again.scans[0], source=None).annotated == again.labels.names

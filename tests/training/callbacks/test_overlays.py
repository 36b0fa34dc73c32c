import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.configs import tiny_config

from gitseg_tf.data.tfrecords.convert import convert
from gitseg_tf.labels import UWMGI
from gitseg_tf.training.callbacks.overlays import Overlays, overlay_picture, overlay_slices

pytestmark = pytest.mark.slow

ORANGE, BLUE, GREEN = UWMGI.colors


def configured(**changes):
    return tiny_config(**{"data.fold": 1} | changes)


def has(picture, color):
    return (picture == np.array(color)).all(-1).any()


@pytest.fixture(scope="module")
def shown(tiny_dataset):
    """The slices of the fold that are shown as overlays."""
    return overlay_slices(tiny_dataset, configured())


def test_overlays_show_the_slice_with_the_most_labels(shown, tiny_dataset, tiny_cohort):
    assert {name.split(",")[0] for name in shown} <= {scan.id for scan in tiny_dataset.scans_of([1])}
    for name, (image, mask) in shown.items():
        scan = tiny_cohort[name.split(",")[0]]
        depth = len(scan.numbers)
        # The stomach is on the last slice but one, as are all other labels.
        assert name == f"{scan.id}, slice {depth - 1} of {depth}"
        assert tiny_cohort.marks_in(image)[1] == scan.marks[depth - 2] and (mask.any((0, 1))).all()


def test_the_shown_slices_do_not_depend_on_the_sharding(shown, tiny_cohort, tiny_dataset, tmp_path):
    first, second = tiny_dataset.scans_of([1])[:2]
    voxels = 2 * sum(math.prod(scan.shape) for scan in (first, second))
    sharded = convert(tiny_cohort.root, tmp_path / "dataset", folds=3, seed=0, workers=1, shard_bytes=voxels)
    # One shard has several scans, so that scans of other shards come in between.
    scans = [len(shard.scans) for shard in sharded.shards_of([1])]
    assert len(scans) > 1 and max(scans) > 1
    others = overlay_slices(sharded, configured())
    assert others.keys() == shown.keys()
    assert all(np.array_equal(image, shown[name][0]) for name, (image, _) in others.items())
    patches = configured(model__architecture="unet3d", data__patch=[4, 32, 32])
    of_one, of_several = (overlay_slices(dataset, patches) for dataset in (tiny_dataset, sharded))
    assert of_one.keys() == of_several.keys()


def test_every_patient_is_shown_before_any_is_repeated(tiny_dataset):
    cases = {scan.case for scan in tiny_dataset.scans_of([1])}
    assert len(tiny_dataset.scans_of([1])) > len(cases)
    shown = overlay_slices(tiny_dataset, configured(), count=len(cases))
    assert {name.split("_")[0] for name in shown} == cases


def test_the_shown_slices_do_not_depend_on_the_seed(shown, tiny_dataset):
    other = overlay_slices(tiny_dataset, configured(seed=1))
    assert shown.keys() == other.keys()
    assert all(np.array_equal(shown[name][0], other[name][0]) for name in shown)


def test_excluded_scans_are_not_shown(shown, tiny_dataset):
    first = next(iter(shown)).split(",")[0]
    assert not any(first in name for name in overlay_slices(tiny_dataset, configured(data__exclude_scans=[first])))


def test_a_picture_has_the_reference_on_the_left_and_the_prediction_on_the_right():
    reference, predicted = np.zeros((2, 32, 32, 3), bool)
    reference[4:12, 6:20, 0] = predicted[15:25, 10:20, 2] = True
    picture = overlay_picture(np.full((32, 32), 0.5), reference, predicted, UWMGI.colors)
    assert picture.shape == (256, 512, 3) and picture.dtype == np.uint8
    left, right = picture[:, :256], picture[:, 256:]
    orange, green = (left == ORANGE).all(-1), (right == GREEN).all(-1)
    rows, columns = np.nonzero(orange)
    # Enlarged eight times, the outline is the outermost pixels of rows 4 to 11 and columns 6 to 19.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (32, 95, 48, 159)
    assert orange.sum() == 2 * (64 + 112) - 4 and green.sum() == 2 * (80 + 80) - 4
    assert not has(left, GREEN) and not has(right, ORANGE) and not has(picture, BLUE)
    assert (picture[:20] == 128).all()


@pytest.mark.parametrize(("architecture", "patch"), [("unet", None), ("unet3d", [4, 32, 32])])
def test_predictions_above_the_threshold_are_outlined(tiny_dataset, architecture, patch):
    def network(windows, training):
        assert not training
        logits = np.full((*windows.shape[:-1], 3), -5.0, np.float32)
        logits[..., 8:20, 8:20, 1] = -0.5
        return tf.constant(logits)

    for threshold, shown in ((0.5, False), (0.3, True)):
        config = configured(model__architecture=architecture, data__patch=patch, evaluation__threshold=threshold)
        overlays = Overlays(tiny_dataset, config)
        overlays.set_model(network)
        overlays.on_train_begin()
        overlays.on_test_end()
        assert overlays.pictures
        for picture in overlays.pictures.values():
            left, right = picture[:, :256], picture[:, 256:]
            assert has(left, ORANGE) and has(left, BLUE) and has(left, GREEN)
            assert has(right, BLUE) == shown
            assert not has(right, ORANGE) and not has(right, GREEN)


def test_the_logits_of_a_network_with_several_outputs_are_shown(tiny_dataset):
    overlays = Overlays(tiny_dataset, configured())
    overlays.set_model(lambda windows, training: {"logits": tf.fill([*windows.shape[:-1], 3], 2.0), "presence": None})
    overlays.on_train_begin()
    overlays.on_test_end()
    assert all(has(picture[:, 256:], GREEN) for picture in overlays.pictures.values())

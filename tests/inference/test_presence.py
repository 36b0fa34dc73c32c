"""Presence gating: labels are removed from slices that do not show them according to the presence head."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.configs import tiny_config
from helpers.known_networks import KINDS, labeled

from gitseg_tf.config import Config, save_config
from gitseg_tf.data.pipeline.batches import validation_windows
from gitseg_tf.data.volume import Volume
from gitseg_tf.errors import ConfigError
from gitseg_tf.evaluation.tuning.search import PairScores
from gitseg_tf.evaluation.tuning.tune import tune
from gitseg_tf.export.graph import make_segment
from gitseg_tf.export.savedmodel import export
from gitseg_tf.inference.ensemble import Member
from gitseg_tf.inference.predictor import Predictor, load_predictor
from gitseg_tf.models.build import build_model
from gitseg_tf.runs.folder import best_weights_path
from gitseg_tf.runs.run import load_run

SPACING = (3.0, 1.5, 1.5)
BRIGHTNESS = np.array([0, 200, 400, 600, 1000])
BASE = {
    "data.input_size": [32, 64],
    "data.window_slices": 3,
    "data.crop": "none",
    "data.intensity": {"kind": "window", "low": 0, "high": 1000},
    "evaluation.batch_size": 2,
    "model.presence_head": True,
}
GATES = {"postprocess.small_bowel.min_presence": 0.3, "postprocess.stomach.min_presence": 0.5}
VIEWS = {
    "one view": {},
    "views": {"evaluation.tta.flip": True, "evaluation.tta.scales": [0.75, 1.3]},
    "tiles": {"data.pixel_mm": 0.75},
    "smoothed": {"postprocess.large_bowel.smooth_mm": 0.1},
}


def headed(presence, probability=0.9):
    """A network with one probability everywhere, whose head returns `presence` of the middle slice's brightness."""

    def network(windows):
        middle = tf.reduce_max(windows[..., 1], [1, 2], keepdims=True)[..., None]
        shape = tf.concat([tf.shape(windows)[:3], [3]], 0)
        return tf.concat([tf.fill(shape, probability), tf.broadcast_to(presence(middle), shape)], -1)

    return network


def scan():
    return Volume(np.broadcast_to(BRIGHTNESS[:, None, None], (5, 40, 70)).astype(np.uint16), SPACING)


def config_of(**settings):
    return labeled(BASE | GATES | {key.replace("__", "."): value for key, value in settings.items()})


def shown(masks):
    """By label, the slices that are full; no slice may be partly filled."""
    full, some = masks.all((2, 3)), masks.any((2, 3))
    assert (full == some).all()
    return [np.flatnonzero(label).tolist() for label in full]


@pytest.mark.parametrize("view", VIEWS)
def test_slices_without_presence_are_removed_in_every_kind_of_prediction(view):
    config = labeled(BASE | GATES | VIEWS[view])
    predictor = Predictor([Member("a", headed(lambda middle: middle), config, has_presence=True)])
    volume = scan()
    expected = [[0, 1, 2, 3, 4], [2, 3, 4], [3, 4]]
    assert shown(predictor.predict(volume).masks) == expected
    assert shown(predictor.predict_levels(volume).masks) == expected
    prediction = predictor.predict(volume, probabilities=True)
    assert shown(prediction.masks) == expected
    np.testing.assert_allclose(prediction.probabilities, np.full((3, 5, 40, 70), 0.9), atol=1e-6)
    assert predictor.predict_levels(volume).levels.shape == (3, 5, 40, 70)
    segment = tf.function(make_segment(headed(lambda middle: middle), config), autograph=False)
    given = tf.constant(volume.voxels[..., None], tf.float32), tf.constant(SPACING), tf.range(5, dtype=tf.int64)
    assert shown(np.moveaxis(segment(*given).numpy() > 0, -1, 0)) == expected


def test_presence_is_the_mean_of_the_members_that_have_the_head():
    """Presence 0.2, 0.6 and no head: on average 0.4, where counting the third as 0 would give 0.27."""
    members = [
        Member("a", headed(lambda middle: 0 * middle + 0.2), config_of(), has_presence=True),
        Member(
            "b", headed(lambda middle: 0 * middle + 0.6, 0.3), config_of(data__input_size=[64, 64]), has_presence=True
        ),
        Member("c", lambda windows: headed(lambda m: m, 0.6)(windows)[..., :3], config_of()),
    ]
    predictor = Predictor(members)
    probabilities, presence = predictor.measure(scan())
    np.testing.assert_allclose(probabilities, np.full((3, 5, 40, 70), 0.6), atol=1e-6)
    np.testing.assert_allclose(presence, np.full((3, 5), 0.4), atol=1e-6)
    assert shown(predictor.predict(scan()).masks) == [[*range(5)], [*range(5)], []]


def test_weights_of_members_do_not_weigh_their_presence():
    """Probabilities 0.9 and 0.5 with shares 3 to 1 give 0.8; a member whose share is 0 still votes on the presence."""
    first, second = headed(lambda m: 0 * m + 0.2, 0.9), headed(lambda m: 0 * m + 0.8, 0.5)
    for other in (config_of(), config_of(data__input_size=[64, 64])):  # with a common view, and with two views
        members = [
            Member("a", first, config_of(), weights=(3.0, 3.0, 1.0), has_presence=True),
            Member("b", second, other, weights=(1.0, 1.0, 0.0), has_presence=True),
        ]
        probabilities, presence = Predictor(members).measure(scan())
        expected = np.float32([0.8, 0.8, 0.9])[:, None, None, None] * np.ones((3, 5, 40, 70), np.float32)
        np.testing.assert_allclose(probabilities, expected, atol=1e-6)
        np.testing.assert_allclose(presence, np.full((3, 5), 0.5), atol=1e-6)


def test_without_a_threshold_the_head_changes_nothing():
    member = Member("a", headed(lambda middle: 0 * middle), labeled(BASE), has_presence=True)
    assert shown(Predictor([member]).predict(scan()).masks) == [[*range(5)]] * 3
    assert Predictor([member]).measure(scan())[1] is None


def test_min_presence_is_refused_without_a_presence_head(refusal):
    line = refusal(Predictor, [Member("runs/a", headed(lambda m: m), config_of())])
    assert "postprocess.small_bowel.min_presence is 0.3, but the model has no presence head" in line
    line = refusal(config_of, model__presence_head=False)
    assert line.startswith(
        "postprocess.small_bowel.min_presence is 0.3, but the network has no presence head for axial"
    )
    assert "no presence head for axial slices" in refusal(config_of, data__plane="coronal")
    with pytest.raises(ConfigError, match=r"postprocess\.default\.min_presence is 0\.2"):
        labeled(KINDS["3-D"] | {"postprocess.default.min_presence": 0.2})


def untrained(path, config: Config):
    """A run with random weights, whose presence heads differ from slice to slice."""
    path.mkdir(parents=True)
    save_config(config, path / "config.yaml")
    model = build_model(config)
    rng = np.random.default_rng(0)
    model.set_weights([weight + rng.normal(0, 0.2, weight.shape) for weight in model.get_weights()])
    best_weights_path(path).parent.mkdir()
    model.save_weights(best_weights_path(path))
    return load_run(path), model


@pytest.mark.slow
def test_the_export_gates_as_predict_does(tmp_path, refusal):
    settings = {"data.input_size": [32, 32], "data.crop": "body", "model.filters": 4, "model.levels": 3}
    config = labeled(BASE | settings | {"evaluation.threshold": 0.02})
    run, model = untrained(tmp_path / "run", config)
    rng = np.random.default_rng(1)
    image = (rng.random((6, 40, 40)) * np.linspace(100, 1000, 6)[:, None, None]).astype(np.uint16)
    volume = Volume(image, SPACING)
    presence = Predictor.of_run(run, presence=True).measure(volume)[1]
    least = np.sort(presence, 1)[:, 2:4].mean(1)  # between the third and the fourth slice of each label
    overrides = {f"postprocess.{name}.min_presence": float(least[k]) for k, name in enumerate(config.label_set.names)}
    free, gated = (load_predictor(run.path, overrides=o).predict(volume).masks for o in ({}, overrides))
    np.testing.assert_array_equal(gated, free & (presence >= least[:, None])[..., None, None])
    assert (gated.any((2, 3)) != free.any((2, 3))).any()

    save_config(labeled(BASE | settings | {"evaluation.threshold": 0.02} | overrides), run.path / "config.yaml")
    path = export(load_run(run.path), force=True)
    served = tf.saved_model.load(str(path)).signatures
    masks = served["segment_volume"](image=tf.constant(image[..., None], tf.float32), spacing=tf.constant(SPACING))
    assert (np.moveaxis(masks["masks"].numpy(), -1, 0) == gated).mean() >= 0.9999
    np.testing.assert_array_equal(load_predictor(path).predict(volume).masks, gated)
    windows = rng.random((2, 32, 32, 3)).astype(np.float32)
    outputs = served["serving_default"](windows=tf.constant(windows))
    expected = model(windows, training=False)
    for name, head in (("probabilities", "logits"), ("presence", "presence")):
        np.testing.assert_allclose(outputs[name], tf.sigmoid(expected[head]), atol=1e-4)


@pytest.mark.slow
def test_tune_gets_the_presence_of_each_slice(tiny_dataset, tmp_path, monkeypatch):
    """The head of the run is searched, although no label has min_presence yet."""
    config = tiny_config(tiny_dataset.labels, tiny_dataset.channels, model__presence_head=True)
    known = {"trained_on": [], "dataset": tiny_dataset.source["fingerprint"]}
    run, model = untrained(tmp_path / "run", config.model_copy(update={"provenance": known}))
    added, add = [], PairScores.add

    def kept(pairs, probabilities, truth, numbers, spacing, *, presence):
        added.append((probabilities.shape[:2], presence))
        add(pairs, probabilities, truth, numbers, spacing, presence=presence)

    monkeypatch.setattr(PairScores, "add", kept)
    tune(run, tiny_dataset)
    assert [presence.shape for _, presence in added] == [shape for shape, _ in added]
    windows = next(iter(validation_windows(tiny_dataset, config)))[0]
    expected = tf.sigmoid(model(windows, training=False)["presence"]).numpy()
    np.testing.assert_allclose(added[0][1][:, :4].T, expected[:4], atol=1e-5)
    assert "min_presence" in (run.path / "postprocess.yaml").read_text()

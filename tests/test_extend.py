"""The code in docs/how-to/extend.md runs unchanged and registers one custom component of each kind."""

import re
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import gitseg_tf
from gitseg_tf.labels import UWMGI, LabelSet

PAGE = (Path(__file__).parents[1] / "docs" / "how-to" / "extend.md").read_text(encoding="utf-8")
SECTIONS = dict(section.split("\n", 1) for section in PAGE.split("\n## ")[1:])
REGISTRIES = re.findall(r"`(gitseg_tf[\w.]+)\.([A-Z_0-9]+)` \|", PAGE)


def registries():
    names = [*REGISTRIES, ("gitseg_tf.inference.exported", "RUNTIMES")]
    return [getattr(import_module(module), name) for module, name in names]


@contextmanager
def temporary_registrations():
    """On exit, remove the names registered within the context."""
    before = [(registry, registry.names()) for registry in registries()]
    try:
        yield
    finally:
        for registry, names in before:
            for name in set(registry.names()) - set(names):
                registry.remove(name)


@pytest.fixture
def run_section():
    """run_section("A backbone", ...) runs the code of these sections, and returns its variables."""
    with ExitStack() as stack:
        stack.enter_context(temporary_registrations())

        def run(*titles):
            names = {"__name__": "my_extensions"}
            for title in titles:
                (code,) = re.findall(r"^```python\n(.*?)^```", SECTIONS[title], re.MULTILINE | re.DOTALL)
                exec(compile(code, title, "exec"), names)
            return names

        yield run


def test_every_registry_has_a_section():
    links = re.findall(r"^\| \[[\w -]+\]\(#([\w-]+)\) \|", PAGE, re.MULTILINE)
    assert links == [title.lower().replace(" ", "-") for title in SECTIONS]
    assert len(REGISTRIES) == len(SECTIONS)


@pytest.mark.parametrize(
    ("section", "shape"),
    [("A backbone", (64, 64, 2)), ("A decoder", (64, 64, 2)), ("A 3-D network", (16, 32, 32, 2))],
)
def test_a_custom_network_is_trained(run_section, section, shape):
    import tensorflow as tf

    model = run_section(section)["model"]
    assert model.output_shape == (None, *shape)
    windows = tf.random.stateless_uniform([2, *model.input_shape[1:]], [0, 1])
    with tf.GradientTape() as tape:
        cost = tf.reduce_mean(model(windows, training=True) ** 2)
    assert all(gradient is not None for gradient in tape.gradient(cost, model.trainable_variables))


def test_a_custom_loss_is_added_to_the_others_and_skips_unannotated_labels(run_section):
    names = run_section("A loss")
    rng = np.random.default_rng(0)
    mask, logits = (rng.random((2, 8, 8, 3)) > 0.5).astype(np.float32), rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    without = names["build_loss"](gitseg_tf.load_config().training.loss)
    error = np.abs(1 / (1 + np.exp(-logits)) - mask)
    expected = np.where(error < 0.3, error**2 / 2, 0.3 * (error - 0.15)).mean((1, 2, 3))
    assert np.allclose(names["loss"](mask, logits) - without(mask, logits), 2 * expected, atol=1e-5)
    mask[..., 1] = -1
    other = logits.copy()
    other[..., 1] = 7
    assert np.allclose(names["loss"](mask, logits), names["loss"](mask, other))


def test_a_custom_reader_is_detected_and_converted(run_section, tmp_path):
    run_section("A reader")
    rng = np.random.default_rng(0)
    (tmp_path / "cohort").mkdir()
    for patient in range(2):
        image, liver = rng.integers(-1000, 1000, (3, 40, 48)), rng.random((3, 40, 48)) > 0.5
        np.savez(tmp_path / f"cohort/p{patient}_day0.npz", image=image, spacing=(3.0, 1.5, 1.25), Liver=liver)
    cohort = gitseg_tf.open_cohort(tmp_path / "cohort")
    assert (cohort.layout, cohort.labels.names) == ("npz", ("Liver",))
    scan = cohort.scans[1]
    assert np.array_equal(scan.read_volume().voxels, image) and scan.read_volume().voxels.dtype == np.int16
    assert np.array_equal(scan.read_annotation().masks[0], liver)
    dataset = gitseg_tf.convert(tmp_path / "cohort", tmp_path / "records", folds=2, workers=1)
    assert dataset.labels.names == ("Liver",)
    assert {scan.case for shard in dataset.shards for scan in shard.scans} == {"p0", "p1"}
    labeled = gitseg_tf.open_cohort(tmp_path / "cohort", LabelSet.from_tree([{"name": "organ", "aliases": ["liver"]}]))
    assert labeled.labels.names == ("organ",) and labeled.scans[0].read_annotation().masks.any()


def test_the_output_of_a_custom_writer_can_be_read(run_section, tiny_cohort, tmp_path):
    run_section("A prediction format", "A reader")
    from gitseg_tf.inference.predictor import Prediction
    from gitseg_tf.inference.writers.registry import open_writer, predicted_scans

    cohort = gitseg_tf.open_cohort(tiny_cohort.root)
    with open_writer("npz", cohort, tmp_path / "out", UWMGI) as writer:
        for scan in cohort.scans[:2]:
            writer.write(scan, scan.read_volume(), Prediction(scan.read_annotation().masks))
    assert predicted_scans("npz", tmp_path / "out") == [scan.id for scan in cohort.scans[:2]]
    again = gitseg_tf.open_cohort(tmp_path / "out", UWMGI)
    for scan, written in zip(cohort.scans, again.scans, strict=False):
        assert np.array_equal(written.read_annotation().masks, scan.read_annotation().masks)
        assert np.array_equal(written.read_volume().voxels, scan.read_volume().voxels)


def test_a_custom_export_format_contains_the_network(run_section, tmp_path):
    import tensorflow as tf

    from gitseg_tf.inference.exported import exported_file
    from gitseg_tf.inference.runtimes import open_network

    names = run_section("A backbone", "An export format")
    model, file = names["model"], tmp_path / "model.pb"
    file.write_bytes(names["FROZEN"].convert(model, None))
    assert exported_file(tmp_path) == file
    windows = np.random.default_rng(0).random((2, *model.input_shape[1:]), np.float32)
    network = open_network(file, model.input_shape[1:], 2)
    assert np.allclose(network(windows), tf.sigmoid(model(windows)), atol=1e-5)

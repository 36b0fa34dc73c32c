"""Exported models as a server loads them, and the files in their folder."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy import ndimage

from gitseg_tf.cli import main
from gitseg_tf.client.client import read_masks
from gitseg_tf.config import load_config, save_config
from gitseg_tf.data.volume import Volume
from gitseg_tf.export.savedmodel import export
from gitseg_tf.inference.predictor import load_predictor
from gitseg_tf.labels import UWMGI, LabelSet
from gitseg_tf.models.build import build_model
from gitseg_tf.runs.folder import best_weights_path
from gitseg_tf.runs.run import Run, load_run
from gitseg_tf.training.callbacks.recorder import write_history

pytestmark = pytest.mark.slow

SPACING = (3.0, 1.5, 1.25)
PLANES = {"data.input_size": [32, 32], "model.filters": 4, "evaluation.batch_size": 4, "evaluation.threshold": 0.5}
VOLUMES = {"data.input_size": [64, 64], "data.patch": [4, 32, 32], "model.architecture": "unet3d", "model.filters": 4}
POSTPROCESS = {
    "postprocess.large_bowel.smooth_mm": 3.0,
    "postprocess.small_bowel.fill_holes": True,
    "postprocess.small_bowel.min_component_ml": 0.2,
    "postprocess.small_bowel.max_gap_mm": 6.0,
    "postprocess.stomach.keep_largest_component": True,
    "postprocess.stomach.threshold": 0.45,
}
# Blocks the import of Keras and gitseg; the C++ server loads and runs a model in the same way.
SESSION = """
import sys
sys.modules.update(dict.fromkeys(["gitseg_tf", "keras", "tf_keras", "cv2"]))
import numpy as np
import tensorflow as tf
given = np.load(sys.argv[2], allow_pickle=True)
with tf.compat.v1.Session(graph=tf.Graph()) as session:
    signatures = tf.compat.v1.saved_model.load(session, ["serve"], sys.argv[1]).signature_def
    def run(name, output, **inputs):
        signature = signatures[name]
        return session.run(signature.outputs[output].name, {signature.inputs[k].name: v for k, v in inputs.items()})
    found = {"probabilities": run("serving_default", "probabilities", windows=given["windows"])}
    found["of_volume"] = run("segment_volume", "masks", image=given["image"], spacing=given["spacing"])
    try:
        run("segment_png", "masks", png_bytes=given["png_bytes"][:1] + b"?", spacing=given["spacing"])
    except tf.errors.InvalidArgumentError as error:
        found["refusal"] = str(error)
    found["of_png"] = run("segment_png", "masks", png_bytes=given["png_bytes"], spacing=given["spacing"])
np.savez(sys.argv[3], **found)
"""


@dataclass
class Exported:
    """A run with untrained weights, whose probabilities are around 0.5, and its export."""

    run: Run
    path: Path

    @cached_property
    def loaded(self):
        return tf.saved_model.load(str(self.path))

    @cached_property
    def predictor(self):
        return load_predictor(self.run.path)

    def served(self, name, **inputs):
        if "image" in inputs:
            inputs["image"] = np.asarray(inputs["image"], np.float32)
        (output,) = self.loaded.signatures[name](**{k: tf.constant(v) for k, v in inputs.items()}).values()
        return output.numpy()


def write_run(path, overrides, epochs_done=2, labels=UWMGI, channels=("mr",)):
    config = load_config(overrides={"training.epochs": 2, **overrides}).for_dataset(labels, channels)
    config = config.model_copy(update={"provenance": {"trained_on": ["case1", "case2"], "dataset": "abc"}})
    (path / "checkpoints").mkdir(parents=True)
    keras.utils.set_random_seed(0)
    model = build_model(config)
    head = [layer for layer in model.layers if layer.get_weights()][-1]
    kernel, bias = head.get_weights()
    head.set_weights([30 * kernel, 0 * bias])
    model.save_weights(str(best_weights_path(path)))
    save_config(config, path / "config.yaml")
    write_history(path, [{"epoch": k + 1, "loss": 1.0} for k in range(epochs_done)])
    return load_run(path)


@pytest.fixture(scope="module", params=["planes postprocessed", "volumes"])
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    network, _, postprocessed = request.param.partition(" ")
    settings = {"planes": PLANES, "volumes": VOLUMES}[network] | (POSTPROCESS if postprocessed else {})
    run = write_run(folder / "run", {"evaluation.batch_size": 3, **settings})
    return Exported(run, export(run, folder / "models"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    run = write_run(folder / "run", PLANES)
    return Exported(run, export(run, folder / "models"))


def smooth_image(shape, seed=0, top=2000):
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), (1, 3, 3), mode="wrap")
    return ((field - field.min()) / (np.ptp(field) or 1) * top).astype(np.uint16)


def pngs(image, dtype=np.uint16):
    return [cv2.imencode(".png", plane.astype(dtype))[1].tobytes() for plane in image]


def predicted(exported, image, numbers=None):
    volume = Volume(image, SPACING, () if numbers is None else tuple(numbers))
    return np.moveaxis(exported.predictor.predict(volume).masks, 0, -1)


def test_volumes_and_pngs_of_any_shape_match_predict(exported):
    inside = []
    for shape in ((7, 50, 64), (1, 33, 40), (9, 70, 31)):
        image = smooth_image(shape)
        expected = predicted(exported, image)
        masks = exported.served("segment_volume", image=image, spacing=SPACING)
        assert masks.dtype == np.uint8 and masks.shape == (*shape, 3)
        assert (masks == expected).mean() >= 0.999
        of_png = exported.served("segment_png", png_bytes=pngs(image), spacing=SPACING)
        np.testing.assert_array_equal(of_png, masks)
        inside.append(expected.mean())
    assert 0.05 < np.mean(inside) < 0.95


def test_slice_numbers_with_gaps_match_predict(exported):
    image, numbers = smooth_image((8, 40, 44), 1), np.array([1, 2, 3, 7, 8, 9, 10, 11])
    expected = predicted(exported, image, numbers)
    given = {"spacing": SPACING, "numbers": numbers}
    of_volume = exported.served("segment_volume_to_png", image=image, **given)
    # One gray picture per slice, the labels below each other.
    planes = np.stack([cv2.imdecode(np.frombuffer(png, np.uint8), -1) for png in of_volume])
    assert set(np.unique(planes)) == {0, 255} and planes.shape == (8, 3 * 40, 44)
    masks = np.moveaxis(planes.reshape(8, 3, 40, 44) // 255, 1, -1)
    assert (masks == expected).mean() >= 0.999
    assert [*exported.served("segment_png_to_png", png_bytes=pngs(image), **given)] == [*of_volume]
    assert (masks != exported.served("segment_volume", image=image, spacing=SPACING)).any()


def test_tiling_and_test_time_augmentation_match_predict(tmp_path):
    views = {"data.pixel_mm": 1.5, "evaluation.tta.flip": True, "evaluation.tta.scales": [0.8, 1.25]}
    run = write_run(tmp_path / "run", PLANES | views)
    tiled, image = Exported(run, export(run)), smooth_image((5, 70, 81), 4)
    expected = predicted(tiled, image)
    masks = tiled.served("segment_volume", image=image, spacing=SPACING)
    assert (masks == expected).mean() >= 0.999 and 0.05 < expected.mean() < 0.95
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"\[70 81\] pixels measure \[2100 121.5\] mm"):
        tiled.served("segment_volume", image=image, spacing=[3.0, 30.0, 1.5])
    extra = tiled.path / "assets.extra"
    assert json.loads((extra / "model.json").read_text())["views"] == {
        "overlap": 0.5,
        "flip": True,
        "scales": [0.8, 1.25],
    }
    card = (extra / "model_card.md").read_text()
    assert "horizontal flip, scale 0.8, scale 1.25" in card


def test_8_bit_pngs_are_segmented(plain):
    image = smooth_image((5, 40, 48), 2, top=9)
    masks = plain.served("segment_png", png_bytes=pngs(image, np.uint8), spacing=SPACING)
    np.testing.assert_array_equal(masks, predicted(plain, image))
    assert masks.any()


SLICES = pngs(smooth_image((2, 40, 48)))
COLOR = cv2.imencode(".png", np.zeros((40, 48, 3), np.uint8))[1].tobytes()


@pytest.mark.parametrize(
    ("name", "inputs", "expected"),
    [
        ("segment_png", {"png_bytes": [*SLICES, b"GIF89a"]}, "png_bytes[2] is not a PNG (6 bytes)"),
        ("segment_png", {"png_bytes": [b"", *SLICES]}, "png_bytes[0] is not a PNG (0 bytes)"),
        ("segment_png", {"png_bytes": [SLICES[0], SLICES[1][:200]]}, "png_bytes[1] is a truncated PNG"),
        (
            "segment_png",
            {"png_bytes": [SLICES[0] + b"\n", SLICES[1]]},
            "png_bytes[0] is a truncated PNG, or has bytes after its end",
        ),
        ("segment_png", {"png_bytes": [SLICES[0], COLOR]}, "png_bytes[1] has 3 channels"),
        ("segment_png", {"png_bytes": [SLICES[0], *pngs(smooth_image((1, 40, 47)))]}, "png_bytes[1] is [40 47]"),
        ("segment_png", {"png_bytes": np.array([], object)}, "png_bytes has 0 slices"),
        ("segment_volume", {"image": np.zeros((0, 40, 48), np.uint16)}, "image has shape [0 40 48 1]"),
        ("segment_volume", {"image": np.zeros((2, 0, 48), np.uint16)}, "image has shape [2 0 48 1]"),
        ("segment_volume", {"spacing": [3.0, 0.0, 1.5]}, "spacing is [3 0 1.5]"),
        ("segment_volume", {"spacing": [3.0, float("nan"), 1.5]}, "spacing is [3 nan 1.5]"),
        ("segment_volume", {"spacing": [3.0, 1.5]}, "spacing is [3 1.5]"),
        ("segment_volume", {"spacing": [3.0, 1.5, 1.5, 1.5]}, "spacing is [3 1.5 1.5"),
        ("segment_volume_to_png", {"numbers": [1, 2, 3]}, "numbers has 3 entries, but image has 2 slices"),
        ("segment_volume_to_png", {"numbers": [2, 2]}, "numbers is [2 2]"),
    ],
)
def test_an_invalid_request_gets_an_error_message_and_the_next_one_is_answered(plain, name, inputs, expected):
    image = {"segment_png": {"png_bytes": SLICES}}.get(name, {"image": smooth_image((2, 40, 48))})
    good = image | {"spacing": [3.0, 1.5, 1.5]} | ({"numbers": [4, 6]} if name.endswith("to_png") else {})
    bad = {
        key: tf.constant(value, tf.string) if key == "png_bytes" else value for key, value in (good | inputs).items()
    }
    bad = {key: tf.cast(value, tf.int64) if key == "numbers" else value for key, value in bad.items()}
    good = {key: np.array(value, np.int64) if key == "numbers" else value for key, value in good.items()}
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        plain.served(name, **bad)
    assert expected in error.value.message
    assert len(plain.served(name, **good)) == 2


def test_a_session_without_gitseg_and_keras_gives_the_same_results(exported, tmp_path):
    image = smooth_image((5, 40, 48))
    shape = exported.run.config.data.patch or exported.run.config.data.input_size
    windows = np.random.default_rng(0).random((2, *shape, 5 if len(shape) == 2 else 1), np.float32)
    given = {"windows": windows, "image": image.astype(np.float32), "spacing": np.float32(SPACING)}
    given["png_bytes"] = np.array(pngs(image), object)
    np.savez(tmp_path / "given.npz", **given)
    command = [sys.executable, "-c", SESSION, exported.path, tmp_path / "given.npz", tmp_path / "found.npz"]
    subprocess.run([str(part) for part in command], check=True, cwd=tmp_path)
    actual = np.load(tmp_path / "found.npz")
    assert "png_bytes[0] is not a PNG" in str(actual["refusal"]) or "is a truncated PNG" in str(actual["refusal"])
    expected = predicted(exported, image)
    assert (actual["of_volume"] == expected).mean() >= 0.999 and (actual["of_png"] == expected).mean() >= 0.999
    probabilities = exported.served("serving_default", windows=windows)
    np.testing.assert_allclose(actual["probabilities"], probabilities, atol=1e-5)


# Like the C++ server: only the graph checks the shapes of the inputs.
UNCHECKED = """
import json, sys
from functools import cache
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.config_pb2 import CallableOptions
session = tf.compat.v1.Session(graph=tf.Graph())
with session.graph.as_default():
    signatures = tf.compat.v1.saved_model.load(session, ["serve"], sys.argv[1]).signature_def
@cache
def callable_of(name, *keys):
    signature = signatures[name]
    (output,) = signature.outputs.values()
    options = CallableOptions(feed=[signature.inputs[key].name for key in keys], fetch=[output.name])
    return session._make_callable_from_options(options)
def run(name, **inputs):
    try:
        return callable_of(name, *inputs)(*inputs.values())[0].shape
    except tf.errors.InvalidArgumentError as error:
        return error.message.splitlines()[0]
image, spacing = np.zeros((2, 40, 48), np.float32), np.ones(3, np.float32)
windows = np.zeros([2, *(dim.size for dim in signatures["serving_default"].inputs["windows"].tensor_shape.dim[1:])])
png = np.array([b"?"], object)
volume = lambda *images: [run("segment_volume", image=one, spacing=spacing) for one in images]
given = {"spacing": spacing, "numbers": np.arange(2)}
pictures = lambda *images: [run("segment_volume_to_png", image=one, **given) for one in images]
print(json.dumps({
    "windows": [run("serving_default", windows=one.astype(np.float32))
                for one in (windows[0], windows[0, 0, 0, 0], windows[..., :0], windows[:0], windows[None], windows)],
    "volumes": volume(image[0], image[0, 0, 0], image[None], image[..., None, None], image, image[..., None]),
    "pictures": pictures(image[0], image[0, 0, 0], image[None], image[..., None, None], image, image[..., None]),
    "pngs": [run("segment_png", png_bytes=one, spacing=spacing) for one in (png[0], png[None], png)],
}))
"""


def test_tensors_of_the_wrong_rank_are_refused_without_crashing(exported):
    command = [sys.executable, "-c", UNCHECKED, str(exported.path)]
    completed = subprocess.run(command, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr[-2000:]
    responses = json.loads(completed.stdout.splitlines()[-1])
    shape = exported.run.config.data.patch or exported.run.config.data.input_size
    network = " ".join(map(str, [*shape, 1 if len(shape) == 3 else 5]))
    *errors, fine = responses["windows"]
    assert len(errors) == 5 and fine[0] == 2
    assert all(f"the network takes [N {network}] with N above 0" in line for line in errors)
    for name, expected in (("volumes", [2, 40, 48, 3]), ("pictures", [2])):
        *errors, fine, with_channel = responses[name]
        assert len(errors) == 4 and fine == with_channel == expected
        assert all("its axes must be slices, rows, columns and channels (1)" in line for line in errors)
    assert ["it must be a list of slices" in line for line in responses["pngs"]] == [True, True, False]


def test_saved_model_cli_runs_the_export(plain, tmp_path):
    image = smooth_image((3, 40, 48))
    np.save(tmp_path / "image.npy", image.astype(np.float32)[..., None])
    np.save(tmp_path / "spacing.npy", np.float32(SPACING))
    inputs = f"image={tmp_path / 'image.npy'};spacing={tmp_path / 'spacing.npy'}"
    command = [Path(sys.executable).parent / "saved_model_cli", "run", "--dir", plain.path, "--tag_set", "serve"]
    command += ["--signature_def", "segment_volume", "--inputs", inputs, "--outdir", tmp_path]
    completed = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr[-2000:]
    np.testing.assert_array_equal(np.load(tmp_path / "masks.npy"), predicted(plain, image))


def test_predict_with_the_export_matches_the_run(exported):
    image = smooth_image((6, 44, 52), 3)
    ours, of_run = (
        predictor.predict(image, spacing=SPACING).masks
        for predictor in (load_predictor(exported.path), exported.predictor)
    )
    assert (ours == of_run).mean() >= 0.999


@pytest.fixture
def copied(plain, tmp_path):
    return shutil.copytree(plain.path, tmp_path / "1")


def misnamed(content):
    """Misspell a name in the graph; the protobuf stays valid."""
    where = (
        content.index(b"/Conv2D/ReadVariableOp") if b"/Conv2D/ReadVariableOp" in content else content.index(b"while/")
    )
    return content[:where] + b"!" + content[where + 1 :]


@pytest.mark.parametrize("damage", [lambda content: b"", misnamed], ids=["empty", "misnamed"])
def test_predict_reports_a_damaged_export(copied, refusal, damage):
    model = copied / "saved_model.pb"
    model.write_bytes(damage(model.read_bytes()))
    assert f"{copied}: the SavedModel is damaged" in refusal(load_predictor, copied)


def test_predict_reports_a_config_that_does_not_match_the_network(copied, refusal):
    config = copied / "assets.extra" / "config.yaml"
    save_config(load_config(config, {"data.window_slices": 7}), config)
    line = refusal(load_predictor, copied)
    assert f"{copied}: takes windows of [32, 32, 5], but its config.yaml says [" in line


def test_warm_up_requests_can_be_parsed_and_served(exported):
    prediction_log_pb2 = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    records = tf.data.TFRecordDataset(str(exported.path / "assets.extra/tf_serving_warmup_requests"))
    asked = {}
    for record in records.as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        asked[request.model_spec.signature_name] = len(exported.served(request.model_spec.signature_name, **inputs))
    batch, patch = exported.run.config.evaluation.batch_size, exported.run.config.data.patch
    depth = patch[0] if patch else batch
    assert asked.pop("serving_default") == batch and set(asked.values()) == {depth}
    assert set(asked) == {f"segment_{kind}{ending}" for kind in ("volume", "png") for ending in ("", "_to_png")}


def test_without_tensorflow_serving_api_warm_up_is_skipped_with_a_message(finished, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "gitseg_tf")
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis.prediction_log_pb2", None)
    path = export(load_run(finished), tmp_path / "out")
    messages = caplog.messages
    assert any("no warm-up" in line and "gitseg-tf[serving]" in line for line in messages)
    assert (path / "saved_model.pb").is_file()
    assert not (path / "assets.extra/tf_serving_warmup_requests").exists()


def test_the_export_ships_labels_config_and_model_card(exported):
    extra = exported.path / "assets.extra"
    assert (extra / "labels.txt").read_text().split() == list(UWMGI.names)
    assert load_config(extra / "config.yaml").data == exported.run.config.data
    facts = json.loads((extra / "model.json").read_text())
    assert facts["exported_with"]["tensorflow"] == tf.__version__
    assert LabelSet.from_tree(facts["labels"]) == UWMGI and facts["channels"] == ["mr"]
    assert facts["window"]["size"] == list(exported.run.config.data.input_size)
    card = (extra / "model_card.md").read_text()
    assert "Not a medical device" in card and "2 patients" in card and "the run was not evaluated" in card
    postprocessed = exported.run.config.postprocess.of("stomach").keep_largest_component
    assert ("stomach: threshold 0.45, all components but the largest removed" in card) == postprocessed


def test_the_export_ships_scores_and_the_model_card_shows_their_intervals(finished, tmp_path, caplog):
    caplog.set_level("INFO", "gitseg_tf")
    run = load_run(finished)
    label = {"score": 0.7, "dice": 0.654, "hd95_mm": None}
    scores = {"score": 0.8124, "dice": 0.75, "fold": 1, "trained_on": ["case1"], "tuned_on": []}
    scores |= {"labels": {"stomach": label, "large_bowel": label}}
    scores["intervals"] = {
        "level": 0.95,
        "score": [0.7, 0.9],
        "dice": None,
        "labels": {"stomach": {"dice": [0.6, 0.7]}},
    }
    (run.path / "evaluation.json").write_text(json.dumps(scores))
    extra = export(run, tmp_path / "out") / "assets.extra"
    assert json.loads((extra / "evaluation.json").read_text()) == scores
    card = (extra / "model_card.md").read_text()
    assert "| | all | large bowel | stomach |" in card and "95% intervals" in card
    assert "| competition score | 0.812 (0.700 to 0.900) | 0.700 | 0.700 |" in card
    assert "| Dice, 3-D | 0.750 | 0.654 | 0.654 (0.600 to 0.700) |" in card and "| HD95, mm | - | - | - |" in card
    assert "trained on some of these patients" in card and "tuned on some" not in card
    assert not any("without scores" in line for line in caplog.messages)
    (run.path / "evaluation.json").unlink()
    export(run, tmp_path / "other")
    assert any("model card without scores, because " in line for line in caplog.messages)


@pytest.mark.parametrize("text", ['{"score": 0.8', "[]", '{"score": 0.8}', '{"labels": 3}'])
def test_damaged_scores_are_reported_and_nothing_is_written(finished, tmp_path, capsys, text):
    (finished / "evaluation.json").write_text(text)
    line = error_line(capsys, "export", finished, tmp_path / "out")
    assert f"{finished / 'evaluation.json'}: is damaged" in line and "gitseg evaluate" in line
    assert not [*(tmp_path / "out").iterdir()]


def error_line(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "\n".join(lines)
    return lines[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("built") / "run", PLANES).path


@pytest.fixture
def finished(built, tmp_path, monkeypatch):
    """A copy of a finished run, with a trivial graph that is exported quickly."""
    twice = tf.function(lambda windows: {"probabilities": 2 * windows}, [tf.TensorSpec([None], name="windows")])
    monkeypatch.setattr(
        "gitseg_tf.export.savedmodel._signatures", lambda model, config, **_: {"serving_default": twice}
    )
    return shutil.copytree(built, tmp_path / "run")


@pytest.fixture
def unfinished(finished):
    config = (finished / "config.yaml").read_text()
    (finished / "config.yaml").write_text(config.replace("epochs: 2", "epochs: 5"))
    return finished


def contents(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_an_existing_version_is_kept_and_the_next_one_is_added(finished, tmp_path, capsys):
    out = tmp_path / "models"
    assert main(["export", str(finished), str(out)]) == 0
    before = contents(out)
    line = error_line(capsys, "export", finished, out)
    assert f"{out / '1'}: already exists" in line and "force" in line and "next" in line
    assert contents(out) == before
    assert main(["export", str(finished), str(out), "--model-version", "next"]) == 0
    assert main(["export", str(finished), str(out), "--model-version", "12"]) == 0
    assert main(["export", str(finished), str(out), "--model-version", "next"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["1", "12", "13", "2"]
    assert before.items() <= contents(out).items()
    capsys.readouterr()
    assert main(["export", str(finished), str(out), "--force"]) == 0
    assert str(out / "1") in capsys.readouterr().out
    assert contents(out / "1") != before


def test_the_export_inside_the_run_is_not_overwritten_without_force(finished, capsys):
    assert main(["export", str(finished)]) == 0
    assert "already exists" in error_line(capsys, "export", finished)
    assert main(["export", str(finished), "--force"]) == 0


def test_an_unfinished_run_is_refused_without_force(unfinished, capsys):
    line = error_line(capsys, "export", unfinished)
    assert str(unfinished) in line and "2 of its 5 epochs" in line and "resume training" in line and "force" in line
    assert not (unfinished / "export").exists()
    assert main(["export", str(unfinished), "--force"]) == 0


def test_a_run_ended_by_early_stopping_counts_as_finished(unfinished, tmp_path):
    config = (unfinished / "config.yaml").read_text()
    (unfinished / "config.yaml").write_text(config.replace("early_stopping_patience: 0", "early_stopping_patience: 1"))
    write_history(unfinished, [{"epoch": 1, "epochs_without_gain": 0}, {"epoch": 2, "epochs_without_gain": 1}])
    assert main(["export", str(unfinished), str(tmp_path / "out")]) == 0


def test_missing_or_mismatched_weights_are_a_one_line_error(finished, tmp_path, capsys):
    config = (finished / "config.yaml").read_text()
    (finished / "config.yaml").write_text(config.replace("filters: 4", "filters: 6"))
    line = error_line(capsys, "export", finished, tmp_path / "out")
    assert "does not fit the network" in line and "best.weights.h5" in line
    best_weights_path(finished).unlink()
    assert "no epoch of this run has finished" in error_line(capsys, "export", finished, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failed_export_leaves_nothing_for_a_server_to_load(finished, tmp_path, monkeypatch):
    seen = []

    def full(folder, config):
        seen.extend(os.listdir(tmp_path / "models"))
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr("gitseg_tf.export.savedmodel.write_warmup", full)
    assert main(["export", str(finished), str(tmp_path / "models")]) == 1
    assert len(seen) == 1 and not seen[0].isdigit()
    assert list((tmp_path / "models").iterdir()) == []


def test_a_full_disk_is_a_one_line_error(built, tmp_path):
    """TensorFlow writes the files itself and does not raise OSError."""
    script = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from gitseg_tf.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
sys.exit(main(["export", {str(built)!r}, {str(tmp_path / "out")!r}]))
"""
    completed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert completed.returncode == 1 and "Traceback" not in completed.stderr, completed.stderr[-2000:]
    assert completed.stderr.strip().splitlines()[-1].startswith(f"gitseg: {tmp_path / 'out'}")
    assert not [*(tmp_path / "out").iterdir()]


@pytest.mark.parametrize("version", ["0", "-1", "latest", str(1 << 63)])
def test_an_invalid_version_is_a_usage_error(finished, version):
    with pytest.raises(SystemExit) as exit_info:
        main(["export", str(finished), "--model-version", version])
    assert exit_info.value.code == 2 and not (finished / "export").exists()


def test_the_data_option_requires_another_format(finished, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["export", str(finished), "--data", str(tmp_path)])
    assert exit_info.value.code == 2 and "--data requires a format other than savedmodel" in capsys.readouterr().err


def test_every_signature_supports_twelve_labels_and_two_channels(tmp_path):
    labels = LabelSet.of(*(f"structure {k}" for k in range(12)))
    run = write_run(tmp_path / "run", PLANES | {"postprocess.structure 4.fill_holes": True}, 2, labels, ("t1", "ct"))
    of_two = Exported(run, export(run, tmp_path / "models"))
    image = np.stack(
        [smooth_image((5, 40, 48)).astype(np.float32), smooth_image((5, 40, 48), 1) / 1.5 - 1024], -1
    ).astype(np.float32)
    expected = predicted(of_two, image)
    masks = of_two.served("segment_volume", image=image, spacing=SPACING)
    assert masks.shape == (5, 40, 48, 12) and (masks == expected).mean() >= 0.999 and 0.02 < expected.mean() < 0.98
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        definition = tf.compat.v1.saved_model.load(session, ["serve"], str(of_two.path)).signature_def["segment_volume"]
        feed = {definition.inputs["image"].name: image, definition.inputs["spacing"].name: np.float32(SPACING)}
        of_session = session.run(definition.outputs["masks"].name, feed)
    assert of_session.shape == masks.shape and (of_session == expected).mean() >= 0.999
    given = {"spacing": SPACING, "numbers": np.arange(5)}
    pictures = of_two.served("segment_volume_to_png", image=image, **given)
    assert (np.moveaxis(read_masks([*pictures], (5, 40, 48), 12), 0, -1) == masks).all()
    whole = np.stack([smooth_image((5, 40, 48)), smooth_image((5, 40, 48), 1)], -1)
    slices = [[png for c in range(2) for png in pngs(plane[None, ..., c])] for plane in whole]
    of_png = of_two.served("segment_png", png_bytes=slices, spacing=SPACING)
    np.testing.assert_array_equal(of_png, of_two.served("segment_volume", image=whole, spacing=SPACING))
    described = of_two.served("describe", keys=["labels", "channels"])
    assert LabelSet.from_tree(json.loads(described[0])) == labels and json.loads(described[1]) == ["t1", "ct"]
    signatures = of_two.loaded.signatures
    names = {n for name in signatures for n in (name, *signatures[name].structured_outputs)}
    assert not any("structure" in name for name in names)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"columns and channels \(2\)"):
        of_two.served("segment_volume", image=whole[..., :1], spacing=SPACING)
    with pytest.raises(tf.errors.InvalidArgumentError, match="known keys are labels, channels"):
        of_two.served("describe", keys=["weights"])

"""The network of a run as ONNX and TFLite: file contents, differences from float32, and commands that use the files."""

import argparse
import hashlib
import json
import logging
import shutil
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import tf_keras as keras

from gitseg_tf import cli
from gitseg_tf.cli.export import _formats
from gitseg_tf.config import load_config, save_config
from gitseg_tf.data.pipeline.batches import sample_windows, training_windows, validation_samples, validation_windows
from gitseg_tf.evaluation.calibration import Reliability
from gitseg_tf.evaluation.evaluate import score_fold
from gitseg_tf.evaluation.metrics.scores import summarize
from gitseg_tf.evaluation.report.selection import PictureShelf
from gitseg_tf.export.formats import comparison, tflite
from gitseg_tf.export.formats import export as formats
from gitseg_tf.export.formats import onnx as onnx_format
from gitseg_tf.export.formats.export import export_formats
from gitseg_tf.export.formats.registry import FORMATS
from gitseg_tf.inference.runtimes import open_network
from gitseg_tf.labels import UWMGI
from gitseg_tf.models.build import build_model
from gitseg_tf.runs.folder import best_weights_path
from gitseg_tf.runs.network import load_model
from gitseg_tf.runs.run import Run, load_run
from gitseg_tf.training.callbacks.recorder import write_history

pytestmark = pytest.mark.slow

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
litert = pytest.importorskip("ai_edge_litert.interpreter")
pytest.importorskip("tf2onnx")

SETTINGS = {
    "data.input_size": [64, 64],
    "data.fold": 1,
    "data.batch_size": 4,
    "model.filters": 4,
    "augment": {"backend": "tensorflow"},
    "evaluation.batch_size": 3,
    "evaluation.threshold": 0.4,
    "postprocess.large_bowel.min_component_ml": 0.05,
}
EPOCHS = 12
# Maximum fraction of voxels that may differ from the masks of the run.
DIFFER = {"onnx": 1e-4, "tflite-float16": 2e-3, "tflite-int8": 2e-2}
NETWORKS = FORMATS.names(network_alone=True)


@contextmanager
def logged():
    """Context manager that yields the list of logged lines."""
    lines, handler, logger = [], logging.Handler(logging.INFO), logging.getLogger("gitseg_tf.export")
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)


@dataclass
class Written:
    """A run, the folder of its exports, and the lines that were logged."""

    run: Run
    out: Path
    lines: list

    def facts(self, name):
        return json.loads((self.out / name / "model.json").read_text())


def write_run(path, dataset, config):
    """A finished run whose network is overfitted to the synthetic labels."""
    images, masks = map(np.concatenate, zip(*training_windows(dataset, config).take(8), strict=True))
    keras.utils.set_random_seed(0)
    model = build_model(config)
    model.compile(keras.optimizers.Adam(1e-2), keras.losses.BinaryCrossentropy(from_logits=True))
    model.fit(images, masks, batch_size=8, epochs=EPOCHS, verbose=0)
    (path / "checkpoints").mkdir(parents=True)
    model.save_weights(str(best_weights_path(path)))
    provenance = {"dataset": dataset.source["fingerprint"], "records": str(dataset.root), "trained_on": ["case1"]}
    save_config(config.model_copy(update={"provenance": provenance}), path / "config.yaml")
    write_history(path, [{"epoch": k + 1, "loss": 1.0} for k in range(config.training.epochs)])
    return load_run(path)


@pytest.fixture(scope="module")
def written(tiny_dataset, tmp_path_factory):
    run = write_run(
        tmp_path_factory.mktemp("runs") / "tiny",
        tiny_dataset,
        load_config(None, SETTINGS).for_dataset(UWMGI, ("image",)),
    )
    with logged() as lines:
        export_formats(run, tiny_dataset, FORMATS.names(), representative=12)
    return Written(run, run.path / "export", lines)


@pytest.fixture
def copied(written, tmp_path):
    """The run and its exports, for tests that change them."""
    return shutil.copytree(written.run.path, tmp_path / "run")


def float32(run, windows):
    return tf.sigmoid(load_model(run)(windows, training=False)).numpy()


@pytest.mark.parametrize("count", [1, 3])
def test_onnx_matches_the_run_for_any_number_of_windows(written, tiny_dataset, count):
    session = onnxruntime.InferenceSession(written.out / "onnx/model.onnx", providers=["CPUExecutionProvider"])
    windows = formats.compared_windows(tiny_dataset, written.run.config)[6 : 6 + count]
    (actual,) = session.run(["probabilities"], {"windows": windows})
    expected = float32(written.run, windows)
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-3)


def test_the_onnx_file_is_valid_and_has_the_recorded_opset(written):
    model = onnx.load(written.out / "onnx/model.onnx")
    onnx.checker.check_model(model, full_check=True)
    stated = written.facts("onnx")["format"]
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == stated["opset"]
    for tensor, side in ((model.graph.input[0], "input"), (model.graph.output[0], "output")):
        shape = [size.dim_value or None for size in tensor.type.tensor_type.shape.dim]
        assert (tensor.name, shape) == (stated[side]["name"], stated[side]["shape"])
        assert tensor.type.tensor_type.shape.dim[0].dim_param == "N"
        assert tensor.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_onnx_transposed_convolutions_need_no_resizing(written):
    operators = {node.op_type for node in onnx.load(written.out / "onnx/model.onnx").graph.node}
    assert "ConvTranspose" in operators and not operators & {"Shape", "Slice", "Pad"}


@pytest.mark.parametrize("name, most", [("tflite-float16", 2e-2), ("tflite-int8", 0.25)])
def test_tflite_has_the_savedmodel_signature_and_is_close_to_float32(written, tiny_dataset, name, most):
    interpreter = litert.Interpreter(model_path=str(written.out / name / "model.tflite"))
    serve = interpreter.get_signature_runner("serving_default")
    windows = formats.compared_windows(tiny_dataset, written.run.config)[7:8]
    found = serve(windows=windows)["probabilities"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, float32(written.run, windows), rtol=0, atol=most)


def kernels(file):
    interpreter = litert.Interpreter(
        model_path=str(file), experimental_op_resolver_type=litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    interpreter.allocate_tensors()
    types = {detail["index"]: detail["dtype"] for detail in interpreter.get_tensor_details()}
    return [
        (op["op_name"], {types.get(i) for i in op["inputs"] if i in types}) for op in interpreter._get_ops_details()
    ]


def test_int8_computes_in_integers_only(written):
    computing = [
        (name, types)
        for name, types in kernels(written.out / "tflite-int8/model.tflite")
        if name not in ("QUANTIZE", "DEQUANTIZE")
    ]
    assert any(name == "CONV_2D" for name, _ in computing)
    assert not [name for name, types in computing if types & {np.float32, np.float16}]


def test_float32_operators_in_int8_are_logged_and_recorded(written, tiny_dataset, tmp_path, monkeypatch):
    def with_sine(model):
        return lambda windows: {"probabilities": tf.sigmoid(tf.sin(model(windows, training=False)))}

    monkeypatch.setattr(tflite, "inference", with_sine)
    other = Written(written.run, tmp_path, [])
    with logged() as other.lines:
        export_formats(other.run, tiny_dataset, ["tflite-int8"], tmp_path, representative=2)
    assert other.facts("tflite-int8")["format"]["float32_operators"] == {"SIN": 1}
    (line,) = (line for line in other.lines if "integer kernel" in line)
    assert line == "tflite-int8    computes 1 SIN in float32, because LiteRT has no integer kernel for them"
    assert "| computed in float32 | 1 SIN |" in (tmp_path / "tflite-int8/model_card.md").read_text()
    assert [written.facts(name)["format"]["float32_operators"] for name in NETWORKS] == [None, None, {}]
    assert "computed in float32" not in (written.out / "tflite-int8/model_card.md").read_text()
    assert not [line for line in written.lines if "integer kernel" in line]


def test_lower_precision_files_are_smaller(written):
    sizes = [(written.out / name / FORMATS.get(name).file).stat().st_size for name in NETWORKS]
    assert sizes == sorted(sizes, reverse=True)


def test_int8_calibration_uses_no_held_out_scan(written, tiny_cohort, tiny_dataset):
    held_out = {scan.case for scan in tiny_dataset.scans_of([written.run.config.data.fold])}
    ids, windows = sample_windows(tiny_dataset, written.run.config, 12)
    seen = set(tiny_cohort.marks_in(windows).ravel().tolist())
    training = {scan.case for scan in tiny_cohort.scans} - held_out
    assert len(windows) == 12 and seen <= tiny_cohort.all_marks(training) and not seen & tiny_cohort.all_marks(held_out)
    assert ids == sorted({tiny_cohort.scan_of(mark).id for mark in seen})
    stated = written.facts("tflite-int8")["format"]["calibrated_on"]
    assert stated == {"windows": 12, "scans": ids}


def test_formats_are_compared_on_held_out_windows(written, tiny_cohort, tiny_dataset):
    held_out = {scan.case for scan in tiny_dataset.scans_of([written.run.config.data.fold])}
    windows = formats.compared_windows(tiny_dataset, written.run.config)
    seen = set(tiny_cohort.marks_in(windows).ravel().tolist())
    assert len(windows) == 16 and seen <= tiny_cohort.all_marks(held_out)
    for name in NETWORKS:
        compared = written.facts(name)["format"]["compared_with_float32"]
        assert (compared["windows"], compared["fold"]) == (16, 1)
        assert (
            0 <= compared["mean_difference"] <= compared["largest_difference"] < (FORMATS.get(name).max_difference or 1)
        )


def test_compared_windows_are_spread_over_the_held_out_scans(written, tiny_dataset, monkeypatch):
    monkeypatch.setattr(formats, "_COMPARED", 4)
    config = written.run.config
    all_windows = np.concatenate([image for image, *_ in validation_windows(tiny_dataset, config)])
    apart = validation_samples(tiny_dataset, config) // 4
    assert 1 < apart <= 9
    found = formats.compared_windows(tiny_dataset, config)
    np.testing.assert_array_equal(found, all_windows[apart // 2 :: apart][:4])


def test_masks_are_compared_at_the_thresholds_of_the_run(written):
    expected = np.full((1, 1, 4, 3), 0.45, np.float32)
    actual = np.float32([0.45, 0.41, 0.39, 0.1])[:, None] * np.ones((1, 1, 4, 3), np.float32)
    compared = formats._compare(actual, expected, written.run.config)
    assert compared["dice_of_masks"] == pytest.approx(2 * 2 / (2 + 4))
    assert compared["largest_difference"] == pytest.approx(0.35)
    assert compared["mean_difference"] == pytest.approx((0.04 + 0.06 + 0.35) / 4)


def test_the_cli_accepts_every_format():
    assert _formats(",".join(FORMATS)) == list(FORMATS)
    assert _formats("onnx,savedmodel,onnx") == ["onnx", "savedmodel"]
    with pytest.raises(argparse.ArgumentTypeError, match="unknown format 'onxx'; allowed are savedmodel, onnx"):
        _formats("onnx,onxx")


def test_the_calibration_windows_depend_only_on_the_seed(written, tiny_dataset):
    first, again = (sample_windows(tiny_dataset, written.run.config, 5)[1] for _ in range(2))
    other = sample_windows(tiny_dataset, written.run.config.model_copy(update={"seed": 9}), 5)[1]
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_format_ships_labels_config_and_model_card(written, name):
    folder = written.out / name
    assert (folder / "labels.txt").read_text().split() == list(UWMGI.names)
    config = load_config(folder / "config.yaml")
    assert config.provenance.pop("best_weights") == hashlib.sha256(written.run.weights.read_bytes()).hexdigest()
    assert config == written.run.config
    facts = written.facts(name)
    assert facts["postprocess"]["stomach"]["inside"] == {}
    assert facts["postprocess"]["stomach"]["outside"]["threshold"] == 0.4
    card = (folder / "model_card.md").read_text()
    assert "This is the network alone" in card and "SavedModel" not in card and FORMATS.get(name).file in card
    assert "Not a medical device" in card and "the run was not evaluated" in card
    assert f"| windows per batch | {3 if name == 'onnx' else 1} |" in card
    assert ("12 windows of" in card) == (name == "tflite-int8") and ("opset 17" in card) == (name == "onnx")


def masks_in(folder):
    return {
        scan.name: np.stack([nibabel.load(scan / f"{name}.nii.gz").get_fdata() > 0 for name in UWMGI.names])
        for scan in folder.iterdir()
    }


def predicted(models, cohort, out):
    arguments = ["predict", *models, cohort, out, "--format", "nifti"]
    assert cli.main([str(argument) for argument in arguments]) == 0
    return masks_in(out)


@pytest.fixture(scope="module")
def cohort(make_cohort, tmp_path_factory):
    return make_cohort(
        tmp_path_factory.mktemp("new") / "cohort", (("case1_day0", (40, 64), range(1, 9)),), labeled=False
    ).root


@pytest.fixture(scope="module")
def by_run(written, cohort, tmp_path_factory):
    return predicted([written.run.path], cohort, tmp_path_factory.mktemp("by") / "run")["case1_day0"]


@pytest.mark.parametrize("name", NETWORKS)
def test_predict_with_an_export_folder_or_file_matches_the_run(written, by_run, cohort, tmp_path, name):
    folder = written.out / name
    found = predicted([folder], cohort, tmp_path / "folder")["case1_day0"]
    assert 0.01 < by_run.mean() < 0.5
    assert (found != by_run).mean() <= DIFFER[name]
    np.testing.assert_array_equal(
        predicted([folder / FORMATS.get(name).file], cohort, tmp_path / "file")["case1_day0"], found
    )


def test_a_folder_of_several_formats_asks_for_one_of_them(copied, cohort, tmp_path, capsys):
    shutil.rmtree(copied / "export/1")
    line = error_line(capsys, "predict", copied / "export", cohort, tmp_path / "out")
    assert (
        line.endswith(f"choose the folder of one, such as {copied / 'export/onnx'}") and not (tmp_path / "out").exists()
    )


def test_formats_can_be_ensemble_members_with_flips(written, by_run, cohort, tmp_path):
    models = [written.run.path, *(written.out / name for name in NETWORKS)]
    arguments = ["predict", *models, cohort, tmp_path / "out", "--format", "nifti", "--tta", "flip"]
    assert cli.main([str(argument) for argument in arguments]) == 0
    alone = ["predict", written.run.path, cohort, tmp_path / "alone", "--format", "nifti", "--tta", "flip"]
    assert cli.main([str(argument) for argument in alone]) == 0
    actual, expected = (masks_in(tmp_path / name)["case1_day0"] for name in ("out", "alone"))
    assert expected.any() and (actual != expected).mean() <= DIFFER["tflite-int8"]


def scored(run, dataset):
    """The scores of gitseg evaluate for each label and scan of the held-out fold."""
    count = len(dataset.scans_of([1]))
    with PictureShelf(count) as shelf:
        reliability = Reliability(dataset.labels)
        return score_fold(run, dataset, 1, count=count, shelf=shelf, reliability=reliability)


def test_the_formats_table_matches_evaluate_and_is_added_to_the_model_cards(copied, tiny_dataset, capsys, monkeypatch):
    monkeypatch.setattr(comparison, "_SECONDS", 0.01)
    run = load_run(copied)
    assert cli.main(["formats", str(copied), "--scans", "1"]) == 0
    first = pd.read_csv(copied / "export/formats.csv").set_index("format")
    assert cli.main(["formats", str(copied)]) == 0
    table = pd.read_csv(copied / "export/formats.csv").set_index("format")
    rows = scored(run, tiny_dataset)
    expected, of_first = summarize(rows), summarize(rows[rows.scan == rows.scan.iloc[0]])
    assert tuple(table.index) == tuple(FORMATS.names()) and expected["dice"] > 0.3
    for name in ("savedmodel", "onnx"):
        for score in ("dice", "score"):
            assert table[score][name] == pytest.approx(expected[score], abs=2e-3)
            assert first[score][name] == pytest.approx(of_first[score], abs=2e-3)
    assert abs(expected["dice"] - of_first["dice"]) > 5e-3
    np.testing.assert_allclose(table.dice_loss, expected["dice"] - table.dice, atol=1e-9)
    assert (table.ms > 0).all() and (table.dice_loss < 0.02).all()
    assert table.mib["onnx"] * 2**20 == (copied / "export/onnx/model.onnx").stat().st_size
    for name in NETWORKS:
        card = (copied / "export" / name / "model_card.md").read_text()
        assert card.count("## Size, time and scores") == 1 and f"| {name} | {table.mib[name]:.2f} |" in card
    assert f"{table.dice['tflite-int8']:.4f}" in capsys.readouterr().out


def test_the_dice_loss_is_relative_to_the_float32_run(copied, tiny_dataset, capsys, monkeypatch):
    monkeypatch.setattr(comparison, "_SECONDS", 0.01)
    for name in NETWORKS:
        shutil.rmtree(copied / "export" / name)
    assert cli.main(["export", str(copied), "--weights", "bfloat16", "--force"]) == 0
    assert cli.main(["formats", str(copied)]) == 0
    exact = summarize(scored(load_run(copied), tiny_dataset))["dice"]
    (row,) = pd.read_csv(copied / "export/formats.csv").itertuples()
    assert row.format == "savedmodel" and row.dice_loss == pytest.approx(exact - row.dice, abs=1e-9) != 0
    assert f"Dice lost is relative to the float32 network ({exact:.4f})" in capsys.readouterr().out


def error_line(capsys, *arguments):
    assert cli.main([str(argument) for argument in arguments]) == 1
    (message,) = [line for line in capsys.readouterr().err.strip().splitlines() if line.startswith("gitseg: ")]
    return message


def contents(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_converted_network_that_differs_from_the_run_is_not_written(
    written, tiny_dataset, tmp_path, monkeypatch, refusal
):
    def shifted(model):
        return lambda windows: {"probabilities": tf.sigmoid(model(windows, training=False) + 0.1)}

    monkeypatch.setattr(onnx_format, "inference", shifted)
    line = refusal(export_formats, written.run, tiny_dataset, ["onnx"], tmp_path / "out")
    assert "onnx" in line and "from float32" in line and "more than 0.001" in line
    assert list((tmp_path / "out").iterdir()) == []


def test_very_different_masks_cause_a_warning_without_a_format_limit(written, tiny_dataset, tmp_path, monkeypatch):
    def opposite(file, window, labels):
        network = open_network(file, window, labels)
        return lambda windows: 1 - network(windows).numpy()

    monkeypatch.setattr(formats, "open_network", opposite)
    with logged() as lines:
        export_formats(written.run, tiny_dataset, ["tflite-int8"], tmp_path, representative=2)
    (line,) = (line for line in lines if "its masks have a Dice" in line)
    compared = json.loads((tmp_path / "tflite-int8/model.json").read_text())["format"]["compared_with_float32"]
    assert (
        f"Dice of {compared['dice_of_masks']:.3f} against those of float32" in line and compared["dice_of_masks"] < 0.95
    )
    assert not [line for line in written.lines if "its masks have a Dice" in line]


def test_an_existing_format_is_replaced_only_with_force(copied, capsys):
    before = contents(copied / "export")
    line = error_line(capsys, "export", copied, "--format", "savedmodel,onnx", "--model-version", "next")
    assert f"{copied / 'export/onnx'}: already exists" in line and "force" in line
    assert contents(copied / "export") == before
    assert cli.main(["export", str(copied), "--format", "onnx", "--force"]) == 0
    after = contents(copied / "export")
    assert after[Path("onnx/model.onnx")] != before[Path("onnx/model.onnx")]
    changed = {key for key in before if before[key] != after[key]}
    assert changed and {key.parts[0] for key in changed} == {"onnx"}


def test_a_dataset_with_other_labels_or_channels_is_refused(written, tiny_dataset, tmp_path, refusal):
    fewer = replace(tiny_dataset, labels=UWMGI.subset(["stomach", "large_bowel"]))
    two = replace(tiny_dataset, channels=("t1", "t2"))
    for other, expected in ((fewer, "choose a dataset with small_bowel"), (two, "has the input channels image")):
        assert expected in refusal(export_formats, written.run, other, ["onnx"], tmp_path / "out")
        assert expected in refusal(comparison.compare_formats, written.run, other)
    assert not (tmp_path / "out").exists() and not (written.out / "formats.csv").exists()


def test_an_unfinished_run_and_a_different_dataset_are_refused(copied, make_cohort, tmp_path, capsys):
    others = make_cohort(tmp_path / "other", [(f"case{k}_day0", (40, 64), range(1, 5)) for k in range(5)])
    config = (copied / "config.yaml").read_text()
    line = error_line(capsys, "export", copied, tmp_path / "out", "--format", "onnx", "--data", others.root)
    assert "trained on a dataset other than" in line
    assert "trained on a dataset other than" in error_line(capsys, "formats", copied, "--data", others.root)
    (copied / "config.yaml").write_text(config.replace("epochs: 3", "epochs: 5"))
    assert "is an exported model, not a run" in error_line(capsys, "evaluate", copied / "export/onnx")
    assert "3 of its 5 epochs" in error_line(capsys, "export", copied, tmp_path / "out", "--format", "onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "module, name", [("tf2onnx", "onnx"), ("onnxruntime", "onnx"), ("ai_edge_litert.interpreter", "tflite-float16")]
)
def test_a_missing_package_is_reported_before_anything_is_written(copied, tmp_path, monkeypatch, capsys, module, name):
    monkeypatch.setitem(sys.modules, module, None)
    line = error_line(capsys, "export", copied, tmp_path / "out", "--format", f"savedmodel,{name}")
    assert module.partition(".")[0] in line and "pip install 'gitseg-tf[export]'" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("module, name", [("onnxruntime", "onnx"), ("ai_edge_litert.interpreter", "tflite-int8")])
def test_a_missing_runtime_is_a_one_line_error(written, cohort, tmp_path, monkeypatch, capsys, module, name):
    monkeypatch.setitem(sys.modules, module, None)
    line = error_line(capsys, "predict", written.out / name, cohort, tmp_path / "out")
    assert "pip install 'gitseg-tf[export]'" in line


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("damage", ["truncated", "empty", "other", "no config", "missing", "other config"])
def test_an_unusable_model_file_is_named(copied, cohort, tmp_path, capsys, name, damage):
    file = copied / "export" / name / FORMATS.get(name).file
    config = file.with_name("config.yaml")
    if damage in ("truncated", "empty", "other"):
        content = file.read_bytes()
        file.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "other": b"no model " * 50}[damage])
    elif damage == "no config":
        config.unlink()
    elif damage == "missing":
        file.unlink()
    else:
        save_config(load_config(config, {"data.window_slices": 3}), config)
    line = error_line(capsys, "predict", file, cohort, tmp_path / "out")
    assert str(file) in line
    expected = {
        "no config": "config.yaml is missing",
        "missing": "no such file",
        "other config": "export the run again",
    }
    assert expected.get(damage, "is damaged") in line
    assert not (tmp_path / "out").exists()


def test_formats_are_compared_only_if_exported_from_the_current_run(copied, capsys):
    export = copied / "export"
    for inside in ("1", "onnx"):
        assert "has no folder such as 1 or onnx" in error_line(capsys, "formats", copied, export / inside)
    save_config(load_config(export / "onnx/config.yaml", {"data.window_slices": 3}), export / "onnx/config.yaml")
    assert f"{export / 'onnx/model.onnx'}: takes windows" in error_line(capsys, "formats", copied)
    run = load_run(copied)
    model = load_model(run)
    model.set_weights([array + 1 for array in model.get_weights()])
    model.save_weights(str(run.weights))
    assert f"{export / '1'}: was not exported from the current {run.weights}" in error_line(capsys, "formats", copied)
    shutil.rmtree(export)
    assert "has no folder such as 1 or onnx" in error_line(capsys, "formats", copied)


def test_switching_networks_does_not_distort_the_timing(monkeypatch):
    monkeypatch.setattr(comparison, "_SECONDS", 0.01)
    monkeypatch.setattr(comparison, "_CALLS", 2)
    last = []

    def make(name, seconds):
        def network(window):
            time.sleep(seconds if last[-1:] == [name] else 0.05)
            last.append(name)
            return window

        return network

    found = comparison._milliseconds({"one": make("one", 0.001), "other": make("other", 0.01)}, np.zeros(1))
    assert 1 <= found["one"] < 10 <= found["other"] < 40


def test_a_fold_without_labels_to_score_is_refused(written, tiny_dataset, monkeypatch, refusal):
    blank = [replace(scan, label_slices={"stomach": 0}) for scan in tiny_dataset.scans_of([1])]
    monkeypatch.setattr(comparison, "scans_of_fold", lambda *_: (1, blank))
    line = refusal(comparison.compare_formats, written.run, tiny_dataset, scans=1)
    assert f"{tiny_dataset.root}: no label to score in 1 scan of fold 1" in line
    assert not (written.out / "formats.csv").exists()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_returns_nan_is_not_written(written, tiny_dataset, tmp_path, monkeypatch, refusal, name):
    monkeypatch.setattr(formats, "open_network", lambda *_: lambda windows: np.full((*windows.shape[:3], 3), np.nan))
    line = refusal(export_formats, written.run, tiny_dataset, [name], tmp_path / "out", representative=2)
    assert line.startswith(f"{name}: its probabilities differ by up to nan from float32")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--format", "coreml"],
        ["--format", "onnx", "--model-version", "2"],
        ["--format", "onnx", "--representative", "9"],
        ["--format", "onnx", "--weights", "bfloat16"],
        ["--data", "records"],
    ],
)
def test_incompatible_arguments_are_a_usage_error(written, arguments):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["export", str(written.run.path), *arguments])
    assert exit_info.value.code == 2


def test_a_3d_run_exported_to_onnx_matches_the_run(whole_table, tiny_dataset, cohort, tmp_path):
    volumes = {"model.architecture": "unet3d", "data.patch": [4, 32, 32], "data.fold": 1, "data.input_size": [64, 64]}
    settings = {
        "model.filters": 4,
        "augment": {"backend": "tensorflow"},
        "evaluation.threshold": 0.2,
        "data.batch_size": 2,
    }
    run = write_run(tmp_path / "run", tiny_dataset, load_config(None, volumes | settings))
    export_formats(run, tiny_dataset, ["onnx"])
    expected, actual = (
        predicted([model], cohort, tmp_path / str(number))["case1_day0"]
        for number, model in enumerate((run.path, run.path / "export/onnx"))
    )
    assert 0.001 < expected.mean() < 0.5
    assert (actual != expected).mean() <= 1e-4

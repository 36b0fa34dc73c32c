"""A run's network as ONNX and TFLite: what is in the files, how far it is from float32, and who takes them."""

import hashlib
import json
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import tf_keras as keras

from gitseg_tf import cli
from gitseg_tf.commands import results
from gitseg_tf.config import load_config, save_config
from gitseg_tf.data.pipeline import sample_windows, training_windows, validation_samples, validation_windows
from gitseg_tf.data.scans import ORGANS
from gitseg_tf.evaluation.chosen import PictureShelf
from gitseg_tf.evaluation.evaluate import score_fold
from gitseg_tf.evaluation.reliability import Reliability
from gitseg_tf.evaluation.scores import summarise
from gitseg_tf.inference.runtimes import open_network
from gitseg_tf.models.build import build_model
from gitseg_tf.serving import comparison, conversion, formats
from gitseg_tf.serving.formats import FORMATS, export_formats
from gitseg_tf.training.callbacks import best_weights_path, write_history
from gitseg_tf.training.trainer import Run, load_model, load_run

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
litert = pytest.importorskip("ai_edge_litert.interpreter")
pytest.importorskip("tf2onnx")

SETTINGS = {
    "data.size": [64, 64],
    "data.fold": 1,
    "data.batch_size": 4,
    "model.filters": 4,
    "augment": {"on": "accelerator"},
    "evaluation.batch_size": 3,
    "evaluation.threshold": 0.4,
    "postprocess.large_bowel.smallest_ml": 0.05,
}
EPOCHS = 12
# How many voxels of a scan a format may give otherwise than the run.
DIFFER = {"onnx": 1e-4, "tflite-float16": 2e-3, "tflite-int8": 2e-2}
QUIET = {"say": lambda line: None}


@dataclass
class Written:
    """A run, all its formats, and what was said of them."""

    run: Run
    out: Path
    said: list

    def facts(self, name):
        return json.loads((self.out / name / "model.json").read_text())


def write_run(path, dataset, config):
    """A finished run whose network knows the drawn organs by heart."""
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
def written(drawn_dataset, tmp_path_factory):
    said = []
    run = write_run(tmp_path_factory.mktemp("runs") / "tiny", drawn_dataset, load_config(None, SETTINGS))
    export_formats(run, drawn_dataset, formats.NAMES, representative=12, say=said.append)
    return Written(run, run.path / "export", said)


@pytest.fixture
def copied(written, tmp_path):
    """The run and its exports, for tests that change them."""
    return shutil.copytree(written.run.path, tmp_path / "run")


def float32(run, windows):
    return tf.sigmoid(load_model(run)(windows, training=False)).numpy()


@pytest.mark.parametrize("count", [1, 3])
def test_onnx_gives_the_probabilities_of_the_run_for_any_number_of_windows(written, drawn_dataset, count):
    session = onnxruntime.InferenceSession(written.out / "onnx/model.onnx", providers=["CPUExecutionProvider"])
    windows = formats.compared_windows(drawn_dataset, written.run.config)[6 : 6 + count]
    (found,) = session.run(["probabilities"], {"windows": windows})
    expected = float32(written.run, windows)
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


def test_the_onnx_file_is_valid_and_of_the_opset_that_is_stated(written):
    model = onnx.load(written.out / "onnx/model.onnx")
    onnx.checker.check_model(model, full_check=True)
    stated = written.facts("onnx")["format"]
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == stated["opset"]
    for tensor, said in ((model.graph.input[0], "input"), (model.graph.output[0], "output")):
        shape = [size.dim_value or None for size in tensor.type.tensor_type.shape.dim]
        assert (tensor.name, shape) == (stated[said]["name"], stated[said]["shape"])
        assert tensor.type.tensor_type.shape.dim[0].dim_param == "N"
        assert tensor.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_transposed_convolutions_of_onnx_have_the_size_that_is_wanted_at_once(written):
    operators = {node.op_type for node in onnx.load(written.out / "onnx/model.onnx").graph.node}
    assert "ConvTranspose" in operators and not operators & {"Shape", "Slice", "Pad"}


@pytest.mark.parametrize("name, most", [("tflite-float16", 2e-2), ("tflite-int8", 0.25)])
def test_tflite_has_the_signature_of_the_savedmodel_and_comes_near_float32(written, drawn_dataset, name, most):
    interpreter = litert.Interpreter(model_path=str(written.out / name / "model.tflite"))
    serve = interpreter.get_signature_runner("serving_default")
    windows = formats.compared_windows(drawn_dataset, written.run.config)[7:8]
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


def test_int8_computes_in_integers_alone(written):
    computing = [
        (name, types)
        for name, types in kernels(written.out / "tflite-int8/model.tflite")
        if name not in ("QUANTIZE", "DEQUANTIZE")
    ]
    assert any(name == "CONV_2D" for name, _ in computing)
    assert not [name for name, types in computing if types & {np.float32, np.float16}]


def test_what_int8_computes_in_float32_is_said_and_written_down(written, drawn_dataset, tmp_path, monkeypatch):
    def with_sine(model):
        return lambda windows: {"probabilities": tf.sigmoid(tf.sin(model(windows, training=False)))}

    monkeypatch.setattr(conversion, "inference", with_sine)
    other = Written(written.run, tmp_path, [])
    export_formats(other.run, drawn_dataset, ["tflite-int8"], tmp_path, representative=2, say=other.said.append)
    assert other.facts("tflite-int8")["format"]["float32_operators"] == {"SIN": 1}
    (line,) = (line for line in other.said if "kernel of integers" in line)
    assert line == "tflite-int8    computes 1 SIN in float32, for which LiteRT has no kernel of integers"
    assert "| computed in float32 | 1 SIN |" in (tmp_path / "tflite-int8/model_card.md").read_text()
    assert [written.facts(name)["format"]["float32_operators"] for name in FORMATS] == [None, None, {}]
    assert "computed in float32" not in (written.out / "tflite-int8/model_card.md").read_text()
    assert not [line for line in written.said if "kernel of integers" in line]


def test_files_are_smaller_in_half_and_quarter_precision(written):
    sizes = [(written.out / name / FORMATS[name].file).stat().st_size for name in FORMATS]
    assert sizes == sorted(sizes, reverse=True)


def test_what_int8_is_fitted_to_holds_no_scan_of_the_held_out_fold(written, drawn, drawn_dataset):
    held_out = {scan.case for scan in drawn_dataset.scans_of([written.run.config.data.fold])}
    ids, windows = sample_windows(drawn_dataset, written.run.config, 12)
    seen = set(drawn.marks_in(windows).ravel().tolist())
    training = {scan.case for scan in drawn.scans} - held_out
    assert len(windows) == 12 and seen <= drawn.all_marks(training) and not seen & drawn.all_marks(held_out)
    assert ids == sorted({drawn.scan_of(mark).id for mark in seen})
    stated = written.facts("tflite-int8")["format"]["calibrated_on"]
    assert stated == {"windows": 12, "scans": ids}


def test_what_is_compared_are_windows_of_the_held_out_fold(written, drawn, drawn_dataset):
    held_out = {scan.case for scan in drawn_dataset.scans_of([written.run.config.data.fold])}
    windows = formats.compared_windows(drawn_dataset, written.run.config)
    seen = set(drawn.marks_in(windows).ravel().tolist())
    assert len(windows) == 16 and seen <= drawn.all_marks(held_out)
    for name in FORMATS:
        compared = written.facts(name)["format"]["compared_with_float32"]
        assert (compared["windows"], compared["fold"]) == (16, 1)
        assert 0 <= compared["mean_difference"] <= compared["largest_difference"] < (FORMATS[name].most or 1)


def test_they_are_spread_over_its_scans(written, drawn_dataset, monkeypatch):
    monkeypatch.setattr(formats, "_COMPARED", 4)
    config = written.run.config
    all_windows = np.concatenate([image for image, *_ in validation_windows(drawn_dataset, config)])
    apart = validation_samples(drawn_dataset, config) // 4
    assert 1 < apart <= 9
    found = formats.compared_windows(drawn_dataset, config)
    np.testing.assert_array_equal(found, all_windows[apart // 2 :: apart][:4])


def test_masks_are_compared_at_the_runs_thresholds(written):
    expected = np.full((1, 1, 4, 3), 0.45, np.float32)
    found = np.float32([0.45, 0.41, 0.39, 0.1])[:, None] * np.ones((1, 1, 4, 3), np.float32)
    compared = formats._compare(found, expected, written.run.config)
    assert compared["dice_of_masks"] == pytest.approx(2 * 2 / (2 + 4))
    assert compared["largest_difference"] == pytest.approx(0.35)
    assert compared["mean_difference"] == pytest.approx((0.04 + 0.06 + 0.35) / 4)


def test_the_command_line_knows_all_formats():
    assert results._FORMATS == formats.NAMES


def test_the_choice_of_windows_depends_on_the_seed_alone(written, drawn_dataset):
    first, again = (sample_windows(drawn_dataset, written.run.config, 5)[1] for _ in range(2))
    other = sample_windows(drawn_dataset, written.run.config.model_copy(update={"seed": 9}), 5)[1]
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_facts_travel_with_every_format(written, name):
    folder = written.out / name
    assert (folder / "organs.txt").read_text().split() == list(ORGANS)
    config = load_config(folder / "config.yaml")
    assert config.provenance.pop("best_weights") == hashlib.sha256(written.run.weights.read_bytes()).hexdigest()
    assert config == written.run.config
    facts = written.facts(name)
    assert facts["postprocess"]["stomach"]["inside"] == {}
    assert facts["postprocess"]["stomach"]["outside"]["threshold"] == 0.4
    card = (folder / "model_card.md").read_text()
    assert "This is the network alone" in card and "SavedModel" not in card and FORMATS[name].file in card
    assert "Not a medical device" in card and "the run was not scored" in card
    assert f"| windows at once | {3 if name == 'onnx' else 1} |" in card
    assert ("12 windows of" in card) == (name == "tflite-int8") and ("opset 17" in card) == (name == "onnx")


def masks_in(folder):
    return {
        scan.name: np.stack([nibabel.load(scan / f"{organ}.nii.gz").get_fdata() > 0 for organ in ORGANS])
        for scan in folder.iterdir()
    }


def predicted(models, cohort, out):
    arguments = ["predict", *models, cohort, out, "--format", "nifti"]
    assert cli.main([str(argument) for argument in arguments]) == 0
    return masks_in(out)


@pytest.fixture(scope="module")
def cohort(draw, tmp_path_factory):
    return draw(
        tmp_path_factory.mktemp("new") / "cohort", (("case1_day0", (40, 64), range(1, 9)),), labelled=False
    ).root


@pytest.fixture(scope="module")
def by_run(written, cohort, tmp_path_factory):
    return predicted([written.run.path], cohort, tmp_path_factory.mktemp("by") / "run")["case1_day0"]


@pytest.mark.parametrize("name", FORMATS)
def test_gitseg_predict_takes_the_folder_and_the_file_and_finds_what_the_run_finds(
    written, by_run, cohort, tmp_path, name
):
    folder = written.out / name
    found = predicted([folder], cohort, tmp_path / "folder")["case1_day0"]
    assert 0.01 < by_run.mean() < 0.5
    assert (found != by_run).mean() <= DIFFER[name]
    np.testing.assert_array_equal(
        predicted([folder / FORMATS[name].file], cohort, tmp_path / "file")["case1_day0"], found
    )


def test_the_folder_of_several_formats_is_no_model_and_one_line_names_one(copied, cohort, tmp_path, capsys):
    shutil.rmtree(copied / "export/1")
    line = refused(capsys, "predict", copied / "export", cohort, tmp_path / "out")
    assert line.endswith(f"name one, such as {copied / 'export/onnx'}") and not (tmp_path / "out").exists()


def test_formats_are_members_of_ensembles_with_flips(written, by_run, cohort, tmp_path):
    models = [written.run.path, *(written.out / name for name in FORMATS)]
    arguments = ["predict", *models, cohort, tmp_path / "out", "--format", "nifti", "--tta", "flip"]
    assert cli.main([str(argument) for argument in arguments]) == 0
    alone = ["predict", written.run.path, cohort, tmp_path / "alone", "--format", "nifti", "--tta", "flip"]
    assert cli.main([str(argument) for argument in alone]) == 0
    found, expected = (masks_in(tmp_path / name)["case1_day0"] for name in ("out", "alone"))
    assert expected.any() and (found != expected).mean() <= DIFFER["tflite-int8"]


def scored(run, dataset):
    """What gitseg evaluate finds of each organ and scan of the held-out fold."""
    count = len(dataset.scans_of([1]))
    with PictureShelf(count) as shelf:
        return score_fold(run, dataset, 1, count, shelf, Reliability())


def test_the_table_has_the_scores_of_gitseg_evaluate_and_goes_into_the_cards(
    copied, drawn_dataset, capsys, monkeypatch
):
    monkeypatch.setattr(comparison, "_SECONDS", 0.01)
    run = load_run(copied)
    assert cli.main(["formats", str(copied), "--scans", "1"]) == 0
    first = pd.read_csv(copied / "export/formats.csv").set_index("format")
    assert cli.main(["formats", str(copied)]) == 0
    table = pd.read_csv(copied / "export/formats.csv").set_index("format")
    rows = scored(run, drawn_dataset)
    expected, of_first = summarise(rows), summarise(rows[rows.scan == rows.scan.iloc[0]])
    assert list(table.index) == list(formats.NAMES) and expected["dice"] > 0.3
    for name in ("savedmodel", "onnx"):
        for score in ("dice", "score"):
            assert table[score][name] == pytest.approx(expected[score], abs=2e-3)
            assert first[score][name] == pytest.approx(of_first[score], abs=2e-3)
    assert abs(expected["dice"] - of_first["dice"]) > 5e-3
    np.testing.assert_allclose(table.dice_loss, expected["dice"] - table.dice, atol=1e-9)
    assert (table.ms > 0).all() and (table.dice_loss < 0.02).all()
    assert table.mib["onnx"] * 2**20 == (copied / "export/onnx/model.onnx").stat().st_size
    for name in FORMATS:
        card = (copied / "export" / name / "model_card.md").read_text()
        assert card.count("## Size, time and scores") == 1 and f"| {name} | {table.mib[name]:.2f} |" in card
    assert f"{table.dice['tflite-int8']:.4f}" in capsys.readouterr().out


def test_what_is_lost_is_against_the_run_in_float32_whatever_the_savedmodel_is(
    copied, drawn_dataset, capsys, monkeypatch
):
    monkeypatch.setattr(comparison, "_SECONDS", 0.01)
    for name in FORMATS:
        shutil.rmtree(copied / "export" / name)
    assert cli.main(["export", str(copied), "--weights", "bfloat16", "--force"]) == 0
    assert cli.main(["formats", str(copied)]) == 0
    exact = summarise(scored(load_run(copied), drawn_dataset))["dice"]
    (row,) = pd.read_csv(copied / "export/formats.csv").itertuples()
    assert row.format == "savedmodel" and row.dice_loss == pytest.approx(exact - row.dice, abs=1e-9) != 0
    assert f"Dice lost is against its network in float32, {exact:.4f}" in capsys.readouterr().out


def refused(capsys, *arguments):
    assert cli.main([str(argument) for argument in arguments]) == 1
    (said,) = [line for line in capsys.readouterr().err.strip().splitlines() if line.startswith("gitseg: ")]
    return said


def contents(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_network_that_is_not_the_runs_is_caught_and_not_written(
    written, drawn_dataset, tmp_path, monkeypatch, refusal
):
    def shifted(model):
        return lambda windows: {"probabilities": tf.sigmoid(model(windows, training=False) + 0.1)}

    monkeypatch.setattr(conversion, "inference", shifted)
    line = refusal(export_formats, written.run, drawn_dataset, ["onnx"], tmp_path / "out", **QUIET)
    assert "onnx" in line and "from those of float32" in line and "more than 0.001" in line
    assert list((tmp_path / "out").iterdir()) == []


def test_masks_that_differ_much_are_warned_of_where_the_format_has_no_limit(
    written, drawn_dataset, tmp_path, monkeypatch
):
    def opposite(file, window):
        network = open_network(file, window)
        return lambda windows: 1 - network(windows).numpy()

    monkeypatch.setattr(formats, "open_network", opposite)
    said = []
    export_formats(written.run, drawn_dataset, ["tflite-int8"], tmp_path, representative=2, say=said.append)
    (line,) = (line for line in said if line.startswith("warning"))
    compared = json.loads((tmp_path / "tflite-int8/model.json").read_text())["format"]["compared_with_float32"]
    assert f"Dice of {compared['dice_of_masks']:.3f} with those of float32" in line and compared["dice_of_masks"] < 0.95
    assert not [line for line in written.said if line.startswith("warning")]


def test_a_format_that_is_there_is_replaced_with_force_alone(copied, capsys):
    before = contents(copied / "export")
    line = refused(capsys, "export", copied, "--format", "savedmodel,onnx", "--model-version", "next")
    assert f"{copied / 'export/onnx'}: exists already" in line and "--force" in line
    assert contents(copied / "export") == before
    assert cli.main(["export", str(copied), "--format", "onnx", "--force"]) == 0
    after = contents(copied / "export")
    assert after[Path("onnx/model.onnx")] != before[Path("onnx/model.onnx")]
    changed = {key for key in before if before[key] != after[key]}
    assert changed and {key.parts[0] for key in changed} == {"onnx"}


def test_an_unfinished_run_and_another_dataset_are_refused(copied, draw, tmp_path, capsys):
    others = draw(tmp_path / "other", [(f"case{k}_day0", (40, 64), range(1, 5)) for k in range(5)])
    config = (copied / "config.yaml").read_text()
    line = refused(capsys, "export", copied, tmp_path / "out", "--format", "onnx", "--data", others.root)
    assert "trained on another dataset" in line
    assert "trained on another dataset" in refused(capsys, "formats", copied, "--data", others.root)
    (copied / "config.yaml").write_text(config.replace("epochs: 3", "epochs: 5"))
    assert "is what gitseg export wrote" in refused(capsys, "evaluate", copied / "export/onnx")
    assert "3 of its 5 epochs" in refused(capsys, "export", copied, tmp_path / "out", "--format", "onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "module, name", [("tf2onnx", "onnx"), ("onnxruntime", "onnx"), ("ai_edge_litert.interpreter", "tflite-float16")]
)
def test_a_missing_package_is_one_line_before_anything_is_written(copied, tmp_path, monkeypatch, capsys, module, name):
    monkeypatch.setitem(sys.modules, module, None)
    line = refused(capsys, "export", copied, tmp_path / "out", "--format", f"savedmodel,{name}")
    assert module.partition(".")[0] in line and "pip install 'gitseg-tf[export]'" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("module, name", [("onnxruntime", "onnx"), ("ai_edge_litert.interpreter", "tflite-int8")])
def test_prediction_without_the_runtime_is_one_line(written, cohort, tmp_path, monkeypatch, capsys, module, name):
    monkeypatch.setitem(sys.modules, module, None)
    line = refused(capsys, "predict", written.out / name, cohort, tmp_path / "out")
    assert "pip install 'gitseg-tf[export]'" in line


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("damage", ["truncated", "empty", "other", "no config", "missing", "other config"])
def test_a_file_that_cannot_be_used_is_one_line_that_names_it(copied, cohort, tmp_path, capsys, name, damage):
    file = copied / "export" / name / FORMATS[name].file
    config = file.with_name("config.yaml")
    if damage in ("truncated", "empty", "other"):
        content = file.read_bytes()
        file.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "other": b"no model " * 50}[damage])
    elif damage == "no config":
        config.unlink()
    elif damage == "missing":
        file.unlink()
    else:
        save_config(load_config(config, {"data.slices": 3}), config)
    line = refused(capsys, "predict", file, cohort, tmp_path / "out")
    assert str(file) in line
    says = {"no config": "config.yaml is missing", "missing": "no such file", "other config": "export the run again"}
    assert says.get(damage, "is damaged") in line
    assert not (tmp_path / "out").exists()


def test_the_table_is_of_what_was_exported_of_the_run_as_it_is(copied, capsys):
    export = copied / "export"
    for inside in ("1", "onnx"):
        assert "has no folder such as 1 or onnx" in refused(capsys, "formats", copied, export / inside)
    save_config(load_config(export / "onnx/config.yaml", {"data.slices": 3}), export / "onnx/config.yaml")
    assert f"{export / 'onnx/model.onnx'}: takes windows" in refused(capsys, "formats", copied)
    run = load_run(copied)
    model = load_model(run)
    model.set_weights([array + 1 for array in model.get_weights()])
    model.save_weights(str(run.weights))
    assert f"{export / '1'}: was not exported from {run.weights} as it is now" in refused(capsys, "formats", copied)
    shutil.rmtree(export)
    assert "has no folder such as 1 or onnx" in refused(capsys, "formats", copied)


def test_a_network_that_is_slow_after_another_one_is_not_slow_by_itself(monkeypatch):
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


def test_scans_without_contours_are_nothing_to_score_by(written, drawn_dataset, monkeypatch, refusal):
    blank = [replace(scan, organ_slices={}) for scan in drawn_dataset.scans_of([1])]
    monkeypatch.setattr(comparison, "scans_of_fold", lambda *_: (1, blank))
    line = refusal(comparison.compare_formats, written.run, drawn_dataset, scans=1)
    assert f"{drawn_dataset.root}: no contour is in 1 scans of fold 1" in line
    assert not (written.out / "formats.csv").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_no_number_is_not_written(written, drawn_dataset, tmp_path, monkeypatch, refusal, name):
    monkeypatch.setattr(formats, "open_network", lambda *_: lambda windows: np.full((*windows.shape[:3], 3), np.nan))
    line = refusal(export_formats, written.run, drawn_dataset, [name], tmp_path / "out", representative=2, **QUIET)
    assert line.startswith(f"{name}: its probabilities are up to nan from those of float32")
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
def test_arguments_that_do_not_go_together_are_wrong_usage(written, arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(written.run.path), *arguments])
    assert ended.value.code == 2


def test_a_3d_run_as_onnx_predicts_as_the_run_does(whole_table, drawn_dataset, cohort, tmp_path):
    volumes = {"model.architecture": "unet3d", "data.patch": [4, 32, 32], "data.fold": 1, "data.size": [64, 64]}
    settings = {"model.filters": 4, "augment": {"on": "accelerator"}, "evaluation.threshold": 0.2, "data.batch_size": 2}
    run = write_run(tmp_path / "run", drawn_dataset, load_config(None, volumes | settings))
    export_formats(run, drawn_dataset, ["onnx"], **QUIET)
    expected, found = (
        predicted([model], cohort, tmp_path / str(number))["case1_day0"]
        for number, model in enumerate((run.path, run.path / "export/onnx"))
    )
    assert 0.001 < expected.mean() < 0.5
    assert (found != expected).mean() <= 1e-4

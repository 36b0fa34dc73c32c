import itertools
import json
import shutil

import numpy as np
import pytest

from gitseg_tf.config import load_config, save_config
from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.data.tfrecords.convert import convert
from gitseg_tf.inference.prediction import Prediction
from gitseg_tf.inference.writers.nifti import NiftiMasks
from gitseg_tf.runs.cross_validation import MARKER, cases_by_fold, fold_runs
from gitseg_tf.viewer.catalog import open_library
from gitseg_tf.viewer.contours import pack_groups


@pytest.fixture
def copied(tiny_cohort, tmp_path):
    return shutil.copytree(tiny_cohort.root, tmp_path / "cohort")


def folder_of(root, scan_id):
    return root / "train" / scan_id.split("_")[0] / scan_id / "scans"


def entry_of(library, scan_id):
    return next(entry for entry in library.entries if entry.id == scan_id)


@pytest.fixture(params=["cohort", "dataset"])
def library(request, tiny_cohort, tiny_dataset):
    return open_library(tiny_cohort.root if request.param == "cohort" else tiny_dataset.root)


def test_voxels_and_masks_match_the_cohort(library, tiny_cohort):
    assert [entry.id for entry in library.entries] == sorted(scan.id for scan in tiny_cohort.scans)
    for entry in library.entries:
        scan, voxels = tiny_cohort[entry.id], entry.read_volume()
        assert voxels.numbers == tuple(scan.numbers) and voxels.spacing == pytest.approx(scan.spacing)
        assert voxels.percentiles[0, -1] == scan.image.max()
        np.testing.assert_array_equal(voxels.voxels, scan.image)
        np.testing.assert_array_equal(entry.read_contours().bits, pack_groups(scan.masks))
        assert entry.case == scan.case and entry.model is None and not entry.broken


def test_a_scan_without_contours_has_none(make_cohort, tmp_path):
    cohort = make_cohort(tmp_path / "cohort", (("case1_day0", (40, 64), range(1, 5)),), labeled=False)
    (entry,) = open_library(cohort.root).entries
    assert entry.read_contours is None and entry.read_volume().shape == (4, 40, 64)


def test_predictions_written_as_nifti_can_be_opened(tiny_cohort, tmp_path):
    cohort = read_cohort(tiny_cohort.root)
    writer = NiftiMasks(cohort, tmp_path / "out", cohort.labels)
    for scan in cohort.scans[:2]:
        writer.write(scan, scan.read_volume(), Prediction(tiny_cohort[scan.id].masks))
    entries = open_library(tmp_path / "out").entries
    assert [entry.id for entry in entries] == ["case1_day0", "case1_day5"]
    for entry in entries:
        np.testing.assert_array_equal(entry.read_volume().voxels, tiny_cohort[entry.id].image)
        np.testing.assert_array_equal(entry.read_contours().bits, pack_groups(tiny_cohort[entry.id].masks))


def test_a_single_file_can_be_opened(tiny_cohort):
    path = sorted(folder_of(tiny_cohort.root, "case1_day0").iterdir())[2]
    (entry,) = open_library(path).entries
    np.testing.assert_array_equal(entry.read_volume().voxels[0], tiny_cohort["case1_day0"].image[2])


def test_a_run_lists_scores_and_marks_training_patients(untrained, tiny_cohort, tiny_dataset):
    library = open_library(untrained)
    written = json.loads((untrained / "evaluation.json").read_text())["per_scan"]
    held_out = {scan.case for scan in tiny_dataset.scans_of([1])}
    assert {entry.id for entry in library.entries if entry.scores} == set(written) != set()
    for entry in library.entries:
        assert entry.model == untrained and entry.trained_on == (entry.case not in held_out)
        if entry.scores:
            scan_scores = written[entry.id]
            assert entry.scores["score"] == scan_scores["score"] and entry.scores["hd95_mm"] == scan_scores["hd95_mm"]
            assert entry.scores["labels"]["stomach"]["dice"] == scan_scores["labels"]["stomach"]["dice"]
        np.testing.assert_array_equal(entry.read_volume().voxels, tiny_cohort[entry.id].image)


def test_a_run_can_be_viewed_with_other_data(untrained, make_cohort, tmp_path):
    cohort = make_cohort(tmp_path / "cohort", (("case9_day0", (40, 64), range(1, 5)),))
    (entry,) = open_library(untrained, cohort.root).entries
    assert (entry.id, entry.model, entry.scores, entry.trained_on) == ("case9_day0", untrained, None, False)


@pytest.fixture
def folds(untrained, tiny_dataset, tmp_path):
    """A cross-validation of the synthetic dataset with three folds."""
    path, cases = tmp_path / "cv", cases_by_fold(tiny_dataset)
    for fold in range(3):
        run = shutil.copytree(untrained, path / f"fold{fold}")
        config = load_config(run / "config.yaml", {"data.fold": fold})
        seen = {"trained_on": sorted(set(itertools.chain(*cases)) - set(cases[fold]))}
        save_config(config.model_copy(update={"provenance": config.provenance | seen}), run / "config.yaml")
    provenance = config.provenance | {"folds": list(map(list, cases))}
    save_config(config.model_copy(update={"provenance": provenance}), path / MARKER)
    shutil.copy(untrained / "evaluation.json", path)
    return path


def test_each_scan_of_a_cross_validation_is_predicted_by_the_run_that_held_it_out(folds, tiny_dataset):
    library = open_library(folds)
    expected = {s.id: folds / f"fold{shard.fold}" for shard in tiny_dataset.shards for s in shard.scans}
    assert {entry.id: entry.model for entry in library.entries} == expected
    assert any(entry.scores for entry in library.entries) and not any(entry.trained_on for entry in library.entries)


def test_each_run_predicts_its_own_held_out_patients_on_data_with_different_folds(
    folds, tiny_cohort, tiny_dataset, tmp_path
):
    other = convert(tiny_cohort.root, tmp_path / "other", folds=4, seed=1, workers=1)
    held_out_by = {case: fold for fold, cases in enumerate(cases_by_fold(tiny_dataset)) for case in cases}
    other_folds = {case: fold for fold, cases in enumerate(cases_by_fold(other)) for case in cases}
    assert held_out_by != other_folds
    for data in (other.root, tiny_cohort.root):
        entries = open_library(folds, data).entries
        assert {entry.case: entry.model.name for entry in entries} == {c: f"fold{f}" for c, f in held_out_by.items()}
        assert not any(entry.trained_on for entry in entries)


def test_a_new_patient_is_predicted_by_all_folds(folds, make_cohort, tmp_path):
    scans = (("case9_day0", (40, 64), range(1, 5)), ("case1_day0", (40, 64), range(1, 5)))
    entries = {entry.case: entry for entry in open_library(folds, make_cohort(tmp_path / "new", scans).root).entries}
    assert entries["case9"].model == folds and not entries["case9"].trained_on
    assert entries["case1"].model in fold_runs(folds)


def test_a_held_out_patient_that_was_trained_on_is_marked(folds, tiny_dataset):
    (case, *_), run = cases_by_fold(tiny_dataset)[2], folds / "fold2"
    config = load_config(run / "config.yaml")
    config.provenance["trained_on"].append(case)
    save_config(config, run / "config.yaml")
    assert {entry.case for entry in open_library(folds).entries if entry.trained_on} == {case}


def test_patients_of_an_untrained_fold_have_no_prediction(folds, tiny_dataset, refusal):
    shutil.rmtree(folds / "fold1")
    library = open_library(folds)
    assert {entry.case for entry in library.entries if entry.model is None} == set(cases_by_fold(tiny_dataset)[1])
    assert any(f"{folds / 'fold1'}: has not been trained" in note for note in library.notes)
    for fold in (0, 2):
        shutil.rmtree(folds / f"fold{fold}")
    assert "no fold has been trained" in refusal(open_library, folds)


def test_a_run_without_an_evaluation_is_noted(untrained, tmp_path):
    run = shutil.copytree(untrained, tmp_path / "run")
    (run / "evaluation.json").unlink()
    library = open_library(run)
    assert "gitseg evaluate" in library.notes[0] and not any(entry.scores for entry in library.entries)


@pytest.mark.parametrize("content", ["{", "{}", '{"per_scan": [1]}', '{"per_scan": {"case1_day0": {}}}'])
def test_a_damaged_evaluation_is_refused(untrained, tmp_path, refusal, content):
    run = shutil.copytree(untrained, tmp_path / "run")
    (run / "evaluation.json").write_text(content)
    assert "evaluation.json: is damaged" in refusal(open_library, run)


def test_an_unreadable_scan_is_listed_with_the_reason(copied):
    path = sorted(folder_of(copied, "case2_day0").iterdir())[0]
    path.rename(path.with_name("slice_1.png"))
    library = open_library(copied)
    broken = entry_of(library, "case2_day0")
    assert "slice_1.png: invalid name" in broken.broken and broken.read_volume is None
    assert not any(entry.broken for entry in library.entries if entry is not broken)


def test_a_damaged_scan_is_named_when_read(copied, refusal):
    path = sorted(folder_of(copied, "case2_day0").iterdir())[0]
    path.write_bytes(path.read_bytes()[:-20])
    assert f"{path}: the PNG is truncated" in refusal(entry_of(open_library(copied), "case2_day0").read_volume)


def test_a_damaged_shard_is_named_when_read(tiny_dataset, tmp_path, refusal):
    root = shutil.copytree(tiny_dataset.root, tmp_path / "records")
    shard = root / tiny_dataset.shards[0].file
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    shard.write_bytes(content)
    entry = entry_of(open_library(root), tiny_dataset.shards[0].scans[0].id)
    assert f"{shard}: the checksum of record 0" in refusal(entry.read_volume)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("nowhere", "contains no scans"), (".", "contains no scans"), ("file.txt", "does not end in any of")],
)
def test_a_path_without_scans_is_refused(tmp_path, refusal, name, expected):
    (tmp_path / "file.txt").write_text("text")
    assert expected in refusal(open_library, tmp_path / name)


def test_a_run_with_missing_records_names_them_and_the_fix(untrained, tiny_dataset, tmp_path, refusal):
    run = shutil.copytree(untrained, tmp_path / "run")
    gone = tmp_path / "gone"
    for exists in (False, True):
        gone.mkdir() if exists else None
        save_config(load_config(run / "config.yaml", {"provenance.records": str(gone)}), run / "config.yaml")
        message = refusal(open_library, run)
        assert f"{run}: was trained on {gone}, which no longer contains scans; give the data" in message
    assert len(open_library(run, tiny_dataset.root).entries) == 9


def test_separate_data_for_a_cohort_is_refused(tiny_cohort, refusal):
    assert "only those take separate data" in refusal(open_library, tiny_cohort.root, tiny_cohort.root)


@pytest.fixture
def exported(untrained, tmp_path):
    """A folder of exported versions with the files that the viewer reads; version N was trained only on case N."""
    for version in (2, 10):
        folder = tmp_path / f"model/{version}"
        (folder / "assets.extra").mkdir(parents=True)
        (folder / "saved_model.pb").write_bytes(b"")
        config = load_config(untrained / "config.yaml")
        config.provenance["trained_on"] = [f"case{version}"]
        save_config(config, folder / "assets.extra/config.yaml")
    return tmp_path / "model"


@pytest.fixture
def two_patients(make_cohort, tmp_path):
    return make_cohort(tmp_path / "two", tuple((f"case{n}_day0", (40, 64), range(1, 5)) for n in (2, 10))).root


@pytest.mark.parametrize(("given", "version"), [(".", 10), ("2", 2), ("10", 10)])
def test_an_export_marks_the_training_patients_of_the_selected_version(exported, two_patients, given, version):
    library = open_library(exported / given, two_patients)
    assert {entry.model for entry in library.entries} == {exported / str(version)}
    assert [entry.case for entry in library.entries if entry.trained_on] == [f"case{version}"]
    assert library.notes == ()


def test_a_model_without_recorded_training_patients_is_noted(exported, two_patients):
    path = exported / "10/assets.extra/config.yaml"
    config = load_config(path)
    del config.provenance["trained_on"]
    save_config(config, path)
    assert "does not record which patients it was trained on" in open_library(exported, two_patients).notes[0]


@pytest.fixture
def onnx(untrained, tmp_path):
    """An ONNX export with the files that the viewer reads; trained only on case 2, with the scores of its run."""
    folder = tmp_path / "model/onnx"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"")
    (folder / "evaluation.json").write_text('{"per_scan": {"case2_day0": {"score": 0.5, "labels": {}}}}')
    config = load_config(untrained / "config.yaml")
    config.provenance["trained_on"] = ["case2"]
    save_config(config, folder / "config.yaml")
    return folder / "model.onnx"


@pytest.mark.parametrize("folder", [True, False])
def test_an_onnx_export_can_be_given_as_folder_or_file(onnx, two_patients, folder):
    library = open_library(onnx.parent if folder else onnx, two_patients)
    assert {entry.model for entry in library.entries} == {onnx}
    assert [entry.case for entry in library.entries if entry.trained_on] == ["case2"]
    # The scores next to it are those of the float32 run.
    assert {entry.scores for entry in library.entries} == {None} and library.notes == ()


def test_an_unusable_onnx_export_is_refused(onnx, two_patients, refusal):
    (onnx.parent / "config.yaml").unlink()
    assert f"{onnx}: was not made by gitseg export" in refusal(open_library, onnx, two_patients)
    onnx.unlink()
    assert f"{onnx}: no such file" in refusal(open_library, onnx, two_patients)


def test_a_config_linked_from_elsewhere_is_refused_unless_allowed(onnx, two_patients, tmp_path, refusal):
    config, secret = onnx.parent / "config.yaml", tmp_path / "secret"
    secret.mkdir()
    shutil.move(config, secret / "config.yaml")
    config.symlink_to(secret / "config.yaml")
    assert f"allow the folder {secret}" in refusal(open_library, onnx, two_patients)
    assert open_library(onnx, two_patients, (secret,)).entries


def test_an_export_requires_data(exported, onnx, refusal):
    for given in (exported, onnx, onnx.parent):
        assert "give data as well" in refusal(open_library, given)


def test_a_savedmodel_not_made_by_gitseg_is_refused(exported, two_patients, refusal):
    shutil.rmtree(exported / "10/assets.extra")
    assert f"{exported / '10'}: was not made by gitseg export" in refusal(open_library, exported, two_patients)


# Links


@pytest.fixture
def elsewhere(make_cohort, tmp_path):
    """Another cohort, outside the given folders."""
    return make_cohort(tmp_path / "elsewhere", (("case8_day0", (40, 64), range(1, 5)),)).root


def test_a_slice_linked_from_outside_makes_its_scan_unreadable(copied, elsewhere):
    path = sorted(folder_of(copied, "case1_day0").iterdir())[0]
    target = sorted(folder_of(elsewhere, "case8_day0").iterdir())[0]
    path.unlink()
    path.symlink_to(target)
    library = open_library(copied)
    assert f"{path}: points to {target}, outside the given folders" in entry_of(library, "case1_day0").broken
    assert [entry.id for entry in library.entries if entry.broken] == ["case1_day0"]
    assert not any(entry.broken for entry in open_library(copied, allowed=(elsewhere,)).entries)


def test_a_folder_linked_from_outside_makes_its_scan_unreadable(copied, elsewhere):
    folder = folder_of(copied, "case1_day0")
    shutil.move(folder, elsewhere / "moved")
    folder.symlink_to(elsewhere / "moved")
    assert "outside the given folders" in entry_of(open_library(copied), "case1_day0").broken
    assert not entry_of(open_library(copied, allowed=(elsewhere,)), "case1_day0").broken


def test_a_link_within_the_folder_is_followed(copied):
    folder = folder_of(copied, "case1_day0")
    shutil.move(folder, copied / "moved")
    folder.symlink_to(copied / "moved")
    assert not entry_of(open_library(copied), "case1_day0").broken


def test_the_given_folder_can_be_a_link(tiny_cohort, tmp_path):
    (tmp_path / "link").symlink_to(tiny_cohort.root)
    assert not any(entry.broken for entry in open_library(tmp_path / "link").entries)


def test_a_slice_linked_from_outside_after_listing_is_refused(copied, elsewhere, refusal):
    entry = entry_of(open_library(copied), "case1_day0")
    path = sorted(folder_of(copied, "case1_day0").iterdir())[0]
    path.unlink()
    path.symlink_to(sorted(folder_of(elsewhere, "case8_day0").iterdir())[0])
    assert "outside the given folders" in refusal(entry.read_volume)
    assert "outside the given folders" in refusal(entry.read_contours)


def test_a_sibling_folder_with_the_same_name_prefix_is_outside(copied, elsewhere, tmp_path):
    sibling = shutil.copytree(elsewhere, tmp_path / "cohort-private")
    path = sorted(folder_of(copied, "case1_day0").iterdir())[0]
    path.unlink()
    path.symlink_to(sorted(folder_of(sibling, "case8_day0").iterdir())[0])
    assert "outside the given folders" in entry_of(open_library(copied), "case1_day0").broken


def test_a_table_linked_from_outside_is_refused(copied, elsewhere, refusal):
    shutil.move(copied / "train.csv", elsewhere / "other.csv")
    (copied / "train.csv").symlink_to(elsewhere / "other.csv")
    assert "train.csv: points to" in refusal(open_library, copied)


def test_a_shard_linked_from_outside_is_refused(tiny_dataset, tmp_path, refusal):
    root = shutil.copytree(tiny_dataset.root, tmp_path / "records")
    shard = root / tiny_dataset.shards[0].file
    shutil.move(shard, tmp_path / "shard")
    shard.symlink_to(tmp_path / "shard")
    assert "outside the given folders" in refusal(open_library, root)


def test_a_shard_linked_from_outside_after_listing_is_refused(tiny_dataset, tmp_path, refusal):
    root = shutil.copytree(tiny_dataset.root, tmp_path / "records")
    shard = root / tiny_dataset.shards[0].file
    entry = entry_of(open_library(root), tiny_dataset.shards[0].scans[0].id)
    shutil.move(shard, tmp_path / "shard")
    shard.symlink_to(tmp_path / "shard")
    assert "outside the given folders" in refusal(entry.read_volume)
    assert "outside the given folders" in refusal(entry.read_contours)


def test_an_evaluation_linked_from_outside_is_refused(untrained, tmp_path, refusal):
    run = shutil.copytree(untrained, tmp_path / "run")
    shutil.move(run / "evaluation.json", tmp_path / "other.json")
    (run / "evaluation.json").symlink_to(tmp_path / "other.json")
    assert "evaluation.json: points to" in refusal(open_library, run)


def test_a_nifti_image_linked_from_outside_makes_its_scan_unreadable(tiny_cohort, nifti, tmp_path):
    scan = tiny_cohort["case1_day0"]
    for name in ("case1_day0", "case2_day0"):
        affine = nifti.affine_of(scan, "LPI")
        nifti.save(tmp_path / "cohort" / name / "image.nii.gz", nifti.stored_as(scan.image, "LPI"), affine)
    image = tmp_path / "cohort/case2_day0/image.nii.gz"
    shutil.move(image, tmp_path / "image.nii.gz")
    image.symlink_to(tmp_path / "image.nii.gz")
    library = open_library(tmp_path / "cohort")
    assert [bool(entry.broken) for entry in library.entries] == [False, True]


def test_dicom_is_read_with_its_structures_and_links_to_outside_make_a_scan_unreadable(
    patients, write, clinic, tmp_path
):
    for index in (0, 2):
        write(index).write_series().write_structures()
    structures = clinic / patients.scans[2].id / "RS.dcm"
    shutil.move(structures, tmp_path / "RS.dcm")
    structures.symlink_to(tmp_path / "RS.dcm")
    good, broken = open_library(clinic).entries
    np.testing.assert_array_equal(good.read_volume().voxels, patients.scans[0].image)
    assert good.read_contours().bits.any() and "RS.dcm: points to" in broken.broken

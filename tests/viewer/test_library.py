import itertools
import json
import shutil

import numpy as np
import pytest

from gitseg_tf.config import load_config, save_config
from gitseg_tf.data.convert import convert
from gitseg_tf.data.records import pack_masks
from gitseg_tf.data.scans import read_cohort
from gitseg_tf.inference.nifti_files import write_nifti
from gitseg_tf.training.cross_validation import MARKER, cases_by_fold, fold_runs
from gitseg_tf.viewer.library import open_library


@pytest.fixture
def copied(drawn, tmp_path):
    return shutil.copytree(drawn.root, tmp_path / "cohort")


def folder_of(root, scan_id):
    return root / "train" / scan_id.split("_")[0] / scan_id / "scans"


def entry_of(library, scan_id):
    return next(entry for entry in library.entries if entry.id == scan_id)


@pytest.fixture(params=["cohort", "dataset"])
def library(request, drawn, drawn_dataset):
    return open_library(drawn.root if request.param == "cohort" else drawn_dataset.root)


def test_voxels_and_contours_are_those_that_were_drawn(library, drawn):
    assert [entry.id for entry in library.entries] == sorted(scan.id for scan in drawn.scans)
    for entry in library.entries:
        scan, voxels = drawn[entry.id], entry.read_voxels()
        assert voxels.numbers == tuple(scan.numbers) and voxels.spacing == pytest.approx(scan.spacing)
        assert voxels.percentiles[-1] == scan.image.max()
        np.testing.assert_array_equal(voxels.image, scan.image)
        np.testing.assert_array_equal(entry.read_contours(), pack_masks(scan.masks))
        assert entry.case == scan.case and entry.model is None and not entry.broken


def test_a_scan_without_contours_has_none(draw, tmp_path):
    cohort = draw(tmp_path / "cohort", (("case1_day0", (40, 64), range(1, 5)),), labelled=False)
    (entry,) = open_library(cohort.root).entries
    assert entry.read_contours is None and entry.read_voxels().image.shape == (4, 40, 64)


def test_predictions_written_as_nifti_are_a_source(drawn, tmp_path):
    for scan in read_cohort(drawn.root).scans[:2]:
        write_nifti(tmp_path / "out", scan, drawn[scan.id].image, drawn[scan.id].masks)
    entries = open_library(tmp_path / "out").entries
    assert [entry.id for entry in entries] == ["case1_day0", "case1_day5"]
    for entry in entries:
        np.testing.assert_array_equal(entry.read_voxels().image, drawn[entry.id].image)
        np.testing.assert_array_equal(entry.read_contours(), pack_masks(drawn[entry.id].masks))


def test_a_single_file_is_a_source(drawn):
    path = sorted(folder_of(drawn.root, "case1_day0").iterdir())[2]
    (entry,) = open_library(path).entries
    np.testing.assert_array_equal(entry.read_voxels().image[0], drawn["case1_day0"].image[2])


def test_a_run_has_the_scores_of_its_evaluation_and_says_what_it_was_trained_on(untrained, drawn, drawn_dataset):
    library = open_library(untrained)
    written = json.loads((untrained / "evaluation.json").read_text())["per_scan"]
    held_out = {scan.case for scan in drawn_dataset.scans_of([1])}
    assert {entry.id for entry in library.entries if entry.scores} == set(written) != set()
    for entry in library.entries:
        assert entry.model == untrained and entry.trained_on == (entry.case not in held_out)
        if entry.scores:
            own = written[entry.id]
            assert entry.scores["score"] == own["score"] and entry.scores["hd95_mm"] == own["hd95_mm"]
            assert entry.scores["organs"]["stomach"]["dice"] == own["organs"]["stomach"]["dice"]
        np.testing.assert_array_equal(entry.read_voxels().image, drawn[entry.id].image)


def test_a_run_can_be_looked_at_with_other_data(untrained, draw, tmp_path):
    cohort = draw(tmp_path / "cohort", (("case9_day0", (40, 64), range(1, 5)),))
    (entry,) = open_library(untrained, cohort.root).entries
    assert (entry.id, entry.model, entry.scores, entry.trained_on) == ("case9_day0", untrained, None, False)


@pytest.fixture
def folds(untrained, drawn_dataset, tmp_path):
    """A cross-validation of the drawn dataset in three folds."""
    path, cases = tmp_path / "cv", cases_by_fold(drawn_dataset)
    for fold in range(3):
        run = shutil.copytree(untrained, path / f"fold{fold}")
        config = load_config(run / "config.yaml", {"data.fold": fold})
        seen = {"trained_on": sorted(set(itertools.chain(*cases)) - set(cases[fold]))}
        save_config(config.model_copy(update={"provenance": config.provenance | seen}), run / "config.yaml")
    provenance = config.provenance | {"folds": list(map(list, cases))}
    save_config(config.model_copy(update={"provenance": provenance}), path / MARKER)
    shutil.copy(untrained / "evaluation.json", path)
    return path


def test_of_a_cross_validation_each_scan_is_predicted_by_the_run_that_held_it_out(folds, drawn_dataset):
    library = open_library(folds)
    expected = {s.id: folds / f"fold{shard.fold}" for shard in drawn_dataset.shards for s in shard.scans}
    assert {entry.id: entry.model for entry in library.entries} == expected
    assert any(entry.scores for entry in library.entries) and not any(entry.trained_on for entry in library.entries)


def test_with_data_cut_into_other_folds_each_run_predicts_whom_it_held_out_itself(
    folds, drawn, drawn_dataset, tmp_path
):
    other = convert(drawn.root, tmp_path / "other", folds=4, seed=1, workers=1)
    held_out_by = {case: fold for fold, cases in enumerate(cases_by_fold(drawn_dataset)) for case in cases}
    cut_otherwise = {case: fold for fold, cases in enumerate(cases_by_fold(other)) for case in cases}
    assert held_out_by != cut_otherwise
    for data in (other.root, drawn.root):
        entries = open_library(folds, data).entries
        assert {entry.case: entry.model.name for entry in entries} == {c: f"fold{f}" for c, f in held_out_by.items()}
        assert not any(entry.trained_on for entry in entries)


def test_a_patient_of_no_fold_is_predicted_by_all_runs(folds, draw, tmp_path):
    scans = (("case9_day0", (40, 64), range(1, 5)), ("case1_day0", (40, 64), range(1, 5)))
    entries = {entry.case: entry for entry in open_library(folds, draw(tmp_path / "new", scans).root).entries}
    assert entries["case9"].model == folds and not entries["case9"].trained_on
    assert entries["case1"].model in fold_runs(folds)


def test_a_run_that_has_seen_whom_it_should_hold_out_is_marked(folds, drawn_dataset):
    (case, *_), run = cases_by_fold(drawn_dataset)[2], folds / "fold2"
    config = load_config(run / "config.yaml")
    config.provenance["trained_on"].append(case)
    save_config(config, run / "config.yaml")
    assert {entry.case for entry in open_library(folds).entries if entry.trained_on} == {case}


def test_patients_of_a_fold_that_was_not_trained_have_no_prediction(folds, drawn_dataset, refusal):
    shutil.rmtree(folds / "fold1")
    library = open_library(folds)
    assert {entry.case for entry in library.entries if entry.model is None} == set(cases_by_fold(drawn_dataset)[1])
    assert any(f"{folds / 'fold1'}: has not been trained" in note for note in library.notes)
    for fold in (0, 2):
        shutil.rmtree(folds / f"fold{fold}")
    assert "no fold has been trained" in refusal(open_library, folds)


def test_a_run_without_evaluation_says_so(untrained, tmp_path):
    run = shutil.copytree(untrained, tmp_path / "run")
    (run / "evaluation.json").unlink()
    library = open_library(run)
    assert "gitseg evaluate" in library.notes[0] and not any(entry.scores for entry in library.entries)


@pytest.mark.parametrize("content", ["{", "{}", '{"per_scan": [1]}', '{"per_scan": {"case1_day0": {}}}'])
def test_a_damaged_evaluation_is_refused(untrained, tmp_path, refusal, content):
    run = shutil.copytree(untrained, tmp_path / "run")
    (run / "evaluation.json").write_text(content)
    assert "evaluation.json: is damaged" in refusal(open_library, run)


def test_a_broken_scan_is_in_the_list_with_its_reason(copied):
    path = sorted(folder_of(copied, "case2_day0").iterdir())[0]
    path.rename(path.with_name("slice_1.png"))
    library = open_library(copied)
    broken = entry_of(library, "case2_day0")
    assert "slice_1.png: the name is not" in broken.broken and broken.read_voxels is None
    assert not any(entry.broken for entry in library.entries if entry is not broken)


def test_a_scan_that_turns_out_damaged_says_why(copied, refusal):
    path = sorted(folder_of(copied, "case2_day0").iterdir())[0]
    path.write_bytes(path.read_bytes()[:-20])
    assert f"{path}: the PNG is truncated" in refusal(entry_of(open_library(copied), "case2_day0").read_voxels)


def test_a_damaged_shard_says_so(drawn_dataset, tmp_path, refusal):
    root = shutil.copytree(drawn_dataset.root, tmp_path / "records")
    shard = root / drawn_dataset.shards[0].file
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    shard.write_bytes(content)
    entry = entry_of(open_library(root), drawn_dataset.shards[0].scans[0].id)
    assert f"{shard}: the checksum of record 0" in refusal(entry.read_voxels)


@pytest.mark.parametrize(
    ("name", "says"), [("nowhere", "holds no scans"), (".", "holds no scans"), ("file.txt", "ends in none of")]
)
def test_what_holds_no_scans_is_refused(tmp_path, refusal, name, says):
    (tmp_path / "file.txt").write_text("text")
    assert says in refusal(open_library, tmp_path / name)


def test_a_run_whose_records_are_gone_says_where_they_were_and_what_helps(untrained, drawn_dataset, tmp_path, refusal):
    run = shutil.copytree(untrained, tmp_path / "run")
    gone = tmp_path / "gone"
    for there in (False, True):
        gone.mkdir() if there else None
        save_config(load_config(run / "config.yaml", {"provenance.records": str(gone)}), run / "config.yaml")
        said = refusal(open_library, run)
        assert f"{run}: was trained on {gone}, which holds no scans any more" in said and "--data" in said
    assert len(open_library(run, drawn_dataset.root).entries) == 9


def test_data_for_what_is_no_run_is_refused(drawn, refusal):
    assert "--data is for runs" in refusal(open_library, drawn.root, drawn.root)


@pytest.fixture
def exported(untrained, tmp_path):
    """A folder of exported versions, by what the list reads of them; version N was trained on case N alone."""
    for version in (2, 10):
        folder = tmp_path / f"model/{version}"
        (folder / "assets.extra").mkdir(parents=True)
        (folder / "saved_model.pb").write_bytes(b"")
        config = load_config(untrained / "config.yaml")
        config.provenance["trained_on"] = [f"case{version}"]
        save_config(config, folder / "assets.extra/config.yaml")
    return tmp_path / "model"


@pytest.fixture
def two_patients(draw, tmp_path):
    return draw(tmp_path / "two", tuple((f"case{n}_day0", (40, 64), range(1, 5)) for n in (2, 10))).root


@pytest.mark.parametrize(("given", "version"), [(".", 10), ("2", 2), ("10", 10)])
def test_an_export_marks_whom_its_highest_or_the_named_version_was_trained_on(exported, two_patients, given, version):
    library = open_library(exported / given, two_patients)
    assert {entry.model for entry in library.entries} == {exported / str(version)}
    assert [entry.case for entry in library.entries if entry.trained_on] == [f"case{version}"]
    assert library.notes == ()


def test_a_model_that_does_not_say_whom_it_was_trained_on_is_noted(exported, two_patients):
    path = exported / "10/assets.extra/config.yaml"
    config = load_config(path)
    del config.provenance["trained_on"]
    save_config(config, path)
    assert "does not say whom it was trained on" in open_library(exported, two_patients).notes[0]


@pytest.fixture
def onnx(untrained, tmp_path):
    """A file of another format, by what the list reads of it: trained on case 2 alone, with the scores of its run."""
    folder = tmp_path / "model/onnx"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"")
    (folder / "evaluation.json").write_text('{"per_scan": {"case2_day0": {"score": 0.5, "organs": {}}}}')
    config = load_config(untrained / "config.yaml")
    config.provenance["trained_on"] = ["case2"]
    save_config(config, folder / "config.yaml")
    return folder / "model.onnx"


@pytest.mark.parametrize("folder", [True, False])
def test_other_formats_are_taken_as_gitseg_predict_takes_them(onnx, two_patients, folder):
    library = open_library(onnx.parent if folder else onnx, two_patients)
    assert {entry.model for entry in library.entries} == {onnx}
    assert [entry.case for entry in library.entries if entry.trained_on] == ["case2"]
    # The scores that lie beside it are those of the run in float32.
    assert {entry.scores for entry in library.entries} == {None} and library.notes == ()


def test_a_file_of_another_format_that_cannot_be_used_is_refused(onnx, two_patients, refusal):
    (onnx.parent / "config.yaml").unlink()
    assert f"{onnx}: was not made by gitseg export" in refusal(open_library, onnx, two_patients)
    onnx.unlink()
    assert f"{onnx}: there is no such file" in refusal(open_library, onnx, two_patients)


def test_a_config_beside_a_network_that_lies_elsewhere_is_refused_unless_allowed(onnx, two_patients, tmp_path, refusal):
    config, secret = onnx.parent / "config.yaml", tmp_path / "secret"
    secret.mkdir()
    shutil.move(config, secret / "config.yaml")
    config.symlink_to(secret / "config.yaml")
    assert f"--allow {secret}" in refusal(open_library, onnx, two_patients)
    assert open_library(onnx, two_patients, (secret,)).entries


def test_an_export_needs_data(exported, onnx, refusal):
    for given in (exported, onnx, onnx.parent):
        assert "name some with --data" in refusal(open_library, given)


def test_a_saved_model_of_another_program_is_refused(exported, two_patients, refusal):
    shutil.rmtree(exported / "10/assets.extra")
    assert f"{exported / '10'}: was not made by gitseg export" in refusal(open_library, exported, two_patients)


# Links


@pytest.fixture
def elsewhere(draw, tmp_path):
    """Another cohort, which was not given."""
    return draw(tmp_path / "elsewhere", (("case8_day0", (40, 64), range(1, 5)),)).root


def test_a_slice_that_is_a_link_out_makes_its_scan_broken(copied, elsewhere):
    path = sorted(folder_of(copied, "case1_day0").iterdir())[0]
    target = sorted(folder_of(elsewhere, "case8_day0").iterdir())[0]
    path.unlink()
    path.symlink_to(target)
    library = open_library(copied)
    assert f"{path}: leads to {target}, outside of the given folders" in entry_of(library, "case1_day0").broken
    assert [entry.id for entry in library.entries if entry.broken] == ["case1_day0"]
    assert not any(entry.broken for entry in open_library(copied, allowed=(elsewhere,)).entries)


def test_a_folder_that_is_a_link_out_makes_its_scan_broken(copied, elsewhere):
    folder = folder_of(copied, "case1_day0")
    shutil.move(folder, elsewhere / "moved")
    folder.symlink_to(elsewhere / "moved")
    assert "outside of the given folders" in entry_of(open_library(copied), "case1_day0").broken
    assert not entry_of(open_library(copied, allowed=(elsewhere,)), "case1_day0").broken


def test_a_link_within_the_folder_is_followed(copied):
    folder = folder_of(copied, "case1_day0")
    shutil.move(folder, copied / "moved")
    folder.symlink_to(copied / "moved")
    assert not entry_of(open_library(copied), "case1_day0").broken


def test_the_given_folder_may_be_a_link_itself(drawn, tmp_path):
    (tmp_path / "link").symlink_to(drawn.root)
    assert not any(entry.broken for entry in open_library(tmp_path / "link").entries)


def test_a_link_that_is_laid_after_listing_is_refused(copied, elsewhere, refusal):
    entry = entry_of(open_library(copied), "case1_day0")
    path = sorted(folder_of(copied, "case1_day0").iterdir())[0]
    path.unlink()
    path.symlink_to(sorted(folder_of(elsewhere, "case8_day0").iterdir())[0])
    assert "outside of the given folders" in refusal(entry.read_voxels)
    assert "outside of the given folders" in refusal(entry.read_contours)


def test_a_folder_beside_whose_name_begins_alike_is_outside(copied, elsewhere, tmp_path):
    beside = shutil.copytree(elsewhere, tmp_path / "cohort-private")
    path = sorted(folder_of(copied, "case1_day0").iterdir())[0]
    path.unlink()
    path.symlink_to(sorted(folder_of(beside, "case8_day0").iterdir())[0])
    assert "outside of the given folders" in entry_of(open_library(copied), "case1_day0").broken


def test_a_table_that_is_a_link_out_is_refused(copied, elsewhere, refusal):
    shutil.move(copied / "train.csv", elsewhere / "other.csv")
    (copied / "train.csv").symlink_to(elsewhere / "other.csv")
    assert "train.csv: leads to" in refusal(open_library, copied)


def test_a_shard_that_is_a_link_out_is_refused(drawn_dataset, tmp_path, refusal):
    root = shutil.copytree(drawn_dataset.root, tmp_path / "records")
    shard = root / drawn_dataset.shards[0].file
    shutil.move(shard, tmp_path / "shard")
    shard.symlink_to(tmp_path / "shard")
    assert "outside of the given folders" in refusal(open_library, root)


def test_a_shard_that_becomes_a_link_out_after_listing_is_refused(drawn_dataset, tmp_path, refusal):
    root = shutil.copytree(drawn_dataset.root, tmp_path / "records")
    shard = root / drawn_dataset.shards[0].file
    entry = entry_of(open_library(root), drawn_dataset.shards[0].scans[0].id)
    shutil.move(shard, tmp_path / "shard")
    shard.symlink_to(tmp_path / "shard")
    assert "outside of the given folders" in refusal(entry.read_voxels)
    assert "outside of the given folders" in refusal(entry.read_contours)


def test_an_evaluation_that_is_a_link_out_is_refused(untrained, tmp_path, refusal):
    run = shutil.copytree(untrained, tmp_path / "run")
    shutil.move(run / "evaluation.json", tmp_path / "other.json")
    (run / "evaluation.json").symlink_to(tmp_path / "other.json")
    assert "evaluation.json: leads to" in refusal(open_library, run)


def test_a_nifti_image_that_is_a_link_out_makes_its_scan_broken(drawn, nifti, tmp_path):
    scan = drawn["case1_day0"]
    for name in ("case1_day0", "case2_day0"):
        affine = nifti.affine_of(scan, "LPI")
        nifti.save(tmp_path / "cohort" / name / "image.nii.gz", nifti.stored_as(scan.image, "LPI"), affine)
    image = tmp_path / "cohort/case2_day0/image.nii.gz"
    shutil.move(image, tmp_path / "image.nii.gz")
    image.symlink_to(tmp_path / "image.nii.gz")
    library = open_library(tmp_path / "cohort")
    assert [bool(entry.broken) for entry in library.entries] == [False, True]


def test_dicom_is_read_with_its_structures_and_a_link_out_makes_its_scan_broken(patients, write, clinic, tmp_path):
    for index in (0, 2):
        write(index).write_series().write_structures()
    structures = clinic / patients.scans[2].id / "RS.dcm"
    shutil.move(structures, tmp_path / "RS.dcm")
    structures.symlink_to(tmp_path / "RS.dcm")
    good, broken = open_library(clinic).entries
    np.testing.assert_array_equal(good.read_voxels().image, patients.scans[0].image)
    assert good.read_contours().any() and "RS.dcm: leads to" in broken.broken

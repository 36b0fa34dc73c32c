"""The ranking of scans by disagreement: a case worked by hand, and planted errors that come first."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.folds import random_cross_validation
from scipy.ndimage import binary_dilation

from gitseg_tf.data.volume import Annotation
from gitseg_tf.evaluation import disagreement
from gitseg_tf.evaluation.disagreement import LabelDisagreement, ScanDisagreement, measure_disagreement, rank_scans
from gitseg_tf.labels import LabelSet

LABELS = LabelSet.of("liver", "spleen", "eye")
SPACING = (2.0, 1.0, 1.0)


def test_agreement_is_a_dice_weighted_by_certainty():
    # Eight slices of four voxels: annotated are voxels 0 and 1 of slices 0 to 5, predicted voxels 1 and 2.
    masks, levels = np.zeros((3, 8, 2, 2), bool), np.zeros((3, 8, 4), np.uint8)
    masks[0, :6, 0] = True
    levels[0, :6, 1], levels[0, :6, 2] = 94, 69
    annotation = Annotation(masks, np.array([True, True, False]))
    liver, spleen = measure_disagreement(levels.reshape(3, 8, 2, 2), annotation, LABELS, SPACING, range(11, 19))
    missed, hit, extra = 0.99, 0.89, 0.39  # |2 p - 1| for p = 0.005, 0.945 and 0.695
    assert liver.agreement == pytest.approx(2 * hit / (2 * hit + missed + extra), rel=1e-6)
    size = 2 * hit + missed + extra
    assert liver.block_agreement == pytest.approx(1 - 5 * (missed + extra) / (5 * size + size), rel=1e-6)
    assert liver.label == "liver" and liver.slices == (11, 15)
    assert liver.size_ratio == 1
    assert (liver.missing_ml, liver.extra_ml) == pytest.approx((6 * 2 / 1000, 6 * 2 / 1000))
    assert spleen.label == "spleen" and np.isnan(spleen.agreement)


def test_ignored_voxels_do_not_count():
    rng = np.random.default_rng(0)
    masks, levels = rng.random((3, 6, 9, 9)) < 0.4, rng.integers(0, 100, (3, 6, 9, 9), np.uint8)
    ignore = np.zeros((6, 9, 9), bool)
    ignore[:, 5:] = True
    annotated = np.ones(3, bool)
    part = measure_disagreement(levels[:, :, :5], Annotation(masks[:, :, :5], annotated), LABELS, SPACING, range(6))
    assert measure_disagreement(levels, Annotation(masks, annotated, ignore), LABELS, SPACING, range(6)) == part


def ball(depth=40, size=48, center=(20, 24, 24), radius=10.0):
    z, y, x = np.ogrid[:depth, :size, :size]
    return (z - center[0]) ** 2 + (y - center[1]) ** 2 + (x - center[2]) ** 2 < radius**2


def exchanged(masks):
    masks[[0, 1]] = masks[[1, 0]]


def shifted(masks):
    masks[:] = np.roll(masks, 4, axis=1)


def incomplete(masks):
    masks[0, 17:22] = False


def wrong_label(masks):
    masks[1, 17:22] |= masks[0, 17:22]
    masks[0, 17:22] = False


def too_large(masks):
    masks[0] = [binary_dilation(plane, iterations=3) for plane in masks[0]]


@pytest.mark.parametrize("error", [exchanged, shifted, incomplete, wrong_label, too_large])
def test_a_planted_error_comes_first(error):
    scans = []
    for n in range(20):
        rng = np.random.default_rng(n)
        centers = [(20, 14, 14), (20, 34, 34), (20, 14, 36)]
        truth = np.stack([ball(center=c, radius=rng.uniform(8, 11)) for c in centers])
        # Predictions are off by a voxel here and there; the third label is predicted badly in all scans.
        moved = np.stack([np.roll(mask, rng.integers(-1, 2), axis=2) for mask in truth])
        moved[2] = np.roll(truth[2], rng.integers(3, 6), axis=1)
        levels = np.where(moved, rng.integers(70, 100, moved.shape), rng.integers(0, 30, moved.shape)).astype(np.uint8)
        if n == 7:
            error(truth)
        found = measure_disagreement(levels, Annotation.complete(truth), LABELS, SPACING, range(40))
        scans.append(ScanDisagreement(f"scan{n:02d}", f"case{n}", 0, tuple(found), {}))
    ranking = rank_scans(scans)
    assert ranking[0].scan == "scan07" and ranking[0].score > 1.5 * ranking[1].score
    assert ranking[0].worst.label in ("liver", "spleen")
    if error in (incomplete, wrong_label):
        first, last = ranking[0].worst.slices
        assert first <= 21 and last >= 17


def test_each_label_is_compared_with_its_own_distribution():
    def scan(n, liver, eye):
        each = (
            LabelDisagreement("liver", liver, liver, (1, 5), 1, 0, 0),
            LabelDisagreement("eye", eye, eye, (1, 5), 1, 0, 0),
        )
        return ScanDisagreement(f"scan{n}", "", 0, each, {})

    # Three medians and deviations by hand: liver 0.95 and the least spread, eye 0.5 and 1.4826 * 0.1.
    scans = [scan(0, 0.95, 0.5), scan(1, 0.95, 0.4), scan(2, 0.85, 0.6), scan(3, 0.95, 0.3), scan(4, 0.95, 0.6)]
    ranking = rank_scans(scans)
    assert [one.scan for one in ranking] == ["scan2", "scan3", "scan1", "scan0", "scan4"]
    assert ranking[0].suspicion["liver"] == pytest.approx(0.1 / 0.02)
    assert ranking[1].suspicion["eye"] == pytest.approx(0.2 / (1.4826 * 0.1))


@pytest.mark.slow
def test_inspecting_a_cross_validation_ranks_its_scans(make_cohort, rows_of, save_table, tmp_path, monkeypatch, capsys):
    from gitseg_tf.cli import main
    from gitseg_tf.data.tfrecords.convert import convert

    cohort = make_cohort(tmp_path / "cohort")
    truth = {scan.id: scan.masks.copy() for scan in cohort.scans}
    numbers = {scan.id: scan.numbers for scan in cohort.scans}
    planted = cohort["case3_day7"].masks
    planted[[0, 1]] = planted[[1, 0]]
    save_table(cohort.root, rows_of(cohort.scans))
    dataset = convert(cohort.root, tmp_path / "dataset", folds=3, workers=1)
    folds = random_cross_validation(tmp_path / "folds", dataset)
    seen = []

    def of_run(run, network=None):
        """A network that predicts the true masks, with some voxels missing, and knows which fold it was trained on."""

        def predict_levels(volume):
            marks = cohort.marks_in(np.moveaxis(volume.voxels, 0, -1) / 4000)
            scan = cohort.scan_of(int(marks[0]))
            assert scan.case not in run.config.provenance["trained_on"]
            seen.append(scan.id)
            noise = np.random.default_rng(len(seen)).random(truth[scan.id].shape) < 0.1
            return SimpleNamespace(levels=np.where(truth[scan.id] & ~noise, 95, 3).astype(np.uint8))

        return SimpleNamespace(predict_levels=predict_levels)

    monkeypatch.setattr(disagreement.Predictor, "of_run", of_run)
    page = tmp_path / "doubtful.html"
    assert main(["inspect", str(folds), "--out", str(page)]) == 0
    out = capsys.readouterr().out
    rows = list(csv.DictReader(page.with_suffix(".csv").open()))
    assert sorted(seen) == sorted({row["scan"] for row in rows}) == sorted(truth)
    assert rows[0]["scan"] == "case3_day7" and rows[0]["rank"] == "1" and float(rows[0]["score"]) > 5
    assert {row["scan"] for row in rows[3:] if float(row["score"]) > 5} == set()
    assert out.splitlines()[1].split()[:2] == ["1", "case3_day7"] and f"page       {page}" in out
    html = page.read_text()
    assert html.count("data:image/png") > 9 and "case3_day7" in html
    first, last = map(int, rows[0]["slices"].split("-"))
    assert {first, last} <= set(numbers["case3_day7"])

    seen.clear()
    assert main(["inspect", str(folds / "fold1"), "--out", str(page)]) == 0
    held_out = {scan.id for scan in dataset.scans_of([1])}
    assert set(seen) == held_out == {row["scan"] for row in csv.DictReader(page.with_suffix(".csv").open())}


def test_options_of_the_other_form_of_inspect_are_wrong_usage(tiny_cohort, tmp_path, monkeypatch, capsys):
    from gitseg_tf.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    for words, problem in (
        (["run", "--strict"], "--strict is for a cohort or a dataset"),
        ([str(tiny_cohort.root), "--data", "other"], "--data is for a run"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["inspect", *words])
        assert stopped.value.code == 2 and problem in capsys.readouterr().err
    assert not list(tmp_path.glob("*.html"))

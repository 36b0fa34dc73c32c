import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gitseg_tf.cli import main
from gitseg_tf.evaluation.statistics.compare import (
    compare,
    draw_comparison,
    read_evaluation,
    signed_rank_p,
    table_lines,
)
from gitseg_tf.labels import UWMGI

ALL = ""
SCORES = ("score_volume", "dice", "hd95_mm", "surface_dice")
TITLES = ("score_volume", "Dice", "HD95 mm", "surface Dice")
SCANS = {f"case{k}": 1 + k % 3 for k in range(1, 8)}


def rows_of(scans, seed=0):
    """Rows of evaluation.csv with random scores: {case: number of scans}."""
    draw = np.random.default_rng(seed)
    rows = pd.DataFrame(
        [
            {"scan": f"{case}_day{day}", "case": case, "label": label, "truth_ml": 10.0}
            for case, number in scans.items()
            for day in range(number)
            for label in UWMGI.names
        ]
    )
    rows = rows.assign(**{column: draw.random(len(rows)) for column in ("score", *SCORES, "hausdorff_score")})
    slices = draw.integers(1, 9, len(rows))
    return rows.assign(dice_2d_slices=slices, dice_2d_sum=draw.random(len(rows)) * slices)


@pytest.fixture
def evaluated(tmp_path):
    """evaluated(name, rows, **facts) writes a folder with that evaluation."""

    def write(name, rows, **facts):
        (tmp_path / name).mkdir()
        summary = {"fold": 0, "trained_on": [], "tuned_on": [], "dataset": "f1", "tolerance_mm": 3.0, "gitseg_tf": "1"}
        summary |= facts | {"per_scan": {scan: {} for scan in rows["scan"]}}
        (tmp_path / name / "evaluation.json").write_text(json.dumps(summary))
        rows.to_csv(tmp_path / name / "evaluation.csv", index=False)
        return tmp_path / name

    return write


def compared(one, other):
    return compare(read_evaluation(one), read_evaluation(other))


def row(comparison, score="Dice", label=ALL):
    table = comparison.table
    return table[(table["score"] == score) & (table["label"] == label)].iloc[0]


def test_scores_are_compared_per_patient_with_a_paired_test(evaluated):
    one, other = rows_of(SCANS), rows_of(SCANS, 1)
    comparison = compared(evaluated("a", one), evaluated("b", other.sample(frac=1, random_state=0)))
    for title, column in zip(TITLES, SCORES, strict=True):
        for label in (ALL, *UWMGI.names):
            a, b = (
                (rows if label == ALL else rows[rows["label"] == label]).groupby("case")[column].mean().to_numpy()
                for rows in (one, other)
            )
            got = row(comparison, title, label)
            assert got["patients"] == len(SCANS) and got["dropped"] == 0
            assert [got["one"], got["other"]] == pytest.approx([a.mean(), b.mean()])
            assert got["p"] == pytest.approx(stats.wilcoxon(a, b, method="exact").pvalue)
            interval = stats.bootstrap(
                (b - a,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0), batch=1000
            ).confidence_interval
            assert [got["low"], got["high"]] == pytest.approx([interval.low, interval.high], abs=1e-9)
            assert got["difference"] == pytest.approx((b - a).mean())


def test_the_score_of_a_patient_is_pooled_over_their_slices(evaluated):
    one, other = rows_of(SCANS), rows_of(SCANS, 1)
    comparison = compared(evaluated("a", one), evaluated("b", other))
    for label in (ALL, *UWMGI.names):
        expected = []
        for rows in (one, other):
            own = (rows if label == ALL else rows[rows["label"] == label]).groupby("case")
            dice_2d = own["dice_2d_sum"].sum() / own["dice_2d_slices"].sum()
            expected.append((0.4 * dice_2d + 0.6 * own["hausdorff_score"].mean()).mean())
        got = row(comparison, "score", label)
        assert [got["one"], got["other"], got["patients"]] == pytest.approx([*expected, len(SCANS)])


def test_false_positives_of_an_absent_label_lower_the_score_of_the_run_that_predicts_them(evaluated):
    one, other = rows_of(SCANS), rows_of(SCANS)
    absent = one["label"] == "stomach"
    for rows, slices, distance in ((one, 0, np.nan), (other, 4, 0.0)):
        rows.loc[absent, ["truth_ml", "dice_2d_sum", "dice_2d_slices", "hausdorff_score"]] = 0.0, 0.0, slices, distance
    comparison = compared(evaluated("a", one), evaluated("b", other))
    got = row(comparison, "score")
    assert got["other"] < got["one"] and row(comparison, "score", "stomach")["patients"] == 0
    assert row(comparison, "score_volume")["difference"] == 0


def by_all_signs(differences):
    """Wilcoxon's two-sided p by enumerating all signs of the ranks."""
    kept = differences[differences != 0]
    ranks = stats.rankdata(np.abs(kept))
    sums = np.array([np.dot(ranks, signs) for signs in itertools.product((0, 1), repeat=len(kept))])
    rank_sum = ranks[kept > 0].sum()
    return min(1.0, 2 * min((sums <= rank_sum).mean(), (sums >= rank_sum).mean()))


@pytest.mark.parametrize("seed", range(5))
def test_the_signed_rank_test_is_exact_with_ties_and_zeros(seed):
    differences = np.random.default_rng(seed).integers(-3, 5, 9) / 10
    assert signed_rank_p(differences) == pytest.approx(by_all_signs(differences))


def test_the_signed_rank_test_matches_scipy_for_many_patients():
    differences = np.random.default_rng(0).normal(0.2, 1, 60)
    assert signed_rank_p(differences) == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue)
    assert signed_rank_p(np.arange(1.0, 201.0)) == pytest.approx(2 / 2**200)


def test_no_difference_has_p_1_and_no_patients_have_no_p():
    assert signed_rank_p(np.zeros(8)) == 1.0 and signed_rank_p(np.array([1e-16, 0.0])) == 1.0
    assert np.isnan(signed_rank_p(np.array([])))


def test_labels_with_a_missing_value_are_dropped_and_counted(evaluated):
    one, other = rows_of(SCANS), rows_of(SCANS, 1)
    other.loc[(other["case"] == "case1") & (other["label"] == "stomach"), "hd95_mm"] = np.nan
    for rows in (one, other):
        rows.loc[rows["case"] == "case2", "truth_ml"] = 0.0
    comparison = compared(evaluated("a", one), evaluated("b", other))
    assert row(comparison, "HD95 mm", "stomach")[["patients", "dropped"]].tolist() == [5, SCANS["case1"]]
    assert row(comparison, "HD95 mm")["patients"] == 6 and row(comparison, "Dice", "stomach")["patients"] == 6
    kept = [rows[(rows["case"] == "case1") & (rows["label"] != "stomach")]["hd95_mm"].mean() for rows in (one, other)]
    patients = comparison.patients
    case1 = patients[(patients["case"] == "case1") & (patients["score"] == "HD95 mm") & (patients["label"] == ALL)]
    assert case1[["one", "other"]].iloc[0].tolist() == pytest.approx(kept)
    assert f"left out   {SCANS['case1']} labels of scans without HD95 mm" in "\n".join(table_lines(comparison))


def test_scans_in_only_one_evaluation_are_dropped_and_counted(evaluated):
    one, other = rows_of(SCANS), rows_of({**SCANS, "case9": 2, "case1": 1}, 1)
    comparison = compared(evaluated("a", one), evaluated("b", other))
    assert row(comparison)["patients"] == len(SCANS)
    first = one[one["scan"] == "case1_day0"]["dice"].mean()
    patients = comparison.patients[(comparison.patients["score"] == "Dice") & (comparison.patients["label"] == ALL)]
    assert patients.set_index("case")["one"]["case1"] == pytest.approx(first)
    left = [line for line in comparison.notes if line.startswith("left out")]
    assert len(left) == 2 and "1 scan " in left[0] and "case1_day1" in left[0]
    assert "2 scans" in left[1] and "case9_day0, case9_day1" in left[1]


@pytest.mark.parametrize("cases", [("001", "002"), ("1.0", "NA")])
def test_case_ids_that_look_like_numbers_stay_strings(evaluated, cases):
    one, other = (rows_of(dict.fromkeys(cases, 1), seed).assign(scan=lambda rows: rows["case"]) for seed in (0, 1))
    comparison = compared(evaluated("a", one), evaluated("b", other))
    assert set(comparison.patients["case"]) == set(cases) and row(comparison)["patients"] == 2
    assert row(comparison)["one"] == pytest.approx(one.groupby("case")["dice"].mean().mean())


@pytest.mark.parametrize(
    "tta, words",
    [
        ({"flip": True, "scales": []}, "flip"),
        ({"flip": False, "scales": [0.9, 1.1]}, "scale 0.9 and scale 1.1"),
        ({"flip": True, "scales": [0.8]}, "flip and scale 0.8"),
    ],
)
def test_different_test_time_augmentation_is_noted(evaluated, tta, words):
    none = {"flip": False, "scales": []}
    comparison = compared(evaluated("a", rows_of(SCANS), tta=none), evaluated("b", rows_of(SCANS, 1), tta=tta))
    assert comparison.notes == [
        f"warning    the test-time augmentation was none for the first and {words} for the second"
    ]


def test_differences_between_the_evaluations_are_noted(evaluated):
    facts = {"tolerance_mm": 5.0, "gitseg_tf": "2", "trained_on": ["case1"], "tuned_on": ["case2", "case77"]}
    comparison = compared(evaluated("a", rows_of(SCANS)), evaluated("b", rows_of(SCANS, 1), **facts))
    notes = "\n".join(comparison.notes)
    assert "surface Dice tolerance in mm was 3.0 for the first and 5.0 for the second" in notes
    assert "version of gitseg-tf was 1 for the first and 2 for the second" in notes
    assert "b was trained on case1:" in notes and "tuned on case2:" in notes and len(comparison.notes) == 4
    assert not compared(evaluated("c", rows_of(SCANS)), evaluated("d", rows_of(SCANS, 1))).notes


def test_the_table_states_the_smallest_p_of_few_patients(evaluated):
    few = {"case1": 1, "case2": 1, "case3": 2}
    better = rows_of(few).assign(dice=lambda rows: rows["dice"] + 1)
    lines = table_lines(compared(evaluated("a", rows_of(few)), evaluated("b", better)))
    (dice,) = [line for line in lines if line.startswith("Dice")]
    assert "+1.000 to +1.000" in dice and dice.endswith("0.2500")
    assert any(line.startswith("patients   only 3: p cannot fall below 0.25") for line in lines)
    more = table_lines(compared(evaluated("c", rows_of(SCANS)), evaluated("d", rows_of(SCANS, 1))))
    assert not [line for line in more if line.startswith("patients")]


def test_one_patient_and_an_absent_label_are_shown_as_dashes(evaluated):
    rows = rows_of({"case1": 2})
    absent = ["truth_ml", "dice_2d_sum", "dice_2d_slices", "hausdorff_score"]
    rows.loc[rows["label"] == "stomach", absent] = 0.0, 0.0, 0, np.nan
    comparison = compared(evaluated("a", rows), evaluated("b", rows))
    stomach = [line for line in table_lines(comparison) if "stomach" in line]
    assert len(stomach) == 5 and all(line.split()[-6:] == ["0", *"-----"] for line in stomach)
    assert np.isnan(row(comparison)["low"]) and row(comparison)["p"] == 1.0


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda run: (run / "evaluation.json").unlink(), "has no evaluation.json; write it with gitseg evaluate"),
        (lambda run: (run / "evaluation.csv").unlink(), "has no evaluation.csv"),
        (lambda run: (run / "evaluation.json").write_text("{"), "its evaluation is damaged"),
        (lambda run: (run / "evaluation.json").write_text("[]"), "its evaluation is damaged"),
        (lambda run: (run / "evaluation.csv").write_text(""), "its evaluation is damaged"),
        (lambda run: (run / "evaluation.csv").write_text("scan\n1\n"), "its evaluation is damaged"),
        (lambda run: rows_of({"case1": 1}).to_csv(run / "evaluation.csv"), "list different scans"),
    ],
)
def test_an_incomplete_evaluation_is_refused(evaluated, refusal, break_it, expected):
    run = evaluated("a", rows_of(SCANS))
    break_it(run)
    message = refusal(read_evaluation, run)
    assert expected in message and str(run) in message


def test_evaluations_without_common_scans_or_dataset_are_refused(evaluated, refusal):
    one, others = evaluated("a", rows_of(SCANS)), evaluated("b", rows_of({"case8": 1, "case9": 1}))
    assert "have no scan and label in common" in refusal(compared, one, others)
    assert "on different datasets" in refusal(compared, one, evaluated("c", rows_of(SCANS), dataset="f2"))


def test_compare_prints_a_table_and_writes_a_chart(evaluated, tmp_path, capsys):
    one, other = evaluated("a", rows_of(SCANS)), evaluated("b", rows_of(SCANS, 1))
    assert main(["compare", str(one), str(other), "--out", str(tmp_path / "found.png")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("large_bowel") == 5 and f"A          {one}" in printed and "found.png" in printed
    assert cv2.imread(str(tmp_path / "found.png")).shape == (1437, 1100, 3)
    assert not list(Path(tmp_path).glob("new.*"))


@pytest.mark.parametrize("out", ["found.jpg", "nowhere/found.png", "a"])
def test_an_unwritable_chart_path_is_refused_first(evaluated, tmp_path, capsys, out):
    one, other = evaluated("a", rows_of(SCANS)), evaluated("b", rows_of(SCANS, 1))
    assert main(["compare", str(one), str(other), "--out", str(tmp_path / out)]) == 1
    printed = capsys.readouterr()
    assert not printed.out and str(tmp_path / out) in printed.err and printed.err.count("\n") == 1


def test_improved_and_worsened_patients_have_different_colors(evaluated, tmp_path):
    one = rows_of(SCANS)
    gains = {"dice_2d_sum": 1, "score_volume": 1, "dice": 1, "hd95_mm": 1, "surface_dice": -1}
    other = one.assign(**{column: one[column] + gain for column, gain in gains.items()})
    draw_comparison(tmp_path / "drawn.png", compared(evaluated("a", one), evaluated("b", other)))
    picture = cv2.imread(str(tmp_path / "drawn.png")).astype(int)
    blueness = picture[..., 0] - picture[..., 2]
    upper, lower = np.split(blueness, [int(0.6 * len(blueness)) + 20])  # both scores and Dice, HD95 and surface Dice
    assert (upper > 60).sum() > 1000 and not (upper < -60).any()
    assert (lower < -60).sum() > 1000 and not (lower > 60).any()

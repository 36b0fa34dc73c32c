import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gitseg_tf.cli import main
from gitseg_tf.data.scans import ORGANS
from gitseg_tf.evaluation.compare import compare, draw_comparison, read_evaluation, signed_rank_p, table_lines

SCORES = ("score", "dice", "hd95_mm", "surface_dice")
SCANS = {f"case{k}": 1 + k % 3 for k in range(1, 8)}


def rows_of(scans, seed=0):
    """Rows of evaluation.csv with random scores: {case: number of scans}."""
    draw = np.random.default_rng(seed)
    rows = pd.DataFrame(
        [
            {"scan": f"{case}_day{day}", "case": case, "organ": organ, "truth_ml": 10.0}
            for case, number in scans.items()
            for day in range(number)
            for organ in ORGANS
        ]
    )
    return rows.assign(**{column: draw.random(len(rows)) for column in SCORES})


@pytest.fixture
def evaluated(tmp_path):
    """evaluated(name, rows, facts) is a folder with that evaluation."""

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


def row(comparison, score="Dice", organ="mean"):
    table = comparison.table
    return table[(table["score"] == score) & (table["organ"] == organ)].iloc[0]


def test_a_patient_counts_once_and_is_tested_against_itself(evaluated):
    one, other = rows_of(SCANS), rows_of(SCANS, 1)
    found = compared(evaluated("a", one), evaluated("b", other.sample(frac=1, random_state=0)))
    for title, column in zip(("score", "Dice", "HD95 mm", "surface Dice"), SCORES, strict=True):
        for organ in ("mean", *ORGANS):
            a, b = (
                (rows if organ == "mean" else rows[rows["organ"] == organ]).groupby("case")[column].mean().to_numpy()
                for rows in (one, other)
            )
            got = row(found, title, organ)
            assert got["patients"] == len(SCANS) and got["dropped"] == 0
            assert [got["one"], got["other"]] == pytest.approx([a.mean(), b.mean()])
            assert got["p"] == pytest.approx(stats.wilcoxon(a, b, method="exact").pvalue)
            interval = stats.bootstrap(
                (b - a,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0), batch=1000
            ).confidence_interval
            assert [got["low"], got["high"]] == pytest.approx([interval.low, interval.high], abs=1e-9)
            assert got["difference"] == pytest.approx((b - a).mean())


def by_all_signs(differences):
    """Wilcoxon's two-sided p by trying every way to give the ranks their signs."""
    kept = differences[differences != 0]
    ranks = stats.rankdata(np.abs(kept))
    sums = np.array([np.dot(ranks, signs) for signs in itertools.product((0, 1), repeat=len(kept))])
    own = ranks[kept > 0].sum()
    return min(1.0, 2 * min((sums <= own).mean(), (sums >= own).mean()))


@pytest.mark.parametrize("seed", range(5))
def test_the_test_is_exact_with_ties_and_zeros_too(seed):
    differences = np.random.default_rng(seed).integers(-3, 5, 9) / 10
    assert signed_rank_p(differences) == pytest.approx(by_all_signs(differences))


def test_the_test_of_many_patients_is_scipys():
    differences = np.random.default_rng(0).normal(0.2, 1, 60)
    assert signed_rank_p(differences) == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue)
    assert signed_rank_p(np.arange(1.0, 201.0)) == pytest.approx(2 / 2**200)


def test_no_difference_has_p_1_and_no_patient_none():
    assert signed_rank_p(np.zeros(8)) == 1.0 and signed_rank_p(np.array([1e-16, 0.0])) == 1.0
    assert np.isnan(signed_rank_p(np.array([])))


def test_an_organ_without_a_value_in_one_of_them_is_left_out_and_counted(evaluated):
    one, other = rows_of(SCANS), rows_of(SCANS, 1)
    other.loc[(other["case"] == "case1") & (other["organ"] == "stomach"), "hd95_mm"] = np.nan
    for rows in (one, other):
        rows.loc[rows["case"] == "case2", "truth_ml"] = 0.0
    found = compared(evaluated("a", one), evaluated("b", other))
    assert row(found, "HD95 mm", "stomach")[["patients", "dropped"]].tolist() == [5, SCANS["case1"]]
    assert row(found, "HD95 mm")["patients"] == 6 and row(found, "Dice", "stomach")["patients"] == 6
    kept = [rows[(rows["case"] == "case1") & (rows["organ"] != "stomach")]["hd95_mm"].mean() for rows in (one, other)]
    patients = found.patients
    case1 = patients[(patients["case"] == "case1") & (patients["score"] == "HD95 mm") & (patients["organ"] == "mean")]
    assert case1[["one", "other"]].iloc[0].tolist() == pytest.approx(kept)
    assert f"left out   {SCANS['case1']} organs of scans have no HD95 mm" in "\n".join(table_lines(found))


def test_scans_of_one_alone_are_left_out_and_counted(evaluated):
    one, other = rows_of(SCANS), rows_of({**SCANS, "case9": 2, "case1": 1}, 1)
    found = compared(evaluated("a", one), evaluated("b", other))
    assert row(found)["patients"] == len(SCANS)
    first = one[one["scan"] == "case1_day0"]["dice"].mean()
    patients = found.patients[(found.patients["score"] == "Dice") & (found.patients["organ"] == "mean")]
    assert patients.set_index("case")["one"]["case1"] == pytest.approx(first)
    left = [line for line in found.notes if line.startswith("left out")]
    assert len(left) == 2 and "1 scans" in left[0] and "case1_day1" in left[0]
    assert "2 scans" in left[1] and "case9_day0, case9_day1" in left[1]


@pytest.mark.parametrize("cases", [("001", "002"), ("1.0", "NA")])
def test_names_that_look_like_numbers_stay_names(evaluated, cases):
    one, other = (rows_of(dict.fromkeys(cases, 1), seed).assign(scan=lambda rows: rows["case"]) for seed in (0, 1))
    found = compared(evaluated("a", one), evaluated("b", other))
    assert set(found.patients["case"]) == set(cases) and row(found)["patients"] == 2
    assert row(found)["one"] == pytest.approx(one.groupby("case")["dice"].mean().mean())


@pytest.mark.parametrize(
    "tta, words",
    [
        ({"flip": True, "scales": []}, "flip"),
        ({"flip": False, "scales": [0.9, 1.1]}, "scale 0.9 and scale 1.1"),
        ({"flip": True, "scales": [0.8]}, "flip and scale 0.8"),
    ],
)
def test_another_augmentation_is_said(evaluated, tta, words):
    none = {"flip": False, "scales": []}
    found = compared(evaluated("a", rows_of(SCANS), tta=none), evaluated("b", rows_of(SCANS, 1), tta=tta))
    assert found.notes == [f"warning    the test-time augmentation was none for the first and {words} for the second"]


def test_what_makes_two_evaluations_differ_is_said(evaluated):
    facts = {"tolerance_mm": 5.0, "gitseg_tf": "2", "trained_on": ["case1"], "tuned_on": ["case2", "case77"]}
    found = compared(evaluated("a", rows_of(SCANS)), evaluated("b", rows_of(SCANS, 1), **facts))
    said = "\n".join(found.notes)
    assert "tolerance in mm of the surface Dice was 3.0 for the first and 5.0 for the second" in said
    assert "version of gitseg-tf was 1 for the first and 2 for the second" in said
    assert "b was trained on case1:" in said and "tuned on case2:" in said and len(found.notes) == 4
    assert not compared(evaluated("c", rows_of(SCANS)), evaluated("d", rows_of(SCANS, 1))).notes


def test_the_table_says_what_few_patients_can_show(evaluated):
    few = {"case1": 1, "case2": 1, "case3": 2}
    better = rows_of(few).assign(dice=lambda rows: rows["dice"] + 1)
    lines = table_lines(compared(evaluated("a", rows_of(few)), evaluated("b", better)))
    (dice,) = [line for line in lines if line.startswith("Dice")]
    assert "+1.000 to +1.000" in dice and dice.endswith("0.2500")
    assert any(line.startswith("patients   only 3: p cannot fall below 0.25") for line in lines)
    more = table_lines(compared(evaluated("c", rows_of(SCANS)), evaluated("d", rows_of(SCANS, 1))))
    assert not [line for line in more if line.startswith("patients")]


def test_one_patient_and_an_absent_organ_have_dashes(evaluated):
    rows = rows_of({"case1": 2})
    rows.loc[rows["organ"] == "stomach", "truth_ml"] = 0.0
    found = compared(evaluated("a", rows), evaluated("b", rows))
    stomach = [line for line in table_lines(found) if "stomach" in line]
    assert len(stomach) == 4 and all(line.split()[-6:] == ["0", *"-----"] for line in stomach)
    assert np.isnan(row(found)["low"]) and row(found)["p"] == 1.0


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda run: (run / "evaluation.json").unlink(), "has no evaluation.json; write it with gitseg evaluate"),
        (lambda run: (run / "evaluation.csv").unlink(), "has no evaluation.csv"),
        (lambda run: (run / "evaluation.json").write_text("{"), "its evaluation is damaged"),
        (lambda run: (run / "evaluation.json").write_text("[]"), "its evaluation is damaged"),
        (lambda run: (run / "evaluation.csv").write_text(""), "its evaluation is damaged"),
        (lambda run: (run / "evaluation.csv").write_text("scan\n1\n"), "its evaluation is damaged"),
        (lambda run: rows_of({"case1": 1}).to_csv(run / "evaluation.csv"), "are of different scans"),
    ],
)
def test_an_evaluation_that_is_not_whole_is_refused(evaluated, refusal, break_it, says):
    run = evaluated("a", rows_of(SCANS))
    break_it(run)
    said = refusal(read_evaluation, run)
    assert says in said and str(run) in said


def test_what_cannot_be_compared_is_refused(evaluated, refusal):
    one, others = evaluated("a", rows_of(SCANS)), evaluated("b", rows_of({"case8": 1, "case9": 1}))
    assert "have no scan in common" in refusal(compared, one, others)
    assert "on different datasets" in refusal(compared, one, evaluated("c", rows_of(SCANS), dataset="f2"))


def test_the_command_prints_and_draws(evaluated, tmp_path, capsys):
    one, other = evaluated("a", rows_of(SCANS)), evaluated("b", rows_of(SCANS, 1))
    assert main(["compare", str(one), str(other), "--out", str(tmp_path / "found.png")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("large_bowel") == 4 and f"A          {one}" in printed and "found.png" in printed
    assert cv2.imread(str(tmp_path / "found.png")).shape == (1150, 1100, 3)
    assert not list(Path(tmp_path).glob("new.*"))


@pytest.mark.parametrize("out", ["found.jpg", "nowhere/found.png", "a"])
def test_a_picture_that_cannot_be_written_is_refused_first(evaluated, tmp_path, capsys, out):
    one, other = evaluated("a", rows_of(SCANS)), evaluated("b", rows_of(SCANS, 1))
    assert main(["compare", str(one), str(other), "--out", str(tmp_path / out)]) == 1
    said = capsys.readouterr()
    assert not said.out and said.err.startswith("gitseg: --out") and said.err.count("\n") == 1


def test_a_patient_that_is_better_has_another_colour_than_one_that_is_worse(evaluated, tmp_path):
    one = rows_of(SCANS)
    gains = {"score": 1, "dice": 1, "hd95_mm": 1, "surface_dice": -1}
    other = one.assign(**{column: one[column] + gain for column, gain in gains.items()})
    draw_comparison(tmp_path / "drawn.png", compared(evaluated("a", one), evaluated("b", other)))
    picture = cv2.imread(str(tmp_path / "drawn.png")).astype(int)
    blueness = picture[..., 0] - picture[..., 2]
    upper, lower = np.split(blueness, [len(blueness) // 2 + 20])  # score and Dice, HD95 and surface Dice
    assert (upper > 60).sum() > 1000 and not (upper < -60).any()
    assert (lower < -60).sum() > 1000 and not (lower > 60).any()

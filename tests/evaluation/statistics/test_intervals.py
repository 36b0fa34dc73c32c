import itertools
import time

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gitseg_tf.evaluation.evaluate import summary_lines
from gitseg_tf.evaluation.metrics.scores import score_scan, summarize
from gitseg_tf.evaluation.statistics.intervals import mean_intervals, percentile_intervals
from gitseg_tf.labels import UWMGI

COLUMNS = {
    "score_volume": "score_volume",
    "dice": "dice",
    "iou": "iou",
    "hausdorff": "hausdorff_score",
    "hausdorff_volume": "hausdorff_score_volume",
    "hausdorff_mm": "hausdorff_mm",
    "hd95_mm": "hd95_mm",
    "mean_surface_mm": "mean_surface_mm",
    "surface_dice": "surface_dice",
    "surface_dice_2mm": "surface_dice_2mm",
    "surface_dice_3mm": "surface_dice_3mm",
    "added_path_mm": "added_path_mm",
    "volume_bias_ml": "volume_error_ml",
}


def table(scans_of_case, seed=0):
    """Rows as returned by `score_scan`, with random values: {case: number of scans}."""
    draw = np.random.default_rng(seed)
    names = [
        {"scan": f"{case}_day{day}", "case": case, "label": label}
        for case, scans in scans_of_case.items()
        for day in range(scans)
        for label in UWMGI.names
    ]
    rows = pd.DataFrame(names)
    for column in (*COLUMNS.values(), "truth_ml", "prediction_ml", "volume_error_relative", "dice_2d_sum"):
        rows[column] = draw.random(len(rows))
    rows["volume_error_ml"] -= 0.5
    rows["dice_2d_slices"] = draw.integers(1, 9, len(rows))
    rows["false_positive_ml"] = np.nan
    return rows


def scipy_interval(values, statistic=np.mean, **more):
    interval = stats.bootstrap(
        values, statistic, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0), batch=1000, **more
    ).confidence_interval
    return [interval.low, interval.high]


@pytest.mark.parametrize("cases", [2, 9, 85])
def test_intervals_match_scipy_with_one_row_per_patient(cases):
    rows = table({f"case{k}": 1 for k in range(cases)})
    intervals = mean_intervals(rows)
    assert intervals["level"] == 0.95
    for label in UWMGI.names:
        label_rows = rows[rows["label"] == label].sort_values("case")
        for name, column in COLUMNS.items():
            assert intervals["labels"][label][name] == pytest.approx(
                scipy_interval((label_rows[column].to_numpy(),)), abs=1e-9
            )
        sizes = label_rows["volume_error_ml"].abs().to_numpy()
        assert intervals["labels"][label]["volume_error_ml"] == pytest.approx(scipy_interval((sizes,)), abs=1e-9)


def test_the_2d_dice_of_each_resample_is_a_ratio_of_sums():
    rows = table({f"case{k}": 1 for k in range(7)})
    label_rows = rows[rows["label"] == "stomach"].sort_values("case")
    pooled = (label_rows["dice_2d_sum"].to_numpy(), label_rows["dice_2d_slices"].to_numpy())

    def ratio(sums, slices, axis=-1):
        return sums.sum(axis=axis) / slices.sum(axis=axis)

    expected = scipy_interval(pooled, ratio, paired=True, vectorized=True)
    assert mean_intervals(rows)["labels"]["stomach"]["dice_2d"] == pytest.approx(expected, abs=1e-9)
    mean_of_means = scipy_interval((pooled[0] / pooled[1],))
    assert mean_of_means != pytest.approx(expected, abs=1e-3)


def test_the_score_of_each_resample_combines_pooled_2d_dice_and_the_mean_of_distances():
    rows = table({f"case{k}": 1 for k in range(7)})
    label_rows = rows[rows["label"] == "stomach"].sort_values("case")
    columns = [label_rows[name].to_numpy() for name in ("dice_2d_sum", "dice_2d_slices", "hausdorff_score")]

    def score(sums, slices, distances, axis=-1):
        return 0.4 * sums.sum(axis=axis) / slices.sum(axis=axis) + 0.6 * distances.mean(axis=axis)

    expected = scipy_interval(columns, score, paired=True, vectorized=True)
    assert mean_intervals(rows)["labels"]["stomach"]["score"] == pytest.approx(expected, abs=1e-9)


def test_false_positives_of_an_absent_label_enter_the_score_only():
    rows = table({"case1": 1, "case2": 1, "case3": 1})
    absent = (rows["label"] == "stomach") & (rows["case"] == "case3")
    rows.loc[absent, "truth_ml"] = 0.0
    rows.loc[absent, ["dice_2d_sum", "hausdorff_score"]] = 0.0
    stomach = mean_intervals(rows)["labels"]["stomach"]
    assert stomach["score"][0] == 0 and stomach["score_volume"][0] > 0


def all_draws(rows, column, level=0.95):
    """The percentiles over all resamples of the patients, each with all of its rows."""
    by_case = [label_rows[column].to_numpy() for _, label_rows in rows.groupby("case")]
    means = [np.concatenate(sample).mean() for sample in itertools.product(by_case, repeat=len(by_case))]
    return np.percentile(means, [50 * (1 - level), 50 * (1 + level)])


def test_patients_are_resampled_with_all_scans_and_labels():
    rows = table({"case1": 1, "case2": 6, "case3": 2, "case4": 1, "case5": 3})
    rows["dice"] += 0.5 * (rows["case"] == "case2")
    low, high = mean_intervals(rows, resamples=200_000)["dice"]
    assert [low, high] == pytest.approx(list(all_draws(rows, "dice")), abs=2e-3)
    single = scipy_interval((rows["dice"].to_numpy(),))
    assert high - low > 1.5 * (single[1] - single[0])  # the interval if every row were a patient


def test_the_mean_lies_inside_and_a_lower_level_gives_narrower_intervals():
    rows = table({f"case{k}": 1 + k % 3 for k in range(12)})
    means, wide, narrow = summarize(rows), mean_intervals(rows), mean_intervals(rows, level=0.5)
    names = set(wide) - {"level", "labels"}
    assert names == {*COLUMNS, "score", "volume_error_ml", "volume_error_relative", "dice_2d"}
    for name in names:
        assert wide[name][0] < narrow[name][0] < means[name] < narrow[name][1] < wide[name][1]


def test_scores_of_fewer_than_two_patients_have_no_interval():
    rows = table({"case1": 2, "case2": 2, "case3": 1})
    only = (rows["label"] == "stomach") & (rows["case"] != "case1")
    rows.loc[only, ["truth_ml", "prediction_ml"]] = 0.0
    rows.loc[(rows["label"] == "small_bowel") & (rows["case"] != "case2"), "hd95_mm"] = np.nan
    intervals = mean_intervals(rows)
    assert set(intervals["labels"]["stomach"].values()) == {None}
    assert (
        intervals["labels"]["small_bowel"]["hd95_mm"] is None and intervals["labels"]["small_bowel"]["dice"] is not None
    )
    assert intervals["score"] is not None
    alone = mean_intervals(rows[rows["case"] == "case1"])
    assert alone["score"] is None and alone["labels"]["large_bowel"]["dice_2d"] is None


def test_resamples_without_a_label_are_skipped():
    rows = table({"case1": 1, "case2": 1, "case3": 1})
    rows.loc[(rows["label"] == "stomach") & (rows["case"] == "case3"), "truth_ml"] = 0.0
    low, high = mean_intervals(rows)["labels"]["stomach"]["dice"]
    label_rows = rows[(rows["label"] == "stomach") & (rows["truth_ml"] > 0)]
    assert [low, high] == pytest.approx([label_rows["dice"].min(), label_rows["dice"].max()])


def test_intervals_are_reproducible_and_nearly_independent_of_the_seed():
    rows = table({f"case{k}": 2 for k in range(10)})
    shuffled = rows.sample(frac=1, random_state=0)
    assert mean_intervals(rows) == mean_intervals(rows)
    assert mean_intervals(rows)["dice"] == pytest.approx(mean_intervals(shuffled)["dice"], abs=1e-12)
    assert mean_intervals(rows)["dice"] != mean_intervals(rows, seed=1)["dice"]
    assert mean_intervals(rows)["dice"] == pytest.approx(mean_intervals(rows, seed=1)["dice"], abs=0.01)


def test_intervals_of_a_large_cohort_take_under_half_a_second():
    sums, counts = np.random.default_rng(0).random((2, 85, 48))
    begin = time.process_time()
    intervals = percentile_intervals(sums, counts)
    assert time.process_time() - begin < 0.5 and len(intervals) == 48


def printed(rows):
    lines = summary_lines(summarize(rows) | {"intervals": mean_intervals(rows)})
    return lines


def test_score_and_dice_are_printed_with_their_intervals():
    rows = table({f"case{k}": 1 for k in range(3)})
    label_rows = mean_intervals(rows)
    *_, mean, volume, how = printed(rows)
    assert volume.split()[:2] == ["score_volume", f"{summarize(rows)['score_volume']:.3f},"]
    for name in ("score", "dice"):
        assert f"{summarize(rows)[name]:.3f} ({label_rows[name][0]:.2f}-{label_rows[name][1]:.2f})" in mean
    assert "(" not in mean.split(")", 2)[2] and how.startswith("intervals  95%, from 10,000 resamples of 3 patients")


def test_one_patient_has_no_intervals_and_the_table_explains_why():
    *rows, how = printed(table({"case1": 3}))
    assert "(" not in "".join(rows) and "at least two patients" in how and "at least two" in how


def test_intervals_of_scored_masks_handle_missed_and_absent_labels():
    truth, wrong = np.zeros((2, 3, 4, 16, 16), bool)
    truth[:2, 1:3, 4:9, 3:8] = True
    wrong[0, 1:3, 4:9, 4:9] = True
    rows = pd.DataFrame(
        [
            row
            for k in (1, 2)
            for row in score_scan(
                f"case{k}_day0", f"case{k}", truth, np.roll(wrong, k, 3), labels=UWMGI, spacing=(3, 1.5, 1.5)
            )
        ]
    )
    intervals = mean_intervals(rows)
    assert (
        intervals["labels"]["small_bowel"]["dice"] == [0.0, 0.0]
        and intervals["labels"]["small_bowel"]["hd95_mm"] is None
    )
    assert set(intervals["labels"]["stomach"].values()) == {None}
    # Missed everywhere: 0 in both forms of the score.
    assert intervals["labels"]["small_bowel"]["score"] == intervals["labels"]["small_bowel"]["score_volume"] == [0, 0]
    dices = sorted(rows.loc[rows["label"] == "large_bowel", "dice"])
    assert intervals["labels"]["large_bowel"]["dice"] == pytest.approx(dices)

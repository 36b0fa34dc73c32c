"""What the charts of the report show."""

import re

import numpy as np
import pandas as pd
import pytest

from gitseg_tf.evaluation.report.charts import reliability_charts, score_charts
from gitseg_tf.labels import UWMGI


def rows(**changes):
    """Three scans whose large bowels have 10, 100 and 1000 ml and a Dice of 0.6, 0.7 and 0.9."""
    large = {"truth_ml": [10.0, 100.0, 1000.0], "prediction_ml": [10.0, 50.0, 500.0], "dice": [0.6, 0.7, 0.9]}
    large |= {"surface_dice": [0.5, 0.6, 0.7], "hausdorff_mm": [9.0, 8.0, 7.0], "hd95_mm": [5.0, 4.0, 3.0]} | changes
    absent = dict.fromkeys(large, np.nan) | {"truth_ml": 0.0, "prediction_ml": 0.0}
    return pd.DataFrame(
        [{"label": "large_bowel"} | {name: values[k] for name, values in large.items()} for k in range(3)]
        + [{"label": label} | absent for label in UWMGI.names[1:]]
    )


def points(chart):
    """The positions (x, y) of the points of a chart in its SVG."""
    groups = re.findall(r'<g id="PathCollection_\d+">.*?(?=<g id="(?!C)|\Z)', chart["svg"], re.DOTALL)
    uses = [re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', group) for group in groups]
    return np.array([point for use in uses for point in use], float)


def chart(charts, title):
    return next(item for item in charts if title in item["title"])


def test_dice_is_plotted_against_the_logarithm_of_the_volume():
    x, y = points(chart(score_charts(rows(), UWMGI), "Dice versus")).T[:, :3]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], rel=1e-3) and x[1] > x[0]
    assert (y[1] - y[2]) / (y[0] - y[1]) == pytest.approx(2, rel=1e-3)


@pytest.mark.parametrize("title", ["Dice of", "Surface Dice", "Hausdorff", "HD95"])
def test_every_scan_is_a_point_next_to_its_box_plot(title):
    plot = chart(score_charts(rows(), UWMGI), title)
    x = points(plot)[:, 0]
    assert len(x) == 3 and (np.diff(x) > 0).all() != ("mm" in plot["title"])


def test_missing_and_zero_distances_can_be_plotted():
    zero = score_charts(rows(hausdorff_mm=[0.0, 1.0, np.nan], hd95_mm=[0.0, 1.0, np.nan]), UWMGI)
    assert len(points(chart(zero, "Hausdorff"))) == 2
    missed = score_charts(rows(hausdorff_mm=[np.nan] * 3, hd95_mm=[np.nan] * 3), UWMGI)
    assert [item["title"] for item in missed if "mm" in item["title"]] == []


def test_labels_without_voxels_have_no_reliability_chart():
    nothing = {label: {"bins": []} for label in UWMGI.names}
    assert reliability_charts(nothing, UWMGI) == []
    bins = [{"predicted": 0.2, "observed": 0.1, "voxels": 3}, {"predicted": 0.9, "observed": 0.8, "voxels": 9}]
    assert len(reliability_charts(nothing | {"stomach": {"bins": bins}}, UWMGI)) == 2

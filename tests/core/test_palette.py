import itertools

import numpy as np
import pytest

from gitseg_tf.core.palette import palette
from gitseg_tf.labels import MAX_LABELS, LabelSet


def test_the_palette_extends_without_repeating_or_changing_earlier_colors():
    colors = palette(MAX_LABELS)
    assert len(set(colors)) == MAX_LABELS and palette(12) == colors[:12]
    assert LabelSet.of(*map(str, range(MAX_LABELS))).colors == colors


@pytest.mark.parametrize("deficiency", [None, "protanomaly", "deuteranomaly"])
def test_colors_are_distinguishable_with_color_vision_deficiency(deficiency):
    """By CIECAM02-UCS distances after Machado's simulation, computed by another package."""
    colorspacious = pytest.importorskip("colorspacious")
    colors = np.array(palette(12)) / 255
    seen = "sRGB1" if deficiency is None else {"name": "sRGB1+CVD", "cvd_type": deficiency, "severity": 100}
    colors = colorspacious.cspace_convert(colors, seen, "sRGB1")
    differences = [
        colorspacious.deltaE(a, b, input_space="sRGB1") for a, b in itertools.combinations(np.clip(colors, 0, 1), 2)
    ]
    assert min(differences) > 5

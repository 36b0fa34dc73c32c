import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from gitseg_tf.data.masks import bounding_box


@given(arrays(bool, array_shapes(min_dims=1, max_dims=3, max_side=6), elements=st.booleans(), fill=st.just(False)))
def test_the_bounding_box_matches_scipy(mask):
    (expected,) = ndimage.find_objects(mask.astype(int)) or [None]
    assert bounding_box(mask) == (expected or (slice(0, 0),) * mask.ndim)


@pytest.mark.parametrize("shape", [(3, 4, 5), (0, 4, 5), (3, 0, 5)])
def test_an_empty_mask_has_an_empty_bounding_box(shape):
    assert bounding_box(np.zeros(shape, bool)) == (slice(0, 0),) * 3

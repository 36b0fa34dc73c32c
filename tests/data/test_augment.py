"""Each change on the host (OpenCV) and on the accelerator (TensorFlow), against scipy, numpy and known points."""

import sys

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage, stats

from gitseg_tf.data.augment.accelerator import augment_batch, change_batch
from gitseg_tf.data.augment.draws import draw
from gitseg_tf.data.augment.host import HostAugment
from gitseg_tf.sections.augment import AugmentConfig

BATCH, HEIGHT, WIDTH = 24, 96, 128
POINTS = np.array([[34, 48], [44, 86], [66, 60]], float)
RANGES = {"shift": 0.05, "scale": 0.15, "rotate": 14.0}
YX = np.moveaxis(np.indices((HEIGHT, WIDTH)), 0, -1).astype(float)
NAMES = ("flip", "affine", "elastic", "grid", "low_resolution", "blur", "bias_field", "contrast", "brightness")
NAMES += ("gamma", "noise", "dropout", "mixup", "cutmix")
WARPS = {
    "flip": {"p": 1},
    "affine": {"p": 1, **RANGES},
    "elastic": {"p": 1, "displacement": 0.02},
    "grid": {"p": 1, "distortion": 0.15},
}


def config(**changes):
    return AugmentConfig(**{name: {"p": 0} for name in NAMES} | changes)


def distances():
    return np.linalg.norm(YX[:, :, None] - POINTS, axis=-1)


def blobs(sigma=4.0):
    """One smooth spot a channel."""
    return np.exp(-((distances() / sigma) ** 2) / 2).astype(np.float32)


def discs():
    """One disc an organ, about the same points."""
    return (distances() <= 7.5).astype(np.float32)


def texture(seed=1):
    rng = np.random.default_rng(seed)
    image = ndimage.gaussian_filter(rng.random((HEIGHT, WIDTH, 3)), (3, 3, 0))
    image *= np.hypot(*np.moveaxis(YX - [(HEIGHT - 1) / 2, (WIDTH - 1) / 2], -1, 0))[..., None] < 40
    return (image / image.max()).astype(np.float32)


def batch_of(*images):
    return np.stack([images[i % len(images)] for i in range(BATCH)])


def drawn_for(settings, seed=0, count=BATCH):
    return draw(count, HEIGHT, WIDTH, tf.constant([7, seed], tf.int64), settings)


def on_host(image, mask, drawn, settings):
    volumetric = image.ndim == 5
    image, mask = (x if volumetric else x[:, None] for x in (image, mask))
    planes = image[..., 0] if volumetric else np.moveaxis(image[:, 0], -1, 1)
    bits = sum(mask[..., k].astype(np.uint8) << k for k in range(3))
    host = HostAugment(settings, HEIGHT, WIDTH, volumetric)
    arrays = {name: value.numpy() for name, value in drawn.items()}
    return host(np.ascontiguousarray(np.rint(planes * 65535).astype(np.uint16)), np.ascontiguousarray(bits), arrays)


def on_accelerator(image, mask, drawn, settings):
    changed = tf.function(lambda image, mask: change_batch(image, mask, drawn, settings), jit_compile=True)
    return [part.numpy() for part in changed(tf.constant(image), tf.constant(mask))]


PLACES = {"host": on_host, "accelerator": on_accelerator}
both_places = pytest.mark.parametrize("place", PLACES)


def changed(place, settings, image=None, mask=None, seed=0):
    image = batch_of(blobs()) if image is None else image
    mask = batch_of(discs()) if mask is None else mask
    return PLACES[place](image, mask, drawn_for(settings, seed), settings)


def centroids(planes):
    return np.einsum("hwk,hwc->kc", planes, YX) / planes.sum((0, 1))[:, None]


def fitted_transform(moved):
    """The matrix and offset with moved = matrix @ point + offset, from the three points."""
    solution = np.linalg.solve(np.column_stack([POINTS, np.ones(3)]), moved)
    return solution[:2].T, solution[2]


@pytest.fixture(scope="module", params=PLACES)
def warped(request):
    """Spots and discs after an affine warp."""
    return list(zip(*changed(request.param, config(affine={"p": 1, **RANGES})), strict=True))


@pytest.fixture(scope="module")
def transforms(warped):
    return [fitted_transform(centroids(image)) for image, _ in warped]


@both_places
def test_with_probabilities_of_zero_nothing_changes(place):
    image, mask = changed(place, config(), batch_of(texture()))
    assert np.abs(image - texture()).max() < 1e-5 and np.array_equal(mask, batch_of(discs()))


@both_places
def test_a_flip_is_exact(place):
    image, mask = changed(place, config(flip={"p": 1}), batch_of(texture()))
    assert np.abs(image - texture()[:, ::-1]).max() < 1e-5 and np.array_equal(mask, batch_of(discs()[:, ::-1]))


@both_places
def test_the_same_seed_gives_the_same_batch_and_another_gives_another(place):
    settings = config(**WARPS | {"elastic": {"p": 0.5}, "grid": {"p": 0.5}, "noise": {"p": 1}, "dropout": {"p": 1}})
    first, again, other = (changed(place, settings, batch_of(texture()), seed=seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


@both_places
@pytest.mark.parametrize("warp", WARPS)
def test_image_and_mask_move_together_to_within_half_a_pixel_and_masks_stay_binary(place, warp):
    images, masks = changed(place, config(**{warp: WARPS[warp]}))
    assert set(np.unique(masks)) == {0, 1}
    for image, mask in zip(images, masks, strict=True):
        assert np.abs(centroids(image) - centroids(mask)).max() < 0.5
    moved = np.abs([centroids(image) - centroids(blobs()) for image in images]).max((1, 2))
    assert np.median(moved) > 0.5


@both_places
@pytest.mark.parametrize("warp", ["elastic", "grid"])
def test_points_land_where_the_drawn_displacement_sends_them(place, warp):
    settings = config(**{warp: WARPS[warp]})
    drawn = drawn_for(settings)
    images, _ = PLACES[place](batch_of(blobs(1.5)), batch_of(discs()), drawn, settings)
    for i, image in enumerate(images):
        for point, landed in zip(POINTS, centroids(image), strict=True):
            assert np.abs(landed + displacement_at(landed, warp, drawn, i) - point).max() < 0.5


def displacement_at(point, warp, drawn, i):
    """By scipy's interpolators, from the numbers that were drawn."""
    values, sides = drawn[warp].numpy()[i].astype(float), (HEIGHT, WIDTH)
    at = [(p + 0.5) / side * 5 for p, side in zip(point, sides, strict=True)]
    if warp == "grid":
        return np.array([np.interp(t, np.arange(6), knots) for t, knots in zip(at, values, strict=True)])
    from scipy.interpolate import BSpline

    knots = np.arange(-3, 9)
    rows = [BSpline.design_matrix(np.atleast_1d(t), knots, 3).toarray()[0] for t in at]
    scale = 1.0
    for side in sides:
        every = BSpline.design_matrix((np.arange(side) + 0.5) / side * 5, knots, 3).toarray()
        scale /= np.sqrt((every**2).sum(1).mean())
    return scale * np.array([rows[0] @ c @ rows[1] for c in values])


def test_elastic_displacements_have_the_asked_size():
    drawn = drawn_for(config(elastic={"p": 1, "displacement": 0.02}), count=200)["elastic"].numpy()
    pixels = np.sqrt((drawn**2).mean((0, 2, 3)))
    assert np.allclose(pixels, [0.02 * HEIGHT, 0.02 * WIDTH], rtol=0.05)


def test_proportions_are_kept(transforms):
    for matrix, _ in transforms:
        assert np.allclose(matrix @ matrix.T, np.linalg.det(matrix) * np.eye(2), atol=0.01)


def test_sizes_change_within_their_range(transforms):
    zooms = np.array([np.sqrt(np.linalg.det(matrix)) for matrix, _ in transforms])
    assert np.abs(zooms - 1).max() < RANGES["scale"] + 0.005
    assert zooms.min() < 1 - RANGES["scale"] / 2 and zooms.max() > 1 + RANGES["scale"] / 2


def test_rotations_stay_within_their_range(transforms):
    angles = np.array([np.degrees(np.arctan2(matrix[0, 1], matrix[0, 0])) for matrix, _ in transforms])
    assert np.abs(angles).max() < RANGES["rotate"] + 0.3
    assert angles.min() < -RANGES["rotate"] / 2 and angles.max() > RANGES["rotate"] / 2


def test_shifts_of_the_middle_stay_within_their_range(transforms):
    middle = np.array([(HEIGHT - 1) / 2, (WIDTH - 1) / 2])
    shifts = np.array([matrix @ middle + offset - middle for matrix, offset in transforms]) / [HEIGHT, WIDTH]
    assert np.abs(shifts).max() < RANGES["shift"] + 0.003
    assert (shifts.min(0) < -RANGES["shift"] / 2).all() and (shifts.max(0) > RANGES["shift"] / 2).all()


@both_places
def test_the_affine_warp_is_that_of_scipy(place):
    settings = config(affine={"p": 1, **RANGES}, flip={"p": 0.5})
    drawn = drawn_for(settings)
    images, _ = PLACES[place](batch_of(texture()), batch_of(discs()), drawn, settings)
    for image, (a, b, x0, c, d, y0) in zip(images[:6], drawn["transform"].numpy(), strict=False):
        expected = [
            ndimage.affine_transform(plane, [[d, c], [b, a]], [y0, x0], order=1)
            for plane in np.moveaxis(texture(), -1, 0)
        ]
        assert np.abs(image - np.stack(expected, -1)).max() < 0.03


@pytest.mark.parametrize("name", ["flip", "affine", "low_resolution", "blur", "contrast", "gamma", "noise", "dropout"])
def test_about_the_asked_share_of_windows_is_changed(name):
    settings, image = config(**{name: {"p": 0.3}}), np.repeat(texture()[None], 200, 0)
    drawn = drawn_for(settings, count=200)
    result, _ = on_host(image, np.zeros((200, HEIGHT, WIDTH, 3), np.float32), drawn, settings)
    shares = np.abs(result - image).max((1, 2, 3)) > 1e-4
    assert 0.2 < shares.mean() < 0.4


def test_a_window_gets_an_elastic_or_a_grid_distortion_or_none():
    drawn = drawn_for(config(elastic={"p": 0.3}, grid={"p": 0.2}), count=1000)
    elastic, grid = (np.abs(drawn[name].numpy()).reshape(1000, -1).max(1) > 0 for name in ("elastic", "grid"))
    assert not (elastic & grid).any() and 0.25 < elastic.mean() < 0.35 and 0.15 < grid.mean() < 0.25
    assert np.array_equal(drawn["displaced"].numpy(), elastic | grid)


@both_places
def test_gamma_contrast_and_brightness_are_what_numpy_gives(place):
    for name, parameter in (("gamma", "gamma"), ("contrast", "contrast"), ("brightness", "brightness")):
        settings = config(**{name: {"p": 1}})
        drawn = drawn_for(settings)
        image, mask = PLACES[place](batch_of(texture()), batch_of(discs()), drawn, settings)
        by = drawn[parameter].numpy()[:, None, None, None]
        before = batch_of(texture()).astype(float) + 1e-9
        mean = before.mean((1, 2, 3), keepdims=True)
        wanted = {"gamma": before**by, "contrast": (before - mean) * by + mean, "brightness": before + by}[name]
        assert np.abs(image - np.clip(wanted, 0, 1)).max() < 1e-3, name
        assert np.array_equal(mask, batch_of(discs()))
        assert np.ptp(by) > 0.05


@both_places
def test_a_blur_is_that_of_scipy(place):
    settings = config(blur={"p": 1, "sigma": 2.0})
    drawn = drawn_for(settings)
    images, _ = PLACES[place](batch_of(texture()), batch_of(discs()), drawn, settings)
    for image, sigma in zip(images[:5], drawn["sigma"].numpy(), strict=False):
        wanted = ndimage.gaussian_filter(texture(), (sigma, sigma, 0), mode="nearest", radius=(6, 6, 0))
        assert np.abs(image - wanted).max() < 1e-3


@both_places
def test_noise_has_the_drawn_deviation(place):
    settings = config(noise={"p": 1, "std": 0.1})
    drawn = drawn_for(settings)
    images, _ = PLACES[place](np.full((BATCH, HEIGHT, WIDTH, 3), 0.5, np.float32), batch_of(discs()), drawn, settings)
    assert np.allclose(images.std((1, 2, 3)), drawn["noise"].numpy(), rtol=0.03, atol=1e-4)
    assert stats.kurtosis(images[np.argmax(drawn["noise"])].ravel()) < 0.2
    assert np.abs(np.corrcoef(images.reshape(BATCH, -1))[0, 1]) < 0.05


@both_places
def test_low_resolution_takes_away_detail_but_no_brightness(place):
    settings, checks = config(low_resolution={"p": 1, "zoom": 0.25}), np.indices((HEIGHT, WIDTH)).sum(0) % 2
    drawn = drawn_for(settings)
    smooth = batch_of(ndimage.gaussian_filter(texture(), (6, 6, 0)))
    kept, _ = PLACES[place](smooth, batch_of(discs()), drawn, settings)
    assert np.abs(kept - smooth).max() < 0.15 and np.abs(kept.mean() - smooth.mean()) < 0.01
    fine, _ = PLACES[place](
        batch_of(np.repeat(checks[..., None], 3, -1).astype(np.float32)), batch_of(discs()), drawn, settings
    )
    steps = np.abs(np.diff(fine, axis=2)).mean((1, 2, 3))
    coarsest = np.argmin(drawn["zoom"])
    assert steps[coarsest] < 0.6


@both_places
def test_a_bias_field_is_smooth_and_within_its_range(place):
    settings = config(bias_field={"p": 1, "strength": 0.3})
    flat = np.full((BATCH, HEIGHT, WIDTH, 3), 0.4, np.float32)
    fields = changed(place, settings, flat)[0] / 0.4
    assert np.log(fields).min() > -1.2 and np.log(fields).max() < 1.2 and np.log(fields).std() > 0.03
    assert np.abs(np.diff(fields, axis=1)).max() < 0.05 and np.abs(np.diff(fields, axis=3)).max() == 0


@both_places
def test_dropout_makes_boxes_of_the_asked_size_black_and_leaves_the_mask(place):
    settings = config(dropout={"p": 1, "holes": 1, "size": [0.2, 0.4]})
    images, masks = changed(place, settings, np.ones((BATCH, HEIGHT, WIDTH, 3), np.float32))
    assert np.array_equal(masks, batch_of(discs()))
    for image in images:
        rows, columns = np.nonzero(image[..., 0] == 0)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert height * width == rows.size  # one whole box
        assert 0.19 < height / HEIGHT < 0.41 and 0.19 < width / WIDTH < 0.41
        assert np.array_equal(image[..., 0], image[..., 2])


@both_places
def test_mixup_adds_the_next_window_by_the_drawn_share(place):
    settings = config(mixup={"p": 1, "alpha": 0.4})
    drawn, images, masks = drawn_for(settings), batch_of(texture(1), blobs()), batch_of(discs(), discs()[:, ::-1])
    image, mask = PLACES[place](images, masks, drawn, settings)
    share = drawn["mixup"].numpy()[:, None, None, None]
    assert np.abs(image - (share * images + (1 - share) * images[[*range(1, BATCH), 0]])).max() < 1e-4
    assert np.abs(mask - (share * masks + (1 - share) * masks[[*range(1, BATCH), 0]])).max() < 1e-5


def test_mixup_shares_are_of_the_beta_distribution():
    shares = drawn_for(config(mixup={"p": 1, "alpha": 0.4}), count=4000)["mixup"].numpy()
    assert stats.kstest(shares, stats.beta(0.4, 0.4).cdf).statistic < 0.03


@both_places
def test_cutmix_takes_a_box_from_the_next_window(place):
    settings = config(cutmix={"p": 1})
    levels = np.linspace(0, 1, BATCH, dtype=np.float32)[:, None, None, None]
    images = np.broadcast_to(levels, (BATCH, HEIGHT, WIDTH, 3)).copy()
    masks = batch_of(np.zeros((HEIGHT, WIDTH, 3), np.float32), np.ones((HEIGHT, WIDTH, 3), np.float32))
    image, mask = changed(place, settings, images, masks)
    areas = []
    for i in range(BATCH):
        own = np.abs(image[i, ..., 0] - levels[i, 0, 0, 0]) < 1e-4
        following = np.abs(image[i, ..., 0] - levels[(i + 1) % BATCH, 0, 0, 0]) < 1e-4
        assert (own ^ following).all() and np.array_equal(mask[i, ..., 0] == masks[i, 0, 0, 0], own)
        rows, columns = np.nonzero(following)
        assert rows.size == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        areas.append(following.mean())
    assert np.ptp(areas) > 0.5


ALL = {
    "flip": {"p": 0.5},
    "affine": {"p": 0.5},
    "elastic": {"p": 0.4, "displacement": 0.02},
    "grid": {"p": 0.4},
    "low_resolution": {"p": 0.5},
    "blur": {"p": 0.5},
    "bias_field": {"p": 0.5},
    "contrast": {"p": 0.5},
    "brightness": {"p": 0.5},
    "gamma": {"p": 0.5},
    "dropout": {"p": 0.5},
    "mixup": {"p": 0.5},
    "cutmix": {"p": 0.5},
}


@pytest.mark.parametrize("left_out", [(), ("low_resolution", "cutmix")])
def test_host_and_accelerator_agree_on_the_same_draw(left_out):
    """All changes at once. Noise is of the same deviation on both, but not the same numbers."""
    settings = config(**{name: value for name, value in ALL.items() if name not in left_out})
    drawn = drawn_for(settings)
    arguments = batch_of(texture(1), texture(2), blobs()), batch_of(discs(), discs()[::-1]), drawn, settings
    (image, mask), (same_image, same_mask) = on_host(*arguments), on_accelerator(*arguments)
    assert np.abs(image - same_image).mean() < 1e-3 and np.quantile(np.abs(image - same_image), 0.999) < 0.03
    assert (np.abs(mask - same_mask) > 1e-3).mean() < 1e-3


def test_volumes_are_changed_slice_by_slice_in_the_same_way():
    settings = config(**{name: value for name, value in ALL.items() if name != "contrast"})
    drawn = drawn_for(settings)
    volume = np.moveaxis(batch_of(texture(1), blobs()), -1, 1)[..., None]
    mask = np.repeat(batch_of(discs())[:, None], 3, 1)
    flat, flat_mask = on_host(volume[..., 0].transpose(0, 2, 3, 1), mask[:, 0], drawn, settings)
    image, organs = on_host(volume, mask, drawn, settings)
    assert image.shape == volume.shape and organs.shape == mask.shape
    assert np.abs(image[..., 0].transpose(0, 2, 3, 1) - flat).max() < 1e-3
    assert all(np.array_equal(organs[:, z], flat_mask) for z in range(3))
    again, organs_again = on_accelerator(volume, mask, drawn, settings)
    assert np.abs(again - image).mean() < 1e-3 and (organs_again != organs).mean() < 1e-3


def test_replicas_share_the_draw_of_the_whole_batch():
    settings = config(**WARPS | {"elastic": {"p": 0}, "grid": {"p": 0}})
    image, mask, seed = batch_of(texture(), blobs()), batch_of(discs()), tf.constant([1, 2], tf.int64)
    whole = augment_batch(tf.constant(image), tf.constant(mask), seed, settings)[0].numpy()
    halves = [
        augment_batch(tf.constant(image[part]), tf.constant(mask[part]), seed, settings, part.start, BATCH)[0].numpy()
        for part in (slice(0, BATCH // 2), slice(BATCH // 2, BATCH))
    ]
    assert np.array_equal(np.concatenate(halves), whole)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="there is no tensorflow-addons for this Python")
def test_the_warp_of_tensorflow_addons_agrees_with_ours():
    settings = config(affine={"p": 1, **RANGES}, elastic={"p": 1})
    theirs = settings.model_copy(update={"accelerator_warp": "addons"})
    drawn = drawn_for(settings)
    arguments = batch_of(texture()), batch_of(discs()), drawn
    (image, mask), (other_image, other_mask) = (
        change_batch(*map(tf.constant, arguments[:2]), drawn, s) for s in (settings, theirs)
    )
    assert np.abs(image - other_image).mean() < 1e-3
    assert np.mean(np.abs(mask - other_mask)) < 0.005

"""Each augmentation with the OpenCV and the TensorFlow backend, against scipy, numpy and known points."""

import sys

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage, stats

from gitseg_tf.config.augment import AugmentConfig
from gitseg_tf.data.augment.opencv import HostAugment, pack_masks
from gitseg_tf.data.augment.parameters import draw
from gitseg_tf.data.augment.tensorflow import augment_batch, change_batch

BATCH, HEIGHT, WIDTH = 24, 96, 128
POINTS = np.array([[34, 48], [44, 86], [66, 60]], float)
RANGES = {"shift": 0.05, "scale": 0.15, "rotate": 14.0}
YX = np.moveaxis(np.indices((HEIGHT, WIDTH)), 0, -1).astype(float)
NAMES = ("flip", "affine", "elastic", "grid", "low_resolution", "blur", "bias_field", "contrast", "brightness")
NAMES += ("gamma", "noise", "dropout", "mixup", "cutmix", "tilt")
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
    """One smooth spot per channel."""
    return np.exp(-((distances() / sigma) ** 2) / 2).astype(np.float32)


def discs():
    """One disc per label, around the same points."""
    return (distances() <= 7.5).astype(np.float32)


def texture(seed=1):
    rng = np.random.default_rng(seed)
    image = ndimage.gaussian_filter(rng.random((HEIGHT, WIDTH, 3)), (3, 3, 0))
    image *= np.hypot(*np.moveaxis(YX - [(HEIGHT - 1) / 2, (WIDTH - 1) / 2], -1, 0))[..., None] < 40
    return (image / image.max()).astype(np.float32)


def batch_of(*images):
    return np.stack([images[i % len(images)] for i in range(BATCH)])


def parameters_for(settings, seed=0, count=BATCH):
    return draw(count, HEIGHT, WIDTH, tf.constant([7, seed], tf.int64), settings)


def with_opencv(image, mask, parameters, settings):
    volumetric = image.ndim == 5
    # Volumes [B, D, H, W, C] and windows [B, H, W, K] to planes [B, D, C, H, W] and [B, K, 1, H, W].
    planes = np.moveaxis(image, -1, 2) if volumetric else np.moveaxis(image, -1, 1)[:, :, None]
    bits, annotated = pack_masks(mask)
    host = HostAugment(settings, HEIGHT, WIDTH, labels=mask.shape[-1], volumetric=volumetric)
    arrays = {name: value.numpy() for name, value in parameters.items()}
    return host(np.ascontiguousarray(np.rint(planes * 65535).astype(np.uint16)), bits, annotated, arrays)


def with_tensorflow(image, mask, parameters, settings):
    augmented = tf.function(lambda image, mask: change_batch(image, mask, parameters, settings), jit_compile=True)
    return [part.numpy() for part in augmented(tf.constant(image), tf.constant(mask))]


BACKENDS = {"host": with_opencv, "accelerator": with_tensorflow}
both_backends = pytest.mark.parametrize("backend", BACKENDS)


def augmented(backend, settings, image=None, mask=None, seed=0):
    image = batch_of(blobs()) if image is None else image
    mask = batch_of(discs()) if mask is None else mask
    return BACKENDS[backend](image, mask, parameters_for(settings, seed), settings)


def centroids(planes):
    return np.einsum("hwk,hwc->kc", planes, YX) / planes.sum((0, 1))[:, None]


def fitted_transform(moved):
    """The matrix and offset with moved = matrix @ point + offset, solved from the three points."""
    solution = np.linalg.solve(np.column_stack([POINTS, np.ones(3)]), moved)
    return solution[:2].T, solution[2]


@pytest.fixture(scope="module", params=BACKENDS)
def warped(request):
    """Spots and discs after an affine warp."""
    return list(zip(*augmented(request.param, config(affine={"p": 1, **RANGES})), strict=True))


@pytest.fixture(scope="module")
def transforms(warped):
    return [fitted_transform(centroids(image)) for image, _ in warped]


@both_backends
def test_zero_probabilities_change_nothing(backend):
    image, mask = augmented(backend, config(), batch_of(texture()))
    assert np.abs(image - texture()).max() < 1e-5 and np.array_equal(mask, batch_of(discs()))


@both_backends
def test_a_flip_is_exact(backend):
    image, mask = augmented(backend, config(flip={"p": 1}), batch_of(texture()))
    assert np.abs(image - texture()[:, ::-1]).max() < 1e-5 and np.array_equal(mask, batch_of(discs()[:, ::-1]))


@both_backends
def test_the_seed_determines_the_batch(backend):
    settings = config(**WARPS | {"elastic": {"p": 0.5}, "grid": {"p": 0.5}, "noise": {"p": 1}, "dropout": {"p": 1}})
    first, again, other = (augmented(backend, settings, batch_of(texture()), seed=seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


@both_backends
@pytest.mark.parametrize("warp", WARPS)
def test_image_and_mask_stay_aligned_within_half_a_pixel_and_masks_stay_binary(backend, warp):
    images, masks = augmented(backend, config(**{warp: WARPS[warp]}))
    assert set(np.unique(masks)) == {0, 1}
    for image, mask in zip(images, masks, strict=True):
        assert np.abs(centroids(image) - centroids(mask)).max() < 0.5
    moved = np.abs([centroids(image) - centroids(blobs()) for image in images]).max((1, 2))
    assert np.median(moved) > 0.5


@both_backends
@pytest.mark.parametrize("warp", ["elastic", "grid"])
def test_points_move_by_the_sampled_displacement(backend, warp):
    settings = config(**{warp: WARPS[warp]})
    parameters = parameters_for(settings)
    images, _ = BACKENDS[backend](batch_of(blobs(1.5)), batch_of(discs()), parameters, settings)
    for i, image in enumerate(images):
        for point, landed in zip(POINTS, centroids(image), strict=True):
            assert np.abs(landed + displacement_at(landed, warp, parameters, i) - point).max() < 0.5


def displacement_at(point, warp, parameters, i):
    """The displacement by scipy's interpolators, from the sampled parameters."""
    values, sides = parameters[warp].numpy()[i].astype(float), (HEIGHT, WIDTH)
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


def test_elastic_displacements_have_the_configured_size():
    parameters = parameters_for(config(elastic={"p": 1, "displacement": 0.02}), count=200)["elastic"].numpy()
    pixels = np.sqrt((parameters**2).mean((0, 2, 3)))
    assert np.allclose(pixels, [0.02 * HEIGHT, 0.02 * WIDTH], rtol=0.05)


def test_the_affine_warp_preserves_proportions(transforms):
    for matrix, _ in transforms:
        assert np.allclose(matrix @ matrix.T, np.linalg.det(matrix) * np.eye(2), atol=0.01)


def test_affine_scales_stay_within_their_range(transforms):
    zooms = np.array([np.sqrt(np.linalg.det(matrix)) for matrix, _ in transforms])
    assert np.abs(zooms - 1).max() < RANGES["scale"] + 0.005
    assert zooms.min() < 1 - RANGES["scale"] / 2 and zooms.max() > 1 + RANGES["scale"] / 2


def test_affine_rotations_stay_within_their_range(transforms):
    angles = np.array([np.degrees(np.arctan2(matrix[0, 1], matrix[0, 0])) for matrix, _ in transforms])
    assert np.abs(angles).max() < RANGES["rotate"] + 0.3
    assert angles.min() < -RANGES["rotate"] / 2 and angles.max() > RANGES["rotate"] / 2


def test_affine_shifts_stay_within_their_range(transforms):
    middle = np.array([(HEIGHT - 1) / 2, (WIDTH - 1) / 2])
    shifts = np.array([matrix @ middle + offset - middle for matrix, offset in transforms]) / [HEIGHT, WIDTH]
    assert np.abs(shifts).max() < RANGES["shift"] + 0.003
    assert (shifts.min(0) < -RANGES["shift"] / 2).all() and (shifts.max(0) > RANGES["shift"] / 2).all()


@both_backends
def test_the_affine_warp_matches_scipy(backend):
    settings = config(affine={"p": 1, **RANGES}, flip={"p": 0.5})
    parameters = parameters_for(settings)
    images, _ = BACKENDS[backend](batch_of(texture()), batch_of(discs()), parameters, settings)
    for image, (a, b, x0, c, d, y0) in zip(images[:6], parameters["transform"].numpy(), strict=False):
        expected = [
            ndimage.affine_transform(plane, [[d, c], [b, a]], [y0, x0], order=1)
            for plane in np.moveaxis(texture(), -1, 0)
        ]
        assert np.abs(image - np.stack(expected, -1)).max() < 0.03


@pytest.mark.parametrize("name", ["flip", "affine", "low_resolution", "blur", "contrast", "gamma", "noise", "dropout"])
def test_p_is_the_fraction_of_windows_that_are_changed(name):
    settings, image = config(**{name: {"p": 0.3}}), np.repeat(texture()[None], 200, 0)
    parameters = parameters_for(settings, count=200)
    result, _ = with_opencv(image, np.zeros((200, HEIGHT, WIDTH, 3), np.float32), parameters, settings)
    shares = np.abs(result - image).max((1, 2, 3)) > 1e-4
    assert 0.2 < shares.mean() < 0.4


def test_a_window_never_gets_both_elastic_and_grid_distortion():
    parameters = parameters_for(config(elastic={"p": 0.3}, grid={"p": 0.2}), count=1000)
    elastic, grid = (np.abs(parameters[name].numpy()).reshape(1000, -1).max(1) > 0 for name in ("elastic", "grid"))
    assert not (elastic & grid).any() and 0.25 < elastic.mean() < 0.35 and 0.15 < grid.mean() < 0.25
    assert np.array_equal(parameters["displaced"].numpy(), elastic | grid)


@both_backends
def test_gamma_contrast_and_brightness_match_numpy(backend):
    for name, parameter in (("gamma", "gamma"), ("contrast", "contrast"), ("brightness", "brightness")):
        settings = config(**{name: {"p": 1}})
        parameters = parameters_for(settings)
        image, mask = BACKENDS[backend](batch_of(texture()), batch_of(discs()), parameters, settings)
        by = parameters[parameter].numpy()[:, None, None, None]
        before = batch_of(texture()).astype(float) + 1e-9
        mean = before.mean((1, 2, 3), keepdims=True)
        expected = {"gamma": before**by, "contrast": (before - mean) * by + mean, "brightness": before + by}[name]
        assert np.abs(image - np.clip(expected, 0, 1)).max() < 1e-3, name
        assert np.array_equal(mask, batch_of(discs()))
        assert np.ptp(by) > 0.05


@both_backends
def test_blur_matches_scipy(backend):
    settings = config(blur={"p": 1, "sigma": 2.0})
    parameters = parameters_for(settings)
    images, _ = BACKENDS[backend](batch_of(texture()), batch_of(discs()), parameters, settings)
    for image, sigma in zip(images[:5], parameters["sigma"].numpy(), strict=False):
        expected = ndimage.gaussian_filter(texture(), (sigma, sigma, 0), mode="nearest", radius=(6, 6, 0))
        assert np.abs(image - expected).max() < 1e-3


@both_backends
def test_noise_has_the_sampled_standard_deviation(backend):
    settings = config(noise={"p": 1, "std": 0.1})
    parameters = parameters_for(settings)
    images, _ = BACKENDS[backend](
        np.full((BATCH, HEIGHT, WIDTH, 3), 0.5, np.float32), batch_of(discs()), parameters, settings
    )
    assert np.allclose(images.std((1, 2, 3)), parameters["noise"].numpy(), rtol=0.03, atol=1e-4)
    assert stats.kurtosis(images[np.argmax(parameters["noise"])].ravel()) < 0.2
    assert np.abs(np.corrcoef(images.reshape(BATCH, -1))[0, 1]) < 0.05


@both_backends
def test_low_resolution_removes_detail_and_keeps_brightness(backend):
    settings, checks = config(low_resolution={"p": 1, "zoom": 0.25}), np.indices((HEIGHT, WIDTH)).sum(0) % 2
    parameters = parameters_for(settings)
    smooth = batch_of(ndimage.gaussian_filter(texture(), (6, 6, 0)))
    kept, _ = BACKENDS[backend](smooth, batch_of(discs()), parameters, settings)
    assert np.abs(kept - smooth).max() < 0.15 and np.abs(kept.mean() - smooth.mean()) < 0.01
    fine, _ = BACKENDS[backend](
        batch_of(np.repeat(checks[..., None], 3, -1).astype(np.float32)), batch_of(discs()), parameters, settings
    )
    steps = np.abs(np.diff(fine, axis=2)).mean((1, 2, 3))
    coarsest = np.argmin(parameters["zoom"])
    assert steps[coarsest] < 0.6


@both_backends
def test_a_bias_field_is_smooth_and_within_its_range(backend):
    settings = config(bias_field={"p": 1, "strength": 0.3})
    flat = np.full((BATCH, HEIGHT, WIDTH, 3), 0.4, np.float32)
    fields = augmented(backend, settings, flat)[0] / 0.4
    assert np.log(fields).min() > -1.2 and np.log(fields).max() < 1.2 and np.log(fields).std() > 0.03
    assert np.abs(np.diff(fields, axis=1)).max() < 0.05 and np.abs(np.diff(fields, axis=3)).max() == 0


@both_backends
def test_dropout_blacks_out_boxes_of_the_configured_size_and_keeps_the_mask(backend):
    settings = config(dropout={"p": 1, "holes": 1, "size": [0.2, 0.4]})
    images, masks = augmented(backend, settings, np.ones((BATCH, HEIGHT, WIDTH, 3), np.float32))
    assert np.array_equal(masks, batch_of(discs()))
    for image in images:
        rows, columns = np.nonzero(image[..., 0] == 0)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert height * width == rows.size  # one whole box
        assert 0.19 < height / HEIGHT < 0.41 and 0.19 < width / WIDTH < 0.41
        assert np.array_equal(image[..., 0], image[..., 2])


@both_backends
def test_mixup_blends_in_the_next_window_with_the_sampled_weight(backend):
    settings = config(mixup={"p": 1, "alpha": 0.4})
    parameters, images, masks = (
        parameters_for(settings),
        batch_of(texture(1), blobs()),
        batch_of(discs(), discs()[:, ::-1]),
    )
    image, mask = BACKENDS[backend](images, masks, parameters, settings)
    share = parameters["mixup"].numpy()[:, None, None, None]
    assert np.abs(image - (share * images + (1 - share) * images[[*range(1, BATCH), 0]])).max() < 1e-4
    assert np.abs(mask - (share * masks + (1 - share) * masks[[*range(1, BATCH), 0]])).max() < 1e-5


def test_mixup_weights_follow_the_beta_distribution():
    shares = parameters_for(config(mixup={"p": 1, "alpha": 0.4}), count=4000)["mixup"].numpy()
    assert stats.kstest(shares, stats.beta(0.4, 0.4).cdf).statistic < 0.03


@both_backends
def test_cutmix_pastes_a_box_from_the_next_window(backend):
    settings = config(cutmix={"p": 1})
    levels = np.linspace(0, 1, BATCH, dtype=np.float32)[:, None, None, None]
    images = np.broadcast_to(levels, (BATCH, HEIGHT, WIDTH, 3)).copy()
    masks = batch_of(np.zeros((HEIGHT, WIDTH, 3), np.float32), np.ones((HEIGHT, WIDTH, 3), np.float32))
    image, mask = augmented(backend, settings, images, masks)
    areas = []
    for i in range(BATCH):
        unchanged = np.abs(image[i, ..., 0] - levels[i, 0, 0, 0]) < 1e-4
        following = np.abs(image[i, ..., 0] - levels[(i + 1) % BATCH, 0, 0, 0]) < 1e-4
        assert (unchanged ^ following).all() and np.array_equal(mask[i, ..., 0] == masks[i, 0, 0, 0], unchanged)
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
def test_backends_agree_on_the_same_parameters(left_out):
    """All augmentations at once, except noise, whose random numbers differ between the backends."""
    settings = config(**{name: value for name, value in ALL.items() if name not in left_out})
    parameters = parameters_for(settings)
    arguments = batch_of(texture(1), texture(2), blobs()), batch_of(discs(), discs()[::-1]), parameters, settings
    (image, mask), (same_image, same_mask) = with_opencv(*arguments), with_tensorflow(*arguments)
    assert np.abs(image - same_image).mean() < 1e-3 and np.quantile(np.abs(image - same_image), 0.999) < 0.03
    assert (np.abs(mask - same_mask) > 1e-3).mean() < 1e-3


def test_all_slices_of_a_volume_get_the_same_augmentation():
    settings = config(**{name: value for name, value in ALL.items() if name != "contrast"})
    parameters = parameters_for(settings)
    volume = np.moveaxis(batch_of(texture(1), blobs()), -1, 1)[..., None]
    mask = np.repeat(batch_of(discs())[:, None], 3, 1)
    flat, flat_mask = with_opencv(volume[..., 0].transpose(0, 2, 3, 1), mask[:, 0], parameters, settings)
    image, masks = with_opencv(volume, mask, parameters, settings)
    assert image.shape == volume.shape and masks.shape == mask.shape
    assert np.abs(image[..., 0].transpose(0, 2, 3, 1) - flat).max() < 1e-3
    assert all(np.array_equal(masks[:, z], flat_mask) for z in range(3))
    again, masks_again = with_tensorflow(volume, mask, parameters, settings)
    assert np.abs(again - image).mean() < 1e-3 and (masks_again != masks).mean() < 1e-3


@both_backends
def test_a_tilt_shifts_slices_in_proportion_to_their_distance_from_the_middle(backend):
    settings = config(tilt={"p": 0.5, "shift": 0.1})
    tilts = parameters_for(settings)["tilt"].numpy()
    assert np.abs(tilts).max(0) == pytest.approx([0.1 * HEIGHT, 0.1 * WIDTH], rel=0.25)
    assert 0 < (tilts == 0).all(1).sum() < BATCH
    volume = np.repeat(batch_of(blobs())[:, None, ..., :1], 5, 1)
    images, masks = augmented(backend, settings, volume, np.repeat(batch_of(discs())[:, None], 5, 1))
    for image, mask, tilt in zip(images, masks, tilts, strict=True):
        for z, slice_ in enumerate(image):
            moved = centroids(slice_)[0] - centroids(blobs())[0]
            assert moved == pytest.approx(-tilt * (z - 2) / 2, abs=0.05)
            assert np.abs(centroids(mask[z]) - centroids(discs()) - moved).max() < 0.5


def test_backends_agree_on_tilted_volumes():
    settings = config(**{name: value for name, value in ALL.items() if name != "contrast"} | {"tilt": {"p": 0.7}})
    volume = np.moveaxis(batch_of(texture(1), blobs()), -1, 1)[..., None]
    arguments = volume, np.repeat(batch_of(discs())[:, None], 3, 1), parameters_for(settings), settings
    (image, masks), (again, masks_again) = with_opencv(*arguments), with_tensorflow(*arguments)
    assert np.abs(again - image).mean() < 1e-3 and (np.abs(masks_again - masks) > 1e-3).mean() < 1e-3


def test_replicas_share_the_parameters_of_the_global_batch():
    settings = config(**WARPS | {"elastic": {"p": 0}, "grid": {"p": 0}})
    image, mask, seed = batch_of(texture(), blobs()), batch_of(discs()), tf.constant([1, 2], tf.int64)
    whole = augment_batch(tf.constant(image), tf.constant(mask), seed, settings)[0].numpy()
    halves = [
        augment_batch(
            tf.constant(image[part]), tf.constant(mask[part]), seed, settings, first=part.start, whole_batch=BATCH
        )[0].numpy()
        for part in (slice(0, BATCH // 2), slice(BATCH // 2, BATCH))
    ]
    assert np.array_equal(np.concatenate(halves), whole)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="tensorflow-addons does not support this Python")
def test_the_tensorflow_addons_warp_matches_ours():
    settings = config(affine={"p": 1, **RANGES}, elastic={"p": 1})
    theirs = settings.model_copy(update={"tensorflow_warp": "addons"})
    parameters = parameters_for(settings)
    arguments = batch_of(texture()), batch_of(discs()), parameters
    (image, mask), (other_image, other_mask) = (
        change_batch(*map(tf.constant, arguments[:2]), parameters, s) for s in (settings, theirs)
    )
    assert np.abs(image - other_image).mean() < 1e-3
    assert np.mean(np.abs(mask - other_mask)) < 0.005


def many_labels(seed=3, labels=12):
    """Windows of 4 planes; label 5 is not annotated in every third window, and a disc is ignored in every other one."""
    rng = np.random.default_rng(seed)
    image = np.repeat(batch_of(texture(1), texture(2)), 2, -1)[..., :4]
    mask = np.zeros((BATCH, HEIGHT, WIDTH, labels), np.float32)
    for i in range(BATCH):
        for k in range(labels):
            y, x = rng.integers(0, HEIGHT - 30), rng.integers(0, WIDTH - 30)
            mask[i, y : y + 30, x : x + 25, k] = 1
    mask[1::2][:, discs()[..., 0] > 0] = -1
    mask[::3, ..., 5] = -1
    return image.copy(), mask


def as_volumes(image, mask):
    """The planes as two slices of two channels, with the same mask in both."""
    volume = np.moveaxis(image.reshape(BATCH, HEIGHT, WIDTH, 2, 2), 3, 1)
    return np.ascontiguousarray(volume), np.repeat(mask[:, None], 2, 1)


@pytest.mark.parametrize("volumetric", [False, True], ids=["windows", "volumes"])
def test_backends_agree_on_many_labels_channels_and_ignored_voxels(volumetric):
    settings = config(**ALL)
    image, mask = as_volumes(*many_labels()) if volumetric else many_labels()
    parameters = parameters_for(settings)
    (one, one_mask), (other, other_mask) = (
        BACKENDS[backend](image, mask, parameters, settings) for backend in BACKENDS
    )
    assert one.shape == image.shape and one_mask.shape == mask.shape
    assert np.abs(one - other).mean() < 1e-3
    assert (np.abs(one_mask - other_mask) > 1e-3).mean() < 1e-3
    assert set(np.unique(one_mask[one_mask <= 0])) == {-1, 0} and one_mask.max() <= 1


@both_backends
@pytest.mark.parametrize("warp", WARPS)
def test_ignored_voxels_move_with_the_image_and_unannotated_labels_stay_unannotated(backend, warp):
    image, mask = batch_of(blobs()), np.zeros((BATCH, HEIGHT, WIDTH, 9), np.float32)
    mask[:, discs()[..., 0] > 0] = -1
    mask[..., 7] = -1
    images, masks = augmented(backend, config(**{warp: WARPS[warp]}), image, mask)
    assert (masks[..., 7] == -1).all()
    for image, ignored in zip(images, masks[..., 2] < 0, strict=True):
        centers = [np.einsum("hw,hwc->c", plane, YX) / plane.sum() for plane in (image[..., 0], ignored)]
        assert np.abs(centers[0] - centers[1]).max() < 0.5
    assert np.array_equal(masks[..., 2], masks[..., 8])


@both_backends
def test_mixup_ignores_a_voxel_that_either_window_ignores(backend):
    settings = config(mixup={"p": 0.7, "alpha": 0.4})
    (image, mask), parameters = many_labels(), parameters_for(config(mixup={"p": 0.7, "alpha": 0.4}))
    _, mixed = BACKENDS[backend](image, mask, parameters, settings)
    weight, following = parameters["mixup"].numpy()[:, None, None, None], np.roll(mask, -1, 0)
    assert 0 < (weight == 1).mean() < 1
    uncounted = (mask < 0) | ((weight < 1) & (following < 0))
    assert np.array_equal(mixed < 0, uncounted) and set(mixed[uncounted]) == {-1}
    assert np.allclose(mixed[~uncounted], (weight * mask + (1 - weight) * following)[~uncounted], atol=1e-6)


@both_backends
def test_cutmix_pastes_ignored_voxels_too(backend):
    settings = config(cutmix={"p": 1})
    (image, mask), parameters = many_labels(), parameters_for(config(cutmix={"p": 1}))
    _, mixed = BACKENDS[backend](image, mask, parameters, settings)
    for i, (y, x, height, width) in enumerate(parameters["cutmix"].numpy()):
        expected = mask[i].copy()
        box = slice(y, y + height), slice(x, x + width)
        expected[box] = mask[(i + 1) % BATCH][box]
        assert np.array_equal(mixed[i], expected)


@pytest.mark.parametrize("labels", [1, 7, 8, 16, 255])
def test_mask_packing_round_trips_for_any_number_of_labels(labels):
    rng = np.random.default_rng(0)
    mask = (rng.random((2, HEIGHT, WIDTH, labels)) < 0.3).astype(np.float32)
    mask[:, 5:9, 5:9] = -1
    mask[0, ..., 0] = -1
    _, same = with_opencv(batch_of(texture())[:2], mask, parameters_for(config()), config())
    assert np.array_equal(same, mask)

"""A SavedModel with the signatures of an export and a rule in place of a network, and a server that has it."""

import numpy as np
import pytest

pytest.importorskip("tensorflow_serving", reason="needs the extra [serving]")
from server import serve


def rule(image, spacing, numbers=None):
    """The rule in numpy: bool [3, D, H, W]. Its parts notice the order of slices, of axes of spacing and of organs."""
    image = image.astype(np.float32)
    low, high = np.percentile(image, [1, 99], method="nearest")
    bright = (image - low) / max(high - low, 1)
    below = np.concatenate([bright[:1], bright[:-1]])
    if numbers is not None:
        after_gap = np.flatnonzero(np.diff(numbers) != 1) + 1
        below[after_gap] = bright[after_gap]
    return np.stack([bright > 0.5, below > 0.6, bright * spacing[0] > spacing[1] + spacing[2]])


@pytest.fixture(scope="session")
def save_rule():
    """save_rule(folder, with_numbers=False) writes the rule as a SavedModel with the signatures of an export."""

    def save(folder, with_numbers=False):
        import tensorflow as tf

        image_spec = tf.TensorSpec([None, None, None], tf.uint16, "image")
        png_spec, spacing_spec = (
            tf.TensorSpec([None], tf.string, "png_bytes"),
            tf.TensorSpec([3], tf.float32, "spacing"),
        )
        more = [tf.TensorSpec([None], tf.int64, "numbers")] if with_numbers else []
        module = tf.Module()

        def masks(image, spacing, numbers=None):
            image = tf.cast(image, tf.float32)
            ordered = tf.sort(tf.reshape(image, [-1]))
            last = tf.cast(tf.size(ordered) - 1, tf.float64)
            low, high = (ordered[tf.cast(tf.round(last * share), tf.int32)] for share in (0.01, 0.99))
            bright = (image - low) / tf.maximum(high - low, 1.0)
            below = tf.concat([bright[:1], bright[:-1]], 0)
            if numbers is not None:
                first = tf.concat([[True], numbers[1:] - numbers[:-1] != 1], 0)
                below = tf.where(first[:, None, None], bright, below)
            found = [bright > 0.5, below > 0.6, bright * spacing[0] > spacing[1] + spacing[2]]
            return {"masks": tf.cast(tf.stack(found, -1), tf.uint8)}

        def decode(png_bytes, spacing, *numbers):
            planes = tf.map_fn(
                lambda png: tf.io.decode_png(png, 1, tf.uint16)[..., 0],
                png_bytes,
                fn_output_signature=tf.TensorSpec([None, None], tf.uint16),
            )
            return masks(planes, spacing, *numbers)

        module.volume = tf.function(masks, [image_spec, spacing_spec, *more])
        module.png = tf.function(decode, [png_spec, spacing_spec, *more])
        module.windows = tf.function(
            lambda windows: {"probabilities": tf.sigmoid(windows[..., :3])},
            [tf.TensorSpec([None, 8, 8, 3], tf.float32, "windows")],
        )
        signatures = {"serving_default": module.windows, "segment_volume": module.volume, "segment_png": module.png}
        tf.saved_model.save(module, str(folder), signatures=signatures)
        return folder

    return save


@pytest.fixture(scope="session")
def rule_models(save_rule, tmp_path_factory):
    """The rule, the rule with an input for slice numbers, and a SavedModel with windows alone."""
    import tensorflow as tf

    root = tmp_path_factory.mktemp("models")
    module = tf.Module()
    module.windows = tf.function(
        lambda windows: {"probabilities": windows}, [tf.TensorSpec([None, 8, 8, 3], tf.float32)]
    )
    tf.saved_model.save(module, str(root / "windows"), signatures={"serving_default": module.windows})
    return {
        "gitseg": {1: save_rule(root / "rule"), 2: root / "rule"},
        "numbered": {1: save_rule(root / "numbered", with_numbers=True)},
        "windows": {1: root / "windows"},
    }


@pytest.fixture(scope="session")
def running(rule_models):
    with serve(rule_models) as started:
        yield started


@pytest.fixture
def server(running):
    """The running server, with no faults and no requests yet."""
    serving = running.serving
    serving.requests.clear()
    serving.as_content = False
    yield running
    serving.faults.codes.clear()
    serving.faults.metadata_codes.clear()
    serving.faults.seconds = 0.0


@pytest.fixture(params=["grpc", "rest"])
def url(request, server):
    """url(name) is a model's address on the running server, over gRPC and over REST."""
    return server.grpc_url if request.param == "grpc" else server.rest_url

"""Compare methods of warping a 5-slice window of 256 x 256 and its mask by an affine map and a smooth displacement.

CPU milliseconds per window on one thread, medians of 5 alternating rounds. The claim compares with TensorFlow's own
operation, ImageProjectiveTransformV3, which is affine only.
"""

import argparse
import json
import statistics
import time

import cv2
import numpy as np
from scipy import ndimage

from gitseg_tf.core.tensorflow_import import import_tensorflow

OURS = "OpenCV remap: float32, 5 channels, one map for image and mask"
PEER = "TensorFlow ImageProjectiveTransformV3, affine only"
SIDE, SLICES, BATCH, ROUNDS = 256, 5, 8, 5


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds")
    options = parser.parse_args()
    tf = load_tensorflow()
    cv2.setNumThreads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    ways = {**opencv_ways(), **tensorflow_ways(), "scipy map_coordinates, spline 1": scipy_way()}
    measured = {name: [] for name in ways}
    for _ in range(2 if options.quick else ROUNDS):
        for name, way in ways.items():
            measured[name].append(processor_ms(way))
    medians = {name: statistics.median(times) for name, times in measured.items()}
    print(f"{'method':64}{'CPU ms per window':>22}")
    for name, ms in medians.items():
        print(f"{name:64}{ms:22.3f}")
    ours, peer = medians[OURS], medians[PEER]
    claim = {
        "claim": "a bent window against ImageProjectiveTransformV3",
        "ours": round(ours, 3),
        "peer": round(peer, 3),
    }
    print(json.dumps(claim | {"unit": "ms", "ratio": round(peer / ours, 2)}))


def opencv_ways():
    from gitseg_tf.data.augment.parameters import spline_basis

    rng = np.random.default_rng(0)
    planes = [(rng.random((SIDE, SIDE)) * 65535).astype(np.uint16) for _ in range(SLICES)]
    float_planes = [plane.astype(np.float32) for plane in planes]
    image, image16 = cv2.merge(float_planes), cv2.merge(planes)
    bits = rng.integers(0, 8, (SIDE, SIDE)).astype(np.uint8)
    matrix = np.array([[0.98, 0.1, 3.0], [-0.1, 0.98, 4.0]])
    rows = spline_basis(SIDE, 5)
    coefficients = rng.normal(0, 3, (2, 8, 8)).astype(np.float32)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    field = np.stack([x, y], -1)
    for axis in (0, 1):
        field[..., axis] += rows @ coefficients[axis] @ rows.T
    fixed = cv2.convertMaps(field, None, cv2.CV_16SC2)

    def coarse_field():
        bent = cv2.resize(rng.normal(0, 3, (8, 8, 2)).astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        bent += field
        return cv2.remap(image, bent, None, cv2.INTER_LINEAR), cv2.remap(bits, bent, None, cv2.INTER_NEAREST)

    def remap(what, maps, many=False):
        moved = [cv2.remap(part, *maps, cv2.INTER_LINEAR) for part in (what if many else [what])]
        return moved, cv2.remap(bits, *maps, cv2.INTER_NEAREST)

    def affine(what, many=False):
        flags = cv2.WARP_INVERSE_MAP
        moved = [
            cv2.warpAffine(p, matrix, (SIDE, SIDE), flags=flags | cv2.INTER_LINEAR) for p in (what if many else [what])
        ]
        return moved, cv2.warpAffine(bits, matrix, (SIDE, SIDE), flags=flags | cv2.INTER_NEAREST)

    return {
        "OpenCV warpAffine: float32, 5 channels": lambda: affine(image),
        "OpenCV warpAffine: float32, plane by plane": lambda: affine(float_planes, True),
        "OpenCV warpAffine: uint16, 5 channels": lambda: affine(image16),
        "OpenCV warpAffine: uint16, plane by plane": lambda: affine(planes, True),
        OURS: lambda: remap(image, (field, None)),
        "OpenCV remap: float32, plane by plane": lambda: remap(float_planes, (field, None), True),
        "OpenCV remap: float32, 5 channels, fixed-point map": lambda: remap(image, fixed),
        "OpenCV remap: uint16, 5 channels": lambda: remap(image16, (field, None)),
        "OpenCV remap: uint16, plane by plane, fixed-point map": lambda: remap(planes, fixed, True),
        "OpenCV: coarse displacement enlarged by resize, then remap": coarse_field,
    }


def tensorflow_ways():
    tf = load_tensorflow()
    from gitseg_tf.config.augment import AugmentConfig
    from gitseg_tf.core.addons import import_addons
    from gitseg_tf.data.augment.parameters import draw
    from gitseg_tf.data.augment.tensorflow import change_batch
    from gitseg_tf.errors import GitsegError

    try:
        addons = import_addons()
    except GitsegError as error:
        print(error)
        addons = None
    rng = np.random.default_rng(0)
    image = tf.constant(rng.random((BATCH, SIDE, SIDE, SLICES)), tf.float32)
    mask = tf.constant(rng.random((BATCH, SIDE, SIDE, 3)) < 0.2, tf.float32)
    off = {name: {"p": 0} for name in ("flip", "grid", "dropout")}
    config = AugmentConfig(**off, affine={"p": 1}, elastic={"p": 1})
    parameters = draw(BATCH, SIDE, SIDE, tf.constant([0, 0], tf.int64), config)
    transforms = tf.concat([parameters["transform"], tf.zeros([BATCH, 2])], 1)

    def projective(image, mask):
        settings = {"transforms": transforms, "output_shape": [SIDE, SIDE], "fill_value": 0.0, "fill_mode": "CONSTANT"}
        op = tf.raw_ops.ImageProjectiveTransformV3
        return op(images=image, interpolation="BILINEAR", **settings), op(
            images=mask, interpolation="NEAREST", **settings
        )

    def flow(image, mask):
        warp, field = addons.image.dense_image_warp, tf.ones([BATCH, SIDE, SIDE, 2]) * 3.3
        return warp(image, field), warp(mask, field) >= 0.5

    def gathered(image, mask):
        return change_batch(image, mask, parameters, config)

    half = tf.cast(image, tf.float16)
    ways = {
        PEER: tf.function(projective),
        "TensorFlow gather, compiled with XLA": tf.function(gathered, jit_compile=True),
        "TensorFlow gather, compiled with XLA, image in half precision": tf.function(
            lambda _, mask: gathered(half, mask), jit_compile=True
        ),
        **({"tensorflow-addons dense_image_warp": tf.function(flow)} if addons else {}),
    }
    return {name: lambda way=way: way(image, mask) for name, way in ways.items()}


def scipy_way():
    rng = np.random.default_rng(0)
    planes, at = rng.random((SLICES, SIDE, SIDE)).astype(np.float32), np.mgrid[:SIDE, :SIDE] * 0.98 + 2
    bits = rng.integers(0, 8, (SIDE, SIDE)).astype(np.uint8)

    def warp():
        return [ndimage.map_coordinates(plane, at, order=1) for plane in planes], ndimage.map_coordinates(
            bits, at, order=0
        )

    return warp


def load_tensorflow():
    import_tensorflow()
    import tensorflow

    return tensorflow


def processor_ms(way, seconds=0.3):
    moved = way()[0]
    batch = 1 if isinstance(moved, list | np.ndarray) else BATCH
    start, processor, calls = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        way()
        calls += 1
    return 1e3 * (time.process_time() - processor) / calls / batch


if __name__ == "__main__":
    main()

"""Invalid requests, and the status with which TensorFlow Serving rejects each of them."""

import base64
import json
from urllib.parse import urlsplit

import numpy as np

SPACING = [3.0, 1.5, 1.5]
# A gray PNG of one pixel.
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")
WIDER = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAIAAAABCAAAAADRSSBWAAAAC0lEQVR4nGNgYAAAAAMAASsJTYQAAAAASUVORK5CYII=")


def malformed(url):
    """Build invalid calls, by their defect.

    Args:
        url: grpc://HOST:PORT/NAME or http://HOST:PORT/NAME.

    Returns:
        dict of functions without arguments that return (actual status, expected status).
    """
    parts = urlsplit(url)
    make = _over_grpc if parts.scheme == "grpc" else _over_rest
    return make(parts.netloc, parts.path.strip("/"))


def _over_grpc(host, model):
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis.predict_pb2 import PredictRequest
    from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

    stub = PredictionServiceStub(grpc.insecure_channel(host))

    def call(expected, signature, name=model, **inputs):
        def status():
            request = PredictRequest()
            request.model_spec.name, request.model_spec.signature_name = name, signature
            for key, value in inputs.items():
                request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
            try:
                stub.Predict(request, timeout=3600)
            except grpc.RpcError as error:
                return error.code().name, expected
            return "OK", expected

        return status

    image, spacing = np.zeros((1, 4, 4), np.float32), np.array(SPACING, np.float32)
    volume, png = "segment_volume", "segment_png"
    return {
        "no slices": call("INVALID_ARGUMENT", volume, image=image[:0], spacing=spacing),
        "voxels of another type": call("INVALID_ARGUMENT", volume, image=image.astype(np.uint16), spacing=spacing),
        "no spacing": call("INVALID_ARGUMENT", volume, image=image),
        "two numbers for spacing": call("INVALID_ARGUMENT", volume, image=image, spacing=spacing[:2]),
        "a truncated PNG": call("INVALID_ARGUMENT", png, png_bytes=[PNG[:40]], spacing=spacing),
        "not a PNG": call("INVALID_ARGUMENT", png, png_bytes=[b"?"], spacing=spacing),
        "slices of two sizes": call("INVALID_ARGUMENT", png, png_bytes=[PNG, WIDER], spacing=spacing),
        "numbers that do not increase": call(
            "INVALID_ARGUMENT", f"{volume}_to_png", image=image.repeat(2, 0), spacing=spacing, numbers=np.array([2, 2])
        ),
        "no such signature": call("FAILED_PRECONDITION", "segment", image=image, spacing=spacing),
        "no such model": call("NOT_FOUND", volume, f"{model}?", image=image, spacing=spacing),
    }


def _over_rest(host, model):
    import requests

    session = requests.Session()

    def call(expected, body, name=model):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        url = f"http://{host}/v1/models/{name}:predict"
        return lambda: (session.post(url, data=data, timeout=3600).status_code, expected)

    def png(*contents, signature="segment_png", **others):
        encoded = [{"b64": base64.b64encode(content).decode()} for content in contents]
        return {"signature_name": signature, "inputs": {"png_bytes": encoded, "spacing": SPACING} | others}

    whole, missing = json.dumps(png(PNG)).encode(), png(PNG)
    del missing["inputs"]["spacing"]
    return {
        "no slices": call(400, png()),
        "broken JSON": call(400, whole[:-2]),
        "broken base64": call(400, whole.replace(b'"b64": "', b'"b64": "?')),
        "no spacing": call(
            400, {"signature_name": "segment_png", "inputs": {"png_bytes": png(PNG)["inputs"]["png_bytes"]}}
        ),
        "words for spacing": call(400, png(PNG, spacing=["wide", "wide", "wide"])),
        "a truncated PNG": call(400, png(PNG[:40])),
        "slices of two sizes": call(400, png(PNG, WIDER)),
        "too few numbers": call(400, png(PNG, PNG, signature="segment_png_to_png", numbers=[1])),
        "no such signature": call(400, png(PNG, signature="segment")),
        "no such model": call(404, png(PNG), f"{model}s"),
    }

"""Damaged answers of a model server, and damaged addresses."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor

import cv2
import grpc
import numpy as np
import pytest
import requests
import tensorflow as tf
from helpers.damage import Tally, damaged_bytes, damaged_json, generator, png_bomb
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2

from gitseg_tf.client.address import parse_address
from gitseg_tf.client.client import connect, read_masks
from gitseg_tf.client.transport import required_signatures
from gitseg_tf.data.volume import Volume
from gitseg_tf.labels import UWMGI

pytestmark = [pytest.mark.slow, pytest.mark.service]

SCAN = Volume(np.arange(2 * 6 * 5).reshape(2, 6, 5).astype(np.uint16), (3.0, 1.5, 1.5))
DESCRIBED = [json.dumps(UWMGI.to_tree()).encode(), b'["mr"]']
PNG = cv2.imencode(".png", np.full((18, 5), 255, np.uint8))[1].tobytes()


def test_addresses():
    rng, tally = generator(70), Tally()
    valid = [
        "grpc://localhost:8500/gitseg",
        "http://user:secret@[::1]:8501/m/versions/3",
        "https://example.org/m?version=2",
    ]
    for n in range(800):
        url = damaged_bytes(rng, valid[n % 3].encode()).decode("latin-1")
        tally(url, parse_address, url)
    tally.check(800, accepted=50, refused=100)


def test_masks():
    rng, tally = generator(71), Tally()
    for _n in range(600):
        png = damaged_bytes(rng, PNG)
        tally(png.hex(), read_masks, [PNG, png], (2, 6, 5), 3)
    for width, height, depth in ((2**15, 2**15, 16), (5, 2**31 - 1, 8), (2**31 - 1, 2**31 - 1, 16), (2**20, 1000, 16)):
        assert tally("bomb", read_masks, [PNG, png_bomb(width, height, depth)], (2, 6, 5), 3) is None
    tally.check(604, refused=0)


class Answer(requests.Response):
    def __init__(self, content, status=200, headers=()):
        super().__init__()
        self._content, self.status_code = content, status
        self.headers.update(headers)


def rest_answers():
    signatures = {
        name: {"inputs": {key: {} for key in inputs}, "outputs": {output: {}}}
        for name, (inputs, output) in required_signatures(
            ("segment_png_to_png", "png_bytes"), ("segment_volume_to_png", "image")
        ).items()
    }
    return [
        {"metadata": {"signature_def": {"signature_def": signatures}}},
        {"outputs": [{"b64": base64.b64encode(one).decode()} for one in DESCRIBED]},
        {"outputs": [{"b64": base64.b64encode(PNG).decode()}] * 2},
    ]


def test_answers_over_rest(monkeypatch):
    rng, tally = generator(72), Tally()
    good = rest_answers()
    for n in range(1200):
        damaged = n % 3
        status = int(
            rng.choice(
                [
                    200,
                    200,
                    200,
                    200,
                    200,
                    200,
                    201,
                    204,
                    301,
                    400,
                    404,
                    418,
                    429 if n % 50 == 0 else 400,
                    500,
                    503,
                    504,
                    999,
                ]
            )
        )
        answers = [
            Answer(damaged_json(rng, one), status, {"location": "\nx"} if status == 301 else {})
            if k == damaged
            else Answer(json.dumps(one).encode())
            for k, one in enumerate(good)
        ]
        given = iter(answers)
        monkeypatch.setattr(requests.Session, "request", lambda *a, given=given, **k: next(given, Answer(b"", 503)))

        def segment():
            return connect("http://127.0.0.1:1/gitseg", back_off=(), timeout=0.01).predict(SCAN)

        tally((damaged, status, answers[damaged].content[:200]), segment)
    tally.check(1200, accepted=20, refused=300)


@pytest.fixture(scope="module")
def raw_server():
    """A gRPC server that answers with given bytes."""
    answers = {}

    class Handler(grpc.GenericRpcHandler):
        def service(self, call):
            name = call.method.rpartition("/")[2]
            return grpc.unary_unary_rpc_method_handler(lambda request, context: answers[name].pop(0))

    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield answers, f"grpc://127.0.0.1:{port}/gitseg"
    server.stop(0)


def grpc_answers():
    metadata = get_model_metadata_pb2.GetModelMetadataResponse()
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for name, (inputs, output) in required_signatures(("segment_volume_to_png", "image")).items():
        for one in inputs:
            signatures.signature_def[name].inputs[one].name = one
        signatures.signature_def[name].outputs[output].name = output
    metadata.metadata["signature_def"].Pack(signatures)
    described, masks = predict_pb2.PredictResponse(), predict_pb2.PredictResponse()
    described.outputs["json_bytes"].CopyFrom(tf.make_tensor_proto(DESCRIBED))
    masks.outputs["masks_bytes"].CopyFrom(tf.make_tensor_proto([PNG, PNG]))
    return metadata, described, masks


def test_answers_over_grpc(raw_server):
    rng, tally = generator(73), Tally()
    answers, url = raw_server
    good = grpc_answers()
    for n in range(450):
        damaged, contents = n % 3, [one.SerializeToString() for one in good]
        if damaged == 0 and n % 2:
            metadata = get_model_metadata_pb2.GetModelMetadataResponse.FromString(contents[0])
            metadata.metadata["signature_def"].value = damaged_bytes(rng, metadata.metadata["signature_def"].value)
            contents[0] = metadata.SerializeToString()
        elif damaged and n % 2:
            answer = predict_pb2.PredictResponse.FromString(contents[damaged])
            name = next(iter(answer.outputs))
            answer.outputs[name].tensor_content = (
                rng.bytes(20) if n % 4 == 1 else b"\xff\xff\xff\xff\x07" + rng.bytes(9)
            )
            answer.outputs[name].tensor_shape.dim[0].size = int(rng.choice([-1, 0, 1, 2, 2**31, 2**62]))
            contents[damaged] = answer.SerializeToString()
        else:
            contents[damaged] = damaged_bytes(rng, contents[damaged])
        answers["GetModelMetadata"], answers["Predict"] = contents[:1], contents[1:]
        tally((damaged, contents[damaged][:100]), lambda: connect(url, back_off=(), timeout=5).predict(SCAN))
    tally.check(450, accepted=5, refused=100)

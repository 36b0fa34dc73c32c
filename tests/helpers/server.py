"""A small test server that speaks the protocols of TensorFlow Serving, but is not TensorFlow Serving.

It answers Predict and GetModelMetadata of PredictionService with the published stubs, and the REST routes for predict,
metadata and status. Models are loaded through the session loader, as by the C++ server. Error messages and codes are
those of the TensorFlow Serving sources (predict_util.cc, http_rest_api_handler.cc, json_tensor.cc, basic_manager.cc).
"""

import base64
import json
import re
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2
from tensorflow_serving.apis.prediction_service_pb2_grpc import (
    PredictionServiceServicer,
    add_PredictionServiceServicer_to_server,
)

CODES = {code.value[0]: code for code in grpc.StatusCode}
# ToHTTPStatusCode of http_server.cc.
HTTP = {
    "CANCELLED": 499,
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
}

# AddValueToTensor of json_tensor.cc supports all other numeric types.
NOT_IN_JSON = (tf.uint16, tf.float16, tf.bfloat16)


class Refused(Exception):
    """A status that is not OK."""

    def __init__(self, code: grpc.StatusCode, message: str):
        super().__init__(message)
        self.code, self.message = code, message


class Loaded:
    """A version of a model, in its own session."""

    def __init__(self, path: Path):
        graph = tf.Graph()
        self.session = tf.compat.v1.Session(graph=graph)
        with graph.as_default():
            self.signatures = tf.compat.v1.saved_model.load(self.session, ["serve"], str(path)).signature_def

    def run(self, signature_name: str, inputs: dict[str, np.ndarray], timeout: float | None):
        signature = self.signature(signature_name)
        given, expected = set(inputs), set(signature.inputs)
        if given != expected:
            sizes = f"{len(given)}!={len(expected)} len({_set(given)}) != len({_set(expected)})"
            differ = f"Sent extra: {_set(given - expected)}. Missing but required: {_set(expected - given)}."
            message = f"input size does not match signature: {sizes}. {differ}"
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message)
        feed = {}
        for name, value in inputs.items():
            info = signature.inputs[name]
            if not isinstance(value, np.ndarray) or tf.as_dtype(value.dtype) != tf.as_dtype(info.dtype):
                raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"input {name} is not {tf.as_dtype(info.dtype).name}")
            feed[info.name] = value
        outputs = {name: info.name for name, info in signature.outputs.items()}
        options = tf.compat.v1.RunOptions(timeout_in_ms=int(timeout * 1000) if timeout else 0)
        try:
            return self.session.run(outputs, feed, options=options)
        except tf.errors.OpError as error:
            raise Refused(CODES[error.error_code], error.message) from None
        except ValueError as error:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None

    def signature(self, name: str):
        name = name or "serving_default"
        if name not in self.signatures:
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
        return self.signatures[name]


def _set(names: set[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"


@dataclass
class Faults:
    """Faults to inject: error codes for the next calls, and a delay in seconds for every answer."""

    codes: deque = field(default_factory=deque)
    metadata_codes: deque = field(default_factory=deque)
    seconds: float = 0.0
    threads: int | None = None  # calls at the same time; further ones are refused, as TensorFlow Serving does
    running: int = 0
    lock: Any = field(default_factory=Lock)

    @contextmanager
    def thread(self):
        with self.lock:
            if self.threads is not None and self.running >= self.threads:
                raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "all threads are in use")
            self.running += 1
        try:
            yield
        finally:
            with self.lock:
                self.running -= 1

    def strike(self, codes: deque) -> None:
        time.sleep(self.seconds)
        if codes:
            raise Refused(getattr(grpc.StatusCode, codes.popleft()), "struck by the test")


@dataclass
class Serving:
    """The models by name and version, and the recorded requests."""

    models: dict[str, dict[int, Loaded]]
    faults: Faults = field(default_factory=Faults)
    requests: list = field(default_factory=list)
    as_content: bool = False

    def find(self, name: str, version: int | None) -> tuple[int, Loaded]:
        versions = self.models.get(name, {})
        number = max(versions, default=None) if version is None else version
        if number not in versions:
            asked = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise Refused(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {asked}")
        return number, versions[number]


class Service(PredictionServiceServicer):
    """PredictionService over gRPC."""

    def __init__(self, serving: Serving):
        self.serving = serving

    def Predict(self, request, context):
        with _as_grpc(context), self.serving.faults.thread():
            self.serving.requests.append("grpc")
            self.serving.faults.strike(self.serving.faults.codes)
            number, model = self.serving.find(*_asked(request.model_spec))
            inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
            name = request.model_spec.signature_name or "serving_default"
            left = context.time_remaining()
            found = model.run(name, inputs, left)
            answer = predict_pb2.PredictResponse()
            answer.model_spec.name, answer.model_spec.signature_name = request.model_spec.name, name
            answer.model_spec.version.value = number
            for key, value in found.items():
                _fill(answer.outputs[key], value, self.serving.as_content)
            return answer

    def GetModelMetadata(self, request, context):
        with _as_grpc(context):
            self.serving.faults.strike(self.serving.faults.metadata_codes)
            return self.metadata(*_asked(request.model_spec))

    def metadata(self, name: str, version: int | None):
        number, model = self.serving.find(name, version)
        answer = get_model_metadata_pb2.GetModelMetadataResponse()
        answer.model_spec.name, answer.model_spec.version.value = name, number
        found = get_model_metadata_pb2.SignatureDefMap()
        for key, signature in model.signatures.items():
            found.signature_def[key].CopyFrom(signature)
        answer.metadata["signature_def"].Pack(found)
        return answer


def _fill(tensor: tensor_pb2.TensorProto, value: np.ndarray, as_content: bool) -> None:
    """Like TensorFlow Serving: Tensor::AsProtoField, one number per value, or Tensor::AsProtoTensorContent."""
    if as_content and value.dtype == object:
        tensor.dtype = tf.string.as_datatype_enum
        tensor.tensor_shape.CopyFrom(tf.TensorShape(value.shape).as_proto())
        tensor.tensor_content = b"".join([*(_varint(len(one)) for one in value), *value])
        return
    if as_content or value.dtype not in (np.uint8, np.float32):
        tensor.CopyFrom(tf.make_tensor_proto(value))
        return
    tensor.dtype = tf.as_dtype(value.dtype).as_datatype_enum
    tensor.tensor_shape.CopyFrom(tf.TensorShape(value.shape).as_proto())
    (tensor.int_val if value.dtype == np.uint8 else tensor.float_val).extend(value.ravel().tolist())


def _varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number % 128 + 128]) + _varint(number // 128)


def _asked(spec) -> tuple[str, int | None]:
    return spec.name, spec.version.value if spec.HasField("version") else None


@contextmanager
def _as_grpc(context):
    try:
        yield
    except Refused as refused:
        context.abort(refused.code, refused.message)


class Rest(BaseHTTPRequestHandler):
    """The REST interface."""

    protocol_version = "HTTP/1.1"
    serving: Serving

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self._answer(self._get)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(lambda: self._predict(body))

    def _answer(self, make):
        try:
            status, answer = 200, make()
        except Refused as refused:
            status, answer = HTTP.get(refused.code.name, 500), {"error": refused.message}
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _model(self, ending: str):
        match = re.fullmatch(rf"/v1/models/([^/:]+)(?:/versions/(\d+))?{ending}", self.path)
        return match and (match[1], int(match[2]) if match[2] else None)

    def _get(self):
        if asked := self._model("/metadata"):
            self.serving.faults.strike(self.serving.faults.metadata_codes)
            found = Service(self.serving).metadata(*asked)
            return json_format.MessageToJson(found, preserving_proto_field_name=True).encode()
        if asked := self._model(""):
            number, _ = self.serving.find(*asked)
            fine = {"error_code": "OK", "error_message": ""}
            return {"model_version_status": [{"version": str(number), "state": "AVAILABLE", "status": fine}]}
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"Malformed request: GET {self.path}")

    def _predict(self, body: bytes):
        asked = self._model(":predict")
        if not asked:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"Malformed request: POST {self.path}")
        self.serving.requests.append("rest")
        self.serving.faults.strike(self.serving.faults.codes)
        _, model = self.serving.find(*asked)
        try:
            request = json.loads(body)
        except ValueError:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "JSON Parse error: Invalid value.") from None
        name = request.get("signature_name", "serving_default")
        if name not in model.signatures:
            raise Refused(
                grpc.StatusCode.INVALID_ARGUMENT, f'Serving signature name: "{name}" not found in signature def'
            )
        if set(request) - {"signature_name", "inputs"} or "inputs" not in request:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "Missing 'inputs' or 'instances' key")
        signature, inputs = model.signature(name), request["inputs"]
        if len(signature.inputs) == 1 and not isinstance(inputs, dict):
            inputs = {next(iter(signature.inputs)): inputs}
        found = model.run(name, {key: _from_json(value, key, signature) for key, value in inputs.items()}, None)
        outputs = {key: _to_json(key, value) for key, value in found.items()}
        return {"outputs": next(iter(outputs.values())) if len(outputs) == 1 else outputs}


def _to_json(name: str, value: np.ndarray):
    """AddTensorValues of json_tensor.cc: strings in base64 where the output's name ends in _bytes."""
    if not name.endswith("_bytes"):
        return value.tolist()
    return [{"b64": base64.b64encode(one).decode()} for one in value]


def _from_json(value, name: str, signature) -> np.ndarray:
    if name not in signature.inputs:
        return np.array(value)
    dtype = tf.as_dtype(signature.inputs[name].dtype)
    if dtype in NOT_IN_JSON:
        raise Refused(
            grpc.StatusCode.UNIMPLEMENTED, f"Conversion of JSON Value: {np.ravel(value)[0]} to type: {dtype.name}"
        )
    try:
        return np.array(_decode(value), object if dtype == tf.string else dtype.as_numpy_dtype)
    except (ValueError, TypeError):
        message = f"JSON Value for input {name} is not a tensor of {dtype.name}"
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message) from None


def _decode(value):
    if isinstance(value, list):
        return [_decode(one) for one in value]
    if isinstance(value, dict):
        return base64.b64decode(value["b64"], validate=True)
    return value.encode() if isinstance(value, str) else value


@dataclass
class Started:
    """A running server: its ports on 127.0.0.1, and the models it serves."""

    grpc_port: int
    rest_port: int
    serving: Serving

    def grpc_url(self, model: str) -> str:
        return f"grpc://127.0.0.1:{self.grpc_port}/{model}"

    def rest_url(self, model: str) -> str:
        return f"http://127.0.0.1:{self.rest_port}/{model}"


@contextmanager
def serve(
    models: dict[str, dict[int, Path]], grpc_port: int = 0, rest_port: int = 0, grpc_options=None, credentials=None
):
    """Start a server on 127.0.0.1.

    Args:
        models: name to version to folder of the SavedModel.
        grpc_port: 0 takes a free one.
        rest_port: 0 takes a free one.
        grpc_options: of the gRPC server; None allows messages of any size, as TensorFlow Serving does.
        credentials: of gRPC, for TLS as with --ssl_config_file; None for no TLS.

    Returns:
        Context of Started.
    """
    serving = Serving({name: {n: Loaded(path) for n, path in versions.items()} for name, versions in models.items()})
    any_size = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    over_grpc = grpc.server(ThreadPoolExecutor(16), options=any_size if grpc_options is None else grpc_options)
    add_PredictionServiceServicer_to_server(Service(serving), over_grpc)
    bind_address = f"127.0.0.1:{grpc_port}"
    bound = (
        over_grpc.add_secure_port(bind_address, credentials)
        if credentials
        else over_grpc.add_insecure_port(bind_address)
    )
    over_rest = ThreadingHTTPServer(("127.0.0.1", rest_port), type("RestOfThis", (Rest,), {"serving": serving}))
    over_grpc.start()
    thread = Thread(target=over_rest.serve_forever, daemon=True)
    thread.start()
    try:
        yield Started(bound, over_rest.server_port, serving)
    finally:
        over_rest.shutdown()
        over_rest.server_close()
        over_grpc.stop(None).wait()
        thread.join()

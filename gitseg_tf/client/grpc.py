"""Use TensorFlow Serving over gRPC."""

import math

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest, SignatureDefMap
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from gitseg_tf.client.address import Address
from gitseg_tf.client.transport import (
    CONNECT_SECONDS,
    DESCRIBE,
    DESCRIPTION,
    KEYS,
    MASKS,
    Busy,
    Unavailable,
    no_answer,
    required_signatures,
    too_slow,
)
from gitseg_tf.data.volume import Volume
from gitseg_tf.errors import ScanError, ServerError

# A scan of 144 x 360 x 310 is 64 MB, but gRPC's default limit is 4 MB. By default, gRPC increases the delay between
# connection attempts up to two minutes, during which a retry would not even be attempted.
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class GrpcTransport:
    """A client of TensorFlow Serving's PredictionService."""

    required = required_signatures(("segment_volume_to_png", "image"))

    def __init__(self, address: Address, timeout: float):
        self._address, self._timeout = address, timeout
        if address.scheme == "grpcs":
            channel = grpc.secure_channel(address.host, grpc.ssl_channel_credentials(), _OPTIONS)
        else:
            channel = grpc.insecure_channel(address.host, _OPTIONS)
        self._stub = PredictionServiceStub(channel)

    def signatures(self) -> dict[str, tuple[set[str], set[str]]]:
        request = GetModelMetadataRequest(model_spec=self._model(), metadata_field=["signature_def"])
        timeout = min(self._timeout, CONNECT_SECONDS)
        answer = self._call(self._stub.GetModelMetadata, request, timeout, Unavailable(no_answer(timeout)))
        signatures = SignatureDefMap()
        try:
            answer.metadata["signature_def"].Unpack(signatures)
        except DecodeError:
            raise ServerError(f"{self._address.url}: the list of signatures is damaged; correct the address") from None
        return {name: (set(one.inputs), set(one.outputs)) for name, one in signatures.signature_def.items()}

    def describe(self, keys: list[str]) -> list[bytes]:
        request = PredictRequest(model_spec=self._model(DESCRIBE))
        request.inputs[KEYS].CopyFrom(tf.make_tensor_proto(keys))
        timeout = min(self._timeout, CONNECT_SECONDS)
        return _strings(self._call(self._stub.Predict, request, timeout, Unavailable(no_answer(timeout))), DESCRIPTION)

    def segment(self, volume: Volume) -> list[bytes]:
        request = PredictRequest(model_spec=self._model("segment_volume_to_png"))
        _fill(request.inputs["image"], volume.with_channels.astype(np.float32, copy=False))
        _fill(request.inputs["spacing"], np.array(volume.spacing, np.float32))
        _fill(request.inputs["numbers"], np.array(volume.numbers, np.int64))
        late = too_slow(self._address, self._timeout)
        return _strings(self._call(self._stub.Predict, request, self._timeout, late), MASKS)

    def _model(self, signature: str = "") -> ModelSpec:
        model = ModelSpec(name=self._address.name, signature_name=signature)
        if self._address.version is not None:
            model.version.value = self._address.version
        return model

    def _call(self, method, request, timeout: float, late: Exception):
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise late from None
            raise self._error_of(error.code(), _line(error)) from None

    def _error_of(self, code: grpc.StatusCode, reason: str) -> Exception:
        address = self._address
        match code:
            case grpc.StatusCode.UNAVAILABLE:
                return Unavailable(reason)
            # A message that is too large has this code too, and stays so.
            case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" not in reason:
                return Busy(reason)
            case grpc.StatusCode.NOT_FOUND:
                return ServerError(f"{address.url}: the server has no {address.model} ({reason}); correct the address")
            case grpc.StatusCode.UNIMPLEMENTED:
                return ServerError(f"{address.url}: is not a TensorFlow Serving server ({reason}); correct the address")
            case grpc.StatusCode.INVALID_ARGUMENT:
                return ScanError(f"{address.url}: the model rejected the scan ({reason})")
            case _:
                return ScanError(f"{address.url}: {code.name}: {reason}")


def _fill(tensor: TensorProto, value: np.ndarray) -> None:
    """Fill a tensor with bytes, which is faster than tf.make_tensor_proto."""
    tensor.dtype = tf.as_dtype(value.dtype).as_datatype_enum
    tensor.tensor_shape.CopyFrom(tf.TensorShape(value.shape).as_proto())
    tensor.tensor_content = value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes()


def _strings(answer, name: str) -> list[bytes]:
    """Return the values of a string output, or an empty list for an output of another type."""
    tensor: TensorProto = answer.outputs[name]
    if not tensor.tensor_content:
        return [*tensor.string_val]
    # Each string takes at least a byte; TensorFlow allocates memory for the shape before it reads the strings.
    sizes = [axis.size for axis in tensor.tensor_shape.dim]
    if min(sizes, default=0) < 0 or math.prod(sizes) > len(tensor.tensor_content):
        return []
    # The server uses --enable_serialization_as_tensor_content, for which tf.make_ndarray only supports numbers.
    try:
        return tf.reshape(tf.io.parse_tensor(tensor.SerializeToString(), tf.string), [-1]).numpy().tolist()
    except tf.errors.InvalidArgumentError:
        return []


def _line(error: grpc.RpcError) -> str:
    return next(iter((error.details() or "").strip().splitlines()), error.code().name)

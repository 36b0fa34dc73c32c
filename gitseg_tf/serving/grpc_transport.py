"""Asking TensorFlow Serving over gRPC."""

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest, SignatureDefMap
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from gitseg_tf.errors import InputError, ScanError
from gitseg_tf.serving.address import Address
from gitseg_tf.serving.client import CONNECT_SECONDS, MASKS, Unavailable, no_answer, too_slow

# A scan of 144 x 360 x 310 is 32 MB, and gRPC's own limit is 4 MB. Left to itself, gRPC waits for
# longer and longer between connections, up to two minutes, in which a new attempt would not even be made.
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class GrpcTransport:
    """PredictionService of TensorFlow Serving."""

    signature = "segment_volume_to_png"
    image_input = "image"

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
        found = SignatureDefMap()
        answer.metadata["signature_def"].Unpack(found)
        return {name: (set(one.inputs), set(one.outputs)) for name, one in found.signature_def.items()}

    def segment(self, image: np.ndarray, spacing: np.ndarray, numbers: np.ndarray) -> list[bytes]:
        request = PredictRequest(model_spec=self._model(self.signature))
        for name, value in {self.image_input: image, "spacing": spacing, "numbers": numbers}.items():
            _fill(request.inputs[name], value)
        late = too_slow(self._address, self._timeout)
        return _strings(self._call(self._stub.Predict, request, self._timeout, late).outputs[MASKS])

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
            raise self._in_words(error.code(), _line(error)) from None

    def _in_words(self, code: grpc.StatusCode, said: str) -> Exception:
        address = self._address
        match code:
            case grpc.StatusCode.UNAVAILABLE:
                return Unavailable(said)
            case grpc.StatusCode.NOT_FOUND:
                return InputError(f"{address.url}: the server has no {address.model} ({said})")
            case grpc.StatusCode.UNIMPLEMENTED:
                return InputError(f"{address.url}: is no TensorFlow Serving ({said})")
            case grpc.StatusCode.INVALID_ARGUMENT:
                return ScanError(f"{address.url}: the model refuses the scan ({said})")
            case _:
                return ScanError(f"{address.url}: {code.name}: {said}")


def _fill(tensor: TensorProto, value: np.ndarray) -> None:
    """With bytes: tf.make_tensor_proto would turn each voxel of uint16 into a number of its own."""
    tensor.dtype = tf.as_dtype(value.dtype).as_datatype_enum
    tensor.tensor_shape.CopyFrom(tf.TensorShape(value.shape).as_proto())
    tensor.tensor_content = value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes()


def _strings(tensor: TensorProto) -> list[bytes]:
    """The values of a tensor of strings, none of one that is something else."""
    if not tensor.tensor_content:
        return [*tensor.string_val]
    # By --enable_serialization_as_tensor_content; tf.make_ndarray reads numbers alone out of it.
    try:
        return tf.reshape(tf.io.parse_tensor(tensor.SerializeToString(), tf.string), [-1]).numpy().tolist()
    except tf.errors.InvalidArgumentError:
        return []


def _line(error: grpc.RpcError) -> str:
    return next(iter((error.details() or "").strip().splitlines()), error.code().name)

"""The protobuf messages of the SDK: training data in, log-probs and samples out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from google.protobuf.message import DecodeError
from tinker.proto import tinker_public_pb2 as proto

from art_core.base.errors import ConfigError
from art_core.endpoint.errors import RequestError

PROTOBUF = "application/x-protobuf"
MAX_CELLS = 1 << 26
"""Values of one tensor; a sparse one is small on the wire, whatever its shape."""
_DTYPES = {proto.DTYPE_FLOAT32: "<f4", proto.DTYPE_INT64: "<i8", proto.DTYPE_INT32: "<i4"}


@attrs.frozen(kw_only=True, eq=False)
class PassRequest:
    """A request for a forward and, unless `forward_only`, a backward pass. Each datum is its tokens
    [T] and its loss inputs by name.
    """

    model_id: str
    seq_id: int
    loss: str
    options: Mapping[str, float | str]
    data: Sequence[tuple[np.ndarray, Mapping[str, np.ndarray]]]
    forward_only: bool


def pass_request(body: bytes) -> PassRequest:
    """Decode a request; RequestError for other bytes, and for inputs that are not text."""
    message = proto.ForwardBackwardRequest()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise RequestError(400, f"the body is no ForwardBackwardRequest: {error}") from None
    options: dict[str, float | str] = dict(message.loss_fn_config)
    for key, value in message.loss_fn_config_v2.items():
        options[key] = value.text if value.WhichOneof("value") == "text" else value.number
    return PassRequest(
        model_id=message.model_id,
        seq_id=message.seq_id,
        loss=message.loss_fn,
        options=options,
        data=[
            (
                _tokens(datum.model_input),
                {k: _tensor(k, v) for k, v in datum.loss_fn_inputs.items()},
            )
            for datum in message.data
        ],
        forward_only=message.forward_only,
    )


def _tokens(chunks: Sequence[Any]) -> np.ndarray:
    parts = [np.empty(0, np.int64)]
    for chunk in chunks:
        kind = chunk.WhichOneof("chunk")
        if kind != "encoded_text":
            raise RequestError(422, f"model_input has a chunk of {kind}; this server trains text")
        parts.append(_values("<i4", chunk.encoded_text.tokens).astype(np.int64))
    return np.concatenate(parts)


def _tensor(name: str, message: Any) -> np.ndarray:
    """Decode a tensor as int64 or float32; a sparse one has 0 where it lists nothing."""
    dtype = _DTYPES.get(message.dtype)
    if dtype is None:
        raise RequestError(422, f"{name} has a dtype that is not float32 or int64")
    shape = list(message.shape)
    try:
        if message.HasField("sparse_csr"):
            found = _dense(message.sparse_csr, dtype, shape)
        else:
            found = _values(dtype, message.dense)
            found = found.reshape(shape) if shape else found
    except (ValueError, IndexError) as error:
        raise RequestError(422, f"{name} is no tensor of shape {shape}: {error}") from None
    return found.astype(np.float32 if found.dtype.kind == "f" else np.int64)


def _dense(csr: Any, dtype: str, shape: Sequence[int]) -> np.ndarray:
    if len(shape) != 2 or min(shape) < 0 or math.prod(shape) > MAX_CELLS:
        raise ValueError("a sparse tensor has two dimensions of a bounded size")
    rows, columns = _values("<i8", csr.crow_indices), _values("<i8", csr.col_indices)
    values, dense = _values(dtype, csr.values), np.zeros(shape, dtype)
    if len(rows) != shape[0] + 1 or (len(columns) and columns.min() < 0):
        raise ValueError("its indices do not fit")
    dense[np.repeat(np.arange(shape[0]), np.diff(rows)), columns] = values
    return dense


def _values(dtype: str, data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype)


def pass_output(scored: Sequence[Any], metrics: Mapping[str, float]) -> bytes:
    """Encode the log-probs and losses of each datum, and metrics of them all."""
    message = proto.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord")
    for key, value in metrics.items():
        message.metrics[key] = value
    for each in scored:  # a record each: they may have several widths
        record = message.loss_fn_outputs.add(type_tag="ArrayRecord", num_datums=1)
        for name, values in (("logprobs", each.logprobs), ("elementwise_loss", each.losses)):
            data = np.ascontiguousarray(values, np.float32).tobytes()
            field = record.fields[name]
            field.dtype, field.data = proto.DTYPE_FLOAT32, data
            field.offsets = np.array([0, len(data)], np.int64).tobytes()
            field.trailing_shape.extend(values.shape[1:])
    return bytes(message.SerializeToString())


@attrs.frozen(kw_only=True)
class SampledTokens:
    """A sampled sequence: its tokens, their log-probs and alternatives, and whether it stopped."""

    tokens: Sequence[int]
    logprobs: Sequence[float]
    tops: Sequence[Sequence[tuple[int, float]]] = ()
    stopped: bool


def sample_output(
    sequences: Sequence[SampledTokens],
    prompt_logprobs: Sequence[float] | None,
    cached_tokens: int,
    topk: int,
) -> bytes:
    """Encode samples; log-probs of the prompt are NaN where they were not computed."""
    message = proto.SampleResponse(prompt_cache_hit_tokens=cached_tokens)
    for each in sequences:
        sequence = message.sequences.add(
            stop_reason=proto.STOP_REASON_STOP if each.stopped else proto.STOP_REASON_LENGTH,
            tokens=np.array(each.tokens, np.int32).tobytes(),
            logprobs=np.array(each.logprobs, np.float32).tobytes(),
        )
        if topk:
            found = sequence.topk_sampled_logprobs
            ids = np.array([[token for token, _ in top] for top in each.tops], np.int32)
            values = np.array([[value for _, value in top] for top in each.tops], np.float32)
            found.token_ids, found.logprobs = ids.tobytes(), values.tobytes()
            found.length, found.k = len(each.tops), topk
    if prompt_logprobs is not None:
        message.prompt_logprobs = np.array(prompt_logprobs, np.float32).tobytes()
    return bytes(message.SerializeToString())


def text_tokens(chunks: Sequence[Any]) -> list[int]:
    """Return the tokens of a prompt as the SDK's JSON has it; ConfigError for images and audio."""
    tokens: list[int] = []
    for chunk in chunks:
        if chunk.type != "encoded_text":
            raise ConfigError(f"the prompt has a chunk of {chunk.type}; this server samples text")
        tokens += chunk.tokens
    return tokens

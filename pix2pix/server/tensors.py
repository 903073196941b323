"""Tensors of the Open Inference Protocol: JSON and the binary tensor extension <-> images.

A request has one tensor, ``input``, of shape (N,H,W,Cin): UINT8, 0 to 255, or FP32, -1 to 1. The answer has one,
``output``, of (N,H,W,Cout) and the same datatype. With the extension, bytes of tensors follow the JSON, little-endian,
and a header says how long the JSON is.

Source: https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md, and the binary
tensor data extension of https://github.com/triton-inference-server/server, docs/protocol/extension_binary_data.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .problems import Problem

LENGTH = "Inference-Header-Content-Length"
INPUT, OUTPUT = "input", "output"
DTYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype(np.uint8), "FP32": np.dtype("<f4")}
MAX_SIDE = 1 << 20


@dataclass(frozen=True, slots=True)
class Inference:
    """A request: its images (N,H,W,Cin), its id, and whether the answer's tensor is to be binary."""

    images: np.ndarray
    id: str | None
    is_binary: bool


def json_length(header: str | None, total: int) -> int:
    """How many of a body's ``total`` bytes are JSON, as a header says. Raises Problem 400 for one that is wrong."""
    if header is None:
        return total
    if not header.isascii() or not header.isdecimal() or len(header) > 18 or int(header) > total:
        raise Problem(400, f"got {LENGTH} {header[:80]!r}, expected 0 to {total}, the length of the body")
    return int(header)


def parse(body: bytes, length: int, channels: int) -> Inference:
    """The request in a body, of which ``length`` bytes are JSON. Raises Problem 400."""
    request = _object(body[:length])
    tensors = request.get("inputs")
    if not isinstance(tensors, list) or len(tensors) != 1 or not isinstance(tensors[0], dict):
        raise Problem(400, "expected inputs: a list of one tensor")
    tensor = tensors[0]
    if tensor.get("name") != INPUT:
        raise Problem(400, f"got a tensor named {tensor.get('name')!r}, expected {INPUT!r}")
    dtype = DTYPES.get(tensor["datatype"]) if isinstance(tensor.get("datatype"), str) else None
    if dtype is None:
        raise Problem(400, f"got datatype {tensor.get('datatype')!r}, expected {' or '.join(DTYPES)}")
    shape = _shape(tensor.get("shape"), channels)
    size = _parameters(tensor).get("binary_data_size")
    raw = memoryview(body)[length:]
    if size is None:
        images = _from_json(tensor.get("data"), shape, dtype)
    else:
        images = _from_bytes(raw, size, shape, dtype)
    identity = request.get("id")
    if identity is not None and not isinstance(identity, str):
        raise Problem(400, "expected an id that is a string")
    return Inference(images, identity, _wants_binary(request))


def answer(results: np.ndarray, request: Inference, model: str) -> tuple[bytes, int | None]:
    """The body of an answer with ``results`` (N,H,W,Cout), and how long its JSON is if bytes follow it.

    Raises Problem 422 for values that JSON does not have.
    """
    name = next(name for name, dtype in DTYPES.items() if dtype == results.dtype)
    tensor: dict[str, Any] = {"name": OUTPUT, "datatype": name, "shape": list(results.shape)}
    content: dict[str, Any] = {"model_name": model, "outputs": [tensor]}
    if request.id is not None:
        content["id"] = request.id
    if request.is_binary:
        raw = results.astype(DTYPES[name], copy=False).tobytes()
        tensor["parameters"] = {"binary_data_size": len(raw)}
        head = json.dumps(content).encode()
        return head + raw, len(head)
    tensor["data"] = results.ravel().tolist()
    try:
        return json.dumps(content, allow_nan=False).encode(), None
    except ValueError:
        raise Problem(422, "the result has values that JSON lacks (not finite): ask for binary_data") from None


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"the body is no JSON ({error}): expected an inference request") from None
    if not isinstance(value, dict):
        raise Problem(400, "expected a JSON object: an inference request")
    return value


def _parameters(holder: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = holder.get("parameters", {})
    if not isinstance(parameters, dict):
        raise Problem(400, "expected parameters that are an object")
    return parameters


def _shape(shape: object, channels: int) -> tuple[int, ...]:
    is_shape = isinstance(shape, list) and len(shape) == 4 and all(type(n) is int and 0 < n <= MAX_SIDE for n in shape)
    if not is_shape or not isinstance(shape, list) or shape[3] != channels:
        raise Problem(400, f"got shape {str(shape)[:80]}, expected [N, H, W, {channels}]")
    return tuple(shape)


def _from_bytes(raw: memoryview, size: object, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    expected = math.prod(shape) * dtype.itemsize
    if size != expected or len(raw) != expected:
        raise Problem(400, f"got {len(raw)} bytes and binary_data_size {size!r}, expected {expected} for {shape}")
    return np.frombuffer(raw, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _from_json(data: object, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    if not isinstance(data, list) or not data:
        raise Problem(400, f"got no data, expected a list of {math.prod(shape)} numbers, or binary_data_size")
    values = _flat(data, shape if isinstance(data[0], list) else (math.prod(shape),))
    kinds = (int,) if dtype == np.uint8 else (int, float)
    if not all(type(value) in kinds for value in values):  # before NumPy would make strings of them
        raise Problem(400, "got data that are no numbers of the datatype")
    if dtype == np.uint8 and (min(values) < 0 or max(values) > 255):
        raise Problem(400, f"got values of {min(values):.3g} to {max(values):.3g}, expected 0 to 255 as UINT8")
    try:
        return np.array(values, dtype.newbyteorder("=")).reshape(shape)
    except OverflowError:
        raise Problem(400, "got integers that are too large for the datatype") from None


def _flat(data: object, shape: tuple[int, ...]) -> list[Any]:
    """Nested lists as one list. Raises Problem 400 unless they have the shape."""
    if not isinstance(data, list) or len(data) != shape[0]:
        raise Problem(
            400, f"got data that do not have the tensor's shape: expected {shape[0]} values there, or all flat"
        )
    return data if len(shape) == 1 else [value for row in data for value in _flat(row, shape[1:])]


def _wants_binary(request: Mapping[str, Any]) -> bool:
    """Whether the answer's tensor is to be binary. Raises Problem 400 for an output that there is not."""
    outputs = request.get("outputs", [])
    if not isinstance(outputs, list) or not all(isinstance(each, dict) for each in outputs):
        raise Problem(400, "expected outputs: a list of tensors")
    for each in outputs:
        if each.get("name") != OUTPUT:
            raise Problem(400, f"got an output named {each.get('name')!r}, expected {OUTPUT!r}")
        if "binary_data" in _parameters(each):
            return _parameters(each)["binary_data"] is True
    return _parameters(request).get("binary_data_output") is True

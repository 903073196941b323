"""The description of the HTTP API: OpenAPI 3.1, https://spec.openapis.org/oas/v3.1.0."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

from .. import __version__
from ..files.options import Fit, Pair, ServeOptions
from .negotiation import FORMATS, TYPES, ZIP
from .problems import MEDIA_TYPE
from .tensors import DTYPES, INPUT, LENGTH, OUTPUT

Json = dict[str, Any]

ERRORS = {
    400: "The request is malformed.",
    401: "No valid token.",
    403: "A page of another origin asks.",
    404: "There is no such model.",
    406: "No format that Accept names.",
    408: "The body did not come in time.",
    411: "The body has no length.",
    413: "The body, or its image, is too large.",
    415: "The body is of another type, or compressed.",
    422: "The image cannot be translated.",
    503: "Too much waits: try again after Retry-After seconds.",
}
BINARY: Json = {}  # any bytes, as OpenAPI 3.1 writes it


def document(models: tuple[str, ...], options: ServeOptions) -> Json:
    """The OpenAPI document of a server of these models."""
    name = _parameter("name", "path", {"type": "string", "enum": list(models)}, "A model.", required=True)
    schemas = {"Problem": _problem(), "Models": _models(), "Inference": _inference(), "Result": _result()}
    described: Json = {
        "openapi": "3.1.0",
        "info": {"title": "pix2pix", "version": __version__, "description": "Translates images with trained models."},
        "paths": {
            "/models": {"get": _get("The models; the first is the default one.", _json("Models"))},
            "/translate": {"post": _translate(options)},
            "/models/{name}/translate": {"parameters": [name], "post": _translate(options)},
            "/metrics": {"get": _get("Metrics in Prometheus' form.", {"text/plain": {"schema": {"type": "string"}}})},
            "/openapi.json": {"get": _get("This document.", _json())},
            "/v2": {"get": _get("The server's metadata (Open Inference Protocol).", _json())},
            "/v2/health/live": {"get": _get("Whether the server answers.", _json(), open_to_all=True)},
            "/v2/health/ready": {"get": _get("Whether its models are loaded.", _json(), open_to_all=True)},
            "/v2/models/{name}": {"parameters": [name], "get": _get("A model's tensors.", _json(), errors=(404,))},
            "/v2/models/{name}/ready": {
                "parameters": [name],
                "get": _get("Whether a model is loaded.", _json(), errors=(404,)),
            },
            "/v2/models/{name}/infer": {"parameters": [name], "post": _infer()},
        },
        "components": {"schemas": schemas, "responses": {str(each): _error(each) for each in ERRORS}},
    }
    if options.token is not None:
        described["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"token": []}]
    return described


def _translate(options: ServeOptions) -> Json:
    """An image in, an image out."""
    query = [
        _parameter("fit", "query", {"enum": list(get_args(Fit)), "default": options.fit}, "Scale, or keep the size."),
        _parameter(
            "size",
            "query",
            {"type": "string", "pattern": "^[1-9][0-9]{0,4}(x[1-9][0-9]{0,4})?$"},
            "N or WxH pixels to scale to [what the model was trained at].",
        ),
        _parameter("pair", "query", {"enum": list(get_args(Pair))}, "The image is A|B side by side: take one half."),
        _parameter(
            "format", "query", {"enum": list(FORMATS), "default": options.format}, "Of the result; else by Accept."
        ),
    ]
    form = {
        "type": "object",
        "required": ["image"],
        "properties": {"image": {"type": "array", "minItems": 1, "items": BINARY}},
    }
    single: Json = {media_type: {"schema": BINARY} for media_type in (*TYPES.values(), "application/octet-stream")}
    answer: Json = {media_type: {"schema": BINARY} for media_type in (*TYPES.values(), ZIP)}
    return {
        "summary": "Translate an image, or several in a multipart body, which are answered with a zip.",
        "parameters": query,
        "requestBody": {"required": True, "content": {**single, "multipart/form-data": {"schema": form}}},
        "responses": {
            "200": {"description": "The bytes that pix2pix translate writes.", "content": answer},
            **_errors(ERRORS),
        },
    }


def _infer() -> Json:
    length = _parameter(LENGTH, "header", {"type": "integer", "minimum": 0}, "Bytes of JSON, before binary tensors.")
    return {
        "summary": "Translate the images of a tensor.",
        "parameters": [length],
        "requestBody": {
            "required": True,
            "content": {**_json("Inference"), "application/octet-stream": {"schema": BINARY}},
        },
        "responses": {
            "200": {
                "description": "The results.",
                "content": {**_json("Result"), "application/octet-stream": {"schema": BINARY}},
            },
            **_errors(each for each in ERRORS if each != 406),
        },
    }


def _get(summary: str, content: Json, errors: Iterable[int] = (), open_to_all: bool = False) -> Json:
    operation: Json = {
        "summary": summary,
        "responses": {"200": {"description": summary, "content": content}, **_errors((400, 401, 403, *errors))},
    }
    return operation | ({"security": []} if open_to_all else {})


def _parameter(name: str, place: str, schema: Json, description: str, required: bool = False) -> Json:
    return {"name": name, "in": place, "required": required, "schema": schema, "description": description}


def _json(schema: str | None = None) -> Json:
    return {
        "application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"} if schema else {"type": "object"}}
    }


def _errors(statuses: Iterable[int]) -> Json:
    return {str(status): {"$ref": f"#/components/responses/{status}"} for status in statuses}


def _error(status: int) -> Json:
    described: Json = {
        "description": ERRORS[status],
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    if status == 503:
        described["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return described


def _problem() -> Json:
    text = {"type": "string"}
    return {
        "type": "object",
        "required": ["type", "title", "status", "detail", "error"],
        "properties": {
            "type": text,
            "title": text,
            "status": {"type": "integer"},
            "detail": {**text, "description": "What was got, what was expected, and what to do."},
            "error": {**text, "description": "The detail, for clients of the Open Inference Protocol."},
            "failures": {"type": "object", "additionalProperties": text, "description": "By the name of an image."},
        },
    }


def _models() -> Json:
    facts: Json = {name: {"type": "integer"} for name in ("size", "multiple", "in_channels", "out_channels")}
    facts |= {name: {"type": "string"} for name in ("name", "takes", "device")}
    label = {"name": {"type": "string"}, "colour": {"type": "string", "pattern": "^#[0-9a-f]{6}$"}}
    facts["palette"] = {"type": "array", "items": {"type": "object", "required": sorted(label), "properties": label}}
    model = {"type": "object", "required": sorted(facts), "properties": facts}
    return {
        "type": "object",
        "required": ["models"],
        "properties": {"models": {"type": "array", "items": model}},
    }


def _tensor(name: str) -> Json:
    return {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": {"const": name},
            "datatype": {"enum": list(DTYPES)},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 4, "maxItems": 4},
            "data": {"type": "array", "description": "Numbers, flat or nested as the shape."},
            "parameters": {
                "type": "object",
                "properties": {"binary_data_size": {"type": "integer", "description": "Bytes after the JSON."}},
            },
        },
    }


def _inference() -> Json:
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "inputs": {"type": "array", "items": _tensor(INPUT), "minItems": 1, "maxItems": 1},
            "outputs": {
                "type": "array",
                "items": {"type": "object", "required": ["name"], "properties": {"name": {"const": OUTPUT}}},
            },
            "parameters": {"type": "object", "properties": {"binary_data_output": {"type": "boolean"}}},
        },
    }


def _result() -> Json:
    return {
        "type": "object",
        "required": ["model_name", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": _tensor(OUTPUT), "minItems": 1, "maxItems": 1},
        },
    }

"""The Open Inference Protocol, metrics, and the API's description."""

from __future__ import annotations

import json

import numpy as np
import pytest

import pix2pix
from tests.server.process import Answer, Server
from tests.server.test_limits import check_problem

INFER = "/v2/models/colour/infer"


def images(n: int, h: int = 32, w: int = 32) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, h, w, 3), dtype=np.uint8)


def request(tensor: dict, **more: object) -> bytes:
    return json.dumps({"inputs": [{"name": "input", **tensor}], **more}).encode()


def ask_json(server: Server, x: np.ndarray, datatype: str = "UINT8", flat: bool = True, **more: object) -> Answer:
    data = x.ravel().tolist() if flat else x.tolist()
    return server.ask("POST", INFER, request({"datatype": datatype, "shape": list(x.shape), "data": data}, **more))


def ask_binary(server: Server, x: np.ndarray, datatype: str, **more: object) -> Answer:
    tensor = {"datatype": datatype, "shape": list(x.shape), "parameters": {"binary_data_size": x.nbytes}}
    head = request(tensor, **more)
    return server.ask("POST", INFER, head + x.tobytes(), Inference_Header_Content_Length=str(len(head)))


def binary_output(answer: Answer, dtype: type) -> np.ndarray:
    length = int(answer.headers["Inference-Header-Content-Length"])
    tensor = json.loads(answer.body[:length])["outputs"][0]
    assert tensor["parameters"]["binary_data_size"] == len(answer.body) - length
    return np.frombuffer(answer.body[length:], dtype).reshape(tensor["shape"])


def test_metadata_and_health(server):
    assert server.ask("GET", "/v2").json["extensions"] == ["binary_tensor_data"]
    assert server.ask("GET", "/v2").json["version"] == pix2pix.__version__
    assert server.ask("GET", "/v2/health/live").json == {"live": True}
    assert server.ask("GET", "/v2/models/grey/ready").json == {"name": "grey", "ready": True}
    assert server.ask("GET", "/v2/models/grey").json["inputs"] == [
        {"name": "input", "datatype": "UINT8", "shape": [-1, -1, -1, 1]}
    ]
    for path in ("/v2/models/none", "/v2/models/none/ready"):
        check_problem(server.ask("GET", path), 404)


@pytest.mark.parametrize("n, h, w", [(1, 32, 32), (3, 32, 64), (20, 64, 32)])
def test_tensors_of_bytes(server, models, n, h, w):
    x = images(n, h, w)
    with pix2pix.load(models / "colour.safetensors", device="cpu") as engine:
        expected = engine.translate(x)
    for flat in (True, False):
        answer = ask_json(server, x, flat=flat, id="7")
        assert answer.status == 200 and answer.json["id"] == "7" and answer.json["model_name"] == "colour"
        (tensor,) = answer.json["outputs"]
        assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("output", "UINT8", [n, h, w, 3])
        assert np.array_equal(np.reshape(tensor["data"], (n, h, w, 3)), expected)
    wish = {"outputs": [{"name": "output", "parameters": {"binary_data": True}}]}
    assert np.array_equal(binary_output(ask_json(server, x, **wish), np.uint8), expected)
    everything = {"parameters": {"binary_data_output": True}}
    assert np.array_equal(binary_output(ask_binary(server, x, "UINT8", **everything), np.uint8), expected)
    assert np.reshape(ask_binary(server, x, "UINT8").json["outputs"][0]["data"], x.shape).tolist() == expected.tolist()


def test_tensors_of_floats(server, models):
    x = images(2).astype(np.float32) / np.float32(127.5) - 1
    with pix2pix.load(models / "colour.safetensors", device="cpu") as engine:
        expected = engine.run(x)
    answer = ask_binary(server, x, "FP32", parameters={"binary_data_output": True})
    assert np.array_equal(binary_output(answer, np.float32), expected)
    got = ask_json(server, x, "FP32").json["outputs"][0]
    assert got["datatype"] == "FP32" and np.array_equal(np.float32(got["data"]), expected.ravel())
    x[0, 0, 0, 0] = np.nan
    assert "binary_data" in check_problem(ask_binary(server, x, "FP32"), 422)


GOOD = {"name": "input", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [0] * 3072}
BAD = {
    "no JSON": b"{",
    "no object": b"[]",
    "deep": b"[" * 100_000,
    "a long number": b'{"inputs": ' + b"1" * 10_000 + b"}",
    "no inputs": b"{}",
    "two inputs": {"inputs": [GOOD, GOOD]},
    "another name": {"inputs": [GOOD | {"name": "x"}]},
    "another datatype": {"inputs": [GOOD | {"datatype": "INT64"}]},
    "no datatype": {"inputs": [GOOD | {"datatype": ["UINT8"]}]},
    "rank": {"inputs": [GOOD | {"shape": [32, 32, 3]}]},
    "channels": {"inputs": [GOOD | {"shape": [1, 32, 24, 4]}]},
    "negative": {"inputs": [GOOD | {"shape": [-1, -32, 32, 3]}]},
    "huge": {"inputs": [GOOD | {"shape": [10**4000, 32, 32, 3]}]},
    "booleans": {"inputs": [GOOD | {"shape": [True, 32, 32, 3]}]},
    "too few": {"inputs": [GOOD | {"data": [0] * 3071}]},
    "ragged": {"inputs": [GOOD | {"data": [[0], [0, 1]]}]},
    "strings": {"inputs": [GOOD | {"data": ["0"] * 3072}]},
    "one long string": {"inputs": [GOOD | {"data": [0] * 3071 + ["x" * 100_000]}]},
    "fractions": {"inputs": [GOOD | {"data": [0.5] * 3072}]},
    "above 255": {"inputs": [GOOD | {"data": [256] * 3072}]},
    "far above": {"inputs": [GOOD | {"data": [10**300] * 3072}]},
    "no data": {"inputs": [{k: v for k, v in GOOD.items() if k != "data"}]},
    "a size without bytes": {"inputs": [GOOD | {"parameters": {"binary_data_size": 3072}}]},
    "a size of text": {"inputs": [GOOD | {"parameters": {"binary_data_size": "3072"}}]},
    "parameters": {"inputs": [GOOD | {"parameters": 7}]},
    "outputs": {"inputs": [GOOD], "outputs": [{"name": "x"}]},
    "an id": {"inputs": [GOOD], "id": 7},
    "too large a float": {"inputs": [GOOD | {"datatype": "FP32", "data": [10**400] * 3072}]},
}


@pytest.mark.parametrize("name", BAD)
def test_malformed_inference_requests(server, name):
    body = BAD[name] if isinstance(BAD[name], bytes) else json.dumps(BAD[name]).encode()
    check_problem(server.ask("POST", INFER, body), 400)


def test_wrong_lengths_of_json(server):
    body = json.dumps({"inputs": [GOOD]}).encode()
    for length in ("-1", "x", "", str(len(body) + 1), "9" * 5000, "0", "10"):
        check_problem(server.ask("POST", INFER, body, Inference_Header_Content_Length=length), 400)
    assert server.ask("POST", INFER, body, Inference_Header_Content_Length=str(len(body))).status == 200


def test_images_that_a_model_cannot_take(server):
    check_problem(ask_json(server, images(1, 33, 32)), 422)
    tensor = {"datatype": "UINT8", "shape": [1, 1 << 20, 1 << 20, 3], "parameters": {"binary_data_size": 3 << 40}}
    check_problem(server.ask("POST", INFER, request(tensor)), 400)
    check_problem(server.ask("POST", INFER, b"{}", Content_Type="image/png"), 415)
    check_problem(ask_binary(server, images(201), "UINT8"), 413)
    assert "binary" in check_problem(server.ask("POST", INFER, b" " * (9 << 20)), 413)


def test_metrics(server):
    assert server.ask("POST", INFER, b"{").status == 400
    text = server.ask("GET", "/metrics")
    assert text.headers["Content-Type"].startswith("text/plain")
    assert 'pix2pix_requests_total{route="infer",status="400"}' in text.body.decode()
    for phase in ("body", "decode", "wait", "engine", "encode"):
        assert f'pix2pix_phase_seconds_count{{phase="{phase}"}}' in text.body.decode()
    assert server.metric("pix2pix_queue_images") == server.metric("pix2pix_held_bytes") == 0
    openmetrics = server.ask("GET", "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert openmetrics.body.endswith(b"# EOF\n")


def test_the_description_has_every_address(server):
    described = server.ask("GET", "/openapi.json").json
    assert described["openapi"] == "3.1.0"
    for path, operations in described["paths"].items():
        for method in operations.keys() & {"get", "post"}:
            answer = server.ask(method.upper(), path.replace("{name}", "colour"))
            assert answer.status in (200, 400, 411), (method, path, answer)

    def references(value: object) -> set[str]:
        if isinstance(value, list):
            return set().union(*map(references, value))
        if isinstance(value, dict):
            own = {value["$ref"]} if "$ref" in value else set()
            return own.union(*map(references, value.values()))
        return set()

    for reference in references(described):
        part = described
        for name in reference.removeprefix("#/").split("/"):
            part = part[name]


@pytest.mark.full
def test_tritonclient(server, models):
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("colour")
    assert client.get_server_metadata()["name"] == "pix2pix"
    assert client.get_model_metadata("grey")["inputs"][0]["shape"] == [-1, -1, -1, 1]
    with pix2pix.load(models / "colour.safetensors", device="cpu") as engine:
        for x, datatype, compute in (
            (images(3), "UINT8", engine.translate),
            (images(3).astype(np.float32) / np.float32(127.5) - 1, "FP32", engine.run),
        ):
            for is_binary_in in (True, False):
                for is_binary_out in (True, False):
                    tensor = triton.InferInput("input", x.shape, datatype)
                    tensor.set_data_from_numpy(x, binary_data=is_binary_in)
                    wanted = [triton.InferRequestedOutput("output", binary_data=is_binary_out)]
                    result = client.infer("colour", [tensor], outputs=wanted, request_id="1")
                    assert np.array_equal(result.as_numpy("output"), compute(x))
                    assert result.get_response()["id"] == "1"
    tensor = triton.InferInput("input", [1, 33, 33, 3], "UINT8")
    tensor.set_data_from_numpy(images(1, 33, 33))
    with pytest.raises(triton.InferenceServerException, match="multiple"):
        client.infer("colour", [tensor])


@pytest.mark.full
def test_schemathesis(server):
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.checks import load_all_checks
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    load_all_checks()
    hypothesis = pytest.importorskip("hypothesis")
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
    for result in schema.get_all_operations():
        operation = result.ok()

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(max_examples=30, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
        def check(case):
            case.call_and_validate(excluded_checks=[positive_data_acceptance])  # no schema describes an image

        check()

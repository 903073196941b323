"""The networks that peers run are the oracle's, for layers of every kind."""

from __future__ import annotations

import numpy as np
import pytest

from bench.peers import operands
from bench.peers.engines import ENGINES, Task, nchw
from pix2pix.engines.reference import ReferenceEngine
from pix2pix.model.lowering import lower
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights
from tests.engines.layers import CHANNELS, NETWORKS, weights_of

EVERY = {**NETWORKS, "unet": unet(ngf=4, depth=4)}


def case(name: str) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Two images float32 (2,16,16,3) for a network, the oracle's outputs, and the weights."""
    weights = weights_of(name) if name in NETWORKS else random_weights(EVERY[name])
    x = np.random.default_rng(1).uniform(-1, 1, (2, 16, 16, CHANNELS)).astype(np.float32)
    with ReferenceEngine(EVERY[name], weights) as oracle:
        expected = oracle.run(x)
    assert expected.std() > 0.05 and len(np.unique(expected[:, 0, 0, 0])) == 2
    return x, expected, weights


@pytest.mark.full
@pytest.mark.parametrize("engine", ["torch-eager", "torch-compile", "onnxruntime", "openvino"])
@pytest.mark.parametrize("name", EVERY)
def test_a_peers_network_is_the_oracles(name, engine, tmp_path):
    library = {"onnxruntime": "onnxruntime", "openvino": "openvino"}.get(engine, "torch")
    for needed in (library, "torch" if library == "torch" else "onnx"):
        pytest.importorskip(needed, reason="needs the peers: pip install pix2pix[peers]")
    from bench.peers import model_files

    x, expected, weights = case(name)
    model_files.export(tmp_path, EVERY[name], weights, len(x), [ENGINES[engine].file], x)
    call, to_nhwc = ENGINES[engine].load(Task(tmp_path, x, threads=1))
    np.testing.assert_allclose(to_nhwc(call()), expected, atol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("name", EVERY)
def test_values_are_let_go_of_after_their_last_reader(name, tmp_path):
    torch = pytest.importorskip("torch", reason="needs the peers: pip install pix2pix[peers]")
    from bench.peers import torch_network

    x, expected, weights = case(name)
    torch_network.write(tmp_path / "model.pt", EVERY[name], weights)
    module = torch_network.read(tmp_path / "model.pt", group_norm=True)
    with torch.inference_mode():
        y = module(torch.from_numpy(nchw(x)))
    np.testing.assert_allclose(y.numpy().transpose(0, 2, 3, 1), expected, atol=1e-4)
    read = [layer for layers in module.last_reads.values() for layer in layers]
    assert sorted(read) == sorted({name for op in module.ops for name in op.reads})


def test_what_peers_networks_cannot_express_is_refused():
    average = lower(NETWORKS["average"])["body"]
    assert operands.is_average(average) and not operands.is_average(lower(NETWORKS["blur"])["body"])

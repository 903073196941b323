"""The networks that peers run are the oracle's, for layers of every kind."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bench.peers import operands
from bench.peers.engines import ENGINES, Task
from pix2pix.engines.reference import ReferenceEngine
from pix2pix.model.lowering import lower
from pix2pix.model.unet import unet
from pix2pix.model.weights import folded, random_weights
from tests.engines.layers import CHANNELS, NETWORKS, weights_of

GROUPED = "group norm"  # which no network has that peers are compared on
EVERY = {name: g for name, g in NETWORKS.items() if name != GROUPED} | {"unet": unet(ngf=4, depth=4)}


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


@pytest.mark.parametrize("name", EVERY)
def test_values_are_let_go_of_after_their_last_reader(name):
    program = lower(EVERY[name])
    last = operands.last_reads(program)
    for index, op in enumerate(program.ops):
        later = {read for each in program.ops[index + 1 :] for read in each.reads}
        assert sorted(last.get(op.name, [])) == sorted(set(op.reads) - later)


def test_what_the_peers_cannot_express_is_refused():
    average = lower(NETWORKS["average"])["body"]
    assert operands.is_average(average) and not operands.is_average(lower(NETWORKS["blur"])["body"])
    with pytest.raises(ValueError, match="leave the padding out of the filter"):
        operands.is_average(dataclasses.replace(average, depthwise=(0.25, 0.5, 0.25)))
    running = folded(NETWORKS["inner slope"].with_statistics("running"))
    with pytest.raises(ValueError, match="body has stored ones"):
        operands.norm_of(lower(running)["body"])
    with pytest.raises(ValueError, match="body has those of 2 groups"):
        operands.norm_of(lower(NETWORKS[GROUPED])["body"])

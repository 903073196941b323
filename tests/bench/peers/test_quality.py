"""Quality on real weights beside the peers, and the trained ResNet."""

from __future__ import annotations

import numpy as np
import pytest

from bench import common, real_models
from bench.peers import quality
from bench.peers.engines import ENGINES, nchw, nhwc
from pix2pix import checkpoints
from pix2pix.engines.reference import ReferenceEngine, to_float
from pix2pix.model.resnet import resnet
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights
from tests.models import pictures

OURS = ["pix2pix-bfloat16", "pix2pix-int8"]


def test_our_engines_are_measured_against_the_oracle(saved, tmp_path, monkeypatch, capsys):
    generator = unet(ngf=16, depth=4)
    weights = {name: w * 5 if name.endswith("kernel") else w for name, w in random_weights(generator).items()}
    model = real_models.RealModel("demo", generator, weights, pictures(3, 32, 32), pictures(1, 32, 32))
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(real_models, "demo_model", lambda: model)
    options = ["--engines", ",".join(OURS), "--threads", "1", "--shared", str(tmp_path)]
    assert quality.main(options) == 0
    record, printed = saved["quality"], capsys.readouterr().out
    assert "edges2cats: left out" in printed and "resnet: left out, --resnet FILE is not given" in printed
    assert list(record["models"]) == ["demo"] and record["models"]["demo"]["images"] == 3
    found = record["models"]["demo"]["engines"]
    assert found.keys() | record["unavailable"].keys() == {*OURS}
    assert "pix2pix-int8" in found
    for name, entry in found.items():
        assert 25 < entry["least_psnr_db"] <= entry["mean_psnr_db"] < 70 and 0.9 < entry["mean_ssim"] <= 1, name
        assert f"| {name} | {entry['mean_psnr_db']} |" in (tmp_path / "quality.md").read_text()
    if found.keys() == {*OURS}:
        assert found["pix2pix-int8"]["mean_psnr_db"] < found["pix2pix-bfloat16"]["mean_psnr_db"] - 3


def test_an_engine_whose_library_is_missing_is_left_out(monkeypatch):
    def load(*arguments):
        raise ModuleNotFoundError("No module named 'openvino'")

    monkeypatch.setattr(quality, "Contender", load)
    generator = unet(ngf=4, depth=4)
    model = real_models.RealModel("demo", generator, random_weights(generator), *[pictures(1, 16, 16)] * 2)
    assert ENGINES["pix2pix-int8"].file == "safetensors"
    why = {"pix2pix-int8": "No module named 'openvino'"}
    assert quality.measure(model, model.images, ["pix2pix", "pix2pix-int8"], 1) == ({}, why)


def test_unknown_models_are_refused(capsys):
    with pytest.raises(SystemExit):
        quality.main(["--models", "demo,unet"])
    assert "unknown models ['unet'], expected some of demo, edges2cats, resnet" in capsys.readouterr().err


def test_a_trained_resnet_is_written_as_pytorch_has_it(tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install pix2pix[train]")
    from bench.peers import torch_network, train_resnet

    tiny = resnet(ngf=2, blocks=1)
    before = random_weights(tiny)
    network = torch_network.TorchNetwork(tiny, torch_network.tensors_of(tiny, before), group_norm=False)
    assert all(np.array_equal(w, before[name]) for name, w in network.weights().items())
    train_resnet.train(network, 0.001)
    checkpoints.write(tmp_path / "resnet.safetensors", tiny, network.weights())
    (model,) = real_models.models(["resnet"], tmp_path, tmp_path / "resnet.safetensors")
    changed = {name for name, w in random_weights(tiny).items() if not np.array_equal(w, model.weights[name])}
    assert {"first.kernel", "block_1_1.kernel", "up_1.kernel", "last.bias"} <= changed
    x = to_float(model.images[:1, :64, :64])
    with torch.inference_mode(), ReferenceEngine(model.generator, model.weights) as oracle:
        result = nhwc(network(torch.from_numpy(nchw(x))).numpy())
        np.testing.assert_allclose(result, oracle.run(x), atol=1e-4)

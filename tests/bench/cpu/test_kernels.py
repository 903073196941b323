"""The benchmark of the CPU's layers: one tiny run. No rate is tested."""

from __future__ import annotations

from bench.cpu import kernels


def test_all_layers_are_verified_and_timed_under_both_plans(tiny, saved):
    assert kernels.main(["--batches", "2", "--blocks", "1", "--threads", "1"]) == 0
    plans = saved["kernels"]["batches"]["2"]
    assert list(plans) == ["direct", "default"]
    for plan, measured in plans.items():
        assert [*measured["layers"], *measured["constant"]] == [layer.name for layer in tiny.generator.layers]
        for entry in measured["layers"].values():
            assert entry["median_gflops"] > 0 and 0 < entry["relative_error"] < 1e-4
            assert plan == "default" or entry["algorithm"] == "direct"


def test_a_resnet_is_measured_too(tiny_resnet, saved):
    options = ["--network", "resnet_9blocks", "--batches", "1", "--blocks", "1", "--threads", "1"]
    assert kernels.main(options) == 0
    record = saved["kernels-resnet_9blocks"]
    assert record["size"] == [32, 64] and record["network"] == "resnet_9blocks"
    layers = record["batches"]["1"]["default"]["layers"]
    assert list(layers) == [layer.name for layer in tiny_resnet.generator.layers]
    assert layers["up_2"]["output"] == [32, 64, 4]

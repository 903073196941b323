"""Lower bounds and stages of the CPU engine, and one tiny run. No time is tested."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bench.cpu import stages
from pix2pix.model.lowering import lower
from pix2pix.model.resnet import ResnetVariant, resnet
from pix2pix.model.unet import unet
from pix2pix.plans.algorithms import Algorithm
from pix2pix.plans.heuristics import choose

UNET, RESNET = lower(unet(ngf=64, depth=8)), lower(resnet(ngf=64))


@pytest.mark.parametrize(
    ("program", "name", "algorithm", "expected"),
    [  # (multiplications, weights) over the maps that the layer reads of a 256x256 image
        (UNET, "encoder_2", Algorithm("direct"), (64 * 64 * 16 * 64 * 128, 16 * 64 * 128)),
        (UNET, "encoder_2", Algorithm("winograd", 4), (16 * 16 * 4 * 25 * 64 * 128, 4 * 25 * 64 * 128)),
        (UNET, "encoder_2", Algorithm("winograd", 3), (22 * 22 * 4 * 16 * 64 * 128, 4 * 16 * 64 * 128)),
        (UNET, "decoder_2", Algorithm("direct"), (64 * 64 * 16 * 256 * 64, 16 * 256 * 64)),
        (UNET, "decoder_2", Algorithm("winograd", 2), (32 * 32 * 4 * 9 * 256 * 64, 4 * 9 * 256 * 64)),
        (UNET, "decoder_2", Algorithm("winograd", 3, shared=True), (22 * 22 * 4 * 16 * 256 * 64, 4 * 16 * 256 * 64)),
        (RESNET, "block_1_1", Algorithm("direct"), (64 * 64 * 9 * 256 * 256, 9 * 256 * 256)),
        (RESNET, "block_1_1", Algorithm("winograd", 4), (16 * 16 * 36 * 256 * 256, 36 * 256 * 256)),
        (RESNET, "down_2", Algorithm("winograd", 2), (32 * 32 * 4 * 9 * 128 * 256, 4 * 9 * 128 * 256)),
        (RESNET, "up_1", Algorithm("direct"), (64 * 64 * 9 * 256 * 128, 9 * 256 * 128)),
    ],
)
def test_products_are_those_of_whole_tiles(program, name, algorithm, expected):
    op = program[name]
    assert stages.products(op, algorithm, *program.shapes(256, 256)[op.sources[0].layer][:2]) == expected


@pytest.mark.parametrize("vnni, of_float", [("yes", 4), ("no", 2)])
def test_bounds_are_at_the_peaks_of_the_layers_precisions(tiny, monkeypatch, vnni, of_float):
    monkeypatch.setattr(stages, "extension", lambda: SimpleNamespace(build_facts=lambda: {"vnni": vnni}))
    peaks = {
        "float32": {"fma_gflops": 100.0, "bandwidth_gbs": 10.0},
        "int8": {"fma_gflops": 800.0, "bandwidth_gbs": 5.0},
    }
    algorithms = choose(tiny.generator, "latency", "direct").layers
    single = dict.fromkeys(algorithms, "float32")
    mixed = single | {"decoder_2": "int8", "decoder_4": "int8"}
    single, mixed = (stages.bounds(tiny, 1, precisions, algorithms, peaks) for precisions in (single, mixed))
    assert single["encoder_1"]["products_ms"] == round(2 * 128 * 128 * 16 * 3 * 4 / 100e6, 4)
    assert mixed["encoder_1"] == single["encoder_1"]
    assert mixed["decoder_2"]["products_ms"] == pytest.approx(single["decoder_2"]["products_ms"] / 8, abs=1e-4)
    assert mixed["decoder_4"]["weights_mb"] == pytest.approx(single["decoder_4"]["weights_mb"] / of_float, abs=0.01)
    assert mixed["decoder_4"]["weights_ms"] == pytest.approx(2 * single["decoder_4"]["weights_ms"] / of_float, abs=0.01)


def test_products_are_in_a_precision_that_the_processor_has(monkeypatch):
    def has(isa: str, bfloat16: str) -> None:
        monkeypatch.setattr(stages, "chosen", lambda precision: isa)
        facts = {"bfloat16": bfloat16}
        monkeypatch.setattr(stages, "extension", lambda: SimpleNamespace(build_facts=lambda: facts))

    ops = [(UNET["encoder_1"], Algorithm("direct")), (UNET["encoder_2"], Algorithm("int8"))]
    ops.append((UNET["decoder_1"], Algorithm("direct")))
    has("avx512", "no")
    assert [stages.computed_in(*op, "int8") for op in ops] == ["float32", "int8", "float32"]
    has("avx512", "yes")
    assert [stages.computed_in(*op, "int8") for op in ops] == ["float32", "int8", "bfloat16"]
    has("amx", "yes")
    assert [stages.computed_in(*op, "int8") for op in ops] == ["bfloat16", "int8", "bfloat16"]
    blur = next(op for op in lower(resnet(ngf=64, variant=ResnetVariant(down="blurred"))).ops if op.depthwise)
    assert stages.computed_in(blur, Algorithm("direct"), "bfloat16") == "float32"


def test_samples_are_sorted_into_stages():
    lines = [
        " 60.00%;_cpu_avx512.so;[.] floats_14x2",
        "  5.25%;_cpu_avx512.so;[.] __pyx_f_read_row",
        "  2.50%;libgomp.so.1;[.] gomp_team_barrier_wait",
        "  1.00%;libc.so.6;[.] memset",
        "",
    ]
    expected = {"multiply": 60.0, "read maps": 5.2, "waiting": 2.5, "other": 1.0}
    assert {name: share for name, share in stages.shares(lines).items() if share} == expected


def test_all_layers_are_timed_with_one_thread_and_with_all(tiny, saved, monkeypatch, capsys):
    monkeypatch.setattr(stages, "sample", lambda *arguments: None)
    assert stages.main(["--precision", "float32", "--batches", "1", "--blocks", "1"]) == 0
    record = saved["stages-float32"]["batches"]["1"]
    constant = lower(tiny.generator).constants(256, 256)
    for entry in record["threads"].values():
        assert set(entry["ms"]) == {layer.name for layer in tiny.generator.layers if layer.name not in constant} | {
            "network"
        }
        assert all(ms > 0 for ms in entry["ms"].values())
    assert record["plan"] == choose(tiny.generator, "latency").to_dict()["layers"]
    assert "no perf here" in capsys.readouterr().out


def test_a_resnet_has_bounds(tiny_resnet, saved, monkeypatch):
    monkeypatch.setattr(stages, "sample", lambda *arguments: None)
    assert (
        stages.main(["--network", "resnet_9blocks", "--precision", "float32", "--batches", "1", "--blocks", "1"]) == 0
    )
    bounds = saved["stages-float32-resnet_9blocks"]["batches"]["1"]["bounds"]
    assert set(bounds) == {layer.name for layer in tiny_resnet.generator.layers} | {"network"}
    assert all(entry["products_ms"] > 0 for entry in bounds.values())

"""What benchmarks decide and report, with tiny networks: no figure of theirs is tested."""

from __future__ import annotations

import json
import sys

import pytest

from bench import common, mode_b, mode_c, modes, report
from bench.engines import pool
from bench.mpi import scaling


@pytest.fixture
def saved(monkeypatch) -> dict[str, dict]:
    """What benchmarks save, by name, instead of files."""
    records: dict[str, dict] = {}
    monkeypatch.setattr(common, "save", lambda name, record: records.update({name: json.loads(json.dumps(record))}))
    return records


def test_mode_b_says_that_there_is_no_gpu(saved, capsys, monkeypatch):
    def none():
        raise RuntimeError("no GPU can be used: there is none")

    monkeypatch.setattr("pix2pix.devices.count_gpus", none)
    assert mode_b.main([]) == 0
    assert saved["mode_b"]["not_measured"].startswith("no CUDA device (no GPU can be used")
    assert saved["mode_b"]["settings"] == {}
    printed = capsys.readouterr().out
    assert "mode_b: not measured: no CUDA device" in printed and "12.40" in printed and "49.80" in printed


def test_mode_c_says_that_there_are_not_four_gpus(saved, capsys, monkeypatch):
    monkeypatch.setattr("pix2pix.devices.count_gpus", lambda: 1)
    assert mode_c.main([]) == 0
    assert "no four CUDA devices (device cuda:1: this machine has cuda:0 alone)" in saved["mode_c"]["not_measured"]
    printed = capsys.readouterr().out
    assert "not measured" in printed and "37.50" in printed and "159.40" in printed


def test_the_pool_is_measured_on_fake_devices(saved):
    assert pool.main(["--rounds", "1", "--batches", "32"]) == 0
    assert saved["pool-fake"]["timer_slack"]["ns"] == (1 if sys.platform.startswith("linux") else None)
    entries = saved["pool-fake"]["efficiency"]
    assert [entry["batches"] for entry in entries] == [32, 4] * 4
    assert all(0 < entry[way]["median"] <= 1.01 for entry in entries for way in ("stream", "translate"))


def test_the_pool_is_measured_on_the_cpu_with_any_number_of_workers(saved, monkeypatch):
    monkeypatch.setattr(modes, "NGF", 2)
    assert pool.main(["--device", "cpu", "--rounds", "1", "--images", "4", "--batch", "2"]) == 0
    record = saved["pool-cpu"]
    assert list(record["workers"]) == ["1", "2", "4", "8", "16"] and record["workers"]["1"]["against_one"] == 1
    assert pool.main(["--device", "cuda:99"]) == 0
    assert saved["pool-cuda"]["not_measured"].startswith("no such device")


@pytest.mark.parametrize("simulate", [scaling.simulate_files, scaling.simulate_wire])
def test_simulated_ranks_scale_until_rank_0_is_busy(simulate):
    costs = {"rank_0_s": 1e-3, "round_trip_s": 2e-3}
    results = {n: simulate(n, 10_000, 1e-2, costs) for n in (1, 2, 8, 1024)}
    assert results[1] == {"images_per_s": 100, "efficiency": 1, "rank_0_busy": 0}
    assert all(0.97 < results[n]["efficiency"] <= 1 for n in (2, 8))
    free = simulate(1024, 10_000, 1e-2, {"rank_0_s": 0.0, "round_trip_s": 0.0})
    assert results[1024]["efficiency"] < free["efficiency"] <= 1 and results[1024]["rank_0_busy"] > 0.5


def test_the_report_has_all_modes():
    table = report.table()
    for mode in ("A | CPU", "B | CPU and one GPU", "C | four GPUs", "D | four nodes of four GPUs", "D | CPU"):
        assert f"| {mode} |" in table
    for rate in ("5.5", "37.5", "72.0", "159.4", "258.5"):
        assert f"| {rate} |" in table

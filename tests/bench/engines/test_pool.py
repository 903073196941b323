"""The benchmark of the pool, briefly. No rate is tested."""

from __future__ import annotations

import sys

from bench import modes
from bench.engines import pool


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

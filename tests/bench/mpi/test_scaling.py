"""The simulation of ranks."""

from __future__ import annotations

import pytest

from bench.mpi import scaling


@pytest.mark.parametrize("simulate", [scaling.simulate_files, scaling.simulate_batches])
def test_simulated_ranks_scale_until_rank_0_is_busy(simulate):
    costs = {"rank_0_s": 1e-3, "round_trip_s": 2e-3}
    results = {n: simulate(n, 10_000, 1e-2, costs) for n in (1, 2, 8, 1024)}
    assert results[1] == {"images_per_s": 100, "efficiency": 1, "rank_0_busy": 0}
    assert all(0.97 < results[n]["efficiency"] <= 1 for n in (2, 8))
    free = simulate(1024, 10_000, 1e-2, {"rank_0_s": 0.0, "round_trip_s": 0.0})
    assert results[1024]["efficiency"] < free["efficiency"] <= 1 and results[1024]["rank_0_busy"] > 0.5

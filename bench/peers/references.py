"""The rates that float32 peers have to reach: a run in which they don't is void.

The reference rates were measured with the U-Net. Other networks have none of their own: a peer is expected to compute
as many FLOP per second there as with the U-Net. Whether it can is not known for every peer, so only the fastest one,
with which this project's engine is compared, has to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import common
from ..networks import UNET, Workload
from .tables import fastest

PEAK = 233.0  # FMA GFLOP/s of the two cores on which the rates were measured
RATES = {  # images/s at N = 1 and N = 8
    "torch-eager": {1: 7.5, 8: 10.2},
    "onnxruntime": {1: 12.9, 8: 13.4},
    "torch-compile": {1: 14.9, 8: 13.0},
    "openvino": {1: 15.7, 8: 15.8},
}
VOID_BELOW = 0.9


def reference_rate(workload: Workload, engine: str, n: int, peak_gflops: float) -> float | None:
    """Images/s that a peer is expected to reach with ``n`` images per call, where the peak is as given."""
    rate = RATES.get(engine, {}).get(n)
    if rate is None:
        return None
    unet, _ = common.model()
    return rate * unet.flops() / workload.flops * peak_gflops / PEAK


def too_slow(run: Mapping[str, Any], network: str) -> list[str]:
    """The peers that had to reach their reference rate in a run, and did not."""
    engines = run["engines"]
    judged = engines if network == UNET else filter(None, [fastest(engines, "float32")])
    return [f"{key} at N={run['n']}" for key in judged if engines[key].get("of_reference", 1) < VOID_BELOW]

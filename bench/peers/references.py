"""What a float32 peer has to reach, or a run is void."""

from __future__ import annotations

from .. import common
from ..networks import Workload

PEAK = 233.0  # FMA GFLOP/s of the two cores on which the rates were measured
RATES = {  # images/s of the U-Net at N = 1 and N = 8
    "torch-eager": {1: 7.5, 8: 10.2},
    "onnxruntime": {1: 12.9, 8: 13.4},
    "torch-compile": {1: 14.9, 8: 13.0},
    "openvino": {1: 15.7, 8: 15.8},
}
VOID_BELOW = 0.9


def reference_rate(workload: Workload, engine: str, n: int, peak_gflops: float) -> float | None:
    """Images/s that an engine is expected to reach with ``n`` images per call on cores of that peak; None if unknown.
    """
    rate = RATES.get(engine, {}).get(n)
    if rate is None:
        return None
    return rate * (common.model()[0].flops() / workload.flops) * (peak_gflops / PEAK)

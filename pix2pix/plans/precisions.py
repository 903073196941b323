"""The precisions in one table: which hardware computes in them, how numbers are stored, how exact the result is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Precision:
    """One way to store what is multiplied. Sums are float32, those of integers are exact.

    ``elements`` of a map fill a 32-bit word; without VNNI, 8-bit integers fill 16 bits each. ``cpu_needs`` is what the
    processor must have beyond its instruction set. The tolerance against the float64 oracle is ``max_error`` after
    tanh, for (random, real) weights, or else ``psnr`` of 8-bit images in dB.
    """

    name: str
    hardware: tuple[str, ...]
    elements: int
    cpu_needs: str = ""
    max_error: tuple[float, float] | None = None
    psnr: float | None = None


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("float32", ("cpu", "cuda"), 1, max_error=(5e-5, 2e-4)),
        Precision("bfloat16", ("cpu", "cuda"), 2, cpu_needs="AVX512_BF16", psnr=38),
        Precision("int8", ("cpu",), 4, psnr=30),
        Precision("float16", ("cuda",), 2, psnr=45),
        Precision("tf32", ("cuda",), 1, psnr=45),
    )
}


def check_precision(precision: str, hardware: str) -> None:
    """Raise ValueError for an unknown precision, RuntimeError for one that the hardware's engine doesn't compute in."""
    if precision not in PRECISIONS:
        raise ValueError(f"got precision {precision!r}, expected one of {', '.join(PRECISIONS)}")
    if hardware not in PRECISIONS[precision].hardware:
        takes = " or ".join(name for name, entry in PRECISIONS.items() if hardware in entry.hardware)
        engine = {"cpu": "CPU", "cuda": "GPU"}[hardware]
        raise RuntimeError(f"precision {precision!r}: the {engine} engine computes in {takes}")

"""Mode C, four GPUs: 1600 raw images through 16 workers, four of them on each GPU.

    python -m bench.mode_c [--images 1600] [--workers 16] [--device cuda:0,1,2,3]

Two settings: the course program's algorithm (im2col) with its placement of layers (seed-c), and the default plan with
all layers on the GPUs. :mod:`.modes` says what is measured. Without four GPUs, nothing is, and the record says so.
"""

from __future__ import annotations

from . import modes

MODE = modes.GpuMode(
    "mode_c",
    "four CUDA devices",
    {"im2col, seed-c": {"plan": "im2col", "gpu_layers": "seed-c"}, "default": {}},
    {"the course, four GPUs": 37.5, "the best of that course": 159.4},  # images/s, counted like "memory"
)


def main(argv: list[str] | None = None) -> int:
    """Run the measurement."""
    return modes.run(MODE, modes.gpu_arguments(MODE, __doc__, "cuda:0,1,2,3", argv))


if __name__ == "__main__":
    raise SystemExit(main())

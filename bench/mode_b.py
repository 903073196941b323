"""Mode B, the CPU and one GPU: 1600 raw images through 16 workers that share the GPU.

    python -m bench.mode_b [--images 1600] [--workers 16] [--device cuda:0]

Two settings: the course program's algorithm (im2col) with its placement of layers (seed-b), and the default plan with
all layers on the GPU. :mod:`.modes` says what is measured. Without a GPU, nothing is, and the record says so.
"""

from __future__ import annotations

from . import modes

MODE = modes.GpuMode(
    "mode_b",
    "CUDA device",
    {"im2col, seed-b": {"plan": "im2col", "gpu_layers": "seed-b"}, "default": {}},
    {"the course, CPU and one GPU": 12.4, "the best of that course": 49.8},  # images/s, counted like "memory"
)


def main(argv: list[str] | None = None) -> int:
    """Run the measurement."""
    return modes.run(MODE, modes.gpu_arguments(MODE, __doc__, "cuda:0", argv))


if __name__ == "__main__":
    raise SystemExit(main())

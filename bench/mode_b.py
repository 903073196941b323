"""Mode B, the CPU and one GPU: the seed's measurement with 16 workers that share the GPU.

    python -m bench.mode_b [--images 1600] [--workers 16] [--device cuda:0]

Twice: in the course's way, its algorithm (im2col) with its placement (seed-b), and in this package's own way, which has
all layers on the GPU. :mod:`.seed` says what is measured. Without a GPU, it says that nothing was.
"""

from __future__ import annotations

from . import seed

SETTINGS = {"im2col, seed-b": {"plan": "im2col", "gpu_layers": "seed-b"}, "default": {}}
COURSE = {"the course, CPU and one GPU": 12.4, "the best of that course": 49.8}  # images/s, counted like "memory"


def main(argv: list[str] | None = None) -> int:
    """Run the measurement."""
    parser = seed.parser("mode_b", (__doc__ or "").split("\n\n")[0], "cuda:0")
    return seed.run("mode_b", SETTINGS, COURSE, parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())

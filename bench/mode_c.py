"""Mode C, four GPUs: the seed's measurement with 16 workers, four of them on each GPU.

    python -m bench.mode_c [--images 1600] [--workers 16] [--device cuda:0,1,2,3]

Twice: in the course's way, its algorithm (im2col) with its placement (seed-c), and in this package's own way, which has
all layers on the GPUs. :mod:`.seed` says what is measured. Without the GPUs, it says that nothing was.
"""

from __future__ import annotations

from . import seed

SETTINGS = {"im2col, seed-c": {"plan": "im2col", "gpu_layers": "seed-c"}, "default": {}}
COURSE = {"the course, four GPUs": 37.5, "the best of that course": 159.4}  # images/s, counted like "memory"


def main(argv: list[str] | None = None) -> int:
    """Run the measurement."""
    parser = seed.parser("mode_c", (__doc__ or "").split("\n\n")[0], "cuda:0,1,2,3")
    return seed.run("mode_c", SETTINGS, COURSE, parser.parse_args(argv), "four CUDA devices")


if __name__ == "__main__":
    raise SystemExit(main())

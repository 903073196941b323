"""A user's program for test_ranks.py: ``mpiexec -n N python mpi_program.py MODEL``. Rank 0 prints "all is well"."""

from __future__ import annotations

import sys

import numpy as np

import pix2pix
from pix2pix import mpi


def check(engine: pix2pix.Engine, alone: pix2pix.Engine) -> None:
    """The engine of all ranks does what one process's does."""
    x = np.random.default_rng(0).integers(0, 256, (23, 64, 64, 3), dtype=np.uint8)
    y = alone.translate(x)
    np.testing.assert_array_equal(engine.translate(x), y)
    np.testing.assert_array_equal(engine.translate(x[0]), y[0])
    batches = [x[:1], x[1:10], x[10:12], x[12:]]
    for result, expected in zip(engine.stream(iter(batches)), np.split(y, [1, 10, 12]), strict=True):
        np.testing.assert_array_equal(result, expected)
    given = {"encoder_2": alone.run(x[:9].astype(np.float32) / 255, outputs=["encoder_2"])["encoder_2"]}
    got, expected = (e.run(inputs=given, outputs=["encoder_4", "encoder_3"]) for e in (engine, alone))
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value)
    for wrong, error in ((x[:, :50], ValueError), (x.astype(np.float32), TypeError)):
        try:
            engine.translate(wrong)
        except error:
            continue
        raise AssertionError(f"{error} was expected")


def main() -> None:
    with mpi.load(sys.argv[1], threads=1) as engine:
        if engine is not None:
            with pix2pix.load(sys.argv[1], threads=1) as alone:
                check(engine, alone)
            print("all is well")


main()

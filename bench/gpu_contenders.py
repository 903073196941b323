"""What :mod:`.gpu` compares: this project's engine and PyTorch, each with a batch in the memory of the same device.

All of them run in one process and one after another. ``run`` waits until what it started is done, once for all calls,
as a program would that has more work to give; inputs stay where they are, so that no copy counts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pix2pix.engine import BaseEngine
from pix2pix.generator import Generator, Weights
from pix2pix.reference import to_float

from .engines import Unavailable, nchw, nhwc


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to run the network over one batch: ``run(calls)`` does so many times and waits for the last.

    ``output`` is what it computes, float32 (N,H,W,C). ``precision`` says how near to the oracle that must be.
    """

    run: Callable[[int], None]
    output: Callable[[], np.ndarray]
    precision: str = "float32"


def resident(engine: BaseEngine, b: np.ndarray) -> Contender:
    """This project's GPU engine over 8-bit pictures in its memory, to 8-bit pictures there."""
    gpu: Any = engine
    size = gpu._do(gpu._size, *b.shape[:3])
    slot = gpu._do(gpu._slot, size)

    def upload() -> None:
        slot.b.copy_to_device(np.ascontiguousarray(b).reshape(-1), stream=gpu._stream)
        gpu._stream.synchronize()

    def run(calls: int) -> None:
        for _ in range(calls):
            slot.translate()
        gpu._stream.synchronize()

    gpu._do(upload)
    return Contender(lambda calls: gpu._do(run, calls), lambda: engine.run(to_float(b)))


def torch_network(
    generator: Generator, weights: Weights, b: np.ndarray, device: str, *, compiled: bool = False, tf32: bool = False
) -> Contender:
    """PyTorch on ``device``, channels last, as it is or compiled by inductor for static shapes.

    Raises Unavailable if inductor cannot compile here.
    """
    import torch

    from . import torch_network as network

    torch.backends.cudnn.benchmark = True
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pt")
        network.write(path, generator, weights)
        # As on the CPU: eager mode is at its best with group_norm from N = 2, compiled code with plain moments.
        module: Any = network.read(path, group_norm=not compiled and len(b) > 1).to(device)
    if compiled:
        module = torch.compile(module, dynamic=False)
    x = torch.from_numpy(nchw(to_float(b))).to(device).contiguous(memory_format=torch.channels_last)

    def call() -> Any:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        with torch.inference_mode():
            return module(x)

    def run(calls: int) -> None:
        for _ in range(calls):
            call()
        if x.is_cuda:
            torch.cuda.synchronize()

    if compiled:
        try:
            call()
        except Exception as error:  # whatever Triton, the compiler behind it or a driver may raise
            raise Unavailable(f"torch.compile failed: {type(error).__name__}: {str(error).splitlines()[0]}") from None
    return Contender(run, lambda: nhwc(call().float().cpu().numpy()), "tf32" if tf32 else "float32")

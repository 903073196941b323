"""PyTorch on a GPU with its fastest settings, as a contender of :mod:`.peers`.

Channels last. In float16 and bfloat16, weights and maps have that type; TF32 is PyTorch's own (``allow_tf32``). There
are three ways:

eager     kernels are launched one by one
graph     the same kernels, recorded as a CUDA graph
compile   kernels compiled by inductor for static shapes, recorded as a CUDA graph. The mode is
          max-autotune-no-cudagraphs: max-autotune has the same kernels and records a graph itself, but copies its input

PyTorch has several formulas for normalisation with per-image statistics. A trial finds the fastest first.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pix2pix.engines.reference import to_float

from ..clock import seconds_of
from ..peers import torch_network as network
from ..peers.engines import Unavailable, nchw, nhwc
from .contenders import Contender

DTYPES = {"float32": torch.float32, "tf32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
WAYS = ("eager", "graph", "compile")
EDGE = 8192  # of the matrices with which cuBLAS is measured
PRODUCTS, BLOCKS = 20, 5  # products per timed block, and blocks
SLOTS = 3  # batches in flight: one copied in, one computed, one copied out
TRIALS = 3  # calls per trial of a norm, and before recording a graph


def centred_norm(x: torch.Tensor, channels: int, gamma: torch.Tensor, beta: torch.Tensor, eps: float) -> torch.Tensor:
    """Instance normalisation of (N,C,H,W) in three passes; the arguments are those of ``torch.group_norm``."""
    variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    scale = torch.rsqrt(variance + eps) * gamma.view(channels, 1, 1)
    return torch.addcmul(beta.view(channels, 1, 1), x - mean, scale)


def scaled_norm(x: torch.Tensor, channels: int, gamma: torch.Tensor, beta: torch.Tensor, eps: float) -> torch.Tensor:
    """The same in two passes."""
    variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    scale = torch.rsqrt(variance + eps) * gamma.view(channels, 1, 1)
    return torch.addcmul(beta.view(channels, 1, 1) - mean * scale, x, scale)


NORMS = {
    "group_norm": torch.group_norm,
    "var_mean": network.moments_norm,
    "var_mean, subtraction, addcmul": centred_norm,
    "var_mean, addcmul": scaled_norm,
}
INACCURATE = {"bfloat16": {"var_mean, addcmul"}}  # 36 dB against the oracle on random weights; the others have 52


def as_floats(b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """uint8 (N,H,W,C) -> (N,C,H,W) in [-1,1], channels last."""
    return b.permute(0, 3, 1, 2).to(dtype).mul_(2 / 255).sub_(1)


def as_bytes(y: torch.Tensor) -> torch.Tensor:
    """(N,C,H,W) in [-1,1] -> uint8 (N,H,W,C)."""
    return y.permute(0, 2, 3, 1).add(1).mul_(127.5).clamp_(0, 255).to(torch.uint8)


def allow_tf32(precision: str) -> None:
    """Let PyTorch use TF32 if that is the precision, and forbid it otherwise."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def product_gflops(device: str, precision: str) -> float:
    """GFLOP/s of cuBLAS for the product of two large random matrices: the median of BLOCKS."""
    a, b = (torch.randn(EDGE, EDGE, device=device).to(DTYPES[precision]) for _ in range(2))
    allow_tf32(precision)

    def products() -> None:
        for _ in range(PRODUCTS):
            torch.matmul(a, b)
        wait(device)

    products()
    seconds = float(np.median([seconds_of(products) for _ in range(BLOCKS)])) / PRODUCTS
    return round(2 * EDGE**3 / seconds / 1e9, 6)


def wait(device: str) -> None:
    """Synchronise with the device."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def release() -> None:
    """Free the GPU memory that PyTorch caches."""
    gc.collect()
    torch.cuda.empty_cache()


def record(work: Callable[[], Any]) -> Callable[[], Any]:
    """``work`` as a CUDA graph: a function that replays it and returns its result, which is always the same memory."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(TRIALS):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


class Slot:
    """Pinned and device buffers for one batch like ``b`` in flight; ``translate`` computes from one to the other."""

    def __init__(self, b: np.ndarray, on_device: Callable[[torch.Tensor], Callable[[], torch.Tensor]], device: str):
        pinned = device != "cpu"
        self.given = torch.from_numpy(b).pin_memory() if pinned else torch.from_numpy(b)
        self.b = self.given.clone().to(device)
        self.translate = on_device(self.b)
        self.result = torch.empty(self.translate().shape, dtype=torch.uint8, pin_memory=pinned)
        if pinned:
            self.copied, self.computed, self.fetched = (torch.cuda.Event() for _ in range(3))


class TorchOnGpu:
    """The module in ``path``, written by :func:`.torch_network.write`, over the uint8 images ``b`` (N,H,W,C).

    On the device "cpu", which tests use, nothing is recorded as a graph, and a stream does not overlap copies.
    """

    def __init__(self, path: Path, b: np.ndarray, device: str, precision: str, way: str) -> None:
        torch.backends.cudnn.benchmark = True
        self.precision, self.way, self.device, self.dtype = precision, way, device, DTYPES[precision]
        self.module: Any = network.read(path, group_norm=False).to(device=device, dtype=self.dtype)
        if self._is_cuda:
            torch.cuda.set_device(device)
        with torch.inference_mode():  # as the inputs made from bytes are: inductor compiles once per kind of tensor
            x = torch.from_numpy(nchw(to_float(b))).to(device=device, dtype=self.dtype)
            self.x = x.contiguous(memory_format=torch.channels_last)
        self.norm = "var_mean"  # which inductor fuses into one kernel
        if way == "compile":
            self.module = torch.compile(self.module, mode="max-autotune-no-cudagraphs", dynamic=False)
            self._compile()
        else:
            self.norm = min(set(NORMS) - INACCURATE.get(precision, set()), key=self._try)
            self.module.normalise = NORMS[self.norm]
        self.network = self._prepared(lambda: self.module(self.x))
        self.slots = [Slot(b, self._on_device, device) for _ in range(SLOTS if self._is_cuda else 1)]

    @property
    def _is_cuda(self) -> bool:
        return self.device != "cpu"

    def _on_device(self, b: torch.Tensor) -> Callable[[], torch.Tensor]:
        return self._prepared(lambda: as_bytes(self.module(as_floats(b, self.dtype))))

    def _prepared(self, work: Callable[[], Any]) -> Callable[[], Any]:
        """``work`` under this contender's settings, recorded as a graph unless the way is eager."""

        def call() -> Any:
            allow_tf32(self.precision)
            with torch.inference_mode():
                return work()

        return record(call) if self.way != "eager" and self._is_cuda else call

    def _compile(self) -> None:
        try:
            self._prepared(lambda: self.module(self.x))()
        except Exception as error:  # whatever Triton, its compiler or the driver may raise
            lines = str(error).splitlines() or [""]
            raise Unavailable(f"torch.compile failed: {type(error).__name__}: {lines[0]}") from None

    def _try(self, norm: str) -> float:
        """Seconds of some calls with that norm."""
        self.module.normalise = NORMS[norm]
        call = self._prepared(lambda: self.module(self.x))

        def calls() -> None:
            for _ in range(TRIALS):
                call()
            wait(self.device)

        calls()
        return seconds_of(calls)

    def run(self, calls: int) -> None:
        """Run so many times from and to the device's memory."""
        for _ in range(calls):
            self.network()
        wait(self.device)

    def output(self) -> np.ndarray:
        """The network's output, float32 (N,H,W,C)."""
        return nhwc(self.network().float().cpu().numpy())

    def translate(self) -> np.ndarray:
        """Translate one batch from and to pinned host memory."""
        slot = self.slots[0]
        slot.b.copy_(slot.given, non_blocking=True)
        slot.result.copy_(slot.translate(), non_blocking=True)
        wait(self.device)
        return slot.result.numpy()

    def stream(self, calls: int) -> None:
        """Translate so many batches, with copies on separate streams."""
        if not self._is_cuda:
            for _ in range(calls):
                self.translate()
            return
        inward, outward, computing = torch.cuda.Stream(), torch.cuda.Stream(), torch.cuda.current_stream()
        free = deque(self.slots)
        for _ in range(calls):
            slot = free.popleft()
            slot.fetched.synchronize()
            with torch.cuda.stream(inward):
                slot.b.copy_(slot.given, non_blocking=True)
                slot.copied.record()
            computing.wait_event(slot.copied)
            result = slot.translate()
            slot.computed.record()
            with torch.cuda.stream(outward):
                outward.wait_event(slot.computed)
                result.record_stream(outward)
                slot.result.copy_(result, non_blocking=True)
                slot.fetched.record()
            free.append(slot)
        wait(self.device)


def torch_on_gpu(path: Path, b: np.ndarray, device: str, precision: str, way: str) -> Contender:
    """PyTorch in one of the WAYS. Raises Unavailable if inductor cannot compile here."""
    peer = TorchOnGpu(path, b, device, precision, way)
    return Contender(precision, peer.run, peer.output, peer.stream, peer.translate, settings=f"norms by {peer.norm}")

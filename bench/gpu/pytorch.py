"""PyTorch on a GPU at its best, as a contender of :mod:`.gpu`.

Channels last; float16 and bfloat16 are of weights and maps alike, TF32 is PyTorch's own (``allow_tf32``). Three ways:

eager     kernels launched one by one
graph     the same, recorded as a CUDA graph
compile   compiled by inductor for static shapes (``max-autotune``), recorded as a CUDA graph. That mode records by
          itself, but copies its input first: so what is recorded here is the one without, max-autotune-no-cudagraphs

PyTorch has several ways to normalise a picture by its own statistics; which is fastest is tried out first.
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

from ..common import seconds_of
from ..peers import torch_network as network
from ..peers.engines import Unavailable, nchw, nhwc
from .contenders import Contender

DTYPES = {"float32": torch.float32, "tf32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
WAYS = ("eager", "graph", "compile")
EDGE = 8192  # of the matrices that say what cuBLAS can do
PRODUCTS, BLOCKS = 20, 5  # that are timed together, so many times
SLOTS = 3  # batches that are on their way at a time: one comes, one is computed, one goes
TRIALS = 3  # of each norm


def centred_norm(x: torch.Tensor, channels: int, gamma: torch.Tensor, beta: torch.Tensor, eps: float) -> torch.Tensor:
    """Instance normalisation of (N,C,H,W) in three passes; the arguments are those of ``torch.group_norm``."""
    variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    scale = torch.rsqrt(variance + eps) * gamma.view(channels, 1, 1)
    return torch.addcmul(beta.view(channels, 1, 1), x - mean, scale)


def scaled_norm(x: torch.Tensor, channels: int, gamma: torch.Tensor, beta: torch.Tensor, eps: float) -> torch.Tensor:
    """The same in two."""
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
    """Let PyTorch use TF32 if that is the precision, and else not."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def product_gflops(device: str, precision: str) -> float:
    """What cuBLAS does of a product of two large matrices of random numbers: the median of BLOCKS."""
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
    """Until the device has done all that it was given."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def release() -> None:
    """Give back what PyTorch holds of the GPU's memory for nobody."""
    gc.collect()
    torch.cuda.empty_cache()


def record(work: Callable[[], Any]) -> Callable[[], Any]:
    """``work`` as a CUDA graph: a call that replays it, and returns what it returned (the same memory every time)."""
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
    """Memory through which batches like ``b`` travel: pinned, and on the device; ``translate`` is the work between."""

    def __init__(self, b: np.ndarray, on_device: Callable[[torch.Tensor], Callable[[], torch.Tensor]], device: str):
        pinned = device != "cpu"
        self.given = torch.from_numpy(b).pin_memory() if pinned else torch.from_numpy(b)
        self.b = self.given.clone().to(device)
        self.translate = on_device(self.b)
        self.result = torch.empty(self.translate().shape, dtype=torch.uint8, pin_memory=pinned)
        if pinned:
            self.copied, self.computed, self.fetched = (torch.cuda.Event() for _ in range(3))


class TorchOnGpu:
    """The module of ``path`` (as :func:`.torch_network.write` writes it) over the 8-bit pictures ``b``.

    On the device "cpu", for tests, there is no ``graph``, and a stream is one call after the other.
    """

    def __init__(self, path: Path, b: np.ndarray, device: str, precision: str, way: str) -> None:
        torch.backends.cudnn.benchmark = True
        self.precision, self.way, self.device, self.dtype = precision, way, device, DTYPES[precision]
        self.module: Any = network.read(path, group_norm=False).to(device=device, dtype=self.dtype)
        if self._is_cuda:
            torch.cuda.set_device(device)
        with torch.inference_mode():  # as what is made of bytes: for tensors of two kinds, inductor would compile twice
            x = torch.from_numpy(nchw(to_float(b))).to(device=device, dtype=self.dtype)
            self.x = x.contiguous(memory_format=torch.channels_last)
        self.norm = "var_mean"  # what inductor makes one kernel of
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
        """``work`` under this contender's settings, recorded if that is its way."""

        def call() -> Any:
            allow_tf32(self.precision)
            with torch.inference_mode():
                return work()

        return record(call) if self.way != "eager" and self._is_cuda else call

    def _compile(self) -> None:
        try:
            self._prepared(lambda: self.module(self.x))()
        except Exception as error:  # whatever Triton, the compiler behind it or a driver may raise
            lines = str(error).splitlines() or [""]
            raise Unavailable(f"torch.compile failed: {type(error).__name__}: {lines[0]}") from None

    def _try(self, norm: str) -> float:
        """Seconds of a call with that norm."""
        self.module.normalise = NORMS[norm]
        call = self._prepared(lambda: self.module(self.x))

        def calls() -> None:
            for _ in range(TRIALS):
                call()
            wait(self.device)

        calls()
        return seconds_of(calls)

    def run(self, calls: int) -> None:
        """So many times over what lies in the device's memory."""
        for _ in range(calls):
            self.network()
        wait(self.device)

    def output(self) -> np.ndarray:
        """What the network computes: float32 (N,H,W,C)."""
        return nhwc(self.network().float().cpu().numpy())

    def translate(self) -> np.ndarray:
        """One batch from the host's memory and back."""
        slot = self.slots[0]
        slot.b.copy_(slot.given, non_blocking=True)
        slot.result.copy_(slot.translate(), non_blocking=True)
        wait(self.device)
        return slot.result.numpy()

    def stream(self, calls: int) -> None:
        """So many batches, their copies on streams of their own."""
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

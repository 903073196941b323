"""PyTorch as a contender, on the CPU."""

from __future__ import annotations

from functools import partial

import pytest

from bench import checks
from bench.gpu import peers, tables
from tests.models import pictures

from .tiny import PEAKS, TINY, WEIGHTS


@pytest.mark.full
@pytest.mark.parametrize(
    ("precision", "way"), [("float32", "eager"), ("tf32", "eager"), ("bfloat16", "eager"), ("float32", "compile")]
)
def test_pytorch_takes_part(precision, way, case, tmp_path):
    pytest.importorskip("torch", reason="needs PyTorch: pip install pix2pix[train]")
    from bench.gpu import pytorch
    from bench.peers import torch_network

    b, oracle, _ = case
    torch_network.write(tmp_path / "model.pt", TINY, WEIGHTS)
    name = f"torch-{way}-{precision}"
    make = partial(pytorch.torch_on_gpu, tmp_path / "model.pt", b, "cpu", precision, way)
    comparison = peers.Comparison(b, {name: make}, oracle)
    assert not comparison.unavailable
    assert comparison.contenders[name].settings.removeprefix("norms by ") in pytorch.NORMS
    run = comparison.time(1, TINY.flops(), PEAKS)
    assert all(run["engines"][name][way]["median_images_per_s"] > 0 for way in tables.WAYS)


@pytest.mark.full
@pytest.mark.parametrize("n", [1, 2])
def test_pytorch_is_compiled_once(n, tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install pix2pix[train]")
    from bench.gpu import pytorch
    from bench.peers import torch_network

    torch_network.write(tmp_path / "model.pt", TINY, WEIGHTS)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    peer = pytorch.torch_on_gpu(tmp_path / "model.pt", pictures(n, 16, 16), "cpu", "float32", "compile")
    peer.run(2), peer.translate()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.full
def test_pytorchs_norms_are_the_same_norm():
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install pix2pix[train]")
    from bench.gpu.pytorch import NORMS

    x, gamma, beta = torch.randn(2, 5, 4, 6), torch.randn(5), torch.randn(5)
    first, *others = (norm(x, 5, gamma, beta, 1e-3) for norm in NORMS.values())
    assert len(others) == 3 and all(torch.allclose(first, other, atol=1e-5) for other in others)


class FakeCuda:
    """In place of torch.cuda, on a machine without: work is done at once, and a log tells what waited for what."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def synchronize(self, device=None) -> None:
        self.log.append("synchronize")

    def current_stream(self) -> FakeStream:
        return FakeStream(self)

    Stream = Event = current_stream

    def stream(self, stream):
        from contextlib import nullcontext

        return nullcontext()


class FakeStream:
    """A stream or an event."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda

    def wait_event(self, event) -> None:
        self.cuda.log.append("wait_event")

    def synchronize(self) -> None:
        self.cuda.log.append("event.synchronize")

    def record(self) -> None:
        self.cuda.log.append("record")


@pytest.mark.full
def test_pytorch_streams_in_slots(case, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install pix2pix[train]")
    from bench.gpu import pytorch
    from bench.peers import torch_network

    b, _, right = case
    torch_network.write(tmp_path / "model.pt", TINY, WEIGHTS)
    peer = pytorch.TorchOnGpu(tmp_path / "model.pt", b, "cpu", "float32", "eager")
    cuda = FakeCuda()
    monkeypatch.setattr(torch, "cuda", cuda)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    peer.slots = [pytorch.Slot(b, peer._on_device, "cpu") for _ in range(pytorch.SLOTS)]
    for slot in peer.slots:
        slot.copied, slot.computed, slot.fetched = (cuda.Event() for _ in range(3))
        slot.b.zero_(), slot.result.zero_()
    peer.device = "cuda"
    peer.stream(5)
    once = ["event.synchronize", "record", "wait_event", "record", "wait_event", "record"]
    assert cuda.log == [*once * 5, "synchronize"]
    for slot in peer.slots:
        checks.check_images("a slot", slot.result.numpy(), checks.to_bytes(right))

"""What names of devices mean."""

from __future__ import annotations

import pytest

from pix2pix.devices import parse


def no_gpu() -> int:
    raise RuntimeError("no driver")


def never() -> int:
    raise AssertionError("asked for GPUs that nobody named")


@pytest.mark.parametrize(
    "text, names",
    [
        ("auto", ["cuda:0", "cuda:1", "cuda:2"]),
        ("cpu", ["cpu"]),
        ("cuda", ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda:2", ["cuda:2"]),
        ("cuda:0,1", ["cuda:0", "cuda:1"]),
        ("cuda:2,cuda:0", ["cuda:2", "cuda:0"]),
        ("cuda:2,1,cpu", ["cuda:2", "cuda:1", "cpu"]),
        ("cpu,cuda:0", ["cpu", "cuda:0"]),
        ("cpu,cuda", ["cpu", "cuda:0", "cuda:1", "cuda:2"]),
        ("cuda:00", ["cuda:0"]),
    ],
)
def test_names_of_devices(text, names):
    assert [str(device) for device in parse(text, lambda: 3)] == names


def test_without_a_gpu_auto_is_the_cpu_and_cuda_says_what_is_missing():
    assert [str(device) for device in parse("auto", no_gpu)] == ["cpu"]
    for text in ("cuda", "cuda:0", "cpu,cuda"):
        with pytest.raises(RuntimeError, match="no driver"):
            parse(text, no_gpu)


def test_the_cpu_alone_never_asks_for_gpus():
    assert len(parse("cpu", never)) == 1


@pytest.mark.parametrize(
    "count, text", [(1, "this machine has cuda:0 alone"), (4, "this machine has cuda:0 to cuda:3")]
)
def test_a_gpu_that_is_not_there(count, text):
    with pytest.raises(RuntimeError, match=f"device cuda:4: {text}"):
        parse("cuda:4", lambda: count)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tpu",
        "auto,cpu",
        "cpu:0",
        "cuda:",
        "cuda:x",
        "cuda:-1",
        "cuda:0,",
        "cuda,1",
        "cpu,1",
        "0",
        "CPU",
        "cuda:\u0661",
    ],
)
def test_names_that_mean_nothing(text):
    with pytest.raises(ValueError, match="expected auto, cpu, cuda"):
        parse(text, never if "cuda:0" not in text else lambda: 1)


@pytest.mark.parametrize("text", ["cpu,cpu", "cuda:0,0", "cuda,cuda:1", "cuda:1,cuda", "cuda,cuda"])
def test_a_device_named_twice(text):
    with pytest.raises(ValueError, match="twice"):
        parse(text, lambda: 2)

"""The pool: how much of what its devices can do it gets from them.

    python -m bench.pool [--device fake] [--rounds 3] [--batches 1600]
    python -m bench.pool --device cpu|cuda:0 [--rounds 3] [--images N] [--batch N]

On fake devices, which do one batch at a time in 2.5 ms each, four workers on each of four devices, all equal or one of
them four times slower. "ideal" is as many batches as the devices can do in that time, and the efficiency is the
fraction of it, from the first batch that is read to the last result. Two kinds: "queued" devices begin a batch when the
one before ends, if it is there, as a GPU does; "lock" devices are a lock and a sleep of 2.5 ms, so that the time in
which threads wake up is the device's. For these, "bare" is what threads reach that share out the batches beforehand,
and only take the lock, sleep and count. A sleep lasts longer than it was told to, and counts as 2.5 ms in the
efficiency; "busy" counts it as it was: the fraction of the time for which devices were held, in the mean. Linux is
asked to end sleeps on time.

On a real device, 1, 2, 4, 8 and 16 workers over the same pictures: the network of ngf=64 with random weights. Outputs
are verified, and must be the same bytes for any number of workers.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import pix2pix
from pix2pix.engines.pool import PoolEngine
from pix2pix.factory import EngineOptions
from tests.engines.fakes import SMALL, FakeDevice

from . import common
from .mode_a import verify, write_network

SECONDS, SLOWER = 0.0025, 4
WORKERS = (1, 2, 4, 8, 16)
CASES = {"four equal": (1, 1, 1, 1), "one of four slower": (1, 1, 1, SLOWER)}
PR_SET_TIMERSLACK, PR_GET_TIMERSLACK = 29, 30  # of Linux's prctl(2)


class LockedDevice(FakeDevice):
    """A lock that is held for as long as a sleep takes."""

    def compute(self, images: int, stop: threading.Event) -> None:
        with self.lock:
            start = time.perf_counter()
            time.sleep(self.seconds)
            self.busy += time.perf_counter() - start
            self.batches.append(images)


KINDS: dict[str, type[FakeDevice]] = {"queued": FakeDevice, "lock": LockedDevice}


def end_sleeps_on_time() -> int | None:
    """Let sleeps of this thread, and of all that it starts from now on, end no later than they must.

    Linux ends a sleep up to its thread's slack late, by default 50 us, to wake up for several at once. Returns the
    slack in ns that is set now, or None where there is none.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_TIMERSLACK, ctypes.c_ulong(1))
    return prctl(PR_GET_TIMERSLACK)


def stream_all(pool: PoolEngine, b: np.ndarray) -> float:
    """Seconds to stream ``b``, one picture after the other."""
    start = time.perf_counter()
    results = list(pool.stream(iter(b[:, None])))
    seconds = time.perf_counter() - start
    if not np.array_equal(np.concatenate(results), 255 - b):
        raise RuntimeError("the pool's results are not its devices': its time counts for nothing")
    return seconds


def translate_all(pool: PoolEngine, b: np.ndarray) -> float:
    """Seconds to translate ``b`` in one call."""
    start = time.perf_counter()
    out = pool.translate(b)
    seconds = time.perf_counter() - start
    if not np.array_equal(out, 255 - b):
        raise RuntimeError("the pool's results are not its devices': its time counts for nothing")
    return seconds


def bare(devices: Sequence[FakeDevice], batches: int) -> float:
    """Seconds that four threads for each device take when each device's share of the batches is known beforehand."""
    rate = sum(1 / device.seconds for device in devices)
    threads = []
    for device in devices:
        numbers = iter(range(round(batches / device.seconds / rate)))

        def work(device: FakeDevice = device, numbers: Any = numbers) -> None:
            for _ in numbers:
                device.compute(1, threading.Event())

        threads += [threading.Thread(target=work) for _ in range(4)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


def on_fakes(kind: str, slowness: Sequence[int], batches: int, rounds: int) -> dict[str, Any]:
    """The efficiencies on fake devices, in ``rounds`` that alternate between the ways of giving work to the pool."""
    devices = [KINDS[kind](SECONDS * factor) for factor in slowness]
    ideal = batches / sum(1 / device.seconds for device in devices)
    b = np.random.default_rng(0).integers(14, 256, (batches, 4, 4, 3), np.uint8)
    with PoolEngine(SMALL, [device.group(f"fake:{i}", images=1) for i, device in enumerate(devices)]) as pool:
        ways: dict[str, Callable[[], float]] = {
            "stream": lambda: stream_all(pool, b),
            "translate": lambda: translate_all(pool, b),
            "bare": lambda: bare(devices, batches),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        busy: dict[str, list[float]] = {way: [] for way in ways}
        stream_all(pool, b[:64])
        for _ in range(rounds):
            for way, run in ways.items():
                before = sum(device.busy for device in devices)
                seconds[way].append(run())
                busy[way].append((sum(device.busy for device in devices) - before) / len(devices) / seconds[way][-1])
    return {
        "ideal_s": round(ideal, 4),
        **{
            way: {
                "best": round(ideal / min(taken), 4),
                "median": round(ideal / float(np.median(taken)), 4),
                "busy": round(float(np.median(busy[way])), 4),
            }
            for way, taken in seconds.items()
        },
    }


def measure_fakes(arguments: argparse.Namespace) -> dict[str, Any]:
    """Efficiencies of all kinds and cases, also of an eighth of the batches: what starting and ending cost."""
    slack = {"ns": end_sleeps_on_time(), "why": "so that devices take 2.5 ms: by default, sleeps end up to 50 us late"}
    record: dict[str, Any] = {"seconds_per_batch": SECONDS, "workers_per_device": 4, "timer_slack": slack}
    record["efficiency"] = []
    for kind in KINDS:
        for title, slowness in CASES.items():
            for batches in (arguments.batches, arguments.batches // 8):
                entry = on_fakes(kind, slowness, batches, arguments.rounds)
                record["efficiency"].append({"devices": kind, "case": title, "batches": batches, **entry})
                ways = ("stream", "translate", "bare")
                medians = ", ".join(f"{way} {entry[way]['median']:.4f} (busy {entry[way]['busy']:.4f})" for way in ways)
                print(f"{kind:7s} {title:19s} {batches:5d} batches: {medians}", flush=True)
    return record


def measure_device(arguments: argparse.Namespace) -> dict[str, Any]:
    """Images/s with each number of workers, in rounds that alternate between them."""
    rates: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    b = common.varied_pictures(arguments.images)
    batches = np.split(b, range(arguments.batch, len(b), arguments.batch))
    first = None
    with tempfile.TemporaryDirectory() as folder:
        network = Path(folder, "network.bin")
        write_network(network)
        for _ in range(arguments.rounds):
            for workers in WORKERS:
                with pix2pix.load(network, arguments.device, workers=workers) as engine:
                    list(engine.stream(batches[:1] * workers))  # warm up
                    seconds, out = timed(lambda engine=engine: np.concatenate(list(engine.stream(batches))))
                if first is None:
                    verify(network, b, out)
                    first = out
                if not np.array_equal(out, first):
                    raise RuntimeError(f"{workers} workers make other bytes than one: not timed")
                rates[workers].append(len(b) / seconds)
    one = np.array(rates[1])
    record: dict[str, Any] = {"images": len(b), "batch": arguments.batch, "workers": {}}
    for workers, values in rates.items():
        against = round(float(np.median(np.array(values) / one)), 4)
        median = round(float(np.median(values)), 3)
        record["workers"][workers] = {"best": round(max(values), 3), "median": median, "against_one": against}
        print(f"{workers:2d} workers: {median:9.2f} images/s, {against:.3f} of one worker's", flush=True)
    return record


def timed(call: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Seconds of a call, and what it returns."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def main(argv: list[str] | None = None) -> int:
    """Run the measurement."""
    parser = argparse.ArgumentParser(prog="python -m bench.pool", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", default="fake", help="fake, or one device: cpu, cuda:0 (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--batches", type=int, default=1600, help="on fake devices (%(default)s)")
    parser.add_argument("--images", type=int, default=32, help="on a real device (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="pictures per batch on a real device (%(default)s)")
    arguments = parser.parse_args(argv)
    record: dict[str, Any] = {"device": arguments.device, "rounds": arguments.rounds, "not_measured": None}
    if arguments.device == "fake":
        record |= measure_fakes(arguments)
    else:
        try:
            EngineOptions(arguments.device).check()
        except RuntimeError as error:
            record["not_measured"] = f"no such device ({error})"
            print(f"pool on {arguments.device}: not measured: {record['not_measured']}")
        else:
            record |= {"gpu": common.gpu()} if arguments.device.startswith("cuda") else {}
            record |= measure_device(arguments)
    common.save(f"pool-{arguments.device.partition(':')[0]}", record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

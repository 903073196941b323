"""The pool: how much of its devices' capacity it uses.

    python -m bench.engines.pool [--device fake] [--rounds 3] [--batches 1600]
    python -m bench.engines.pool --device cpu|cuda:0 [--rounds 3] [--images N] [--batch N]

On fake devices: four workers on each of four devices, each of which does one batch at a time in 2.5 ms; in a second
case one device is four times slower. Efficiency is the time in which the devices could do all batches ("ideal"),
divided by the time from reading the first batch to the last result. There are two kinds of device. A "queued" device
keeps its own clock, as a GPU does: a batch that is waiting when another ends begins at that moment. A "lock" device is
a lock around a sleep of 2.5 ms, so that the time in which threads wake up counts as the device's. "bare" is the
efficiency of threads that know their device's share of the batches beforehand, and only lock, sleep and count. A sleep
overruns, and counts as 2.5 ms in the efficiency. "busy" counts its real length: the mean fraction of the time in which
devices were held. Linux is asked to end sleeps on time.

On a real device: 1, 2, 4, 8 and 16 workers over the same images, with random weights at ngf=64. Outputs are verified,
and must be the same bytes for any number of workers.
"""

from __future__ import annotations

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
from tests.engines.fakes import SMALL, FakeDevice

from .. import common, modes
from ..clock import seconds_of

SECONDS, SLOWER = 0.0025, 4
WORKERS = (1, 2, 4, 8, 16)
CASES = {"four equal": (1, 1, 1, 1), "one of four slower": (1, 1, 1, SLOWER)}
WAYS = ("stream", "translate", "bare")
PR_SET_TIMERSLACK, PR_GET_TIMERSLACK = 29, 30  # of Linux's prctl(2)


class LockedDevice(FakeDevice):
    """A lock that is held for as long as a sleep takes."""

    def compute(self, images: int, stop: threading.Event) -> None:
        """Do a batch of so many images."""
        with self.lock:
            self.busy += seconds_of(lambda: time.sleep(self.seconds))
            self.batches.append(images)


KINDS: dict[str, type[FakeDevice]] = {"queued": FakeDevice, "lock": LockedDevice}


def end_sleeps_on_time() -> int | None:
    """Set the timer slack of this thread, and of those it starts from now on, to 1 ns; returns the slack in ns.

    Linux may end a sleep late by its thread's slack, 50 us by default, to wake several threads at once. Returns None
    where there is no timer slack.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_TIMERSLACK, ctypes.c_ulong(1))
    return prctl(PR_GET_TIMERSLACK)


def timed(call: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Seconds of a call, and its result."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def use_pool(call: Callable[[], np.ndarray], b: np.ndarray) -> float:
    """Seconds in which a call of the pool inverts ``b``, as fake devices do."""
    seconds, result = timed(call)
    if not np.array_equal(result, 255 - b):
        raise RuntimeError("the pool's results are not its devices': its time is discarded")
    return seconds


def use_threads(devices: Sequence[FakeDevice], batches: int) -> float:
    """Seconds of four threads per device, when each device's share of the batches is known beforehand."""
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


def measure_fakes(kind: str, slowness: Sequence[int], batches: int, rounds: int) -> dict[str, Any]:
    """The efficiencies of one kind of fake device, in ``rounds`` that alternate between the WAYS."""
    devices = [KINDS[kind](SECONDS * factor) for factor in slowness]
    ideal = batches / sum(1 / device.seconds for device in devices)
    b = np.random.default_rng(0).integers(14, 256, (batches, 4, 4, 3), np.uint8)

    def held() -> float:
        return sum(device.busy for device in devices) / len(devices)

    with PoolEngine(SMALL, [device.group(f"fake:{i}", images=1) for i, device in enumerate(devices)]) as pool:

        def stream(b: np.ndarray) -> float:
            return use_pool(lambda: np.concatenate(list(pool.stream(iter(b[:, None])))), b)

        calls: dict[str, Callable[[], float]] = {
            "stream": lambda: stream(b),
            "translate": lambda: use_pool(lambda: pool.translate(b), b),
            "bare": lambda: use_threads(devices, batches),
        }
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        busy: dict[str, list[float]] = {way: [] for way in WAYS}
        stream(b[:64])
        for _ in range(rounds):
            for way in WAYS:
                before = held()
                seconds[way].append(calls[way]())
                busy[way].append((held() - before) / seconds[way][-1])
    entry: dict[str, Any] = {"ideal_s": round(ideal, 4)}
    for way, taken in seconds.items():
        best, median = ideal / min(taken), ideal / float(np.median(taken))
        held_share = float(np.median(busy[way]))
        entry[way] = {"best": round(best, 4), "median": round(median, 4), "busy": round(held_share, 4)}
    return entry


def measure_all_fakes(batches: int, rounds: int) -> dict[str, Any]:
    """All kinds and cases; also an eighth of the batches, which shows the cost of starting and ending."""
    slack = {"ns": end_sleeps_on_time(), "why": "so that devices take 2.5 ms: by default, sleeps end up to 50 us late"}
    record: dict[str, Any] = {"seconds_per_batch": SECONDS, "workers_per_device": 4, "timer_slack": slack}
    record["efficiency"] = []
    for kind in KINDS:
        for title, slowness in CASES.items():
            for number in (batches, batches // 8):
                entry = measure_fakes(kind, slowness, number, rounds)
                record["efficiency"].append({"devices": kind, "case": title, "batches": number, **entry})
                medians = ", ".join(f"{way} {entry[way]['median']:.4f} (busy {entry[way]['busy']:.4f})" for way in WAYS)
                print(f"{kind:7s} {title:19s} {number:5d} batches: {medians}", flush=True)
    return record


def measure_device(device: str, images: int, batch: int, rounds: int) -> dict[str, Any]:
    """Images/s with each number of workers, in rounds that alternate between them."""
    rates: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    first = None
    with tempfile.TemporaryDirectory() as folder:
        files = modes.write_raw_files(Path(folder), images)
        batches = np.split(files.b, range(batch, images, batch))
        for _ in range(rounds):
            for workers in WORKERS:
                with pix2pix.load(files.network, device, workers=workers) as engine:
                    list(engine.stream(batches[:1] * workers))  # warm up
                    seconds, out = timed(lambda engine=engine: np.concatenate(list(engine.stream(batches))))
                if first is None:
                    files.verify(out)
                    first = out
                if not np.array_equal(out, first):
                    raise RuntimeError(f"{workers} workers make other bytes than one: not timed")
                rates[workers].append(images / seconds)
    record: dict[str, Any] = {"images": images, "batch": batch, "workers": {}}
    for workers, values in rates.items():
        against = round(float(np.median(np.array(values) / rates[1])), 4)
        median = round(float(np.median(values)), 3)
        record["workers"][workers] = {"best": round(max(values), 3), "median": median, "against_one": against}
        print(f"{workers:2d} workers: {median:9.2f} images/s, {against:.3f} of one worker's", flush=True)
    return record


def main(argv: list[str] | None = None) -> int:
    """Run the measurement."""
    parser = common.argument_parser("bench.engines.pool", __doc__)
    parser.add_argument("--device", default="fake", help="fake, or one device: cpu, cuda:0 (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--batches", type=int, default=1600, help="on fake devices (%(default)s)")
    parser.add_argument("--images", type=int, default=32, help="on a real device (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="images per batch on a real device (%(default)s)")
    arguments = parser.parse_args(argv)
    device, rounds = arguments.device, arguments.rounds
    record: dict[str, Any] = {"device": device, "rounds": rounds, "not_measured": None}
    if device == "fake":
        record |= measure_all_fakes(arguments.batches, rounds)
    elif missing := common.missing_device(device):
        record["not_measured"] = f"no such device ({missing})"
        print(f"pool on {device}: not measured: {record['not_measured']}")
    else:
        record |= {"gpu": common.gpu()} if device.startswith("cuda") else {}
        record |= measure_device(device, arguments.images, arguments.batch, rounds)
    common.save(f"pool-{device.partition(':')[0]}", record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

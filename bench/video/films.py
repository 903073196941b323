"""A film through the command line beside the engine alone; what decoding and encoding cost; memory over many frames.

    python -m bench.video.films [--blocks 3] [--frames 60] [--long 2000]

Rate: the command line's own rate, from the loaded model to the finished film, alternates with the engine's stream over
the same frames in memory, with the same threads and batches. The film is 1280x720, H.264, in which a photograph-like
image moves. Networks are the embedded demo model and the U-Net with ngf=64, which gets a quarter of the frames.

Costs: processor time per frame, over all threads, of decoding, encoding and the engine, each by itself. Memory: the
largest resident sets (VmHWM) of runs over a tenth of ``--long`` frames of 320x192, and over all.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

import pix2pix
from pix2pix import checkpoints, demo
from pix2pix.cpu.topology import available_cores
from pix2pix.engines.base import Engine
from pix2pix.files import metrics
from pix2pix.files.fitting import pad
from pix2pix.files.stream import batch_capacity, best_batch_size
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights
from pix2pix.video.colours import to_rgb
from pix2pix.video.encoding import Encoding
from pix2pix.video.reading import Film, Frame
from pix2pix.video.writing import FilmWriter

from .. import common
from ..files.folder import peak_memory

HD, SMALL = (720, 1280), (192, 320)  # (H, W)
PIXELS_PER_FRAME = 4  # that the image moves
LEAST_PSNR = 18.0  # dB of a frame of the output film. Noise, which random weights make, has 22 in 4:2:0


@dataclass(frozen=True, slots=True)
class Setting:
    """A working folder, and the options of all runs."""

    folder: Path
    blocks: int
    threads: int

    def words(self, film: Path, model: Path, output: str) -> list[str | Path]:
        """The command that translates a film into one of that name."""
        options = ["--device", "cpu", "--threads", str(self.threads), "--overwrite", "--quiet"]
        return ["translate", film, "-o", self.folder / output, "-m", model, *options]


def frames(count: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Images of ``size`` (H, W), uint8 (H,W,3), through which a wider one moves."""
    height, width = size
    tiles = common.varied_images(24)
    across, down = width // 256 + 1, -(-height // 256)
    rows = [np.concatenate([tiles[(r * across + c) % len(tiles)] for c in range(across)], axis=1) for r in range(down)]
    wide = np.concatenate(rows)[:height]
    for number in range(count):
        yield np.ascontiguousarray(np.roll(wide, -PIXELS_PER_FRAME * number, axis=1)[:, :width])


def write_film(path: Path, count: int, size: tuple[int, int]) -> Path:
    """A film of :func:`frames`, 25 a second."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"crf": "20"})
        video.height, video.width = size
        video.pix_fmt = "yuv420p"
        for image in frames(count, size):
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode())
    return path


def decoded(path: Path) -> list[np.ndarray]:
    """All frames of a film, uint8 (H,W,3)."""
    with av.open(str(path)) as container:
        return [to_rgb(frame) for frame in container.decode(video=0)]


def engine_rate(engine: Engine, images: list[np.ndarray]) -> float:
    """Frames per second of the engine's stream, from memory to memory, in the batches that a film has."""
    padded = [pad(image, engine.generator.multiple) for image in images]
    size = batch_capacity(engine, best_batch_size(engine), *padded[0].shape[:2])
    batches = [np.stack(padded[first : first + size]) for first in range(0, len(padded), size)]
    start = time.perf_counter()
    for _ in engine.stream(batches):
        pass
    return len(images) / (time.perf_counter() - start)


def verify(film: Path, images: list[np.ndarray], engine: Engine) -> None:
    """RuntimeError unless a film has what the engine makes of the images, all but for its encoding."""
    made = decoded(film)
    if len(made) != len(images):
        raise RuntimeError(f"got a film of {len(made)} frames, expected {len(images)}")
    for index in (0, len(images) - 1):
        height, width = images[index].shape[:2]
        expected = engine.translate(pad(images[index], engine.generator.multiple))[:height, :width]
        if (found := metrics.psnr(made[index], expected)) < LEAST_PSNR:
            raise RuntimeError(f"frame {index} has {found:.1f} dB, expected at least {LEAST_PSNR}")


def measure_rate(setting: Setting, model: Path, count: int) -> dict[str, Any]:
    """The rates of the command line and of the engine, in alternating blocks."""
    film = write_film(setting.folder / f"{count}.mp4", count, HD)
    summary, output = setting.folder / "summary.json", setting.folder / "out.mp4"
    call = [*setting.words(film, model, output.name), "--json", summary]
    images = decoded(film)
    rates: dict[str, list[float]] = {"command_line": [], "engine": []}
    with pix2pix.load(model, device="cpu", threads=setting.threads) as engine:
        common.command_line(*call)
        verify(output, images, engine)
        for block in range(setting.blocks):
            common.command_line(*call)
            rates["command_line"].append(json.loads(summary.read_text())["images_per_second"])
            rates["engine"].append(engine_rate(engine, images))
            print(f"block {block + 1}: " + ", ".join(f"{k} {v[-1]:.2f}" for k, v in rates.items()), flush=True)
        costs = measure_costs(setting, film, images, engine)
    shares = np.array(rates["command_line"]) / rates["engine"]
    return {
        "frames": count,
        "median_frames_per_s": {name: round(float(np.median(values)), 3) for name, values in rates.items()},
        "best_frames_per_s": {name: round(max(values), 3) for name, values in rates.items()},
        "command_line_over_engine": round(float(np.median(shares)), 3),
        "processor_ms_per_frame": costs,
    }


def measure_costs(setting: Setting, film: Path, images: list[np.ndarray], engine: Engine) -> dict[str, float]:
    """Processor milliseconds per frame of the engine, and of what a run over the film does beside it."""

    def cost(work: Callable[[], object]) -> float:
        start = time.process_time()
        work()
        return round(1e3 * (time.process_time() - start) / len(images), 2)

    def decode_only() -> None:
        with av.open(str(film)) as container:
            for _ in container.decode(video=0):
                pass

    def read() -> None:
        for item in Film(film).frames():
            assert isinstance(item, Frame)
            pad(np.asarray(item.image), engine.generator.multiple)

    results = decoded(setting.folder / "out.mp4")

    def write() -> None:
        path = setting.folder / "costs.mp4"
        writer = FilmWriter(path, Encoding.of(path, None, None), Film(film), HD)
        for number, image in enumerate(results):
            writer.write(image, number * step, step)
        writer.finish()

    step = round(Fraction(1, 25) / Film(film).time_base)
    return {
        "decoding": cost(decode_only),
        "decoding_rgb_and_padding": cost(read),
        "rgb_and_encoding": cost(write),
        "engine": cost(lambda: engine_rate(engine, images)),
    }


def measure_memory(setting: Setting, count: int) -> dict[str, float]:
    """Peak MiB of runs over a tenth of ``count`` frames, and over all of them."""
    model = setting.folder / "small.safetensors"
    generator = unet(ngf=8, depth=6)
    checkpoints.write(model, generator, random_weights(generator, common.MODEL_SEED))
    peaks = {}
    for number in (count // 10, count):
        film = write_film(setting.folder / f"long-{number}.mp4", number, SMALL)
        peaks[f"{number}_frames_mib"] = peak_memory(*setting.words(film, model, "long-out.mp4"))
    return peaks


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = common.argument_parser("bench.video.films", __doc__)
    parser.add_argument("--blocks", type=int, default=3, help="runs of the command line (%(default)s)")
    parser.add_argument("--frames", type=int, default=60, help="(%(default)s)")
    parser.add_argument("--long", type=int, default=2000, help="frames in the memory run (%(default)s)")
    parser.add_argument("--threads", type=int, default=available_cores(), help="(%(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the measurements."""
    arguments = parse(argv)
    with tempfile.TemporaryDirectory() as name:
        setting = Setting(Path(name), arguments.blocks, arguments.threads)
        record: dict[str, Any] = {"size": f"{HD[1]}x{HD[0]}", "threads": arguments.threads}
        with demo.embedded() as (model, _):
            record["demo"] = measure_rate(setting, model, arguments.frames)
        large = setting.folder / "unet.safetensors"
        checkpoints.write(large, *common.model())
        record["unet"] = measure_rate(setting, large, max(2, arguments.frames // 4))
        record["memory"] = measure_memory(setting, arguments.long)
    print(json.dumps(record, indent=2))
    common.save("films", record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""A folder of photograph-like PNG files through the command line: rate, start of a process, peak memory.

    python -m bench.files.folder [--images 500] [--blocks 3] [--sizes 200]

Rate: whole processes of the command line alternate with the engine alone, from memory to memory, on the same images
with the same number of threads. Start: one image in a new process, with files in the page cache. Memory: the largest
resident set (VmHWM) of a run with batches of 8, and of a run over many image sizes. The network has ngf=64 and random
weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import pix2pix
from pix2pix.cpu.topology import available_cores
from pix2pix.engines.reference import ReferenceEngine

from .. import common
from ..checks import check_images
from ..modes import run_in_batches

BATCH = 8
ENGINE_IMAGES = 13 * BATCH  # per block: takes half as long as a run over the folder, or less
START_RUNS = 7
PEAK_MEMORY = """
import sys
from pathlib import Path
from pix2pix.cli import main
status = main(sys.argv[1:])
for line in Path("/proc/self/status").read_text().splitlines():
    if line.startswith("VmHWM:"):
        print("VmHWM", line.split()[1])
sys.exit(status)
"""


@dataclass(frozen=True, slots=True)
class Setting:
    """A working folder with ``model.safetensors`` and the PNG files ``photos/*.png``, and the options of all runs."""

    folder: Path
    threads: int
    plan: str | None

    @property
    def model(self) -> Path:
        """The model file."""
        return self.folder / "model.safetensors"

    @property
    def photos(self) -> Path:
        """The folder of PNG files."""
        return self.folder / "photos"

    def words(self, *sources: Path, output: str) -> list[str | Path]:
        """A ``translate`` command over ``sources`` into a folder of that name."""
        return ["translate", *sources, "-o", self.folder / output, "-m", self.model, "--quiet", *self._options]

    @property
    def _options(self) -> list[str]:
        plan = ["--plan", self.plan] if self.plan else []
        return ["--device", "cpu", "--threads", str(self.threads), "--batch-size", str(BATCH), *plan]


def write_photos(folder: Path, b: np.ndarray) -> float:
    """Write images (N,H,W,3) as PNG files; their mean size in kB."""
    folder.mkdir()
    for index, image in enumerate(b):
        Image.fromarray(image).save(folder / f"{index:04d}.png")
    return sum(path.stat().st_size for path in folder.iterdir()) / len(b) / 1e3


def write_sizes(folder: Path, count: int) -> None:
    """Write ``count`` images of different sizes, from 64 to 767 pixels wide and high."""
    folder.mkdir()
    image = Image.fromarray(common.images(1)[0])
    for index in range(count):
        width, height = 64 + index * 704 // count, 64 + index * 97 % 704
        image.resize((width, height)).save(folder / f"{index:04d}-{width}x{height}.png")


def verify(setting: Setting, output: str) -> None:
    """RuntimeError unless the command line's result for the first image is the oracle's."""
    generator, weights = pix2pix.checkpoints.read(setting.model)
    source = min(setting.photos.iterdir())
    with ReferenceEngine(generator, weights) as oracle:
        expected = oracle.translate(np.asarray(Image.open(source)))
    results = [path for path in (setting.folder / output).glob("*.png") if path.stem.startswith(source.stem)]
    if len(results) != 1:
        raise RuntimeError(f"expected one result for {source.name}, found {len(results)}")
    check_images("the command line", np.asarray(Image.open(results[0])), expected)


def measure_rate(setting: Setting, b: np.ndarray, blocks: int) -> dict[str, Any]:
    """The rates of the command line and of the engine, in alternating blocks."""
    summary = setting.folder / "summary.json"
    call = [*setting.words(setting.photos, output="translated"), "--overwrite", "--json", summary]
    part = b[:ENGINE_IMAGES]
    out = np.empty_like(part)
    rates: dict[str, list[float]] = {"command_line": [], "command_line_says": [], "engine": []}
    with pix2pix.load(setting.model, device="cpu", plan=setting.plan, threads=setting.threads) as engine:
        run_in_batches(engine, part[:BATCH], out[:BATCH], BATCH)
        for block in range(blocks):
            rates["command_line"].append(len(b) / common.command_line(*call))
            rates["command_line_says"].append(json.loads(summary.read_text())["images_per_second"])
            rates["engine"].append(BATCH / float(np.mean(run_in_batches(engine, part, out, BATCH))))
            print(f"block {block + 1}: " + ", ".join(f"{k} {v[-1]:.2f}" for k, v in rates.items()), flush=True)
    verify(setting, "translated")
    share = np.median(np.array(rates["command_line"]) / rates["engine"])
    return {
        "median": {name: round(float(np.median(values)), 3) for name, values in rates.items()},
        "best": {name: round(max(values), 3) for name, values in rates.items()},
        "command_line_over_engine": round(float(share), 3),
    }


def measure_start(setting: Setting) -> dict[str, float]:
    """Seconds from the start of a process to its end, with one translated image on disk."""
    call = [*setting.words(setting.photos / "0000.png", output="one"), "--overwrite", "--tune", "latency"]
    seconds = [common.command_line(*call) for _ in range(START_RUNS)]
    return {"min_s": round(min(seconds), 3), "median_s": round(float(np.median(seconds)), 3)}


def peak_memory(*arguments: str | Path) -> float:
    """The largest resident set (MiB) of a run of the command line."""
    done = subprocess.run([sys.executable, "-c", PEAK_MEMORY, *arguments], capture_output=True, text=True, check=False)
    found = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("VmHWM")]
    if done.returncode or not found:
        raise RuntimeError(f"the memory run ended with {done.returncode}: {done.stderr}")
    return round(int(found[0]) / 1024, 1)


def measure_memory(setting: Setting, sizes: int) -> dict[str, float]:
    """Peak MiB of a run with batches of 8, and of a run over ``sizes`` image sizes that are kept."""
    few, many = setting.folder / "few", setting.folder / "sizes"
    few.mkdir()
    for path in sorted(setting.photos.iterdir())[: 3 * BATCH]:
        (few / path.name).hardlink_to(path)
    write_sizes(many, sizes)
    return {
        "model_mib": round(setting.model.stat().st_size / 2**20, 1),
        "batches_of_8_mib": peak_memory(*setting.words(few, output="few-out")),
        f"{sizes}_sizes_mib": peak_memory(*setting.words(many, output="sizes-out"), "--fit", "pad"),
    }


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = common.argument_parser("bench.files.folder", __doc__)
    parser.add_argument("--images", type=int, default=500, help="(%(default)s)")
    parser.add_argument("--blocks", type=int, default=3, help="runs of the command line (%(default)s)")
    parser.add_argument("--sizes", type=int, default=200, help="image sizes in the memory run (%(default)s)")
    parser.add_argument("--plan", help="plan of the engine (the default one)")
    parser.add_argument("--threads", type=int, default=available_cores(), help="(%(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the measurements."""
    arguments = parse(argv)
    plan, threads = arguments.plan, arguments.threads
    with tempfile.TemporaryDirectory() as name:
        setting = Setting(Path(name), threads, plan)
        pix2pix.checkpoints.write(setting.model, *common.model())
        b = common.varied_images(arguments.images)
        png_kb = round(write_photos(setting.photos, b), 1)
        record = {"images": arguments.images, "batch": BATCH, "threads": threads, "plan": plan}
        record["rate"] = {"png_kb": png_kb, **measure_rate(setting, b, arguments.blocks)}
        record["start"] = measure_start(setting)
        record["memory"] = measure_memory(setting, arguments.sizes)
    print(json.dumps({key: record[key] for key in ("rate", "start", "memory")}, indent=2))
    common.save(f"folder-{plan}" if plan else "folder", record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

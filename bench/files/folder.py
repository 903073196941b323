"""What a user sees: a folder of photograph-like PNG files through the command line, its start, and its memory.

    python -m bench.files.folder [--images 500] [--blocks 3] [--sizes 200]

Rate: whole runs of the command line, from process start to process end, alternate with the engine alone from memory
to memory, on the same pictures with the same threads. Start: one picture, a new process, files in the page cache.
Memory: the most that a run ever held (VmHWM), with batches of 8 and over many picture sizes. The network is ngf=64.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import pix2pix
from pix2pix.cpu.topology import available_cores
from pix2pix.engines.reference import ReferenceEngine
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights

from .. import common
from ..checks import check_images
from ..modes import run_in_batches

BATCH = 8
ENGINE_IMAGES = 13 * BATCH  # per block: half as long as a run over the folder, or less
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


def write_pictures(folder: Path, pictures: np.ndarray) -> float:
    """Write pictures (N,H,W,3) as PNG files; their mean size in kB."""
    folder.mkdir()
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{index:04d}.png")
    return sum(path.stat().st_size for path in folder.iterdir()) / len(pictures) / 1e3


def write_sizes(folder: Path, count: int) -> None:
    """Write ``count`` pictures of as many different sizes, from 64 to 767 pixels wide and high."""
    folder.mkdir()
    picture = Image.fromarray(common.images(1)[0])
    for index in range(count):
        width, height = 64 + index * 704 // count, 64 + index * 97 % 704
        picture.resize((width, height)).save(folder / f"{index:04d}-{width}x{height}.png")


def verify(model: Path, source: Path, target: Path) -> None:
    """RuntimeError unless the command line made of the first picture what the oracle makes of it."""
    generator, weights = pix2pix.checkpoints.read(model)
    name = min(path.name for path in source.iterdir())
    with ReferenceEngine(generator, weights) as oracle:
        expected = oracle.translate(np.asarray(Image.open(source / name)))
    results = [path for path in target.glob("*.png") if path.stem.startswith(Path(name).stem)]
    if len(results) != 1:
        raise RuntimeError(f"expected one result for {name}, found {len(results)}")
    check_images("the command line", np.asarray(Image.open(results[0])), expected)


def measure_rate(folder: Path, model: Path, pictures: np.ndarray, arguments: argparse.Namespace) -> dict:
    """The command line's rates beside the engine's, in alternating blocks."""
    source, target, summary = folder / "photos", folder / "translated", folder / "summary.json"
    size = write_pictures(source, pictures)
    options = ["--threads", str(arguments.threads), "--batch-size", str(BATCH), "--device", "cpu"]
    if arguments.plan:
        options += ["--plan", arguments.plan]
    call = ["translate", source, "-o", target, "-m", model, "--overwrite", "--quiet", "--json", summary, *options]
    b = pictures[:ENGINE_IMAGES]
    out = np.empty_like(b)
    rates: dict[str, list[float]] = {"command_line": [], "command_line_says": [], "engine": []}
    with pix2pix.load(model, device="cpu", plan=arguments.plan, threads=arguments.threads) as engine:
        run_in_batches(engine, b[:BATCH], out[:BATCH], BATCH)
        for block in range(arguments.blocks):
            seconds = common.command_line(*call)
            rates["command_line"].append(len(pictures) / seconds)
            rates["command_line_says"].append(json.loads(summary.read_text())["images_per_second"])
            rates["engine"].append(BATCH / float(np.mean(run_in_batches(engine, b, out, BATCH))))
            print(f"block {block + 1}: " + ", ".join(f"{k} {v[-1]:.2f}" for k, v in rates.items()), flush=True)
    verify(model, source, target)
    median = {name: round(float(np.median(values)), 3) for name, values in rates.items()}
    share = np.median(np.array(rates["command_line"]) / rates["engine"])
    best = {name: round(max(values), 3) for name, values in rates.items()}
    return {
        "png_kb": round(size, 1),
        "median": median,
        "best": best,
        "command_line_over_engine": round(float(share), 3),
    }


def measure_start(folder: Path, model: Path, threads: int) -> dict[str, float]:
    """Seconds from starting a process to one translated picture on disk, over START_RUNS runs."""
    picture, target = folder / "photos" / "0000.png", folder / "one"
    call = ["translate", picture, "-o", target, "-m", model, "--overwrite", "--quiet", "--threads", str(threads)]
    seconds = [common.command_line(*call, "--tune", "latency") for _ in range(START_RUNS)]
    return {"min_s": round(min(seconds), 3), "median_s": round(float(np.median(seconds)), 3)}


def peak_memory(*arguments: str | Path) -> float:
    """The most memory (MiB) that a run of the command line ever held, as it says itself at its end."""
    done = subprocess.run([sys.executable, "-c", PEAK_MEMORY, *arguments], capture_output=True, text=True, check=False)
    found = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("VmHWM")]
    if done.returncode or not found:
        raise RuntimeError(f"the memory run ended with {done.returncode}: {done.stderr}")
    return round(int(found[0]) / 1024, 1)


def measure_memory(folder: Path, model: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Peak MiB of a run with batches of 8, and of one over many sizes that keeps every picture's own."""
    few = folder / "few"
    few.mkdir()
    for path in sorted((folder / "photos").iterdir())[: 3 * BATCH]:
        (few / path.name).hardlink_to(path)
    write_sizes(folder / "sizes", arguments.sizes)
    common_options = ["-m", model, "--quiet", "--threads", str(arguments.threads), "--batch-size", str(BATCH)]
    return {
        "model_mib": round(model.stat().st_size / 2**20, 1),
        "batches_of_8_mib": peak_memory("translate", few, "-o", folder / "few-out", *common_options),
        f"{arguments.sizes}_sizes_mib": peak_memory(
            "translate", folder / "sizes", "-o", folder / "sizes-out", "--fit", "pad", *common_options
        ),
    }


def main(argv: list[str] | None = None) -> int:
    """Run the measurements."""
    parser = common.argument_parser("bench.files.folder", __doc__)
    parser.add_argument("--images", type=int, default=500, help="(%(default)s)")
    parser.add_argument("--blocks", type=int, default=3, help="runs of the command line (%(default)s)")
    parser.add_argument("--sizes", type=int, default=200, help="picture sizes in the memory run (%(default)s)")
    parser.add_argument("--plan", help="plan of the engine, for the rates (the default one)")
    parser.add_argument("--threads", type=int, default=available_cores(), help="(%(default)s)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model.safetensors"
        generator = unet(ngf=64, depth=8)
        pix2pix.checkpoints.write(model, generator, random_weights(generator))
        pictures = common.varied_images(arguments.images)
        record = {"images": arguments.images, "batch": BATCH, "threads": arguments.threads, "plan": arguments.plan}
        record["rate"] = measure_rate(folder, model, pictures, arguments)
        record["start"] = measure_start(folder, model, arguments.threads)
        record["memory"] = measure_memory(folder, model, arguments)
    print(json.dumps({key: record[key] for key in ("rate", "start", "memory")}, indent=2))
    common.save(f"folder-{arguments.plan}" if arguments.plan else "folder", record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""What :mod:`.gpu` has measured, as Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .tables import distance, markdown

OURS = "pix2pix"


def run_table(run: Mapping[str, Any]) -> str:
    """One number of pictures: a contender per line, then what takes copies too."""
    head = ["engine", "images/s", "best", "ms", "GFLOP/s", "of FMA peak", f"{OURS} / this", "off the oracle"]
    rows = []
    for name, entry in run["engines"].items():
        speed = [f"{entry[key]:.1f}" for key in ("median_images_per_s", "min_images_per_s")]
        milliseconds = entry["median_ms_per_image"] * run["n"]
        share = f"{entry['median_fraction_of_peak']:.0%}"
        work = [f"{milliseconds:.3f}", f"{entry['median_gflops']:.0f}", share]
        rows.append([name, *speed, *work, entry.get("ours_over_this"), distance(entry)])
    for name, entry in run["host"].items():
        speed = [f"{entry[key]:.1f}" for key in ("median_images_per_s", "best_images_per_s")]
        rows.append([f"{OURS}, {name}", *speed, f"{entry['median_ms']:.3f}", *[None] * 4])
    return f"### N={run['n']}\n\n{markdown(head, rows)}\n"


def kernel_table(rows: Sequence[Mapping[str, Any]], peak: Mapping[str, float]) -> str:
    """One line per kernel of a layer."""
    head = ["layer, kernel", "microseconds", "launches", "GFLOP/s", "of FMA peak", "GB/s", "of copying", "algorithm"]
    lines = []
    for row in rows:
        line: list[Any] = [f"{row['layer']}, {row['kernel']}", row["us"], row["launches"]]
        for value, most in (("gflops", "fma_gflops"), ("gbs", "bandwidth_gbs")):
            line += [row[value], None if row[value] is None else f"{row[value] / peak[most]:.0%}"]
        lines.append([*line, row["algorithm"]])
    lines.append(["sum", round(sum(row["us"] for row in rows), 1), sum(row["launches"] for row in rows), *[None] * 5])
    return markdown(head, lines)


def write(json_path: Path) -> Path:
    """Write the tables of a gpu.json beside it."""
    record = json.loads(json_path.read_text(encoding="utf-8"))
    gpu, peak, line = record["gpu"], record["peak"], record["command_line"]
    parts = [
        "# One GPU, and PyTorch on the same",
        f"Commit {record['commit']}, on {gpu['name']} (driver {gpu['driver']}): {record['engine']}. Peak: "
        f"{peak['fma_gflops']:.0f} GFLOP/s, {peak['bandwidth_gbs']:.0f} GB/s. "
        "Made by `python -m bench.gpu`; bench/README.md has the rules.",
        *(f"{name} was skipped: {why}" for name, why in record["unavailable"].items()),
        "## The whole network",
        *(run_table(run).rstrip() for run in record["runs"]),
        f"`pix2pix translate` over {line['images']} raw pictures: {line['images_per_s']:.0f} images/s from the start "
        f"of a process to its end, {line['says_images_per_s']:.0f} by its own count.",
        *(f"## Kernels, N={n}\n\n{kernel_table(rows, peak)}" for n, rows in record["kernels"].items()),
    ]
    path = json_path.with_suffix(".md")
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path

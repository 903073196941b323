"""Markdown tables of the results of :mod:`.peers`, :mod:`.layers` and :mod:`.quality`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .. import common, real_models
from ..common import markdown
from ..peers.tables import OURS, block_ratio, distance, fastest

WAYS = ("resident", "stream", "translate")


def ratio_rows(runs: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
    """Our rates and their ratios to the best peer of the same precision, for every batch size and way."""
    rows: list[list[Any]] = []
    for run in runs:
        engines = run["engines"]
        for name in engines:
            if name.startswith(OURS):
                row = [f"N={run['n']}, {engines[name]['precision']}"]
                for way in WAYS:
                    peer = fastest(engines, engines[name]["precision"], way)
                    ratio = block_ratio(engines[name][way], engines[peer][way]) if peer else None
                    row += [f"{engines[name][way]['median_images_per_s']:.0f}", ratio, peer]
                rows.append(row)
    return rows


def target_rows(runs: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
    """(what, measured, required, goal) of the targets that were measured."""
    engines = {run["n"]: run["engines"] for run in runs}
    rows: list[list[Any]] = []
    for precision, goal, images in (("float16", 1.3, 30000), ("tf32", 1.2, 14000)):
        if ours := engines.get(64, {}).get(f"{OURS}-{precision}"):
            what, resident = f"{precision}, N=64", ours["resident"]
            if peer := fastest(engines[64], precision, "resident"):
                ratio = block_ratio(resident, engines[64][peer]["resident"])
                rows.append([f"{what}, resident, against {peer}", ratio, 1.0, goal])
            rows.append([f"{what}, resident, images/s", resident["median_images_per_s"], None, images])
            share = ours["stream"]["median_images_per_s"] / resident["median_images_per_s"]
            rows.append([f"{what}, stream as a share of resident", round(share, 3), 0.9, 0.95])
    if ours := engines.get(1, {}).get(f"{OURS}-float16"):
        rows.append(["float16, N=1, host to host, ms", ours["translate"]["median_ms_per_image"], 0.8, 0.35])
        if peer := fastest(engines[1], "float16", "translate"):
            theirs = engines[1][peer]["translate"]["median_ms_per_image"]
            rows.append([f"the same of {peer}, for comparison", theirs, None, None])
    return rows


def run_table(run: Mapping[str, Any]) -> str:
    """One batch size: a contender per line."""
    head = ["engine", "resident, images/s", "best", "ms", "TFLOP/s", "of cuBLAS", "stream, images/s"]
    head += ["translate, images/s", "translate, ms", "off the oracle", "settings"]
    rows = []
    for name, entry in run["engines"].items():
        resident, stream, translate = (entry[way] for way in WAYS)
        speed = [f"{resident[key]:.1f}" for key in ("median_images_per_s", "min_images_per_s")]
        work = [f"{resident['median_gflops'] / 1e3:.1f}", f"{resident['median_fraction_of_peak']:.1%}"]
        host = [f"{way['median_images_per_s']:.1f}" for way in (stream, translate)]
        times = [f"{1e3 * run['n'] / way['median_images_per_s']:.3f}" for way in (resident, translate)]
        rows.append([name, *speed, times[0], *work, *host, times[1], distance(entry), entry["settings"]])
    return f"### N={run['n']}\n\n{markdown(head, rows)}\n"


def layer_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per layer: its time, and its rate beside the roof."""
    head = ["layer", "microseconds", "TFLOP/s", "of cuBLAS", "of the roof", "GB/s", "FLOP/byte", "algorithm"]
    lines: list[list[Any]] = []
    for row in rows:
        line = [row["layer"], row["us"]]
        if row["gflops"]:
            line += [f"{row['gflops'] / 1e3:.2f}", f"{row['of_cublas']:.0%}", f"{row['of_roof']:.0%}"]
            line += [f"{row['gbs']:.0f}", row["flops_per_byte"], row["algorithm"]]
        else:
            line += [None] * 6
        lines.append(line)
    lines.append(["sum", round(sum(row["us"] for row in rows), 1), *[None] * 6])
    return markdown(head, lines)


def kernel_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per kernel of a layer."""
    lines = [[f"{row['layer']}, {row['kernel']}", row["us"], row["launches"]] for row in rows]
    return markdown(["layer, kernel", "microseconds", "launches"], lines)


def where(record: Mapping[str, Any]) -> str:
    """The commit, GPU and engine of a record."""
    gpu = record["gpu"]
    return f"Commit {record['commit']}, {gpu['name']} (driver {gpu['driver']}), {record['engine']}."


def peaks(record: Mapping[str, Any]) -> str:
    """The measured peaks of that GPU."""
    peak = record["peak"]
    products = ", ".join(f"{p} {gflops / 1e3:.1f}" for p, gflops in peak["cublas_gflops"].items())
    return (
        f"Measured peaks: cuBLAS {products} TFLOP/s; multiply-adds in registers {peak['fma_gflops'] / 1e3:.1f} TFLOP/s "
        f"(float32); copying {peak['bandwidth_gbs']:.0f} GB/s."
    )


def joined(runs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One run for each batch size, by size: precisions may have been measured apart."""
    engines: dict[int, dict[str, Any]] = {}
    for run in runs:
        engines.setdefault(run["n"], {}).update(run["engines"])
    return [{"n": n, "engines": engines[n]} for n in sorted(engines)]


def comparison_parts(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The sections on the whole network."""
    runs = joined(run for record in records for run in record["runs"])
    head = ["", *(cell for way in WAYS for cell in (f"{way}, images/s", f"{OURS} / best peer", "which is"))]
    parts = ["## Targets", markdown(["what", "measured", "required", "goal"], target_rows(runs))]
    parts += ["## Beside the best of PyTorch", markdown(head, ratio_rows(runs)), "## The whole network"]
    parts += [run_table(run).rstrip() for run in runs]
    for record in records:
        sizes = ", ".join(str(run["n"]) for run in record["runs"])
        precisions = ", ".join(record["peak"]["cublas_gflops"])
        parts.append(f"N={sizes}, {precisions}: {where(record)} {peaks(record)}")
        parts += [f"{name}: left out: {why}" for name, why in record["unavailable"].items()]
        for precision, line in record.get("command_line", {}).items():
            parts.append(
                f"`pix2pix translate --precision {precision}` over {line['images']} raw images: "
                f"{line['images_per_s']:.0f} images/s from the start of a process to its end, "
                f"{line['says_images_per_s']:.0f} by its own count."
            )
    return parts


def layer_parts(record: Mapping[str, Any]) -> list[str]:
    """The sections on layers and kernels."""
    parts = ["## Layers", f"{where(record)} {peaks(record)}"]
    for entry in record["runs"]:
        parts.append(f"### {entry['precision']}, N={entry['n']}\n\n{layer_table(entry['layers'])}")
        parts.append(kernel_table(entry["kernels"]))
    return parts


def quality_part(record: Mapping[str, Any]) -> str:
    """PSNR on real weights."""
    rows = [
        real_models.table_row(f"{name}, {precision}", entry)
        for name, entries in record["models"].items()
        for precision, entry in entries.items()
    ]
    head = ["model, precision", *real_models.COLUMNS.values()]
    return f"## Quality on real weights\n\n{where(record)}\n\n{markdown(head, rows)}"


def comparisons() -> list[dict[str, Any]]:
    """The records of :mod:`.peers`: gpu-1.json and the like."""
    return [common.read(path.stem) for path in sorted(common.RESULTS.glob("gpu-[0-9]*.json"))]


def write() -> None:
    """Write gpu.md from gpu-1.json and the like, gpu-layers.json and gpu-quality.json."""
    parts = ["# One GPU, and PyTorch on the same", "Made by ci/gpu.sh; bench/README.md has the rules."]
    if records := comparisons():
        parts += comparison_parts(records)
    if (common.RESULTS / "gpu-layers.json").exists():
        parts += layer_parts(common.read("gpu-layers"))
    if (common.RESULTS / "gpu-quality.json").exists():
        parts.append(quality_part(common.read("gpu-quality")))
    (common.RESULTS / "gpu.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print("wrote gpu.md")

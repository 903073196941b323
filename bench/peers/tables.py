"""Ratios and Markdown tables of the results of ``python -m bench.peers``.

A ratio of two engines is the median over blocks of the ratio of their rates within a block: a machine that is slow for
a while slows both sides.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import real_models
from ..common import markdown
from ..networks import UNET

OURS, OURS_BFLOAT16, OURS_INT8, SINGLE = "pix2pix", "pix2pix-bfloat16", "pix2pix-int8", "pix2pix-1-thread"
AGAINST_FLOAT32 = "float32 against the fastest float32 peer"
AGAINST_BFLOAT16 = "bfloat16 against the fastest bfloat16 peer"
LOWER_AGAINST_FLOAT32 = "bfloat16 against the fastest float32 peer"
INT8 = "int8 against the fastest int8 peer"
THREADS = "{} threads against 1"
GOALS = {  # of each network, by N: the required ratio, and the goal
    UNET: {
        AGAINST_FLOAT32: {1: (1.7, 2.1), 8: (2.1, 2.4)},
        AGAINST_BFLOAT16: {1: (2.6, 3.2), 8: (2.5, 2.9)},
        LOWER_AGAINST_FLOAT32: {1: (3.0, 3.5), 8: (3.2, 3.8)},
        INT8: {1: (1.1, 1.4), 8: (1.25, 1.6)},
        THREADS.format(2): {1: (1.8, 1.9), 8: (1.9, 1.95)},
    },
    "resnet_9blocks": {
        AGAINST_FLOAT32: {1: (1.9, 2.5), 4: (2.0, 2.6)},
        AGAINST_BFLOAT16: {1: (1.5, 2.2), 4: (1.7, 2.4)},
    },
    "pix2pixhd": {AGAINST_FLOAT32: {1: (1.8, 2.4)}},
}

Engines = Mapping[str, Mapping[str, Any]]


def block_ratio(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """How many times as fast one engine is as the other."""
    blocks = np.array(ours["block_images_per_s"]) / theirs["block_images_per_s"]
    return round(float(np.median(blocks)), 3)


def fastest(engines: Engines, precision: str, way: str = "") -> str | None:
    """The peer of that precision with the best median, of the whole entry or of one way in it; None without peers."""
    peers = [key for key, e in engines.items() if e["precision"] == precision and not key.startswith(OURS)]
    rates = {key: (engines[key][way] if way else engines[key])["median_images_per_s"] for key in peers}
    return max(rates, key=rates.__getitem__, default=None)


def ratios(runs: Iterable[Mapping[str, Any]], network: str) -> list[dict[str, Any]]:
    """The ratios that matter, and the network's goals, from runs with all threads in which both engines took part."""
    runs = list(runs)
    most = max(run["threads"] for run in runs)
    rows = []
    for run in runs:
        engines = run["engines"]
        pairs = [
            (AGAINST_FLOAT32, OURS, fastest(engines, "float32")),
            (AGAINST_BFLOAT16, OURS_BFLOAT16, fastest(engines, "bfloat16")),
            (LOWER_AGAINST_FLOAT32, OURS_BFLOAT16, fastest(engines, "float32")),
            (INT8, OURS_INT8, fastest(engines, "int8")),
            (THREADS.format(most), OURS, SINGLE),
        ]
        for what, ours, theirs in pairs:
            if run["threads"] == most and ours in engines and theirs in engines:
                required, goal = GOALS.get(network, {}).get(what, {}).get(run["n"], (None, None))
                row = {"what": what, "n": run["n"], "against": theirs}
                row["ratio"] = block_ratio(engines[ours], engines[theirs])
                rows.append(row | {"required": required, "goal": goal})
    order = {what: place for place, what in enumerate(GOALS[UNET])}
    return sorted(rows, key=lambda row: (order.get(row["what"], len(order)), row["n"]))


def memory(runs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Peak memory (MiB) of this project's engines beside the fastest peer of the same precision, with all threads."""
    runs = list(runs)
    most = max(run["threads"] for run in runs)
    rows = []
    for run in (run for run in runs if run["threads"] == most):
        engines = run["engines"]
        for ours, precision in ((OURS, "float32"), (OURS_BFLOAT16, "bfloat16"), (OURS_INT8, "int8")):
            peer = fastest(engines, precision)
            if ours in engines and peer:
                row = {"engine": ours, "n": run["n"], "mib": engines[ours]["peak_memory_mib"], "against": peer}
                rows.append(row | {"their_mib": engines[peer]["peak_memory_mib"]})
    return rows


def distance(off: Mapping[str, float]) -> str:
    """The distance of an output from the oracle's, formatted."""
    return f"{off['max_abs_error']:.1e}" if "max_abs_error" in off else f"{off['psnr_db']:.1f} dB"


def details(run: Mapping[str, Any]) -> str:
    """One run: an engine per line."""
    rows = []
    for key, entry in run["engines"].items():
        share = entry.get("of_reference")
        rows.append(
            (
                key,
                f"{entry['median_images_per_s']:.3g}",
                f"{entry['min_images_per_s']:.3g}",
                f"{entry['median_gflops']:.0f}",
                f"{entry['median_fraction_of_peak']:.0%}",
                entry.get("ours_over_this"),
                entry.get("ours_bfloat16_over_this"),
                distance(entry),
                None if share is None else f"{share:.0%}",
            )
        )
    head = ["engine", "images/s", "best", "GFLOP/s", "of FMA peak", f"{OURS} / this", f"{OURS_BFLOAT16} / this"]
    title = f"### N={run['n']}, threads: {run['threads']}, peak {run['peak']['fma_gflops']:.0f} GFLOP/s"
    return f"{title}\n\n{markdown([*head, 'off the oracle', 'of reference'], rows)}\n"


def ratio_table(record: Mapping[str, Any]) -> str:
    """The ratios that matter."""
    rows = [(r["what"], r["n"], r["against"], r["ratio"], r["required"], r["goal"]) for r in record["ratios"]]
    return markdown(["ratio", "N", "against", "measured", "required", "goal"], rows)


def memory_table(record: Mapping[str, Any]) -> str:
    """Peak memory beside the fastest peer's."""
    rows = [(r["engine"], r["n"], r["mib"], r["against"], r["their_mib"]) for r in record["memory"]]
    return markdown(["engine", "N", "peak MiB", "fastest peer of its precision", "its peak MiB"], rows)


def throughput_table(record: Mapping[str, Any]) -> str:
    """Images/s (median) of all engines in all runs."""
    runs = record["runs"]
    keys = list(dict.fromkeys(key for run in runs for key in run["engines"] if key != SINGLE))
    slowest = min(entry["median_images_per_s"] for run in runs for entry in run["engines"].values())
    digits = 1 if slowest >= 1 else 3
    rows = []
    for key in keys:
        entries = [run["engines"].get(key) for run in runs]
        rows.append([key, *(f"{entry['median_images_per_s']:.{digits}f}" if entry else None for entry in entries)])
    return markdown(["images/s", *(f"N={run['n']}, threads: {run['threads']}" for run in runs)], rows)


def cost_table(record: Mapping[str, Any]) -> str:
    """Cold starts, and peak memory in the runs with all threads."""
    runs = [run for run in record["runs"] if run["threads"] == record["runs"][0]["threads"]]
    rows = []
    for key, seconds in record["cold_start"].items():
        entries = [run["engines"].get(key) for run in runs]
        rows.append(
            [key, f"{seconds['median_s']:.2f}", *(f"{e['peak_memory_mib']:.0f}" if e else None for e in entries)]
        )
    return markdown(["engine", "cold start, s", *(f"peak MiB, N={run['n']}" for run in runs)], rows)


def quality_table(entries: Mapping[str, Mapping[str, float]]) -> str:
    """PSNR and SSIM on real weights, an engine per line."""
    rows = [real_models.table_row(engine, entry) for engine, entry in entries.items()]
    return markdown(["engine", *real_models.COLUMNS.values()], rows)


def write(json_path: Path) -> Path:
    """Write the tables of a peers.json beside it."""
    record = json.loads(json_path.read_text(encoding="utf-8"))
    hardware, (height, width) = record["hardware"], record["size"]
    parts = [
        f"# This engine and its peers: {record['network']}, {width}x{height}",
        f"Random weights, {record['gflop_per_image']} GFLOP per image. Commit {record['commit']}, on "
        f"{hardware['usable_cpus']} cores of {hardware['processor']}. Plan: {record['plan'] or 'the default'}. "
        f"Made by `python -m bench.peers --network {record['network']} --size {width}x{height}`; bench/README.md has "
        f"the rules.",
        *([f"**VOID**: {', '.join(record['void'])}"] if record["void"] else []),
        *(f"{name} was skipped: {why}" for name, why in record["unavailable"].items()),
        "## Ratios\n\n" + ratio_table(record),
        "## Throughput\n\n" + throughput_table(record),
        "## Start and memory\n\n" + cost_table(record),
        memory_table(record),
        *(["## Quality on real weights\n\n" + quality_table(record["quality"])] if record["quality"] else []),
        "## Every run",
        *(details(run).rstrip() for run in record["runs"]),
    ]
    path = json_path.with_suffix(".md")
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path

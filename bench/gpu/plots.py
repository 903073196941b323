"""Plots of results on a GPU: gpu-throughput.svg from gpu-*.json, gpu-roofline.svg from gpu-layers.json.

    python -m bench.gpu.plots

Throughput: images/s over batches in the GPU's memory, by batch size, of this project and of the best of PyTorch in each
precision. Roofline: TFLOP/s by layer, beside its roof. Without results, nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import common
from ..peers.tables import OURS, fastest
from ..plots import plt, write
from . import tables

COLOURS = {"float32": "#7f8c9b", "tf32": "#5a9367", "float16": "#1f6fb4", "bfloat16": "#e08a1e"}


def throughput(runs: Sequence[Mapping[str, Any]]) -> Any:
    """A line for each precision of ours, and a dashed one for its best peer, over the batch size."""
    figure, panel = plt.subplots(figsize=(7, 4.5))
    for precision, colour in COLOURS.items():
        ours: dict[int, float] = {}
        peers: dict[int, float] = {}
        for run in sorted(runs, key=lambda run: run["n"]):
            engines, peer = run["engines"], fastest(run["engines"], precision, "resident")
            for points, name in ((ours, f"{OURS}-{precision}"), (peers, peer)):
                if name in engines:
                    points[run["n"]] = engines[name]["resident"]["median_images_per_s"]
        for points, style, who in ((ours, "-", OURS), (peers, "--", "PyTorch at its best")):
            if points:
                panel.plot(
                    list(points), list(points.values()), style, marker="o", color=colour, label=f"{who}, {precision}"
                )
    panel.set(xscale="log", ylim=(0, None), xlabel="images per batch", ylabel="images/s, in the GPU's memory")
    numbers = sorted({run["n"] for run in runs})
    panel.set_xticks(numbers, [str(n) for n in numbers], minor=False)
    panel.minorticks_off()
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def roofline(runs: Sequence[Mapping[str, Any]]) -> Any:
    """A panel for each precision and batch size: bars by layer under their roofs."""
    figure, panels = plt.subplots(len(runs), 1, figsize=(10, 3 * len(runs)), squeeze=False)
    for panel, run in zip(panels[:, 0], runs, strict=True):
        rows = [row for row in run["layers"] if row["gflops"]]
        names = [row["layer"].replace("coder_", "c ") for row in rows]
        panel.bar(names, [row["gflops"] / 1e3 for row in rows], color=COLOURS[run["precision"]])
        for at, row in enumerate(rows):
            label = "roof (cuBLAS or memory)" if at == 0 else None
            panel.hlines(row["roof_gflops"] / 1e3, at - 0.45, at + 0.45, color="black", label=label)
        panel.set(title=f"{run['precision']}, N={run['n']}", ylabel="TFLOP/s")
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    return figure


def main(argv: list[str] | None = None) -> int:
    """Draw the plots whose results exist."""
    common.argument_parser("bench.gpu.plots", __doc__).parse_args(argv)
    if runs := [run for record in tables.comparisons() for run in record["runs"]]:
        write("gpu-throughput", throughput(runs))
    if (common.RESULTS / "gpu-layers.json").exists():
        write("gpu-roofline", roofline(common.read("gpu-layers")["runs"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

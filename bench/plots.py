"""Plots of results on the CPU: throughput.svg from peers.json, roofline.svg from kernels.json.

    python -m bench.plots

Throughput: images/s by engine, with all threads. Roofline: GFLOP/s by layer under each plan, beside the layer's roof
(Williams, Waterman and Patterson, "Roofline", CACM 52, 2009): the lesser of the multiply-add peak and of the rate that
memory can feed if weights and maps pass once. FLOP are those of direct convolution, so Winograd can exceed the roof.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from . import common
from .peers.tables import SINGLE

PANELS = 2  # of throughput: the first batch sizes, N=1 and N=8
COLOURS = {"float32": "#7f8c9b", "bfloat16": "#b39b6e", "int8": "#9b7f94"}
OURS = {"float32": "#1f6fb4", "bfloat16": "#e08a1e", "int8": "#a0458d"}
PLAN_COLOURS = ("#9ab7d3", "#1f6fb4", "#e08a1e")
plt.rcParams |= {"svg.hashsalt": "pix2pix", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}


def write(name: str, figure: Any) -> Path:
    """Write bench/results/NAME.svg: the same bytes for the same numbers."""
    path = common.RESULTS / f"{name}.svg"
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    print(f"wrote {path.name}")
    return path


def throughput(record: dict[str, Any]) -> Any:
    """Horizontal bars, one panel per batch size; float32 on top, each precision sorted by rate."""
    most = max(run["threads"] for run in record["runs"])
    runs = [run for run in record["runs"] if run["threads"] == most][:PANELS]
    figure, panels = plt.subplots(1, len(runs), figsize=(5 * len(runs), 3.8), sharey=True, squeeze=False)
    engines = {key: e for key, e in runs[-1]["engines"].items() if key != SINGLE}
    precisions = list(COLOURS)
    keys = sorted(
        engines, key=lambda k: (-precisions.index(engines[k]["precision"]), engines[k]["median_images_per_s"])
    )
    for panel, run in zip(panels[0], runs, strict=True):
        values = [run["engines"][key]["median_images_per_s"] for key in keys]
        colours = [(OURS if key.startswith("pix2pix") else COLOURS)[engines[key]["precision"]] for key in keys]
        bars = panel.barh(keys, values, color=colours)
        panel.bar_label(bars, [f"{value:.1f}" for value in values], padding=2)
        panel.set(title=f"N={run['n']}, threads: {most}", xlabel="images/s", xlim=(0, 1.12 * max(values)))
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def roofline(record: dict[str, Any]) -> Any:
    """Bars by layer and plan, with the roof of each layer; one panel per batch size."""
    batches = record["batches"]
    figure, panels = plt.subplots(len(batches), 1, figsize=(10, 3.4 * len(batches)), squeeze=False)
    for panel, (n, plans) in zip(panels[:, 0], batches.items(), strict=True):
        width = 0.8 / len(plans)
        first = next(iter(plans.values()))
        layers, peak = list(first["layers"]), first["peak"]
        for index, (plan, measured) in enumerate(plans.items()):
            at = [i - 0.4 + (index + 0.5) * width for i in range(len(layers))]
            values = [measured["layers"][name]["median_gflops"] for name in layers]
            panel.bar(at, values, width, color=PLAN_COLOURS[index], label=f"plan: {plan}")
        for i, name in enumerate(layers):
            roof = min(peak["fma_gflops"], first["layers"][name]["flops_per_byte"] * peak["bandwidth_gbs"])
            panel.hlines(roof, i - 0.45, i + 0.45, color="black", label="roof (FMA peak or memory)" if i == 0 else None)
        panel.set_xticks(range(len(layers)), [name.replace("coder_", "c ") for name in layers])
        panel.set(title=f"N={n}, threads: {record['threads']}", ylabel="GFLOP/s, counted as direct")
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, loc="upper center")
    figure.tight_layout()
    return figure


def main(argv: list[str] | None = None) -> int:
    """Draw both plots."""
    common.argument_parser("bench.plots", __doc__).parse_args(argv)
    write("throughput", throughput(common.read("peers")))
    write("roofline", roofline(common.read("kernels")))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Modes A to D in one table, from what has been measured: results/mode_*.json.

    python -m bench.report

Prints it, and writes results/modes.md. What has not been measured says why.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from .common import RESULTS

MODES = {"A": "CPU", "B": "CPU and one GPU", "C": "four GPUs", "D": "four nodes of four GPUs"}
HEAD = ("mode", "hardware", "setting", "from memory to memory", "command line", "measured on")
COURSE_A = "the course, CPU only"


def rows(mode: str) -> Iterator[tuple[str, ...]]:
    """The table's rows for a mode: images/s of ours, of the course, and of ranks on CPUs."""
    path = RESULTS / f"mode_{mode.lower()}.json"
    if not path.exists():
        yield mode, MODES[mode], "", f"not measured: no {path.name}", "", ""
        return
    record = json.loads(path.read_text(encoding="utf-8"))
    machine = f"{record['hardware']['processor']}, {record['commit']}"
    gpu = record.get("gpu", {}).get("name", "")
    course = record["course_images_per_s"]
    course = course if isinstance(course, dict) else {COURSE_A: course}
    for who, rate in course.items():
        yield mode, MODES[mode], who, f"{rate:.1f}", "", "its own machine"
    settings = {f"{record['threads']} threads": record} if mode == "A" else record["settings"]
    for title, entry in settings.items():
        yield mode, MODES[mode], title, *rates(entry), ", ".join(filter(None, (gpu, machine)))
    if record.get("not_measured"):
        yield mode, MODES[mode], "", f"not measured: {record['not_measured']}", "", ""
    for title, entry in record.get("cpu_ranks", {}).items():
        yield mode, "CPU", f"{title} (sharing costs {entry['sharing_costs']:.1%})", *rates(entry), machine


def rates(entry: dict[str, Any]) -> tuple[str, str]:
    """Images/s in the course's way of counting, and from the start of the process to its end."""
    memory, command_line = (f"{entry[way]['images_per_s']:.1f}" for way in ("memory", "command_line"))
    return memory, command_line


def table() -> str:
    """All modes as Markdown."""
    lines = [HEAD, ("---", "---", "---", "---:", "---:", "---"), *(row for mode in MODES for row in rows(mode))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Print and write the table."""
    argparse.ArgumentParser(prog="python -m bench.report", description=(__doc__ or "").split("\n\n")[0]).parse_args(
        argv
    )
    text = table()
    print(text, end="")
    head = "Images per second: 256 x 256, ngf=64, random weights, raw frames in and out. See ../README.md.\n\n"
    (RESULTS / "modes.md").write_text(head + text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

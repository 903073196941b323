"""Modes A to D in one table, from results/mode_*.json.

    python -m bench.report

Prints it and writes results/modes.md. A row for a mode that was not measured says why.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from . import common

MODES = {"A": "CPU", "B": "CPU and one GPU", "C": "four GPUs", "D": "four nodes of four GPUs"}
HEAD = ("mode", "hardware", "setting", "from memory to memory", "command line", "measured on")
COURSE_A = "the course, CPU only"


def rows(mode: str) -> Iterator[tuple[str, ...]]:
    """The table's rows for a mode: images/s of the course's programs, of this package, and of MPI ranks on CPUs."""
    name = f"mode_{mode.lower()}"
    if not (common.RESULTS / f"{name}.json").exists():
        yield mode, MODES[mode], "", f"not measured: no {name}.json", "", ""
        return
    record = common.read(name)
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
    """Images/s from memory to memory, and of the whole command line."""
    memory, command_line = (f"{entry[way]['images_per_s']:.1f}" for way in ("memory", "command_line"))
    return memory, command_line


def table() -> str:
    """All modes as Markdown."""
    lines = [HEAD, ("---", "---", "---", "---:", "---:", "---"), *(row for mode in MODES for row in rows(mode))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Print and write the table."""
    common.argument_parser("bench.report", __doc__).parse_args(argv)
    text = table()
    print(text, end="")
    head = "Images per second: 256 x 256, ngf=64, random weights, raw frames in and out. See ../README.md.\n\n"
    (common.RESULTS / "modes.md").write_text(head + text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

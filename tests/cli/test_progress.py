"""How a run is told while it goes."""

from __future__ import annotations

import sys

from pix2pix.cli import progress
from pix2pix.cli.progress import Progress


def test_a_terminal_gets_a_bar():
    class Terminal(list):
        write, flush, isatty = list.append, staticmethod(lambda: None), staticmethod(lambda: True)

    terminal = Terminal()
    with Progress(terminal) as told:
        told.started(10)
        told.progressed(4)
        told.message("failed: x.png: damaged")
    printed = "".join(terminal)
    assert "4/10" in printed and "failed: x.png: damaged\n" in printed


def test_a_log_gets_a_line_every_few_seconds(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with Progress(sys.stderr) as told:
        told.started(10)
        told.progressed(4)
    assert capsys.readouterr().err.startswith("4/10 images, ")

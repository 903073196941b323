"""Modes B and C without their GPUs, and the table of all modes."""

from __future__ import annotations

from bench import mode_b, mode_c, report


def test_mode_b_says_that_there_is_no_gpu(saved, capsys, monkeypatch):
    def none():
        raise RuntimeError("no GPU can be used: there is none")

    monkeypatch.setattr("pix2pix.devices.count_gpus", none)
    assert mode_b.main([]) == 0
    assert saved["mode_b"]["not_measured"].startswith("no CUDA device (no GPU can be used")
    assert saved["mode_b"]["settings"] == {}
    printed = capsys.readouterr().out
    assert "mode_b: not measured: no CUDA device" in printed and "12.40" in printed and "49.80" in printed


def test_mode_c_says_that_there_are_not_four_gpus(saved, capsys, monkeypatch):
    monkeypatch.setattr("pix2pix.devices.count_gpus", lambda: 1)
    assert mode_c.main([]) == 0
    assert "no four CUDA devices (device cuda:1: this machine has cuda:0 alone)" in saved["mode_c"]["not_measured"]
    printed = capsys.readouterr().out
    assert "not measured" in printed and "37.50" in printed and "159.40" in printed


def test_the_report_has_all_modes():
    table = report.table()
    for mode in ("A | CPU", "B | CPU and one GPU", "C | four GPUs", "D | four nodes of four GPUs", "D | CPU"):
        assert f"| {mode} |" in table
    for rate in ("5.5", "37.5", "72.0", "159.4", "258.5"):
        assert f"| {rate} |" in table

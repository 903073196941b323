"""How a run goes, on a terminal or in a log, and what came of it, in words."""

from __future__ import annotations

import logging
import time
from typing import TextIO

from ..files.jobs import left_out_words
from ..files.outcome import Outcome
from ..files.report import Report
from ..files.translate import Listener

SECONDS_BETWEEN_LINES = 5.0


class Progress(Listener):
    """A bar with rate and time left if ``stream`` is a terminal, a line every few seconds otherwise.

    ``quiet`` leaves only messages. Use it as a context manager: meanwhile, warnings that this package logs from any
    thread are messages too.
    """

    def __init__(self, stream: TextIO, quiet: bool = False) -> None:
        self.total, self.stream, self.count = 0, stream, 0
        self._quiet = quiet
        self._bar = None
        self._log_handler = _Messages(self)

    def __enter__(self) -> Progress:
        logging.getLogger("pix2pix").addHandler(self._log_handler)
        return self

    def __exit__(self, *exc_info: object) -> None:
        logging.getLogger("pix2pix").removeHandler(self._log_handler)
        if self._bar is not None:
            self._bar.close()

    def loaded(self, facts: list[str]) -> None:
        for line in facts:
            self.message(line)

    def started(self, total: int) -> None:
        self.total = total
        self._started = self._last = time.monotonic()
        if not self._quiet and self.stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total or None, unit=" images", file=self.stream, dynamic_ncols=True, smoothing=0.1)

    def outcome(self, outcome: Outcome) -> None:
        if outcome.status == "failed":
            self.message(f"failed: {outcome.job.source}: {outcome.reason}")

    def progressed(self, count: int) -> None:
        self.count += count
        if self._bar is not None:
            self._bar.update(count)
        elif not self._quiet and time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            rate = self.count / (self._last - self._started)
            if self.total > self.count:
                left = _duration((self.total - self.count) / rate)
                self.message(f"{self.count}/{self.total} images, {rate:.3g} images/s, {left} left")
            else:  # how many there are is not known
                self.message(f"{self.count} images, {rate:.3g} images/s")

    def message(self, text: str) -> None:
        """Say one line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self.stream)
        else:
            self.stream.write(text + "\n")
            self.stream.flush()


class _Messages(logging.Handler):
    """Gives what is logged to a Progress."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.WARNING)
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self._progress.message(record.getMessage())


def summary(report: Report) -> str:
    """What came of a run, in a line or a few."""
    counts, means = report.counts, report.means
    line = f"{counts['done']} done, {counts['skipped']} skipped, {counts['failed']} failed"
    if counts["done"]:
        line += f" in {_duration(report.seconds)}: {report.images_per_second:.3g} images/s"
    if means:
        line += f"\nmean PSNR {means['psnr']:.2f} dB, SSIM {means['ssim']:.4f}, L1 {means['l1']:.4f}"
    if report.left_out:
        line += "\n" + left_out_words(report.left_out)
    return "\n".join([line, *(f"without {lost}" for lost in report.lost)])


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

"""What is told of a run: how it goes, on a terminal or in a log, and what came of it, in words and as JSON."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from . import images, metrics

if TYPE_CHECKING:
    from .stream import Outcome

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """A bar with rate and time left if ``stream`` is a terminal, a line every few seconds otherwise.

    ``quiet`` leaves only :meth:`message`. Use it as a context manager: meanwhile warnings that this package logs, from
    whatever thread, are messages too.
    """

    def __init__(self, total: int, stream: TextIO, quiet: bool = False) -> None:
        self.total, self.stream, self.count = total, stream, 0
        self._lines = not quiet
        self._bar = None
        self._started = self._last = time.monotonic()
        if not quiet and stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit=" images", file=stream, dynamic_ncols=True, smoothing=0.1)

    def __enter__(self) -> Progress:
        self._log_handler = _Messages(self)
        logging.getLogger("pix2pix").addHandler(self._log_handler)
        return self

    def __exit__(self, *exc_info: object) -> None:
        logging.getLogger("pix2pix").removeHandler(self._log_handler)
        if self._bar is not None:
            self._bar.close()

    def update(self, count: int) -> None:
        """So many more images are dealt with."""
        self.count += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._lines and time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            rate = self.count / (self._last - self._started)
            left = _duration((self.total - self.count) / rate)
            self.message(f"{self.count}/{self.total} images, {rate:.3g} images/s, {left} left")

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


class Report:
    """What came of a run so far. ``facts`` (device, model, ...) go into the JSON as they are."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.facts = dict(facts)
        self.counts: Counter[str] = Counter()
        self.images: list[dict[str, Any]] = []
        self.metrics: list[Mapping[str, float]] = []
        self.stopped = ""
        self.lost: list[str] = []  # ranks that were given up, and why
        self._started = time.monotonic()
        self._seconds = 0.0

    def add(self, outcome: Outcome) -> None:
        """Count one picture."""
        self.counts[outcome.status] += 1
        entry = {"input": str(outcome.job.source), "output": str(outcome.job.output), "status": outcome.status}
        if outcome.reason:
            entry["reason"] = outcome.reason
        if outcome.metrics:
            self.metrics.append(outcome.metrics)
        self.images.append(entry | _finite(outcome.metrics or {}))

    def stop(self, why: str = "") -> None:
        """The run is over; ``why`` says what stopped it before its end."""
        self.stopped = why
        self._seconds = time.monotonic() - self._started

    @property
    def exit_status(self) -> int:
        """0 if everything was done, else 1."""
        return 1 if self.counts["failed"] or self.stopped else 0

    def text(self) -> str:
        """The summary, in a line or a few."""
        done = self.counts["done"]
        line = f"{done} done, {self.counts['skipped']} skipped, {self.counts['failed']} failed"
        if done:
            line += f" in {_duration(self._seconds)}: {self._rate():.3g} images/s"
        if self.metrics:
            values = metrics.means(self.metrics)
            line += f"\nmean PSNR {values['psnr']:.2f} dB, SSIM {values['ssim']:.4f}, L1 {values['l1']:.4f}"
        return "\n".join([line, *(f"without {lost}" for lost in self.lost)])

    def save(self, path: Path) -> None:
        """Write :meth:`json` to a file. Raises OSError."""
        images.write(path, self.json().encode())

    def json(self) -> str:
        """The summary and all images as JSON."""
        content = {
            **self.facts,
            **{status: self.counts[status] for status in ("done", "skipped", "failed")},
            "stopped": self.stopped or None,
            "lost": self.lost,
            "seconds": round(self._seconds, 3),
            "images_per_second": round(self._rate(), 3),
            "metrics": _finite(metrics.means(self.metrics)) or None,
            "failures": [{k: i[k] for k in ("input", "reason")} for i in self.images if i["status"] == "failed"],
            "images": self.images,
        }
        return json.dumps(content, indent=2) + "\n"

    def _rate(self) -> float:
        return self.counts["done"] / self._seconds if self._seconds else 0.0


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """``values`` as JSON can hold them: the infinite PSNR of equal pictures becomes null."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

"""What came of a run, as a value and as JSON."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from . import metrics
from .jobs import natural
from .outcome import Outcome


class Report:
    """What came of a run so far.

    ``facts`` (device, model, ...) go into the JSON as they are. ``counts`` has the number of images done, skipped and
    failed; ``images`` an entry for each image file; ``left_out`` how many files of folders were not taken, by reason;
    ``lost`` the ranks that were given up, and why; ``stopped`` why the run ended early, or "".
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.facts = dict(facts)
        self.counts: Counter[str] = Counter()
        self.images: list[dict[str, Any]] = []
        self.stopped = ""
        self.interrupted = False
        self.left_out: Counter[str] = Counter()
        self.lost: list[str] = []
        self.seconds = 0.0
        self._metrics: list[Mapping[str, float]] = []
        self._started = time.monotonic()

    def add(self, outcome: Outcome) -> None:
        """Count one image."""
        self.counts[outcome.status] += 1
        entry = {"input": str(outcome.job.source), "output": str(outcome.job.output), "status": outcome.status}
        if outcome.reason:
            entry["reason"] = outcome.reason
        if outcome.metrics:
            self._metrics.append(outcome.metrics)
        self.images.append(entry | _finite(outcome.metrics or {}))

    def stop(self, error: BaseException | None = None) -> None:
        """The run is over; ``error`` stopped it before its end."""
        self.interrupted = isinstance(error, KeyboardInterrupt)
        if error is not None:
            self.stopped = "interrupted" if self.interrupted else str(error) or type(error).__name__
        self.seconds = time.monotonic() - self._started

    @property
    def images_per_second(self) -> float:
        """Images done per second."""
        return self.counts["done"] / self.seconds if self.seconds else 0.0

    @property
    def means(self) -> dict[str, float]:
        """The mean of each metric; empty where nothing was compared."""
        return metrics.means(self._metrics)

    def to_dict(self) -> dict[str, Any]:
        """The summary and all images, in the order of their names, as JSON can hold them."""
        images = sorted(self.images, key=lambda image: natural(PurePath(image["input"])))
        return {
            **self.facts,
            **{status: self.counts[status] for status in ("done", "skipped", "failed")},
            "stopped": self.stopped or None,
            "left_out": dict(self.left_out),
            "lost": self.lost,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images_per_second, 3),
            "metrics": _finite(self.means) or None,
            "failures": [{k: i[k] for k in ("input", "reason")} for i in images if i["status"] == "failed"],
            "images": images,
        }


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """``values`` as JSON can hold them: the infinite PSNR of equal images becomes null."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}

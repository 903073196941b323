"""What the server counts and times, in the form that Prometheus reads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of one server, in a registry of their own.

    ``seconds`` has the phases body, decode, wait, engine (of a batch) and encode.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "pix2pix_requests", "Requests that were answered", ["route", "status"], registry=registry
        )
        self.dropped = Counter("pix2pix_dropped_images", "Images whose client went away", registry=registry)
        self.batch_images = Histogram(
            "pix2pix_batch_images", "Images that were computed together", buckets=IMAGES, registry=registry
        )
        self.seconds = Histogram(
            "pix2pix_phase_seconds", "Seconds of each phase of a request", ["phase"], buckets=SECONDS, registry=registry
        )

    def gauge(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        """A value that is looked up whenever the metrics are read."""
        Gauge(name, documentation, registry=self._registry).set_function(value)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the block's seconds to a phase."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds.labels(phase).observe(time.monotonic() - started)

    def rendered(self, accept: str) -> tuple[bytes, str]:
        """All metrics, and the media type of the form that ``accept`` asks for."""
        encode, media_type = choose_encoder(accept)
        return encode(self._registry), media_type

"""All ranks as one engine: rank 0 sends uint8 images to the other ranks, and receives uint8 images.

It serves raw files, ranks that share no folder, and programs in Python. It is a pool of rank 0's engine and of remote
engines, so that a lost rank is handled as the pool handles a failed device.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..engines.base import BaseEngine, Engine, EngineInfo
from ..engines.execution import Maps
from ..engines.pool import PoolEngine, WorkerGroup
from .messages import ROOT
from .transport import PendingRequest, Transport

if TYPE_CHECKING:
    from .ranks import RankTable

SECONDS_BETWEEN_CHECKS = 0.05  # of whether a translation is still wanted


class RanksEngine(PoolEngine):
    """Runs a generator on all ranks. It exists on rank 0; the others serve it until it is closed.

    See :class:`pix2pix.Engine` for the methods, :class:`pix2pix.engines.pool.PoolEngine` for what happens when ranks
    fail.
    """

    def __init__(self, ranks: RankTable, engine: Engine) -> None:
        self._transport = Transport(ranks)
        groups = [WorkerGroup(ranks.name(ROOT), partial(LocalEngine, engine, ranks), engine.info.workers)]
        for rank in ranks.comm.others:
            make = partial(RemoteEngine, engine, self._transport, rank)
            workers = ranks.info[rank].engine.workers + 1  # one batch is on its way while the others are computed
            groups.append(WorkerGroup(ranks.name(rank), make, workers))
        super().__init__(engine.generator, groups)
        self._info = replace(self._info, device=engine.info.device, threads=engine.info.threads)

    def _close(self) -> None:
        super()._close()
        self._transport.close()


class LocalEngine(BaseEngine):
    """Rank 0's own engine ``engine``, which counts its images."""

    def __init__(self, engine: Engine, ranks: RankTable) -> None:
        super().__init__(engine.generator, info=engine.info)
        self._engine, self._ranks = engine, ranks

    def _translate(self, b: np.ndarray, out: np.ndarray, stop: threading.Event) -> None:
        with self._ranks.comm.heartbeat.working():
            self._engine.translate_until(stop, b, out)
        self._ranks.done[ROOT] += len(b)

    def _run(self, given: Maps, results: Maps) -> None:
        with self._ranks.comm.heartbeat.working():
            values = self._engine.run(inputs=given, outputs=tuple(results))
        for name, value in values.items():
            results[name][...] = value

    def _close(self) -> None:
        self._engine.close()


class RemoteEngine(BaseEngine):
    """The engine of another rank, which has the same model and plan as rank 0's ``own``."""

    def __init__(self, own: Engine, transport: Transport, rank: int) -> None:
        super().__init__(own.generator, info=EngineInfo(precision=own.info.precision, plan=own.info.plan))
        self._transport, self._rank = transport, rank

    def _translate(self, b: np.ndarray, out: np.ndarray, stop: threading.Event) -> None:
        pending = PendingRequest(self._rank, b, out)
        result = self._transport.submit(pending)
        while True:
            try:
                return result.result(SECONDS_BETWEEN_CHECKS)
            except TimeoutError:
                if stop.is_set() and not pending.cancelled:
                    self._transport.cancel(pending)

    def _run(self, given: Maps, results: Maps) -> None:
        pending = PendingRequest(self._rank, inputs=given, outputs=tuple(results))
        for name, value in self._transport.submit(pending).result().items():
            results[name][...] = value

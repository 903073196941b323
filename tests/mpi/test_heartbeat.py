"""Signs of life between ranks, which are threads of one process here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pix2pix.mpi import heartbeat
from pix2pix.mpi.heartbeat import Heartbeat
from tests.mpi.fakes import FakeMpi

TIMEOUT = 0.4


@pytest.fixture
def ranks() -> Iterator[list[Heartbeat]]:
    """Three ranks whose heartbeats have not started; they are closed after the test."""
    hearts = [Heartbeat(comm, TIMEOUT) for comm in FakeMpi.connected(3)]
    yield hearts
    close(*hearts)


def start(*hearts: Heartbeat) -> None:
    for heart in hearts:
        heart.start()


def close(*hearts: Heartbeat) -> list[bool]:
    """What all return when they are closed together."""
    closed: dict[int, bool] = {}
    threads = [threading.Thread(target=lambda i=i, h=h: closed.update({i: h.close()})) for i, h in enumerate(hearts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return [closed[i] for i in range(len(hearts))]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ranks_that_live_end_together(ranks):
    start(*ranks)
    time.sleep(2 * TIMEOUT)
    assert not any(rank.failure for rank in ranks)
    assert close(*ranks) == [True] * 3


def test_rank_0_names_a_silent_rank(ranks):
    start(ranks[0], ranks[1])
    wait_for(lambda: ranks[0].failure)
    assert ranks[0].failure.startswith("rank 2 gave no sign of life for") and not ranks[1].failure
    assert ranks[0].close() is False


def test_other_ranks_name_a_silent_rank_0(ranks):
    start(ranks[1], ranks[2])
    for rank in ranks[1:]:
        wait_for(lambda rank=rank: rank.failure)
        assert rank.failure.startswith("rank 0 gave no sign of life for")
        assert rank.close() is False


def test_a_rank_that_hangs_at_the_end_is_named(ranks):
    start(*ranks)
    time.sleep(TIMEOUT)
    assert close(ranks[0], ranks[1]) == [False, True]
    assert ranks[0].failure.startswith("rank 2 on ") and ranks[0].failure.endswith(" does not end")
    ranks[2].close()


@pytest.mark.parametrize("rank", [0, 2])
def test_an_engine_that_gives_no_result_is_reported_to_rank_0(ranks, rank):
    start(*ranks)
    with ranks[rank].working():
        time.sleep(TIMEOUT / 2)
    with ranks[rank].working():
        wait_for(lambda: ranks[0].failure)
    assert f"rank {rank} on " in ranks[0].failure and "gave no result" in ranks[0].failure
    assert not ranks[1].failure and not ranks[2].failure


def test_time_between_the_items_of_an_iterator_does_not_count(ranks):
    def items() -> Iterator[int]:
        yield 1
        yield 2
        time.sleep(3 * TIMEOUT)

    start(*ranks)
    for _ in zip(ranks[0].watch(items()), range(2), strict=True):
        time.sleep(1.5 * TIMEOUT)
        assert not ranks[0].failure
    list(ranks[0].watch(items()))
    assert "gave no result" in ranks[0].failure


def test_a_job_that_was_suspended_goes_on(ranks, monkeypatch):
    start(*ranks)
    time.sleep(TIMEOUT)
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + 1000)
    time.sleep(TIMEOUT)
    assert not any(rank.failure for rank in ranks)
    assert close(*ranks) == [True] * 3


def test_ranks_take_over_the_timeout_of_rank_0_and_its_hurry(ranks):
    for rank in ranks:
        rank.timeout = 1000.0
    ranks[0].timeout = 100.0
    start(*ranks)
    wait_for(lambda: ranks[2].timeout == 100)
    ranks[0].hurry()
    wait_for(lambda: ranks[2].timeout == heartbeat.SECONDS_AFTER_INTERRUPT)
    assert close(*ranks) == [True] * 3


def test_a_job_that_does_not_end_by_itself_is_aborted(ranks, monkeypatch, caplog):
    monkeypatch.setattr(heartbeat, "SECONDS_TO_END", 0.1)
    start(ranks[0])
    assert ranks[0]._comm.aborted.wait(10)
    assert caplog.records[0].getMessage() == ranks[0].failure

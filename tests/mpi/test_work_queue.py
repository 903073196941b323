"""The queue of tasks that ranks share."""

from __future__ import annotations

from pix2pix.mpi.work_queue import WorkQueue


def names(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def test_every_task_is_handed_out_once_in_chunks_that_shrink():
    work = WorkQueue(names(1000), ranks=4, max_chunk=32)
    chunks = []
    while work.unfinished:
        chunks.append(work.take(len(chunks) % 4))
        assert all(work.complete(task, (len(chunks) - 1) % 4) for task in chunks[-1])
    assert [task for chunk in chunks for task in chunk] == names(1000)
    sizes = [len(chunk) for chunk in chunks]
    assert sizes == sorted(sizes, reverse=True) and (sizes[0], sizes[-8:]) == (32, [1] * 8)


def test_a_rank_that_asks_early_gets_no_more_than_its_part():
    work = WorkQueue(names(40), ranks=4, max_chunk=32)
    greedy = []
    while chunk := work.take(0):
        greedy += chunk
    assert len(greedy) == 10 and work.queued == 30 and work.unfinished == 40
    for task in greedy:
        work.complete(task, 0)
    assert len(work.take(0)) == 30 // 8


def test_what_a_lost_rank_had_comes_first_again():
    work = WorkQueue(names(10), ranks=1, max_chunk=3)
    lost, kept = work.take(1), work.take(2)
    assert work.complete(lost[0], 1) and not work.complete(lost[1], 2)
    assert work.reclaim(1, {lost[2]}) == 1 and work.reclaim(1, ()) == 1
    assert work.take(2) == [lost[2], lost[1], "6"] and work.queued == 3
    assert not work.complete(lost[1], 1), "it came too late"
    assert work.reclaim(2, {*kept, *lost, "6"}) == 0

"""Who gets which images, without any threads but those that must wait."""

from __future__ import annotations

import threading

import pytest

from pix2pix.engines.scheduler import Device, Feed, Request, Scheduler, Worker


def ignore(engine, images, stop):
    raise AssertionError("the scheduler does nothing itself")


def request(images: int, **options) -> Request:
    return Request(ignore, images, 10, **options)


class Board:
    """A scheduler, and how many workers it has woken."""

    def __init__(self, *workers: Worker) -> None:
        self.woken = 0
        self.scheduler = Scheduler(workers, self._wake, room=2)

    def _wake(self, count: int) -> None:
        self.woken += count


def worker_of(name: str, pixels: int, pace: float | None = None) -> Worker:
    """The only worker of a device."""
    return Worker(Device(name, pace), pixels)


def images_of(part) -> tuple[int, int]:
    return part.images.start, part.images.stop


def test_parts_are_as_large_as_suits_who_takes_them():
    large, small, tiny = workers = worker_of("large", 40), worker_of("small", 20), worker_of("tiny", 5)
    board = Board(*workers)
    board.scheduler.put(request(9))
    assert board.woken == 3
    taken = [images_of(board.scheduler.take(worker)) for worker in (large, small, tiny, large)]
    assert taken == [(0, 4), (4, 6), (6, 7), (7, 9)]
    assert board.scheduler.take(large) is None


def test_no_more_than_the_share_at_once():
    worker = worker_of("", 100)
    board = Board(worker)
    board.scheduler.put(request(7, most=3))
    assert [images_of(board.scheduler.take(worker)) for _ in range(3)] == [(0, 3), (3, 6), (6, 7)]


def test_requests_are_served_in_order_and_finished_when_all_is_done():
    worker = worker_of("", 20)
    board = Board(worker)
    first, second = request(3), request(1)
    board.scheduler.put(first)
    board.scheduler.put(second)
    parts = [board.scheduler.take(worker) for _ in range(3)]
    assert [part.request for part in parts] == [first, first, second]
    board.scheduler.done(worker, parts[1], 0.0, 1.0)
    board.scheduler.done(worker, parts[2], 0.0, 1.0)
    assert second.finished.is_set() and not first.finished.is_set()
    board.scheduler.done(worker, parts[0], 0.0, 1.0)
    assert first.finished.is_set()


def test_only_idle_workers_are_woken():
    workers = [worker_of(str(i), 10) for i in range(3)]
    board = Board(*workers)
    board.scheduler.put(request(1))
    assert board.woken == 1
    board.scheduler.take(workers[0])
    board.scheduler.put(request(5))
    assert board.woken == 1 + 2


def test_what_failed_is_tried_image_by_image_and_the_error_names_one():
    worker = worker_of("", 1000)
    board = Board(worker)
    wanted = request(3, first=40)
    board.scheduler.put(wanted)
    board.scheduler.refused(worker, board.scheduler.take(worker), ValueError("bad"))
    assert not wanted.finished.is_set()
    one = board.scheduler.take(worker)
    assert images_of(one) == (0, 1)
    board.scheduler.done(worker, one, 0.0, 1.0)
    board.scheduler.refused(worker, board.scheduler.take(worker), ValueError("bad"))
    assert board.scheduler.take(worker) is None, "the third image is not worth doing"
    with pytest.raises(ValueError, match="bad") as caught:
        wanted.wait()
    assert caught.value.__notes__ == ["image 41 (from 0) of what the pool was given"]


def test_work_of_a_failed_worker_goes_to_others_first():
    broken, sound = worker_of("broken", 20), worker_of("sound", 20)
    board = Board(broken, sound)
    wanted = request(4)
    board.scheduler.put(wanted)
    part = board.scheduler.take(broken)
    assert board.scheduler.lost(broken, part, RuntimeError("gone")) == 1
    assert [images_of(board.scheduler.take(sound)) for _ in range(2)] == [(0, 2), (2, 4)]
    assert board.scheduler.take(broken) is None


def test_without_workers_requests_fail_now_and_later():
    worker = worker_of("cuda:7", 10)
    board = Board(worker)
    now, waiting = request(2), request(1)
    board.scheduler.put(now)
    board.scheduler.put(waiting)
    cause = RuntimeError("fell off the bus")
    assert board.scheduler.lost(worker, board.scheduler.take(worker), cause) == 0
    for wanted in (now, waiting):
        with pytest.raises(RuntimeError, match="no worker is left: cuda:7 .* fell off the bus") as caught:
            wanted.wait()
        assert caught.value.__cause__ is cause
    with pytest.raises(RuntimeError, match="no worker is left"):
        board.scheduler.put(request(1))


def test_a_cancelled_request_is_finished_when_what_has_begun_returns():
    worker = worker_of("", 10)
    board = Board(worker)
    begun, untouched = request(2), request(2)
    board.scheduler.put(begun)
    board.scheduler.put(untouched)
    part = board.scheduler.take(worker)
    board.scheduler.cancel(untouched)
    assert untouched.finished.is_set()
    board.scheduler.cancel(begun)
    assert begun.stop.is_set() and not begun.finished.is_set()
    board.scheduler.done(worker, part, 0.0, 1.0)
    assert begun.finished.is_set()
    assert board.scheduler.take(worker) is None
    board.scheduler.close()


@pytest.mark.parametrize("waiting, leaves", [(4, True), (5, True), (7, False), (20, False)])
def test_a_slow_worker_leaves_the_end_to_faster_ones(waiting, leaves):
    """Two workers do an image in 1 s each, the slow one in 4 s: they will have done 6 in the time of one of its."""
    slow, *fast = workers = worker_of("slow", 10, 0.4), worker_of("fast", 10, 0.1), worker_of("fast", 10, 0.1)
    board = Board(*workers)
    board.scheduler.put(request(waiting))
    taken = []
    asking = threading.Thread(target=lambda: taken.append(board.scheduler.take(slow)))
    woken = board.woken
    asking.start()
    asking.join(0.2 if leaves else 5)
    assert asking.is_alive() == leaves
    if leaves:
        assert board.woken == woken + 1, "another one was asked in its place"
        for number in range(waiting):
            board.scheduler.take(fast[number % 2])
        asking.join(5)
    assert [part and images_of(part) for part in taken] == [None if leaves else (0, 1)]


def test_while_more_is_to_come_nobody_leaves_anything():
    slow, fast = worker_of("slow", 10, pace=0.4), worker_of("fast", 10, pace=0.1)
    board = Board(slow, fast)
    with board.scheduler.more_to_come():
        board.scheduler.put(request(1))
        assert images_of(board.scheduler.take(slow)) == (0, 1)


def test_a_slow_worker_does_what_a_faster_one_leaves_by_failing():
    slow, fast = worker_of("slow", 10, pace=0.4), worker_of("fast", 10, pace=0.1)
    board = Board(slow, fast)
    board.scheduler.put(request(1))
    part = board.scheduler.take(fast)
    board.scheduler.lost(fast, part, RuntimeError())
    assert images_of(board.scheduler.take(slow)) == (0, 1)


def test_a_stream_has_room_until_enough_of_its_own_is_unfinished():
    worker = worker_of("", 10)
    board = Board(worker)
    board.scheduler.put(request(5))
    with board.scheduler.more_to_come() as feed:
        first, second = request(1, feed=feed), request(1, feed=feed)
        board.scheduler.put(first)
        board.scheduler.wait_for_room(feed)
        board.scheduler.put(second)
        waiting = threading.Thread(target=board.scheduler.wait_for_room, args=(feed,))
        waiting.start()
        parts = [board.scheduler.take(worker) for _ in range(7)]
        board.scheduler.done(worker, parts[0], 0.0, 1.0)
        waiting.join(0.2)
        assert waiting.is_alive()
        board.scheduler.done(worker, parts[6], 0.0, 1.0)
        waiting.join(5)
        assert not waiting.is_alive() and not first.finished.is_set()


def test_a_stream_that_waits_for_room_waits_until_there_is_some_for_several():
    feed = Feed(16, lock := threading.Lock())
    feed.unfinished = 16
    waiting = threading.Thread(target=lambda: feed_wait(feed, lock))
    waiting.start()
    for left in (True, False):
        waiting.join(0.1)
        assert waiting.is_alive()
        with lock:
            feed.count(-1)
        waiting.join(0.2 if left else 5)
        assert waiting.is_alive() == left


def feed_wait(feed: Feed, lock: threading.Lock) -> None:
    with lock:
        feed.wait()


def test_what_a_device_holds_is_done_first():
    """The fast one holds 4 images, and does them and another one in 5 s: the slow one does one in 4 s."""
    slow, fast = worker_of("slow", 10, 0.4), worker_of("fast", 40, 0.1)
    board = Board(slow, fast)
    board.scheduler.put(request(5))
    assert images_of(board.scheduler.take(fast)) == (0, 4)
    assert images_of(board.scheduler.take(slow)) == (4, 5)


def test_who_left_something_comes_back_when_the_others_are_slower_than_they_were():
    """The fast one has one of two, would have done the other one sooner too, and takes 100 s."""
    slow, fast = worker_of("slow", 10, 0.4), worker_of("fast", 10, 0.1)
    board = Board(slow, fast)
    board.scheduler.put(request(2))
    part = board.scheduler.take(fast)
    taken = []
    asking = threading.Thread(target=lambda: taken.append(board.scheduler.take(slow)))
    asking.start()
    asking.join(0.2)
    assert asking.is_alive()
    board.scheduler.done(fast, part, 0.0, 100.0)
    asking.join(5)
    assert images_of(taken[0]) == (1, 2)


def test_the_pace_is_the_devices_whoever_waits_for_it():
    """Three workers, parts of 10 pixels in 2 s each, one after the other; the last one after a pause."""
    device = Device("")
    workers = [Worker(device, 10) for _ in range(3)]
    board = Board(*workers)
    board.scheduler.put(request(4))
    parts = [board.scheduler.take(worker) for worker in workers]
    assert device.held == 30
    for worker, part, ended in zip(workers, parts, (2.0, 4.0, 6.0), strict=True):
        board.scheduler.done(worker, part, 0.0, ended)
        assert device.pace == pytest.approx(0.2)
    board.scheduler.done(workers[0], board.scheduler.take(workers[0]), 50.0, 52.0)
    assert device.pace == pytest.approx(0.2) and device.held == 0


def test_the_pace_follows_what_parts_take():
    """A mean at first, then the latest one counts for an eighth."""
    device = Device("")
    for number, (seconds, pace) in enumerate([(1.0, 0.1), (3.0, 0.2), *[(2.0, 0.2)] * 10, (10.0, 0.3)]):
        device.did(10, 100.0 * number, 100.0 * number + seconds)
        assert device.pace == pytest.approx(pace)

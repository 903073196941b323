"""The scheduler alone: which worker gets which images. Threads are used only where a call must block."""

from __future__ import annotations

import threading

import pytest

from pix2pix.engines.scheduler import BackPressureWindow, DeviceLoad, Request, Scheduler, Worker


def ignore(engine, images, stop):
    raise AssertionError("the scheduler computes nothing itself")


def request(images: int, **options) -> Request:
    return Request(ignore, images, 10, **options)


class Board:
    """A scheduler that counts how many workers it wakes."""

    def __init__(self, *workers: Worker) -> None:
        self.woken = 0
        self.scheduler = Scheduler(workers, self._wake, window=2)

    def _wake(self, count: int) -> None:
        self.woken += count


def worker_of(name: str, pixels: int, seconds_per_pixel: float | None = None) -> Worker:
    """The only worker of a device."""
    return Worker(DeviceLoad(name, seconds_per_pixel), pixels)


def images_of(chunk) -> tuple[int, int]:
    return chunk.images.start, chunk.images.stop


def test_chunks_have_the_size_of_the_worker_that_takes_them():
    large, small, tiny = workers = worker_of("large", 40), worker_of("small", 20), worker_of("tiny", 5)
    board = Board(*workers)
    board.scheduler.submit(request(9))
    assert board.woken == 3
    taken = [images_of(board.scheduler.take(worker)) for worker in (large, small, tiny, large)]
    assert taken == [(0, 4), (4, 6), (6, 7), (7, 9)]
    assert board.scheduler.take(large) is None


def test_no_chunk_exceeds_the_images_that_its_request_allows():
    worker = worker_of("", 100)
    board = Board(worker)
    board.scheduler.submit(request(7, max_images=3))
    assert [images_of(board.scheduler.take(worker)) for _ in range(3)] == [(0, 3), (3, 6), (6, 7)]


def test_requests_are_served_in_order_and_finished_when_all_is_done():
    worker = worker_of("", 20)
    board = Board(worker)
    first, second = request(3), request(1)
    board.scheduler.submit(first)
    board.scheduler.submit(second)
    chunks = [board.scheduler.take(worker) for _ in range(3)]
    assert [chunk.request for chunk in chunks] == [first, first, second]
    board.scheduler.done(worker, chunks[1], 0.0, 1.0)
    board.scheduler.done(worker, chunks[2], 0.0, 1.0)
    assert second.finished.is_set() and not first.finished.is_set()
    board.scheduler.done(worker, chunks[0], 0.0, 1.0)
    assert first.finished.is_set()


def test_only_idle_workers_are_woken():
    workers = [worker_of(str(i), 10) for i in range(3)]
    board = Board(*workers)
    board.scheduler.submit(request(1))
    assert board.woken == 1
    board.scheduler.take(workers[0])
    board.scheduler.submit(request(5))
    assert board.woken == 1 + 2


def test_a_failed_chunk_is_tried_image_by_image_and_the_error_names_one():
    worker = worker_of("", 1000)
    board = Board(worker)
    wanted = request(3, first=40)
    board.scheduler.submit(wanted)
    board.scheduler.request_failed(worker, board.scheduler.take(worker), ValueError("bad"))
    assert not wanted.finished.is_set()
    one = board.scheduler.take(worker)
    assert images_of(one) == (0, 1)
    board.scheduler.done(worker, one, 0.0, 1.0)
    board.scheduler.request_failed(worker, board.scheduler.take(worker), ValueError("bad"))
    assert board.scheduler.take(worker) is None, "the third image is not tried"
    with pytest.raises(ValueError, match="bad") as caught:
        wanted.wait()
    assert caught.value.__notes__ == ["image 41 (from 0) of what the pool was given"]


def test_work_of_a_failed_worker_goes_to_others_first():
    broken, sound = worker_of("broken", 20), worker_of("sound", 20)
    board = Board(broken, sound)
    wanted = request(4)
    board.scheduler.submit(wanted)
    chunk = board.scheduler.take(broken)
    assert board.scheduler.worker_failed(broken, chunk, RuntimeError("gone")) == 1
    assert [images_of(board.scheduler.take(sound)) for _ in range(2)] == [(0, 2), (2, 4)]
    assert board.scheduler.take(broken) is None


def test_without_workers_requests_fail_now_and_later():
    worker = worker_of("cuda:7", 10)
    board = Board(worker)
    now, waiting = request(2), request(1)
    board.scheduler.submit(now)
    board.scheduler.submit(waiting)
    cause = RuntimeError("fell off the bus")
    assert board.scheduler.worker_failed(worker, board.scheduler.take(worker), cause) == 0
    for wanted in (now, waiting):
        with pytest.raises(RuntimeError, match="no worker is left: cuda:7 .* fell off the bus") as caught:
            wanted.wait()
        assert caught.value.__cause__ is cause
    with pytest.raises(RuntimeError, match="no worker is left"):
        board.scheduler.submit(request(1))


def test_a_cancelled_request_is_finished_when_what_has_begun_returns():
    worker = worker_of("", 10)
    board = Board(worker)
    begun, untouched = request(2), request(2)
    board.scheduler.submit(begun)
    board.scheduler.submit(untouched)
    chunk = board.scheduler.take(worker)
    board.scheduler.cancel(untouched)
    assert untouched.finished.is_set()
    board.scheduler.cancel(begun)
    assert begun.stop.is_set() and not begun.finished.is_set()
    board.scheduler.done(worker, chunk, 0.0, 1.0)
    assert begun.finished.is_set()
    assert board.scheduler.take(worker) is None
    board.scheduler.close()


@pytest.mark.parametrize("waiting, leaves", [(4, True), (5, True), (7, False), (20, False)])
def test_a_slow_worker_leaves_the_last_images_to_faster_ones(waiting, leaves):
    """Two fast devices need 1 s for an image, the slow one 4 s: it leaves n images to them if 1 + n / 2 < 4."""
    slow, *fast = workers = worker_of("slow", 10, 0.4), worker_of("fast", 10, 0.1), worker_of("fast", 10, 0.1)
    board = Board(*workers)
    board.scheduler.submit(request(waiting))
    taken = []
    asking = threading.Thread(target=lambda: taken.append(board.scheduler.take(slow)))
    woken = board.woken
    asking.start()
    asking.join(0.2 if leaves else 5)
    assert asking.is_alive() == leaves
    if leaves:
        assert board.woken == woken + 1, "another worker was woken instead"
        for number in range(waiting):
            board.scheduler.take(fast[number % 2])
        asking.join(5)
    assert [chunk and images_of(chunk) for chunk in taken] == [None if leaves else (0, 1)]


def test_during_a_stream_no_worker_leaves_images_to_others():
    slow, fast = worker_of("slow", 10, seconds_per_pixel=0.4), worker_of("fast", 10, seconds_per_pixel=0.1)
    board = Board(slow, fast)
    with board.scheduler.streaming():
        board.scheduler.submit(request(1))
        assert images_of(board.scheduler.take(slow)) == (0, 1)


def test_a_slow_worker_takes_what_a_failed_faster_one_had():
    slow, fast = worker_of("slow", 10, seconds_per_pixel=0.4), worker_of("fast", 10, seconds_per_pixel=0.1)
    board = Board(slow, fast)
    board.scheduler.submit(request(1))
    chunk = board.scheduler.take(fast)
    board.scheduler.worker_failed(fast, chunk, RuntimeError())
    assert images_of(board.scheduler.take(slow)) == (0, 1)


def test_a_streams_window_counts_its_own_requests_only():
    worker = worker_of("", 10)
    board = Board(worker)
    board.scheduler.submit(request(5))
    with board.scheduler.streaming() as window:
        first, second = request(1, window=window), request(1, window=window)
        board.scheduler.submit(first)
        window.wait()
        board.scheduler.submit(second)
        waiting = threading.Thread(target=window.wait)
        waiting.start()
        chunks = [board.scheduler.take(worker) for _ in range(7)]
        board.scheduler.done(worker, chunks[0], 0.0, 1.0)
        waiting.join(0.2)
        assert waiting.is_alive()
        board.scheduler.done(worker, chunks[6], 0.0, 1.0)
        waiting.join(5)
        assert not waiting.is_alive() and not first.finished.is_set()


def test_a_full_window_is_waited_for_until_it_has_room_for_several():
    window = BackPressureWindow(16, lock := threading.Lock())
    window.unfinished = 16
    waiting = threading.Thread(target=window.wait)
    waiting.start()
    for left in (True, False):
        waiting.join(0.1)
        assert waiting.is_alive()
        with lock:
            window.add(-1)
        waiting.join(0.2 if left else 5)
        assert waiting.is_alive() == left


def test_images_already_taken_count_in_a_devices_finish_time():
    """The fast worker has 4 images and would finish a fifth after 5 s; the slow one needs 4 s for it."""
    slow, fast = worker_of("slow", 10, 0.4), worker_of("fast", 40, 0.1)
    board = Board(slow, fast)
    board.scheduler.submit(request(5))
    assert images_of(board.scheduler.take(fast)) == (0, 4)
    assert images_of(board.scheduler.take(slow)) == (4, 5)


def test_a_worker_that_stands_by_takes_images_after_all_when_others_become_slower():
    """The fast worker has one image of two and should finish the other sooner too, but takes 100 s for the first."""
    slow, fast = worker_of("slow", 10, 0.4), worker_of("fast", 10, 0.1)
    board = Board(slow, fast)
    board.scheduler.submit(request(2))
    chunk = board.scheduler.take(fast)
    taken = []
    asking = threading.Thread(target=lambda: taken.append(board.scheduler.take(slow)))
    asking.start()
    asking.join(0.2)
    assert asking.is_alive()
    board.scheduler.done(fast, chunk, 0.0, 100.0)
    asking.join(5)
    assert images_of(taken[0]) == (1, 2)


def test_time_per_pixel_is_the_devices_not_its_workers():
    """Three workers' chunks of 10 pixels take 2 s each, one after the other; a fourth follows after a pause."""
    device = DeviceLoad("")
    workers = [Worker(device, 10) for _ in range(3)]
    board = Board(*workers)
    board.scheduler.submit(request(4))
    chunks = [board.scheduler.take(worker) for worker in workers]
    assert device.pixels_taken == 30
    for worker, chunk, ended in zip(workers, chunks, (2.0, 4.0, 6.0), strict=True):
        board.scheduler.done(worker, chunk, 0.0, ended)
        assert device.seconds_per_pixel == pytest.approx(0.2)
    board.scheduler.done(workers[0], board.scheduler.take(workers[0]), 50.0, 52.0)
    assert device.seconds_per_pixel == pytest.approx(0.2) and device.pixels_taken == 0


def test_time_per_pixel_is_a_running_mean():
    """At first all chunks count alike, later the latest one counts for an eighth."""
    device = DeviceLoad("")
    for number, (seconds, expected) in enumerate([(1.0, 0.1), (3.0, 0.2), *[(2.0, 0.2)] * 10, (10.0, 0.3)]):
        device.record(10, 100.0 * number, 100.0 * number + seconds)
        assert device.seconds_per_pixel == pytest.approx(expected)

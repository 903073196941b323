"""What comes is fetched ahead of the engine and taken behind it: at the same time, in order, and never too much."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from pix2pix.video.threads import Behind, ahead

SECONDS = 20.0  # until something that should happen counts as missing


def test_items_are_fetched_before_they_are_asked_for_but_not_all():
    fetched: list[int] = []
    enough = threading.Event()

    def items() -> Iterator[int]:
        for number in range(100):
            fetched.append(number)
            if number == 4:
                enough.set()
            yield number

    with closing(ahead(items(), 3)) as given:
        assert next(given) == 0
        assert enough.wait(SECONDS)  # item 4 waits for room: 1, 2 and 3 take it up
        assert len(fetched) == 5
        assert next(given) == 1
    assert len(fetched) <= 6
    assert not [thread for thread in threading.enumerate() if thread.name == "pix2pix-ahead"]


def test_an_error_comes_after_what_was_fetched_before_it():
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    given = ahead(items(), 3)
    assert next(given) == 1
    with pytest.raises(ValueError, match="no more"):
        next(given)


def test_items_are_taken_while_others_are_put():
    taken: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def take(item: int) -> None:
        begun.set()
        assert go_on.wait(SECONDS)
        taken.append(item)

    with Behind(take, 2) as behind:
        behind.put(1)
        assert begun.wait(SECONDS)
        behind.put(2)
        behind.put(3)
        assert taken == []
        go_on.set()
        behind.finish()
        assert taken == [1, 2, 3]


def test_what_cannot_be_taken_ends_the_work():
    def take(item: int) -> None:
        raise OSError("disk full")

    with Behind(take, 2) as behind, pytest.raises(OSError, match="disk full"):
        behind.put(1)
        behind.finish()

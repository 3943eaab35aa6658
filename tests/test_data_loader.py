"""Reading ahead: same items, errors in their place, no thread left behind."""

import gc
import threading
import time

import pytest

from shoal.data.loader import prefetch


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "shoal-prefetch"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    gc.collect()
    assert threads() == []


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_items_arrive_in_order(depth):
    assert list(prefetch(iter(range(50)), depth)) == list(range(50))


def test_at_most_depth_items_are_prepared_ahead():
    made = []

    def source():
        for n in range(100):
            made.append(n)
            yield n

    with prefetch(source(), 3) as batches:
        next(batches)
        time.sleep(0.1)
        assert 3 <= len(made) <= 4


def test_an_exception_comes_in_its_place_and_ends_the_iterator():
    def source():
        yield 1
        raise OSError("the disk is gone")

    batches = prefetch(source())
    assert next(batches) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
    assert list(batches) == []


def test_a_consumer_that_stops_early_stops_the_thread_and_closes_the_source():
    closed = threading.Event()

    def source():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    with prefetch(source()) as batches:
        next(batches)
    assert closed.is_set()
    assert threads() == []
    assert list(batches) == []


def test_letting_go_of_the_iterator_stops_the_thread():
    def source():
        while True:
            yield 0

    batches = prefetch(source())
    next(batches)
    del batches
    gc.collect()
    assert threads() == []


def test_waiting_is_counted_only_when_there_is_nothing_ready():
    def slow():
        for n in range(3):
            time.sleep(0.05)
            yield n

    batches = prefetch(slow())
    assert list(batches) == [0, 1, 2]
    assert 0.1 < batches.waited < 1

    ready = prefetch(iter(range(2)))
    time.sleep(0.1)
    next(ready)
    assert ready.waited < 0.05
    ready.close()


def test_a_depth_below_one_is_refused():
    with pytest.raises(ValueError, match="depth must be positive"):
        prefetch(iter([]), 0)

"""Batches prepared ahead, so that a step does not wait for its data."""

import time
import weakref
from collections.abc import Iterator
from queue import SimpleQueue
from threading import Event, Semaphore, Thread, current_thread
from types import TracebackType
from typing import Generic, NamedTuple, Self, TypeVar

T = TypeVar("T")


class _Failure(NamedTuple):
    error: BaseException


class _End(NamedTuple):
    pass


class _Item(NamedTuple, Generic[T]):
    value: T


class Prefetch(Iterator[T]):
    """An iterator over `source` that a thread reads ahead. See `prefetch`."""

    def __init__(self, source: Iterator[T], depth: int) -> None:
        """Start reading at once."""
        if depth < 1:
            raise ValueError(f"depth must be positive, not {depth}")
        self.waited = 0.0
        """Seconds that the consumer has waited for items so far."""
        self._queue: SimpleQueue[_Item[T] | _Failure | _End] = SimpleQueue()
        self._room = Semaphore(depth)
        self._done = False
        stop = Event()
        # The thread must not hold `self`: a consumer that merely lets go ends it too.
        thread = Thread(
            target=_fill,
            args=(source, self._queue, self._room, stop),
            name="shoal-prefetch",
            daemon=True,
        )
        self._finish = weakref.finalize(self, _finish, thread, self._room, stop)
        thread.start()

    def __next__(self) -> T:
        """The next item; raises what the source raised, where it raised it."""
        if self._done:
            raise StopIteration
        began = time.perf_counter()
        item = self._queue.get()
        self.waited += time.perf_counter() - began
        if isinstance(item, _Item):
            self._room.release()
            return item.value
        self.close()
        if isinstance(item, _Failure):
            raise item.error
        raise StopIteration

    def close(self) -> None:
        """Stop reading ahead and wait for the thread; items that were ready are dropped."""
        self._done = True
        self._finish()

    def __enter__(self) -> Self:
        """Use as a context manager to close at the end of a block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


def prefetch(make_batches: Iterator[T], depth: int = 2) -> Prefetch[T]:
    """Read an iterator up to `depth` items ahead, in a background thread.

    An exception in the source reaches the consumer in its place. The thread ends when the
    source does, on `close`, at the end of a `with` block, and when the result is let go.

    Args:
        make_batches: runs in the thread, which also closes it if it is a generator.
        depth: the most items that are ready or in preparation.

    Returns:
        An iterator whose `waited` counts the seconds spent waiting for it.

    Example:
        >>> with prefetch(iter(range(3))) as batches:
        ...     list(batches)
        [0, 1, 2]
    """
    return Prefetch(make_batches, depth)


def _fill(
    source: Iterator[T],
    queue: "SimpleQueue[_Item[T] | _Failure | _End]",
    room: Semaphore,
    stop: Event,
) -> None:
    try:
        while True:
            room.acquire()
            if stop.is_set():
                break
            queue.put(_Item(next(source)))
    except StopIteration:
        queue.put(_End())
    except BaseException as error:  # also KeyboardInterrupt: the consumer is the one to handle it
        queue.put(_Failure(error))
    finally:
        close = getattr(source, "close", None)
        if close is not None:
            close()


def _finish(thread: Thread, room: Semaphore, stop: Event) -> None:
    stop.set()
    room.release()
    # Garbage collection can run in the reading thread itself, which cannot wait for itself.
    if thread is not current_thread():
        thread.join()

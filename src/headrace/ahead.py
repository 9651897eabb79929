"""Run an iterator in a thread of its own, a few items ahead of its consumer: how fetching, decoding and applying overlap."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error


_END = object()


def ahead(items: Iterable[T], *, depth: int, name: str) -> Generator[T, None, None]:
    """The same items in the same order, at most ``depth`` of them waiting.

    An exception of ``items`` is raised here, after the items before it. When this generator is closed the thread ends after
    its current item
    and ``items`` is closed there; closing waits for that, so whoever wants to stop soon must make ``items`` end soon.
    """
    waiting: queue.Queue[object] = queue.Queue(maxsize=depth)
    closed = threading.Event()

    def hand_over(item: object) -> bool:
        while not closed.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                if not hand_over(item):
                    return
            hand_over(_END)
        except BaseException as error:
            hand_over(_Failed(error))
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=produce, name=f"headrace-{name}", daemon=True)
    thread.start()
    try:
        while True:
            item = waiting.get()
            if item is _END:
                return
            if isinstance(item, _Failed):
                raise item.error
            yield item  # type: ignore[misc]
    finally:
        closed.set()
        thread.join()

"""Ctrl-C during a batch: the first one ends it in good order, the second one at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

__all__ = ["Stop", "listening"]


@dataclass
class Stop:
    """Whether the user wants the batch to end.

    Attributes:
        asked: how often.
        at_once: whether the first time raises ``KeyboardInterrupt``, too: where there is nothing
            in hand that could be finished.
    """

    asked: int = 0
    at_once: bool = True


@contextmanager
def listening(wake: Callable[[], None]) -> Iterator[Stop]:
    """Take SIGINT and SIGTERM as wishes.

    Args:
        wake: called after the first one, from the signal handler.

    Yields:
        What was asked for so far. Outside of the main thread nothing is ever asked for.
    """
    stop = Stop()

    def heard(_number: int, _frame: FrameType | None) -> None:
        stop.asked += 1
        if stop.at_once or stop.asked > 1:
            raise KeyboardInterrupt
        wake()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""A thread that answers, whatever interrupts the main one."""

from __future__ import annotations

import functools
import random
import signal
import threading
import time
from operator import truediv

import pytest

from dsf.shell.processes.background import Background

INTERRUPTS = 1500
LONGEST_S = 3e-4


def test_answers_come_in_order_and_errors_are_raised_where_they_are_asked_for() -> None:
    thread: Background[float] = Background("test")
    with thread:
        for number in range(3):
            thread.begin(functools.partial(truediv, 1, 2 - number))
        assert [thread.answer(), thread.answer()] == [0.5, 1.0]
        with pytest.raises(ZeroDivisionError):
            thread.answer()
        assert not thread.is_ready()


def test_interrupts_at_any_moment_leave_nobody_waiting() -> None:
    """With concurrent.futures, 1 in about 500 of these waited for ever."""

    def interrupt(_number: int, _frame: object) -> None:
        signal.raise_signal(signal.SIGINT)  # which is held back while the thread starts

    chance, threads = random.Random(0), threading.active_count()
    handlers = {
        signal.SIGALRM: signal.signal(signal.SIGALRM, interrupt),
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
    }
    begun = time.monotonic()
    try:
        for _ in range(INTERRUPTS):
            thread: Background[int] = Background("test")
            with pytest.raises(KeyboardInterrupt), thread:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, LONGEST_S))
                while True:
                    thread.begin(int)
                    thread.answer()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    while threading.active_count() > threads and time.monotonic() - begun < 60.0:
        time.sleep(0.01)
    assert threading.active_count() == threads

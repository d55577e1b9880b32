"""Signals that end a program, held back while an exception at the wrong moment would lose track of a child process."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TERMINAL_SIGNALS = {signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
"""What a terminal sends to a whole job: the parent answers for its workers."""


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C and its kin back until the block has ended, however it ends; then the first one acts as usual.

    Signals that are ignored, or kill at once, stay as they are. Only the main thread may use this.

    Yields:
        a function that lets a signal which has arrived act already now; again at each call, for code in the block may
        catch the exception.
    """
    arrived: list[int] = []
    found = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    handlers = {number: handler for number, handler in found.items() if callable(handler)}

    def note(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)

    def deliver() -> None:
        if arrived:
            handlers[signal.Signals(arrived[0])](arrived[0], None)

    for number in handlers:
        signal.signal(number, note)
    try:
        yield deliver
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])


@contextlib.contextmanager
def terminal_signals_held() -> Iterator[None]:
    """Processes that start in the block never get them; this one gets them at its end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

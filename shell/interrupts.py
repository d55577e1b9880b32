"""Signals that end a program: how they unwind it, when they have to wait, and that nothing waits long after them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from dsf.shell.errors import EXIT_SIGNAL

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TERMINAL_SIGNALS = {signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
"""What a terminal sends to a whole job: the parent answers for its workers."""
GRACE_S = 4.0
"""Time for a program to end by itself, once it got a signal; then :class:`SignalWatch` ends it."""
SHOW_CURSOR = b"\x1b[?25h"
RETRY_S = 0.2
"""Until a signal is sent again whose exception went nowhere."""


def describe_signal(number: int) -> str:
    """What is said of a program that a signal has ended."""
    return "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"


def handle_ending_signals(handler: Callable[[int, FrameType | None], object]) -> None:
    """Set a handler, but leave alone what is ignored on purpose (nohup, a script's background job)."""
    for number in ENDING_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


_arrived: list[int] = []
"""Signals that have unwound, or are unwinding, the command that runs."""


def unwind(number: int, frame: FrameType | None) -> None:
    """A handler: turn a signal into an exception, so that context managers stop child processes on the way out.

    Where a :class:`SignalWatch` sees to it that the program ends, a second signal (a closed terminal's often come in
    pairs) does not disturb what the first one has begun. Called without a frame, it always raises.

    Raises:
        KeyboardInterrupt, SystemExit: with 128 + the signal's number, as shells have it.
    """
    again = not _arrived or frame is None or SignalWatch.running is None or SignalWatch.running.lost
    _arrived.append(number)
    if not again:
        return
    if SignalWatch.running is not None:
        SignalWatch.running.lost = False
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(EXIT_SIGNAL + number)


def unwinding_signal() -> int | None:
    """The signal that is unwinding the command, whatever has become of its exception on the way: code written in C and
    ``except`` clauses make others of it.
    """
    return _arrived[0] if _arrived else None


def forget_signals() -> None:
    """A new command starts."""
    _arrived.clear()


class SignalWatch:
    """A thread that ends the program where its main thread cannot, :data:`GRACE_S` after a signal.

    Python's handlers run in the main thread alone, and not while that waits in code written in C, or for a lock. Child
    processes die with this one by themselves (:mod:`dsf.shell.child_processes`), and what it leaves beside its outputs
    the next command removes.

    Attributes:
        running: the one of this process.
        program: its name, for the line.
        said: the line has been printed.
        lost: the signal's exception was dropped, and has to come again.
    """

    running: SignalWatch | None = None

    def __init__(self, program: str) -> None:
        self.program, self.said, self.lost = program, False, False

    def start(self) -> None:
        """Watch from now on; not where the system has no thread left."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        thread = threading.Thread(target=self._watch, args=(reading,), name="dsf-signals", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            os.close(reading)
            os.close(writing)
            return
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_leave_watch_to_parent)  # which shares the pipe
        SignalWatch.running = self
        report = sys.unraisablehook

        def drop_ours(dropped: sys.UnraisableHookArgs) -> None:
            """Callbacks that cannot raise: their exception would be printed, and the signal would be lost."""
            if _arrived and isinstance(dropped.exc_value, (KeyboardInterrupt, SystemExit)):
                self.lost = True
            else:
                report(dropped)

        sys.unraisablehook = drop_ours

    def _watch(self, reading: int) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        numbers: list[int] = []
        while not numbers:  # others than ours wake us, too
            numbers = [number for number in os.read(reading, 64) if number in ENDING_SIGNALS]
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline:
            time.sleep(RETRY_S)
            if self.lost:
                signal.pthread_kill(threading.main_thread().ident or 0, numbers[0])
        self.end(numbers[0])

    def end(self, number: int) -> NoReturn:
        """End at once, with the line."""
        with contextlib.suppress(OSError):
            if os.isatty(1):  # a progress bar may have hidden it
                os.write(1, SHOW_CURSOR)
        if not self.said:
            say(f"{self.program}: {describe_signal(number)}")
        os._exit(EXIT_SIGNAL + number)


def _leave_watch_to_parent() -> None:
    SignalWatch.running = None
    signal.set_wakeup_fd(-1)


def say(line: str) -> None:
    """Print on stderr without Python's buffers, whose locks another thread may hold."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode(errors="backslashreplace"))


def command_is_over() -> None:
    """From here on a signal only starts the watch's clock: what is left to do takes milliseconds and has to be."""
    if SignalWatch.running is not None:
        handle_ending_signals(lambda _number, _frame: None)
        SignalWatch.running.said = True


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C and its kin back until the block has ended, however it ends; then the first one acts as usual.

    Signals that are ignored, or kill at once, stay as they are. Other threads than the main one never see a signal:
    there is nothing to hold back in them.

    Yields:
        a function that lets a signal which has arrived act already now; again at each call, for code in the block may
        catch the exception.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
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
        deliver()


@contextlib.contextmanager
def terminal_signals_held() -> Iterator[None]:
    """Processes that start in the block never get them; this one gets them at its end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

"""What every console script does around its command line: a signal ends it with one line from its first moment to its
last, and what other programs have left in its environment does not break it.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from dsf.shell.errors import EXIT_FAILED, EXIT_SIGNAL, UNREAD
from dsf.shell.interrupts import (
    SignalWatch,
    command_is_over,
    describe_signal,
    handle_ending_signals,
    say,
    unwinding_signal,
)

SIZES = ("COLUMNS", "LINES")
"""Of a terminal."""


def run_console_script(program: str, load: Callable[[], Callable[[], NoReturn]]) -> NoReturn:
    """Run a command line to its exit code.

    Args:
        program: its name, for the lines that are printed.
        load: imports the command line, which takes seconds, and returns its ``main``.
    """
    watch = SignalWatch(program)

    def end_at_once(number: int, _frame: FrameType | None) -> None:
        """While modules are imported there is nothing to clean up, and C code in between would swallow an exception."""
        watch.end(number)

    handle_ending_signals(end_at_once)
    watch.start()
    mend_environment()
    code = EXIT_FAILED
    try:
        load()()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:  # before the command's own handling of errors stood, or after it had ended
        code = _told(program, error)
    command_is_over()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    # Python's own end would wait for threads and take libraries down in an order that nobody has tried, and a signal
    # meanwhile would leave temporary files.
    atexit._run_exitfuncs()
    os._exit(code)


def _told(program: str, error: BaseException) -> int:
    """Say in one line what ended a command line from outside of its command; the exit code."""
    if (number := unwinding_signal()) is not None:
        say(f"{program}: {describe_signal(number)}")
        return EXIT_SIGNAL + number
    if isinstance(error, BrokenPipeError):
        say(f"{program}: {UNREAD}")
        return EXIT_SIGNAL + signal.SIGPIPE
    say(f"{program}: internal error, {type(error).__name__}: {' '.join(str(error).split())}; it cannot start")
    return EXIT_FAILED


def mend_environment() -> None:
    """Make harmless what is left in the environment for other programs.

    - A terminal without a width or a height (``COLUMNS=0``), for which nothing can be drawn.
    - Warnings as errors (``PYTHONWARNINGS=error``), with which hardly a library can be imported; worker processes
      inherit it.
    - An output whose encoding lacks letters that names have.
    """
    for name in SIZES:
        if name in os.environ and not (os.environ[name].isdigit() and int(os.environ[name])):
            del os.environ[name]
    if any(action == "error" for action, *_ in warnings.filters):
        warnings.resetwarnings()
        warnings.simplefilter("ignore")
        os.environ.pop("PYTHONWARNINGS", None)
        sys.warnoptions[:] = [option for option in sys.warnoptions if not option.startswith("error")]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

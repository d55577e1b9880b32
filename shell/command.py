"""What every command line shares: dataclass arguments through tyro, one-line errors, exit codes."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn, TypeVar

import tyro

from dsf.shell.errors import EXIT_FAILED, EXIT_SIGNAL, EXIT_USAGE, CommandFailed, UserError

DEBUG_FLAG = "--debug"
UNREAD = "nobody reads the output any more (broken pipe)"

Config = TypeVar("Config")


def parse_arguments(config_type: Any, program: str, description: str, arguments: Sequence[str]) -> Any:
    """Turn command-line arguments into ``config_type`` (a dataclass, or a union of subcommands).

    Raises:
        UserError: the arguments do not fit; tyro's boxed message is folded into one line.
    """
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            return tyro.cli(config_type, prog=program, description=description, args=list(arguments))
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        # tyro draws a box: its first line is a title that the text repeats, the others are framed by bars.
        lines = [line for line in shown.getvalue().splitlines() if not line.startswith(("\u256d", "\u2570"))]
        raise UserError(" ".join(re.sub(r"[\u2500-\u257f]+", " ", " ".join(lines)).split())) from None


def _terminate(signum: int, _frame: FrameType | None) -> NoReturn:
    """Turn a signal into an ordinary exit, so that context managers stop child processes on the way out."""
    raise SystemExit(EXIT_SIGNAL + signum)


def _handle_signals() -> None:
    """Unwind on every signal that ends a program, but leave alone what is ignored on purpose (nohup)."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _terminate, signal.SIGHUP: _terminate}
    for number, handler in handlers.items():
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def run_command(main: Callable[[Any], int | None], config_type: Any, program: str, description: str) -> NoReturn:
    """Run one command line to its exit code: 0, 1 (a proof failed), 2 (bad input) or 128 + signal.

    Any mistake of the user's ends as one line on stderr; ``--debug`` shows the traceback instead.
    """
    arguments = [argument for argument in sys.argv[1:] if argument != DEBUG_FLAG]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        _handle_signals()
        description = f"{description} {DEBUG_FLAG} shows tracebacks."
        code = main(parse_arguments(config_type, program, description, arguments)) or 0
        sys.stdout.flush()
    except BaseException as error:
        if (ending := _ending(error)) is None:
            raise
        code = _fail(program, *ending, debug)
    sys.exit(code)


def _ending(error: BaseException) -> tuple[str, int] | None:
    """The line and the exit code of a command that ended with ``error``; None for an exit that needs no line."""
    if (number := _signal_behind(error)) is not None:
        text = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
        return text, EXIT_SIGNAL + number
    unread = isinstance(error, BrokenPipeError) or (  # rich turns it into an exit without a word
        isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError)
    )
    if unread:
        return UNREAD, EXIT_SIGNAL + signal.SIGPIPE
    if isinstance(error, UserError):
        return str(error), EXIT_USAGE
    if isinstance(error, CommandFailed):
        return str(error), EXIT_FAILED
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), EXIT_USAGE
    if isinstance(error, Exception):
        text = f"internal error, {type(error).__name__}: {' '.join(str(error).split())}; {DEBUG_FLAG} shows where"
        return text, EXIT_FAILED
    return None


def _signal_behind(error: BaseException) -> int | None:
    """The signal that an exception stands for, itself or at the start of its chain of causes.

    A signal that strikes while a module written in C is imported becomes an ImportError caused by ours.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            return int(signal.SIGINT)
        if isinstance(cause, SystemExit) and isinstance(cause.code, int) and cause.code > EXIT_SIGNAL:
            return cause.code - EXIT_SIGNAL
        cause = cause.__cause__
    return None


def _fail(program: str, message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"{program}: {message}", file=sys.stderr, flush=True)
    _drop_unwritable_output()
    return code


def _drop_unwritable_output() -> None:
    """Let go of output that cannot be written: at its end the interpreter would try again and print a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

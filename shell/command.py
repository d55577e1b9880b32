"""What every command line shares: dataclass arguments through tyro, sub-commands, one-line errors, exit codes.

A command is an action on a config, a frozen dataclass whose fields are its options. One rule says where a config is
checked, so that a function call and a command line refuse the same things with the same words:

- What depends on the values alone (ranges, options that exclude each other) is checked in the dataclass's
  ``__post_init__``, which raises :class:`~dsf.shell.errors.UserError`: no wrong config exists, whoever makes it. tyro
  lets that error through.
- What depends on the machine (files, installed packages, graphics cards) is checked by a function
  ``require_possible(config)`` beside the action, which calls it first: a config may be made on one machine and used on
  another.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, NoReturn, TypeVar, Union

import tyro

from dsf.shell.errors import EXIT_FAILED, EXIT_SIGNAL, EXIT_USAGE, UNREAD, CommandFailed, UserError
from dsf.shell.interrupts import (
    command_is_over,
    describe_signal,
    forget_signals,
    handle_ending_signals,
    unwind,
    unwinding_signal,
)
from dsf.shell.plain_text import plain

DEBUG_FLAG = "--debug"
TORCH_REFUSES = "Invalid log settings"
"""What torch says, when it is imported, of a TORCH_LOGS that it does not understand."""
_HOME = re.compile(r"^(--[\w.-]+=)~(?=/|$)")
"""A home directory that no shell expands: in ``--out=~/runs``, for which it would make a directory called ``~``."""

Config = TypeVar("Config")


@dataclass(frozen=True)
class Command(Generic[Config]):
    """One thing that a command line does.

    Attributes:
        action: gets the config; returns the exit code, or None for 0.
        config: frozen dataclass of the options.
        description: one line for --help.
    """

    action: Callable[[Config], int | None]
    config: type[Config]
    description: str


Commands = Mapping[str, Command[Any]]
"""Sub-commands by name, in the order in which they are listed."""


def parse_arguments(config_type: Any, program: str, description: str, arguments: Sequence[str]) -> Any:
    """Turn command-line arguments into ``config_type`` (a dataclass, or a union of subcommands).

    Options change the config that its ``starting_point(words)``, where it has one, gives in place of its defaults.

    Raises:
        UserError: the arguments do not fit; tyro's boxed message is folded into one line.
    """
    shown = io.StringIO()
    words = [_HOME.sub(lambda found: f"{found[1]}{_home(found[0])}", word) for word in arguments]
    try:
        with contextlib.redirect_stderr(shown):
            start = getattr(config_type, "starting_point", lambda _words: None)(words)
            default = {} if start is None else {"default": start}
            return tyro.cli(config_type, prog=program, description=description, args=words, **default)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        # tyro draws a box: its first line is a title that the text repeats, the others are framed by bars.
        lines = [line for line in shown.getvalue().splitlines() if not line.startswith(("\u256d", "\u2570"))]
        raise UserError(" ".join(re.sub(r"[\u2500-\u257f]+", " ", " ".join(lines)).split())) from None


def _home(word: str) -> str:
    """The user's home directory.

    Raises:
        UserError: there is none, so that ``~`` would become a directory's name.
    """
    home = os.path.expanduser("~")  # noqa: PTH111
    if home == "~":
        raise UserError(f"{word}: this user has no home directory: write the path in full")
    return home


def run_commands(program: str, default: Command[Any] | None, commands: Commands) -> NoReturn:
    """Run a command line with sub-commands to its exit code; see :func:`run_command`.

    Args:
        program: its name.
        default: what runs where the first argument names no sub-command; None: only sub-commands do, ``--help`` lists
            them, and anything else is refused.
        commands: each has its own ``--help``, and its name stands before its errors.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in commands:
        _run(commands[name], f"{program} {name}", sys.argv[2:])
    if default is not None:
        _run(default, program, sys.argv[1:])
    if name in ("-h", "--help"):
        print("\n".join(f"{program} {known}: {command.description}" for known, command in commands.items()))
        sys.exit()
    print(f"{program}: name one of {', '.join(commands)}; {program} COMMAND --help lists its options", file=sys.stderr)
    sys.exit(EXIT_USAGE)


def one_of(commands: Commands, description: str) -> Command[Any]:
    """A command whose first argument is the name of another one, as one parser: its ``--help`` lists them all.

    Args:
        commands: told apart by their configs' types.
        description: of all of them.
    """
    parts = [
        Annotated[command.config, tyro.conf.subcommand(name, description=command.description)]
        for name, command in commands.items()
    ]

    def act(config: Any) -> int | None:
        return next(command for command in commands.values() if type(config) is command.config).action(config)

    union: Any = Union[tuple(parts)]  # noqa: UP007 (the parts are known only here)
    return Command(act, union, description)


def run_command(main: Callable[[Any], int | None], config_type: Any, program: str, description: str) -> NoReturn:
    """Run one command line to its exit code: 0, 1 (a proof failed), 2 (bad input) or 128 + signal.

    Any mistake of the user's ends as one line on stderr; ``--debug`` shows the traceback instead.
    """
    _run(Command(main, config_type, description), program, sys.argv[1:])


def _run(command: Command[Any], program: str, given: Sequence[str]) -> NoReturn:
    """Run a command with these arguments to its exit code."""
    arguments = [argument for argument in given if argument != DEBUG_FLAG]
    debug = len(arguments) < len(given)
    forget_signals()
    try:
        handle_ending_signals(unwind)
        description = f"{command.description} {DEBUG_FLAG} shows tracebacks."
        code = command.action(parse_arguments(command.config, program, description, arguments)) or 0
        sys.stdout.flush()
    except BaseException as error:
        command_is_over()
        if (ending := ending_of(error)) is None:
            raise
        code = _fail(program, *ending, debug)
    sys.exit(code)


def ending_of(error: BaseException) -> tuple[str, int] | None:
    """The line and the exit code of a command that ended with ``error``; None for an exit that needs no line."""
    if (number := _signal_behind(error)) is not None:
        return describe_signal(number), EXIT_SIGNAL + number
    unread = isinstance(error, BrokenPipeError) or (  # rich turns it into an exit without a word
        isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError)
    )
    if unread:
        return UNREAD, EXIT_SIGNAL + signal.SIGPIPE
    if isinstance(error, UserError):
        return str(error), EXIT_USAGE
    if isinstance(error, CommandFailed):
        return str(error), EXIT_FAILED
    if isinstance(error, MemoryError):
        return f"out of memory: {error}".rstrip(": ") + "; ask for less, or use a larger machine", EXIT_FAILED
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), EXIT_USAGE
    if isinstance(error, ValueError) and TORCH_REFUSES in str(error):
        return (
            f"TORCH_LOGS is '{os.environ.get('TORCH_LOGS')}', with which torch cannot be imported: unset it",
            EXIT_USAGE,
        )
    if isinstance(error, Exception):
        text = f"internal error, {type(error).__name__}: {' '.join(str(error).split())}; {DEBUG_FLAG} shows where"
        return text, EXIT_FAILED
    return None


def _signal_behind(error: BaseException) -> int | None:
    """The signal that an exception stands for, itself or at the start of its chain of causes.

    A signal that strikes while a module written in C is imported becomes an ImportError caused by ours, or something
    else; that it has struck is known in any case.
    """
    if (number := unwinding_signal()) is not None:
        return number
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
    # A message may repeat what a file says: it stays one line, and steers no terminal.
    print(f"{program}: {plain(' '.join(message.splitlines()))}", file=sys.stderr, flush=True)
    _drop_unwritable_output()
    return code


def _drop_unwritable_output() -> None:
    """Let go of output that cannot be written: at its end the interpreter would try again and print a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

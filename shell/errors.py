"""Errors that a person reads as one line, and the exit codes that they end with."""

from __future__ import annotations

import struct
import zlib

EXIT_FAILED = 1
"""The input was fine, but the command could not do or prove what was asked."""
EXIT_USAGE = 2
"""The input was wrong."""
EXIT_SIGNAL = 128
"""Added to a signal's number, as shells do."""
UNREAD = "nobody reads the output any more (broken pipe)"


class UserError(Exception):
    """A mistake in the input. Its message is one line: what is wrong, where, and what to do."""


class CommandFailed(Exception):
    """The input was fine, but the command could not do or prove what was asked. One line, exit code 1."""


UNREADABLE: tuple[type[Exception], ...] = (
    OSError,
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    MemoryError,
    AssertionError,
    EOFError,
    struct.error,
    zlib.error,
)
"""What libraries raise at a file that is not what they take it for; a reader turns each into one line."""

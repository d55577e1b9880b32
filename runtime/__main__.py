"""``dsf-sim-run``, also ``python -m dsf.runtime``: signals end it with one line from its first moment to its last."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from dsf.shell.interrupts import ENDING_SIGNALS


def _end_at_once(number: int, _frame: FrameType | None) -> NoReturn:
    """While modules are imported there is nothing to clean up, and C code in between would swallow an exception."""
    text = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    os.write(sys.stderr.fileno(), f"dsf-sim-run: {text}\n".encode())
    os._exit(128 + number)


def _handle(handler: signal._HANDLER) -> None:
    """Set a handler, except for what is ignored on purpose (nohup, a script's background job)."""
    for number in ENDING_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def main() -> NoReturn:
    """Console script."""
    _handle(_end_at_once)
    # numpy's OpenBLAS starts its threads when it is imported. Nothing here multiplies large float matrices with it, and
    # where no thread may start (ulimit -u) it prints lines of its own and raises SIGINT before dsf has a say.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from dsf.runtime import cli

    try:
        cli.main()
    finally:
        _handle(signal.SIG_DFL)  # while the interpreter ends, an exception would only print a traceback


if __name__ == "__main__":
    main()

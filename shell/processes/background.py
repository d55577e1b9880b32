"""One thing at a time in a thread of its own, however and whenever the main thread is interrupted.

A signal's exception may strike between the moment at which the main thread has got a lock of Python's ``Condition`` and
the one at which it is to let go of it: the thread on the other side then waits for ever, and whoever joins it, too.
``concurrent.futures`` is made of such locks (1 in about 500 interrupts of a busy loop hung). A ``SimpleQueue`` is
written in C and has no such moment.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Generic, TypeVar

from dsf.shell.interrupts import interrupts_deferred

Answer = TypeVar("Answer")

STOP_S = 2.0
"""Longest wait for the thread at the end; it ends with the program at the latest."""

_Questions = SimpleQueue[Callable[[], Any] | None]
_Answers = SimpleQueue[tuple[Any, BaseException | None]]


class Background(Generic[Answer]):
    """Context manager around the thread. Every :meth:`begin` is followed by an :meth:`answer` before the next one; at
    the end, what is not begun yet is dropped and what is being done is waited for.
    """

    def __init__(self, name: str) -> None:
        self._questions: _Questions = SimpleQueue()
        self._answers: _Answers = SimpleQueue()
        self._thread = threading.Thread(target=_work, args=(self._questions, self._answers), name=name, daemon=True)

    def __enter__(self) -> Background[Answer]:
        with interrupts_deferred():
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self._questions.put(None)
        self._thread.join(STOP_S if kind is not None else None)

    def begin(self, call: Callable[[], Answer]) -> None:
        """Have the thread call a function."""
        self._questions.put(call)

    def is_ready(self) -> bool:
        """Whether the answer is there."""
        return not self._answers.empty()

    def answer(self) -> Answer:
        """What the function has returned; waits for it. What it has raised is raised here."""
        value, error = self._answers.get()
        if error is not None:
            raise error
        answer: Answer = value
        return answer


def _work(questions: _Questions, answers: _Answers) -> None:
    while (call := questions.get()) is not None:
        try:
            answers.put((call(), None))
        except BaseException as error:
            answers.put((None, error))

"""Lava's channels without helper threads: the same shared memory, its two semaphores used directly.

A stock port has a thread that waits at the semaphore and hands on to the process's main thread, so that a message
wakes four threads instead of two; hundreds of such wake-ups are what a decision costs. Here the main thread waits at
the semaphore itself. Whoever sends, receives, stops or kills notices no difference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from queue import Empty
from typing import Any

import numpy as np
import numpy.typing as npt
from lava.magma.compiler.channels import pypychannel
from lava.magma.compiler.channels.pypychannel import CspRecvPort, CspSelector, CspSendPort
from lava.magma.core.model.py import model
from lava.magma.runtime import runtime
from lava.magma.runtime.runtime_services import runtime_service

SELECT_POLL_S = 0.001
"""How often a wait for several channels looks at all of them; Lava's own services wait for one."""


def _slots(port: CspSendPort | CspRecvPort) -> npt.NDArray[Any]:
    """A port's messages in shared memory, (size, *shape)."""
    return np.ndarray((port.size, *port.shape), port.d_type, port._shm.buf)


class DirectSendPort(CspSendPort):
    """Sends without a thread; the acknowledgements that a stock port's thread collects are taken when needed."""

    _idx: int

    def start(self) -> None:
        """Map the shared memory."""
        self._array, self._unused = _slots(self), self._size

    def probe(self) -> bool:
        """Whether :meth:`send` would not block."""
        return self._unused > 0 or self._ack.get_value() > 0

    def send(self, data: npt.NDArray[Any]) -> None:
        """Write one message; blocks while the channel is full."""
        if data.shape != self._shape:
            raise AssertionError(f"{self._name}: a message of shape {data.shape}, expected {self._shape}")
        if self._unused > 0:
            self._unused -= 1
        else:
            self._ack.acquire()
        self._array[self._idx] = data
        self._idx = (self._idx + 1) % self._size
        self._req.release()


class DirectRecvPort(CspRecvPort):
    """Receives without a thread. Only one thread may wait at it."""

    _idx: int

    def start(self) -> None:
        """Map the shared memory."""
        self._array = _slots(self)

    def probe(self) -> bool:
        """Whether :meth:`recv` would not block."""
        return bool(self._req.get_value() > 0)

    def wait(self, timeout: float | None = None) -> bool:
        """Block until there is a message, at most ``timeout`` seconds; returns whether there is one."""
        arrived: bool = self._req.acquire(timeout=timeout)
        if arrived:
            self._req.release()  # recv takes it
        return arrived

    def peek(self) -> npt.NDArray[Any]:
        """Copy the next message and leave it; blocks while there is none."""
        self.wait()
        return self._array[self._idx].copy()

    def recv(self) -> npt.NDArray[Any]:
        """Take the next message; blocks while there is none."""
        self._req.acquire()
        message = self._array[self._idx].copy()
        self._idx = (self._idx + 1) % self._size
        self._ack.release()
        return message


class DirectSelector(CspSelector):
    """Waits for the first of several receiving ports that has a message."""

    def select(self, *channel_actions: tuple[DirectRecvPort, Callable[[], Any]]) -> Any:
        """Run the action of a port that has a message and return its result."""
        first, _ = channel_actions[0]
        while True:
            first.wait(None if len(channel_actions) == 1 else SELECT_POLL_S)
            for port, action in channel_actions:
                if port.probe():
                    return action()


_REPLACED: tuple[tuple[Any, str, type], ...] = (
    (pypychannel, "CspSendPort", DirectSendPort),
    (pypychannel, "CspRecvPort", DirectRecvPort),
    *((module, "CspSelector", DirectSelector) for module in (model, runtime, runtime_service)),
)
"""Module, name and what stands there: PyPyChannel looks its ports up by name when it is made."""


@contextlib.contextmanager
def direct_channels() -> Iterator[None]:
    """Let runtimes that are created within have direct channels; everything is as before afterwards.

    A runtime keeps its channels, and its processes are forked with these names, so only its creation needs them.
    """
    originals = [(module, name, getattr(module, name)) for module, name, _ in _REPLACED]
    for module, name, replacement in _REPLACED:
        setattr(module, name, replacement)
    try:
        yield
    finally:
        for module, name, original in originals:
            setattr(module, name, original)


def wait_for_message(port: CspRecvPort, timeout: float) -> bool:
    """Block until a stock or direct port has a message, at most ``timeout`` seconds; returns whether there is one."""
    if isinstance(port, DirectRecvPort):
        return port.wait(timeout)
    try:
        port._queue.get(timeout=timeout, peek=True)
    except Empty:
        return False
    return True

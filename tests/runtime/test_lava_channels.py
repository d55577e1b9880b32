"""Channels without helper threads: the same messages and spikes, and every fault ends a run as with stock channels."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsf.export.network.file import write_network
from dsf.export.network.network import Mode, Network
from dsf.runtime.engines.errors import EngineDied
from dsf.runtime.engines.interface import LavaModel, LavaOptions
from dsf.runtime.engines.parity import ParityCheck
from dsf.runtime.open_engine import open_engine
from dsf.testing.lava import lava_runs_here
from dsf.testing.leftovers import shared_memory_segments
from dsf.testing.random_networks import random_network, random_tokens

LIMIT_S = 10.0
FAST = LavaOptions(fast_channels=True)
MESSAGES = 200
"""Through a channel of three slots."""


pytestmark = pytest.mark.skipif(not lava_runs_here(), reason="Lava is frozen on Python 3.10")


@pytest.fixture
def channel() -> Iterator[Any]:
    """A direct channel of three int32 pairs; both ends in this process."""
    from lava.magma.compiler.channels.pypychannel import PyPyChannel
    from lava.magma.runtime.message_infrastructure.multiprocessing import MultiProcessing

    from dsf.runtime.lava_backend.channels import direct_channels

    infrastructure = MultiProcessing()
    infrastructure.start()
    with direct_channels():
        made = PyPyChannel(infrastructure, "source", "target", (2,), np.int32, 3)
    made.src_port.start()
    made.dst_port.start()
    yield made
    infrastructure.stop()


def test_messages_arrive_once_and_in_order_through_a_full_channel(channel: Any) -> None:
    sent = np.arange(2 * MESSAGES, dtype=np.int32).reshape(MESSAGES, 2)
    sender = threading.Thread(target=lambda: [channel.src_port.send(message) for message in sent])
    sender.start()
    time.sleep(0.05)  # the sender meets a full channel
    assert sender.is_alive() and not channel.src_port.probe()
    received = np.stack([channel.dst_port.recv() for _ in sent])
    sender.join()
    assert np.array_equal(received, sent)
    assert channel.src_port.probe() and not channel.dst_port.probe()


def test_looking_at_a_message_leaves_it_there(channel: Any) -> None:
    from dsf.runtime.lava_backend.channels import wait_for_message

    assert not channel.dst_port.wait(0.01) and not wait_for_message(channel.dst_port, 0.01)
    channel.src_port.send(np.array([1, 2]))
    assert channel.dst_port.probe() and wait_for_message(channel.dst_port, 0.01)
    assert [channel.dst_port.peek().tolist() for _ in range(2)] == [[1, 2], [1, 2]]
    assert channel.dst_port.recv().tolist() == [1, 2] and not channel.dst_port.probe()


def test_a_message_of_another_shape_is_refused(channel: Any) -> None:
    with pytest.raises(AssertionError, match=r"source: a message of shape \(3,\), expected \(2,\)"):
        channel.src_port.send(np.zeros(3, np.int32))


@pytest.mark.parametrize("number", [1, 2])
def test_the_selector_finds_the_port_that_has_a_message(channel: Any, number: int) -> None:
    from dsf.runtime.lava_backend.channels import DirectRecvPort, DirectSelector

    class Silent(DirectRecvPort):
        def __init__(self) -> None: ...

        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None  # else the others would never be looked at
            return False

        def probe(self) -> bool:
            return False

    ports = [*(Silent() for _ in range(number - 1)), channel.dst_port]
    threading.Timer(0.02, lambda: channel.src_port.send(np.array([3, 4]))).start()
    chosen = DirectSelector().select(*((port, lambda index=index: index) for index, port in enumerate(ports)))
    assert chosen == number - 1 and channel.dst_port.recv().tolist() == [3, 4]


@pytest.mark.parametrize("fails", [False, True])
def test_lava_is_as_before_once_an_engine_has_started(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from dsf.runtime.lava_backend import channels
    from dsf.runtime.lava_backend.stages import arithmetic

    def names() -> list[Any]:
        return [getattr(module, name) for module, name, _ in channels._REPLACED]

    def broken(self: object, *arguments: object) -> None:
        raise MemoryError("injected")

    before = names()
    assert not any(found is direct for found, (*_, direct) in zip(before, channels._REPLACED))
    if fails:
        monkeypatch.setattr(arithmetic.CoincidenceHistory, "__init__", broken)
        with pytest.raises(Exception, match="injected"), open_engine(random_network(0), "lava", lava_options=FAST):
            pass
    else:
        with open_engine(random_network(0), "lava", lava_options=FAST) as engine:
            assert names() == before
            engine.step_graded(np.zeros((1, engine.network.encoder.size), int))
    assert names() == before


@pytest.mark.slow
@pytest.mark.parametrize(("model", "mode"), [("fused", "stream"), ("fused", "window"), ("expanded", "stream")])
def test_spikes_are_the_same(model: LavaModel, mode: Mode) -> None:
    network = random_network(0, blocks=2, ticks=2, attention="tssa")
    check = ParityCheck(network, mode)
    with open_engine(network, "lava", model, mode, FAST) as engine:
        for token in random_tokens(network, 6, 1, seed=0):
            check.check(token, *engine.step_graded(token))
    assert check.result.exact and check.result.compared_spikes > 0, check.result


def test_no_port_has_a_thread() -> None:
    """One main thread per process, and the feeder of the queue through which Lava reports a failing start."""
    with open_engine(random_network(0), "lava", lava_options=FAST) as engine:
        engine.step_graded(np.zeros((1, engine.network.encoder.size), int))
        actors = engine.supervisor.actors  # type: ignore[attr-defined]
        assert all(len(list(Path(f"/proc/{actor.pid}/task").iterdir())) <= 2 for actor in actors)


def test_exception_inside_a_process_model_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    from dsf.runtime.lava_backend.stages import arithmetic

    def broken(self: object, tick: int) -> np.ndarray:
        raise ZeroDivisionError("injected")

    monkeypatch.setattr(arithmetic.CoincidenceHistory, "current", broken)
    message = "a Lava process model failed: ZeroDivisionError: injected"
    assert_dies(random_network(0), message)


@pytest.mark.slow
@pytest.mark.parametrize("position", [0, -1])
def test_killed_child_is_reported(position: int) -> None:
    """A block, or the service that drives all of them."""
    assert_dies(random_network(0), "Lava child .* died .*-9", kill=position)


def assert_dies(network: Network, message: str, kill: int | None = None) -> None:
    """The next decision ends with ``message``, in time, and nothing is left."""
    with pytest.raises(EngineDied, match=message), open_engine(network, "lava", lava_options=FAST) as engine:
        pids = [actor.pid for actor in engine.supervisor.actors]  # type: ignore[attr-defined]
        segments = set.union(*map(mapped_segments, pids))
        assert segments
        if kill is not None:
            os.kill(pids[kill], signal.SIGKILL)
        started = time.monotonic()
        engine.step_graded(np.zeros((1, network.encoder.size), int))
    assert time.monotonic() - started < LIMIT_S
    assert not any(map(alive, pids))
    assert not segments & shared_memory_segments()


LOOP = """
import numpy as np
from dsf.export.network.file import read_network
from dsf.runtime.cli import SimRunConfig
from dsf.runtime.engines.interface import LavaOptions
from dsf.runtime.open_engine import open_engine
from dsf.shell.command import run_command

def run(config):
    network = read_network(config.network)
    token = np.zeros((1, network.encoder.size), int)
    with open_engine(network, "lava", lava_options=LavaOptions(fast_channels=True)) as engine:
        engine.step_graded(token)
        print(*(actor.pid for actor in engine.supervisor.actors), flush=True)
        while True:
            engine.step_graded(token)

run_command(run, SimRunConfig, "loop", "Run for ever.")
"""


@pytest.mark.slow
def test_sigterm_ends_everything(tmp_path: Path) -> None:
    path = tmp_path / "net.dsf.h5"
    write_network(random_network(0), path)
    command = [sys.executable, "-c", LOOP, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        children = [int(pid) for pid in process.stdout.readline().split()]
        segments = set.union(*(mapped_segments(child) for child in children))
        assert len(children) >= 3 and segments
        process.terminate()
        assert process.wait(LIMIT_S) == 143
        assert process.stderr.read().strip() == "loop: ended by SIGTERM"
    assert not any(alive(child) for child in children)
    assert not segments & shared_memory_segments()


def mapped_segments(pid: int) -> set[str]:
    """Shared memory that a process has mapped: other runs on this machine have some, too."""
    return set(re.findall(r"psm_\w+", Path(f"/proc/{pid}/maps").read_text()))


def alive(pid: int | None) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False

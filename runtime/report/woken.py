"""In how many tokens every neuron fired: the reference replays a run's tokens, all episodes side by side.

Engines count spikes, not the tokens in which they fell; a schedule that fetches a row once per token needs those.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dsf.export.network.network import Mode, Network
from dsf.export.network.nodes import SPIKING_KINDS
from dsf.export.network.reference import Observer, ReferenceEngine, replay_window
from dsf.hardware_models import SpikeCounter
from dsf.shell.arrays import Int64Array, IntArray
from dsf.shell.errors import CommandFailed

LANES = 32
"""Episodes, or windows, that are replayed side by side."""


def count_woken(network: Network, mode: Mode, episodes: Sequence[IntArray], counter: SpikeCounter) -> None:
    """Give a counter the tokens in which every neuron fired.

    Args:
        network: that ran.
        mode: in which it ran.
        episodes: (decisions, features) encoder integers of each, all of them.
        counter: of the whole run; its ``woken`` is set.

    Raises:
        CommandFailed: the run has counted other spikes than the reference fires for these tokens.
    """
    replayed = SpikeCounter(network)
    for first in range(0, len(episodes), LANES):
        (_replay_windows if mode == "window" else _replay_streams)(replayed, episodes[first : first + LANES])
    for name, fired in replayed.fired.items():
        if not np.array_equal(fired, counter.fired[name]):
            raise CommandFailed(
                f"tokens in which neurons fired cannot be counted: '{name}' fired otherwise than the reference does; "
                "run without --fetch token to see where it differs"
            )
    counter.woken = replayed.woken


def _replay_streams(counter: SpikeCounter, episodes: Sequence[IntArray]) -> None:
    """One lane per episode, the longest first, so that those that have ended are the last ones."""
    network, ordered = counter.network, sorted(episodes, key=len, reverse=True)
    engine = ReferenceEngine(network, len(ordered))
    for step in range(len(ordered[0])):
        running = sum(len(episode) > step for episode in ordered)
        graded = np.zeros((len(ordered), network.encoder.size), np.int64)
        graded[:running] = [episode[step] for episode in ordered[:running]]
        spikes: dict[str, Int64Array] = {}
        engine.step_graded(graded, _keeper(network, spikes))
        _count(counter, {name: values[:, :running] for name, values in spikes.items()}, running, running)


def _replay_windows(counter: SpikeCounter, episodes: Sequence[IntArray]) -> None:
    """One lane per decision: its window, which is short at an episode's start."""
    network = counter.network
    windows = [
        episode[max(last - network.context + 1, 0) : last + 1] for episode in episodes for last in range(len(episode))
    ]
    for first in range(0, len(windows), LANES):
        lanes = windows[first : first + LANES]
        longest = max(map(len, lanes))
        graded = np.zeros((longest, len(lanes), network.encoder.size), np.int64)
        exists = np.zeros((longest, len(lanes)), np.int64)
        for lane, window in enumerate(lanes):
            graded[longest - len(window) :, lane], exists[longest - len(window) :, lane] = window, 1
        spikes: dict[str, Int64Array] = {}
        replay_window(network, graded, exists, _keeper(network, spikes))
        there = {name: values[:, exists == 1] for name, values in spikes.items()}
        _count(counter, there, int(exists.sum()), len(lanes))


def _keeper(network: Network, spikes: dict[str, Int64Array]) -> Observer:
    def keep(name: str, values: Int64Array) -> None:
        if isinstance(network[name], SPIKING_KINDS):
            spikes[name] = values

    return keep


def _count(counter: SpikeCounter, spikes: dict[str, Int64Array], tokens: int, decisions: int) -> None:
    counter.add(spikes, tokens, decisions)
    counter.wake(spikes)

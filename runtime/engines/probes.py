"""Which populations' spikes a run reports one by one; of the others it only knows how many there were."""

from __future__ import annotations

from fnmatch import fnmatchcase

from dsf.export.network.network import Network
from dsf.export.network.nodes import SPIKING_KINDS
from dsf.shell.errors import UserError

ALL_POPULATIONS = ("*",)
NO_POPULATION = "none"
"""Pattern that stands for no population at all."""


def spiking_populations(network: Network) -> tuple[str, ...]:
    """Names of all populations that fire, in evaluation order."""
    return tuple(node.name for node in network.nodes if isinstance(node, SPIKING_KINDS))


def choose_populations(network: Network, patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Names that match any of the patterns (``*``, ``?`` and ``[]`` as in file names), in evaluation order.

    Args:
        network: whose populations.
        patterns: none of them, or :data:`NO_POPULATION` alone, chooses no population.

    Raises:
        UserError: a pattern matches no population.
    """
    names = spiking_populations(network)
    if patterns == (NO_POPULATION,):
        return ()
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"--probe {pattern}: no population matches; this network has {', '.join(names)}")
    return tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))

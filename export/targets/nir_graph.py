"""NIR, the exchange format of neuromorphic simulators: what it can say of a network, and an honest list of what not.

Every node that NIR can say becomes one NIR node of the same name, all arrays float64, in synaptic units of the chip:

* Synapses: ``Linear``, weight = weights * 2**exponent. NIR knows no sparse matrix: zeros are written, and packed.
* Residual: ``Affine`` with the identity and the bias; edges that meet at a node add up.
* LIF: the bias goes into the ``Affine`` of the synapses it reads; where others read them too, or where it reads no
  synapses, into an ``Affine`` of its own, ``<name>.bias``. The neuron has v_leak = 0, v_reset = 0, r = 4096 / decay,
  tau = DT * r and v_threshold = threshold. A forward-Euler step of DT,

      v[t] = (1 - DT / tau) * v[t-1] + (r * DT / tau) * current[t];  spike where v > v_threshold, and v = 0 there,

  is then v[t] = keep * v[t-1] + a[t] + bias, keep = 1 - decay / 4096. DT is the step of snnTorch's NIR reader, which
  refuses populations whose thresholds differ, as here many do. Without leak (decay 0) the neuron is ``IF``, r = 1 / DT.
  Neurons with decays of their own have a tau and an r of their own; NIR knows no population in which only some leak.

The graph starts at an ``Input`` named after each population that is left out but read, and ends at an ``Output``
``<population>.out`` for each that is kept and read by a part that is left out. A reader must start every membrane at 0
for each token of T ticks: NIR cannot say it. ``metadata`` holds all of this, see :func:`build_nir`.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import nir
import numpy as np
import numpy.typing as npt

from dsf.export.network.file import SUFFIX, file_digest, write_network
from dsf.export.network.network import Network
from dsf.export.network.nodes import (
    LIF,
    And,
    Count,
    Encoder,
    Gate,
    HostEmbedding,
    NetworkError,
    Node,
    Outer,
    PlacedWindow,
    Readout,
    Residual,
    Synapses,
    Window,
)
from dsf.shell.files import replacing, require_writable_parent
from dsf.shell.scratch_directory import temporary_directory
from dsf.train.quantization.integers import DECAY_BITS, MEMBRANE_FRACTION_BITS

DT = 1e-4
"""Seconds of one tick."""
UNITS = (
    "currents, biases, thresholds and membranes: synaptic units of the chip (64 of Loihi's membrane units); residuals "
    "and graded inputs: their own integers; spikes: 0 or 1"
)
RESET = "membranes start at 0 for each token, so reset the state before each"
PAST = "reads spikes of earlier tokens"
REASONS: dict[type[Any], str] = {
    Encoder: "rounds and clips observations to integers; the graph starts at its graded spikes",
    HostEmbedding: "computes embedding and LayerNorm on the host; the graph starts at its graded spikes",
    Gate: "is an AND of two spikes",
    And: "is an AND of two spikes",
    Window: PAST,
    PlacedWindow: PAST,
    Count: PAST,
    Outer: PAST,
    Readout: "sums over ticks, shifts and rounds, then decides on the host",
}
"""Why NIR cannot say a kind of node."""


def build_nir(
    network: Network, partial: bool = False, source_digest: str | None = None
) -> tuple[nir.NIRGraph, list[str]]:
    """The part of a network that NIR can say, as a graph.

    ``graph.metadata`` holds ``format``, ``task``, ``ticks``, ``context``, ``dt`` (seconds per tick), ``units``,
    ``source_sha256``, as JSON lists ``omitted`` (what is returned) and ``inexact`` (nodes that are in the graph, but
    round on the chip where a simulator with real numbers does not), and as JSON ``dataset``, ``provenance`` and
    ``verification`` (the ladder) of the network.

    Args:
        network: to draw.
        partial: agree to leave out what NIR cannot say. Every network has an encoder and a readout, so all need it.
        source_digest: SHA-256 of the network file; None computes that of the file :func:`write_network` would make.

    Returns:
        the graph, and one line per omitted part with node name and reason.

    Raises:
        NetworkError: something would be left out without ``partial``, or a node's name is unusable in HDF5.
    """
    missing = [(node, reason) for node in network.nodes if (reason := _reason(node)) is not None]
    if missing and not partial:
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(type(n).__name__ for n, _ in missing).items())
        raise NetworkError(
            f"NIR cannot say {kinds}, nor the reset of all membranes before each token: "
            "--partial writes the rest of the network and lists in the file what is left out"
        )
    omitted = [f"{type(node).__name__} '{node.name}': {reason}" for node, reason in missing]
    if (bounds := _bounds(network.readout)) is not None:
        omitted.append(f"bounds of actions: {bounds}")
    if populations := list(network.of_kind(LIF)):
        omitted.append(f"reset of {len(populations)} LIF populations: {RESET}")
    graph = _Drawing(network, {node.name for node, _ in missing}).graph()
    graph.metadata = {
        "format": "dsf NIR 1",
        "task": network.task,
        "ticks": network.ticks,
        "context": network.context,
        "dt": DT,
        "units": UNITS,
        "source_sha256": _digest(network) if source_digest is None else source_digest,
        "omitted": json.dumps(omitted),
        "inexact": json.dumps(inexact_parts(network)),
        "dataset": json.dumps(network.provenance.get("dataset"), sort_keys=True),
        "provenance": json.dumps(network.provenance, sort_keys=True),
        "verification": json.dumps(network.verification, sort_keys=True),
    }
    return graph, omitted


def write_nir(network: Network, path: Path, partial: bool = False, source_digest: str | None = None) -> list[str]:
    """Write :func:`build_nir`'s graph, whole or not at all; returns the omitted parts.

    Raises:
        NetworkError: as :func:`build_nir`.
        OSError: the disk is full.
        UserError: the directory cannot be written.
    """
    require_writable_parent(path)
    graph, omitted = build_nir(network, partial, source_digest)
    content = io.BytesIO()  # a full disk is the end of libhdf5, see dsf.shell.hdf5_image
    nir.write(content, graph)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getvalue())  # no view: where it fails, Python 3.12 crashes as it collects one
    return omitted


def inexact_parts(network: Network) -> list[str]:
    """Nodes whose integers are rounded on the chip and not by a reader of NIR, one line each."""
    lines = []
    for node in network.nodes:
        if isinstance(node, Synapses) and node.exponent < 0:
            lines.append(f"Synapses '{node.name}': the chip rounds its sum * 2**{node.exponent} down to an integer")
        if isinstance(node, LIF) and not leak_is_exact(node, network.ticks):
            lines.append(f"LIF '{node.name}': the chip rounds what the leak keeps towards 0, to 1/64 synaptic unit")
    return lines


def leak_is_exact(node: LIF, ticks: int) -> bool:
    """Whether the Euler step in float64 is the chip's step, bit for bit, at all ticks of a token.

    Currents are whole, so a membrane is a multiple of g = gcd(64, biases) after one tick. A leak that keeps whole
    multiples rounds nothing, and the next membrane is a multiple of gcd(g, kept multiple). tau must be exact, too.
    """
    drive = int(np.gcd.reduce([1 << MEMBRANE_FRACTION_BITS, *node.bias.tolist()]))
    return all(_is_exact(decay, drive, ticks) for decay in np.unique(node.decays).tolist())


def _is_exact(decay: int, drive: int, ticks: int) -> bool:
    """The same of one decay, where what is added per tick is a multiple of ``drive``."""
    full = 1 << DECAY_BITS
    keep, grain = full - decay, drive
    if decay and (1 - DT / _tau(decay), full / decay * DT / _tau(decay)) != (keep / full, 1.0):
        return False
    for _ in range(ticks - 1):
        if grain * keep % full:
            return False
        grain = int(np.gcd(grain * keep // full, drive))
    return True


def _reason(node: Node) -> str | None:
    """Why NIR cannot say a node, None where it can."""
    if isinstance(node, Residual) and len(set(node.sources)) < len(node.sources):
        return "adds a source twice, and NIR knows an edge only once"
    if isinstance(node, LIF) and 0 in node.decays and node.decays.any():
        return "has neurons with a leak and some without, and NIR knows only populations of either"
    return REASONS.get(type(node))


def _bounds(readout: Readout) -> str | None:
    """What a machine has to do with the actions that the host decides, which no graph says; None where nothing."""
    if not readout.has_commands:
        return None
    if readout.head == "choice":
        return f"the machine's choice is the place of the largest score + {readout.first_choice}"
    ends = " to ".join(
        "[" + ", ".join(f"{value:.9g}" for value in bound) + "]" for bound in (readout.low, readout.high)
    )
    return f"the host stretches actions in [-1, 1] to {ends}"


def _digest(network: Network) -> str:
    """SHA-256 of the network file of this network."""
    with temporary_directory("dsf-network-") as folder:
        path = folder / f"network{SUFFIX}"
        write_network(network, path)
        return file_digest(path)


def _tau(decay: Any) -> Any:
    """Of one decay, or of an array of them."""
    return DT * (1 << DECAY_BITS) / decay


def _neuron(node: LIF) -> nir.NIRNode:
    """The neuron of a population, see the module's text."""
    zeros, threshold = np.zeros(node.size), node.threshold.astype(np.float64)
    if not node.decays.any():
        return nir.IF(r=np.full(node.size, 1 / DT), v_threshold=threshold, v_reset=zeros)
    return nir.LIF(
        tau=_tau(node.decays),
        r=(1 << DECAY_BITS) / node.decays,
        v_leak=zeros,
        v_threshold=threshold,
        v_reset=zeros.copy(),
    )


class _Drawing:
    """A graph while it is drawn, node by node in evaluation order."""

    def __init__(self, network: Network, omitted: set[str]) -> None:
        self.network, self.omitted = network, omitted
        self.nodes: dict[str, nir.NIRNode] = {}
        self.edges: list[tuple[str, str]] = []
        self.readers: dict[str, list[Node]] = {node.name: [] for node in network.nodes}
        for node in network.nodes:
            for source in node.sources:
                self.readers[source].append(node)

    def graph(self) -> nir.NIRGraph:
        """Draw all nodes, and the ends where parts are left out."""
        for node in self.network.nodes:
            readers = self.readers[node.name]
            if node.name not in self.omitted:
                self._draw(node)
                if not readers or any(reader.name in self.omitted for reader in readers):
                    self._add(f"{node.name}.out", nir.Output(np.array([node.size])), node.name)
            elif any(reader.name not in self.omitted for reader in readers):
                self._add(node.name, nir.Input(np.array([node.size])))
        return nir.NIRGraph(self.nodes, self.edges)

    def _draw(self, node: Node) -> None:
        if isinstance(node, Synapses):
            weight, bias = node.weights * 2.0**node.exponent, self._bias_of_only_reader(node)
            drawn = nir.Linear(weight) if bias is None else nir.Affine(weight, bias)
            self._add(node.name, drawn, node.source)
        elif isinstance(node, Residual):
            self._add(node.name, nir.Affine(np.eye(node.size), node.bias.astype(np.float64)), *node.sources)
        elif isinstance(node, LIF):
            self._add(node.name, _neuron(node), self._current_of(node))

    def _bias_of_only_reader(self, node: Synapses) -> npt.NDArray[np.float64] | None:
        """The bias, in synaptic units, that these synapses can take over from the one LIF that reads them."""
        readers = self.readers[node.name]
        if len(readers) == 1 and isinstance(readers[0], LIF) and readers[0].bias.any() and not _reason(readers[0]):
            return readers[0].bias / (1 << MEMBRANE_FRACTION_BITS)
        return None

    def _current_of(self, node: LIF) -> str:
        """The node that gives a population its current, bias included."""
        source = self.network[node.source]
        if not node.bias.any() or (isinstance(source, Synapses) and len(self.readers[source.name]) == 1):
            return node.source
        shifted = nir.Affine(np.eye(node.size), node.bias / (1 << MEMBRANE_FRACTION_BITS))
        self._add(f"{node.name}.bias", shifted, node.source)
        return f"{node.name}.bias"

    def _add(self, name: str, node: nir.NIRNode, *sources: str) -> None:
        if name in self.nodes or "/" in name or name in ("", "."):
            raise NetworkError(f"cannot write network node '{name}' as NIR: its name is taken or unusable; rename it")
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]

"""Lava-dl's exchange file ``.net`` (HDF5): one dense stage of a network, exactly as ``lava.lib.dl.netx`` computes it.

netx is a chain of layers: it knows no attention, no residual and no gate, and drops layers it does not know without a
word. So a network does not fit, but each of its dense stages does: synapses that read binary spikes, and the LIF
population behind them. A file holds one stage. Load it with the reset of membranes that the network has::

    hdf5.Network(net_config=path, reset_interval=ticks, reset_offset=RESET_OFFSET)

Spikes sent at tick t of a token leave at t + 1, and that is the neurons' tick t: a dense layer takes one tick. The
file's root attributes repeat these two numbers, and its texts ``provenance`` and ``verification`` (JSON) are the
network's; netx does not look at them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from dsf.export.network.network import Network
from dsf.export.network.nodes import LIF, SPIKING_KINDS, NetworkError, Synapses
from dsf.shell.arrays import IntArray
from dsf.shell.files import replacing, require_writable_parent
from dsf.shell.hdf5_image import hdf5_image
from dsf.train.quantization.integers import BIAS_MANTISSA_BITS, MEMBRANE_FRACTION_BITS

RESET_OFFSET = 1
"""netx's ``reset_offset`` that makes membranes start at 0 when a token's first spikes arrive."""
SMALLEST_WEIGHT, LARGEST_WEIGHT = -256, 254
"""What netx passes on unclipped. Synapses of 8 bits whose exponent is folded in may use the ninth."""
NO_CURRENT_MEMORY = 4096
"""``iDecay`` of a current that is forgotten at once."""
LARGEST_BIAS = (1 << (BIAS_MANTISSA_BITS - 1)) - 1


@dataclass(frozen=True)
class DenseStage:
    """Synapses that read binary spikes, and the LIF population that they drive; named after the synapses."""

    synapses: Synapses
    lif: LIF

    @property
    def name(self) -> str:
        """The name to ask for."""
        return self.synapses.name


def dense_stages(network: Network) -> list[DenseStage]:
    """All dense stages of a network, in evaluation order."""
    synapses = {node.name: node for node in network.of_kind(Synapses) if _reads_spikes(network, node)}
    return [DenseStage(synapses[lif.source], lif) for lif in network.of_kind(LIF) if lif.source in synapses]


def write_net(network: Network, stage_name: str, path: Path) -> None:
    """Write one dense stage, whole or not at all.

    Raises:
        NetworkError: no such stage, or netx would compute something else; the message names the node and the way out.
        OSError: the disk is full.
        UserError: the directory cannot be written.
    """
    require_writable_parent(path)
    stage = _find(network, stage_name)
    weights, bias = netx_weights(stage.synapses), netx_bias(stage.lif)

    def fill(file: h5py.File) -> None:
        file.attrs.update(stage=stage.name, neurons=stage.lif.name, task=network.task)
        file.attrs.update(reset_interval=network.ticks, reset_offset=RESET_OFFSET)
        for name, values in (("provenance", network.provenance), ("verification", network.verification)):
            file.create_dataset(name, data=json.dumps(values, sort_keys=True))
        _write_layers(file, stage, weights, bias)

    image = hdf5_image(fill)
    with replacing(path) as temporary:
        temporary.write_bytes(image)


def compare_net(path: Path, network: Network, stage: DenseStage) -> None:
    """Read a file of one dense stage and compare it with the integers of its nodes.

    Raises:
        NetworkError: a number differs; the message names the node and the field.
        OSError: the file cannot be read.
    """
    synapses, lif = stage.synapses, stage.lif
    with h5py.File(path) as file:
        layer = file["layer/1"]
        equal = {
            "weights": np.array_equal(layer["weight"][()] * 2.0**-synapses.exponent, synapses.weights),
            "bias": np.array_equal(layer["bias"][()] << MEMBRANE_FRACTION_BITS, lif.bias),
            "threshold": np.array_equal(layer["neuron/vThMant"][()], lif.threshold),
            "decay": np.array_equal(layer["neuron/vDecay"][()], lif.decay),
            "current's decay": int(layer["neuron/iDecay"][()]) == NO_CURRENT_MEMORY,
            "ticks": int(file.attrs["reset_interval"]) == network.ticks,
        }
    if wrong := [name for name, same in equal.items() if not same]:
        raise NetworkError(f"{path} differs from network node '{stage.name}' in {', '.join(wrong)}: export it again")


def netx_weights(node: Synapses) -> npt.NDArray[np.int64]:
    """Weights (neurons, inputs) with the exponent folded in.

    Raises:
        NetworkError: netx would change them.
    """
    weights, divisor = node.weights.astype(np.int64) << max(node.exponent, 0), 1 << max(-node.exponent, 0)
    if not weights.any():
        raise _refusal(node, "all its weights are 0, which netx cannot scale; leave this stage out")
    if (weights % divisor).any():
        raise _refusal(
            node, f"its sum is rounded after * 2**{node.exponent}, which netx cannot do; leave this stage out"
        )
    weights //= divisor
    lowest, highest = int(weights.min()), int(weights.max())
    if lowest < SMALLEST_WEIGHT or highest > LARGEST_WEIGHT:
        raise _refusal(
            node,
            f"with its exponent {node.exponent} the weights reach {lowest} to {highest}, and netx clips to "
            f"{SMALLEST_WEIGHT} to {LARGEST_WEIGHT}; export with more --bits, or leave this stage out",
        )
    if highest <= 0 and -lowest & (-lowest - 1) == 0:
        raise _refusal(
            node,
            f"no weight is positive and the smallest is {lowest}: netx alters such a matrix; export with other --bits",
        )
    return weights


def netx_bias(node: LIF) -> npt.NDArray[np.int64]:
    """Biases (neurons,) in whole synaptic units: netx fixes the bias exponent at 6.

    Raises:
        NetworkError: they are no whole units, or too large.
    """
    fractional = int(np.count_nonzero(node.bias % (1 << MEMBRANE_FRACTION_BITS)))
    if fractional:
        raise _refusal(
            node, f"{fractional} of {node.size} biases are no whole synaptic units; export with --whole-biases"
        )
    bias = node.bias >> MEMBRANE_FRACTION_BITS
    if np.abs(bias).max() > LARGEST_BIAS:
        raise _refusal(
            node, f"a bias is {np.abs(bias).max()}, and netx's have {BIAS_MANTISSA_BITS} bits; leave this stage out"
        )
    return bias


def _reads_spikes(network: Network, node: Synapses) -> bool:
    return isinstance(network[node.source], SPIKING_KINDS)


def _find(network: Network, name: str) -> DenseStage:
    stages = dense_stages(network)
    found = next((stage for stage in stages if stage.name == name), None)
    if found is None:
        known = ", ".join(stage.name for stage in stages) or "none"
        raise NetworkError(f"the network has no dense stage '{name}' that netx could hold: choose one of {known}")
    return found


def _refusal(node: Synapses | LIF, why: str) -> NetworkError:
    return NetworkError(f"cannot write network node '{node.name}' for netx: {why}")


def _write_layers(
    file: h5py.File, stage: DenseStage, weights: npt.NDArray[np.int64], bias: npt.NDArray[np.int64]
) -> None:
    """The layers 0 (input) and 1 (dense), as netx wants them: everything a dataset, weights floats of whole numbers."""
    neurons, inputs = weights.shape
    for index, (kind, size) in enumerate((("input", inputs), ("dense", neurons))):
        file.create_dataset(f"layer/{index}/type", data=np.array([kind], "S10"))
        file.create_dataset(f"layer/{index}/shape", data=np.array([size]))
    layer = file["layer/1"]
    for name, value in (("inFeatures", inputs), ("outFeatures", neurons), ("bias", bias)):
        layer.create_dataset(name, data=value)
    layer.create_dataset("weight", data=weights.astype(np.float32))
    layer.create_dataset("neuron/type", data=np.bytes_(b"CUBA"))
    neuron: dict[str, int | bool | IntArray] = {
        "iDecay": NO_CURRENT_MEMORY,
        "vDecay": stage.lif.decays.astype(np.int32) if isinstance(stage.lif.decay, np.ndarray) else stage.lif.decay,
        "vThMant": stage.lif.threshold,
        "refDelay": 1,
        "gradedSpike": False,
    }
    for name, setting in neuron.items():
        layer.create_dataset(f"neuron/{name}", data=setting)

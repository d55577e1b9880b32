"""Target ``torch``: the integer network as a plain module, bit-identical to the reference on every device with float64
(the processor, CUDA; not Apple's MPS).

Weights are buffers, not parameters: this is the deployed network, for analysis, fault injection and fast batches; to
train on, start quantization-aware training from the checkpoint. All values are integers held in floats, which is exact:
the overflow proof (:mod:`dsf.export.network.bounds`) keeps every partial sum below 2**23, and float32 holds integers to
2**24.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.nn import functional

from dsf.export.network.attention import Lagged, counted, scored, windowed
from dsf.export.network.bounds import require_no_overflow
from dsf.export.network.carried import require_carried
from dsf.export.network.file import SEAL, is_left_out, require_own_bounds
from dsf.export.network.limits import require_count, require_name
from dsf.export.network.network import Network
from dsf.export.network.nodes import (
    HISTORY_KINDS,
    HOST_KINDS,
    LIF,
    NODE_KINDS,
    And,
    Count,
    Decay,
    Encoder,
    Gate,
    HistoryNode,
    HostEmbedding,
    NetworkError,
    Outer,
    PlacedWindow,
    Readout,
    Residual,
    Synapses,
    require_number,
    require_text,
    require_whole,
)
from dsf.export.network.reference import encode
from dsf.export.network.sparse import ARRAYS, CompressedRows, compress, is_sparse, require_rows, require_shape
from dsf.shell.errors import UNREADABLE, UserError
from dsf.shell.file_values import parse_json
from dsf.shell.files import replacing, require_plain_file
from dsf.shell.plain_text import plain, shown
from dsf.tasks.policy import NOT_FINITE
from dsf.train.quantization.integers import DECAY_BITS, MEMBRANE_FRACTION_BITS

SUFFIX = ".safetensors"
HEADER_KEY, DIGEST_KEY = "dsf", "sha256"
FORMAT, SPARSE_FORMAT, DENSE_FORMAT = 3, 2, 1
"""A file whose readout ends at -1 and 1 is still written as format 2, and as format 1 without sparse matrices."""
FORMATS = (DENSE_FORMAT, SPARSE_FORMAT, FORMAT)
SPARSE, INPUTS = "weights.", "weights_inputs"
"""In front of the names of compressed rows' arrays; the length of a row, among the node's scalars."""
UNREADABLE_TENSORS: tuple[type[Exception], ...] = (SafetensorError, *UNREADABLE)

SCALARS: dict[Any, Callable[[str, str, Any], int | float | str]] = {
    int: require_whole,
    Decay: require_whole,
    float: require_number,
}
"""Who checks a node's scalars, all others but these being texts."""
Observer = Callable[[str, Tensor], None]
"""Called with a node's name and its values, (ticks, tokens, batch, neurons); the readout's have no ticks."""


class IntegerNetwork(nn.Module):
    """The integer network in window mode: every decision of a window of at most K tokens at once."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        for index, node in enumerate(network.nodes):
            for name, values in arrays_of(node).items():
                dtype = torch.float64 if isinstance(node, (*HOST_KINDS, Readout)) else torch.float32
                self.register_buffer(f"{name}_{index}", torch.from_numpy(values.astype(np.float64)).to(dtype))
        self.index = {node.name: index for index, node in enumerate(network.nodes)}

    def forward(self, vectors: Tensor, exists: Tensor | None = None) -> Tensor:
        """Actions in (-1, 1), or scores of choices, for every token.

        Args:
            vectors: (batch, tokens, features) in environment units; the last token is the present.
            exists: (batch, tokens), false for absent tokens in front; None means all exist.

        Returns:
            (batch, tokens, actions) in float64.

        Raises:
            NetworkError: more than K tokens, or one that exists is not finite.
        """
        if not bool(torch.isfinite(vectors if exists is None else vectors[exists]).all()):
            raise NetworkError(NOT_FINITE)
        encoder, readout = self.network.encoder, self.network.readout
        if isinstance(encoder, HostEmbedding):
            graded = self.embed(encoder, vectors, exists)
        else:
            offset, step = self.of(encoder, "offset"), self.of(encoder, "step")
            graded = ((vectors.float().double() - offset) / step).round().clamp(-encoder.limit, encoder.limit)
        scaled = self.decide(graded, exists) * self.of(readout, "scale")
        return scaled if readout.head == "choice" else scaled.tanh()

    def commands(self, actions: Tensor) -> Tensor:
        """What the machine gets for :meth:`forward`'s answer (..., actions): float64 between its bounds, or int64
        choices (...,).
        """
        readout = self.network.readout
        if readout.head == "choice":
            return actions.argmax(dim=-1) + readout.first_choice
        answers = actions.clamp(-1.0, 1.0)
        if not readout.low:
            return answers
        low, high = (answers.new_tensor(bound) for bound in (readout.low, readout.high))
        reached = low + (answers + 1.0) * ((high - low) / 2.0)
        return torch.where(answers >= 1.0, high, torch.minimum(torch.maximum(reached, low), high))

    def embed(self, encoder: HostEmbedding, vectors: Tensor, exists: Tensor | None) -> Tensor:
        """A host embedding's integers (batch, tokens, channels), by numpy on the host: its order of operations is its
        definition, and no other library promises one. Absent tokens are taken for zeros.
        """
        present = vectors if exists is None else torch.where(exists[..., None], vectors, 0.0)
        return torch.from_numpy(encode(encoder, present.detach().cpu().numpy())).to(vectors.device)

    def decide(self, graded: Tensor, exists: Tensor | None = None, observe: Observer | None = None) -> Tensor:
        """Accumulators (batch, tokens, actions) from the encoder's integers (batch, tokens, features).

        Raises:
            NetworkError: more than K tokens.
        """
        tokens = graded.shape[1]
        if tokens > self.network.context:
            raise NetworkError(f"a window has {tokens} tokens, the network's context is {self.network.context}")
        values: dict[str, Tensor] = {}
        present = None if exists is None else exists.T[..., None].float()
        for node in self.network.nodes:
            if isinstance(node, HOST_KINDS):
                shifted = graded.transpose(0, 1).double()
                if isinstance(node, Encoder):
                    shifted = shifted * 2.0 ** self.of(node, "shift")
                out = shifted.expand(self.network.ticks, *shifted.shape)
            elif isinstance(node, HISTORY_KINDS):
                remembered = values[node.remembered]
                out = self.current(node, values, lags_of(remembered if present is None else remembered * present))
            else:
                out = self.evaluate(node, values)
            values[node.name] = out
            if observe is not None:
                observe(node.name, out)
        return values[self.network.readout.name].transpose(0, 1)

    def of(self, node: Any, field: str) -> Tensor:
        """One of a node's arrays."""
        return self.get_buffer(f"{field}_{self.index[node.name]}")

    def evaluate(self, node: Any, values: dict[str, Tensor]) -> Tensor:
        """A node without history."""
        if isinstance(node, Synapses):
            source = values[node.source]
            products = functional.linear(source, self.of(node, "weights").to(source.dtype))
            return (products * 2.0**node.exponent).floor().float()
        if isinstance(node, Residual):
            return sum((values[source] for source in node.sources), start=self.of(node, "bias"))
        if isinstance(node, LIF):
            return self.fire(node, values[node.source])
        if isinstance(node, Gate):
            return part(values[node.source], node.first, node.size) * part(values[node.source], node.second, node.size)
        if isinstance(node, And):
            return part(values[node.query], node.first, node.size) * values[node.source]
        half = (1 << node.shift) >> 1
        graded = ((values[node.source].double().sum(dim=0) + half) * 2.0**-node.shift).floor()
        return functional.linear(graded, self.of(node, "weights"), self.of(node, "bias"))

    def fire(self, node: LIF, currents: Tensor) -> Tensor:
        """Spikes (ticks, ..., neurons) of a LIF population."""
        own = isinstance(node.decay, np.ndarray)
        decay = self.of(node, "decay").double() if own else node.decay
        scale, kept = 1 << MEMBRANE_FRACTION_BITS, 1.0 - decay / (1 << DECAY_BITS)
        bias = self.of(node, "bias_mantissa") * 2.0**node.bias_exponent
        threshold = self.of(node, "threshold") * scale
        membrane, spikes = torch.zeros_like(currents[0]), []
        for current in currents:
            # the leak's product takes 23 + 12 bits, more than float32 holds
            membrane = (membrane.double() * kept).trunc().float() + current * scale + bias
            fired = membrane > threshold
            membrane = torch.where(fired, 0.0, membrane)
            spikes.append(fired.float())
        return torch.stack(spikes)

    def current(self, node: HistoryNode, values: dict[str, Tensor], lagged: Lagged) -> Tensor:
        """The current of a node with history."""
        if isinstance(node, Count):
            counts: Tensor = node.gain * counted(lagged, node.reach)
            return counts
        if isinstance(node, Outer):
            query = part(values[node.source], node.query, node.size)
            key, value = (
                lambda lag, first=first: part(lagged(lag), first, node.size) for first in (node.key, node.value)
            )
            sums: Tensor = node.gain * scored(query, key, value, node.reach, node.heads, bool(node.all_ticks))
            return sums
        query, weights = part(values[node.query], node.first, node.size), self.of(node, "weights")
        if isinstance(node, PlacedWindow):
            weights = weights[-query.shape[1] :, None]
        result: Tensor = windowed(query, lagged, weights)
        return result


def lags_of(spikes: Tensor) -> Lagged:
    """The past within windows that are replayed whole, (ticks, tokens, batch, neurons)."""
    tokens = spikes.shape[1]

    def lagged(lag: int) -> Tensor:
        return functional.pad(spikes[:, : max(tokens - lag, 0)], (0, 0, 0, 0, min(lag, tokens), 0))

    return lagged


def part(values: Tensor, first: int, size: int) -> Tensor:
    """Neurons first .. first + size - 1 of a population."""
    return values[..., first : first + size]


def arrays_of(node: Any) -> dict[str, np.ndarray]:
    """A node's array fields."""
    fields = {item.name: getattr(node, item.name) for item in dataclasses.fields(node)}
    return {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}


def write_torch(network: Network, path: Path) -> None:
    """Write a network for :func:`read_torch`: arrays as safetensors, everything else as JSON in its header. Sparse
    matrices are compressed rows, as in a network file.

    Raises:
        OSError: the file cannot be written.
    """
    nodes: list[dict[str, Any]] = []
    contiguous: dict[str, np.ndarray] = {}
    for node in network.nodes:
        arrays, stored = stored_arrays(node)
        fields = [(item, getattr(node, item.name)) for item in dataclasses.fields(node)]
        kept = {item.name: value for item, value in fields if not is_left_out(item, value)}
        scalars = {name: value for name, value in kept.items() if not isinstance(value, np.ndarray)}
        nodes.append({"kind": type(node).__name__, **scalars, **stored})
        contiguous |= {f"{node.name}:{name}": np.ascontiguousarray(array) for name, array in arrays.items()}
    header = {item.name: getattr(network, item.name) for item in dataclasses.fields(network)} | {"nodes": nodes}
    sparse = any(INPUTS in scalars for scalars in nodes)
    version = FORMAT if network.readout.has_commands else SPARSE_FORMAT if sparse else DENSE_FORMAT
    text = json.dumps({"format": version, **header})
    with replacing(path) as temporary:
        save_file(contiguous, temporary, {HEADER_KEY: text, DIGEST_KEY: digest(text, contiguous)})


def stored_arrays(node: Any) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """A node's arrays as a file keeps them, and what its scalars then need to say of them."""
    arrays = arrays_of(node)
    if not isinstance(node, (Synapses, Readout)) or not is_sparse(node.weights):
        return arrays, {}
    rows = compress(arrays.pop("weights"))
    return arrays | {f"{SPARSE}{name}": getattr(rows, name) for name in ARRAYS}, {INPUTS: rows.inputs}


def digest(text: str, arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 over the header's text and every array with its name, type and shape."""
    found = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        found.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        found.update(arrays[name].tobytes())
    return found.hexdigest()


def read_torch(path: Path) -> IntegerNetwork:
    """The module of a file that :func:`write_torch` wrote.

    Raises:
        NetworkError: the file is missing, damaged, of another version, or its network breaks a rule.
    """
    try:
        require_plain_file(path, "torch target")
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if metadata[DIGEST_KEY] != digest(metadata[HEADER_KEY], arrays):
            raise NetworkError("SHA-256 does not match, the file was altered: export it again")
        header = parse_json(metadata[HEADER_KEY], "header")
        if (found := header.pop("format")) not in FORMATS or isinstance(found, bool):
            known = ", ".join(map(str, FORMATS))
            raise NetworkError(f"its format is {found!r}, this dsf reads {known}: export it again")
        require_count(len(header["nodes"]))
        require_room(header["nodes"], arrays, SEAL.limits.allowed(path.stat().st_size))
        require_carried(header["provenance"], header["verification"])
        nodes = [restored(values, arrays) for values in header.pop("nodes")]
        network = Network(**{**header, "nodes": tuple(nodes)})
        require_own_bounds(network)
        require_no_overflow(network)
    except UserError as error:
        raise NetworkError(f"{path}: {error}") from None
    except UNREADABLE_TENSORS as error:
        told = plain(" ".join(str(error).split())) or type(error).__name__
        raise NetworkError(f"cannot read {path} as a torch target ({told}): export it again") from None
    return IntegerNetwork(network)


def require_room(nodes: list[dict[str, Any]], arrays: dict[str, np.ndarray], allowed: int) -> None:
    """Refuse sparse matrices that would take more memory with their zeros than such a file may, before one is made.

    Raises:
        NetworkError: naming the node.
    """
    for node in nodes:
        if INPUTS in node:
            starts = arrays[f"{node['name']}:{SPARSE}starts"].size
            allowed -= (starts - 1) * require_shape(f"node {shown(node['name'])}: weights", node[INPUTS], starts)
            if allowed < 0:
                raise NetworkError("its matrices take more memory than such a file may: export it again")


def restored(values: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
    """A node from its scalars and the file's arrays."""
    require_name("node", require_text("node", "name", values.get("name")))
    kind = NODE_KINDS[values.pop("kind")]
    own = {
        name.removeprefix(f"{values['name']}:"): array
        for name, array in arrays.items()
        if name.rpartition(":")[0] == values["name"]
    }
    if INPUTS in values and kind in (Synapses, Readout):
        parts = [own.pop(f"{SPARSE}{name}") for name in ARRAYS]
        rows = CompressedRows(values.pop(INPUTS), *parts)
        require_rows(f"node {shown(values['name'])}: weights", rows)
        own["weights"] = rows.dense()
    declared = typing.get_type_hints(kind)
    scalars: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, list):
            check = require_number if float in typing.get_args(declared[name]) else require_text
            scalars[name] = tuple(check(values["name"], name, entry) for entry in value)
        else:
            scalars[name] = SCALARS.get(declared[name], require_text)(values["name"], name, value)
    return kind(**scalars, **own)

"""The integer network as one ONNX graph, for one token per call (stream) or for a whole window, and its file.

Stream mode reads ``token`` (lanes, features) and the ``state.*`` of the call before (zeros at an episode's start), and
gives ``accumulators``, ``actions`` and the ``next.*``. Window mode reads ``tokens`` (K, lanes, features) and ``exists``
(K, lanes), the present token last, and keeps nothing. All values between are integers
(:mod:`dsf.export.targets.onnx_nodes`).

Integers cannot say that a token was not finite: a call that sees NaN or infinity gives NaN ``actions`` in that lane,
and accumulators and ``next.*`` that mean nothing; start the episode anew.
"""

from __future__ import annotations

import json
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from dsf.export.network.bounds import require_no_overflow
from dsf.export.network.file import file_digest
from dsf.export.network.network import Network
from dsf.export.network.nodes import SPIKING_KINDS, HostEmbedding, NetworkError
from dsf.export.targets.onnx_nodes import IntegerNodes
from dsf.export.targets.onnx_rules import (
    LANES,
    SPIKES,
    STREAM,
    WINDOW,
    GraphWriter,
    Past,
    StreamPast,
    WindowPast,
    check,
)
from dsf.shell.files import replacing

HOST_EMBEDDING_LEFT_OUT = (
    "the host embedding, whose order of operations is a part of its definition; the graph reads its integers as "
    "'graded'"
)
"""What no graph holds, and what to do instead."""
BEHIND_HOST_EMBEDDING = """
Here a host embedding stands in front of the graph, which reads its integers ``graded``, (lanes, channels) or (K, lanes,
channels), in place of tokens: ``dsf.export.network.reference.encode`` makes them.
"""
"""What the file of such a graph says beside this module's text."""


def build_stream(network: Network, *, encoder: bool = True, spikes: bool = False) -> onnx.ModelProto:
    """The network in stream mode, one token per call, all ticks unrolled.

    Args:
        network: to write.
        encoder: whether the graph reads float64 ``token``, or the encoder's integers q as int32 ``graded``.
        spikes: whether every spiking population is an output ``spikes.<node>`` (ticks, lanes, neurons).

    Raises:
        NetworkError: the network could overflow; the message names the node.
    """
    writer = GraphWriter(number=TensorProto.INT32, spike=TensorProto.UINT8)
    return _build(network, writer, StreamPast(writer, network.ticks), encoder, spikes)


def build_window(network: Network, *, encoder: bool = True, spikes: bool = False) -> onnx.ModelProto:
    """The network in window mode: K tokens replayed at once for the decision at the last one.

    Args:
        network: to write.
        encoder: whether the graph reads float64 ``tokens``, or the encoder's integers q as int32 ``graded``.
        spikes: whether every spiking population is an output ``spikes.<node>`` (ticks, K, lanes, neurons).

    Raises:
        NetworkError: the network could overflow; the message names the node.
    """
    writer = GraphWriter(number=TensorProto.INT32, spike=TensorProto.UINT8)
    meaning = "1 where a lane has a token, 0 before its episode's start; the last row is the present token"
    exists = writer.input("exists", TensorProto.UINT8, (network.context, LANES), meaning)
    return _build(network, writer, WindowPast(writer, network.ticks, network.context, exists), encoder, spikes)


def _build(network: Network, writer: GraphWriter, past: Past, encoder: bool, spikes: bool) -> onnx.ModelProto:
    require_no_overflow(network)
    if encoder and isinstance(network.encoder, HostEmbedding):
        raise NetworkError(f"an ONNX graph cannot hold {HOST_EMBEDDING_LEFT_OUT}: build it with encoder=False")
    window = isinstance(past, WindowPast)
    shape = past.shape(network.encoder.size)[1:]
    if encoder:
        meaning = "observation, last action, return-to-go; a value that is not finite makes the actions NaN"
        source = writer.input("tokens" if window else "token", TensorProto.DOUBLE, shape, meaning)
    else:
        source = writer.input("graded", TensorProto.INT32, shape, "the encoder's integers q")
    nodes = IntegerNodes(network, writer, past, encoder)
    for node in network.nodes:
        nodes.write(node, source)
        if spikes and isinstance(node, SPIKING_KINDS):
            writer.output(f"{SPIKES}{node.name}", TensorProto.UINT8, past.shape(node.size), f"spikes of '{node.name}'")
    text = (__doc__ or "") + (BEHIND_HOST_EMBEDDING if isinstance(network.encoder, HostEmbedding) else "")
    return writer.model("dsf_window" if window else "dsf_stream", text)


def write_onnx(network: Network, path: Path, window: bool = False, source: Path | None = None) -> None:
    """Check a network's graph and write it whole or not at all.

    The metadata are those of :func:`metadata_of`, and source_sha256.

    Args:
        network: to write.
        path: of the file.
        window: whether in window mode, else in stream mode.
        source: network file that it was read from; its digest, as dsf-export prints it, goes into the metadata.

    Raises:
        NetworkError: the network could overflow; the message names the node.
        OSError: the directory cannot be written.
    """
    model = (build_window if window else build_stream)(network, encoder=not isinstance(network.encoder, HostEmbedding))
    metadata = metadata_of(network, WINDOW if window else STREAM)
    if source is not None:
        metadata["source_sha256"] = file_digest(source)
    save(model, path, metadata)


def metadata_of(network: Network, mode: str) -> dict[str, str]:
    """What a graph's file says of its network: task and mode; ticks, context, stream_is_exact, target_return, dataset,
    provenance and verification as JSON.
    """
    values = {
        "ticks": network.ticks,
        "context": network.context,
        "stream_is_exact": network.stream_is_exact,
        "target_return": network.target_return,
        "dataset": network.provenance.get("dataset"),
        "provenance": network.provenance,
        "verification": network.verification,
    }
    texts = {name: json.dumps(value, sort_keys=True) for name, value in values.items()}
    return {"task": network.task, "mode": mode, **texts}


def save(model: onnx.ModelProto, path: Path, metadata: dict[str, str]) -> None:
    """Check a graph and write it with its metadata, whole or not at all.

    Raises:
        OSError: the directory cannot be written.
    """
    helper.set_model_props(model, metadata)
    check(model)
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))

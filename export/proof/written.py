"""Files that were just written, read back and compared with what was proven: the file itself is checked, not its plan.

:mod:`dsf.export.proof.rungs` proves the network; here the bytes on the disk run, through the reader that a user would
take.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dsf.export.conversion.folded import FoldedModel
from dsf.export.network.difference import HEADER, compare_networks
from dsf.export.network.file import read_network
from dsf.export.network.network import Network
from dsf.export.network.nodes import HostEmbedding
from dsf.export.network.reference import TANH_TOLERANCE, commands, decode, encode, replay_window
from dsf.export.proof.rungs import Rung, compare_torch, random_vectors
from dsf.export.targets.options import Target
from dsf.shell.arrays import FloatArray, IntArray

BEYOND = 0.02
"""Share of the features that are moved far out of the encoder's range."""
PROVENANCE = ("provenance", "verification")
"""Header fields that say nothing about what the network computes."""


def compare_written(
    target: Target, path: Path, network: Network, folded: FoldedModel | None, tokens: IntArray
) -> list[Rung]:
    """Read a target's file and compare it with the network it was made from.

    Args:
        target: what kind of file it is.
        path: of it.
        network: its integers, the truth.
        folded: its float form, the truth of a float ONNX graph; without one such a graph cannot be compared.
        tokens: (steps, lanes, features) encoder integers, one unbroken sequence per lane.

    Returns:
        one rung for each comparison; ``passed`` is None where it could not be tried.

    Raises:
        NetworkError: the file cannot be read, or is plainly another network's.
    """
    return COMPARISONS[target](path, network, folded, tokens)


def token_vectors(network: Network, tokens: IntArray) -> FloatArray:
    """As many token vectors, which the encoder rounds to about ``tokens``, some far out of its range.

    A LayerNorm cannot be turned back: a host embedding gets random ones.
    """
    generator, encoder = np.random.default_rng(0), network.encoder
    if isinstance(encoder, HostEmbedding):
        return random_vectors(encoder, tokens.shape[:-1], generator)
    rounding = generator.uniform(-0.5, 0.5, tokens.shape)
    far = np.where(generator.random(tokens.shape) < BEYOND, 3.0 * encoder.limit, 1.0)
    vectors: FloatArray = encoder.offset + encoder.step * (tokens * far + rounding)
    return vectors


def _compare_loihi(path: Path, network: Network, _folded: FoldedModel | None, _tokens: IntArray) -> list[Rung]:
    found = [
        item for item in compare_networks(network, read_network(path)) if item.field.split(".")[0] not in PROVENANCE
    ]
    nodes = sorted({item.where for item in found if item.where != HEADER})
    summary = f"{len(network.nodes)} nodes read back, {len(nodes)} differ"
    if found:
        summary += f" ({found[0].where}.{found[0].field}: {found[0].text})"
    return [Rung("L2 integers = network file", not found, summary, {"nodes": len(network.nodes), "different": nodes})]


def _compare_onnx(path: Path, network: Network, folded: FoldedModel | None, tokens: IntArray) -> list[Rung]:
    from dsf.export.proof.written_onnx import compare_onnx

    return [compare_onnx(path, network, folded, token_vectors(network, tokens))]


def _compare_nir(path: Path, network: Network, _folded: FoldedModel | None, tokens: IntArray) -> list[Rung]:
    from dsf.export.proof.written_nir import compare_nir

    return [compare_nir(path, network, tokens)]


def _compare_torch(path: Path, network: Network, _folded: FoldedModel | None, tokens: IntArray) -> list[Rung]:
    """Spikes and accumulators of whole windows, and the actions from float tokens."""
    import torch

    from dsf.export.targets.torch_module import read_torch

    module = read_torch(path)
    spikes = compare_torch(network, tokens, module)
    vectors = token_vectors(network, tokens[: network.context])
    wanted = decode(network.readout, replay_window(network, encode(network.encoder, vectors)))
    with torch.inference_mode():
        answers = module(torch.from_numpy(vectors.swapaxes(0, 1)))
        found = answers.numpy().swapaxes(0, 1)
        sent = module.commands(answers).numpy().swapaxes(0, 1)
    wrong = int((~np.isclose(found, wanted, TANH_TOLERANCE, TANH_TOLERANCE)).any(axis=-1).sum())
    truth = commands(network.readout, found)
    span = np.max(np.abs([network.readout.low, network.readout.high]), initial=1.0)
    wrong += int((~np.isclose(sent, truth, 0.0, TANH_TOLERANCE * span)).sum())
    decisions = wanted.shape[0] * wanted.shape[1]
    summary = f"{spikes.summary}; {wrong} of {decisions} decisions from float tokens differ"
    details = {**spikes.details, "wrong_actions": wrong}
    return [Rung("L2 reference = torch file, window", spikes.passed is True and wrong == 0, summary, details)]


COMPARISONS: dict[Target, Callable[[Path, Network, FoldedModel | None, IntArray], list[Rung]]] = {
    "loihi": _compare_loihi,
    "onnx": _compare_onnx,
    "nir": _compare_nir,
    "torch": _compare_torch,
}

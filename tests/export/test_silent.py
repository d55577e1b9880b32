"""Silent channels: which ones are found, that nothing changes without them, and that engines take what is left."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from dsf.export.cli import main
from dsf.export.conversion.silent import (
    channel_groups,
    measured_silent,
    proven_silent,
    without_channels,
)
from dsf.export.exported import REMOVED_CHANNELS
from dsf.export.network.file import read_network
from dsf.export.network.network import Network
from dsf.export.network.nodes import LIF, Gate, Node, Synapses, Window
from dsf.export.network.reference import ReferenceEngine, replay_window
from dsf.export.proof.removal import REMOVAL, as_windows, prove_removal
from dsf.export.proof.rungs import prove_network
from dsf.runtime.engines.fast_engine import FastEngine
from dsf.shell.arrays import IntArray
from dsf.testing.command_line import assert_refused
from dsf.testing.random_networks import KINDS, random_network, random_tokens, write_checkpoint
from dsf.testing.training_runs import HOPPER, TINY, UNSCORED, run_here, trained
from dsf.train.checkpoint import load_checkpoint, save_checkpoint
from dsf.train.models.qat import QuantizedDSFormer

OPEN_LOOP = ("--episodes", "0", "--dataset", HOPPER)
HIDDEN, ATTENTION = "blocks.0.mlp.hidden_lif", "blocks.0.attention.attention_lif"


def export(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``dsf-export`` in this process."""
    return run_here(main, "dsf-export", *arguments)


def changed(network: Network, *nodes: Node) -> Network:
    """The network with other nodes under the same names."""
    new = {node.name: node for node in nodes}
    return dataclasses.replace(network, nodes=tuple(new.get(node.name, node) for node in network.nodes))


def weights_of(network: Network, name: str) -> IntArray:
    """(neurons, inputs) of synapses."""
    node = network[name]
    assert isinstance(node, Synapses)
    return node.weights


def size_of(network: Network, name: str) -> int:
    """Neurons of a population."""
    return int(network[name].size)


def with_silent_channels(network: Network) -> Network:
    """Hidden neuron 0 is never excited and has no bias, 1 is excited but never enough, 2 is enough at the second tick
    (with what the first has left), 3 has nothing behind it; of attention, the query of channel 0 and the value of
    channel 1 cannot fire.
    """
    expand, hidden = network["blocks.0.mlp.expand"], network[HIDDEN]
    contract, qkv = network["blocks.0.mlp.contract"], network["blocks.0.attention.qkv"]
    qkv_lif = network["blocks.0.attention.qkv_lif"]
    assert isinstance(expand, Synapses) and isinstance(contract, Synapses) and isinstance(qkv, Synapses)
    assert isinstance(hidden, LIF) and isinstance(qkv_lif, LIF)
    weights, outgoing, threshold, bias = (
        array.copy() for array in (expand.weights, contract.weights, hidden.threshold, hidden.bias_mantissa)
    )
    weights[:3], bias[:3] = 0, 0
    weights[0, 0], weights[1:3, 0] = -5, 8
    threshold[0] = 1
    currents = 8 << expand.exponent
    threshold[1] = -(-4 * currents // 3)  # where a membrane ends that keeps a quarter
    threshold[2] = currents + currents // 4 - 1  # it has 5/4 of the current at the second tick
    outgoing[:, 3] = 0
    asking, asked = qkv.weights.copy(), qkv_lif.bias_mantissa.copy()
    width = size_of(network, ATTENTION)
    for neuron in (0, 2 * width + 1):
        asking[neuron], asked[neuron] = -1, -1
    return changed(
        network,
        dataclasses.replace(expand, weights=weights),
        dataclasses.replace(hidden, threshold=threshold, bias_mantissa=bias),
        dataclasses.replace(contract, weights=outgoing),
        dataclasses.replace(qkv, weights=asking),
        dataclasses.replace(qkv_lif, bias_mantissa=asked),
    )


def test_silence_is_proven_from_the_weights() -> None:
    network = random_network(7, blocks=1)
    before, after = proven_silent(network), proven_silent(with_silent_channels(network))
    assert set(after) == {HIDDEN, ATTENTION}
    found = {name: set(np.flatnonzero(after[name] & ~before[name]).tolist()) for name in after}
    assert found[HIDDEN] == {0, 1, 3} - set(np.flatnonzero(before[HIDDEN]).tolist())
    assert not after[HIDDEN][2] and after[ATTENTION][:2].all()
    one_tick = dataclasses.replace(with_silent_channels(network), ticks=1)
    assert proven_silent(one_tick)[HIDDEN][:4].all()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_changes_without_proven_channels(kind: str) -> None:
    """Whatever the inputs; of attentions that sum over channels, only the MLP's can go."""
    sizes = {"blocks": 2, **KINDS[kind]}
    network = random_network(3, **sizes)
    tokens = random_tokens(network, network.context, 64, seed=1)
    silent = proven_silent(network)
    groups = list(channel_groups(network))
    assert len(groups) == (4 if kind in ("pssa", "pssa, full bias", "host embedding, full bias") else 2)
    fired: dict[str, np.ndarray] = {}
    replay_window(network, tokens, observe=fired.__setitem__)
    for group in groups:
        read = np.any([weights_of(network, name).any(axis=0) for name in group.readers], axis=0)
        spoke = fired[group.population].any(axis=(0, 1, 2))
        assert not (spoke & silent[group.population] & read).any()
    measured = measured_silent(network, tokens)
    assert all((measured[name] >= silent[name]).all() for name in silent)
    for how, gone in (("proven", silent), ("measured", measured)):
        smaller, removal = without_channels(network, gone, how, tokens.shape[1])  # type: ignore[arg-type]
        rung = prove_removal(network, smaller, removal, tokens)
        assert rung.passed and rung.details["compared_accumulators"] == tokens.shape[0] * 64 * 3
        assert removal.channels == {name: min(int(mask.sum()), len(mask) - 1) for name, mask in gone.items()}


def test_only_what_is_silent_may_go() -> None:
    """The proof fails where a channel that speaks is taken out."""
    network = random_network(3, blocks=1)
    tokens = random_tokens(network, network.context, 16, seed=1)
    loud = {group.population: np.zeros(group.size, bool) for group in channel_groups(network)}
    loud[HIDDEN][int(np.flatnonzero(~measured_silent(network, tokens)[HIDDEN])[0])] = True
    smaller, removal = without_channels(network, loud, "measured", 1)
    rung = prove_removal(network, smaller, removal, tokens)
    assert rung.passed is False and rung.details["accumulator_mismatches"] > 0


def test_channels_leave_with_all_that_is_theirs() -> None:
    network = with_silent_channels(random_network(7, blocks=1))
    gone = {HIDDEN: np.zeros(24, bool), ATTENTION: np.zeros(12, bool)}
    gone[HIDDEN][[0, 5]] = gone[ATTENTION][[0, 3, 11]] = True
    smaller, removal = without_channels(network, gone, "proven")
    stays = np.setdiff1d(np.arange(12), [0, 3, 11])
    gate, window = smaller["blocks.0.attention.coincidence"], smaller["blocks.0.attention.window"]
    assert isinstance(gate, Gate) and isinstance(window, Window)
    before, after = (weights_of(one, "blocks.0.attention.qkv") for one in (network, smaller))
    rows = np.concatenate([stays, 12 + stays, 24 + stays])
    assert (after == before[rows]).all()
    assert (gate.first, gate.second, gate.size, window.first, window.size) == (9, 18, 9, 0, 9)
    assert weights_of(smaller, "blocks.0.attention.project").shape == (12, 9)
    assert weights_of(smaller, "blocks.0.mlp.contract").shape == (12, 22)
    assert removal.channels == {HIDDEN: 2, ATTENTION: 3} and removal.of == {HIDDEN: 24, ATTENTION: 12}
    everything = {name: np.ones_like(mask) for name, mask in gone.items()}
    least, left = without_channels(network, everything, "measured", 1)
    assert left.channels == {HIDDEN: 23, ATTENTION: 11} and size_of(least, HIDDEN) == 1


def test_every_engine_runs_what_is_left() -> None:
    """Blocks then differ in the sizes of their populations."""
    network = random_network(5, blocks=2)
    groups, generator = list(channel_groups(network)), np.random.default_rng(1)
    gone = {group.population: generator.random(group.size) < 0.2 * place for place, group in enumerate(groups)}
    smaller, _ = without_channels(network, gone, "measured", 1)
    assert len({size_of(smaller, group.population) for group in groups}) == len(groups)
    tokens = random_tokens(smaller, 2 * smaller.context, 3, seed=2)
    assert all(rung.passed for rung in prove_network(smaller, tokens))
    reference, fast = ReferenceEngine(smaller, 3), FastEngine(smaller, 3)
    for token in tokens:
        assert (reference.step_graded(token) == fast.step_graded(token)).all()


def test_windows_are_cut_from_sequences() -> None:
    tokens = np.arange(2 * 7 * 3).reshape(7, 3, 2)
    windows = as_windows(tokens, 3)
    assert windows.shape == (3, 6, 2)
    assert (windows[:, 1] == tokens[:3, 1]).all() and (windows[:, 4] == tokens[3:6, 1]).all()
    assert as_windows(tokens, 20).shape == (7, 3, 2)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "run.safetensors")


@pytest.mark.slow
def test_measured_channels_are_removed_and_reported(checkpoint: Path, tiny_store: Path, tmp_path: Path) -> None:
    """Two hidden neurons are pushed below their threshold for good, by more than any input can make up for."""
    loaded = load_checkpoint(checkpoint)
    tensors = dict(loaded.tensors)
    offsets = tensors["model.blocks.0.mlp.expand_norm.batch.bias"].clone()
    offsets[[3, 9]] = -50.0
    tensors["model.blocks.0.mlp.expand_norm.batch.bias"] = offsets
    header = {key: value for key, value in loaded.header.items() if key != "format"}
    save_checkpoint(checkpoint, tensors, header)
    out = tmp_path / "net.dsf.h5"
    result = export(str(checkpoint), "-o", str(out), *OPEN_LOOP, "--remove-silent", "measured", "--calibration", HOPPER)
    assert result.returncode == 0, result.stderr
    network = read_network(out)
    rung = network.verification["rungs"][-1]
    assert rung["name"] == REMOVAL and rung["passed"] and rung["tokens"] == HOPPER
    assert rung["details"]["measured_tokens"] == rung["details"]["decisions"] == 1_000 * network.context
    removed = network.provenance[REMOVED_CHANNELS]
    assert removed["how"] == "measured" and removed["channels"] == rung["details"]["removed"]
    assert 2 <= removed["channels"][HIDDEN] == 16 - size_of(network, HIDDEN)
    assert "silent channels removed (measured): " in result.stdout
    assert f"{HIDDEN} {removed['channels'][HIDDEN]} of 16" in " ".join(result.stdout.split())
    assert export("verify", str(out)).returncode == 0

    plain = tmp_path / "plain.dsf.h5"
    assert export(str(checkpoint), "-o", str(plain), *OPEN_LOOP).returncode == 0
    whole = read_network(plain)
    assert size_of(whole, HIDDEN) == 16 and REMOVED_CHANNELS not in whole.provenance
    assert REMOVAL not in [rung["name"] for rung in whole.verification["rungs"]]
    assert network.verification["layers"] == whole.verification["layers"]


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_pruned_channels_leave_the_exported_integers(bits: int, tiny_store: Path, tmp_path: Path) -> None:
    first, run, out = tmp_path / "float", tmp_path / "qat", tmp_path / "net.dsf.h5"
    pruning = ("--prune-weights", "0.6", "--prune-channels", "0.25")
    trained(HOPPER, "--out", str(first), "--steps", "30", *TINY, *UNSCORED, *pruning)
    start = ("--init", str(first), "--qat-steps", "8", "--bits", str(bits))
    trained(HOPPER, "--out", str(run), *start, *TINY, *UNSCORED, *pruning)
    result = export(str(run), "-o", str(out), *OPEN_LOOP)
    assert result.returncode == 0, result.stderr
    network, model = read_network(out), load_checkpoint(run).build_trained()
    removed = network.provenance[REMOVED_CHANNELS]
    assert removed["how"] == "proven" and removed["channels"][HIDDEN] >= 8 and size_of(network, HIDDEN) <= 24
    assert isinstance(model, QuantizedDSFormer)
    integers = model.integers()
    expand, contract = (integers[f"blocks.0.mlp.{name}"].weights for name in ("expand", "contract"))  # type: ignore[union-attr]
    assert (expand == 0).mean() >= 0.59 and (contract == 0).mean() >= 0.59
    left = weights_of(network, "blocks.0.mlp.expand")
    assert {tuple(row) for row in left.tolist()} <= {tuple(row) for row in expand.tolist()}
    assert left.any(axis=1).all() or not left.any()
    zero = torch.from_numpy(expand) == 0
    assert zero[model.blocks[0].mlp.expand.weight == 0].all()
    kept = tmp_path / "kept.dsf.h5"
    assert export(str(run), "-o", str(kept), *OPEN_LOOP, "--remove-silent", "none").returncode == 0
    assert (weights_of(read_network(kept), "blocks.0.mlp.expand") == expand).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--remove-silent", "measured"), "--remove-silent measured requires --calibration DATASET"),
        (("--remove-silent", "proven", "--calibration", HOPPER), "--calibration requires"),
        (("--remove-silent", "proven", "--target", "onnx", "--precision", "float"), "requires --precision integer"),
        (("--remove-silent", "some"), "--remove-silent"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    arguments: tuple[str, ...], words: str, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert_refused(export(str(checkpoint), "-o", str(out), *OPEN_LOOP, *arguments), words)
    assert not out.exists()

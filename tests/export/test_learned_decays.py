"""Decays of the membrane, one for each neuron: learned, exact integers, the same at every level and in every engine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from dsf.export.cli import main
from dsf.export.conversion.fold import fold
from dsf.export.conversion.quantize import quantize
from dsf.export.conversion.silent import channel_groups, without_channels
from dsf.export.inspect import describe_nodes
from dsf.export.network.bounds import compute_bounds, require_no_overflow
from dsf.export.network.difference import compare_networks
from dsf.export.network.file import SEAL, read_network, write_network
from dsf.export.network.network import Network
from dsf.export.network.nodes import LIF, NetworkError
from dsf.export.network.sealed import USER_BLOCK_BYTES
from dsf.export.placement.chips import LOIHI_1, Figure
from dsf.export.placement.placement import place
from dsf.export.proof.levels import in_float64
from dsf.export.proof.rungs import prove_network
from dsf.export.proof.verify import prove_levels
from dsf.export.targets.nir_graph import build_nir
from dsf.export.targets.torch_module import read_torch, write_torch
from dsf.runtime.cli import main as run
from dsf.shell.errors import UserError
from dsf.testing.command_line import assert_refused
from dsf.testing.lava import lava_runs_here
from dsf.testing.narrowed import gradient
from dsf.testing.random_networks import random_coded, random_model, random_network, random_tokens
from dsf.testing.training_runs import HOPPER, TINY, UNSCORED, run_here, train_here, trained
from dsf.train.checkpoint import load_checkpoint
from dsf.train.config.training import ModelConfig
from dsf.train.models import portable
from dsf.train.models.fused import NeuronConstants, batch_moments, fused_batch_norm_lif
from dsf.train.models.neurons import LIF as FloatLIF
from dsf.train.models.neurons import set_neuron_kind
from dsf.train.models.norm import BatchNorm
from dsf.train.models.qat import quantization_aware
from dsf.train.quantization.rounding import QuantizationConfig

WHOLE = 4096
LEARNED = 4
"""Populations of a tiny trained network whose decays have moved: all but attention's own."""
QKV = "blocks.0.attention.qkv_lif"
ATTENTIONS: tuple[Any, ...] = ("pssa", "tssa", "sdsa1", "none")


def vectors(network: Network) -> dict[str, np.ndarray]:
    """The decays of every population, of which each neuron has its own."""
    return {node.name: node.decay for node in network.of_kind(LIF) if isinstance(node.decay, np.ndarray)}


def by_definition(neuron: FloatLIF, currents: torch.Tensor, decays: torch.Tensor) -> torch.Tensor:
    """Spikes in plain operations that autograd differentiates: a rectangle around the threshold, the reset detached."""
    constants, membrane, spikes = neuron.constants, torch.zeros_like(currents[0]), []
    for current in currents:
        membrane = decays * membrane + current
        fires = membrane.detach() > constants.threshold
        near = (membrane.detach() - constants.threshold).abs() < constants.half_width
        ramp = constants.slope * membrane * near
        spikes.append(fires.double() + ramp - ramp.detach())
        membrane = membrane * ~fires
    return torch.stack(spikes)


@pytest.mark.parametrize("behind", ["nothing", "a norm", "learned thresholds"])
@pytest.mark.parametrize("kind", ["fused", "without a compiler", "snntorch"])
def test_spikes_and_all_gradients_are_those_of_autograd(
    kind: str, behind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More channels and rows than a lane and a chunk of the kernels; a norm whose statistics have gradients, too."""
    if kind == "without a compiler":
        monkeypatch.setenv("CC", "no-such-compiler")
    generator, channels = torch.Generator().manual_seed(3), 70
    currents = (torch.randn(5, 45, channels, generator=generator, dtype=torch.float64) + 0.3).requires_grad_()
    upstream = torch.randn(currents.shape, generator=generator, dtype=torch.float64)
    neuron = FloatLIF(0.25, 0.5, learned=channels if "thresholds" in behind else None, decays=channels).double()
    set_neuron_kind(neuron, "snntorch" if kind == "snntorch" else "fused")
    assert neuron.logit_decay is not None
    neuron.logit_decay.data.copy_(2.0 * torch.randn(channels, generator=generator))
    norm = BatchNorm(channels, 0.5).double().train() if behind == "a norm" else None
    parameters = [] if norm is None else [norm.batch.weight, norm.batch.bias]
    if neuron.log_threshold is not None:
        neuron.log_threshold.data.copy_(0.3 * torch.randn(channels, generator=generator))
        parameters.append(neuron.log_threshold)
    spikes = neuron(currents, norm)
    spikes.backward(upstream)
    found = [gradient(currents), gradient(neuron.logit_decay)]
    found += [gradient(parameter) for parameter in parameters]
    inputs = [currents, neuron.logit_decay, *parameters]
    logit = torch.logit(torch.tensor(0.25, dtype=torch.float64)) + neuron.logit_decay
    drive = currents if neuron.log_threshold is None else currents * torch.exp(-neuron.log_threshold)
    if norm is not None:
        variance, mean = torch.var_mean(currents, dim=(0, 1), correction=0)
        drive = (currents - mean) * (variance + norm.batch.eps).rsqrt() * norm.batch.weight + norm.batch.bias
    expected = by_definition(neuron, drive, torch.sigmoid(logit))
    assert torch.equal(spikes > 0.5, expected > 0.5) and 0.1 < float(spikes.detach().mean()) < 0.9
    tolerance = 1e-5 if kind == "snntorch" else 1e-10  # snnTorch's spikes and their gradients are float32
    for ours, other in zip(found, torch.autograd.grad(expected, inputs, upstream)):
        assert float((ours - other).abs().max()) <= tolerance * max(1.0, float(other.abs().max()))
        assert float(ours.abs().min()) > 0.0 or ours.dim() > 1


def test_a_decay_of_each_neuron_that_is_the_common_one_changes_no_bit() -> None:
    """Spikes, and the gradients of currents and norms, in the kernels and in torch's operations."""
    generator = torch.Generator().manual_seed(0)
    constants, channels = NeuronConstants(0.3, 0.5, 0.5, 1.0), 70
    data = torch.randn(4, 40, channels, generator=generator) + 0.2
    upstream = torch.randn(data.shape, generator=generator)
    results = []
    for decays in (None, torch.full((channels,), 0.3, requires_grad=True)):
        inputs = [data.clone(), torch.full((channels,), 0.8), torch.full((channels,), 0.1)]
        current, weight, bias = (value.requires_grad_() for value in inputs)
        spikes = fused_batch_norm_lif(
            current, weight, bias, None, batch_moments(current, 1e-5), constants, torch.float32, decays
        )
        spikes.backward(upstream)
        results.append([spikes.detach(), *map(gradient, (current, weight, bias))])
    assert all(torch.equal(one, other) for one, other in zip(*results))
    ones, zeros = torch.ones(channels), torch.zeros(channels)
    for decay in (0.3, torch.full((channels,), 0.3)):
        results.append([*portable.membranes(data, ones, zeros, decay, 0.5)])
    assert all(torch.equal(one, other) for one, other in zip(*results[-2:]))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_level_and_engine_has_the_same_decays(attention: Any) -> None:
    model = random_model(3, attention=attention, learn_decays=True).double()
    folded = fold(model)
    network = quantize(folded, "hopper")
    found = vectors(network)
    assert found.keys() == {node.name for node in network.of_kind(LIF)} == folded.decays.keys()
    for name, lost in found.items():
        logits = model.get_parameter(f"{name}.logit_decay").detach().numpy()
        kept = 1.0 / (1.0 + 3.0 * np.exp(-logits))  # sigmoid(logit(1/4) + logits)
        assert (lost == np.rint(4096 * (1.0 - kept))).all() and len(set(lost.tolist())) > 4
    tokens = random_coded(folded, 4, seed=5)
    fold_rung, integer_rung = prove_levels(model, folded, network, tokens.swapaxes(0, 1))
    assert fold_rung.passed, fold_rung.summary
    assert integer_rung.details["spike_agreement_overall"] > 0.8
    assert all(rung.passed is not False for rung in prove_network(network, random_tokens(network, 12, 2, seed=6)))


def test_decays_that_nobody_has_moved_give_the_network_without_them() -> None:
    network = quantize(fold(random_model(2)), "hopper")
    model = random_model(2, learn_decays=True)
    for module in model.modules():
        if isinstance(module, FloatLIF) and module.logit_decay is not None:
            module.logit_decay.data.zero_()
            assert module.decays is not None and (module.decays == 0.25).all()
    assert compare_networks(network, quantize(fold(model), "hopper")) == []


def test_no_decay_loses_nothing_or_everything() -> None:
    model = random_model(2, blocks=1, learn_decays=True)
    for module in model.modules():
        if isinstance(module, FloatLIF) and module.logit_decay is not None:
            module.logit_decay.data[::2], module.logit_decay.data[1::2] = 1e4, -1e4
    network = quantize(fold(model), "hopper")
    assert all(lost[::2].tolist() == [1] * len(lost[::2]) for lost in vectors(network).values())
    assert all(lost[1::2].tolist() == [WHOLE - 1] * len(lost[1::2]) for lost in vectors(network).values())
    model.get_parameter(f"{QKV}.logit_decay").data[0] = np.nan
    with pytest.raises(UserError, match=rf"{QKV}\.logit_decay, its norm folded in, is not finite"):
        fold(model)


@pytest.mark.parametrize("bits", [8, 4])
def test_training_computes_with_the_exported_decays(bits: int) -> None:
    model = random_model(4, width=16, learn_decays=True)
    trains = quantization_aware(model, bits=bits, threshold_units=64)
    network = quantize(fold(trains), "hopper", threshold_units=64, config=QuantizationConfig(bits))
    deployed = in_float64(trains.double().dequantized())
    for name, lost in vectors(network).items():
        neurons = deployed.get_submodule(name)
        assert isinstance(neurons, FloatLIF) and neurons.decays is not None
        assert torch.allclose(neurons.decays, torch.from_numpy(1.0 - lost / WHOLE), rtol=0.0, atol=1e-12)
    integers = torch.randint(-100, 100, (4, 8, 6), generator=torch.Generator().manual_seed(0)).double()
    trains.train()(integers, torch.ones(4, 8, dtype=torch.bool)).square().mean().backward()
    moved = {name: parameter.grad for name, parameter in trains.named_parameters() if name.endswith("logit_decay")}
    assert len(moved) == len(vectors(network))
    assert all(found is not None and found.abs().max() > 0.0 for found in moved.values())


def test_the_proof_bounds_each_neurons_membrane() -> None:
    """Three ticks of its largest drive: 64 a + bias, and what the leak leaves of the ticks before, in whole numbers."""
    network = random_network(1, blocks=1, ticks=3)
    reader = network[QKV]
    assert isinstance(reader, LIF)
    decay = np.resize(np.array([0, 1, 2048, 4095, 4096], np.int16), reader.size)
    network = with_fields(network, QKV, decay=decay)
    weights = network["blocks.0.attention.qkv"].weights.astype(np.int64)  # type: ignore[union-attr]
    exponent = network["blocks.0.attention.qkv"].exponent  # type: ignore[union-attr]
    largest = 0
    for row, bias, lost in zip(weights, reader.bias.tolist(), decay.tolist()):
        ends = (sum(row[row > 0]) * 2**exponent * 64 + bias, sum(row[row < 0]) * 2**exponent * 64 + bias)
        drive, membrane = max(map(abs, ends)), 0
        for _ in range(3):
            membrane = drive + membrane * (WHOLE - lost) // WHOLE
        largest = max(largest, membrane)
    (bound,) = (item for item in compute_bounds(network) if (item.node, item.quantity) == (QKV, "membrane"))
    assert bound.largest == largest
    require_no_overflow(network)


def with_fields(network: Network, name: str, **fields: Any) -> Network:
    nodes = [dataclasses.replace(node, **fields) if node.name == name else node for node in network.nodes]
    return dataclasses.replace(network, nodes=tuple(nodes))


def test_files_keep_a_vector_and_one_number_as_before(tmp_path: Path) -> None:
    network, path = random_network(1, blocks=1, learn_decays=True), tmp_path / "net.dsf.h5"
    network = with_fields(network, "blocks.0.mlp.hidden_lif", decay=1000)
    write_network(network, path)
    with h5py.File(path) as file:
        lifs = {group.attrs["name"]: group for group in file["nodes"].values() if group.attrs["kind"] == "LIF"}
        assert int(lifs["blocks.0.mlp.hidden_lif"].attrs["decay"]) == 1000
        assert lifs[QKV]["decay"].dtype == np.int16 and "decay" not in lifs[QKV].attrs
    found = read_network(path)
    assert compare_networks(network, found) == [] and vectors(found).keys() == vectors(network).keys()
    write_torch(network, tmp_path / "net.safetensors")
    assert compare_networks(network, read_torch(tmp_path / "net.safetensors").network) == []
    one = with_fields(network, QKV, decay=1000)
    (difference,) = compare_networks(network, one)
    assert (difference.field, difference.of_entries) == ("decay", 36) and difference.entries in (35, 36)


@pytest.mark.parametrize(
    ("decay", "words"),
    [
        (np.full(35, 9, np.int16), "threshold and decay differ in shape"),
        (np.full(36, 4097, np.int16), "decay is 4097, expected 0 to 4096"),
        (np.full((36, 1), 9, np.int16), r"decay has shape \(36, 1\), expected 1 axes"),
        (np.full(36, 9.0), "decay has dtype float64, expected int16"),
        (None, "content is no network file of this version"),
    ],
)
def test_a_signed_file_with_other_decays_is_refused_in_one_line(
    tmp_path: Path, decay: np.ndarray | None, words: str
) -> None:
    path = tmp_path / "net.dsf.h5"
    network = random_network(1, blocks=1, learn_decays=True)
    write_network(network, path)
    index = [node.name for node in network.nodes].index(QKV)
    with h5py.File(path, "r+") as file:
        group = file[f"nodes/{index:04d}"]
        del group["decay"]
        if decay is not None:
            group.create_dataset("decay", data=decay)
    content = path.read_bytes()[USER_BLOCK_BYTES:]
    path.write_bytes(SEAL.user_block(content, 2) + content)
    with pytest.raises(NetworkError, match=rf"^{path}: .*{words}") as refusal:
        read_network(path)
    assert "\n" not in str(refusal.value)


def test_channels_leave_with_their_decays_and_inspect_says_the_range() -> None:
    network = random_network(5, blocks=1, learn_decays=True)
    silent = {group.population: np.arange(group.size) % 2 == 1 for group in channel_groups(network)}
    smaller, _ = without_channels(network, silent, "measured")
    hidden = vectors(network)["blocks.0.mlp.hidden_lif"]
    assert np.array_equal(vectors(smaller)["blocks.0.mlp.hidden_lif"], hidden[::2])
    (described,) = (item for item in describe_nodes(network) if item["name"] == "blocks.0.mlp.hidden_lif")
    assert described["scale"].endswith(f"decay {hidden.min()}..{hidden.max()}/4096")


def test_a_core_of_loihi_1_takes_as_many_decays_as_it_has_compartment_profiles() -> None:
    """32 by NengoLoihi's hardware/nxsdk_objects.py; thresholds, of which there are 8, are lifted to see it."""
    network = random_network(0, width=40, blocks=1, learn_decays=True)
    distinct = {name: len(set(lost.tolist())) for name, lost in vectors(network).items()}
    chip = dataclasses.replace(LOIHI_1, thresholds_per_core=Figure(None, None, "lifted"))
    placement = place(network, chip)
    assert max(core.decays for core in placement.cores) == 32 == chip.decays_per_core.value
    for name, count in distinct.items():
        assert len(placement.cores_of(name)) >= -(-count // 32)
    assert placement.busiest.fullest == ("decays", 1.0)
    free = dataclasses.replace(chip, decays_per_core=Figure(None, None, "lifted"))
    assert len(place(network, free).cores) < len(placement.cores)
    shared = place(random_network(0, width=40, blocks=1), chip)
    assert {core.decays for core in shared.cores} == {0, 1}


def test_nir_has_a_time_constant_for_each_neuron_and_none_for_some() -> None:
    network = random_network(1, blocks=1, learn_decays=True)
    graph, _ = build_nir(network, partial=True)
    assert np.array_equal(graph.nodes[QKV].r, WHOLE / vectors(network)[QKV])
    mixed = vectors(network)[QKV].copy()
    mixed[3] = 0
    graph, omitted = build_nir(with_fields(network, QKV, decay=mixed), partial=True)
    assert any(f"LIF '{QKV}': has neurons with a leak and some without" in line for line in omitted)
    assert type(graph.nodes["blocks.0.attention.qkv"]).__name__ == "Linear"  # nobody's bias is in it


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model.decay", "0"), "model.learn_decays needs neurons that keep a membrane, and model.decay is 0"),
        (("--model.ticks", "1"), "model.learn_decays needs neurons that keep a membrane, and model.ticks is 1"),
        (("--policy", "twin"), "--model.learn-decays requires --policy dsformer, not twin: drop it"),
        (("--policy", "spikebert"), "--model.learn-decays requires --policy dsformer, not spikebert: drop it"),
    ],
)
def test_where_no_membrane_is_kept_nothing_can_be_learned(tmp_path: Path, options: tuple[str, str], words: str) -> None:
    plain = ("--out", str(tmp_path / "x"), "--steps", "2", "--model.learn-decays", *options)
    assert_refused(train_here(HOPPER, *plain), words)


def test_a_config_holds_true_or_false() -> None:
    broken: Any = "yes"
    with pytest.raises(UserError, match=r"model\.learn_decays is 'yes': it must be true or false"):
        ModelConfig(learn_decays=broken)


@pytest.fixture(scope="module")
def learned_once(filled_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned decays from a trained one on, which had none."""
    folder = tmp_path_factory.mktemp("decays")
    first, out = folder / "first", folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(filled_store))
        trained(HOPPER, "--out", str(first), "--steps", "10", *TINY, *UNSCORED)
        learns = ("--init", str(first), "--model.learn-decays", "--learning-rate", "1e-2")
        trained(HOPPER, "--out", str(out), "--steps", "10", *TINY, *UNSCORED, *learns)
    return out


@pytest.fixture
def learned_run(learned_once: Path, tiny_store: Path) -> Path:
    """The same, where its dataset is found."""
    return learned_once


@pytest.mark.slow
def test_decays_are_learned_from_a_trained_run_on(learned_run: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(learned_run)
    assert checkpoint.model_config().learn_decays and checkpoint.model_config().width == 8
    found = checkpoint.group("model")
    sizes = {"mlp.input_lif": 8, "mlp.hidden_lif": 32, "attention.input_lif": 8, "attention.qkv_lif": 24}
    for name, size in sizes.items():
        moved = found[f"blocks.0.{name}.logit_decay"]
        assert moved.shape == (size,) and moved.abs().max() > 1e-3
    counts = found["blocks.0.attention.attention_lif.logit_decay"]  # whole ones fire or are 0: no membrane is ever kept
    assert counts.shape == (8,) and not counts.any()
    out, target = tmp_path / "net.dsf.h5", ("--episodes", "0", "--dataset", HOPPER)
    result = run_here(main, "dsf-export", str(learned_run), "-o", str(out), *target)
    assert result.returncode == 0, result.stderr
    assert len(vectors(read_network(out))) == LEARNED
    onnx = ("--target", "onnx", "--precision", "float", "-o", str(tmp_path / "f.onnx"))
    result = run_here(main, "dsf-export", str(learned_run), *onnx, *target)
    assert result.returncode == 0, result.stderr
    first = ("--init", str(learned_run.parent / "first"), *TINY)
    plain = ("--out", str(tmp_path / "x"), *first, "--qat-steps", "2", "--model.learn-decays")
    assert_refused(train_here(HOPPER, *plain), "has another --model.learn-decays than True: use False")


@pytest.mark.slow
def test_at_one_tick_nothing_is_left_to_learn(learned_run: Path, tmp_path: Path) -> None:
    fewer = ("--init", str(learned_run), "--model.ticks", "1", "--steps", "2", "--batch-size", "8", *UNSCORED)
    trained(HOPPER, "--out", str(tmp_path / "one"), *fewer)
    checkpoint = load_checkpoint(tmp_path / "one")
    assert not checkpoint.model_config().learn_decays and checkpoint.model_config().ticks == 1
    assert not any("logit_decay" in name for name in checkpoint.tensors)


@pytest.mark.slow
@pytest.mark.skipif(not lava_runs_here(), reason="Lava is frozen on Python 3.10")
@pytest.mark.parametrize(("model", "bits"), [("fused", "8"), ("expanded", "4")])
def test_a_trained_network_with_learned_decays_runs_an_episode_in_lava(
    learned_run: Path, tmp_path: Path, model: str, bits: str
) -> None:
    """dsf-train, quantization-aware training, dsf-export and an episode whose every spike is compared."""
    qat, out = tmp_path / "qat", tmp_path / "net.dsf.h5"
    steps = ("--qat-steps", "4", "--bits", bits, "--batch-size", "8", *UNSCORED)
    trained(HOPPER, "--out", str(qat), "--init", str(learned_run), *steps)
    result = run_here(main, "dsf-export", str(qat), "-o", str(out), "--episodes", "0", "--dataset", HOPPER)
    assert result.returncode == 0, result.stderr
    assert len(vectors(read_network(out))) == LEARNED
    played = run_here(run, "dsf-sim-run", str(out), "--lava", model, "--json", str(tmp_path / "run.json"))
    assert played.returncode == 0, played.stderr + played.stdout
    parity = json.loads((tmp_path / "run.json").read_text())["parity"]
    assert parity["compared_spikes"] > 0 and (parity["mismatches"], parity["accumulator_mismatches"]) == (0, 0)

"""Thresholds of the neurons that read the residual, one each: learned, exact integers, and the same at every level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsf.export.cli import main
from dsf.export.conversion.calibrate import calibrate
from dsf.export.conversion.fold import fold
from dsf.export.conversion.quantize import quantize
from dsf.export.network.file import read_network
from dsf.export.network.network import Network
from dsf.export.network.nodes import LIF
from dsf.export.proof.rungs import prove_network
from dsf.export.proof.verify import prove_levels
from dsf.shell.errors import UserError
from dsf.testing.command_line import assert_refused
from dsf.testing.random_networks import random_coded, random_model, random_tokens
from dsf.testing.training_runs import HOPPER, TINY, UNSCORED, run_here, train_here, trained
from dsf.train.checkpoint import load_checkpoint
from dsf.train.models.dsformer import DSFormer
from dsf.train.models.neurons import LIF as FloatLIF
from dsf.train.models.neurons import set_neuron_kind
from dsf.train.models.qat import quantization_aware
from dsf.train.quantization.rounding import QuantizationConfig

READERS = ("attention.input_lif", "mlp.input_lif")


def learned(seed: int = 0, **sizes: Any) -> DSFormer:
    """A random model whose thresholds are a third to three times the common one."""
    model = random_model(seed, learn_thresholds=True, **sizes)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, FloatLIF) and module.log_threshold is not None:
            spread = 2.0 * torch.rand(len(module.log_threshold), generator=generator, dtype=torch.float64) - 1.0
            module.log_threshold.data.copy_(spread * np.log(3.0))
    return model


def thresholds(network: Network) -> dict[str, np.ndarray]:
    """Of the neurons that read the residual."""
    names = (f"blocks.{block}.{reader}" for block in range(2) for reader in READERS)
    nodes = {name: network[name] for name in names}
    return {name: node.threshold for name, node in nodes.items() if isinstance(node, LIF)}


@pytest.mark.parametrize("kind", ["fused", "snntorch"])
def test_a_neuron_fires_above_its_own_threshold(kind: Any) -> None:
    """Against the definition, tick by tick, and the gradient against that of a factor on the current."""
    generator = torch.Generator().manual_seed(1)
    currents = torch.randn(4, 5, 3, generator=generator, dtype=torch.float64) + 0.4
    neuron = FloatLIF(0.25, 0.5, learned=3).double()
    neuron.kind = kind
    assert neuron.log_threshold is not None
    neuron.log_threshold.data.copy_(torch.tensor([-0.7, 0.0, 0.9]))
    spikes = neuron(currents)
    own = 0.5 * torch.exp(neuron.log_threshold.detach())
    membrane = torch.zeros(5, 3, dtype=torch.float64)
    for tick, current in enumerate(currents):
        membrane = 0.25 * membrane + current
        fires = membrane > own
        assert torch.equal(spikes[tick].detach() > 0, fires)
        membrane = membrane.masked_fill(fires, 0.0)
    weights = torch.randn(spikes.shape, generator=generator, dtype=torch.float64)
    (spikes * weights).sum().backward()
    gain = torch.exp(-neuron.log_threshold.detach()).requires_grad_()
    (FloatLIF(0.25, 0.5).double()(currents * gain) * weights).sum().backward()
    assert gain.grad is not None and neuron.log_threshold.grad is not None
    assert torch.allclose(neuron.log_threshold.grad, -gain.grad * gain.detach())
    assert neuron.log_threshold.grad.abs().min() > 0.0


@pytest.mark.parametrize("attention", ["pssa", "tssa", "none"])
def test_every_level_has_the_same_thresholds(attention: Any) -> None:
    model = learned(3, attention=attention).double()
    folded = fold(model)
    network = quantize(folded, "hopper")
    units = quantize(fold(random_model(3, attention=attention)), "hopper")
    shared = {int(value) for values in thresholds_of_kind(units).values() for value in values}
    assert len(shared) == 1
    for name, found in thresholds_of_kind(network).items():
        factors = torch.exp(model.get_parameter(f"{name}.log_threshold").detach()).numpy()
        unit = 2.0 ** round(np.log2(np.median(found / factors)))
        assert (found == np.rint(unit * factors)).all() and len(set(found.tolist())) > 4
    tokens = random_coded(folded, 4, seed=5)
    fold_rung, integer_rung = prove_levels(model, folded, network, tokens.swapaxes(0, 1))
    assert fold_rung.passed, fold_rung.summary
    assert integer_rung.details["spike_agreement_overall"] > 0.8
    assert all(rung.passed is not False for rung in prove_network(network, random_tokens(network, 16, 2, seed=6)))


def thresholds_of_kind(network: Network) -> dict[str, np.ndarray]:
    """As :func:`thresholds`, of whatever blocks and branches there are."""
    return {node.name: node.threshold for node in network.of_kind(LIF) if node.name.endswith(READERS)}


def test_training_computes_with_the_exported_thresholds() -> None:
    model = learned(4, width=16)
    trains = quantization_aware(model, bits=4, threshold_units=64)
    network = quantize(fold(trains), "hopper", threshold_units=64, config=QuantizationConfig(4))
    for name, found in thresholds(network).items():
        value = trains.values()[f"{name}.log_threshold"]
        assert np.rint(64 * np.exp(value)) == pytest.approx(64 * np.exp(value), abs=1e-9)
        assert (np.rint(64 * np.exp(value)).astype(int) == found).all()
        assert (
            found == np.rint(64 * torch.exp(model.get_parameter(f"{name}.log_threshold").double()).detach().numpy())
        ).all()
    integers = torch.randint(-100, 100, (4, 8, 6), generator=torch.Generator().manual_seed(0)).float()
    trains.train()(integers, torch.ones(4, 8, dtype=torch.bool)).square().mean().backward()
    gradient = trains.get_parameter("blocks.0.mlp.input_lif.log_threshold").grad
    assert gradient is not None and gradient.abs().max() > 0.0


def test_a_unit_per_channel_is_refused() -> None:
    folded = fold(learned(1))
    calibration = calibrate(folded, random_coded(folded, 2, seed=1))
    with pytest.raises(UserError, match="--residual-scales channel requires neurons with one threshold"):
        quantize(folded, "hopper", config=QuantizationConfig(8, residual_scales="channel"), calibration=calibration)


@pytest.mark.slow
def test_thresholds_are_learned_from_a_trained_run_on(tiny_store: Path, tmp_path: Path) -> None:
    first, run, qat = tmp_path / "first", tmp_path / "run", tmp_path / "qat"
    trained(HOPPER, "--out", str(first), "--steps", "10", *TINY, *UNSCORED)
    learns = ("--init", str(first), "--model.learn-thresholds", "--learning-rate", "1e-2")
    trained(HOPPER, "--out", str(run), "--steps", "10", *TINY, *UNSCORED, *learns)
    checkpoint = load_checkpoint(run)
    assert checkpoint.model_config().learn_thresholds and checkpoint.model_config().width == 8
    moved = checkpoint.group("model")["blocks.0.mlp.input_lif.log_threshold"]
    assert moved.shape == (8,) and moved.abs().max() > 1e-3
    trained(HOPPER, "--out", str(qat), "--init", str(run), "--qat-steps", "4", *UNSCORED, "--batch-size", "8")
    for source, target in ((run, "net.dsf.h5"), (qat, "qat.dsf.h5")):
        out = tmp_path / target
        result = run_here(main, "dsf-export", str(source), "-o", str(out), "--episodes", "0", "--dataset", HOPPER)
        assert result.returncode == 0, result.stderr
        found = thresholds_of_kind(read_network(out))
        assert found.keys() == {f"blocks.0.{reader}" for reader in READERS}
        assert all(len(set(values.tolist())) > 1 for values in found.values())
    onnx = ("--target", "onnx", "--precision", "float", "-o", str(tmp_path / "f.onnx"))
    result = run_here(main, "dsf-export", str(run), *onnx, "--episodes", "0", "--dataset", HOPPER)
    assert result.returncode == 0, result.stderr
    plain = ("--out", str(tmp_path / "x"), "--init", str(first), "--qat-steps", "2", *TINY, "--model.learn-thresholds")
    assert_refused(train_here(HOPPER, *plain), "has another --model.learn-thresholds than True: use False")


def test_the_torch_neurons_agree_with_the_kernels() -> None:
    model = learned(6)
    integers, mask = torch.randint(-100, 100, (2, 8, 6)).float(), torch.ones(2, 8, dtype=torch.bool)
    with torch.no_grad():
        fused = model(integers, mask)
        set_neuron_kind(model, "snntorch")
        assert torch.allclose(model(integers, mask), fused, atol=1e-5)

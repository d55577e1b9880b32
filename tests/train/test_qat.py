"""Quantization-aware training: on the real command line, resumed, exported, and better than plain rounding."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from dsf.export.network.file import read_network
from dsf.export.network.nodes import LIF, Synapses
from dsf.shell.errors import UserError
from dsf.testing.command_line import assert_refused, run_command
from dsf.testing.random_networks import random_model
from dsf.testing.training_runs import CARTPOLE, HOPPER, TINY, UNSCORED, train_here, trained
from dsf.train.checkpoint import load_checkpoint
from dsf.train.config.training import ModelConfig, NormKind, TrainConfig
from dsf.train.data.batches import BatchSource
from dsf.train.data.dataset import OfflineDataset, load_dataset
from dsf.train.initial import with_model_of_checkpoint
from dsf.train.models.decision_model import DecisionModel
from dsf.train.models.folding import fold_norms
from dsf.train.models.qat import QuantizedDSFormer, deployed, quantization_aware
from dsf.train.quantization.integers import LifIntegers
from dsf.train.trainer import Trainer

SMALL = (*TINY, "--model.width", "16", "--batch-size", "32", "--learning-rate", "1e-2")
MODEL = ModelConfig(width=16, blocks=1, context=6, window=3)


@pytest.fixture(scope="module")
def float_run(filled_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small float model that has learned something."""
    run = tmp_path_factory.mktemp("float") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(filled_store))
        trained(HOPPER, "--out", str(run), "--steps", "300", *SMALL, *UNSCORED)
    return run


def loss(model: DecisionModel, data: OfflineDataset) -> float:
    """Mean squared action error on windows that the run has not drawn in this order."""
    batch = BatchSource(data, model.codec, windows=128, context=model.config.context, seed=7).draw(0)
    with torch.no_grad():
        return float((model(batch.integers, batch.mask) - batch.actions)[batch.mask].square().mean())


@pytest.mark.slow
def test_exported_integers_are_the_trained_ones(float_run: Path, tiny_store: Path, tmp_path: Path) -> None:
    run, file = tmp_path / "qat", tmp_path / "net.dsf.h5"
    start = ("--init", str(float_run), "--qat-steps", "30", "--bits", "4")
    trained(HOPPER, "--out", str(run), *start, *SMALL, "--eval-episodes", "1", "--eval-targets", "1800")
    checkpoint = load_checkpoint(run)
    assert checkpoint.header["quantization"] == {"bits": 4, "threshold_units": 256, "per_channel": True}
    assert checkpoint.header["step"] == 30 and checkpoint.header["train"]["learning_rate"] == pytest.approx(1e-3)

    export = ("dsf-export", str(run), "-o", str(file), "--episodes", "1", "--max-score-drop", "100")
    assert_refused(run_command(*export, "--bits", "8"), "--bits is 8", "trained for 4")
    result = run_command(*export)
    assert result.returncode == 0, result.stderr
    network, model = read_network(file), checkpoint.build_trained()
    assert network.provenance["bits"] == 4
    assert all(rung["passed"] is not False for rung in network.verification["rungs"])
    assert network.verification["rungs"][1]["details"]["spike_agreement_overall"] > 0.99
    assert isinstance(model, QuantizedDSFormer)
    for name, integers in model.integers().items():
        node = network[name]
        weights = integers.synapses.weights if name == "embed" else integers.weights  # type: ignore[union-attr]
        assert (node.weights == weights).all(), name  # type: ignore[union-attr]
        if isinstance(integers, LifIntegers):
            lif = network[f"{name}_lif" if name.endswith("qkv") else name.replace("expand", "hidden_lif")]
            assert isinstance(lif, LIF) and (lif.threshold == integers.thresholds).all()
            assert (lif.bias_mantissa == integers.mantissa).all()
    assert max(int(abs(node.weights).max()) for node in network.of_kind(Synapses)) == 7


@pytest.mark.slow
@pytest.mark.parametrize("bits", [3, 4])
def test_training_recovers_what_rounding_loses(bits: int, float_run: Path, tiny_store: Path, tmp_path: Path) -> None:
    start = ("--init", str(float_run), "--qat-steps", "200", "--bits", str(bits))
    trained(HOPPER, "--out", str(tmp_path), *start, *SMALL, *UNSCORED)
    data, model = load_dataset(HOPPER), load_checkpoint(float_run).build_trained()
    rounded = quantization_aware(model, bits, threshold_units=256).dequantized()
    assert loss(load_checkpoint(tmp_path).build_model(), data) < 0.9 * loss(rounded, data)
    assert loss(model, data) < 0.9 * loss(rounded, data)


@pytest.mark.slow
def test_resumed_run_ends_bit_identical_without_its_first_checkpoint(
    float_run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    data = load_dataset(HOPPER)
    config = TrainConfig(
        HOPPER, tmp_path / "run", MODEL, qat_steps=12, init=float_run, bits=3, batch_size=8, threads=1, device="cpu"
    ).of_phase()
    whole, first = Trainer(config, data), Trainer(config, data)
    advance(whole, 12)
    advance(first, 5)
    config.out.mkdir()
    first.save()
    second = Trainer(dataclasses.replace(config, resume=True, init=None), data)
    second.restore()
    advance(second, 12)
    left, right = whole.model.state_dict(), second.model.state_dict()
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    with pytest.raises(UserError, match="another"):
        Trainer(dataclasses.replace(config, resume=True, bits=4), data).restore()


def advance(trainer: Trainer, last: int) -> None:
    """Train up to step ``last``."""
    trainer.model.train()
    for batch in trainer.batches.from_step(trainer.step, last):
        trainer.train_step(batch)


def test_gradient_reaches_every_parameter() -> None:
    model = quantization_aware(random_model(1, width=16), bits=4, threshold_units=256).train()
    mask = torch.ones(8, 8, dtype=torch.bool)
    integers = torch.randint(-100, 100, (8, 8, 6), generator=torch.Generator().manual_seed(0)).float()
    (model(integers, mask) - 0.3).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0.0, name


@pytest.mark.parametrize("norm", ["ptbn", "tdbn", "reptbn", "none"])
def test_folding_leaves_no_norm_and_the_same_policy(norm: NormKind) -> None:
    model = random_model(2, norm=norm).double()
    mask, integers = torch.ones(4, 8, dtype=torch.bool), torch.randint(-100, 100, (4, 8, 6)).double()
    with torch.no_grad():
        before = model(integers, mask)
        fold_norms(model)
        assert torch.allclose(model(integers, mask), before, atol=1e-9)
    names = {name for name, _ in model.named_parameters()}
    assert not any("norm" in name for name in names) and "blocks.1.mlp.contract.bias" in names
    assert deployed(model) is model


@pytest.mark.slow
def test_starts_that_are_refused(float_run: Path, tiny_store: Path, tmp_path: Path) -> None:
    def refused(*words: str, arguments: tuple[str, ...] = (), dataset: str = HOPPER, init: Path = float_run) -> None:
        start = ("--out", str(tmp_path / "out"), "--init", str(init), "--qat-steps", "5", *SMALL, *arguments)
        assert_refused(train_here(dataset, *start), *words)

    refused("no checkpoint at", "nowhere", init=tmp_path / "nowhere")
    refused("model.norm is tdln", "--model.norm ptbn", arguments=("--model.norm", "tdln"))
    refused("has another --model.attention than tssa", arguments=("--model.attention", "tssa"))
    refused("has another --model.positional-bias than full", arguments=("--model.positional-bias", "full"))
    refused("was trained for hopper", "is for cartpole", dataset=CARTPOLE)
    refused("--init", "another --model.ticks than 2: use 4", arguments=("--model.ticks", "2"))
    trained(HOPPER, "--out", str(tmp_path / "q"), "--init", str(float_run), "--qat-steps", "1", *SMALL, *UNSCORED)
    refused("--init", "quantized already", init=tmp_path / "q")
    resume = ("--out", str(float_run), "--resume", "--qat-steps", "5", *SMALL)
    assert_refused(train_here(HOPPER, *resume), "--resume", "is an ordinary run", "--init")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"bits": 1}, "--bits is 1: synapses have 2 to 8 bits"),
        ({"bits": 9}, "--bits is 9"),
        ({"qat_steps": 5}, "--qat-steps needs .* --init"),
        ({"qat_steps": -1}, "--qat-steps is -1"),
        ({"threshold_units": 100}, "--threshold-units is 100: it must be a power of two, 16 to 4096"),
    ],
)
def test_settings_that_cannot_work(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        TrainConfig("x", **fields)


@pytest.mark.slow
def test_architecture_comes_from_the_checkpoint_unless_another_is_asked_for(float_run: Path) -> None:
    config = TrainConfig("x", init=float_run, qat_steps=5)
    theirs = load_checkpoint(float_run).model_config()
    assert theirs.width == 16 and with_model_of_checkpoint(config).model == theirs
    asked = dataclasses.replace(config, model=ModelConfig(width=32))
    assert with_model_of_checkpoint(asked) == asked
    assert with_model_of_checkpoint(TrainConfig("x")).model == ModelConfig()

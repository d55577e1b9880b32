"""Quantization-aware training of dense rivals: the integers that score them, their gradient, runs, and refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from dsf.export.cli import main as export_main
from dsf.shell.errors import UserError
from dsf.testing.command_line import assert_refused
from dsf.testing.rival_models import CONTEXT, small_model, windows
from dsf.testing.training_runs import HOPPER, TINY, UNSCORED, run_here, train_here, trained
from dsf.train.checkpoint import load_checkpoint, save_checkpoint
from dsf.train.cli import main
from dsf.train.config.rivals import PolicyKind, RivalConfig
from dsf.train.config.training import ModelConfig, TrainConfig
from dsf.train.data.batches import BatchSource
from dsf.train.data.dataset import OfflineDataset, load_dataset
from dsf.train.initial import with_model_of_checkpoint
from dsf.train.models.decision_model import DecisionModel
from dsf.train.models.rivals.int8 import Int8Linear, int8_copy
from dsf.train.models.rivals.qat import QuantizedLinear, quantization_aware_rival
from dsf.train.trainer import Trainer

KINDS: tuple[PolicyKind, ...] = ("dt", "bc", "twin")
SMALL = (*TINY, "--model.width", "16", "--batch-size", "32", "--learning-rate", "1e-2")


@pytest.fixture(scope="module")
def float_runs(filled_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small float rivals that have learned something."""
    place, runs = tmp_path_factory.mktemp("float"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(filled_store))
        for kind in ("dt", "twin"):
            runs[kind] = place / kind
            settings = ("--policy", kind, "--rival.width", "16", "--steps", "200", *SMALL, *UNSCORED)
            trained(HOPPER, "--out", str(runs[kind]), *settings)
    return runs


def loss(model: DecisionModel, data: OfflineDataset) -> float:
    """Mean squared action error on windows that the run has not drawn in this order."""
    batch = BatchSource(data, model.codec, windows=128, context=model.config.context, seed=7).draw(0)
    with torch.no_grad():
        return float((model.eval()(batch.integers, batch.mask, batch.ends) - batch.actions)[batch.mask].square().mean())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_forward_is_bit_for_bit_that_of_the_integers(kind: PolicyKind, bits: int) -> None:
    model, mask = small_model(kind), torch.ones(16, CONTEXT, dtype=torch.bool)
    mask[:4, :3] = False
    generator = torch.get_rng_state()
    quantized = quantization_aware_rival(model, bits)
    assert torch.equal(torch.get_rng_state(), generator)
    integers = int8_copy(quantized)
    codes = [module.weight for module in integers.modules() if isinstance(module, Int8Linear)]
    assert {int(code.abs().max()) for code in codes} == {2 ** (bits - 1) - 1}
    answers = quantized(windows(16), mask)
    assert torch.equal(answers, integers(windows(16), mask)) and not torch.equal(answers, model(windows(16), mask))
    assert (model.engine, quantized.engine, integers.engine) == ("torch", "torch", f"torch int{bits}")
    before, after = model.state_dict(), quantized.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("bits", "inputs"), [(4, 20), (8, 1_500)])
def test_a_layer_is_its_equation_and_its_gradient_that_of_the_rounded_values(bits: int, inputs: int) -> None:
    """Beside numpy's integers; 1,500 inputs have sums that float32 cannot hold."""
    torch.manual_seed(0)
    linear, values = nn.Linear(inputs, 12), torch.randn(2, 5, inputs, requires_grad=True)
    layer, limit = QuantizedLinear(linear, bits), 2 ** (bits - 1) - 1
    steps = values.detach().abs().amax(-1, keepdim=True) / 127
    weight_steps = linear.weight.detach().abs().amax(-1, keepdim=True) / limit
    codes, weights = (values.detach() / steps).round(), (linear.weight.detach() / weight_steps).round()
    sums = codes.numpy().astype(np.int64) @ weights.numpy().astype(np.int64).T
    answers = layer(values)
    expected = sums.astype(np.float32) * (steps * weight_steps[:, 0]).numpy() + linear.bias.detach().numpy()
    assert np.array_equal(answers.detach().numpy(), expected)

    rounded = [part.requires_grad_() for part in (codes * steps, weights * weight_steps)]
    into = torch.randn(2, 5, 12)
    wanted = torch.autograd.grad(
        (functional.linear(rounded[0], rounded[1], linear.bias.detach()) * into).sum(), rounded
    )
    found = torch.autograd.grad((answers * into).sum(), [values, linear.weight, linear.bias])
    assert all(torch.allclose(mine, theirs, atol=1e-5) for mine, theirs in zip(found, [*wanted, into.sum((0, 1))]))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_every_parameter(kind: PolicyKind) -> None:
    model = quantization_aware_rival(small_model(kind), 4).train()
    (model(windows(8), torch.ones(8, CONTEXT, dtype=torch.bool)) - 0.3).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0.0, name


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "bits"), [("dt", 3), ("twin", 4)])
def test_training_recovers_what_rounding_loses_and_is_scored_by_its_integers(
    kind: PolicyKind, bits: int, float_runs: dict[str, Path], tiny_store: Path, tmp_path: Path
) -> None:
    run, start = tmp_path / "qat", ("--policy", kind, "--init", str(float_runs[kind]), "--qat-steps", "60")
    scored = ("--eval-episodes", "1", "--eval-targets", "3600", "--eval-seed", "7")
    said = trained(HOPPER, "--out", str(run), *start, "--bits", str(bits), *SMALL, *scored)
    assert f"trained and scored at {bits}-bit weights and 8-bit activations" in said
    checkpoint, data = load_checkpoint(run), load_dataset(HOPPER)
    header = checkpoint.header
    assert header["quantization"] == {"bits": bits, "activation_bits": 8} and header["step"] == 60
    assert header["train"]["learning_rate"] == pytest.approx(1e-3) and header["rival"]["width"] == 16
    model, floats = checkpoint.build_model(), load_checkpoint(float_runs[kind]).build_model()
    rounded = loss(int8_copy(floats, bits), data)
    assert loss(model, data) < 0.95 * rounded and loss(floats, data) < 0.95 * rounded
    fine_tuned = loss(int8_copy(trained_on(floats, float_runs[kind], data, 60), bits), data)
    assert loss(model, data) < 0.95 * fine_tuned  # what the same steps in floats leave when they are rounded
    batch = BatchSource(data, model.codec, windows=8, context=6, seed=1).draw(0)
    with torch.no_grad():
        answers = [copy(batch.integers, batch.mask, batch.ends) for copy in (model, int8_copy(model))]
    assert torch.equal(*answers)

    (recorded,) = header["scores"]
    assert recorded["engine"] == f"torch int{bits}"
    out = tmp_path / "scores.json"
    asked = ("--targets", "3600", "--episodes", "1", "--seed", "7", "--threads", "1")
    told = run_here(main, "dsf-train", "evaluate", str(run), *asked, "--json", str(out))
    assert told.returncode == 0 and f"int{bits}: last checkpoint, target return 3600" in told.stdout, told.stderr
    assert json.loads(out.read_text()) == [recorded]
    for precision in ("fp32", "int8"):
        refused = run_here(main, "dsf-train", "evaluate", str(run), *asked, "--precision", precision)
        assert_refused(
            refused, f"precision is {precision}", str(run), f"weights of {bits} bits", "leave the precision out"
        )
    refused = run_here(export_main, "dsf-export", str(run), "-o", str(tmp_path / "network.dsf.h5"))
    assert_refused(refused, f"--policy {kind}) cannot become spikes")


def trained_on(model: DecisionModel, run: Path, data: OfflineDataset, steps: int) -> DecisionModel:
    """The float model of a run after more steps of float training, at the learning rate of quantization-aware ones."""
    given = load_checkpoint(run).header["train"]
    config = TrainConfig(
        HOPPER, run / "more", model.config, policy=model.kind, rival=model.rival or RivalConfig(), steps=steps,
        batch_size=given["batch_size"], learning_rate=0.1 * given["learning_rate"], threads=1, device="cpu",
    )  # fmt: skip
    trainer = Trainer(config, data)
    trainer.model.load_state_dict(model.state_dict())
    advance(trainer, steps)
    return trainer.model


@pytest.mark.slow
@pytest.mark.parametrize("ema", [None, 0.9])
def test_resumed_run_ends_bit_identical_without_its_first_checkpoint(
    ema: float | None, float_runs: dict[str, Path], tiny_store: Path, tmp_path: Path
) -> None:
    """Decision Transformer, so with dropout; the averaged weights are the same, too."""
    data, model = load_dataset(HOPPER), ModelConfig(width=16, blocks=1, context=6, window=3)
    config = TrainConfig(
        HOPPER, tmp_path / "run", model, policy="dt", qat_steps=12, init=float_runs["dt"], bits=4, ema=ema,
        batch_size=8, threads=1, device="cpu",
    ).of_phase()  # fmt: skip
    whole, first = Trainer(config, data), Trainer(config, data)
    advance(whole, 12)
    advance(first, 5)
    config.out.mkdir()
    first.save()
    torch.rand(3)  # what is left of the generator does not matter
    second = Trainer(dataclasses.replace(config, resume=True, init=None), data)
    second.restore()
    advance(second, 12)
    for left, right in ((whole.model, second.model), (whole.reported(), second.reported())):
        mine, theirs = left.state_dict(), right.state_dict()
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    with pytest.raises(UserError, match="another bits"):
        Trainer(dataclasses.replace(config, resume=True, bits=8), data).restore()


def advance(trainer: Trainer, last: int) -> None:
    """Train up to step ``last``."""
    trainer.model.train()
    for batch in trainer.batches.from_step(trainer.step, last):
        trainer.train_step(batch)


@pytest.mark.slow
def test_starts_that_are_refused(float_runs: dict[str, Path], tiny_store: Path, tmp_path: Path) -> None:
    def refused(
        *words: str, policy: str = "dt", init: Path = float_runs["dt"], arguments: tuple[str, ...] = ()
    ) -> None:
        out = tmp_path / "out"
        start = ("--out", str(out), "--policy", policy, "--init", str(init), "--qat-steps", "5", *SMALL, *arguments)
        assert_refused(train_here(HOPPER, *start), *words)
        assert not (out / "checkpoint.safetensors").exists()

    refused("no checkpoint at", "nowhere", init=tmp_path / "nowhere")
    refused("has --policy dt, not twin", policy="twin")
    refused("has --policy dt, not dsformer", policy="dsformer")
    refused("has another --model.width than 24: use 16", arguments=("--model.width", "24"))
    refused("has another --rival.width than 12: use 16", arguments=("--rival.width", "12"))
    refused("--threshold-units requires --policy dsformer, not dt", arguments=("--threshold-units", "128"))
    refused("--no-per-channel requires --policy dsformer, not dt", arguments=("--no-per-channel",))
    refused("--bits is 9: synapses have 2 to 8 bits", arguments=("--bits", "9"))
    resume = ("--out", str(float_runs["dt"]), "--resume", "--policy", "dt", "--qat-steps", "5", *SMALL)
    assert_refused(train_here(HOPPER, *resume), "--resume", "is an ordinary run", "--init")

    once = ("--policy", "dt", "--init", str(float_runs["dt"]), "--qat-steps", "1", *SMALL, *UNSCORED)
    trained(HOPPER, "--out", str(tmp_path / "q"), *once)
    refused("--init", "quantized already", init=tmp_path / "q")
    trained(HOPPER, "--out", str(tmp_path / "f"), "--policy", "fcnet", "--steps", "1", *SMALL, *UNSCORED)
    whole = (
        "--qat-steps requires a rival whose matrices are all Linears",
        "blocks.0.convolution.mixing besides: drop it",
    )
    refused(*whole, policy="fcnet", init=tmp_path / "f")


@pytest.mark.parametrize(("kind", "name"), [("spikegpt", "blocks.0.time_mix.decay"), ("strl", "embed_place")])
def test_a_matrix_that_is_no_linear_is_named(kind: PolicyKind, name: str) -> None:
    with pytest.raises(UserError, match=rf"^--qat-steps requires .*--policy {kind}\) has {name} besides: drop it"):
        quantization_aware_rival(small_model(kind), 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({"bits": 9}, "bits is 9 and activation_bits 8"),
        ({"bits": 1}, "bits is 1"),
        ({"bits": 4, "activation_bits": 4}, "activation_bits 4"),
        ({"bits": True}, "bits is True, expected a whole number"),
        ({}, "bits is missing"),
        ({"bits": 4, "threshold_units": 256}, r"does not fit this dsf \(threshold_units\)"),
    ],
)
def test_a_headers_quantization_is_checked(
    written: dict[str, Any], words: str, float_runs: dict[str, Path], tmp_path: Path
) -> None:
    found, path = load_checkpoint(float_runs["twin"]), tmp_path / "forged.safetensors"
    save_checkpoint(path, found.tensors, {**found.header, "quantization": written})
    with pytest.raises(UserError, match=f"^{path}: the header's quantization.*{words}"):
        load_checkpoint(path).build_model()


@pytest.mark.slow
def test_sizes_come_from_the_checkpoint_unless_others_are_asked_for(float_runs: dict[str, Path]) -> None:
    config = TrainConfig("x", policy="dt", init=float_runs["dt"], qat_steps=5)
    found = with_model_of_checkpoint(config)
    theirs = load_checkpoint(float_runs["dt"])
    assert found.rival == theirs.rival_config() and found.rival.width == 16 and found.model == theirs.model_config()
    asked = dataclasses.replace(config, rival=RivalConfig(width=12))
    assert with_model_of_checkpoint(asked).rival == asked.rival

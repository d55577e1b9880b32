"""Training on a GPU against training on the processor: neurons, whole models, runs, their scores and their integers.

Skipped where torch sees no GPU; ``experiments/gpu_session.py`` runs them where there is one, by their marker.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dsf.export import cli as export_cli
from dsf.runtime import cli as simulate_cli
from dsf.shell.child_processes import start_method_kept
from dsf.tasks import get_task
from dsf.testing.narrowed import gradient
from dsf.testing.random_networks import random_model
from dsf.testing.rival_models import FEATURES, small_model, windows
from dsf.testing.training_runs import HOPPER, MODEL, metrics, run_here, trained
from dsf.train.checkpoint import load_checkpoint
from dsf.train.config.rivals import PolicyKind
from dsf.train.evaluation.closed_loop import evaluate
from dsf.train.evaluation.finished_run import score_run
from dsf.train.models import portable
from dsf.train.models.decision_model import DecisionModel
from dsf.train.models.fused import NeuronConstants, batch_moments, fused_batch_norm_lif, fused_lif
from dsf.train.precision import resolve_precision
from dsf.train.run_directory import LOSS

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]
GPU = torch.device("cuda")
NEURON = NeuronConstants(decay=0.3, threshold=0.5, half_width=0.5, slope=1.0)
TINY = (*MODEL, "--batch-size", "8", "--threads", "1", "--device", GPU.type, "--log-every", "1", "--precision", "auto")
SCORED = ("--eval-episodes", "2", "--eval-targets", "3600", "--eval-seed", "40")
RIVALS: tuple[PolicyKind, ...] = ("bc", "dt", "fcnet", "spikegpt", "spikebert", "strl", "twin")
FLIPPED = 0.02
"""Share of answers that sums in another order may change by more than rounding, by way of a spike that tips."""
ROUNDING = 1e-3
COMPILED = ("--compile", "--steps", "12", "--eval-episodes", "0")
"""What torch.compile fuses takes half a minute to build."""


def neuron_results(device: torch.device) -> list[Tensor]:
    """Spikes and gradients of a neuron alone, then of a batch norm before one, in float64 back on the processor."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(size, dtype=torch.float64, generator=generator) for size in ((4, 70, 33), (4, 70, 33))]
    currents, upstream = ((values + 0.3).to(device) for values in drawn)
    alone = currents.clone().requires_grad_()
    spikes = fused_lif(alone, NEURON, torch.float64)
    spikes.backward(upstream)
    normed, weight, bias = currents.clone().requires_grad_(), torch.linspace(0.5, 1.5, 33), torch.linspace(-1, 1, 33)
    weight, bias = (values.double().to(device).requires_grad_() for values in (weight, bias))
    skip = torch.tensor(0.2, dtype=torch.float64, device=device, requires_grad=True)
    moments = batch_moments(currents, eps=1e-5)
    fired = fused_batch_norm_lif(normed, weight, bias, skip, moments, NEURON, torch.float64)
    fired.backward(upstream)
    found = [spikes, gradient(alone), moments.mean, moments.variance, fired]
    return [values.detach().cpu() for values in (*found, *map(gradient, (normed, weight, bias, skip)))]


def test_a_gpus_neurons_are_the_processors() -> None:
    for ours, theirs in zip(neuron_results(GPU), neuron_results(torch.device("cpu")), strict=True):
        assert ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-9, atol=1e-10)


def answers(model: DecisionModel, device: torch.device) -> tuple[Tensor, Tensor]:
    """Answers to windows, the first of which are short, and the gradient of the first parameter to their squares."""
    model, context = copy.deepcopy(model).to(device), model.config.context
    tokens = windows(16)[:, :context].to(device)
    mask = torch.ones(16, context, dtype=torch.bool, device=device)
    mask[:4, :3] = False
    ends = torch.full((16,), context - 1, device=device)
    found = model(tokens, mask, ends)[mask]
    found.square().mean().backward()
    slope = next(parameter.grad for parameter in model.parameters() if parameter.grad is not None)
    return found.detach().cpu(), slope.cpu()


@pytest.mark.parametrize("kind", ["dsformer", *RIVALS])
def test_a_gpu_answers_as_the_processor(kind: PolicyKind) -> None:
    """In fp32, up to the order of sums; a spike that tips by it changes a few answers."""
    model = random_model(seed=0, features=FEATURES) if kind == "dsformer" else small_model(kind)
    (ours, our_slope), (theirs, their_slope) = (answers(model, device) for device in (GPU, torch.device("cpu")))
    assert ours.std() > ROUNDING  # it says something
    assert float(((ours - theirs).abs() > ROUNDING).float().mean()) <= FLIPPED
    assert torch.nn.functional.cosine_similarity(our_slope.flatten(), their_slope.flatten(), dim=0) > 1 - FLIPPED


@pytest.mark.parametrize("kind", ["dsformer", *RIVALS])
def test_a_run_on_a_gpu_learns_is_scored_and_reloads_on_the_processor(
    kind: PolicyKind, tiny_store: Path, tmp_path: Path, same_threads: None
) -> None:
    more = ("--ema", "0.9", "--norm-batches", "2") if kind == "dsformer" else ("--policy", kind)
    trained(HOPPER, "--out", str(tmp_path), "--steps", "80", "--learning-rate", "3e-3", *TINY, *SCORED, *more)
    losses = [row[LOSS] for row in metrics(tmp_path) if LOSS in row]
    assert len(losses) == 80 and sum(losses[-20:]) < sum(losses[:20])
    checkpoint = load_checkpoint(tmp_path)
    header, (recorded,) = checkpoint.header, checkpoint.header["scores"]
    assert header["precision"] == (resolve_precision("auto", GPU) if kind == "dsformer" else "fp32")
    assert header["train"]["device"] == GPU.type
    assert all(tensor.device.type == "cpu" and torch.isfinite(tensor).all() for tensor in checkpoint.tensors.values())
    (again,) = evaluate(checkpoint.build_model(), get_task("hopper"), "last", 80, [3600.0], [40, 41])
    assert len(again.returns) == len(recorded["returns"]) == 2
    if kind in ("dt", "twin"):
        (integers,) = score_run(tmp_path, "int8", (3600.0,), 1, 40)
        assert len(integers.returns) == 1


def test_an_interrupted_run_goes_on_on_the_gpu(tiny_store: Path, tmp_path: Path, same_threads: None) -> None:
    """The optimizer's state is put back where the weights are; the bits of a GPU's sums are not promised."""
    often = (HOPPER, "--out", str(tmp_path), *TINY, "--checkpoint-every", "4", "--ema", "0.9")
    trained(*often, "--steps", "8", "--eval-episodes", "0")
    said = trained(*often, "--steps", "8", "--eval-episodes", "1", "--eval-targets", "3600", "--resume")
    assert "step 8 of 8" in said and load_checkpoint(tmp_path).header["scores"]


def test_what_a_gpu_has_trained_becomes_integers(tiny_store: Path, tmp_path: Path, same_threads: None) -> None:
    run, network = tmp_path / "run", tmp_path / "network.dsf.h5"
    trained(HOPPER, "--out", str(run), "--steps", "40", *TINY, "--eval-episodes", "0")
    asked = ("--out", str(network), "--episodes", "0", "--dataset", HOPPER)
    exported = run_here(export_cli.main, "dsf-export", str(run), *asked)
    assert exported.returncode == 0, exported.stderr
    driven = run_here(simulate_cli.main, "dsf-sim-run", str(network), "--backend", "fast", "--episodes", "1")
    assert driven.returncode == 0 and "on fast" in driven.stdout, (driven.stdout, driven.stderr)


@pytest.mark.filterwarnings("default")  # torch's compiler gives advice in warnings
@start_method_kept()  # torch.compile fixes it, and Lava refuses to be imported then
def test_compiled_neurons_train(
    tiny_store: Path, tmp_path: Path, same_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("spikes", "current_gradient", "channel_sums", "norm_gradient"):
        monkeypatch.setattr(portable, name, getattr(portable, name))  # compiled for this test only
    trained(HOPPER, "--out", str(tmp_path), *TINY, *COMPILED)
    assert [row["step"] for row in metrics(tmp_path)] == [*range(1, 13), 12]

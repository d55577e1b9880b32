"""Fine-tuning from a trained run, penalties that start late, and pruning: known answers, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dsf.shell.command import parse_arguments
from dsf.shell.errors import CommandFailed, UserError
from dsf.testing.command_line import assert_refused
from dsf.testing.random_networks import random_model
from dsf.testing.training_runs import HOPPER, TINY, UNSCORED, metrics, train_here, trained
from dsf.train import TrainConfig, train
from dsf.train.checkpoint import load_checkpoint
from dsf.train.data.dataset import load_dataset
from dsf.train.initial import initial_model, with_model_of_checkpoint
from dsf.train.models.qat import quantization_aware
from dsf.train.observer import TrainingObserver
from dsf.train.pruning import Pruner
from dsf.train.schedule import blend_factor, penalty_factor, pruning_factor

STEPS = 12
SETTINGS = ("--steps", str(STEPS), "--checkpoint-every", "5", *TINY, *UNSCORED)
MATRICES = ("attention.qkv", "attention.project", "mlp.expand", "mlp.contract")


@pytest.fixture(scope="module")
def float_run(filled_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A float model that was trained for a few steps."""
    run = tmp_path_factory.mktemp("float") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(filled_store))
        trained(HOPPER, "--out", str(run), *SETTINGS)
    yield run


class PowerCut(TrainingObserver):
    """Ends a run after its seventh step."""

    def stepped(self, step: int, steps: int, loss: float) -> None:
        if step == 7:
            raise CommandFailed("the power went off")


def shares(run: Path) -> list[float]:
    """Share of zeros of each matrix in the blocks of a run's model."""
    tensors = load_checkpoint(run).group("model")
    return [float((tensors[f"blocks.0.{name}.weight"] == 0).float().mean()) for name in MATRICES]


def test_a_penalty_starts_and_rises_where_it_is_told_to() -> None:
    def factors(*asked: Any, steps: int = 20) -> list[float]:
        start, ramp = asked
        config = TrainConfig("x", steps=steps, rate_penalty=0.1, rate_penalty_start=start, rate_penalty_ramp=ramp)
        return [round(penalty_factor(step, config), 6) for step in range(steps)]

    assert factors(0.0, None) == [1.0] * 20
    assert factors(0.5, 0.2) == [0.0] * 10 + [0.25, 0.5, 0.75] + [1.0] * 7
    assert factors(10.0, 0.2) == factors(0.5, 0.2)
    assert factors(0.5, None) == [0.0] * 10 + [0.5] + [1.0] * 9
    assert factors(19.0, None) == [0.0] * 19 + [1.0]
    assert factors(0.0, 1.0, steps=4) == [0.25, 0.5, 0.75, 1.0]


def test_zeros_grow_as_published() -> None:
    config = TrainConfig("x", steps=100, prune_weights=0.8, prune_start=0.2, prune_end=0.6)
    assert [pruning_factor(step, config) for step in (0, 20, 60, 100)] == [0.0, 0.0, 1.0, 1.0]
    assert pruning_factor(40, config) == pytest.approx(1.0 - 0.5**3)
    assert pruning_factor(30, config) == pytest.approx(1.0 - 0.75**3)


@pytest.mark.parametrize("scope", ["matrix", "network"])
def test_the_smallest_weights_become_zero_and_stay_so(scope: Any) -> None:
    model = random_model(3)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    pruner = Pruner(model, weights=0.7, channels=None, scope=scope)
    names = [f"blocks.{block}.{name}.weight" for block in range(2) for name in MATRICES]
    assert sorted(pruner.matrices) == sorted(names)
    for factor in (0.3, 1.0, 0.5):  # never fewer again
        pruner.prune(factor)
        wanted = 0.3 if factor == 0.3 else 1.0
        after = dict(model.named_parameters())
        zero = {name: after[name] == 0 for name in names}
        if scope == "matrix":
            assert all(int(zero[name].sum()) == round(0.7 * wanted * zero[name].numel()) for name in names)
        total = sum(mask.numel() for mask in zero.values())
        assert abs(sum(int(mask.sum()) for mask in zero.values()) - 0.7 * wanted * total) <= len(names)
        for group in [names] if scope == "network" else [[name] for name in names]:
            gone = torch.cat([before[name][zero[name]].abs() for name in group])
            kept = torch.cat([before[name][~zero[name]].abs() for name in group])
            assert gone.max() <= kept.min()
    assert all(torch.equal(after[name][~zero[name]], before[name][~zero[name]]) for name in names)
    assert all(torch.equal(after[name], before[name]) for name in after.keys() - set(names))
    assert pruner.as_metrics()["prune/weights"] == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize("norm", ["ptbn", "tdbn", "reptbn", "none", "tdln"])
def test_a_pruned_channel_never_fires_and_says_nothing(norm: Any) -> None:
    model = random_model(4, norm=norm)
    pruner = Pruner(model, weights=None, channels=0.5)
    strength = torch.linalg.vector_norm(model.blocks[0].mlp.contract.weight, dim=0)
    pruner.prune(1.0)
    weakest = set(torch.argsort(strength)[:12].tolist())
    fired: list[torch.Tensor] = []
    model.blocks[0].mlp.hidden_lif.register_forward_hook(lambda _module, _inputs, spikes: fired.append(spikes))
    with torch.no_grad():
        for mode in (model.eval(), model.train()):
            mode(torch.randint(-100, 100, (4, 8, 6)).float(), torch.ones(4, 8, dtype=torch.bool))
    for spikes in fired:
        silent = {channel for channel in range(24) if not spikes[..., channel].any()}
        assert weakest <= silent
    empty = (model.blocks[0].mlp.contract.weight == 0).all(dim=0)
    assert set(empty.nonzero().flatten().tolist()) == weakest
    assert pruner.as_metrics()["prune/channels"] == 0.5


@pytest.mark.parametrize("bits", [8, 4])
def test_zeros_are_zeros_of_the_integers(bits: int) -> None:
    model = quantization_aware(random_model(5, width=16), bits=bits, threshold_units=256)
    Pruner(model, weights=0.8, channels=0.25).prune(1.0)
    integers = model.integers()
    for block in range(2):
        for name in MATRICES:
            weights = integers[f"blocks.{block}.{name}"].weights  # type: ignore[union-attr]
            floats = model.get_parameter(f"blocks.{block}.{name}.weight").detach().numpy()
            assert (floats == 0).mean() == pytest.approx(0.8, abs=0.01)
            assert (weights[floats == 0] == 0).all() and weights.any()


def test_a_run_goes_down_to_fewer_ticks_in_floats(float_run: Path, tiny_store: Path, tmp_path: Path) -> None:
    config = parse_arguments(TrainConfig, "dsf-train", "", [HOPPER, "--init", str(float_run), "--model.ticks", "2"])
    settled = with_model_of_checkpoint(config)
    theirs = load_checkpoint(float_run).model_config()
    assert theirs.ticks == 4 and settled.model == dataclasses.replace(theirs, ticks=2)
    model, tensors = initial_model(settled, load_dataset(HOPPER)), load_checkpoint(float_run).group("model")
    assert model.ticks == 2
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())
    assert {blend_factor(step, settled) for step in range(STEPS)} == {0.0}

    told = (*TINY, "--steps", "8", "--checkpoint-every", "3", *UNSCORED, "--model.ticks", "1")
    out = tmp_path / "one"
    said = trained(HOPPER, "--out", str(out), "--init", str(float_run), *told)
    assert f"goes on from {float_run} in floats, at T = 1\n" in said
    checkpoint = load_checkpoint(out)
    assert checkpoint.model_config() == dataclasses.replace(theirs, ticks=1) and checkpoint.build_model().ticks == 1
    assert not torch.equal(checkpoint.group("model")["head.weight"], tensors["head.weight"])


@pytest.mark.usefixtures("same_threads")
@pytest.mark.parametrize(
    "options",
    [
        ("--model.ticks", "2", "--prune-weights", "0.6", "--prune-channels", "0.25", "--ema", "0.9"),
        ("--qat-steps", str(STEPS), "--bits", "4", "--prune-weights", "0.6", "--prune-scope", "network"),
        ("--rate-penalty", "0.5", "--rate-penalty-counts", "fetches", "--rate-penalty-start", "0.5"),
    ],
    ids=["pruned with averages", "pruned integers", "late penalty"],
)
def test_an_interrupted_run_continues_bit_for_bit(
    options: tuple[str, ...], float_run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    settings = (*SETTINGS, *options)
    trained(HOPPER, "--out", str(whole), "--init", str(float_run), *settings)
    words = [HOPPER, "--out", str(broken), "--init", str(float_run), *settings]
    with pytest.raises(CommandFailed, match="the power went off"):
        train(parse_arguments(TrainConfig, "dsf-train", "", words), PowerCut())
    assert load_checkpoint(broken).header["step"] == 5
    trained(HOPPER, "--out", str(broken), *settings, "--resume")  # without --init, which may be gone
    mine, theirs = load_checkpoint(broken).tensors, load_checkpoint(whole).tensors
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert metrics(broken) == metrics(whole)
    if "--prune-weights" in options:
        assert metrics(whole)[-1]["prune/weights"] == pytest.approx(0.6, abs=0.01)
        if "network" not in options:
            assert shares(whole) == pytest.approx([0.6] * 4, abs=0.01)
    if "--ema" in options:
        assert metrics(whole)[-1]["prune/channels"] == 0.25
    elif "--bits" not in options:
        ordinary = (*SETTINGS, *options)
        assert_refused(train_here(HOPPER, "--out", str(float_run), "--resume", *ordinary), "another rate_penalty")


def test_a_rival_of_linears_is_pruned_through_its_integers(tiny_store: Path, tmp_path: Path) -> None:
    policy = ("--policy", "twin", "--prune-weights", "0.5")
    trained(HOPPER, "--out", str(tmp_path / "float"), *SETTINGS, *policy)
    start = ("--init", str(tmp_path / "float"), "--qat-steps", "4", "--bits", "4")
    trained(HOPPER, "--out", str(tmp_path / "qat"), *start, *TINY, *UNSCORED, *policy)
    tensors = load_checkpoint(tmp_path / "qat").group("model")
    for name in ("attention.qkv", "attention.project", "expand", "contract"):
        zero = tensors[f"blocks.0.{name}.weight"] == 0
        assert int(zero.sum()) == round(0.5 * zero.numel())
    assert not (tensors["embed.weight"] == 0).any() and not (tensors["head.weight"] == 0).any()
    refused = train_here(HOPPER, "--out", str(tmp_path / "f"), *SETTINGS, "--policy", "fcnet", "--prune-weights", "0.5")
    assert_refused(refused, "--prune-weights requires a rival whose matrices are all Linears", "Fourier")


@pytest.mark.slow
def test_starts_that_are_refused(float_run: Path, tiny_store: Path, tmp_path: Path) -> None:
    def refused(*words: str, arguments: tuple[str, ...], init: Path = float_run) -> None:
        start = ("--out", str(tmp_path / "out"), "--init", str(init), *SETTINGS, *arguments)
        assert_refused(train_here(HOPPER, *start), *words)
        assert not (tmp_path / "out" / "checkpoint.safetensors").exists()

    refused("--model.ticks than 8: use 4 or fewer", "only goes down", arguments=("--model.ticks", "8"))
    refused("model.ticks is 0: it must be at least 1", arguments=("--model.ticks", "0"))
    ticks = ("--model.ticks", "2", "--qat-steps", "3")
    refused("than 2: use 4", "--qat-steps folds norms", "without --qat-steps", arguments=ticks)
    refused("another --model.width than 16: use 8", arguments=("--model.width", "16"))
    pruned = tmp_path / "pruned"
    trained(HOPPER, "--out", str(pruned), "--init", str(float_run), *SETTINGS, "--prune-weights", "0.5")
    again = "was pruned with --prune-weights 0.5, and this run would fill its zeros again"
    refused(again, arguments=("--qat-steps", "3"), init=pruned)
    refused(again, arguments=("--prune-weights", "0.4"), init=pruned)
    resumed = train_here(HOPPER, "--out", str(float_run), "--resume", "--init", str(pruned), *SETTINGS)
    assert_refused(resumed, "--resume", "another init")
    quantized = tmp_path / "quantized"
    trained(HOPPER, "--out", str(quantized), "--init", str(float_run), *SETTINGS, "--qat-steps", "2")
    refused("is quantized already", arguments=(), init=quantized)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rate_penalty": 0.1, "rate_penalty_start": 20_000.0}, "after the last of 20000 steps"),
        ({"rate_penalty": 0.1, "rate_penalty_start": 1.5}, "--rate-penalty-start is 1.5: it is a share .* or a step"),
        ({"rate_penalty": 0.1, "rate_penalty_start": -0.1}, "--rate-penalty-start is -0.1"),
        ({"rate_penalty": 0.1, "rate_penalty_start": float("nan")}, "--rate-penalty-start is nan"),
        ({"rate_penalty": 0.1, "rate_penalty_start": 0.9, "rate_penalty_ramp": 0.2}, "would end after the last step"),
        ({"rate_penalty": 0.1, "rate_penalty_ramp": 1.1}, "--rate-penalty-ramp is 1.1: it is a share"),
        ({"rate_penalty_start": 0.5}, "--rate-penalty-start requires a --rate-penalty above 0"),
        ({"rate_penalty_counts": "fetches"}, "--rate-penalty-counts requires a --rate-penalty above 0"),
        ({"rate_penalty_over": "layers"}, "--rate-penalty-over requires a --rate-penalty above 0"),
        ({"init": Path("x"), "qat_steps": 10, "rate_penalty": 1.0, "rate_penalty_start": 10.0}, "last of 10 steps"),
        ({"prune_weights": 0.0}, "--prune-weights is 0: it is a share, above 0 and below 1"),
        ({"prune_weights": 1.0}, "--prune-weights is 1: it is a share"),
        ({"prune_channels": -0.5}, "--prune-channels is -0.5"),
        ({"prune_channels": float("nan")}, "--prune-channels is nan"),
        ({"prune_weights": 0.5, "prune_start": 0.8}, "--prune-start is 0.8 and --prune-end 0.75"),
        ({"prune_weights": 0.5, "prune_end": 1.5}, "--prune-end is 1.5: it is a share of the steps"),
        ({"prune_start": 0.5}, "--prune-start requires --prune-weights or --prune-channels"),
        ({"prune_scope": "network"}, "--prune-scope requires --prune-weights or --prune-channels"),
        ({"policy": "twin", "prune_channels": 0.5}, "--prune-channels requires --policy dsformer, not twin"),
    ],
)
def test_settings_that_cannot_work(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as refusal:
        TrainConfig("x", **fields)
    assert "\n" not in str(refusal.value)

"""STRL: its neuron, who sees the future, gradients, and the command line's answers about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast, get_args

import numpy as np
import pytest
import torch

import dsf.export.cli
import dsf.runtime.cli
from dsf.shell.errors import UserError
from dsf.tasks import get_task
from dsf.testing.command_line import assert_refused
from dsf.testing.narrowed import gradient, present
from dsf.testing.random_networks import ACTIONS, random_codec
from dsf.testing.training_runs import CARTPOLE, TINY, UNSCORED, run_here, train_here, trained
from dsf.train.checkpoint import load_checkpoint, save_checkpoint
from dsf.train.config.rivals import RivalConfig, rival_from_json
from dsf.train.config.strl import StrlAttention, StrlConfig, StrlNeurons
from dsf.train.config.training import ModelConfig
from dsf.train.models.activity import record_activity
from dsf.train.models.attention import PackedTokens
from dsf.train.models.neurons import set_neuron_kind
from dsf.train.models.rivals.build import make_rival
from dsf.train.models.rivals.sigmoid_neuron import SigmoidLIF
from dsf.train.models.rivals.strl import Strl, StrlBlock

CONTEXT, FEATURES = 7, 11 + ACTIONS + 1
CONFIG = ModelConfig(width=24, blocks=2, context=CONTEXT, window=3)


def random_strl(attention: StrlAttention, seed: int = 0) -> Strl:
    """A small one in evaluation mode whose neurons fire."""
    torch.manual_seed(seed)
    rival = RivalConfig(heads=4, strl=StrlConfig(attention=attention, threshold=0.2))
    model = make_rival("strl", rival, CONFIG, random_codec(FEATURES, 8, np.random.default_rng(0)), get_task("hopper"))
    assert isinstance(model, Strl)
    return model.eval()


def windows(seed: int) -> torch.Tensor:
    return torch.randint(-127, 128, (3, CONTEXT, FEATURES), generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize(("tau", "threshold"), [(2.0, 1.0), (1.5, 0.4), (8.0, 0.1)])
def test_fused_neuron_is_snntorchs_leaky_forward_and_backward(tau: float, threshold: float) -> None:
    torch.manual_seed(1)
    neuron, drive, weights = SigmoidLIF(tau, threshold), 2 * torch.randn(6, 50, 8), torch.randn(6, 50, 8)
    found = []
    for kind in ("snntorch", "fused"):
        set_neuron_kind(neuron, kind)
        mine = drive.clone().requires_grad_()
        spikes = neuron(mine)
        (spikes * weights).sum().backward()
        found.append((spikes.detach(), gradient(mine)))
    assert 0.05 < found[0][0].mean() < 0.9 and torch.equal(found[0][0], found[1][0])
    assert torch.allclose(found[0][1], found[1][1], atol=1e-6)


@torch.no_grad()
def test_bidirectional_sees_the_next_token_and_causal_does_not() -> None:
    mask, whole = torch.ones(3, CONTEXT, dtype=torch.bool), windows(1)
    for attention in ("bidirectional", "causal"):
        model = random_strl(attention)
        before = model(whole, mask)
        for now in range(CONTEXT - 1):
            changed = whole.clone()
            changed[:, now + 1] = windows(2)[:, now + 1]
            leaked = not torch.allclose(model(changed, mask)[:, now], before[:, now], atol=1e-6)
            assert leaked == (attention == "bidirectional")


def hidden_spikes_by_hand(model: Strl, window: torch.Tensor) -> list[int]:
    """Spikes in each block's MLP, for one window (tokens, features) without padding: layer after layer."""
    rival, tokens = present(model.rival), len(window)
    ticks, counted = rival.strl.ticks, []
    place = torch.arange(tokens)
    stream = model.embed_token(window * model.input_unit) + model.embed_step(place) + model.embed_place[:tokens]
    stream, later = model.embed_norm(stream), torch.full((tokens, tokens), -torch.inf).triu(1)
    for block in model.blocks:
        spikes = block.attention.qkv_lif.hold(block.attention.qkv(block.attention_norm(stream)), ticks)
        heads = []
        for q, k, v in zip(*(part.chunk(rival.heads, dim=-1) for part in spikes.chunk(3, dim=-1))):
            seen = block.attention.score_lif(q @ k.mT) + (later if model.causal else 0.0)
            heads.append((seen.softmax(dim=-1) @ v).mean(dim=0))
        stream = stream + torch.cat(heads, dim=-1)
        hidden = block.mlp.hidden_lif.hold(block.mlp.expand(block.mlp_norm(stream)), ticks)
        counted.append(int(hidden.sum()))
        stream = stream + block.mlp.output_lif(block.mlp.contract(hidden)).mean(dim=0)
    return counted


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@torch.no_grad()
def test_events_are_the_hidden_spikes_of_tokens_that_exist(attention: StrlAttention) -> None:
    model, whole, lengths = random_strl(attention), windows(1), [CONTEXT, 3, 5]
    mask = torch.arange(CONTEXT)[None] >= CONTEXT - torch.tensor(lengths)[:, None]
    with record_activity(model) as activity:
        model(whole, mask)
    by_window = [hidden_spikes_by_hand(model, window[-length:]) for window, length in zip(whole, lengths)]
    width, hidden = present(model.rival).sizes
    expected = {
        f"blocks.{number}.mlp.contract": sum(counts) * width / sum(lengths)
        for number, counts in enumerate(zip(*by_window))
    }
    assert {name: float(events) for name, events in activity.events.items()} == pytest.approx(expected, rel=1e-6)
    assert all(events > 0 for events in expected.values()) and len(expected) == CONFIG.blocks
    assert activity.capacity == CONFIG.blocks * present(model.rival).strl.ticks * hidden * width
    assert activity.as_metrics()["events_per_token"] == pytest.approx(sum(expected.values()), rel=1e-6)
    assert activity.rates.keys() == {name for name, module in model.named_modules() if isinstance(module, SigmoidLIF)}


def test_gradients_reach_every_parameter() -> None:
    for attention in ("bidirectional", "causal"):
        model = random_strl(attention).train()
        model(windows(1), torch.ones(3, CONTEXT, dtype=torch.bool)).square().sum().backward()
        silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert silent == []


def test_published_size_is_buildable_and_counts() -> None:
    """6 blocks of width 256: 4 D^2 + ... as the source's layers add up (no projection, no bias on Q, K and V)."""
    config = ModelConfig(width=256, blocks=6, context=100)
    codec, task = random_codec(4 + 2 + 1, 8, np.random.default_rng(0)), get_task("cartpole")
    model = make_rival("strl", RivalConfig(width=256, mlp_hidden=1024, heads=8), config, codec, task)
    block = 3 * 256**2 + 2 * 256 * 1024 + 1024 + 256 + 4 * 256
    assert model.parameter_count() == 6 * block + 256 * (7 + 1 + 500 + 100 + 2) + 2 * 256 + 2
    assert model.rival is not None and model.rival.strl == StrlConfig()


@pytest.mark.slow
def test_discrete_run_is_refused_for_spikes_and_names_the_way(tiny_store: Path, tmp_path: Path) -> None:
    run, network = tmp_path / "run", tmp_path / "network.dsf.h5"
    settings = ("--steps", "100", *TINY, *UNSCORED, "--policy", "strl", "--rival.strl.attention", "causal")
    said = trained(CARTPOLE, "--out", str(run), *settings)
    reasons = ("softmax", "LayerNorm", "--policy dsformer")
    for word in (*reasons, "STRL (width 8, MLP", "causal"):
        assert word in said
    model = load_checkpoint(run).build_model()
    assert isinstance(model, Strl) and model.discrete and model.causal
    refused = run_here(dsf.export.cli.main, "dsf-export", str(run), "--target", "loihi", "-o", str(network))
    assert_refused(refused, *reasons)
    assert not network.exists()
    for arguments in ((str(run),), (str(run / "checkpoint.safetensors"),), ("--checkpoint", str(run))):
        assert_refused(run_here(dsf.runtime.cli.main, "dsf-sim-run", *arguments, "--backend", "reference"), *reasons)


def test_rivals_older_than_strl_are_read_and_resumed(tiny_store: Path, tmp_path: Path) -> None:
    settings = ("--steps", "4", *TINY, *UNSCORED, "--policy", "dt")
    trained(CARTPOLE, "--out", str(tmp_path), *settings)
    checkpoint = load_checkpoint(tmp_path)
    header = json.loads(json.dumps(checkpoint.header))
    del header["rival"]["strl"], header["train"]["rival"]["strl"]
    save_checkpoint(checkpoint.path, checkpoint.tensors, header)
    assert load_checkpoint(tmp_path).build_model().rival is not None
    trained(CARTPOLE, "--out", str(tmp_path), *settings, "--resume")


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (("strl", "--rival.strl.ticks", "0"), ("rival.strl.ticks is 0",)),
        (("strl", "--rival.strl.tau", "1"), ("rival.strl.tau is 1",)),
        (("strl", "--rival.strl.threshold", "nan"), ("rival.strl.threshold is nan",)),
        (("strl", "--rival.activation", "gelu"), ("--policy strl does not use rival.activation",)),
        (("dt", "--rival.strl.ticks", "2"), ("--policy dt does not use rival.strl",)),
        (("strl", "--rival.heads", "7"), ("rival.heads is 7",)),
    ],
)
def test_wrong_settings_are_refused(
    arguments: tuple[str, ...], fragments: tuple[str, ...], tiny_store: Path, tmp_path: Path
) -> None:
    refused = train_here(CARTPOLE, "--out", str(tmp_path / "run"), *TINY, *UNSCORED, "--policy", *arguments)
    assert_refused(refused, *fragments)


def test_settings_of_another_version_are_refused() -> None:
    for values in ({"strl": {"novelty": 1}}, {"strl": 3}):
        with pytest.raises(UserError, match="does not fit this version"):
            rival_from_json(values)
    assert rival_from_json({}) == RivalConfig()


def test_without_neurons_relu_stands_in_their_place_and_all_else_stays() -> None:
    codec, task = random_codec(FEATURES, 8, np.random.default_rng(0)), get_task("hopper")
    models = []
    for neurons in get_args(StrlNeurons):
        torch.manual_seed(0)
        strl = StrlConfig(attention="causal", neurons=neurons)
        models.append(make_rival("strl", RivalConfig(heads=4, width=24, mlp_hidden=48, strl=strl), CONFIG, codec, task))
    on, off = (model.eval() for model in models)
    weights = on.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in off.state_dict().items() if "leaky" not in name)
    assert not any(isinstance(module, SigmoidLIF) for module in off.modules())
    assert (on.ticks, off.ticks) == (4, 1)
    assert not any(off.counts_events(name) for name, _ in off.named_modules())
    # The first block's MLP, by its equation.
    mlp, stream = cast(StrlBlock, cast(Strl, off).blocks[0]).mlp, torch.randn(5, 24)
    expected = torch.relu(mlp.contract(torch.relu(mlp.expand(stream))))
    assert torch.allclose(mlp(stream), expected)
    # Its attention: scores are rectified and scaled, then go through softmax, as the neurons' spikes do.
    attention, rows = cast(StrlBlock, cast(Strl, off).blocks[0]).attention, torch.randn(CONTEXT, 24)
    tokens = PackedTokens(torch.ones(1, CONTEXT, dtype=torch.bool))
    query, key, value = (part.view(CONTEXT, 4, 6) for part in torch.relu(attention.qkv(rows)).chunk(3, dim=-1))
    mixed = torch.empty(CONTEXT, 4, 6)
    for head in range(4):
        scores = torch.relu(query[:, head] @ key[:, head].T / 6**0.5)
        mixed[:, head] = scores.softmax(dim=-1) @ value[:, head]
    unseen = torch.zeros(1, 1, CONTEXT, CONTEXT)
    assert torch.allclose(attention(rows, unseen, tokens), mixed.flatten(1), atol=1e-6)


def test_without_neurons_their_settings_are_refused() -> None:
    with pytest.raises(UserError, match=r"rival\.strl\.neurons off does not use rival\.strl\.tau: drop it"):
        StrlConfig(neurons="off", tau=3.0)
    with pytest.raises(UserError, match=r"rival\.strl\.neurons is 'none': use on or off"):
        StrlConfig(neurons="none")  # type: ignore[arg-type]

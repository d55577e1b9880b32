"""Firing rates and synaptic events against counting them by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dsf.testing.random_networks import random_model
from dsf.train.models.activity import SATURATED_RATE, SILENT_RATE, FiringStatistics, record_activity
from dsf.train.models.attention import PackedTokens
from dsf.train.models.dsformer import DSFormer
from dsf.train.models.norm import set_blend

TICKS = 4


def inputs(model: DSFormer) -> tuple[Tensor, Tensor]:
    """Random windows, some of them padded."""
    tokens = torch.randint(-127, 128, (3, 8, 6), generator=torch.Generator().manual_seed(0)).float()
    return tokens, torch.arange(8)[None] >= 8 - torch.tensor([8, 3, 5])[:, None]


def spikes_by_hand(model: DSFormer) -> dict[str, Tensor]:
    """Every population's spikes (ticks, tokens, neurons), by calling the parts of the network one after the other."""
    integers, mask = inputs(model)
    tokens, found = PackedTokens(mask), {}
    residual = model.embed_norm(model.embed(tokens.pack(integers) * model.input_unit)).expand(TICKS, -1, -1)
    for number, block in enumerate(model.blocks):
        attention, mlp, name = block.attention, block.mlp, f"blocks.{number}."
        found[name + "attention.input_lif"] = spikes = attention.input_lif(residual)
        found[name + "attention.qkv_lif"] = spikes = attention.qkv_lif(attention.qkv_norm(attention.qkv(spikes)))
        query, key, value = spikes.split(model.config.width, dim=-1)
        summed = tokens.repack(attention.windowed_sum(tokens.unpack(key * value)))
        found[name + "attention.attention_lif"] = spikes = attention.attention_lif(query * summed)
        residual = residual + attention.project_norm(attention.project(spikes))
        found[name + "mlp.input_lif"] = spikes = mlp.input_lif(residual)
        found[name + "mlp.hidden_lif"] = spikes = mlp.hidden_lif(mlp.expand_norm(mlp.expand(spikes)))
        residual = residual + mlp.contract_norm(mlp.contract(spikes))
    return found


def test_rates_and_events_equal_counting_by_hand(model: DSFormer) -> None:
    with torch.no_grad(), record_activity(model) as activity:
        model(*inputs(model))
    spikes, tokens, width = spikes_by_hand(model), 16, model.config.width
    assert activity.rates.keys() == spikes.keys()
    for name, population in spikes.items():
        assert 0 < int(population.sum()) < population.numel()
        assert float(activity.rates[name]) == pytest.approx(int(population.sum()) / population.numel(), rel=1e-5)
    reads = {"attention.qkv": "attention.input_lif", "attention.project": "attention.attention_lif"}
    reads |= {"mlp.expand": "mlp.input_lif", "mlp.contract": "mlp.hidden_lif"}
    fan_out = {"attention.qkv": 3 * width, "attention.project": width, "mlp.expand": 2 * width, "mlp.contract": width}
    events, most = 0.0, 0
    for block in ("blocks.0.", "blocks.1."):
        for linear, source in reads.items():
            population = spikes[block + source]
            counted = int(population.sum()) * fan_out[linear] / tokens
            assert float(activity.events[block + linear]) == pytest.approx(counted, rel=1e-5)
            events, most = events + counted, most + TICKS * population.shape[-1] * fan_out[linear]
    assert len(activity.events) == 8
    assert float(activity.events_per_token) == pytest.approx(events, rel=1e-5)
    assert activity.capacity == most
    assert float(activity.events_share) == pytest.approx(events / most, rel=1e-5)
    metrics = activity.as_metrics()
    assert metrics["events_per_token"] == pytest.approx(events, rel=1e-5)
    assert metrics["rate/blocks.1.mlp.hidden_lif"] == float(activity.rates["blocks.1.mlp.hidden_lif"])


def test_recording_ends_with_its_context_also_after_an_error(model: DSFormer) -> None:
    with pytest.raises(RuntimeError), record_activity(model):
        model(torch.zeros(1, 8, 99), torch.ones(1, 8, dtype=torch.bool))
    with torch.no_grad(), record_activity(model) as activity:
        model(*inputs(model))
    recorded = float(activity.events_per_token)
    model(torch.full((1, 8, 6), 127.0), torch.ones(1, 8, dtype=torch.bool))
    assert float(activity.events_per_token) == recorded


def test_paying_for_events_lowers_them() -> None:
    """The gradient of the share flows into norms and weights: a few steps along it silence spikes."""
    model = random_model(seed=0).train()
    set_blend(model, 0.0)
    optimizer, shares, reached = torch.optim.SGD(model.parameters(), lr=1.0), [], set()
    for _ in range(20):
        with record_activity(model) as activity:
            model(*inputs(model))
        shares.append(float(activity.events_share.detach()))
        optimizer.zero_grad()
        activity.events_share.backward()
        reached |= {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
        optimizer.step()
    assert {"embed.weight", "blocks.0.attention.qkv.weight", "blocks.1.mlp.expand_norm.batch.bias"} <= reached
    assert shares[-1] < 0.8 * shares[0]


def test_recording_changes_no_action(model: DSFormer) -> None:
    expected = model(*inputs(model))
    with record_activity(model):
        assert torch.equal(model(*inputs(model)), expected)


@pytest.mark.parametrize(("bias", "word"), [(-100.0, "silent"), (100.0, "saturated")])
def test_populations_that_hardly_compute_are_named(model: DSFormer, bias: float, word: str) -> None:
    norm = model.blocks[1].mlp.expand_norm.batch
    nn.init.constant_(norm.bias, bias)
    with torch.no_grad(), record_activity(model) as activity:
        model(*inputs(model))
    named = [line for line in activity.unusual() if line.startswith("blocks.1.mlp.hidden_lif ")]
    assert named == [f"blocks.1.mlp.hidden_lif is {word} ({0 if bias < 0 else 100:.2f}%)"]


def test_rates_on_the_limits_are_not_unusual() -> None:
    rates = {"low": SILENT_RATE, "high": SATURATED_RATE, "lower": SILENT_RATE / 2, "higher": 1.0}
    activity = FiringStatistics(rates={name: torch.tensor(rate, dtype=torch.float64) for name, rate in rates.items()})
    assert activity.unusual() == ["lower is silent (0.25%)", "higher is saturated (100.00%)"]

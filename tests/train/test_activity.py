"""Firing rates and synaptic events against counting them by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dsf.hardware_models.preset import load_preset
from dsf.testing.random_networks import random_model
from dsf.train.config.levers import PenaltyCounts, PenaltyOver
from dsf.train.models.activity import (
    FETCH_PJ_PER_BYTE,
    SATURATED_RATE,
    SILENT_RATE,
    UPDATE_PJ,
    FiringStatistics,
    fired_in_token,
    record_activity,
)
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


READS = {"attention.qkv": "attention.input_lif", "attention.project": "attention.attention_lif"}
READS |= {"mlp.expand": "mlp.input_lif", "mlp.contract": "mlp.hidden_lif"}


def attention_currents(model: DSFormer, block: int, spikes: dict[str, Tensor]) -> Tensor:
    """What block's attention neurons are driven by, (ticks, tokens, width)."""
    tokens, attention = PackedTokens(inputs(model)[1]), model.blocks[block].attention
    query, key, value = spikes[f"blocks.{block}.attention.qkv_lif"].split(model.config.width, dim=-1)
    return query * tokens.repack(attention.windowed_sum(tokens.unpack(key * value)))


def test_fetches_and_updates_equal_a_loop_over_recorded_spikes(model: DSFormer) -> None:
    """A row of weights is fetched once per token, without its zeros; neurons of attention may have nothing to do."""
    model.blocks[0].mlp.contract.weight.data[::3] = 0.0
    with torch.no_grad(), record_activity(model) as activity:
        model(*inputs(model))
    spikes = spikes_by_hand(model)
    tokens, fetched, held, updates, slots = 16, 0, 0, 0, 0
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or not name.startswith("blocks."):
            continue
        block, linear = name[: len("blocks.0.")], name[len("blocks.0.") :]
        population, counted = spikes[block + READS[linear]], 0
        for token in range(tokens):
            for neuron in range(module.in_features):
                if any(population[tick, token, neuron] for tick in range(TICKS)):
                    counted += sum(1 for weight in module.weight[:, neuron].tolist() if weight != 0.0)
        assert float(activity.fetches[name]) == pytest.approx(counted / tokens, rel=1e-5)
        fetched, held = fetched + counted, held + int((module.weight != 0).sum())
    for name, population in spikes.items():
        used = [any(population[:, token, neuron]) for token in range(tokens) for neuron in range(population.shape[2])]
        assert float(activity.used[name]) == pytest.approx(sum(used) / len(used), rel=1e-5)
        counted = population.numel()
        if name.endswith("attention_lif"):
            currents, counted = attention_currents(model, int(name.split(".")[1]), spikes), 0
            for token in range(tokens):
                for neuron in range(population.shape[2]):
                    membrane = False
                    for tick in range(TICKS):
                        busy = membrane or bool(currents[tick, token, neuron] != 0)
                        counted, membrane = counted + busy, busy and not population[tick, token, neuron]
            assert 0 < counted < population.numel()
        assert float(activity.updates[name]) == pytest.approx(counted / tokens, rel=1e-5)
        updates, slots = updates + counted, slots + population.numel()
    assert float(activity.fetches_per_token) == pytest.approx(fetched / tokens, rel=1e-5)
    assert activity.as_metrics()["fetches_per_token"] == pytest.approx(fetched / tokens, rel=1e-5)
    for bits in (8, 4):
        price = 3.5 * bits / 8
        share = (price * fetched + 7.7 * updates) / (price * held * tokens + 7.7 * slots)
        assert float(activity.penalised("fetches", "network", bits)) == pytest.approx(share, rel=1e-5)
    for counts, shares in (("events", activity.rates), ("fetches", activity.used)):
        mean = sum(float(share) for share in shares.values()) / len(spikes)
        assert float(activity.penalised(counts, "layers", 8)) == pytest.approx(mean, rel=1e-5)  # type: ignore[arg-type]


def test_the_penalty_pays_the_prices_of_its_preset() -> None:
    prices = load_preset("int8_45nm").energy_pj
    assert (prices["weight_bytes"].nominal, prices["active_updates"].nominal) == (FETCH_PJ_PER_BYTE, UPDATE_PJ)
    assert prices["inactive_updates"].low == 0.0


def test_every_spike_of_a_token_shares_the_price_of_its_row() -> None:
    spikes = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])[:, None].requires_grad_()
    fired = fired_in_token(spikes)
    assert fired.tolist() == [[1.0, 1.0, 0.0]]
    fired.sum().backward()
    assert spikes.grad is not None and spikes.grad[:, 0].tolist() == [[0.5, 0.0, 0.5], [0.5, 1.0, 0.5]]


@pytest.mark.parametrize("counts", ["events", "fetches"])
def test_the_form_over_layers_presses_queries_keys_and_values(counts: PenaltyCounts) -> None:
    """They have no matrix behind them: what the whole network pays hardly asks them for anything."""
    model = random_model(seed=0).train()
    set_blend(model, 0.0)

    def pressure(over: PenaltyOver, norm: str) -> float:
        """How fast the penalty falls as the offsets of a norm do."""
        offset = model.get_submodule(norm).batch.bias
        with record_activity(model) as activity:
            model(*inputs(model))
        (gradient,) = torch.autograd.grad(activity.penalised(counts, over, 8), offset)
        return float(gradient.sum())

    qkv, hidden = "blocks.1.attention.qkv_norm", "blocks.1.mlp.expand_norm"
    assert pressure("layers", qkv) > pressure("layers", hidden) > 0.0
    assert 0.0 < pressure("network", qkv) < 0.5 * pressure("network", hidden)


def test_recording_ends_with_its_context_also_after_an_error(model: DSFormer) -> None:
    with pytest.raises(RuntimeError), record_activity(model):
        model(torch.zeros(1, 8, 99), torch.ones(1, 8, dtype=torch.bool))
    with torch.no_grad(), record_activity(model) as activity:
        model(*inputs(model))
    recorded = float(activity.events_per_token)
    model(torch.full((1, 8, 6), 127.0), torch.ones(1, 8, dtype=torch.bool))
    assert float(activity.events_per_token) == recorded


@pytest.mark.slow
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

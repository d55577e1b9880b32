"""Latency: nanoseconds by hand, ticks that add up to the counts of a run, and one more spike that never costs less."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsf.export.network.network import Network
from dsf.export.network.nodes import LIF, Residual
from dsf.export.network.reference import WindowReference
from dsf.export.placement.chips import LOIHI_1, LOIHI_2, Figure
from dsf.hardware_models import (
    Latency,
    Preset,
    SpikeCounter,
    estimate_latency,
    load_preset,
    map_in_order,
)
from dsf.hardware_models.energy import Band
from dsf.hardware_models.latency import barrier
from dsf.hardware_models.preset import parse_preset
from dsf.hardware_models.schedule import Spikes, count_ticks
from dsf.hardware_models.work import Schedule, stages
from dsf.runtime.engines.adapters import ReferenceLoopEngine
from dsf.shell.errors import UserError
from dsf.testing.chain_network import CHIP, TICKS, chain_network
from dsf.testing.random_networks import exportable, random_network, random_tokens

NS = 1e-9
SPIKES = {"A": np.array([[1, 0, 1], [0, 1, 0]], np.uint8)}
"""One decision of the network in tests/testing/chain_network.py."""


def price(nominal: float, grade: str = "P") -> dict[str, Any]:
    """A band of a tenth below and twice above."""
    return {"low": nominal / 10, "nominal": nominal, "high": 2 * nominal, "grade": grade, "source": "a test's own"}


def preset(**fields: Any) -> Preset:
    """10 ns per event, 1 per active update, half of that per inactive one, 2 per message; 1,000 ns per barrier."""
    times = {"synaptic_events": price(10), "active_updates": price(1), "inactive_updates": price(0.5)}
    values: dict[str, Any] = {
        "title": "t",
        "notes": "n",
        "chip": "loihi2",
        "energy_pj": {"macs": price(1)},
        "time_ns": {**times, "messages": price(2)},
        "barrier_ns": {1: price(1000)},
    }
    return parse_preset("hand", {**values, **fields})


def chain_latency(schedule: Schedule, spikes: Spikes = SPIKES, **fields: Any) -> Latency:
    return estimate_latency(map_in_order(chain_network(), CHIP), preset(**fields), [spikes], schedule)


def test_lockstep_by_hand() -> None:
    """Core 5 holds two neurons of r1: in tick 0 each meets two spikes, in tick 1 one."""
    found = chain_latency("lockstep")
    assert found.ticks == TICKS
    assert found.mean.nominal == pytest.approx(((2 * 2 * 10 + 2) + (2 * 10 + 2) + 2 * 1000) * NS)
    assert found.mean.low == pytest.approx(found.mean.nominal / 10)
    assert found.mean.high == pytest.approx(found.mean.nominal * 2)
    assert (found.busiest_core, found.busiest_populations) == (5, ("r1",))
    assert found.busiest_share == pytest.approx(64 / 2064)
    assert found.terms == pytest.approx({"synaptic_events": 60 * NS, "active_updates": 4 * NS, "barrier": 2000 * NS})
    assert found.binding[0] == "barrier" and found.binding[1] == pytest.approx(2000 / 2064)
    assert found.idle_updates == 0
    points = found.floorline
    assert points.synaptic_events.tolist() == [4, 2] and points.messages.tolist() == [2, 2]
    assert points.seconds == pytest.approx([1042 * NS, 1022 * NS])
    assert (points.event_s, points.message_s, points.floor_s) == pytest.approx((10 * NS, 2 * NS, 1000 * NS))


def test_pipelined_by_hand() -> None:
    """r0 works in ticks 1 and 2, A in 2 and 3, r1 in 3 and 4; whoever waits is updated at half the price.

    The busiest cores: 1 (two neurons of r0), 3 (A[2] fires, two messages), 5 (two neurons, two spikes), 5 (one spike).
    """
    found = chain_latency("pipelined")
    assert found.ticks == TICKS + 3 - 1
    assert found.floorline.seconds == pytest.approx([(1000 + work) * NS for work in (2, 2 + 4, 2 + 40, 2 + 20)])
    assert found.terms == pytest.approx(
        {"active_updates": 8 * NS, "messages": 4 * NS, "synaptic_events": 60 * NS, "barrier": 4000 * NS}
    )
    assert sum(found.terms.values()) == pytest.approx(found.mean.nominal)
    assert found.idle_updates == 9 * (4 - TICKS)
    values = json.loads(json.dumps(found.to_json()))
    assert values["mean"]["nominal"] == found.mean.nominal and len(values["floorline"]["seconds"]) == found.ticks


def test_a_link_can_be_slower_than_every_core() -> None:
    """In each tick three messages go from tile (1, 0) to (2, 0), 100 ns each."""
    times = {"synaptic_events": price(10), "hops_east_west": price(100), "hops_north_south": price(1)}
    found = chain_latency("lockstep", time_ns=times)
    assert found.mean.nominal == pytest.approx((2 * 300 + 2 * 1000) * NS)
    assert found.terms == pytest.approx({"link": 600 * NS, "barrier": 2000 * NS})
    assert found.busiest_link == "chip 0, tile (1, 0) to (2, 0)"
    assert any("no bandwidth is published" in line for line in found.assumptions)


def test_what_has_no_time_is_listed() -> None:
    """Counted per decision: embed's MACs and r0's values on cores, the host's work, and what leaves the chip."""
    chip = dataclasses.replace(CHIP, cores=Figure(4, "inferred", "own"))
    mapping = map_in_order(chain_network(), chip)
    products = {"macs": 3 * 2, "repeated_macs": 3 * 2 * (TICKS - 1)}
    untimed = {**products, "spikes": 3, "graded_messages": 3 * 2 * TICKS + 3, "weight_bytes": 21}
    host = {"graded_messages": 2 * 2 * TICKS, "host_transfers": 2 + 2, "macs": 6, "weight_bytes": 6}
    expected = {**untimed, **{f"{name} of the host": count for name, count in host.items()}}
    hops = {"hops_east_west": (2 + 2) * TICKS, "hops_north_south": 2 * TICKS}
    found = estimate_latency(mapping, preset(), [SPIKES])
    assert found.untimed == {**expected, **hops, "messages to other chips": 3 * TICKS + 2 * 3}
    included = preset(included={"weight_bytes": "elsewhere", "spikes": "elsewhere"})
    assert set(found.untimed) - set(estimate_latency(mapping, included, [SPIKES]).untimed) == {"weight_bytes", "spikes"}


def test_barriers_lie_between_the_known_ones() -> None:
    levels = preset(barrier_ns={1: price(100), 5: price(500)})
    expected = {1: 100, 3: 300, 5: 500, 32: 500}
    assert {tiles: barrier(levels, tiles).nominal for tiles in expected} == pytest.approx(
        {tiles: nanoseconds * NS for tiles, nanoseconds in expected.items()}
    )
    assert barrier(preset(barrier_ns={}), 3) == Band()
    assert chain_latency("lockstep", barrier_ns={1: price(100), 7: price(700)}).terms["barrier"] == pytest.approx(
        1200 * NS
    )


def test_the_grade_is_that_of_the_worst_time() -> None:
    assert chain_latency("lockstep").grade == "P"
    assert chain_latency("lockstep", barrier_ns={1: price(1000, "D")}).grade == "D"


def test_static_energy_and_products() -> None:
    found = chain_latency("lockstep", static_w=price(3))
    static, waiting = found.static_energy(), found.static_energy(0.01)
    assert static is not None and waiting is not None
    assert static.nominal == pytest.approx(3 * 2064 * NS) and static.high == pytest.approx(6 * 2 * 2064 * NS)
    assert waiting.nominal == pytest.approx(0.03) and waiting.low == pytest.approx(0.003)
    assert found.energy_delay(Band(1, 2, 3)).nominal == pytest.approx(2 * 2064 * NS)
    assert chain_latency("lockstep").static_energy() is None
    two_chips = map_in_order(chain_network(), dataclasses.replace(CHIP, cores=Figure(4, "inferred", "own")))
    per_chip = estimate_latency(two_chips, preset(static_w=price(3)), [SPIKES]).static_w
    assert per_chip is not None and per_chip.nominal == 6


def test_verdicts() -> None:
    """A decision takes 2,064 ns at nominal times and twice that at high ones."""
    found = chain_latency("lockstep")
    assert found.verdict(8e-3).startswith("real time: 99 % of the decisions take up to 0.03%")
    assert found.verdict(3000 * NS).startswith("real time at nominal times only:")
    assert found.verdict(2000 * NS).startswith("not in real time:") and found.verdict(2000 * NS).endswith("103.20%")


def test_means_and_percentiles_are_over_decisions() -> None:
    silent = {"A": np.zeros((TICKS, 3), np.uint8)}
    mapping = map_in_order(chain_network(), CHIP)
    found = estimate_latency(mapping, preset(), [SPIKES, silent, silent, silent], "lockstep")
    assert found.largest.nominal == pytest.approx(2064 * NS)
    assert found.mean.nominal == pytest.approx((2064 + 3 * 2004) / 4 * NS)
    assert found.percentile.nominal == pytest.approx(np.percentile([2064, 2004, 2004, 2004], 99) * NS)


def test_what_cannot_be_timed_is_refused() -> None:
    mapping = map_in_order(chain_network(), CHIP)
    with pytest.raises(UserError, match="hardware preset 'paper_45nm' has no times: choose one"):
        estimate_latency(mapping, load_preset("paper_45nm"), [SPIKES])
    with pytest.raises(UserError, match="no decision was recorded"):
        estimate_latency(mapping, preset(), [])


def recorded(network: Network, window: bool, count: int = 3) -> tuple[list[Spikes], SpikeCounter]:
    """Decisions of the reference, with all tokens of a window, and their sums."""
    counter = SpikeCounter(network)
    decisions: list[Spikes] = []
    stream, replayed = ReferenceLoopEngine(network), WindowReference(network)
    for token in random_tokens(network, count, 1, seed=0):
        spikes: dict[str, np.ndarray] = {}
        if window:
            replayed.step_graded(token, lambda name, values: spikes.__setitem__(name, values), whole=True)  # noqa: B023
            spikes = {name: spikes[name][:, :, 0] for name in counter.fired}
        else:
            spikes = {name: values.copy() for name, values in stream.step_graded(token)[1].items()}
        counter.add(spikes, tokens=1 if not window else next(iter(spikes.values())).shape[1])
        decisions.append(spikes)
    return decisions, counter


@settings(max_examples=20, deadline=None)
@given(exportable(), st.booleans(), st.booleans(), st.sampled_from(["lockstep", "pipelined"]))
def test_ticks_add_up_to_the_run(sizes: dict[str, Any], window: bool, share_cores: bool, schedule: Schedule) -> None:
    """Both schedules do the same work as the run, core by core, but for the updates of neurons that wait."""
    network = random_network(**sizes)
    decisions, counter = recorded(network, window)
    small = dataclasses.replace(LOIHI_2, neurons_per_core=Figure(8, "inferred", "own"))
    mapping = map_in_order(network, small, share_cores)
    waits = stages(network)[network.readout.source] - 1 if schedule == "pipelined" else 0
    sums: dict[str, np.ndarray] = {name: 0 * counts for name, counts in mapping.core_activity(counter).items()}
    for spikes in decisions:
        counts = count_ticks(mapping, [spikes], schedule)
        rows = network.ticks * (next(iter(spikes.values())).shape[1] if window else 1)
        assert counts.links.shape[1] == rows + waits
        for name, values in counts.cores.items():
            sums[name][:-1] += values.sum(axis=(0, 1))
        for name, count in counts.host.items():
            sums[name][-1] += count
    updated = [node for node in network.nodes if isinstance(node, (LIF, Residual))]
    for name, expected in mapping.core_activity(counter).items():
        idle = sum(node.size for node in updated) * waits * len(decisions) if name == "inactive_updates" else 0
        assert (sums[name] == expected).all() or (idle > 0 and sums[name].sum() == expected.sum() + idle), name


@pytest.mark.parametrize("name", ["loihi1_davies2018", "loihi1_fitted", "loihi2_derived"])
@pytest.mark.parametrize("schedule", ["lockstep", "pipelined"])
def test_one_more_spike_never_costs_less(name: str, schedule: Schedule) -> None:
    network, prices = random_network(0, blocks=1), load_preset(name)
    mapping = map_in_order(network, LOIHI_1 if prices.chip == "loihi1" else LOIHI_2)
    (decision,), _ = recorded(network, window=False, count=1)
    before = estimate_latency(mapping, prices, [decision], schedule)
    assert before.mean.low <= before.mean.nominal <= before.mean.high
    assert sum(before.terms.values()) == pytest.approx(before.mean.nominal)
    for values in decision.values():
        values[0, 0] = 1
        after = estimate_latency(mapping, prices, [decision], schedule)
        for level in ("low", "nominal", "high"):
            assert getattr(after.mean, level) >= getattr(before.mean, level)
        before = after

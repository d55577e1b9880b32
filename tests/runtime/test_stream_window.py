"""Stream mode and window mode: one policy where the receptive field fits into the context, two where it does not."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsf.export.network.network import Network
from dsf.export.network.reference import ReferenceEngine, WindowReference
from dsf.runtime.engines.fast_engine import FastEngine
from dsf.testing.random_networks import EXPORTABLE_NORMS, KINDS, random_network, random_tokens
from dsf.train.config.training import AttentionKind

LANES, RESTARTED = 2, 1


@st.composite
def whose_field_fits(draw: Any) -> dict[str, Any]:
    """Sizes with 1 + L (reach - 1) <= K; what looks back on the whole context has one block."""
    attention = draw(st.sampled_from(get_args(AttentionKind)))
    bounded = attention in ("pssa", "none")
    blocks, window = draw(st.integers(1, 3 if bounded else 1)), draw(st.integers(1, 4))
    heads = draw(st.integers(1, 2))
    return {
        "seed": draw(st.integers(0, 2**31)),
        "attention": attention,
        "norm": draw(st.sampled_from(EXPORTABLE_NORMS)),
        "discrete": draw(st.booleans()),
        "heads": heads,
        "width": heads * draw(st.integers(1, 6)),
        "blocks": blocks,
        "window": window,
        "ticks": draw(st.integers(1, 4)),
        "context": 1 + blocks * (window - 1) + draw(st.integers(0, 3)),
    }


def answers(network: Network, decisions: int, restart: int) -> dict[str, np.ndarray]:
    """Accumulators (decisions, lanes, actions) of all engines in both modes; one lane starts anew at ``restart``."""
    engines: dict[str, Any] = {
        "reference, stream": ReferenceEngine(network, LANES),
        "reference, window": WindowReference(network, LANES),
        "fast, stream": FastEngine(network, LANES, "stream"),
        "fast, window": FastEngine(network, LANES, "window"),
    }
    found: dict[str, list[np.ndarray]] = {name: [] for name in engines}
    for step, token in enumerate(random_tokens(network, decisions, LANES, seed=decisions)):
        for name, engine in engines.items():
            if step == restart:
                engine.reset(RESTARTED)
            found[name].append(engine.step_graded(token).copy())
    return {name: np.stack(values) for name, values in found.items()}


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(sizes=whose_field_fits(), data=st.data())
def test_both_modes_agree_from_the_first_token_on(sizes: dict[str, Any], data: st.DataObject) -> None:
    network = random_network(**sizes)
    assert network.stream_is_exact and network.receptive_field <= network.context
    decisions = 2 * network.context + 3
    found = answers(network, decisions, restart=data.draw(st.integers(1, decisions - 1)))
    truth = found.pop("reference, window")
    for name, values in found.items():
        assert np.array_equal(values, truth), name


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
def test_a_longer_field_makes_two_policies(kind: str) -> None:
    """They part once a window loses tokens that the stream still remembers; dsf-sim-run says so (test_closed_loop).

    A full bias parts them at once: a stream has no places, so every token stands at the last one.
    """
    network = random_network(3, width=16, heads=2, blocks=3, context=5, window=4, **KINDS[kind])
    assert not network.stream_is_exact
    found = answers(network, decisions=30, restart=30)
    for mode in ("stream", "window"):
        assert np.array_equal(found[f"fast, {mode}"], found[f"reference, {mode}"])
    differs = (found["fast, stream"] != found["fast, window"]).any(axis=(1, 2))
    assert differs[network.context :].any()
    assert kind.endswith("full bias") or not differs[: network.context].any()

"""Stream mode of float policies: the windowed policy's answers, at one token per decision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dsf.shell.errors import UserError
from dsf.tasks import Token
from dsf.testing.random_networks import ACTIONS, random_model
from dsf.testing.rival_models import small_model
from dsf.train.evaluation.stream_policy import StreamPolicy, float_policy
from dsf.train.evaluation.torch_policy import TorchPolicy
from dsf.train.models.qat import deployed, quantization_aware

LANES, STEPS = 3, 30


def tokens(steps: int, features: int) -> list[Token]:
    generator = np.random.default_rng(5)
    observations = features - ACTIONS - 1
    return [
        Token(
            generator.normal(size=(LANES, observations)),
            generator.normal(size=(LANES, ACTIONS)),
            generator.normal(size=LANES),
        )
        for _ in range(steps)
    ]


@pytest.mark.parametrize(
    "variant",
    [
        {"attention": "pssa", "blocks": 3, "window": 3, "context": 7},
        {"attention": "pssa", "blocks": 1, "window": 7, "context": 20},
        {"attention": "none", "context": 4, "window": 2},
    ],
    ids=lambda variant: "-".join(map(str, variant.values())),
)
def test_a_stream_answers_as_the_replayed_window_does(variant: dict[str, Any]) -> None:
    """Lanes start episodes of their own at different steps; nothing of an earlier one is left."""
    model = random_model(seed=1, **variant)
    streamed, windowed = float_policy(model, LANES), TorchPolicy(model, LANES)
    assert isinstance(streamed, StreamPolicy)
    answers = []
    for step, token in enumerate(tokens(STEPS, len(model.codec.unit))):
        for lane in range(LANES):
            if step % (8 + lane) == 0:
                streamed.reset(lane)
                windowed.reset(lane)
        answers.append(windowed.act(token))
        assert np.allclose(streamed.act(token), answers[-1], atol=1e-5)
    assert np.std(answers, axis=0).min() > 1e-3


def test_what_a_stream_would_not_compute_is_replayed() -> None:
    for variant in (
        {"attention": "pssa", "positional_bias": "full"},
        {"attention": "tssa"},
        {"attention": "sdsa1"},
        {"attention": "pssa", "blocks": 3, "window": 4, "context": 9},  # sees 10 tokens
    ):
        model = random_model(seed=0, **variant)
        assert isinstance(float_policy(model, 1), TorchPolicy)
    assert isinstance(
        float_policy(random_model(seed=0, attention="pssa", blocks=3, window=4, context=10), 1), StreamPolicy
    )
    assert isinstance(float_policy(small_model("twin"), 1), TorchPolicy)


def test_integers_values_stream_too() -> None:
    trained = quantization_aware(random_model(seed=2, attention="pssa", window=3, context=8), 8, 256)
    model = deployed(trained)
    streamed, windowed = StreamPolicy(model, LANES), TorchPolicy(model, LANES)
    for token in tokens(12, len(model.codec.unit)):
        assert np.allclose(streamed.act(token), windowed.act(token), atol=1e-5)


def test_no_number_is_no_token() -> None:
    policy = StreamPolicy(random_model(seed=0, attention="pssa"), LANES)
    token = tokens(1, len(policy.model.codec.unit))[0]
    token.observation[0, 0] = np.nan
    with pytest.raises(UserError, match="is not finite"):
        policy.act(token)

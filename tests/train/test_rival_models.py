"""What every rival must have: causality, indifference to padding, DSFormer's number of parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_networks import ACTIONS, random_codec
from torch import Tensor

from dsf.tasks import Token, get_task
from dsf.tasks.task import TASKS
from dsf.train.config import ModelConfig
from dsf.train.decision_model import DecisionModel
from dsf.train.policy import TorchPolicy
from dsf.train.rival_config import RIVAL_NAMES, PolicyKind, RivalConfig
from dsf.train.rivals import dsformer_parameters, make_rival
from dsf.train.strl_config import StrlConfig

KINDS: tuple[PolicyKind, ...] = ("dt", "bc", "strl")
CAUSAL = StrlConfig(attention="causal")
CONTEXT, OBSERVATIONS = 8, 11
FEATURES = OBSERVATIONS + ACTIONS + 1
SMALL = ModelConfig(width=32, blocks=2, context=CONTEXT, window=3, ticks=3)


def small_model(kind: PolicyKind, seed: int = 0, **settings: int) -> DecisionModel:
    """A random rival for hopper, in evaluation mode and a little away from its start."""
    torch.manual_seed(seed)
    codec = random_codec(FEATURES, 8, np.random.default_rng(seed))
    model = make_rival(kind, RivalConfig(strl=CAUSAL, **settings), SMALL, codec, get_task("hopper")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def windows(count: int, seed: int = 1) -> Tensor:
    """Random integers (count, context, features)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-127, 128, (count, CONTEXT, FEATURES), generator=generator).float()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_future_changes_no_present_action(kind: PolicyKind) -> None:
    model, mask = small_model(kind), torch.ones(3, CONTEXT, dtype=torch.bool)
    integers, other = windows(3), windows(3, seed=2)
    whole = model(integers, mask)
    for now in range(CONTEXT - 1):
        changed = integers.clone()
        changed[:, now + 1 :] = other[:, now + 1 :]
        assert torch.allclose(model(changed, mask)[:, : now + 1], whole[:, : now + 1], atol=1e-6)
        assert not torch.allclose(model(changed, mask)[:, now + 1], whole[:, now + 1], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_padding_in_front_changes_nothing_whatever_it_holds(kind: PolicyKind) -> None:
    model, integers = small_model(kind), windows(2)
    ends = torch.tensor([30, 7])
    for length in range(1, CONTEXT):
        alone = model(integers[:, -length:], torch.ones(2, length, dtype=torch.bool), ends)
        mask = (torch.arange(CONTEXT) >= CONTEXT - length).expand(2, -1)
        padded = model(integers, mask, ends)
        assert torch.allclose(padded[:, -length:], alone, atol=1e-6)
        assert not padded[:, :-length].any()


@pytest.mark.parametrize("kind", KINDS)
def test_padding_reaches_no_action_and_no_gradient(kind: PolicyKind) -> None:
    model, integers, ends = small_model(kind), windows(2), torch.tensor([2, 40])
    mask = torch.arange(CONTEXT) >= torch.tensor([[CONTEXT - 3], [CONTEXT - 5]])
    found = []
    for filling in (0.0, float("nan")):
        model.zero_grad()
        actions = model(torch.where(mask[..., None], integers, filling), mask, ends)
        actions[mask].square().sum().backward()
        found.append([actions[mask].detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) > 1 and all(torch.equal(*pair) for pair in zip(*found))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_closed_loop_answers_as_training_windows_do(kind: PolicyKind) -> None:
    model, generator = small_model(kind), np.random.default_rng(3)
    policy, history = TorchPolicy(model, lanes=1), []
    policy.reset(0)
    for step in range(2 * CONTEXT + 3):
        parts = [generator.normal(size=(1, size)) for size in (OBSERVATIONS, ACTIONS)]
        token = Token(parts[0], parts[1], generator.normal(size=1))
        history.append(torch.from_numpy(model.codec.encode(token.vector())[0]))
        window = torch.stack(history[-CONTEXT:])[None].float()
        there = torch.ones(1, window.shape[1], dtype=torch.bool)
        wanted = model(window, there, torch.tensor([step]))[0, -1]
        assert np.allclose(policy.act(token)[0], wanted.numpy(), atol=1e-6)


@torch.no_grad()
def test_decision_transformer_knows_the_step_and_cloning_only_the_observation() -> None:
    integers, mask = windows(2), torch.ones(2, CONTEXT, dtype=torch.bool)
    early, late = torch.tensor([9, 9]), torch.tensor([400, 400])
    transformer, cloning = small_model("dt"), small_model("bc")
    assert not torch.allclose(transformer(integers, mask, early), transformer(integers, mask, late), atol=1e-4)
    first = transformer(integers, mask)  # without ends, windows begin with their episodes
    assert torch.equal(first, transformer(integers, mask, torch.full((2,), CONTEXT - 1)))
    beyond = [transformer(integers, mask, torch.full((2,), 1000 + CONTEXT + more)) for more in (0, 5000)]
    assert torch.equal(*beyond)  # steps behind the last embedding share it
    changed = integers.clone()
    changed[:, :, OBSERVATIONS:] = 5.0
    changed[:, :-1] = 3.0
    assert torch.equal(cloning(changed, mask)[:, -1], cloning(integers, mask)[:, -1])


@torch.no_grad()
def test_decision_transformer_sees_what_the_sources_sequence_holds() -> None:
    """R_1 s_1 a_1 ... R_t s_t: the window's first action belongs to a step before it, a return comes before a state."""
    model, integers, mask = small_model("dt"), windows(2), torch.ones(2, CONTEXT, dtype=torch.bool)
    action, to_go = slice(OBSERVATIONS, OBSERVATIONS + ACTIONS), slice(FEATURES - 1, FEATURES)
    whole = model(integers, mask)
    for place, part, matters in ((0, action, False), (0, to_go, True), (1, action, True), (7, to_go, True)):
        changed = integers.clone()
        changed[:, place, part] = -changed[:, place, part] - 1
        assert torch.equal(model(changed, mask), whole) != matters


@pytest.mark.parametrize("task", ["hopper", "halfcheetah", "pen", "pointmaze-umaze", "antmaze-umaze", "cartpole"])
@pytest.mark.parametrize("config", [ModelConfig(), ModelConfig(width=64, blocks=2), ModelConfig(attention="tssa")])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bc"])
def test_matched_rivals_have_dsformers_parameters(kind: PolicyKind, config: ModelConfig, task: str) -> None:
    found = TASKS[task]
    codec = random_codec(found.observation_size + found.action_size + 1, 8, np.random.default_rng(0))
    generator = torch.get_rng_state()
    wanted = dsformer_parameters(config, codec, found)
    assert torch.equal(torch.get_rng_state(), generator)
    model = make_rival(kind, RivalConfig(), config, codec, found)
    assert abs(model.parameter_count() / wanted - 1) < 0.005
    assert model.rival is not None and model.rival.mlp_hidden >= model.rival.width


def test_matching_draws_nothing_from_the_runs_random_numbers() -> None:
    codec, task = random_codec(FEATURES, 8, np.random.default_rng(0)), get_task("hopper")
    matched = make_rival("dt", RivalConfig(), SMALL, codec, task).rival
    assert matched is not None
    states = []
    for rival in (RivalConfig(), matched):
        torch.manual_seed(0)
        states.append(make_rival("dt", rival, SMALL, codec, task).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_every_kind_is_tested() -> None:
    assert set(KINDS) == set(RIVAL_NAMES)

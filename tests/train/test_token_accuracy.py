"""Teacher-forced accuracy and the best look-up table, on data whose answers are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from dsf.shell.errors import UserError
from dsf.tasks import get_task
from dsf.testing.random_networks import random_codec
from dsf.train.config.rivals import RivalConfig
from dsf.train.config.strl import StrlAttention, StrlConfig
from dsf.train.config.training import ModelConfig
from dsf.train.data.dataset import OfflineDataset
from dsf.train.evaluation.lookup_table import best_tables
from dsf.train.evaluation.token_accuracy import policy_accuracy, token_accuracy
from dsf.train.evaluation.torch_policy import TorchPolicy
from dsf.train.models.dsformer import DSFormer
from dsf.train.models.rivals.build import make_rival
from dsf.train.quantization.codec import TokenStatistics

TASK = get_task("cartpole")
CONTEXT = 6


def toy(lengths: list[int], observed: np.ndarray, choices: np.ndarray, task: str = "cartpole") -> OfflineDataset:
    """A dataset of episodes end to end; the first of four observations is ``observed``, rewards are 1 per step."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    acted = np.eye(2, dtype=np.float32)[choices]
    before = np.roll(acted, 1, axis=0)
    before[starts[:-1]] = 0.0
    to_go = np.concatenate([np.arange(length, 0, -1) for length in lengths]) / TASK.return_scale
    tokens = np.zeros((starts[-1], 4 + 2 + 1), np.float32)
    tokens[:, 0], tokens[:, 4:6], tokens[:, 6] = observed, before, to_go
    returns = np.array(lengths, float)
    statistics = TokenStatistics.of(tokens.astype(np.float64))
    kept = np.arange(len(lengths))
    return OfflineDataset("toy", get_task(task), "", tokens, acted, starts, returns, kept, False, statistics, 0)


def random_toy(seed: int, episodes: int = 200) -> tuple[list[int], np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(3, 12, episodes).tolist()
    return lengths, generator.integers(0, 5, sum(lengths)), generator.integers(0, 2, sum(lengths))


class ByObservation(DSFormer):
    """Prefers choice 1 where the first feature's integer is positive."""

    def decide(self, integers: Tensor, tokens: object) -> Tensor:
        return torch.stack([torch.zeros(len(integers)), integers[:, 0]], dim=1)


def test_accuracy_counts_the_first_tokens_of_every_episode() -> None:
    lengths, observed, choices = random_toy(0, 9)
    data = toy(lengths, observed, choices)
    codec = random_codec(7, 8, np.random.default_rng(0))
    codec = dataclasses.replace(codec, offset=np.full(7, 2.0), step=np.full(7, 1.0))
    model = ByObservation(ModelConfig(width=8, blocks=1, context=CONTEXT, window=3), codec, 2, True)
    first = np.concatenate([np.arange(length) < CONTEXT for length in lengths])
    right = (observed > 2).astype(int) == choices
    for found in (token_accuracy(model, data, windows=4), policy_accuracy(TorchPolicy(model, 4), data, CONTEXT)):
        assert (found.tokens, found.correct) == (first.sum(), right[first].sum())
        assert found.share == found.correct / found.tokens
    for found in (token_accuracy(model, data, 4, whole=True), policy_accuracy(TorchPolicy(model, 4), data, None)):
        assert (found.tokens, found.correct) == (len(choices), right.sum())


def test_accuracy_of_a_window_is_that_of_the_closed_loops_policy_for_causal_models_only() -> None:
    data = toy(*random_toy(3))
    codec = random_codec(7, 8, np.random.default_rng(0))
    config = ModelConfig(width=16, blocks=1, context=CONTEXT, window=3)
    kinds: tuple[StrlAttention, ...] = ("causal", "bidirectional")
    for attention in kinds:
        torch.manual_seed(0)
        rival = RivalConfig(strl=StrlConfig(attention=attention, threshold=0.1))
        model = make_rival("strl", rival, config, codec, TASK)
        with torch.no_grad():
            model.get_parameter("head.weight")[1] *= -3.0
        assert model.train().training
        whole = token_accuracy(model, data)
        assert model.training  # it is put back
        stepwise = policy_accuracy(TorchPolicy(model, 16), data, CONTEXT)
        assert whole.tokens == stepwise.tokens and (whole.correct == stepwise.correct) == (attention == "causal")


def test_continuous_actions_and_other_heads_are_refused() -> None:
    data = toy(*random_toy(0, 3))
    codec = random_codec(7, 8, np.random.default_rng(0))
    model = DSFormer(ModelConfig(width=8, blocks=1, context=CONTEXT, window=3), codec, 2, discrete=False)
    with pytest.raises(UserError, match="no head for the 2 choices"):
        token_accuracy(model, data)
    with pytest.raises(UserError, match="are vectors"):
        token_accuracy(model, dataclasses.replace(data, task=get_task("hopper")))
    with pytest.raises(UserError, match="are vectors"):
        best_tables(data, data, dataclasses.replace(data, task=get_task("hopper")), CONTEXT)


def splits(make: Callable[[int], tuple[list[int], np.ndarray, np.ndarray]], next_too: bool = False) -> float:
    """Test accuracy of the best table of three toy datasets of one rule."""
    train, validation, test = (toy(*make(seed)) for seed in range(3))
    found = best_tables(train, validation, test, CONTEXT)
    return (found.with_next if next_too else found.causal).test.share


def test_table_finds_what_history_returns_and_the_future_tell() -> None:
    def noise(seed: int) -> tuple[list[int], np.ndarray, np.ndarray]:
        return random_toy(seed)

    def by_observation(seed: int) -> tuple[list[int], np.ndarray, np.ndarray]:
        lengths, observed, _ = random_toy(seed)
        return lengths, observed, observed % 2

    def by_history(seed: int) -> tuple[list[int], np.ndarray, np.ndarray]:  # 0 1 1 0 0 1 1 ..: from the last two
        lengths, observed, _ = random_toy(seed)
        return lengths, observed, np.concatenate([(np.arange(length) + 1) // 2 % 2 for length in lengths])

    def by_return(seed: int) -> tuple[list[int], np.ndarray, np.ndarray]:
        lengths, observed, _ = random_toy(seed)
        return lengths, observed, np.concatenate([np.arange(length, 0, -1) // 2 % 2 for length in lengths])

    def by_future(seed: int) -> tuple[list[int], np.ndarray, np.ndarray]:
        lengths, observed, choices = random_toy(seed)
        return lengths, np.roll(choices, 1) * 3 + observed % 3, choices

    assert 0.4 < splits(noise) < 0.6
    for rule in (by_observation, by_history, by_return):
        assert splits(rule) > 0.99
    last_in_reach = np.mean([length <= CONTEXT for length in random_toy(2)[0]])
    assert 0.4 < splits(by_future) < 0.6 and 1 - splits(by_future, next_too=True) < last_in_reach


@pytest.mark.slow
def test_table_is_as_good_as_the_known_best_answer() -> None:
    """Choice 1 with probability 0.9 after observation 0, else 0.2: nobody does better than 0.9 or 0.8."""

    def rule(seed: int) -> tuple[list[int], np.ndarray, np.ndarray]:
        lengths, observed, _ = random_toy(seed, 2000)
        likely = np.where(observed == 0, 0.9, 0.2)
        return lengths, observed, (np.random.default_rng(seed + 10).random(len(observed)) < likely).astype(int)

    lengths, observed, choices = rule(2)
    first = np.concatenate([np.arange(length) < CONTEXT for length in lengths])
    best = ((observed == 0).astype(int) == choices)[first].mean()
    assert splits(rule) == pytest.approx(best, abs=0.002)
    train, validation, test = (toy(*rule(seed)) for seed in range(3))
    found = best_tables(train, validation, test, CONTEXT, [([1], 0), ([0, 1, 2, 3], 0)])
    assert found.causal.test.share == pytest.approx(best, abs=0.002)
    assert found.causal.finest == "part 2 of the observation"
    # The next observation tells nothing here: the table that sees it keeps what the causal one knows.
    assert found.with_next.test.share == pytest.approx(best, abs=0.002)


def test_a_part_of_the_observation_with_the_last_choice_can_be_all_there_is_to_know() -> None:
    """The choice follows from one column and the last choice; the whole observation is never seen twice."""

    def rule(seed: int) -> tuple[list[int], np.ndarray, np.ndarray]:
        lengths, observed, choices = random_toy(seed)
        begins = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        for step in range(len(choices)):
            choices[step] = (0 if step in begins else choices[step - 1]) ^ (observed[step] > 2)
        return lengths, observed, choices

    def unique(seed: int) -> OfflineDataset:
        data = toy(*rule(seed))
        data.tokens[:, 1] = np.random.default_rng(seed).standard_normal(len(data.tokens))
        return data

    train, validation, test = (unique(seed) for seed in range(3))
    assert best_tables(train, validation, test, CONTEXT).causal.test.share < 0.8
    found = best_tables(train, validation, test, CONTEXT, [([0], 1)]).causal
    assert found.test.share == 1.0 and found.finest == "part 1 of the observation, last choice"

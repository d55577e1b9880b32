"""Teacher-forced accuracy: how often the best-scored choice is the recorded one, the recorded past being given.

This is what STRL's paper reports. It is no success rate: after every token, right or wrong, the recorded episode goes
on. The paper's tokens are the first K of each episode, K the context, all in one window that begins with the episode;
``whole`` asks for all tokens of an episode, K at a time, so that what comes later counts, too. A bidirectional model
sees all of a window at once; a window's last token has nothing behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from dsf.shell.arrays import Int64Array
from dsf.shell.errors import UserError
from dsf.tasks import Token
from dsf.tasks.policy import Policy
from dsf.train.data.dataset import OfflineDataset, Windows
from dsf.train.models.decision_model import DecisionModel


@dataclass(frozen=True)
class TokenAccuracy:
    """Tokens compared, and how many of them were answered as recorded."""

    tokens: int
    correct: int

    @property
    def share(self) -> float:
        """Correct answers, 0 to 1."""
        return self.correct / self.tokens


def require_choices(data: OfflineDataset) -> None:
    """Refuse actions that are no choices.

    Raises:
        UserError: the dataset's are vectors.
    """
    if not data.task.discrete:
        raise UserError(
            f"token accuracy counts choices, and the actions of dataset '{data.dataset_id}' are vectors: "
            "score it in the closed loop"
        )


def opening_windows(data: OfflineDataset, context: int, count: int) -> Iterator[Windows]:
    """The first ``context`` tokens of every kept episode, ``count`` episodes at a time, padded in front."""
    return _windows(data, context, count, np.arange(len(data.lengths)), np.zeros(len(data.lengths), np.int64))


def whole_windows(data: OfflineDataset, context: int, count: int) -> Iterator[Windows]:
    """All tokens of every kept episode, cut into windows of ``context`` tokens, the last one shorter; as above."""
    pieces = -(-data.lengths // context)
    first = np.cumsum(pieces) - pieces
    episodes = np.repeat(np.arange(len(pieces)), pieces)
    return _windows(data, context, count, episodes, context * (np.arange(len(episodes)) - first[episodes]))


def _windows(
    data: OfflineDataset, context: int, count: int, episodes: Int64Array, steps: Int64Array
) -> Iterator[Windows]:
    """Windows that begin at these steps of these kept episodes, (windows,) each."""
    for begin in range(0, len(episodes), count):
        some, step = episodes[begin : begin + count], steps[begin : begin + count]
        starts = data.kept_starts[some] + step
        lengths = np.minimum(data.lengths[some] - step, context)
        index = (starts + lengths)[:, None] + np.arange(-context, 0)
        mask = index >= starts[:, None]
        index = np.maximum(index, starts[:, None])
        yield Windows(data.tokens[index], data.actions[index], mask, step + lengths - 1)


def token_accuracy(
    model: DecisionModel, data: OfflineDataset, windows: int = 64, whole: bool = False, context: int | None = None
) -> TokenAccuracy:
    """Accuracy of a model, in evaluation mode.

    Args:
        model: is asked.
        data: what it must repeat.
        windows: at a time.
        whole: see the module.
        context: tokens of a window; None: the model's.

    Raises:
        UserError: the dataset's actions are no choices, or the model's are others.
    """
    require_choices(data)
    if not model.discrete or model.action_size != data.task.action_size:
        raise UserError(f"the model has no head for the {data.task.action_size} choices of dataset '{data.dataset_id}'")
    training, device = model.training, model.input_unit.device
    tokens = correct = 0
    model.eval()
    length = model.config.context if context is None else context
    for opening in (whole_windows if whole else opening_windows)(data, length, windows):
        integers = model.codec.encode(opening.tokens).astype(np.float32)
        integers[~opening.mask] = 0.0
        with torch.inference_mode():
            arrays = (torch.from_numpy(array).to(device) for array in (integers, opening.mask, opening.ends))
            answers = model(*arrays).argmax(dim=-1).cpu().numpy()
        right = answers == opening.actions.argmax(axis=-1)
        tokens, correct = tokens + int(opening.mask.sum()), correct + int(right[opening.mask].sum())
    model.train(training)
    return TokenAccuracy(tokens, correct)


def policy_accuracy(policy: Policy, data: OfflineDataset, context: int | None) -> TokenAccuracy:
    """The same of anything that decides token by token, such as an integer network; causal by construction.

    Args:
        policy: decides for ``policy.lanes`` episodes at a time.
        data: what it must repeat.
        context: tokens of each episode that are asked, as :func:`token_accuracy` asks a model's context; None for all,
            the past of each then being all of the episode before it, as far as the policy remembers it.

    Raises:
        UserError: the dataset's actions are no choices.
    """
    require_choices(data)
    tokens = correct = 0
    for begin in range(0, len(data.kept), policy.lanes):
        starts = data.kept_starts[begin : begin + policy.lanes]
        lengths = data.lengths[begin : begin + policy.lanes]
        lengths = lengths if context is None else np.minimum(lengths, context)
        for lane in range(policy.lanes):
            policy.reset(lane)
        for step in range(int(lengths.max())):
            rows = starts + np.minimum(step, lengths - 1)  # a lane that is done repeats its last token, unscored
            answers = policy.act(_tokens(data, rows, policy.lanes))[: len(rows)].argmax(axis=-1)
            running = step < lengths
            tokens += int(running.sum())
            correct += int((answers == data.actions[rows].argmax(axis=-1))[running].sum())
    return TokenAccuracy(tokens, correct)


def _tokens(data: OfflineDataset, rows: Int64Array, lanes: int) -> Token:
    """Recorded tokens (rows,) for all lanes; lanes beyond the rows get the last one again."""
    filled = np.pad(rows, (0, lanes - len(rows)), mode="edge")
    task, values = data.task, data.tokens[filled].astype(np.float64)
    observed, acted = task.observation_size, task.observation_size + task.action_size
    return Token(values[:, :observed], values[:, observed:acted], values[:, acted])

"""The best look-up table over what a policy may see: how far an observation can take any policy at all.

A table answers with the choice that training data took most often in the same situation. Situations have levels, from
coarse (nothing is looked at) to fine; a level's shares are smoothed with those of the level before,

    p_k(choice) = (n_k(choice) + alpha p_{k-1}(choice)) / (n_k + alpha),

n_k counting training tokens in the same situation, so that rare and unseen situations fall back by themselves. Which
ladder of levels, where it ends and which alpha: whatever is best on validation data. All is counting, and it holds only
as far as the training data cover the situations.

A causal situation is the observation (in parts, coarse to fine), the last executed choices and the return-to-go. The
other table may see the next observation as well, which nobody has when deciding: that is the advantage of bidirectional
attention. It falls back on the best causal table, so that what it sees more cannot make it worse but for chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsf.shell.arrays import FloatArray, Int64Array
from dsf.train.data.dataset import OfflineDataset
from dsf.train.evaluation.token_accuracy import TokenAccuracy, require_choices

Level = tuple[int, bool]
"""How many of the last choices are looked at beside the whole observation, and whether the return-to-go is."""
Part = tuple[Sequence[int], int]
"""Columns of the observation, and how many of the last choices are looked at beside them."""
LADDERS: tuple[tuple[Level, ...], ...] = (
    ((0, False), (1, False), (2, False), (3, False), (4, False), (6, False), (8, False)),
    ((0, False), (1, False), (1, True), (2, True), (3, True), (4, True), (6, True), (8, True)),
    ((0, False), (0, True), (1, True), (2, True), (4, True), (8, True)),
)
MOST_CHOICES = max(history for ladder in LADDERS for history, _ in ladder)
ALPHAS = (0.1, 0.5, 2.0, 8.0)
RETURN_GRAIN = 1000.0
"""Returns-to-go count as equal when they agree to this share of a reward unit; sums of rewards are not exact."""
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class LookupScore:
    """What the table chosen on validation data does on test data.

    Attributes:
        finest: what the last level of its ladder looks at.
        alpha: its smoothing.
        validation, test: accuracies.
    """

    finest: str
    alpha: float
    validation: TokenAccuracy
    test: TokenAccuracy


@dataclass(frozen=True)
class LookupScores:
    """Scores of the best causal table, and of the best one that also sees the next observation."""

    causal: LookupScore
    with_next: LookupScore


def best_tables(
    train: OfflineDataset,
    validation: OfflineDataset,
    test: OfflineDataset,
    context: int | None,
    parts: Sequence[Part] = (),
) -> LookupScores:
    """Fit every ladder on ``train``, choose on ``validation``, and score ``test``.

    Args:
        train: what is counted; of a task with choices, all kept episodes, as below.
        validation: what chooses the ladder and alpha.
        test: what is scored.
        context: the first tokens of each episode that are scored, as in token_accuracy, or None for all; all are learnt
            from.
        parts: levels in front of the whole observation, coarse to fine.

    Raises:
        UserError: the actions are no choices.
    """
    for data in (train, validation, test):
        require_choices(data)
    sets = [Situations.of(data, [columns for columns, _ in parts]) for data in (train, validation, test)]
    fitted, *asked = sets
    causal, shares = _best(sets, context, parts, [data.prior(fitted) for data in asked], see_next=False)
    with_next, _ = _best(sets, context, parts, shares, see_next=True)
    return LookupScores(causal, with_next)


def _best(
    sets: list[Situations], context: int | None, parts: Sequence[Part], prior: list[FloatArray], see_next: bool
) -> tuple[LookupScore, list[FloatArray]]:
    """The best table of (train, validation, test) over ``prior`` (of the latter two), and its shares."""
    fitted, *asked = sets
    best: tuple[LookupScore, list[FloatArray]] | None = None
    for ladder in LADDERS:
        shares = dict.fromkeys(ALPHAS, prior)
        levels: list[tuple[int | None, Level]] = [(place, (history, False)) for place, (_, history) in enumerate(parts)]
        for place, level in [*levels, *((None, level) for level in ladder)]:
            train, *keys = [data.keys(place, level, see_next) for data in sets]
            counts = _counts(train, fitted, keys)
            for alpha in ALPHAS:
                shares[alpha] = [_smoothed(*pair, alpha) for pair in zip(counts, shares[alpha])]
                scores = [data.score(share, context) for data, share in zip(asked, shares[alpha])]
                # The first of equal ones stays: the coarsest situation.
                if best is None or scores[0].correct > best[0].validation.correct:
                    name = _name(place, level) + ", next observation" * see_next
                    best = LookupScore(name, alpha, *scores), shares[alpha]
    assert best is not None  # there are ladders
    return best


def _name(place: int | None, level: Level) -> str:
    history, returns = level
    choices = ["last choice" if history == 1 else f"last {history} choices"] * (history > 0)
    seen = "observation" if place is None else f"part {place + 1} of the observation"
    return ", ".join([seen, *choices, *["return-to-go"] * returns])


@dataclass(frozen=True)
class Situations:
    """A dataset's kept steps as hashes of what can be looked at, (steps,) each, and what was done.

    Attributes:
        parts: of the observation, coarse to fine.
        whole: the observation.
        following: of the next whole observation; 0 at an episode's last step.
        returns: of the return-to-go.
        before: the choices before, by lag from 1 on; the number of choices where the episode had not begun.
        choices: what was done.
        places: step of the episode, from 0.
        size: number of choices.
    """

    parts: list[Hashes]
    whole: Hashes
    following: Hashes
    returns: Hashes
    before: list[Int64Array]
    choices: Int64Array
    places: Int64Array
    size: int

    @classmethod
    def of(cls, data: OfflineDataset, columns: Sequence[Sequence[int]]) -> Situations:
        """Those of all kept steps, in order."""
        places = np.concatenate([np.arange(length) for length in data.lengths])
        rows = np.repeat(data.kept_starts, data.lengths) + places
        tokens, size = np.asarray(data.tokens[rows]), data.task.action_size
        choices = np.asarray(data.actions[rows]).argmax(axis=1)
        whole = _hash(tokens[:, : data.task.observation_size])
        following = np.append(whole[1:], np.uint64(0))
        following[np.append(places[1:] == 0, True)] = 0
        before = []
        for lag in range(1, MOST_CHOICES + 1):
            earlier = np.roll(choices, lag)
            earlier[places < lag] = size
            before.append(earlier)
        to_go = np.rint(tokens[:, -1:].astype(np.float64) * data.task.return_scale * RETURN_GRAIN)
        returns = _hash(to_go.astype(np.float32))
        parts = [_hash(tokens[:, list(part)]) for part in columns]
        return cls(parts, whole, following, returns, before, choices, places, size)

    def keys(self, place: int | None, level: Level, see_next: bool) -> Hashes:
        """The situations, as one level of a ladder tells them apart, (steps,); ``place`` is a part's, None: all."""
        key = self.whole if place is None else self.parts[place]
        if see_next:
            key = _join(key, self.following)
        history, returns = level
        for earlier in self.before[:history]:
            key = _join(key, earlier.astype(np.uint64))
        return _join(key, self.returns) if returns else key

    def prior(self, train: Situations) -> FloatArray:
        """Shares of the choices in ``train`` whatever the situation, for every step here, (steps, choices)."""
        shares = np.bincount(train.choices, minlength=train.size) / len(train.choices)
        return np.tile(shares, (len(self.choices), 1))

    def score(self, shares: FloatArray, context: int | None) -> TokenAccuracy:
        """How often the choice with the largest share (steps, choices) is right, in the first tokens of episodes."""
        scored = self.places < (len(self.places) if context is None else context)
        right = shares.argmax(axis=1) == self.choices
        return TokenAccuracy(int(scored.sum()), int(right[scored].sum()))


def _hash(values: npt.NDArray[np.float32]) -> Hashes:
    """A 64-bit hash of each row of float32 values; equal rows have equal hashes, others hardly ever."""
    bits = (values.astype(np.float32) + np.float32(0.0)).view(np.uint32).astype(np.uint64)  # -0 becomes 0
    total = np.full(len(values), 1, np.uint64)
    for column in bits.T:
        total = _join(total, column)
    return total


def _join(first: Hashes, second: Hashes) -> Hashes:
    """Hash of a pair (multiply and shift, splitmix64's constants)."""
    mixed = first * np.uint64(0x9E3779B97F4A7C15) + second + np.uint64(1)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)


def _counts(mine: Hashes, train: Situations, asked: Sequence[Hashes]) -> list[FloatArray]:
    """How often ``train``, in situations ``mine``, took each choice in the situations asked for, (steps, choices)."""
    known, index = np.unique(mine, return_inverse=True)
    cells = np.bincount(index.reshape(-1) * train.size + train.choices, minlength=len(known) * train.size)
    found = []
    for keys in asked:
        place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        same = (known[place] == keys)[:, None]
        found.append(np.where(same, cells.reshape(-1, train.size)[place], 0).astype(np.float64))
    return found


def _smoothed(counts: FloatArray, coarser: FloatArray, alpha: float) -> FloatArray:
    """Shares of the choices at this level, given those of the level before, (steps, choices) each."""
    return (counts + alpha * coarser) / (counts.sum(axis=1, keepdims=True) + alpha)

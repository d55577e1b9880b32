"""The verification ladder, levels L0 to L2: what was trained, folded, and quantized, compared rung by rung.

L0 -> L1 (fold) must be exact: spikes may differ only where the membrane is within 1e-5 of the threshold, and those are
counted. L1 -> L2 (integers) is the only lossy rung: spike agreement per population, action error, and closed-loop
returns, judged by the interval of the paired drop (:mod:`dsf.export.proof.score_gate`). L0 and L1 run in float64 here,
so that rounding cannot hide a wrong fold.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from threading import Event
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits

from dsf.export.conversion.folded import FoldedModel, lane_batches
from dsf.export.network.network import Network
from dsf.export.network.nodes import HostEmbedding
from dsf.export.network.reference import IntegerPolicy, ReferenceEngine, WindowReference, entering
from dsf.export.proof.levels import (
    FoldComparison,
    HostComparison,
    IntegerComparison,
    in_float64,
    run_folded,
    run_reference,
    run_torch,
)
from dsf.export.proof.rungs import UNPROVEN, Rung, prove_network
from dsf.export.proof.score_gate import LARGEST_ADVICE, METHOD, Drop, paired_drop
from dsf.shell.arrays import FloatArray, IntArray
from dsf.shell.processes.background import Background
from dsf.tasks import Episode, Policy, Task, Token, mean_confidence_interval, rollout
from dsf.tasks.scores import CONFIDENCE
from dsf.train.evaluation.torch_policy import TorchPolicy
from dsf.train.models.dsformer import DSFormer
from dsf.train.quantization.codec import CodedArray

Coded = TypeVar("Coded", IntArray, CodedArray)
SEQUENCES = 64
"""Token sequences of context length compared spike by spike."""
REPORT_SEQUENCES = 16
"""How many of them the report on layers is made on."""
PROOF_SEQUENCES = 2
"""Sequences of two contexts on which the engines are compared: window mode replays every token K times."""
NOTHING_REMOVED: Mapping[str, npt.NDArray[np.bool_]] = {}
"""Where a network has all neurons of its folded form."""
MOST_LANES = 32
"""Further episodes side by side; more would only wait for one another."""

Watch = Callable[[int | None], AbstractContextManager[Callable[[int], None]]]
"""Stands around a part that may take so many environment steps at most, see
:meth:`dsf.export.exported.ExportObserver.verifying`."""


def unwatched(_steps: int | None) -> AbstractContextManager[Callable[[int], None]]:
    """A :data:`Watch` that sees nothing."""
    return contextlib.nullcontext(lambda _running: None)


@dataclass(frozen=True)
class ClosedLoop:
    """The episodes that compare float and integer policy.

    Attributes:
        task: environment, reference scores.
        first_seed: reset seed of the first episode; the others follow.
        looks: numbers of episodes at which the drop is judged, ascending; after the last one it stays undecided.
        target_return: return asked for (reward units).
        max_score_drop: points of the task's score that the integers may lose.
        remedies: what may help where they lose more, in words.
        undecided: told of a look that decides nothing, and how many episodes follow.
    """

    task: Task
    first_seed: int
    looks: tuple[int, ...]
    target_return: float
    max_score_drop: float
    remedies: str
    undecided: Callable[[Rung, int], None]


def prove_run(
    model: DSFormer,
    folded: FoldedModel,
    network: Network,
    loop: ClosedLoop | None,
    episodes: Sequence[CodedArray] | None = None,
    watch: Watch = unwatched,
    kept: Mapping[str, npt.NDArray[np.bool_]] = NOTHING_REMOVED,
) -> tuple[list[Rung], CodedArray]:
    """Climb L0 to L2 and, for what the file alone can prove, beyond; return every rung, passed or not.

    Args:
        model: the trained model, in evaluation mode.
        folded: its folded form.
        network: its integer form.
        loop: closed-loop episodes; None leaves that rung out, and ``episodes`` must be given.
        episodes: tokens to compare on, as the codec makes them of (steps, features) each; None takes those that the
            float policy sees in ``loop``.
        watch: stands around the episodes of every look, then around the comparison of the levels.
        kept: which neurons of the folded form are left in the network, for every population that has lost some.

    Returns:
        the rungs, and tokens for the report on layers, (lanes, context, features).
    """
    returns: list[Rung] = []
    if loop is not None:
        seen, rung = prove_closed_loop(model, network, loop, watch)
        returns, episodes = [rung], episodes or seen
    assert episodes is not None
    tokens = spread_windows(episodes, network.context + 1, SEQUENCES)[:, -network.context :]
    sequences = spread_windows(episodes, 2 * network.context, PROOF_SEQUENCES)  # half of its windows lose tokens
    graded = entering(network.encoder, sequences.swapaxes(0, 1))
    proofs: list[Rung] = []
    with watch(None), _halved_threads(), _proofs_beside(network, graded, proofs):
        levels = prove_levels(model, folded, network, tokens, kept)
    return [*levels, *returns, *proofs], tokens[:: SEQUENCES // REPORT_SEQUENCES]


@contextlib.contextmanager
def _proofs_beside(network: Network, tokens: IntArray, proofs: list[Rung]) -> Iterator[None]:
    """Prove the network beside what the block does, and put the rungs into ``proofs`` at its end; where the block fails
    or is interrupted, the proof stops, too.
    """
    stop, thread = Event(), Background[list[Rung]]("dsf-proofs")
    with thread:
        thread.begin(functools.partial(prove_network, network, tokens, stop))
        try:
            yield
            proofs += thread.answer()
        except BaseException:
            stop.set()
            raise


@contextlib.contextmanager
def _halved_threads() -> Iterator[None]:
    """Half of the cores for each of two computations side by side: more threads would wait for each other."""
    threads = torch.get_num_threads()
    half = max(threads // 2, 1)
    torch.set_num_threads(half)
    try:
        with threadpool_limits(half):
            yield
    finally:
        torch.set_num_threads(threads)


def prove_levels(
    model: DSFormer,
    folded: FoldedModel,
    network: Network,
    tokens: CodedArray,
    kept: Mapping[str, npt.NDArray[np.bool_]] = NOTHING_REMOVED,
) -> list[Rung]:
    """L0 -> L1 -> L2 on tokens (lanes, context, features); see :func:`prove_run` for ``kept``."""
    l0_l1, l1_l2, exact = FoldComparison(), IntegerComparison(), in_float64(model)
    host = HostComparison(network.encoder) if isinstance(network.encoder, HostEmbedding) else None
    for batch in lane_batches(tokens, axis=0):
        actions, spikes, near = run_folded(folded, batch)
        l0_l1.add(*run_torch(exact, batch), actions, spikes, near)
        entered = entering(network.encoder, batch)
        left = {name: fired[..., kept[name]] if name in kept else fired for name, fired in spikes.items()}
        l1_l2.add(actions, left, *run_reference(network, entered))
        if host is not None:
            host.add(folded.embed(batch.astype(np.float64)), entered)
    return [l0_l1.rung(), *([] if host is None else [host.rung()]), l1_l2.rung()]


def prove_closed_loop(
    model: DSFormer, network: Network, loop: ClosedLoop, watch: Watch
) -> tuple[list[CodedArray], Rung]:
    """Float policy and integers on the same reset seeds, more of them until the drop is decided.

    Returns:
        what the float policy saw in the episodes of the first look, and the rung.
    """
    seen: list[CodedArray] = []
    floats: list[Episode] = []
    integers: list[Episode] = []
    for look, most in enumerate(loop.looks):
        seeds = range(loop.first_seed + len(floats), loop.first_seed + most)
        lanes = len(seeds) if look == 0 else min(len(seeds), MOST_LANES)
        policy = TorchPolicy(model, lanes)
        recorder = Recorder(policy) if look == 0 else None  # the tokens of the ladder do not depend on later looks
        with watch(2 * len(seeds) * loop.task.max_steps) as on_step:
            floats += rollout(loop.task, recorder or policy, seeds, loop.target_return, on_step)
            if recorder is not None:
                recorder.cut([episode.decisions for episode in floats])
                seen = recorder.episodes
            integers += rollout(loop.task, _integer_policy(network, lanes), seeds, loop.target_return, on_step)
        rung = compare_returns(loop, floats, integers)
        if rung.details["verdict"] != UNPROVEN:
            break
        if most != loop.looks[-1]:
            loop.undecided(rung, loop.looks[look + 1] - most)
    return seen, rung


def _integer_policy(network: Network, lanes: int) -> Policy:
    return IntegerPolicy(
        ReferenceEngine(network, lanes) if network.stream_is_exact else WindowReference(network, lanes)
    )


def compare_returns(loop: ClosedLoop, floats: list[Episode], integers: list[Episode]) -> Rung:
    """L0 against L2 in closed loop, same reset seeds, at one of the planned looks."""
    returns = [[episode.episode_return for episode in episodes] for episodes in (floats, integers)]
    l0, l2 = map(mean_confidence_interval, returns)
    floats_scored, integers_scored = ([loop.task.score(value) for value in values] for values in returns)
    drop = paired_drop(floats_scored, integers_scored, len(loop.looks))
    verdict = drop.verdict(loop.max_score_drop)
    bounded = bool(np.isfinite([drop.low, drop.high]).all())
    summary = f"return {l0} -> {l2} over {len(floats)} episodes, {describe_drop(loop, drop)}"
    details = {
        "target_return": loop.target_return,
        "seeds": [episode.seed for episode in floats],
        "float": {**asdict(l0), "returns": returns[0]},
        "integer": {**asdict(l2), "returns": returns[1]},
        "score_drop": drop.mean,
        "score_drop_interval": [drop.low, drop.high] if bounded else None,
        "confidence": CONFIDENCE,
        "confidence_of_this_look": drop.level,
        "looks": list(loop.looks),
        "method": METHOD,
        "max_score_drop": loop.max_score_drop,
        "verdict": verdict,
    }
    if verdict == UNPROVEN:
        summary += f"; {UNPROVEN}"
        details["settled_by"] = how_to_settle(loop, drop)
    elif verdict == "refused":
        details["remedies"] = loop.remedies
    passed = {"proven": True, UNPROVEN: None}.get(verdict, False)
    return Rung("L0 -> L2 closed loop", passed, summary, details)


def describe_drop(loop: ClosedLoop, drop: Drop) -> str:
    """The drop, its interval and the limit, in words."""
    interval = f"{CONFIDENCE:.0%} [{drop.low:.1f}, {drop.high:.1f}]" if drop.pairs > 1 else "no interval of one pair"
    task = loop.task
    unit = "" if task.definition is None or task.reference else " percent of the span of the data's returns"
    return f"score drop {drop.mean:.1f}{unit}, {interval} (limit {loop.max_score_drop:g})"


def how_to_settle(loop: ClosedLoop, drop: Drop) -> str:
    """What would decide an undecided drop, in words."""
    needed = drop.to_settle(loop.max_score_drop)
    if needed is not None:
        asked = f"about {needed:,} episodes, if mean and spread stay (--most-episodes {needed})"
    elif drop.pairs == 1:
        asked = "more episodes (--most-episodes)"
    else:
        asked = f"no number of episodes below {LARGEST_ADVICE:,}, so near is the mean to the limit"
    return f"{asked}; or integers that lose less: {loop.remedies}"


class Recorder:
    """A policy that keeps every token it was shown, as its codec makes them."""

    def __init__(self, policy: TorchPolicy) -> None:
        self.policy, self.codec, self.lanes = policy, policy.model.codec, policy.lanes
        self.episodes: list[CodedArray] = [self.codec.encode(np.zeros((0, len(self.codec.unit))))] * self.lanes
        self.running: list[list[CodedArray]] = [[] for _ in range(self.lanes)]

    def reset(self, lane: int) -> None:
        """Forward to the policy."""
        self.policy.reset(lane)
        self.running[lane] = []

    def act(self, token: Token) -> FloatArray:
        """Record, then decide."""
        for lane, graded in enumerate(self.codec.encode(token.vector())):
            self.running[lane].append(graded)
        return self.policy.act(token)

    def cut(self, lengths: list[int]) -> None:
        """Keep each lane's first ``lengths`` tokens, one episode per lane: a finished lane goes on seeing tokens."""
        self.episodes = [np.array(tokens[:length]) for tokens, length in zip(self.running, lengths)]


def spread_windows(episodes: Sequence[Coded], length: int, count: int) -> Coded:
    """Evenly spread windows (count, length, features) of episodes (steps, features), none across an episode's end.

    Where every episode is shorter than ``length``, the windows are as long as the longest one.
    """
    length = min(length, max(len(tokens) for tokens in episodes))
    ends = np.cumsum([max(len(tokens) - length + 1, 0) for tokens in episodes])
    chosen = np.linspace(0, ends[-1] - 1, count).astype(int)
    found = np.searchsorted(ends, chosen, side="right")
    starts = chosen - np.concatenate([[0], ends[:-1]])[found]
    return np.stack([episodes[index][start : start + length] for index, start in zip(found, starts)])

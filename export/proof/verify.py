"""The verification ladder, levels L0 to L2: what was trained, folded, and quantized, compared rung by rung.

L0 -> L1 (fold) must be exact: spikes may differ only where the membrane is within 1e-5 of the threshold, and those are
counted. L1 -> L2 (integers) is the only lossy rung: spike agreement per population, action error, and closed-loop
returns with confidence intervals. L0 and L1 run in float64 here, so that rounding cannot hide a wrong fold.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from threading import Event
from typing import TypeVar

import numpy as np
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
from dsf.export.proof.rungs import Rung, prove_network
from dsf.shell.arrays import FloatArray, IntArray
from dsf.tasks import Episode, Task, Token, mean_confidence_interval, rollout
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


@dataclass(frozen=True)
class ClosedLoop:
    """The episodes that compare float and integer policy.

    Attributes:
        task: environment, reference scores.
        seeds: reset seeds.
        target_return: return asked for (reward units).
        max_score_drop: D4RL-normalised points that the integers may lose.
        on_step: progress callback, see :func:`dsf.tasks.rollout`.
    """

    task: Task
    seeds: range
    target_return: float
    max_score_drop: float
    on_step: Callable[[int], None]


def prove_run(
    model: DSFormer,
    folded: FoldedModel,
    network: Network,
    loop: ClosedLoop | None,
    episodes: Sequence[CodedArray] | None = None,
) -> tuple[list[Rung], CodedArray]:
    """Climb L0 to L2 and, for what the file alone can prove, beyond; return every rung, passed or not.

    Args:
        model: the trained model, in evaluation mode.
        folded: its folded form.
        network: its integer form.
        loop: closed-loop episodes; None leaves that rung out, and ``episodes`` must be given.
        episodes: tokens to compare on, as the codec makes them of (steps, features) each; None takes those that the
            float policy sees in ``loop``.

    Returns:
        the rungs, and tokens for the report on layers, (lanes, context, features).
    """
    returns: list[Rung] = []
    if loop is not None:
        recorder, rung = prove_closed_loop(model, network, loop)
        returns, episodes = [rung], episodes or recorder.episodes
    assert episodes is not None
    tokens = spread_windows(episodes, network.context + 1, SEQUENCES)[:, -network.context :]
    sequences = spread_windows(episodes, 2 * network.context, PROOF_SEQUENCES)  # half of its windows lose tokens
    graded = entering(network.encoder, sequences.swapaxes(0, 1))
    with _halved_threads(), _proofs_beside(network, graded) as proofs:
        levels = prove_levels(model, folded, network, tokens)
    return [*levels, *returns, *proofs.result()], tokens[:: SEQUENCES // REPORT_SEQUENCES]


@contextlib.contextmanager
def _proofs_beside(network: Network, tokens: IntArray) -> Iterator[Future[list[Rung]]]:
    """Prove the network beside what the block does; where the block fails or is interrupted, the proof stops, too."""
    stop = Event()
    with ThreadPoolExecutor(1) as pool:
        proofs = pool.submit(prove_network, network, tokens, stop)
        try:
            yield proofs
            wait([proofs])
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


def prove_levels(model: DSFormer, folded: FoldedModel, network: Network, tokens: CodedArray) -> list[Rung]:
    """L0 -> L1 -> L2 on tokens (lanes, context, features)."""
    l0_l1, l1_l2, exact = FoldComparison(), IntegerComparison(), in_float64(model)
    host = HostComparison(network.encoder) if isinstance(network.encoder, HostEmbedding) else None
    for batch in lane_batches(tokens, axis=0):
        actions, spikes, near = run_folded(folded, batch)
        l0_l1.add(*run_torch(exact, batch), actions, spikes, near)
        entered = entering(network.encoder, batch)
        l1_l2.add(actions, spikes, *run_reference(network, entered))
        if host is not None:
            host.add(folded.embed(batch.astype(np.float64)), entered)
    return [l0_l1.rung(), *([] if host is None else [host.rung()]), l1_l2.rung()]


def prove_closed_loop(model: DSFormer, network: Network, loop: ClosedLoop) -> tuple[Recorder, Rung]:
    """Float policy and integers on the same reset seeds; also what the float policy saw."""
    lanes = len(loop.seeds)
    recorder = Recorder(TorchPolicy(model, lanes))
    floats = rollout(loop.task, recorder, loop.seeds, loop.target_return, loop.on_step)
    recorder.cut([episode.decisions for episode in floats])
    engine = ReferenceEngine(network, lanes) if network.stream_is_exact else WindowReference(network, lanes)
    integers = rollout(loop.task, IntegerPolicy(engine), loop.seeds, loop.target_return, loop.on_step)
    return recorder, compare_returns(loop, floats, integers)


def compare_returns(loop: ClosedLoop, floats: list[Episode], integers: list[Episode]) -> Rung:
    """L0 against L2 in closed loop, same reset seeds."""
    l0 = mean_confidence_interval([episode.episode_return for episode in floats])
    l2 = mean_confidence_interval([episode.episode_return for episode in integers])
    drop = loop.task.score(l0.mean) - loop.task.score(l2.mean)
    summary = f"return {l0} -> {l2} over {len(floats)} episodes, score drop {drop:.1f} (limit {loop.max_score_drop:g})"
    details = {
        "target_return": loop.target_return,
        "seeds": [episode.seed for episode in floats],
        "float": {**asdict(l0), "returns": [episode.episode_return for episode in floats]},
        "integer": {**asdict(l2), "returns": [episode.episode_return for episode in integers]},
        "score_drop": drop,
        "max_score_drop": loop.max_score_drop,
    }
    return Rung("L0 -> L2 closed loop", drop <= loop.max_score_drop, summary, details)


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

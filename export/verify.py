"""The verification ladder, levels L0 to L2: what was trained, folded, and quantized, compared rung by rung.

L0 -> L1 (fold) must be exact: spikes may differ only where the membrane is within 1e-5 of the threshold, and those are
counted. L1 -> L2 (integers) is the only lossy rung: spike agreement per population, action error, and closed-loop
returns with confidence intervals. L0 and L1 run in float64 here, so that rounding cannot hide a wrong fold.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dsf.export.folded import FoldedEngine, FoldedModel
from dsf.export.network import Network
from dsf.export.nodes import SPIKING_KINDS, IntArray
from dsf.export.proof import Rung, prove_network
from dsf.export.reference import IntegerPolicy, ReferenceEngine, WindowReference, decode, replay
from dsf.tasks import Episode, Task, Token, mean_confidence_interval, rollout
from dsf.tasks.policy import FloatArray
from dsf.train.model import DSFormer
from dsf.train.neurons import LIF
from dsf.train.policy import TorchPolicy

FLOAT_TOLERANCE = 1e-5
"""Largest accepted difference between L0 and L1 actions, and the membrane distance that excuses a spike."""
SEQUENCES = 64
"""Token sequences of context length compared spike by spike."""
PROOF_SEQUENCES = 2
"""Of them, on how many the engines are compared: window mode replays every token K times."""

Recording = dict[str, npt.NDArray[np.bool_]]
"""Spikes per population, (tokens, ticks, lanes, neurons)."""


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


def verify(
    model: DSFormer,
    folded: FoldedModel,
    network: Network,
    loop: ClosedLoop | None,
    episodes: Sequence[IntArray] | None = None,
) -> tuple[list[Rung], IntArray]:
    """Climb L0 to L2 and, for what the file alone can prove, beyond; return every rung, passed or not.

    Args:
        model: the trained model, in evaluation mode.
        folded: its folded form.
        network: its integer form.
        loop: closed-loop episodes; None leaves that rung out, and ``episodes`` must be given.
        episodes: tokens to compare on, (steps, features) encoder integers each; None takes those that the float policy
            sees in ``loop``.

    Returns:
        the rungs, and the tokens of the open-loop comparison, (lanes, context, features).
    """
    returns: list[Rung] = []
    if loop is not None:
        recorder, rung = run_closed_loop(model, network, loop)
        returns, episodes = [rung], episodes or recorder.episodes
    assert episodes is not None
    sequences = spread_windows(episodes, network.context + 1, SEQUENCES)
    tokens = sequences[:, -network.context :]
    l0_actions, l0_spikes = run_torch(model, tokens)
    l1_actions, l1_spikes, l1_margins = run_folded(folded, tokens)
    l2_actions, l2_spikes = run_reference(network, tokens)
    rungs = [
        compare_fold(l0_actions, l0_spikes, l1_actions, l1_spikes, l1_margins),
        compare_integers(l1_actions, l1_spikes, l2_actions, l2_spikes),
        *returns,
        *prove_network(network, sequences[:: SEQUENCES // PROOF_SEQUENCES].swapaxes(0, 1)),
    ]
    return rungs, tokens


def run_closed_loop(model: DSFormer, network: Network, loop: ClosedLoop) -> tuple[Recorder, Rung]:
    """Float policy and integers on the same reset seeds; also what the float policy saw."""
    lanes = len(loop.seeds)
    recorder = Recorder(TorchPolicy(model, lanes))
    floats = rollout(loop.task, recorder, loop.seeds, loop.target_return, loop.on_step)
    recorder.cut([episode.decisions for episode in floats])
    engine = ReferenceEngine(network, lanes) if network.stream_is_exact else WindowReference(network, lanes)
    integers = rollout(loop.task, IntegerPolicy(engine), loop.seeds, loop.target_return, loop.on_step)
    return recorder, compare_returns(loop, floats, integers)


def run_torch(model: DSFormer, tokens: IntArray) -> tuple[FloatArray, Recording]:
    """L0 in float64 on (lanes, context, features) integers: actions (context, lanes, actions) and spikes."""
    model = copy.deepcopy(model).double().eval()
    recording: Recording = {}
    lanes, context, _ = tokens.shape

    def hook(name: str) -> Callable[[Any, Any, torch.Tensor], None]:
        def store(_module: Any, _inputs: Any, spikes: torch.Tensor) -> None:
            ticks, _, neurons = spikes.shape  # rows are lane-major: (ticks, lanes * context, neurons)
            by_token = spikes.reshape(ticks, lanes, context, neurons).permute(2, 0, 1, 3)
            recording[name] = by_token.numpy().astype(bool)

        return store

    for name, module in model.named_modules():
        if isinstance(module, LIF):
            module.register_forward_hook(hook(name))
    with torch.inference_mode():
        mask = torch.ones(lanes, context, dtype=torch.bool)
        actions = model(torch.from_numpy(tokens.astype(np.float64)), mask)
    return actions.numpy().swapaxes(0, 1), recording


def run_folded(model: FoldedModel, tokens: IntArray) -> tuple[FloatArray, Recording, dict[str, FloatArray]]:
    """L1: as :func:`run_torch`, and each membrane's distance from the threshold."""
    spikes: Recording = {}
    margins: dict[str, FloatArray] = {}

    def observe(name: str, membranes: FloatArray, fired: FloatArray) -> None:
        spikes[name] = fired.swapaxes(0, 1).astype(bool)
        margins[name] = np.abs(membranes - model.threshold).swapaxes(0, 1)

    return FoldedEngine(model, observe).decide(tokens.swapaxes(0, 1)), spikes, margins


def run_reference(network: Network, tokens: IntArray) -> tuple[FloatArray, Recording]:
    """L2: as :func:`run_torch`."""
    spikes: Recording = {}
    spiking = {node.name for node in network.nodes if isinstance(node, SPIKING_KINDS)}

    def observe(name: str, values: npt.NDArray[np.int64]) -> None:
        if name in spiking:
            spikes[name] = values.swapaxes(0, 1).astype(bool)

    return decode(network.readout, replay(network, tokens.swapaxes(0, 1), observe=observe)), spikes


def compare_fold(
    l0_actions: FloatArray,
    l0_spikes: Recording,
    l1_actions: FloatArray,
    l1_spikes: Recording,
    margins: dict[str, FloatArray],
) -> Rung:
    """L0 -> L1."""
    compared = sum(spikes.size for spikes in l0_spikes.values())
    differing = {name: l0_spikes[name] != l1_spikes[name] for name in l0_spikes}
    excused = sum(int((wrong & (margins[name] < FLOAT_TOLERANCE)).sum()) for name, wrong in differing.items())
    wrong = sum(int(where.sum()) for where in differing.values()) - excused
    error = float(np.abs(l0_actions - l1_actions).max())
    passed = wrong == 0 and error < FLOAT_TOLERANCE
    summary = f"{compared:,} spikes, {wrong} differ ({excused} more within 1e-5 of threshold), action error {error:.1e}"
    details = {"compared_spikes": compared, "mismatches": wrong, "near_threshold": excused, "action_error_max": error}
    return Rung("L0 torch -> L1 folded float", passed, summary, details)


def compare_integers(
    l1_actions: FloatArray, l1_spikes: Recording, l2_actions: FloatArray, l2_spikes: Recording
) -> Rung:
    """L1 -> L2 on open-loop tokens. Informative: it has no threshold of its own, the closed loop decides."""
    agreement = {name: float((l1_spikes[name] == l2_spikes[name]).mean()) for name in l1_spikes}
    rmse = float(np.sqrt(np.mean((l1_actions - l2_actions) ** 2)))
    worst = min(agreement, key=lambda name: agreement[name])
    overall = sum(agreement[n] * l1_spikes[n].size for n in agreement) / sum(s.size for s in l1_spikes.values())
    summary = f"spikes agree {overall:.2%} (worst {worst} {agreement[worst]:.2%}), action RMSE {rmse:.4f}"
    details = {"spike_agreement": agreement, "spike_agreement_overall": overall, "action_rmse": rmse}
    return Rung("L1 folded float -> L2 integers", True, summary, details)


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
    """A policy that keeps every token it was shown, as the codec's integers."""

    def __init__(self, policy: TorchPolicy) -> None:
        self.policy, self.codec, self.lanes = policy, policy.model.codec, policy.lanes
        self.episodes: list[IntArray] = [np.zeros((0, len(self.codec.unit)), np.int32)] * self.lanes
        self.running: list[list[IntArray]] = [[] for _ in range(self.lanes)]

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


def spread_windows(episodes: Sequence[IntArray], length: int, count: int) -> IntArray:
    """Evenly spread windows (count, length, features) of episodes (steps, features), none across an episode's end.

    Where every episode is shorter than ``length``, the windows are as long as the longest one.
    """
    length = min(length, max(len(tokens) for tokens in episodes))
    ends = np.cumsum([max(len(tokens) - length + 1, 0) for tokens in episodes])
    chosen = np.linspace(0, ends[-1] - 1, count).astype(int)
    found = np.searchsorted(ends, chosen, side="right")
    starts = chosen - np.concatenate([[0], ends[:-1]])[found]
    return np.stack([episodes[index][start : start + length] for index, start in zip(found, starts)])

"""The rung of a network that has lost its silent channels: it computes what it computed with them, bit for bit."""

from __future__ import annotations

import numpy as np

from dsf.export.conversion.silent import Removal, lane_batches
from dsf.export.network.network import Network
from dsf.export.network.nodes import SPIKING_KINDS
from dsf.export.network.reference import replay_window
from dsf.export.proof.rungs import Rung
from dsf.shell.arrays import Int64Array, IntArray

REMOVAL = "L2 -> L2 without silent channels"


def as_windows(tokens: IntArray, context: int) -> IntArray:
    """Unbroken sequences (steps, lanes, features) cut into windows of at most ``context`` tokens, side by side."""
    context = min(context, len(tokens))
    usable = tokens[: len(tokens) // context * context]
    parts = usable.reshape(-1, context, *usable.shape[1:]).transpose(1, 0, 2, 3)
    return parts.reshape(context, -1, tokens.shape[2])


def prove_removal(whole: Network, smaller: Network, removal: Removal, tokens: IntArray) -> Rung:
    """Every spike that is left and every accumulator, on tokens (tokens, lanes, features) of windows up to K."""
    compared = mismatches = accumulators = differing = 0
    spiking = [node.name for node in smaller.nodes if isinstance(node, SPIKING_KINDS)]
    for lanes in lane_batches(tokens):
        before: dict[str, Int64Array] = {}
        after: dict[str, Int64Array] = {}
        first = replay_window(whole, lanes, observe=before.__setitem__)
        second = replay_window(smaller, lanes, observe=after.__setitem__)
        accumulators += first.size
        differing += int(np.count_nonzero(first != second))
        for name in spiking:
            expected = before[name][..., removal.kept[name]] if name in removal.kept else before[name]
            compared += expected.size
            mismatches += int(np.count_nonzero(expected != after[name]))
    decisions = tokens.shape[0] * tokens.shape[1]
    summary = (
        f"{removal.summary()}; {compared:,} spike slots over {decisions:,} decisions, {mismatches} differ; "
        f"{differing} accumulators differ"
    )
    details = {
        "how": removal.how,
        "removed": removal.channels,
        "of": removal.of,
        "measured_tokens": removal.tokens,
        "decisions": decisions,
        "compared_spikes": compared,
        "mismatches": mismatches,
        "compared_accumulators": accumulators,
        "accumulator_mismatches": differing,
    }
    return Rung(REMOVAL, mismatches == 0 and differing == 0, summary, details)

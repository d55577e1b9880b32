"""Token sequences to prove a network on: a dataset's, as its or a codec's integers, or random ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from dsf.export.network.network import Network
from dsf.export.network.reference import encode
from dsf.export.proof.rungs import LANES, random_proof_tokens, steps_for
from dsf.shell.arrays import IntArray
from dsf.shell.errors import UserError
from dsf.shell.installed import require_installed
from dsf.tasks.definition import TaskDefinition
from dsf.tasks.registry import TASK_FACT
from dsf.train.quantization.codec import CodedArray

Coded = TypeVar("Coded", IntArray, CodedArray)
LARGEST_COUNT = 200
"""Episodes that are read, evenly spread over the dataset."""


def dataset_episodes(
    dataset_id: str,
    encode: Callable[[npt.NDArray[np.floating]], Coded],
    features: int,
    definition: TaskDefinition | None = None,
) -> list[Coded]:
    """Up to ``LARGEST_COUNT`` episodes of a dataset, (steps, ...) of what ``encode`` makes of each.

    Args:
        dataset_id: Minari id or D4RL name.
        encode: turns token vectors (steps, features) into integers, or into what a codec makes of them.
        features: what a token must have.
        definition: of the policy's task where no registry holds it, which says how the dataset's episodes become its
            tokens; None takes the dataset for what it is by itself.

    Raises:
        UserError: no such dataset, or its tokens have another size.
    """
    from dsf.train.data.dataset import load_dataset
    from dsf.train.data.registry import resolve

    data = load_dataset(resolve(dataset_id), definition=definition)
    if data.tokens.shape[1] != features:
        raise UserError(
            f"dataset '{dataset_id}' has tokens of {data.tokens.shape[1]} features, the network reads {features}: "
            f"name a dataset of its own task"
        )
    count = len(data.starts) - 1
    chosen = np.unique(np.linspace(0, count - 1, min(count, LARGEST_COUNT)).astype(int))
    return [encode(np.array(data.tokens[data.starts[i] : data.starts[i + 1]])) for i in chosen]


def definition_of(facts: Mapping[str, Any]) -> TaskDefinition | None:
    """What a checkpoint's header or a network's provenance carries of a task that no registry holds.

    Raises:
        UserError: it carries something else.
    """
    stated = facts.get(TASK_FACT)
    return None if stated is None else TaskDefinition.from_json(stated, TASK_FACT)


def source_name(dataset_id: str | None) -> str:
    """What :func:`proof_tokens` are called in a ladder."""
    return dataset_id or "random tokens"


def proof_tokens(network: Network, dataset_id: str | None, decisions: int, seed: int) -> IntArray:
    """Encoder integers (steps, lanes, features), one unbroken sequence per lane.

    Args:
        network: that will read them.
        dataset_id: whose tokens; None draws random ones, see
            :func:`~dsf.export.proof.rungs.random_proof_tokens`. Where every episode is shorter
            than the sequence wanted, it is as long as the longest episode.
        decisions: tokens in all, at least.
        seed: of random tokens.

    Raises:
        UserError: no such dataset, or one of another task.
    """
    if dataset_id is None:
        return random_proof_tokens(network, decisions, seed)
    require_installed("train", "torch", "minari")
    from dsf.export.proof.verify import spread_windows

    definition = definition_of(network.provenance)
    encoder = network.encoder
    episodes = dataset_episodes(dataset_id, lambda vectors: encode(encoder, vectors), encoder.features, definition)
    return spread_windows(episodes, steps_for(network, decisions), LANES).swapaxes(0, 1)

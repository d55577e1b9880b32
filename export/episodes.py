"""Token sequences of a dataset, as a network's or a codec's integers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from dsf.export.nodes import IntArray
from dsf.tasks import UserError

LARGEST_COUNT = 200
"""Episodes that are read, evenly spread over the dataset."""


def dataset_episodes(
    dataset_id: str, encode: Callable[[npt.NDArray[np.floating]], IntArray], features: int
) -> list[IntArray]:
    """Up to ``LARGEST_COUNT`` episodes of a dataset, (steps, features) integers each.

    Args:
        dataset_id: Minari id or D4RL name.
        encode: turns token vectors (steps, features) into integers.
        features: what a token must have.

    Raises:
        UserError: no such dataset, or its tokens have another size.
    """
    from dsf.train.data import load_dataset
    from dsf.train.registry import resolve

    data = load_dataset(resolve(dataset_id))
    if data.tokens.shape[1] != features:
        raise UserError(
            f"dataset '{dataset_id}' has tokens of {data.tokens.shape[1]} features, the network reads {features}: "
            f"name a dataset of its own task"
        )
    count = len(data.starts) - 1
    chosen = np.unique(np.linspace(0, count - 1, min(count, LARGEST_COUNT)).astype(int))
    return [encode(np.array(data.tokens[data.starts[i] : data.starts[i + 1]])) for i in chosen]

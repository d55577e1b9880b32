"""The sums behind every attention's neuron, over arrays of spikes: floats for level L1, integers for level L2, tensors.

A rule sees the present token and, through :data:`Lagged`, what a population fired k tokens ago. Who keeps these tokens
(a stream's history, or a window that is replayed whole) is not its business, so stream and window mode share the rules.
Arrays are (ticks, ..., neurons); the rules use only what numpy's arrays and torch's tensors share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any
"""A numpy array or a torch tensor."""
Lagged = Callable[[int], Array]
"""Spikes of the remembered population k tokens ago (k = 0 is the present), zeros where there was no token."""


def windowed(query: Array, coincidences: Lagged, weights: Array) -> Array:
    """Query * sum_k weights[..., k] * coincidences(k): PSSA.

    Args:
        query: present spikes, (ticks, ..., channels).
        coincidences: key AND value, (ticks, ..., channels) for each k.
        weights: (window,), or (..., window) with axes that broadcast against the middle axes of ``query``.
    """
    total = weights[..., 0, None] * coincidences(0)
    for lag in range(1, weights.shape[-1]):
        total = total + weights[..., lag, None] * coincidences(lag)
    return query * total


def counted(spikes: Lagged, reach: int) -> Array:
    """sum_k spikes(k), k = 0 .. reach-1: the sum of SDSA-1."""
    total = spikes(0)
    for lag in range(1, reach):
        total = total + spikes(lag)
    return total


def scored(query: Array, key: Lagged, value: Lagged, reach: int, heads: int, all_ticks: bool) -> Array:
    """sum_k (query . key(k)) value(k) per head: SSSA and SDSA-3, or with scores over all ticks TSSA."""
    shape = (*query.shape[:-1], heads, query.shape[-1] // heads)
    total = 0
    for lag in range(reach):
        scores = (query * key(lag)).reshape(shape).sum(axis=-1, keepdims=True)
        if all_ticks:
            scores = scores.sum(axis=0, keepdims=True)
        total = total + (scores * value(lag).reshape(shape)).reshape(query.shape)
    return total


def lags_of(spikes: Array) -> Lagged:
    """The past within windows that are replayed whole, numpy (ticks, tokens, ..., neurons)."""

    def lagged(lag: int) -> Array:
        shifted = np.zeros_like(spikes)
        shifted[:, lag:] = spikes[:, : max(spikes.shape[1] - lag, 0)]
        return shifted

    return lagged


def lag_rows(matrix: Array, window: int) -> Array:
    """A bias on pairs of places, (K, K), as what place p gives to place p - k: (K, window), 0 where there is none."""
    places = np.arange(len(matrix))[:, None]
    earlier = places - np.arange(window)[None, :]
    return np.where(earlier >= 0, matrix[places, np.maximum(earlier, 0)], 0)

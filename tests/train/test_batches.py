"""Batches are a function of seed and step; ranks share them; drawing ahead changes nothing."""

from __future__ import annotations

import threading
from collections.abc import Generator
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsf.tasks import get_task
from dsf.train.config.training import DataConfig
from dsf.train.data.batches import Batch, BatchSource
from dsf.train.data.dataset import configure, sample_windows
from dsf.train.data.flat_store import FlatEpisodes, open_store, write_store
from dsf.train.quantization.codec import InputCodec

FEATURES, ACTIONS, WINDOWS, CONTEXT = 15, 3, 12, 5
OFFSET = 3.0
"""Far from zero, so that padding (integer 0) and an encoded zero are different things."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> BatchSource:
    """Three short episodes, so that many windows are padded."""
    directory: Path = tmp_path_factory.mktemp("flat")
    generator = np.random.default_rng(0)
    episodes = []
    for steps in (3, 9, 1):
        tokens = (OFFSET + generator.normal(size=(steps, FEATURES))).astype(np.float32)
        actions = generator.uniform(-1, 1, (steps, ACTIONS)).astype(np.float32)
        episodes.append(FlatEpisodes(tokens, actions, np.array([steps]), np.ones(1), 0, (tokens, actions)))
    write_store(directory, episodes, FEATURES, ACTIONS)
    data = configure("x", get_task("hopper"), open_store(directory), DataConfig())
    codec = InputCodec(np.full(FEATURES, OFFSET / 2), np.full(FEATURES, 0.05), np.full(FEATURES, 0.05), 8)
    return BatchSource(data, codec, WINDOWS, CONTEXT, seed=7)


def same(left: Batch, right: Batch) -> bool:
    """Equal in every field."""
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(astuple(left), astuple(right))
    )


def test_a_batch_is_the_codec_s_view_of_the_windows_of_its_step(source: BatchSource) -> None:
    batch = source.draw(4)
    windows = sample_windows(source.data, WINDOWS, CONTEXT, np.random.default_rng((7, 4)))
    assert np.array_equal(batch.mask.numpy(), windows.mask)
    assert not windows.mask.all() and batch.tokens == windows.mask.sum()
    assert batch.integers.dtype == torch.float32 and batch.actions.dtype == torch.float32
    for window, token in np.argwhere(windows.mask):
        expected = np.clip(np.rint((windows.tokens[window, token].astype(float) - OFFSET / 2) / 0.05), -127, 127)
        assert np.array_equal(batch.integers[window, token].numpy(), expected)
        assert np.array_equal(batch.actions[window, token].numpy(), windows.actions[window, token])
    assert not batch.integers[~batch.mask].any() and not batch.actions[~batch.mask].any()


def test_seed_and_step_alone_decide(source: BatchSource) -> None:
    first = source.draw(3)
    source.draw(11)
    np.random.seed(0)
    assert same(source.draw(3), first) and same(replace(source).draw(3), first)
    assert not same(source.draw(4), first) and not same(replace(source, seed=8).draw(3), first)


@settings(max_examples=30, deadline=None)
@given(step=st.integers(0, 10**9), ranks=st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_shares_of_ranks_make_the_global_batch(source: BatchSource, step: int, ranks: int) -> None:
    whole = source.draw(step)
    shares = [replace(source, rank=rank, ranks=ranks).draw(step) for rank in range(ranks)]
    for name in ("integers", "actions", "mask"):
        assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(whole, name))
    assert {len(share.mask) for share in shares} == {WINDOWS // ranks}
    assert all(share.tokens == whole.tokens == int(whole.mask.sum()) for share in shares)


def test_batches_drawn_ahead_are_those_of_their_steps(source: BatchSource) -> None:
    drawn = list(source.from_step(3, 6))
    assert len(drawn) == 3
    assert all(same(batch, source.draw(step)) for batch, step in zip(drawn, (3, 4, 5)))


def test_a_loop_that_stops_early_leaves_no_thread_behind(source: BatchSource) -> None:
    batches = source.from_step(0, 100)
    assert isinstance(batches, Generator)
    next(batches)
    assert any(thread.name.startswith("dsf-batches") for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name.startswith("dsf-batches") for thread in threading.enumerate())


def test_no_steps_left_is_no_error(source: BatchSource) -> None:
    """A run that is resumed after its last step."""
    assert list(source.from_step(5, 5)) == []

"""The C kernels against plain torch operations, in every dtype and layout, and machines that cannot build them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsf.shell.child_processes import start_method_kept
from dsf.testing.narrowed import gradient
from dsf.train.kernels import native
from dsf.train.kernels.build import KernelsUnavailable, load_kernels
from dsf.train.models import portable
from dsf.train.models.fused import NeuronConstants, batch_moments, fused_batch_norm_lif, fused_lif
from dsf.train.models.neurons import LIF

NEURON = NeuronConstants(decay=0.3, threshold=0.5, half_width=0.5, slope=1.0)
DTYPES = [
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16),
]
"""Types of currents and spikes that have kernels."""
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 1e-2}
"""Kernels and torch add in another order; where the current is bfloat16, so is its gradient."""
SUBPROCESS_TIMEOUT_S = 240.0


@contextmanager
def no_compiler() -> Iterator[None]:
    """The machine as if it had no compiler: the neuron then takes torch's operations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CC", "no-such-compiler")
        yield


Results: TypeAlias = Callable[[Tensor, Tensor], list[Tensor]]


@pytest.fixture
def torch_threads() -> Iterator[None]:
    """Restore the number of threads that a test changes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def random_currents(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return (torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.3).to(dtype)


def lif_results(currents: Tensor, upstream: Tensor) -> list[Tensor]:
    """Spikes and the gradient of the current."""
    current = currents.detach().requires_grad_()
    spikes = fused_lif(current, NEURON, upstream.dtype)
    spikes.backward(upstream)
    return [spikes.detach(), gradient(current)]


def norm_results(currents: Tensor, upstream: Tensor, training: bool = True) -> list[Tensor]:
    """Spikes, moments, and the gradients of current, weight, bias and skip."""
    real = native.real_dtype(currents.dtype)
    weight, bias = (random_currents((currents.shape[-1],), real, seed).requires_grad_() for seed in (1, 2))
    skip = torch.tensor(0.2, dtype=real, requires_grad=True)
    current = currents.detach().requires_grad_()
    moments = batch_moments(current, eps=1e-5)
    if not training:
        moments = type(moments)(moments.mean, moments.inverse_deviation, moments.variance, 0)
    spikes = fused_batch_norm_lif(current, weight, bias, skip, moments, NEURON, upstream.dtype)
    spikes.backward(upstream)
    return [spikes.detach(), moments.mean, moments.variance, *map(gradient, (current, weight, bias, skip))]


def assert_all_close(left: list[Tensor], right: list[Tensor], tolerance: float) -> None:
    for ours, other in zip(left, right):
        assert ours.dtype == other.dtype and ours.shape == other.shape
        scale = max(1.0, float(other.abs().max()))
        assert float((ours.double() - other.double()).abs().max()) <= tolerance * scale


def test_kernels_can_be_built_where_tests_run() -> None:
    """Else the tests below would compare torch with itself."""
    for current, spikes in DTYPES:
        assert native.covers(torch.zeros(1, 1, 1, dtype=current), spikes)


@settings(max_examples=60, deadline=None)
@given(
    dtypes=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
    ticks=st.integers(1, 6),
    rows=st.integers(1, 70),
    channels=st.integers(1, 140),
    training=st.booleans(),
)
def test_kernels_equal_torch_operations(
    dtypes: tuple[torch.dtype, torch.dtype], seed: int, ticks: int, rows: int, channels: int, training: bool
) -> None:
    """A neuron alone to the last bit, a batch norm and its neuron up to the order of its sums.

    Batch statistics that differ in the last bit could tip a spike, so both sides get the kernels' statistics here;
    the statistics themselves are compared below.
    """
    current_dtype, spike_dtype = dtypes
    currents = random_currents((ticks, rows, channels), current_dtype, seed)
    upstream = random_currents((ticks, rows, channels), spike_dtype, seed + 1)
    real = native.real_dtype(current_dtype)
    moments = batch_moments(currents, eps=1e-5)
    moments = moments if training else type(moments)(moments.mean, moments.inverse_deviation, moments.variance, 0)

    def results() -> tuple[list[Tensor], list[Tensor]]:
        weight, bias = (random_currents((channels,), real, seed + n).requires_grad_() for n in (2, 3))
        skip = torch.tensor(0.2, dtype=real, requires_grad=True)
        current = currents.clone().requires_grad_()
        spikes = fused_batch_norm_lif(current, weight, bias, skip, moments, NEURON, spike_dtype)
        spikes.backward(upstream)
        normed = [spikes.detach(), *map(gradient, (current, weight, bias, skip))]
        return lif_results(currents, upstream), normed

    alone, normed = results()
    with no_compiler():
        assert not native.covers(currents, spike_dtype)
        torch_alone, torch_normed = results()
    assert all(torch.equal(ours, other) for ours, other in zip(alone, torch_alone))
    assert torch.equal(normed[0], torch_normed[0]) and normed[0].dtype == spike_dtype
    assert_all_close(normed, torch_normed, TOLERANCE[current_dtype])


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.integers(0, 2**32 - 1),
    st.integers(1, 200),
    st.integers(1, 140),
)
def test_moments_equal_torch_operations(dtype: torch.dtype, seed: int, rows: int, channels: int) -> None:
    currents = random_currents((rows, channels), dtype, seed)
    native_moments = batch_moments(currents, eps=1e-5)
    with no_compiler():
        torch_moments = batch_moments(currents, eps=1e-5)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for name in ("mean", "variance", "inverse_deviation"):
        ours, other = getattr(native_moments, name), getattr(torch_moments, name)
        assert ours.dtype == other.dtype
        assert torch.allclose(ours, other, rtol=tolerance, atol=tolerance), name
    assert native_moments.count == torch_moments.count == rows


def other_layouts(contiguous: Tensor) -> dict[str, Tensor]:
    """The same values (ticks, rows, channels), lying otherwise in memory."""
    wide = torch.zeros(*contiguous.shape[:2], 3 * contiguous.shape[2], dtype=contiguous.dtype)
    wide[..., 1::3] = contiguous
    return {
        "channels first": contiguous.transpose(0, 2).contiguous().transpose(0, 2),
        "rows first": contiguous.transpose(0, 1).contiguous().transpose(0, 1),
        "every third channel": wide[..., 1::3],
    }


@pytest.mark.parametrize("results", [lif_results, norm_results])
def test_layout_in_memory_changes_nothing(results: Results) -> None:
    currents, upstream = (random_currents((4, 33, 70), torch.float32, seed) for seed in (0, 1))
    expected = results(currents, upstream)
    for name, current in other_layouts(currents).items():
        for sent in (upstream, *other_layouts(upstream).values()):
            assert not current.is_contiguous()
            assert all(torch.equal(a, b) for a, b in zip(results(current, sent), expected)), name


@pytest.mark.parametrize("results", [lif_results, norm_results])
def test_one_embedding_for_all_ticks_is_read_without_being_copied_first(
    results: Callable[[Tensor, Tensor], list[Tensor]],
) -> None:
    """The residual stream starts as an expanded view, and sum() sends back an expanded gradient."""
    held = random_currents((33, 70), torch.float32, 0).expand(4, 33, 70)
    ones = torch.ones(()).expand(4, 33, 70)
    expected = results(held.contiguous(), ones.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(results(held, ones), expected))


@pytest.mark.parametrize("dtypes", DTYPES)
def test_results_do_not_depend_on_the_number_of_threads(
    dtypes: tuple[torch.dtype, torch.dtype], torch_threads: None
) -> None:
    """Bit for bit, with more chunks of rows than threads, and with fewer."""
    for rows in (5, 333):
        currents = random_currents((4, rows, 130), dtypes[0], 0)
        upstream = random_currents((4, rows, 130), dtypes[1], 1)
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append([*lif_results(currents, upstream), *norm_results(currents, upstream)])
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other))


def test_no_rows_give_no_spikes() -> None:
    """A neuron has nothing to do then; batch statistics of nothing are refused (test_norm.py)."""
    spikes, gradient = lif_results(torch.zeros(4, 0, 7), torch.zeros(4, 0, 7))
    assert spikes.shape == gradient.shape == (4, 0, 7)


def test_more_ticks_than_kernels_hold_are_computed_with_torch() -> None:
    shape = (native.MAX_TICKS + 1, 2, 3)
    currents, upstream = random_currents(shape, torch.float32, 0), random_currents(shape, torch.float32, 1)
    assert not native.covers(currents, torch.float32) and native.covers(currents[1:], torch.float32)
    assert torch.equal(lif_results(currents, upstream)[0][:-1], lif_results(currents[:-1], upstream[:-1])[0])


def test_vectors_of_another_length_are_refused_before_the_kernel_reads_past_their_end() -> None:
    with pytest.raises(ValueError, match="8 values for 16 channels"):
        native.forward(torch.zeros(2, 3, 16), torch.ones(8), torch.zeros(16), torch.float32, 0.25, 0.5)


@pytest.mark.slow
@start_method_kept()  # torch.compile fixes it, and Lava refuses to be imported then
def test_torch_compile_traces_the_portable_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and differentiated by dynamo, run without inductor, whose C++ build would take a minute."""
    names = ("spikes", "current_gradient", "channel_sums", "norm_gradient")
    plain = {name: getattr(portable, name) for name in names}
    for name in names:
        monkeypatch.setattr(portable, name, plain[name])  # puts them back afterwards
    portable.compile_kernels("aot_eager")
    for rows in (5, 9):
        y, grad = random_currents((4, rows, 3), torch.float32, rows), random_currents((4, rows, 3), torch.float32, 1)
        scale, shift = torch.rand(3) + 0.5, torch.rand(3)
        arguments = {
            "spikes": (y, scale, shift, 0.25, 0.5, torch.float32),
            "current_gradient": (y, scale, shift, grad, 0.25, 0.5, 0.5, 1.0),
            "channel_sums": (y, shift, grad),
            "norm_gradient": (y, shift, grad, scale, shift, scale),
        }
        for name, values in arguments.items():
            assert getattr(portable, name) is not plain[name]
            found, expected = getattr(portable, name)(*values), plain[name](*values)
            pairs = zip(found, expected) if isinstance(found, tuple) else [(found, expected)]
            assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


IN_A_PROCESS = """
import sys, torch
from dsf.train import TrainConfig
from dsf.train.kernels.build import KernelsUnavailable, load_kernels
from dsf.train.models.neurons import LIF
from dsf.train.terminal import describe_computation
current = torch.randn(4, 50, 70, generator=torch.Generator().manual_seed(0)).requires_grad_()
spikes = LIF(0.25, 0.5)(current)
spikes.backward(torch.ones_like(spikes))
torch.save((spikes.detach(), current.grad), sys.argv[1])
try:
    load_kernels()
    print("kernels loaded")
except KernelsUnavailable as reason:
    print("unavailable:", reason)
print(describe_computation("cpu", "fp32", TrainConfig("x"), 1))
"""


LOADING = """
from dsf.train.kernels.build import load_kernels
load_kernels()
print("kernels loaded")
"""
"""What is found or built again needs no torch, which takes longer to import than the kernels to build."""


def start_process(result: Path, cache: Path, program: str = IN_A_PROCESS, **environment: str) -> subprocess.Popen[str]:
    """A process of its own that fires neurons, with an empty cache of kernels."""
    return subprocess.Popen(
        [sys.executable, "-c", program, str(result)],
        env={**os.environ, "XDG_CACHE_HOME": str(cache), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def expected_spikes() -> tuple[Tensor, Tensor]:
    """What that process has to find, from the kernels of this one."""
    current = torch.randn(4, 50, 70, generator=torch.Generator().manual_seed(0)).requires_grad_()
    spikes = LIF(0.25, 0.5)(current)
    spikes.backward(torch.ones_like(spikes))
    return spikes.detach(), gradient(current)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"CC": "no-such-compiler", "PATH": "/nowhere"}, "no C compiler 'no-such-compiler'"),
        ({"CC": "false"}, "false failed"),
        ({"CC": "true"}, "true failed: it wrote nothing"),
    ],
)
def test_without_a_working_compiler_neurons_compute_the_same_and_training_says_so(
    environment: dict[str, str], reason: str, tmp_path: Path
) -> None:
    process = start_process(tmp_path / "found.pt", tmp_path / "cache", **environment)
    output, errors = process.communicate(timeout=SUBPROCESS_TIMEOUT_S)
    assert process.returncode == 0, errors
    unavailable, computation = output.splitlines()
    assert unavailable.startswith("unavailable:") and reason in unavailable
    assert "fused, torch operations, slower" in computation and reason in computation
    assert all(torch.equal(a, b) for a, b in zip(torch.load(tmp_path / "found.pt"), expected_spikes()))
    assert not list(tmp_path.glob("cache/**/*.so"))


@pytest.mark.slow
def test_processes_that_build_at_once_all_work(tmp_path: Path) -> None:
    """Two processes, one empty cache: both load whole kernels, and one library stays behind."""
    processes = [start_process(tmp_path / f"{n}.pt", tmp_path / "cache") for n in range(2)]
    for number, process in enumerate(processes):
        output, errors = process.communicate(timeout=SUBPROCESS_TIMEOUT_S)
        assert process.returncode == 0, errors
        assert output.startswith("kernels loaded") and "fused, C kernels" in output
        assert all(torch.equal(a, b) for a, b in zip(torch.load(tmp_path / f"{number}.pt"), expected_spikes()))
    assert [path.suffix for path in (tmp_path / "cache" / "dsf").iterdir()] == [".so"]


@pytest.mark.slow
def test_a_library_that_was_cut_short_or_changed_is_built_again(tmp_path: Path) -> None:
    """Mapped, it would end the process with SIGBUS; a changed one would run somebody's code."""

    def loaded(program: str, cache: Path) -> Path:
        process = start_process(tmp_path / "found.pt", cache, program)
        output, errors = process.communicate(timeout=SUBPROCESS_TIMEOUT_S)
        assert output.startswith("kernels loaded"), errors
        (library,) = (cache / "dsf").glob("lif_kernels-*.so")
        return library

    for program, damages in ((IN_A_PROCESS, ("cut",)), (LOADING, ("cut", "changed", "empty"))):
        cache = tmp_path / f"cache of {damages[-1]}"
        library = loaded(program, cache)
        whole = library.read_bytes()
        damaged = {"cut": whole[: len(whole) // 2], "changed": whole[:-1] + bytes([whole[-1] ^ 1]), "empty": b""}
        for damage in damages:
            library.write_bytes(damaged[damage])
            assert loaded(program, cache).read_bytes() == whole
    assert all(torch.equal(a, b) for a, b in zip(torch.load(tmp_path / "found.pt"), expected_spikes()))
    elsewhere = tmp_path / "elsewhere.so"
    elsewhere.write_bytes(whole)
    for replace in (lambda: library.symlink_to(elsewhere), lambda: os.mkfifo(library)):
        library.unlink()
        replace()
        assert loaded(LOADING, cache).read_bytes() == whole and not library.is_symlink() and library.is_file()


@pytest.mark.slow
def test_a_cache_that_others_can_write_is_not_loaded_from(tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "dsf"
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    output, errors = start_process(tmp_path / "found.pt", tmp_path / "cache").communicate(timeout=SUBPROCESS_TIMEOUT_S)
    assert output.startswith("kernels loaded"), errors
    assert list(cache.iterdir()) == []
    assert errors == f"note: {cache} belongs to another user, or others can write to it: every command compiles again\n"


@pytest.mark.slow
def test_a_compiler_may_have_options(tmp_path: Path) -> None:
    """As make's and configure's CC has."""
    process = start_process(tmp_path / "found.pt", tmp_path / "cache", CC="cc -O2")
    output, errors = process.communicate(timeout=SUBPROCESS_TIMEOUT_S)
    assert output.startswith("kernels loaded"), errors


COUNTING_COMPILER = """#!/bin/sh
echo run >> "{log}"
exit 1
"""


def test_a_broken_compiler_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not again by every neuron of every step."""
    compiler, log = tmp_path / "cc", tmp_path / "log"
    compiler.write_text(COUNTING_COMPILER.format(log=log))
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    for _ in range(3):
        assert fused_lif(torch.ones(4, 5, 6), NEURON, torch.float32).all()
        with pytest.raises(KernelsUnavailable, match="failed"):
            load_kernels()
    assert log.read_text().count("run") == 1

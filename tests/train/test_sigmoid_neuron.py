"""STRL's neuron: snnTorch's definition, torch operations and C kernels against each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsf.train.kernels import sigmoid_native
from dsf.train.kernels.native import MAX_TICKS
from dsf.train.models.neurons import set_neuron_kind
from dsf.train.models.rivals.sigmoid_neuron import SURROGATE_SLOPE, SigmoidLIF

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
KINDS = ("snntorch", "portable", "native")
TAUS, THRESHOLDS, CHANNELS = (1.25, 2.0, 4.0, 8.0), (0.25, 1.0), (1, 63, 65, 130)


def random_values(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """In float32's values, because snnTorch's spikes, and so their gradients, pass through float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def defined_in(neuron: SigmoidLIF, dtype: torch.dtype) -> SigmoidLIF:
    """The neuron with snnTorch's constants in ``dtype``; of itself it rounds the decay to float32."""
    neuron.leaky.beta = torch.tensor(neuron.decay, dtype=dtype)
    return neuron


def fired(neuron: SigmoidLIF, kind: str, drive: Tensor, upstream: Tensor, hold: int | None) -> tuple[Tensor, Tensor]:
    """Spikes and the gradient to ``drive``, without a compiler where ``kind`` is portable."""
    set_neuron_kind(neuron, "snntorch" if kind == "snntorch" else "fused")
    mine = drive.detach().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        if kind == "portable":
            patch.setenv("CC", "no-such-compiler")
        assert sigmoid_native.covers(drive, len(upstream)) == (kind != "portable")
        spikes = neuron(mine, hold=hold)
        spikes.backward(upstream)
    assert mine.grad is not None and mine.grad.shape == drive.shape and mine.grad.dtype == drive.dtype
    return spikes.detach(), mine.grad


def without_overflow(
    neuron: SigmoidLIF, drive: Tensor, upstream: Tensor, hold: int | None, spikes: Tensor, gradient: Tensor
) -> Tensor:
    """The definition's gradient, from float64 where its own is NaN.

    snnTorch's sigmoid surrogate divides exp(-k x) by (1 + exp(-k x))^2: far below the threshold float32 overflows, and
    inf / inf is NaN, where the derivative is 0 to the last bit. Torch's and our sigmoid do not overflow.
    """
    wide_spikes, found = fired(defined_in(neuron, torch.float64), "snntorch", drive.double(), upstream.double(), hold)
    defined_in(neuron, drive.dtype)
    assert torch.equal(wide_spikes.to(spikes.dtype), spikes) and torch.isfinite(found).all()
    return torch.where(torch.isfinite(gradient), gradient, found.to(gradient.dtype))


def assert_kinds_agree(neuron: SigmoidLIF, drive: Tensor, upstream: Tensor, hold: int | None) -> Tensor:
    """The spikes are the same and the gradients close, three ways; the answer is the spikes."""
    (spikes, gradient), *others = (fired(neuron, kind, drive, upstream, hold) for kind in KINDS)
    assert spikes.dtype == drive.dtype and spikes.shape == upstream.shape
    if not torch.isfinite(gradient).all():
        gradient = without_overflow(neuron, drive, upstream, hold, spikes, gradient)
    scale = max(1.0, float(gradient.abs().max())) if gradient.numel() else 1.0
    for other_spikes, other in others:
        assert other_spikes.dtype == drive.dtype and torch.equal(other_spikes, spikes)
        assert torch.allclose(other, gradient, rtol=0.0, atol=TOLERANCE[drive.dtype] * scale)
    return spikes


@settings(max_examples=120, deadline=None)
@given(
    dtype=st.sampled_from(list(TOLERANCE)),
    tau=st.sampled_from(TAUS),
    threshold=st.sampled_from(THRESHOLDS),
    scale=st.sampled_from([1.0, 32**-0.5]),
    ticks=st.integers(1, 8),
    rows=st.integers(0, 5),
    channels=st.sampled_from(CHANNELS),
    held=st.booleans(),
    seed=st.integers(0, 2**31),
)
@example(torch.float32, 1.25, 0.25, 1.0, 8, 5, 130, True, 0)
@example(torch.float64, 1.25, 1.0, 1.0, 8, 5, 63, False, 0)
@example(torch.float32, 8.0, 1.0, 1.0, 5, 1, 63, True, 66)  # the definition's gradient overflows
@example(torch.float32, 2.0, 1.0, 1.0, 4, 0, 65, True, 0)
@example(torch.float64, 2.0, 1.0, 1.0, 4, 0, 65, False, 0)
def test_definition_torch_and_kernels_agree(
    dtype: torch.dtype,
    tau: float,
    threshold: float,
    scale: float,
    ticks: int,
    rows: int,
    channels: int,
    held: bool,
    seed: int,
) -> None:
    """``rows`` 0 is an empty batch."""
    neuron, shape = defined_in(SigmoidLIF(tau, threshold, scale), dtype), (rows, channels)
    drive = (2.0 * tau * threshold / scale) * random_values(shape if held else (ticks, *shape), dtype, seed)
    upstream = random_values((ticks, *shape), dtype, seed + 1)
    spikes = assert_kinds_agree(neuron, drive, upstream, ticks if held else None)
    if spikes.numel() > 1000:
        assert 0.02 < spikes.mean() < 0.98


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_memory_may_lie_in_any_order(dtype: torch.dtype, tau: float) -> None:
    """Transposed, sliced and repeated currents; gradients that a sum over ticks, or a transposition, sends back."""
    neuron = defined_in(SigmoidLIF(tau, 0.5), dtype)
    values, upstream = 2 * random_values((6, 65, 5), dtype, 1), random_values((6, 5, 65), dtype, 2)
    one, bare = upstream[0].expand(6, 5, 65), random_values((65, 5, 6), dtype, 3).permute(2, 1, 0)
    for drive in (values.transpose(1, 2), values.repeat(2, 1, 1)[::2].mT, values[:1].expand(6, 65, 5).mT):
        for arriving in (upstream, one, bare):
            assert_kinds_agree(neuron, drive, arriving, None)
            assert_kinds_agree(neuron, drive[3], arriving, 6)


def test_holding_is_repeating() -> None:
    neuron, drive, upstream = SigmoidLIF(1.25, 0.25), random_values((7, 33), torch.float32, 1), torch.ones(5, 7, 33)
    spikes, gradient = fired(neuron, "native", drive, upstream, 5)
    repeated, gradients = fired(neuron, "native", drive.repeat(5, 1, 1), upstream, None)
    assert torch.equal(spikes, repeated) and torch.equal(spikes, neuron.hold(drive, 5))
    assert torch.allclose(gradient, gradients.sum(dim=0), atol=1e-6)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_surrogate_is_accurate_far_from_the_threshold(dtype: torch.dtype, error: float) -> None:
    """Relative to float64's; float32's exponential ends at exp(-87), where a gradient has long become nothing."""
    far = torch.linspace(-86.0, 86.0, 20001, dtype=torch.float64) / SURROGATE_SLOPE
    drive = (far.to(dtype) + 1.0)[None]
    z = torch.exp(-SURROGATE_SLOPE * (drive.double() - 1.0).abs())
    expected = SURROGATE_SLOPE * z / (1.0 + z) ** 2
    neuron = SigmoidLIF(1.0 + 2**-20, 1.0, scale=1.0 + 2**-20)  # a gain of 1
    for kind in ("portable", "native"):
        _, gradient = fired(neuron, kind, drive, torch.ones_like(drive), None)
        assert float((gradient.double() / expected - 1.0).abs().max()) < error
        extremes = torch.tensor([[-1e30, -1e3, 1e3, 1e30]], dtype=dtype)
        assert not fired(neuron, kind, extremes, torch.ones_like(extremes), None)[1].any()


def test_a_current_that_is_no_number_shows() -> None:
    """In the gradient, so that the trainer stops; its neighbours are as they were."""
    neuron, drive, upstream = SigmoidLIF(2.0, 1.0), torch.full((3, 70), 1.5), torch.ones(3, 70)
    drive[1, 5] = torch.nan
    for kind in ("portable", "native"):
        spikes, gradient = fired(neuron, kind, drive, upstream, None)
        assert gradient[:2, 5].isnan().all() and int(gradient.isnan().sum()) == 3 and not spikes.isnan().any()


def test_threads_change_nothing() -> None:
    neuron, drive = SigmoidLIF(4.0, 0.3), random_values((6, 40, 130), torch.float32, 1)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(fired(neuron, "native", drive, torch.ones_like(drive), None))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found))


@pytest.mark.parametrize(
    ("dtype", "ticks", "tolerance"),
    [(torch.bfloat16, 3, 0.05), (torch.float16, 3, 0.01), (torch.float32, MAX_TICKS + 1, 1e-5)],
)
def test_what_no_kernel_covers_goes_through_torch(dtype: torch.dtype, ticks: int, tolerance: float) -> None:
    neuron, drive = SigmoidLIF(2.0, 0.5), random_values((9,), dtype, 1)
    upstream = random_values((ticks, 9), dtype, 2)
    assert not sigmoid_native.covers(drive, ticks)
    spikes, gradient = fired(neuron, "portable", drive, upstream, ticks)
    expected, wanted = fired(neuron, "portable", drive.double(), upstream.double(), ticks)
    assert spikes.dtype == dtype and torch.equal(spikes.double(), expected)
    assert torch.allclose(gradient.double(), wanted, atol=tolerance * max(1.0, float(wanted.abs().max())))

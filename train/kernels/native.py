"""Typed calls into the C kernels, on contiguous CPU tensors."""

from __future__ import annotations

import ctypes
from ctypes import CDLL, c_double, c_float, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from dsf.train.kernels.build import KernelsUnavailable, load_kernels

CHUNK_ROWS = 32
"""Rows behind one partial sum, as CHUNK in lif_kernels.c."""
MAX_TICKS = 64
"""Backward keeps one row's membranes of all ticks on the stack."""

_SUFFIX = {
    (torch.float32, torch.float32): "float32",
    (torch.float64, torch.float64): "float64",
    (torch.float32, torch.bfloat16): "float32_bfloat16",
    (torch.bfloat16, torch.bfloat16): "bfloat16",
}
"""Kernel variants by the dtypes of currents and spikes."""
_WITHOUT_TICKS = {"moments", "affine_sums", "affine_apply"}
"""Kernels for which every axis but the last is rows."""


def covers(current: Tensor, spike_dtype: torch.dtype) -> bool:
    """Whether a kernel exists for these (ticks, ..., channels) currents, and can be built on this machine."""
    if current.device.type != "cpu" or (current.dtype, spike_dtype) not in _SUFFIX or len(current) > MAX_TICKS:
        return False
    try:
        load_kernels()
    except KernelsUnavailable:
        return False
    return True


def real_dtype(current: torch.dtype) -> torch.dtype:
    """The dtype in which a kernel computes, and which its per-channel vectors have."""
    return torch.float64 if current == torch.float64 else torch.float32


def _call(name: str, current: Tensor, spike_dtype: torch.dtype, *arguments: Tensor | float) -> None:
    """Call ``name`` with pointers for tensors, then sizes, then reals, then the number of threads."""
    library: CDLL = load_kernels()
    function = getattr(library, f"{name}_{_SUFFIX[current.dtype, spike_dtype]}")
    function.restype = None
    real = c_double if real_dtype(current.dtype) == torch.float64 else c_float
    pointers = [c_void_p(item.data_ptr()) for item in arguments if isinstance(item, Tensor)]
    reals: list[ctypes._SimpleCData] = [real(item) for item in arguments if not isinstance(item, Tensor)]
    for item in pointers_to_channels(arguments):
        if item.numel() != current.shape[-1]:  # the kernel would read or write past the end
            raise ValueError(f"{name}: {item.numel()} values for {current.shape[-1]} channels")
    sizes = [c_int64(size) for size in _sizes(current, with_ticks=name not in _WITHOUT_TICKS)]
    function(*pointers, *sizes, *reals, c_int(torch.get_num_threads()))


def pointers_to_channels(arguments: tuple[Tensor | float, ...]) -> list[Tensor]:
    """The per-channel vectors among a kernel's arguments."""
    return [item for item in arguments if isinstance(item, Tensor) and item.dim() < 2]


def _sizes(current: Tensor, with_ticks: bool) -> tuple[int, ...]:
    channels = current.shape[-1]
    rows = current.numel() // max(channels, 1)
    return (len(current), rows // len(current), channels) if with_ticks else (rows, channels)


def _scratch(current: Tensor, with_ticks: bool) -> Tensor:
    """Room for the partial sums per chunk of rows and channel: two, with ticks three."""
    *_, rows, channels = _sizes(current, with_ticks)
    chunks = (rows + CHUNK_ROWS - 1) // CHUNK_ROWS
    return torch.zeros((3 if with_ticks else 2) * chunks, channels, dtype=real_dtype(current.dtype))


def _per_channel(decay: float | Tensor, current: Tensor) -> Tensor:
    """(channels,) decays as the kernels read them."""
    real = real_dtype(current.dtype)
    if isinstance(decay, Tensor):
        return decay.detach().to(real).contiguous()
    return torch.full((current.shape[-1],), decay, dtype=real)


def moments(current: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared deviations (channels,) in float64 over all other axes."""
    current = current.contiguous()
    mean = torch.empty(current.shape[-1], dtype=torch.float64)
    squares = torch.empty_like(mean)
    spike_dtype = current.dtype
    _call("moments", current, spike_dtype, current, mean, squares, _scratch(current, with_ticks=False))
    return mean, squares


def forward(
    current: Tensor, scale: Tensor, shift: Tensor, spike_dtype: torch.dtype, decay: float | Tensor, threshold: float
) -> Tensor:
    """Spikes of LIF(scale * current + shift), with one decay or (channels,) of them."""
    current = current.contiguous()
    spikes, decays = torch.empty(current.shape, dtype=spike_dtype), _per_channel(decay, current)
    _call("forward", current, spike_dtype, current, scale, shift, decays, spikes, threshold)
    return spikes


def backward_sums(
    current: Tensor,
    scale: Tensor,
    shift: Tensor,
    centre: Tensor,
    grad: Tensor,
    decay: float | Tensor,
    *constants: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Per channel, in float64: sum g, sum g * (current - centre), and of decays that are a tensor the gradient to them.

    ``constants`` are NeuronConstants' others.
    """
    learned = isinstance(decay, Tensor)
    sums = [torch.empty(current.shape[-1], dtype=torch.float64) for _ in range(3 if learned else 2)]
    inputs = (current.contiguous(), scale, shift, _per_channel(decay, current), centre, grad.contiguous())
    name = "backward_decays" if learned else "backward_sums"
    _call(name, current, grad.dtype, *inputs, *sums, _scratch(current, with_ticks=True), *constants)
    return sums[0], sums[1], sums[2] if learned else None


def backward_apply(
    current: Tensor,
    scale: Tensor,
    shift: Tensor,
    centre: Tensor,
    coefficients: tuple[Tensor, Tensor, Tensor],
    grad: Tensor,
    decay: float | Tensor,
    *constants: float,
) -> Tensor:
    """Gain * g + offset + slant * (current - centre)."""
    result = torch.empty_like(current, memory_format=torch.contiguous_format)
    inputs = (current.contiguous(), scale, shift, _per_channel(decay, current), centre, *coefficients)
    _call("backward_apply", current, grad.dtype, *inputs, grad.contiguous(), result, *constants)
    return result


def affine_sums(y: Tensor, centre: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Per channel, in float64: sum grad and sum grad * (y - centre)."""
    total = torch.empty(y.shape[-1], dtype=torch.float64)
    product = torch.empty_like(total)
    scratch = _scratch(y, with_ticks=False)
    _call("affine_sums", y, grad.dtype, y.contiguous(), centre, grad.contiguous(), total, product, scratch)
    return total, product


def affine_apply(y: Tensor, centre: Tensor, coefficients: tuple[Tensor, Tensor, Tensor], grad: Tensor) -> Tensor:
    """Gain * grad + offset + slant * (y - centre)."""
    result = torch.empty_like(y, memory_format=torch.contiguous_format)
    _call("affine_apply", y, grad.dtype, y.contiguous(), centre, *coefficients, grad.contiguous(), result)
    return result

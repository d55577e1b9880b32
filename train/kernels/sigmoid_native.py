"""Typed calls into the C kernels of the neuron with a sigmoid surrogate, on CPU tensors."""

from __future__ import annotations

from ctypes import c_double, c_float, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from dsf.train.kernels.build import KernelSource, KernelsUnavailable, load_kernels
from dsf.train.kernels.native import MAX_TICKS

SIGMOID_KERNELS = KernelSource(__package__, ("sigmoid_kernels.c", "sigmoid_typed.h"), threads=True)
_TYPES = {torch.float32: ("float32", c_float), torch.float64: ("float64", c_double)}
"""Suffix of the kernels and the type of their numbers, by dtype."""


def covers(currents: Tensor, ticks: int) -> bool:
    """Whether a kernel exists for these currents, and can be built on this machine."""
    if currents.device.type != "cpu" or currents.dtype not in _TYPES or not 1 <= ticks <= MAX_TICKS:
        return False
    try:
        load_kernels(SIGMOID_KERNELS)
    except KernelsUnavailable:
        return False
    return True


def forward(currents: Tensor, ticks: int, held: bool, gain: float, decay: float, threshold: float) -> Tensor:
    """Spikes (ticks, ...) of currents (ticks, ...), or (...) where they are ``held`` for all ticks."""
    currents = currents.contiguous()
    spikes = currents.new_empty((ticks, *currents.shape) if held else currents.shape)
    size = spikes.numel() // ticks
    _call("forward", [currents, spikes], [ticks, size, 0 if held else size], [gain, decay, threshold])
    return spikes


def backward(
    currents: Tensor, grad: Tensor, held: bool, slope: float, gain: float, decay: float, threshold: float
) -> Tensor:
    """Gradient to the currents, in their shape, from that to the spikes (ticks, ...)."""
    currents, ticks = currents.contiguous(), len(grad)
    shared = grad.stride(0) == 0 and grad[0].is_contiguous()  # what a sum over the ticks sends back
    grad = grad if shared else grad.contiguous()
    result, size = torch.empty_like(currents), grad.numel() // ticks
    sizes = [ticks, size, 0 if held else size, 0 if shared else size]
    _call("backward", [currents, grad, result], sizes, [slope, gain, decay, threshold])
    return result


def _call(name: str, tensors: list[Tensor], sizes: list[int], numbers: list[float]) -> None:
    """Call ``name`` with pointers, then sizes, then numbers, then the number of threads."""
    suffix, real = _TYPES[tensors[0].dtype]
    function = getattr(load_kernels(SIGMOID_KERNELS), f"{name}_{suffix}")
    function.restype = None
    pointers = [c_void_p(tensor.data_ptr()) for tensor in tensors]
    function(*pointers, *map(c_int64, sizes), *map(real, numbers), c_int(torch.get_num_threads()))

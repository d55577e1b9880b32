"""Slow, independent definitions of DSFormer's parts: the paper's equations, one token and one tick at a time.

Written from arXiv 2504.03800 (and, for SDSA, from Spike-driven Transformer v1 and v2), not from ``dsf.train``, with
which they share nothing but the names of parameters. Everything is float64, and gradients come from autograd over
single vectors, through a straight-through step of our own.

A :data:`Stream` holds a residual stream: ``stream[tick][window][token]`` is a vector over channels. Only tokens that
exist are in it, so a window may have fewer than ``context`` of them: the missing ones are the oldest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Vector = Tensor
Stream = list[list[list[Vector]]]
EPS = 1e-5
MOMENTUM = 0.1
PAPER_WIDTH = 1.0


class Step(torch.autograd.Function):
    """s = v > threshold, strictly; ds/dv = 1 / width where |v - threshold| < width / 2, else 0."""

    @staticmethod
    def forward(ctx: Any, membrane: Tensor, threshold: float, width: float) -> Tensor:
        ctx.save_for_backward(membrane)
        ctx.threshold, ctx.width = threshold, width
        return torch.where(membrane > threshold, 1.0, 0.0).to(membrane.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (membrane,) = ctx.saved_tensors
        inside = (membrane > ctx.threshold - ctx.width / 2) & (membrane < ctx.threshold + ctx.width / 2)
        return torch.where(inside, gradients[0] / ctx.width, torch.zeros_like(gradients[0])), None, None


@dataclass
class Neuron:
    """v[t] = decay * v[t-1] * (1 - s[t-1]) + x[t]; v[-1] = 0.

    ``margin`` is how close a membrane came to the threshold or to an edge of the surrogate without lying on it: nearer
    than rounding errors, two correct computations may differ by a whole spike. A membrane that lies on one exactly was
    counted in integers, which both sides do without rounding.
    """

    decay: float
    threshold: float
    width: float = PAPER_WIDTH
    margin: float = math.inf

    def spikes(self, currents: list[Vector]) -> list[Vector]:
        """One population: currents and spikes by tick."""
        membrane, spike, fired = torch.zeros_like(currents[0]), torch.zeros_like(currents[0]), []
        for current in currents:
            membrane = self.decay * membrane * (1.0 - spike.detach()) + current
            spike = Step.apply(membrane, self.threshold, self.width)
            fired.append(spike)
            for edge in (-self.width / 2, 0.0, self.width / 2):
                distance = (membrane.detach() - self.threshold - edge).abs()
                self.margin = min([self.margin, *distance[distance > 0.0].tolist()])
        return fired


def shape_like(stream: Stream, make: Callable[[int, int, int], Vector]) -> Stream:
    """A stream with ``make(tick, window, token)`` in every place of ``stream``."""
    return [
        [[make(tick, window, token) for token in range(len(tokens))] for window, tokens in enumerate(windows)]
        for tick, windows in enumerate(stream)
    ]


def each(stream: Stream, function: Callable[[Vector], Vector]) -> Stream:
    """``function`` of every vector."""
    return shape_like(stream, lambda tick, window, token: function(stream[tick][window][token]))


def add(left: Stream, right: Stream) -> Stream:
    """The sum of two streams."""
    return shape_like(left, lambda tick, window, token: left[tick][window][token] + right[tick][window][token])


def channels(stream: Stream, first: int, last: int) -> Stream:
    """Channels ``first`` .. ``last - 1``."""
    return each(stream, lambda vector: vector[first:last])


def vectors(stream: Stream) -> list[Vector]:
    """All vectors: ticks, then windows, then tokens."""
    return [vector for windows in stream for tokens in windows for vector in tokens]


def stream_of(values: Tensor, lengths: list[int]) -> Stream:
    """(ticks, rows, channels) as a stream of windows with so many tokens each; rows run through window after window."""
    starts = [sum(lengths[:window]) for window in range(len(lengths))]
    return [
        [[values[tick, start + token] for token in range(length)] for start, length in zip(starts, lengths)]
        for tick in range(len(values))
    ]


def tensor_of(stream: Stream) -> Tensor:
    """The inverse of :func:`stream_of`."""
    return torch.stack([torch.stack([vector for tokens in windows for vector in tokens]) for windows in stream])


def lif(stream: Stream, neuron: Neuron) -> Stream:
    """A neuron for every channel of every token, through the ticks."""
    fired = {
        (window, token): neuron.spikes([stream[tick][window][token] for tick in range(len(stream))])
        for window, tokens in enumerate(stream[0])
        for token in range(len(tokens))
    }
    return shape_like(stream, lambda tick, window, token: fired[window, token][tick])


def standardised(vector: Vector, mean: Tensor, variance: Tensor) -> Vector:
    """(x - mean) / sqrt(variance + eps)."""
    return (vector - mean) / torch.sqrt(variance + EPS)


def statistics(stream: Stream) -> tuple[Vector, Vector]:
    """Mean and biased variance of every channel over ticks, windows and tokens."""
    seen = vectors(stream)
    mean = torch.zeros_like(seen[0])
    for vector in seen:
        mean = mean + vector / len(seen)
    variance = torch.zeros_like(mean)
    for vector in seen:
        variance = variance + (vector - mean) ** 2 / len(seen)
    return mean, variance


def moved_statistics(stream: Stream, running_mean: Vector, running_variance: Vector) -> tuple[Vector, Vector]:
    """Running statistics after one more training batch; the variance that enters them is unbiased."""
    mean, variance = statistics(stream)
    count = len(vectors(stream))
    unbiased = variance * count / max(count - 1, 1)
    return (
        (1 - MOMENTUM) * running_mean + MOMENTUM * mean,
        (1 - MOMENTUM) * running_variance + MOMENTUM * unbiased,
    )


def layer_norm(vector: Vector, weight: Vector, bias: Vector) -> Vector:
    """Standardise one token at one tick over its channels."""
    mean = vector.sum() / len(vector)
    variance = ((vector - mean) ** 2).sum() / len(vector)
    return weight * standardised(vector, mean, variance) + bias


@dataclass
class Definition:
    """One configuration of the network, with its parameters by name.

    Attributes:
        values: parameters and running statistics, by the names they have in our modules.
        neuron: the LIF of all populations but one.
        attention_neuron: the LIF on attention's sum; None means the same as all others.
        norm, attention, positional_bias, heads, context, window: as in ModelConfig.
        scale: factor on attention's sum.
        blend: PTBN's lambda.
        training: whether batch norms use the batch's statistics.
    """

    values: dict[str, Tensor]
    neuron: Neuron
    norm: str = "ptbn"
    attention: str = "pssa"
    positional_bias: str = "relative"
    heads: int = 1
    context: int = 1
    window: int = 1
    blend: float = 0.0
    training: bool = True
    attention_neuron: Neuron | None = None
    scale: float = 1.0

    @property
    def margin(self) -> float:
        """The smallest margin of any neuron."""
        return min(self.neuron.margin, self.attention_neuron.margin if self.attention_neuron else math.inf)

    def linear(self, stream: Stream, name: str) -> Stream:
        """W x, without bias."""
        weight = self.values[f"{name}.weight"]
        return each(stream, lambda vector: weight @ vector)

    def normed(self, stream: Stream, name: str) -> Stream:
        """The norm of the configuration, of a stream."""
        get = {key.removeprefix(f"{name}."): value for key, value in self.values.items() if key.startswith(f"{name}.")}
        if self.norm == "none":
            return stream
        if self.norm == "tdln":
            return each(stream, lambda vector: layer_norm(vector, get["weight"], get["bias"]))
        if self.training:
            mean, variance = statistics(stream)
        else:
            mean, variance = get["batch.running_mean"], get["batch.running_var"]

        def batch_norm(vector: Vector) -> Vector:
            normal = get["batch.weight"] * standardised(vector, mean, variance) + get["batch.bias"]
            return normal + get["skip"] * vector if self.norm == "reptbn" else normal

        if self.norm == "tdbn" or not self.training:
            return each(stream, batch_norm)
        return each(
            stream,
            lambda vector: (
                self.blend * layer_norm(vector, get["layer.weight"], get["layer.bias"])
                + (1 - self.blend) * batch_norm(vector)
            ),
        )

    def fire(self, stream: Stream) -> Stream:
        """Spikes of a stream of currents."""
        return lif(stream, self.neuron)

    def fire_attention(self, stream: Stream) -> Stream:
        """Spikes of attention's own neuron, of its scaled sum."""
        return lif(each(stream, lambda vector: self.scale * vector), self.attention_neuron or self.neuron)

    def mix(self, query: Stream, key: Stream, value: Stream, name: str) -> Stream:
        """Attention's spikes from those of query, key and value."""
        if self.attention == "pssa":
            return self.fire_attention(self.pssa(query, key, value, self.values[f"{name}positional_bias"]))
        if self.attention == "sdsa1":
            gate = self.fire_attention(sdsa1(key, value))
            return shape_like(query, lambda t, w, i: query[t][w][i] * gate[t][w][i])
        rule = {"tssa": tssa, "sssa": sssa, "sdsa3": sdsa3}[self.attention]
        return self.fire_attention(rule(query, key, value, self.heads))

    def pssa(self, query: Stream, key: Stream, value: Stream, bias: Tensor) -> Stream:
        """q_i * sum_j B_ij (k AND v)_j, 0 <= i - j < w; B_ij is b_{i-j}, or B at positions i and j in the window."""

        def out(tick: int, window: int, token: int) -> Vector:
            absent = self.context - len(query[tick][window])  # the last token of a window is always in its last place
            total = torch.zeros_like(query[tick][window][token])
            for other in range(token + 1):
                if token - other < self.window:
                    coincidence = key[tick][window][other] * value[tick][window][other]
                    relative = self.positional_bias == "relative"
                    weight = bias[token - other] if relative else bias[absent + token, absent + other]
                    total = total + weight * coincidence
            return query[tick][window][token] * total

        return shape_like(query, out)

    def attended(self, stream: Stream, name: str = "") -> Stream:
        """The attention branch: norm(W mix(q, k, v)) with q, k, v = LIF(norm(W LIF(x)))."""
        width = len(vectors(stream)[0])
        qkv = self.fire(self.normed(self.linear(self.fire(stream), f"{name}qkv"), f"{name}qkv_norm"))
        query, key, value = (channels(qkv, part * width, (part + 1) * width) for part in range(3))
        mixed = self.mix(query, key, value, name)
        return self.normed(self.linear(mixed, f"{name}project"), f"{name}project_norm")

    def mlp(self, stream: Stream, name: str = "") -> Stream:
        """norm(W LIF(norm(W LIF(x))))."""
        hidden = self.fire(self.normed(self.linear(self.fire(stream), f"{name}expand"), f"{name}expand_norm"))
        return self.normed(self.linear(hidden, f"{name}contract"), f"{name}contract_norm")

    def block(self, stream: Stream, name: str = "") -> Stream:
        """x += attention(x); x += MLP(x)."""
        if self.attention != "none":
            stream = add(stream, self.attended(stream, f"{name}attention."))
        return add(stream, self.mlp(stream, f"{name}mlp."))


def head_slices(width: int, heads: int) -> list[slice]:
    """Channels of each head."""
    return [slice(head * width // heads, (head + 1) * width // heads) for head in range(heads)]


def per_head(query: Stream, heads: int, out: Callable[[int, int, int, slice], Vector]) -> Stream:
    """A stream whose vectors are the heads' outputs, one after the other."""
    parts = head_slices(len(vectors(query)[0]), heads)
    return shape_like(query, lambda t, w, i: torch.cat([out(t, w, i, part) for part in parts]))


def sssa(query: Stream, key: Stream, value: Stream, heads: int) -> Stream:
    """At every tick: sum_{j<=i} (q_i . k_j) v_j."""

    def out(tick: int, window: int, token: int, part: slice) -> Vector:
        total = torch.zeros_like(query[tick][window][token][part])
        for other in range(token + 1):
            score = (query[tick][window][token][part] * key[tick][window][other][part]).sum()
            total = total + score * value[tick][window][other][part]
        return total

    return per_head(query, heads, out)


def tssa(query: Stream, key: Stream, value: Stream, heads: int) -> Stream:
    """The score is a count over all ticks: sum_{j<=i} (sum_t q_i[t] . k_j[t]) v_j[t']."""

    def out(tick: int, window: int, token: int, part: slice) -> Vector:
        total = torch.zeros_like(query[tick][window][token][part])
        for other in range(token + 1):
            score = torch.zeros((), dtype=total.dtype)
            for inner in range(len(query)):
                score = score + (query[inner][window][token][part] * key[inner][window][other][part]).sum()
            total = total + score * value[tick][window][other][part]
        return total

    return per_head(query, heads, out)


def sdsa3(query: Stream, key: Stream, value: Stream, heads: int) -> Stream:
    """q_i (sum_{j<=i} k_j v_j^T): keys and values first, as Spike-driven Transformer v2 writes it."""

    def out(tick: int, window: int, token: int, part: slice) -> Vector:
        memory = torch.zeros(())
        for other in range(token + 1):
            memory = memory + torch.outer(key[tick][window][other][part], value[tick][window][other][part])
        return query[tick][window][token][part] @ memory

    return per_head(query, heads, out)


def sdsa1(key: Stream, value: Stream) -> Stream:
    """sum_{j<=i} (k AND v)_j, which the neuron sees before the query's gate."""

    def out(tick: int, window: int, token: int) -> Vector:
        total = torch.zeros_like(key[tick][window][token])
        for other in range(token + 1):
            total = total + key[tick][window][other] * value[tick][window][other]
        return total

    return shape_like(key, out)


def own_values(module: nn.Module) -> dict[str, Tensor]:
    """Copies of a module's parameters (as leaves that take gradients) and buffers, by name."""
    parameters = {name: value.detach().clone().requires_grad_() for name, value in module.named_parameters()}
    return {**{name: value.detach().clone() for name, value in module.named_buffers()}, **parameters}


def assert_close(ours: Tensor, defined: Tensor, tolerance: float, what: str) -> None:
    """Equal up to ``tolerance`` of the largest value, or of one where all are smaller."""
    ours, defined = ours.detach(), defined.detach()
    scale = max(1.0, float(defined.abs().max())) if defined.numel() else 1.0
    error = float((ours - defined).abs().max()) if defined.numel() else 0.0
    assert error <= tolerance * scale, f"{what}: off by {error:.3g} where values reach {scale:.3g}"


def assert_same_gradients(module: nn.Module, values: dict[str, Tensor], tolerance: float) -> None:
    """Every parameter's gradient, ours against the definition's; one that was never used counts as zero."""
    for name, parameter in module.named_parameters():
        ours = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        defined = values[name].grad
        assert_close(ours, torch.zeros_like(ours) if defined is None else defined, tolerance, f"gradient of {name}")

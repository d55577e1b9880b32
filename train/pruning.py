"""Magnitude pruning while a network trains: of weights, and of whole hidden channels of the MLPs.

A weight that is pruned is zero from then on: its gradient is held back, and it is set to zero again after every step.
What is pruned is read off the weights themselves, which are never exactly zero otherwise, so a run that is resumed
needs no other state. Zero stays zero where norms are folded and where weights become integers.

Weights are judged by their magnitude as it is stored, the usual criterion (Zhu & Gupta 2017, arXiv 1710.01878): in
front of a norm that is before the norm's gain, in quantization-aware training with it. Channels are judged by the
Euclidean norm of the weights that they write with, because a norm makes the size of those that they read with
meaningless. A channel that is pruned loses both, and the gain and offset of its norm, so that its neuron never fires:
its current is exactly zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dsf.train.config.levers import PruneScope
from dsf.train.config.training import TrainConfig
from dsf.train.models.decision_model import DecisionModel
from dsf.train.models.dsformer import MLP
from dsf.train.models.rivals.int8 import require_linears

SHOWN = "prune"
"""Prefix of the shares in a run's metrics."""


@dataclass(frozen=True)
class Channels:
    """The hidden channels of one MLP.

    Attributes:
        expand: name of the weights (hidden, width) that feed them.
        contract: name of the weights (width, hidden) that they write with.
        vectors: names of what else a channel has, (hidden,) each: a bias, or its norm's gain and offset.
    """

    expand: str
    contract: str
    vectors: tuple[str, ...]


class Pruner:
    """The zeros of one model.

    Args:
        model: whose parameters are pruned, in place.
        weights: share of the zeros at the end; None prunes no single weights.
        channels: the same for hidden channels.
        scope: see ``prune_scope`` of :class:`~dsf.train.config.training.TrainConfig`.

    Raises:
        UserError: a rival has matrices that are no Linears.
    """

    def __init__(
        self, model: DecisionModel, weights: float | None, channels: float | None, scope: PruneScope = "matrix"
    ) -> None:
        if model.kind != "dsformer":
            require_linears(model, "--prune-weights", "drop it")
        self.model, self.weights, self.channels, self.scope = model, weights, channels, scope
        self.matrices = [
            f"{name}.weight"
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and model.is_prunable(name)
        ]
        self.hidden = [_channels(name, module) for name, module in model.named_modules() if isinstance(module, MLP)]

    @classmethod
    def of(cls, model: DecisionModel, config: TrainConfig) -> Pruner:
        """What a config asks for."""
        return cls(model, config.prune_weights, config.prune_channels, config.prune_scope)

    @torch.no_grad()
    def hold_gradients(self) -> None:
        """Set the gradients of what is pruned to zero."""
        parameters = dict(self.model.named_parameters())
        for name, pruned in self._pruned(parameters):
            gradient = parameters[name].grad
            if gradient is not None:
                gradient.masked_fill_(pruned, 0.0)

    @torch.no_grad()
    def prune(self, factor: float, copies: Sequence[dict[str, Tensor]] = ()) -> None:
        """Let the zeros grow to ``factor`` times the shares asked for; what is zero stays so.

        Args:
            factor: 0 to 1.
            copies: other weights by the same names, such as averages, that get the same zeros.
        """
        parameters = dict(self.model.named_parameters())
        if self.channels is not None:
            self._prune_channels(parameters, factor * self.channels)
        if self.weights is not None:
            self._prune_weights(parameters, factor * self.weights)
        for name, pruned in self._pruned(parameters):
            parameters[name].masked_fill_(pruned, 0.0)
            for tensors in copies:
                tensors[name].masked_fill_(pruned, 0.0)

    def as_metrics(self) -> dict[str, float]:
        """Shares of the weights and hidden channels that are zero."""
        parameters = dict(self.model.named_parameters())
        zeros = sum(int((parameters[name] == 0).sum()) for name in self.matrices)
        found = {f"{SHOWN}/weights": zeros / sum(parameters[name].numel() for name in self.matrices)}
        if self.hidden:
            empty = torch.cat([self._empty(parameters, channels) for channels in self.hidden])
            found[f"{SHOWN}/channels"] = float(empty.float().mean())
        return found

    def _prune_weights(self, parameters: dict[str, nn.Parameter], share: float) -> None:
        groups: list[list[str]] = [self.matrices] if self.scope == "network" else [[name] for name in self.matrices]
        for group in groups:
            magnitudes = torch.cat([parameters[name].flatten().abs() for name in group])
            weakest = _weakest(magnitudes, share)
            parts = weakest.split([parameters[name].numel() for name in group])
            for name, pruned in zip(group, parts):
                parameters[name].masked_fill_(pruned.view_as(parameters[name]), 0.0)

    def _prune_channels(self, parameters: dict[str, nn.Parameter], share: float) -> None:
        groups: list[list[Channels]] = (
            [self.hidden] if self.scope == "network" else [[channels] for channels in self.hidden]
        )
        for group in groups:
            sizes = []
            for channels in group:
                size = torch.linalg.vector_norm(parameters[channels.contract], dim=0)
                sizes.append(torch.where(self._empty(parameters, channels), -1.0, size))  # those that are empty first
            weakest = _weakest(torch.cat(sizes), share, least=0.0)
            for channels, pruned in zip(group, weakest.split([len(size) for size in sizes])):
                parameters[channels.contract].masked_fill_(pruned, 0.0)
                for name in (channels.expand, *channels.vectors):
                    parameters[name][pruned] = 0.0

    def _pruned(self, parameters: dict[str, nn.Parameter]) -> Iterator[tuple[str, Tensor]]:
        """What is pruned of each parameter, by its name."""
        if self.channels is not None:
            for channels in self.hidden:
                empty = self._empty(parameters, channels)
                yield channels.contract, empty.expand_as(parameters[channels.contract])
                yield channels.expand, empty[:, None].expand_as(parameters[channels.expand])
                yield from ((name, empty) for name in channels.vectors)
        if self.weights is not None:
            yield from ((name, parameters[name] == 0) for name in self.matrices)

    @staticmethod
    def _empty(parameters: dict[str, nn.Parameter], channels: Channels) -> Tensor:
        """Which hidden channels neither read nor write anything, (hidden,)."""
        reads, writes = parameters[channels.expand], parameters[channels.contract]
        return (reads == 0).all(dim=1) & (writes == 0).all(dim=0)


def _channels(path: str, mlp: MLP) -> Channels:
    hidden = mlp.expand.out_features
    inside = [f"expand_norm.{name}" for name, value in mlp.expand_norm.named_parameters() if value.shape == (hidden,)]
    inside += [] if mlp.expand.bias is None else ["expand.bias"]
    return Channels(f"{path}.expand.weight", f"{path}.contract.weight", tuple(f"{path}.{name}" for name in inside))


def _weakest(sizes: Tensor, share: float, least: float | None = None) -> Tensor:
    """The share of the entries with the smallest sizes, rounded to a whole number of them, as a mask.

    Among equals, the first ones. Where more are below ``least`` (or, without it, zero) already, nothing is added.
    """
    count = round(share * len(sizes))
    gone = sizes < least if least is not None else sizes == 0
    if count <= int(gone.sum()):
        return gone
    mask = torch.zeros_like(gone)
    mask[torch.argsort(sizes, stable=True)[:count]] = True
    return mask

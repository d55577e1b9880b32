"""The weights that a run reports, where they are not simply its last ones: averaged over steps, with new statistics.

Training goes on from its own weights; what stands here is made from them and never goes back.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from dsf.train.models.decision_model import DecisionModel
from dsf.train.models.norm import BatchNorm, set_blend

Model = TypeVar("Model", bound=DecisionModel)
Inputs = tuple[Tensor, Tensor, Tensor]
"""Integers, mask and ends of a batch, see :class:`~dsf.train.data.batches.Batch`."""


class WeightAverage:
    """Exponential moving average of a model's parameters: a <- keep * a + (1 - keep) * w after every step.

    It starts at the weights of step 0; after n steps they still have the share keep**n in it.

    Args:
        model: whose parameters are averaged.
        keep: share that the average keeps of itself at each step, above 0 and below 1.
    """

    def __init__(self, model: nn.Module, keep: float) -> None:
        self.keep = keep
        self.weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """A step was made."""
        for name, parameter in model.named_parameters():
            self.weights[name].lerp_(parameter, 1.0 - self.keep)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from the average in a checkpoint's model."""
        for name, weights in self.weights.items():
            weights.copy_(tensors[name])

    @torch.no_grad()
    def write_to(self, model: nn.Module) -> None:
        """Give a model the averaged parameters."""
        for name, parameter in model.named_parameters():
            parameter.copy_(self.weights[name])


def has_statistics(model: nn.Module) -> bool:
    """Whether a model has batch-norm statistics to estimate."""
    return any(isinstance(module, BatchNorm) for module in model.modules())


@torch.no_grad()
def estimate_statistics(model: DecisionModel, batches: Iterable[Inputs]) -> None:
    """Replace every batch norm's running statistics by the mean over batches, each batch with the same weight.

    Activations are those of these very weights: running statistics trail behind weights that move, and averaged
    weights never had any.

    Args:
        model: left in evaluation mode, where PTBN is batch norm alone.
        batches: what it sees; at least one.
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    momenta = [norm.batch.momentum for norm in norms]
    model.train()
    set_blend(model, 0.0)
    for number, inputs in enumerate(batches, start=1):
        for norm in norms:
            norm.batch.momentum = 1.0 / number  # so that running means are plain means
        model(*inputs)
    for norm, momentum in zip(norms, momenta):
        norm.batch.momentum = momentum
    model.eval()


def reported_copy(model: Model, average: WeightAverage | None, batches: Iterable[Inputs]) -> Model:
    """A copy in evaluation mode with averaged weights and new statistics, as far as either is asked for.

    Args:
        model: that trains; it stays as it is.
        average: of its parameters.
        batches: for the statistics; empty keeps the running ones.
    """
    reported = copy.deepcopy(model)
    if average is not None:
        average.write_to(reported)
    inputs = list(batches)
    if inputs:
        estimate_statistics(reported, inputs)
    return reported.eval()
